"""Directions from the features' spread and the server's answers, against closed forms written out densely."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS
from torch import Tensor, nn

import splitveil as sv
from splitveil.data import Part
from splitveil.errors import ModelError, RankError, ShapeError
from splitveil.obfuscate import CovarianceAware, Features, ServerAware, moments
from splitveil.obfuscate.directions import nested_directions
from splitveil.obfuscate.moments import Moment

seeds = st.integers(0, 2**31 - 1)


class Net(nn.Module):
    """A bend on each side of the layer `read`; the server is linear where ``hidden`` is 0."""

    def __init__(self, n: int, classes: int, hidden: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(n, n)
        self.read = nn.Linear(n, hidden or classes)
        self.last = nn.Linear(hidden, classes) if hidden else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.read(torch.relu(self.first(x.flatten(1))))
        return self.last(y.tanh() if isinstance(self.last, nn.Linear) else y)


class Residual(nn.Module):
    """Feature maps whose next layers are a ReLU in place and a residual connection: no linear layer reads them."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.stem(x))
        return self.head((z + self.norm(self.conv(z)).tanh()).mean((2, 3)))


def made(model: nn.Module, at: str, seed: int = 0) -> sv.SplitModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5)
    return sv.SplitModel(model, at)


def images(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def seen(split: sv.SplitModel, x: Tensor) -> Tensor:
    return split.client(x).detach()


def positive(n: int, rank: int, seed: int) -> Tensor:
    x = torch.randn(n, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x @ x.mT / rank


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def fitted(covariance: Tensor, metric: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    return nested_directions(lambda v: covariance @ v, lambda v: metric @ v, len(covariance), m)


def loss(covariance: Tensor, metric: Tensor, linear: Tensor) -> float:
    """E (z − z')ᵀ G (z − z') of z' = linear z."""
    rest = torch.eye(len(covariance), dtype=torch.float64) - linear
    return float((metric @ rest @ covariance @ rest.mT).trace())


@settings(max_examples=40)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 14), seeds)
def test_directions_are_those_of_the_dense_root_and_lose_what_the_energies_say(n, rank, m, seed):
    m, rank = min(m, n), min(rank, n)
    sigma, g = positive(n, n + 2, seed) + 0.1 * torch.eye(n), positive(n, rank, seed + 1)
    encoder, decoder, energy = fitted(sigma, g, m)
    kept = min(m, rank)
    assert encoder.shape == decoder.shape == (kept, n)  # what does not matter is not there
    truth = torch.linalg.eigvalsh(root(sigma) @ g @ root(sigma)).flip(0)
    scale = float(truth[0])
    torch.testing.assert_close(energy, truth[:kept], rtol=1e-5, atol=1e-6 * scale)
    one = torch.eye(kept, dtype=torch.float64)
    torch.testing.assert_close(encoder @ decoder.mT, one, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder @ sigma @ encoder.mT, one, rtol=0, atol=1e-4)
    for k in range(1, kept + 1):  # every prefix is the best of its rank
        left = float(truth[k:].clamp(min=0).sum())
        assert loss(sigma, g, decoder[:k].mT @ encoder[:k]) == pytest.approx(left, rel=1e-4, abs=1e-5 * scale)


@pytest.mark.parametrize(("n", "rank", "m"), [(300, 300, 16), (200, 9, 9), (120, 120, 120)])
def test_directions_of_many_dimensions(n, rank, m):
    sigma, g = positive(n, 2 * n, 0), positive(n, rank, 1)
    encoder, decoder, energy = fitted(sigma, g, m)
    truth = torch.linalg.eigvalsh(root(sigma) @ g @ root(sigma)).flip(0)
    torch.testing.assert_close(energy, truth[:m], rtol=1e-3, atol=1e-6 * float(truth[0]))
    assert loss(sigma, g, decoder.mT @ encoder) == pytest.approx(float(truth[m:].sum()), rel=1e-4, abs=1e-5)


def test_with_an_identity_they_are_principal_components_or_singular_vectors():
    n, one = 10, torch.eye(10, dtype=torch.float64)
    x = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, s, vh = torch.linalg.svd(x, full_matrices=False)
    for sigma, g in ((one, x.mT @ x), (x.mT @ x, one)):
        encoder, decoder, energy = fitted(sigma, g, 3)
        torch.testing.assert_close(energy, s[:3] ** 2, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(decoder.mT @ encoder, vh[:3].mT @ vh[:3], rtol=0, atol=1e-4)


def test_equal_energies_may_turn_among_each_other_but_span_the_right_space():
    sigma = torch.diag(torch.tensor([4.0] * 3 + [1.0] * 5, dtype=torch.float64))
    encoder, decoder, energy = fitted(sigma, torch.eye(8, dtype=torch.float64), 3)
    torch.testing.assert_close(energy, torch.full((3,), 4.0, dtype=torch.float64))
    expected = torch.diag(torch.tensor([1.0] * 3 + [0.0] * 5, dtype=torch.float64))
    torch.testing.assert_close(decoder.mT @ encoder, expected, rtol=0, atol=1e-5)


def moved(split: sv.SplitModel, veil: object, covariance: Tensor) -> float:
    """E‖W(z − z')‖² of an affine map about the mean, for features of that covariance."""
    w = split.server_layer.weight.detach().double()
    return loss(covariance, w.mT @ w, veil.decoder.double().mT @ veil.encoder.double())


def shrunk_covariance(z: Tensor) -> Tensor:
    """Shrunk as equation 23 of Chen, Wiesel, Eldar and Hero says, in a form of its own."""
    count, n = z.shape
    s = torch.cov(z.double().T, correction=0)
    mean, square = s.trace() / n, (s @ s).trace() / n
    share = ((1 - 2 / n) * square + n * mean**2) / ((count + 1 - 2 / n) * (square - mean**2))
    return (1 - share.clamp(max=1)) * s + share.clamp(max=1) * mean * torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("m", [1, 3])
def test_covariance_aware_is_the_optimum_of_reduced_rank_regression(m):
    split, x = made(Net(12, 5), "read"), images(400, 12)
    z = seen(split, x)
    sigma = shrunk_covariance(z)
    veil = CovarianceAware.fit(split, Features.of(split, x), m=m)
    w = split.server_layer.weight.detach().double()
    best = torch.linalg.eigvalsh(w @ sigma @ w.mT).flip(0)  # what the best rank-m fit of Wz to z leaves (Izenman 1975)
    found = moved(split, veil, sigma)
    assert found == pytest.approx(float(best[m:].sum()), rel=1e-4)
    # Other maps of the rank: singular vectors, principal components, and random encoders with their best decoders.
    vh = torch.linalg.svd(w).Vh[:m]
    pca = torch.linalg.eigh(sigma).eigenvectors[:, -m:].mT
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(m, 12, dtype=torch.float64, generator=generator) for _ in range(20)]
    for encoder in (vh, pca, *drawn):
        decoder = torch.linalg.solve(encoder @ sigma @ encoder.mT, encoder @ sigma)
        assert found <= loss(sigma, w.mT @ w, decoder.mT @ encoder) * (1 + 1e-6)
    assert found < 0.9 * loss(sigma, w.mT @ w, vh.mT @ vh)  # and the paper's choice is clearly worse here


def explicit_metric(split: sv.SplitModel, z: Tensor, metric: str) -> Tensor:
    """E[Jᵀ F J], sample by sample."""
    jacobian = torch.func.jacrev(lambda one: split.server(one[None])[0])
    jacobians = torch.func.vmap(jacobian)(z).flatten(2).detach().double()
    p = split.server(z).detach().double().softmax(1)
    k = p.shape[1]
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    form = fisher if metric == "fisher" else (torch.eye(k).double() - 1 / k).expand_as(fisher)
    return (jacobians.mT @ form @ jacobians).mean(0)


@pytest.mark.parametrize("metric", ["logits", "fisher"])
def test_server_aware_weighs_by_the_jacobians_of_every_sample(metric):
    split, x = made(Net(8, 4, hidden=6), "read"), images(300, 8)
    z = seen(split, x)
    g = explicit_metric(split, z, metric)
    veil = ServerAware.fit(split, Features.of(split, x), m=3, metric=metric)
    sigma = shrunk_covariance(z)
    truth = torch.linalg.eigvalsh(root(sigma) @ g @ root(sigma)).flip(0)
    torch.testing.assert_close(veil.energy.double(), truth[:3], rtol=1e-4, atol=1e-6 * float(truth[0]))
    left = loss(sigma, g, veil.decoder.double().mT @ veil.encoder.double())
    assert left == pytest.approx(float(truth[3:].clamp(min=0).sum()), rel=1e-3, abs=1e-5 * float(truth[0]))


@pytest.mark.parametrize("metric", ["logits", "fisher"])
def test_many_classes_are_drawn_without_bias(metric):
    split = made(Net(4, 40, hidden=8), "read")
    z = seen(split, images(6000, 4))
    veil = ServerAware.fit(split, Features.known(z), m=2, metric=metric)
    g, sigma = explicit_metric(split, z[:1500], metric), shrunk_covariance(z)
    truth = torch.linalg.eigvalsh(root(sigma) @ g @ root(sigma)).flip(0)
    torch.testing.assert_close(veil.energy.double(), truth[:2], rtol=0.05, atol=0)


def test_of_isotropic_features_it_finds_the_active_subspace():
    split = made(Net(6, 3, hidden=4), "read")
    q = torch.linalg.qr(images(600, 6) - 0.5).Q * 600**0.5
    z = q - q.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T, correction=0))).mT
    veil = ServerAware.fit(split, Features.known(z), m=2)
    active = torch.linalg.eigh(explicit_metric(split, z, "logits")).eigenvectors[:, -2:]
    projector = veil.decoder.double().mT @ veil.encoder.double()
    torch.testing.assert_close(projector, active @ active.mT, rtol=0, atol=1e-3)
    # Of features that are not, where it is told to take them so.
    bent = z * torch.linspace(0.2, 3, 6)
    veil, aware = (ServerAware.fit(split, Features.known(bent), m=2, isotropic=each) for each in (True, False))
    active = torch.linalg.eigh(explicit_metric(split, bent, "logits")).eigenvectors[:, -2:]
    for one, same in ((veil, True), (aware, False)):
        projector = one.decoder.double().mT @ one.encoder.double()
        assert torch.allclose(projector, active @ active.mT, rtol=0, atol=1e-3) == same


