"""Messages of few values: how values are shared out, and answers clustered, against all possibilities."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import splitveil as sv
from splitveil.errors import ModelError, NoLinearLayerError, RankError, RecipeError, ShapeError
from splitveil.obfuscate import METHODS, Affine, Codebook, Features, Quantised, ServerAware, fit_obfuscator
from splitveil.obfuscate.clustering import clusters
from splitveil.obfuscate.quantised import _lloyd
from splitveil.obfuscate.tables import look_up
from test_aware import Net, Residual, images, made, seen

seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def split() -> sv.SplitModel:
    split = made(Net(12, 4, hidden=8), "read")
    with torch.no_grad():
        split.model.last.weight.mul_(8)  # so that answers differ
    return split


@pytest.fixture(scope="module")
def features(split) -> Features:
    return Features.known(seen(split, images(300, 12)))


def cost(answers: Tensor, member: Tensor) -> float:
    """Σ KL(answer ‖ mean of its cluster)."""
    total = 0.0
    for index in member.unique():
        rows = answers[member == index].double()
        total += float(torch.special.xlogy(rows, rows / rows.mean(0).clamp(min=1e-300)).sum())
    return total


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 4), seeds, st.booleans())
def test_two_classes_are_clustered_as_well_as_any_partition_could(number, count, seed, repeated):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(number, dtype=torch.float64, generator=generator)
    p = (p * 3).round() / 3 if repeated else p  # with 0 and 1 among them
    answers = torch.stack([1 - p, p], 1)
    every = (torch.tensor(labels) for labels in itertools.product(range(min(count, number)), repeat=number))
    best = min(cost(answers, member) for member in every)
    found = clusters(answers, count, 0)
    assert cost(answers, found) == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert found.unique().tolist() == list(range(int(found.max()) + 1))
    assert int(found.max()) < min(count, len(p.unique()))


def test_two_classes_of_many_answers_are_clustered_in_intervals():
    p = torch.rand(5000, generator=torch.Generator().manual_seed(0)) ** 3
    answers = torch.stack([1 - p, p], 1)
    found = clusters(answers, 6, 0)
    assert found[p.argsort()].diff().min() >= 0
    assert found.max() == 5
    # No threshold moved by itself does better than by a hair: bins are 512 quantiles.
    ends = p.sort().values[torch.nonzero(found[p.argsort()].diff())[:, 0]]
    for index, step in itertools.product(range(5), (-0.01, 0.01)):
        moved = ends.clone()
        moved[index] += step
        assert cost(answers, torch.searchsorted(moved, p)) > cost(answers, found) - 1e-3 * abs(cost(answers, found))


@settings(max_examples=15)
@given(st.integers(3, 6), st.integers(1, 6), seeds)
def test_more_classes_are_clustered_no_worse_than_at_random(classes, count, seed):
    generator = torch.Generator().manual_seed(seed)
    answers = (3 * torch.randn(40, classes, generator=generator)).softmax(1)
    found = clusters(answers, count, seed)
    assert torch.equal(found, clusters(answers, count, seed))
    assert found.unique().tolist() == list(range(int(found.max()) + 1))
    assert int(found.max()) < count
    means = torch.stack([answers[found == index].double().mean(0) for index in range(int(found.max()) + 1)])
    far = -answers.double() @ means.log().mT  # KL up to the answers' own entropies
    assert (far.gather(1, found[:, None])[:, 0] <= far.min(1).values + 1e-9).all()  # each is with the nearest mean
    for _ in range(10):
        assert cost(answers, found) <= cost(answers, torch.randint(count, (40,), generator=generator)) + 1e-9


def test_planted_kinds_of_answers_are_found_and_no_more():
    kinds = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    kind = torch.arange(90) % 3
    for count in (3, 8):
        found = clusters(kinds[kind], count, 0)
        assert found.max() == 2
        assert all(len(found[kind == index].unique()) == 1 for index in range(3))
    near = (kinds[kind].log() + 0.05 * torch.randn(90, 3, generator=torch.Generator().manual_seed(0))).softmax(1)
    assert len(torch.stack([kind, clusters(near, 3, 0)]).unique(dim=1).mT) == 3


@settings(max_examples=30)
@given(st.integers(1, 5), seeds)
def test_a_scalar_quantiser_is_a_fixed_point_and_its_thresholds_are_midpoints(count, seed):
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed)) ** 3
    ends, values = _lloyd(x, count)
    assert len(values) == count == len(ends) + 1
    torch.testing.assert_close(ends, (values[1:] + values[:-1]) / 2)
    digits = (x[:, None] > ends).sum(1)
    for digit in digits.unique():  # 50 rounds settle so few values
        torch.testing.assert_close(values[digit], x[digits == digit].mean(), rtol=0.05, atol=0.05)
    error = float((x - values[digits]).square().sum())
    quantiles = torch.quantile(x, (torch.arange(count) + 0.5) / count)
    assert error <= float((x[:, None] - quantiles).square().min(1).values.sum()) * (1 + 1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_a_scalar_quantiser_finds_the_best_intervals_of_separate_groups(count):
    x = torch.cat([centre + 0.1 * torch.arange(4) for centre in (0.0, 5.0, 20.0)[:count]])
    ends, values = _lloyd(x, count)
    found = float((x - values[(x[:, None] > ends).sum(1)]).square().sum())
    parts = (
        torch.tensor_split(x, cuts) for cuts in itertools.combinations(range(1, len(x)), count - 1)
    )  # all intervals
    best = min(sum(float((part - part.mean()).square().sum()) for part in one) for one in parts)
    assert found == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(("messages", "epochs"), [(2, 0), (7, 0), (24, 2), (1000, 0)])
def test_a_quantised_message_is_one_of_so_many(messages, epochs, split, features):
    inner = ServerAware.fit(split, features, m=3)
    veil = Quantised.fit(split, features, m=3, messages=messages, inner=inner, epochs=epochs)
    z = 5 * torch.randn(400, 12, generator=torch.Generator().manual_seed(0))  # much that was never seen
    digits = veil.encode(z)
    assert 1 < veil.message.distinct <= messages
    assert math.prod(veil.message.levels) == veil.message.distinct
    assert veil.message.shape == (len(veil.levels),)
    assert veil.message.fixed_length
    assert veil.message.dtype == "int64"
    assert digits.dtype == torch.int64
    assert (digits >= 0).all()
    assert (digits < torch.tensor(veil.levels)).all()
    decoded = veil.decode(digits)
    starts = [0, *itertools.accumulate(veil.levels)][:-1]
    expected = torch.stack([sum(veil.table[s + d] for s, d in zip(starts, row, strict=True)) for row in digits])
    torch.testing.assert_close(decoded, expected)
    assert decoded.isfinite().all()
    assert torch.equal(look_up(veil.table, veil.levels, digits), decoded)
    with pytest.raises(sv.SplitveilError, match="carry a feature"):
        veil.finish(digits)


def two_scales() -> tuple[sv.SplitModel, Features]:
    """A server that reads one number of three much more than the next, and the last not at all."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[6.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]))
        model[1].bias.zero_()
    z = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    return sv.SplitModel(model, "1"), Features.known(z)


