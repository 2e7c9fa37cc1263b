"""digit-pairs: made from scikit-learn's digits, always the same; and the door, load_data."""

import numpy as np
import pytest
import torch

from splitveil.data import NAMES, load_data
from splitveil.errors import DataError


@pytest.fixture(scope="module")
def pairs():
    return load_data("digit-pairs")


def test_sizes_and_shape(pairs):
    assert [len(part) for part in pairs.parts.values()] == [8000, 1000, 1000]
    assert pairs.input_shape == (1, 16, 32)
    assert (pairs.n_classes, pairs.hidden_classes) == (10, {"digit": tuple("0123456789")})


def test_it_is_always_the_same(pairs):
    assert load_data("digit-pairs").digest == pairs.digest
    assert pairs.digest == "0c4358a6a78b4cec3b884d7ed6c68ff34a1b6890aaa6609be8ee4a37d927e3e0"


def test_both_digits_are_uniform_and_independent(pairs):
    left, right = pairs.train.y, pairs.train.hidden["digit"]
    table = torch.bincount(10 * left + right, minlength=100).double()
    chi_squared = ((table - 80) ** 2 / 80).sum()
    assert 55 < chi_squared < 160  # 99 degrees of freedom: outside in one of 5,000 draws


def halves(part):
    left, right = part.pixels[..., :16], part.pixels[..., 16:]
    return {image.numpy().tobytes() for image in torch.cat([left, right])}


def test_no_source_digit_is_in_two_parts(pairs):
    train, val, test = (halves(part) for part in pairs.parts.values())
    assert len(train | val | test) > 1700
    assert not train & val
    assert not train & test
    assert not val & test


def test_each_half_shows_the_digit_it_is_labelled_with(pairs):
    from sklearn.datasets import load_digits

    digits = load_digits()
    shown = {tuple(image.flatten().round().astype(int)): label for image, label in zip(*coarse(digits), strict=True)}
    for labels, columns in ((pairs.test.y, slice(0, 16)), (pairs.test.hidden["digit"], slice(16, 32))):
        halved = pairs.test.pixels[:, 0, :, columns].double().reshape(-1, 8, 2, 8, 2).mean((2, 4))
        nearest = nearest_label(halved.flatten(1), shown)
        assert torch.equal(nearest, labels)


def coarse(digits):
    """What halving a doubled digit gives: each axis blurred by 1/8, 3/4, 1/8."""
    padded = np.pad(digits.images * (255 / 16), ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + 6 * padded[:, 1:-1] + padded[:, 2:]) / 8
    return (rows[..., :-2] + 6 * rows[..., 1:-1] + rows[..., 2:]) / 8, digits.target


def nearest_label(images, shown):
    keys = torch.tensor(list(shown), dtype=torch.float64)
    labels = torch.tensor(list(shown.values()))
    return labels[torch.cdist(images, keys).argmin(1)]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match=r"'mnist'; choose digit-pairs, qmnist, utkface, .* or folder:PATH"):
        load_data("mnist")
    assert NAMES == ("digit-pairs", "qmnist", "utkface", "celeba", "pins", "facescrub")


def test_unknown_options_are_refused():
    with pytest.raises(DataError, match="digit-pairs has no option 'size'; it takes none"):
        load_data("digit-pairs", size=3)
    with pytest.raises(DataError, match="qmnist has no option 'writer'; its options are writers"):
        load_data("qmnist", writer=3)