def test_a_moment_is_the_same_as_a_matrix_and_as_a_table(monkeypatch):
    z, v = images(300, 9), images(9, 4).double()
    matrix = Moment.of(torch.split(z, 64), 9, 300).shrunk()
    monkeypatch.setattr(moments, "LARGEST_MATRIX", 8)
    table = Moment.of(torch.split(z, 64), 9, 300).shrunk()
    assert matrix.rows is None
    assert table.matrix is None
    torch.testing.assert_close(table.product(v), matrix.product(v), rtol=1e-5, atol=1e-6)
    assert table.ridge == pytest.approx(matrix.ridge, rel=1e-5)
    # Of more rows than it keeps, it keeps some of every batch, and is as sure as those that it kept.
    monkeypatch.setattr(moments, "MOST_ROWS", 30)
    thinned = Moment.of(torch.split(z, 64), 9, 300)
    assert len(thinned.rows) == thinned.samples == 30
    torch.testing.assert_close(thinned.rows[[0, -1]] * 30**0.5, z[[0, -1]])
    assert thinned.shrunk().ridge > 3 * table.ridge


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_table_knows_of_an_unread_direction_is_nothing(monkeypatch, threads):
    monkeypatch.setattr(moments, "LARGEST_MATRIX", 8)
    split, x = made(Net(20, 3), "read"), images(300, 20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)  # on which the order of sums depends, and so what is rounded
        assert ServerAware.fit(split, Features.of(split, x), m=6, fewer=True).m == 2
    finally:
        torch.set_num_threads(before)