def test_values_go_to_what_the_server_needs():
    split, features = two_scales()
    one, zero = torch.eye(3), torch.zeros(3)
    inner = Affine(one.flip(0), zero, one.flip(0), zero, zero, (3,), "given")  # the useless one first
    veil = Quantised.fit(split, features, m=3, messages=16, inner=inner, epochs=0)
    assert torch.equal(veil.inner.encoder, one[[1, 0]]) or torch.equal(veil.inner.encoder, one[[0]])
    assert veil.levels[-1] >= 8
    # What has no digit decodes to its mean.
    assert veil.decode(veil.encode(torch.randn(50, 3)))[:, 2].std() < 1e-5
    # Fewer coefficients than the given one has, where that is wished.
    assert Quantised.fit(split, features, m=2, messages=16, inner=inner, epochs=0).inner.m == 1


def answered(split: sv.SplitModel, veil: object, z: Tensor) -> float:
    with torch.no_grad():
        p, q = split.server(z).softmax(1), split.answer(veil, veil.encode(z)).log_softmax(1)
    return float((torch.special.xlogy(p, p) - p * q).sum(1).mean())


def test_more_messages_and_tuning_keep_more_of_the_answer():
    split = made(Net(12, 4, hidden=8), "read")
    with torch.no_grad():
        split.model.read.weight.mul_(4)
        split.model.last.weight.mul_(8)
    features = Features.known(seen(split, images(1000, 12)))
    z = seen(split, images(300, 12, seed=5))
    plain, tuned = (
        [answered(split, Codebook.fit(split, features, messages=m, epochs=epochs), z) for m in (2, 4)]
        for epochs in (0, 12)
    )
    assert plain[0] > plain[1]
    assert tuned[0] > tuned[1]
    assert tuned[0] < 0.9 * plain[0]
    assert tuned[1] < 0.9 * plain[1]
    wide = Codebook.fit(split, features, messages=4, epochs=0, width=16)
    assert torch.equal(wide.encode(z)[:3], Codebook.fit(split, features, messages=4, epochs=0, width=16).encode(z)[:3])
    assert wide.encoder.layer.weight.shape == (16, 12)
    with pytest.raises(RankError, match=r"5 units cannot carry \d directions that the scores are made of; make it"):
        Codebook.fit(split, features, messages=4, width=5)


