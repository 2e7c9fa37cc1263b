"""Reconstruction recovers what was sent and nothing else; SSIM and PSNR have known values."""

import pytest
import torch

import splitveil as sv
from splitveil.attack import Public, View, mean_image, reconstruct, similarity


def images(n: int, channels: int = 1, side: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def attacked(sent: torch.Tensor, truth: torch.Tensor, **more) -> torch.Tensor:
    """What is recovered of the last fifth of the images; the others are for training and validation."""
    torch.manual_seed(0)
    public = Public(sv.SplitModel(sv.Table1Net((1, 16, 16), 3), at=4), None)
    n = len(sent) // 5
    parts = (slice(0, 3 * n), slice(3 * n, 4 * n), slice(4 * n, 5 * n))
    train, val, test = (View(sent[rows], torch.full((len(sent[rows]),), sent.shape[1]), public) for rows in parts)
    return reconstruct(train, truth[parts[0]], val, truth[parts[1]], test, **more)


def test_reconstruction_recovers_what_is_sent_and_only_the_mean_of_what_is_not():
    truth = images(1500, side=4)
    truth[:, :, 2:] = (truth[:, :, 2:] > 0.5).float()  # the lower half: unpredictable from the upper one
    found = attacked(truth[:, 0, :2].flatten(1), truth, epochs=10)
    error = (found - truth[1200:]).square().mean((0, 1, 3))
    assert found.shape == (300, 1, 4, 4)
    assert error[:2].max() < 0.01  # sent
    assert error[2:].min() > 0.2  # not sent: the variance of a fair coin is 0.25
    assert error[2:].max() < 0.3


@pytest.mark.parametrize("channels", [1, 3])
def test_sent_pixels_are_recovered(channels):
    truth = images(1500, channels)
    found = similarity(attacked(truth.flatten(1), truth, epochs=1), truth[1200:])
    assert found.ssim.min() > 0.99
    assert found.psnr.min() > 40


def test_a_map_that_is_not_linear_is_recovered_by_the_network():
    """The message is the square of the centred brightness: a linear decoder finds nothing but the mean."""
    brightness = torch.rand(3000, 1, generator=torch.Generator().manual_seed(1))
    sent = torch.rand(3000, 1, generator=torch.Generator().manual_seed(2)) * 2 - 1
    truth = (sent.square() * 0.9 + 0.01 * brightness)[:, :, None, None].expand(-1, 1, 8, 8).contiguous()
    found = attacked(sent, truth, epochs=15)
    assert (found - truth[2400:]).square().mean() < 0.1 * truth.var()


def test_noise_gives_the_mean_images_score():
    truth = images(1500)
    found = attacked(torch.randn(1500, 8, generator=torch.Generator().manual_seed(3)), truth, epochs=3)
    floor = similarity(mean_image(truth[:900], 300), truth[1200:])
    score = similarity(found, truth[1200:])
    assert abs(score.psnr.mean() - floor.psnr.mean()) < 0.1
    assert abs(score.ssim.mean() - floor.ssim.mean()) < 0.02


def test_the_same_seed_gives_the_same_images_and_leaves_the_global_generator_alone():
    public = Public(sv.SplitModel(sv.Table1Net((1, 16, 16), 3), at=4), None)
    sent = torch.linspace(-1, 1, 200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))][:, None]
    seen = View(sent, torch.ones(200), public)
    truth = sent.square()[:, :, None, None].expand(-1, 1, 4, 4)  # no line: the network is chosen
    found = []
    for seed in (5, 5, 6):
        torch.rand(1)  # the caller's generator moves on; it must not matter
        state = torch.get_rng_state()
        found.append(reconstruct(seen, truth, seen, truth, seen, epochs=10, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 28), (1, 4), (3, 7)])
def test_similarity_has_known_values(channels, side):
    truth = images(3, channels, side) * 0.8
    same, off = similarity(truth, truth), similarity(truth + 0.1, truth)
    torch.testing.assert_close(same.ssim, torch.ones(3, dtype=torch.float64))
    assert torch.isinf(same.psnr).all()
    torch.testing.assert_close(off.psnr, torch.full((3,), 20.0, dtype=torch.float64), atol=1e-3, rtol=0)
    assert (off.ssim < 1).all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(sv.SplitveilError, match="cannot be compared"):
        similarity(images(2), images(3))
    with pytest.raises(sv.SplitveilError, match="too small"):
        similarity(images(2, side=2), images(2, side=2))