def test_shrinkage_is_that_of_the_article_and_fades_with_samples():
    # scikit-learn leaves out the terms 2/n of the article's equation 23: the same for large n only.
    z = images(60, 40) * torch.linspace(0.1, 3, 40)
    z = z - z.mean(0)
    moment = Moment.of([z], 40, 60)
    found, ours = OAS(assume_centered=True).fit(z.double().numpy()), moment.shrunk()
    assert 1 - ours.weight == pytest.approx(found.shrinkage_, rel=0.05)
    expected = shrunk_covariance(z)
    torch.testing.assert_close(ours.product(torch.eye(40, dtype=torch.float64)), expected, rtol=1e-6, atol=1e-9)
    shares = [1 - Moment.of([z[:count] - z[:count].mean(0)], 40, count).shrunk().weight for count in (10, 30, 60)]
    assert shares[0] > shares[1] > shares[2] > 0
    assert Moment.of([z[:2] * 0], 40, 2).shrunk().ridge == 0


def test_features_come_in_batches_from_a_part_whose_labels_are_not_read():
    split = made(Residual(), "act")
    pixels = (images(600, 1, 6, 6) * 255).to(torch.uint8)
    part = Part(pixels, y=None, hidden=None)  # type: ignore[arg-type]
    sizes = []
    client = split.client
    features = Features.of(split, part)
    assert features.shape == (3, 6, 6)
    assert features.size == 108
    assert features.count == 600
    assert features.client_macs == 36 * 3 * 9
    for _ in range(2):
        sizes.append([len(z) for z in features.batches()])
    assert sizes == [[256, 256, 88]] * 2
    assert not any(z.requires_grad for z in features.batches())
    expected = client(part.x).detach().flatten(1)
    torch.testing.assert_close(features.table(10**9), expected)
    few = features.table(7)
    torch.testing.assert_close(few, expected[[round(599 * k / 6) for k in range(7)]])
    same = Features.of(split, part.x).table(10**9)
    assert torch.equal(same, features.table(10**9))


