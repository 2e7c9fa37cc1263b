"""Bundles made in seconds: exported from a network that was not trained."""

from pathlib import Path
from typing import Any

import torch

import splitveil as sv
from splitveil.export import export


def made_model(seed: int = 0) -> sv.Table1Net:
    """Untrained, but with statistics of normalisation that are not the trivial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        data = sv.load_data("digit-pairs")
        model = sv.Table1Net(data.input_shape, data.n_classes)
        with torch.no_grad():
            model(data.train.images(slice(0, 256)))  # in training mode, so that the statistics move
    return model.eval()


def made_bundle(folder: Path, *, cut: int = 4, m: int = 8, seed: int = 0, **more: Any) -> Path:
    """``folder/edge`` and ``folder/server``."""
    export(made_model(seed), sv.load_data("digit-pairs"), folder, cut=cut, m=m, name="pairs", **more)
    return folder