def test_codebooks_share_what_they_begin_with():
    split = made(Net(12, 4, hidden=8), "read")
    features = Features.known(seen(split, images(1000, 12)))
    start = Codebook.directions(split, features, seed=3)
    for messages in (3, 6):
        same = {"messages": messages, "epochs": 1, "seed": 3}
        shared, own = Codebook.fit(split, features, start=start, **same), Codebook.fit(split, features, **same)
        assert torch.equal(shared.encoder.weight, own.encoder.weight)
        assert torch.equal(shared.table, own.table)
    other = Codebook.fit(split, features, start=start.keep(1), **same)
    assert not torch.equal(other.encoder.weight, own.encoder.weight)


def test_a_codebook_finds_three_kinds_of_answers_and_leaves_out_what_nothing_falls_into():
    split = made(Net(6, 3), "read")
    with torch.no_grad():
        split.model.read.weight.copy_(8 * torch.eye(3, 6))
        split.model.read.bias.zero_()
    kind = torch.arange(300) % 3
    z = torch.eye(3, 6)[kind] + 0.01 * torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    z[:, 3:] = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))  # what the server does not read
    veil = Codebook.fit(split, Features.known(z), messages=3, epochs=0)
    assert veil.message.levels == (3,)
    indices = veil.encode(z)
    assert indices.shape == (300, 1)
    assert indices.dtype == torch.int64
    assert len(torch.stack([kind, indices[:, 0]]).unique(dim=1).mT) == 3
    assert torch.equal(veil.decode(indices), veil.table[indices[:, 0]])
    # Only so many codewords as there are different answers.
    exact = Features.known(torch.eye(3, 6)[kind])
    assert Codebook.fit(split, exact, messages=50, epochs=0).message.distinct == 3


def test_feature_maps_and_work_in_place_before_a_residual_connection():
    split, x = made(Residual(), "act"), images(150, 1, 6, 6)
    features = Features.of(split, x)
    for veil in (
        Codebook.fit(split, features, messages=3, epochs=1),
        Quantised.fit(split, features, m=2, messages=4, epochs=1),
    ):
        z = seen(split, x)
        copy = z.clone()
        assert split.answer(veil, veil.encode(z)).shape == (150, 3)
        assert veil.decode(veil.encode(z)).shape == z.shape
        assert torch.equal(z, copy)
    assert all(p.grad is None and p.requires_grad for p in split.model.parameters())