def test_features_of_too_few_or_of_unscaled_images_are_refused():
    split = made(Residual(), "act")
    with pytest.raises(ShapeError, match="at least two images, but there are 1; give more"):
        Features.of(split, images(1, 1, 6, 6))
    with pytest.raises(ShapeError, match="at least two images"):
        Features.known(torch.zeros(1, 3))
    with pytest.raises(ShapeError, match=r"floats in \[0, 1\], not torch.uint8; divide pixels by 255"):
        Features.of(split, torch.zeros(9, 1, 6, 6, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="all are whole numbers; divide pixels by 255"):
        Features.of(split, (255 * images(9, 1, 6, 6)).round())
    scaled = 3 * images(9, 1, 6, 6) - 1  # a model of one's own may want another range than [0, 1]
    assert Features.of(split, scaled).count == 9
    with pytest.raises(ShapeError, match=r"must be a tensor, not ndarray; see torch.as_tensor"):
        Features.of(split, images(9, 1, 6, 6).numpy())
    with pytest.raises(ShapeError, match=r"cannot take images of shape \(3, 6, 6\)"):
        Features.of(split, images(9, 3, 6, 6))


def test_a_cut_without_a_linear_layer_and_with_work_in_place_leaves_everything_as_it_was():
    split, x = made(Residual(), "act"), images(300, 1, 6, 6)
    split.model.train()
    before = {name: value.clone() for name, value in split.model.state_dict().items()}
    z = torch.randn(300, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    given, copy, state = x.clone(), z.clone(), torch.get_rng_state()
    with pytest.raises(sv.SplitveilError, match="no null space"):
        CovarianceAware.fit(split, Features.of(split, x), m=2)
    for features in (Features.of(split, x), Features.known(z)):
        veil = ServerAware.fit(split, features, m=2)
        assert veil.decode(veil.encode(z)).shape == z.shape
    assert split.model.training
    assert torch.equal(x, given)
    assert torch.equal(z, copy)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in split.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in split.model.parameters())


def test_a_linear_server_of_two_classes_has_one_direction():
    split, x = made(Net(16, 2), "read"), images(500, 16)
    features = Features.of(split, x)
    for metric in ("logits", "fisher"):
        with pytest.raises(RankError, match="only 1 direction of the feature matters to the server; choose m of at"):
            ServerAware.fit(split, features, m=2, metric=metric)
        veil = ServerAware.fit(split, features, m=9, metric=metric, fewer=True)
        assert veil.m == 1
        logits, kept = split.server(seen(split, x)), split.server(veil.decode(veil.encode(seen(split, x))))
        # Features lie where the covariance says, so the one coefficient is the difference of the logits.
        torch.testing.assert_close(kept.diff(dim=1), logits.diff(dim=1), rtol=1e-3, atol=1e-4)
    with pytest.raises(RankError, match="only 2 directions"):
        CovarianceAware.fit(split, features, m=3)


def test_features_that_never_vary_or_are_no_numbers():
    split = made(Net(6, 3), "read")
    z = images(100, 6)
    z[:, 2] = 5.0  # one that never varies is nothing special
    veil = ServerAware.fit(split, Features.known(z), m=2)
    torch.testing.assert_close(veil.decode(veil.encode(z))[:, 2], z[:, 2], rtol=0, atol=0.2)
    with pytest.raises(RankError, match="no direction of the feature matters: the features are all equal"):
        ServerAware.fit(split, Features.known(torch.ones(9, 6)), m=1, fewer=True)
    for wrong in (math.nan, math.inf):
        z[3, 1] = wrong
        with pytest.raises(ModelError, match="are not all finite numbers; look at the model's weights"):
            ServerAware.fit(split, Features.known(z), m=2)


def test_a_server_that_gives_no_row_of_logits():
    split = made(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), "2")
    with pytest.raises(ModelError, match="two or more classes"):
        ServerAware.fit(split, Features.of(split, images(9, 4)), m=1)


def test_prefixes_of_an_affine_obfuscator():
    split, x = made(Net(8, 5), "read"), images(200, 8)
    veil = ServerAware.fit(split, Features.of(split, x), m=4)
    z = seen(split, x)
    few = veil.keep(2)
    assert type(few) is ServerAware
    assert few.message.shape == (2,)
    torch.testing.assert_close(few.encode(z), veil.encode(z)[:, :2])
    torch.testing.assert_close(few.energy, veil.energy[:2])
    again = ServerAware.fit(split, Features.of(split, x), m=2)
    torch.testing.assert_close(few.decode(few.encode(z)), again.decode(again.encode(z)), rtol=1e-3, atol=1e-4)
    for m in (0, 5):
        with pytest.raises(RankError, match=f"m={m} is outside 1 to 4"):
            veil.keep(m)
    with pytest.raises(sv.SplitveilError, match="carry a feature"):
        veil.finish(veil.encode(z))
