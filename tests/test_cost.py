"""What the edge pays, against counts by hand."""

import torch

import splitveil as sv
from splitveil.cost import edge_cost


def test_cost_at_a_fully_connected_cut() -> None:
    split = sv.SplitModel(sv.Table1Net((1, 16, 32), 10), at=4)
    factors = sv.factorise(split.server_layer, feature_shape=(512,))
    cost = edge_cost(split, sv.TopComponents(factors, m=8), torch.rand(1, 1, 16, 32))
    assert cost.client_macs == 9 * (16 * 512 + 16 * 32 * 128 + 32 * 64 * 32)
    assert cost.encoder_macs == 8 * 512
    convolutions = sum(9 * a * b + b for a, b in ((1, 16), (16, 32), (32, 64)))
    assert cost.parameters == convolutions + 2 * (16 + 32 + 64)
    assert (cost.raw_bytes, cost.message_bytes) == (16 + 4 * 512, 16 + 4 * 8)


def test_cost_at_a_convolution_counts_filters_times_positions() -> None:
    split = sv.SplitModel(sv.Table1Net((1, 16, 32), 10), at=2)
    factors = sv.factorise(split.server_layer, feature_shape=(16, 8, 16), operator="patch")
    cost = edge_cost(split, sv.TopComponents(factors, m=3), torch.rand(1, 1, 16, 32))
    assert cost.client_macs == 9 * 16 * 512
    assert cost.encoder_macs == 3 * (9 * 16) * 128
    assert (cost.raw_bytes, cost.message_bytes) == (16 + 4 * 16 * 128, 16 + 4 * 3 * 128)


def test_an_undefended_image_costs_the_edge_nothing_but_bytes() -> None:
    split = sv.SplitModel(sv.Table1Net((1, 16, 32), 10), at=1)
    cost = edge_cost(split, sv.Identity((1, 16, 32)), torch.rand(1, 1, 16, 32))
    assert (cost.client_macs, cost.encoder_macs, cost.parameters) == (0, 0, 0)
    assert cost.raw_bytes == cost.message_bytes == 16 + 4 * 512