@pytest.mark.parametrize("method", ["codebook", "quantised"])
def test_finite_messages_leave_the_random_state_and_come_out_the_same(method, split, features):
    wishes = {"messages": 4} | ({"m": 2} if method == "quantised" else {})
    state = torch.get_rng_state()
    first = fit_obfuscator(method, split, features, **wishes, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(first.table, fit_obfuscator(method, split, features, **wishes, seed=3).table)
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("method", "wishes", "sentence"),
    [
        ("top", {}, "the method 'top' needs m, a whole number of at least 1"),
        ("server-aware", {"m": 0}, "'server-aware' needs m, a whole number of at least 1"),
        ("server-aware", {"m": 2.5}, "'server-aware' needs m, a whole number"),
        ("distilled", {"m": 2, "messages": 4}, "'distilled' takes no messages; leave it out"),
        ("codebook", {"m": 2, "messages": 4}, "'codebook' takes no m; leave it out"),
        ("codebook", {}, "'codebook' needs messages, a whole number of at least 2"),
        ("quantised", {"m": 2, "messages": 1}, "'quantised' needs messages, a whole number of at least 2"),
        ("quantised", {"messages": 8}, "'quantised' needs m"),
        ("quantised", {"m": 2, "messages": 8, "width": 8}, "'quantised' takes no width; leave it out"),
        ("distilled", {"m": 2, "width": -1}, "width=-1 cannot be; take 0 for no hidden layer, or at most 4096"),
        ("distilled", {"m": 2, "width": True}, "width=True cannot be"),
        ("codebook", {"messages": 2, "width": 10**30}, "width=10+ cannot be"),
        (
            "distilled",
            {"m": 2, "width": 3},
            "a hidden layer of 3 units cannot carry 2 coefficients; make it at least 4, or 0",
        ),
        ("top", {"m": 9}, "m=9 is more than the 8 components of this layer; choose a smaller m"),
        ("covariance-aware", {"m": 9}, "only 8 directions"),
        ("server-aware", {"m": 9}, "only .* directions"),
        ("best", {"m": 2}, "there is no method 'best'; choose top, covariance-aware, server-aware, distilled"),
    ],
)
def test_wishes_that_do_not_go_with_a_method(method, wishes, sentence, split, features):
    with pytest.raises(RankError, match=sentence) as caught:
        fit_obfuscator(method, split, features, **wishes)
    assert "\n" not in str(caught.value)


def test_methods_that_need_a_linear_layer_or_numbers(split, features):
    residual = made(Residual(), "act")
    for method in ("top", "covariance-aware"):
        with pytest.raises(NoLinearLayerError):
            fit_obfuscator(method, residual, images(20, 1, 6, 6), m=2)
    z = features.table(100)
    z[7, 7] = torch.nan
    inner = ServerAware.fit(split, features, m=2)
    for fit in (
        lambda given: Codebook.fit(split, given, messages=3),
        lambda given: Quantised.fit(split, given, m=2, messages=4, inner=inner),
    ):
        with pytest.raises(ModelError, match="are not all finite numbers"):
            fit(Features.known(z))
    with pytest.raises(RecipeError, match="epochs=-1"):
        Codebook.fit(split, features, messages=3, epochs=-1)
    for messages in (0, 1):
        with pytest.raises(RankError, match="at least two different messages"):
            Codebook.fit(split, features, messages=messages)
        with pytest.raises(RankError, match="at least two different messages"):
            Quantised.fit(split, features, m=1, messages=messages)


def test_top_components_are_the_projection_of_that_name(split, features):
    z = next(features.batches())
    veil = fit_obfuscator("top", split, features, m=3)
    truth = sv.TopComponents(sv.factorise(split.server_layer, feature_shape=(12,)), m=3)
    torch.testing.assert_close(veil.decode(veil.encode(z)), truth.decode(truth.encode(z)), rtol=1e-4, atol=1e-5)
    assert veil.name == "top"


def test_tables_that_do_not_fit_are_refused(split, features):
    veil = Codebook.fit(split, features, messages=3, epochs=0)
    for table, encoder in ((veil.table[:2], veil.encoder), (veil.table[:, :5], veil.encoder)):
        with pytest.raises(ShapeError):
            Codebook(encoder, table, (12,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_what_was_fitted_on_a_gpu_works_on_the_processor_too(method):
    split, x = made(Net(12, 4, hidden=8), "read"), images(300, 12)
    split.model.cuda()
    wishes = {"codebook": {"messages": 4}, "quantised": {"m": 2, "messages": 4}}.get(method, {"m": 2})
    veil = fit_obfuscator(method, split, x, **wishes)
    z = seen(split, x.cuda())
    on_gpu = veil.decode(veil.encode(z))
    assert on_gpu.is_cuda
    assert split.answer(veil, veil.encode(z)).is_cuda
    torch.testing.assert_close(veil.decode(veil.encode(z.cpu())), on_gpu.cpu(), rtol=1e-3, atol=1e-3)
