"""The real data sets, where SPLITVEIL_DATA names them: sizes, balance, what must not straddle splits."""

import numpy as np
import pytest
import torch

from splitveil.data import images, load_data
from splitveil.data.duplicates import near_duplicate_groups, same_person_groups, signatures


@pytest.fixture(scope="session", params=["qmnist", "utkface", "celeba", "pins", "facescrub"])
def real(request, data_root):
    if not (data_root / request.param).is_dir():
        pytest.skip(f"{request.param} is not in {data_root}")
    return load_data(request.param, root=data_root)


def part_of_each_row(data):
    return np.repeat([0, 1, 2], [len(part) for part in data.parts.values()])


def all_of(data, get):
    return torch.cat([get(part) for part in data.parts.values()])


def straddling(groups, parts):
    pairs = np.unique(np.stack([groups, parts]), axis=1)
    return len(pairs[0]) - len(np.unique(groups))


def test_sizes_and_balance(real):
    n = sum(len(part) for part in real.parts.values())
    held_out = 1500 if real.name == "qmnist" else 0.15 * n
    for part in (real.val, real.test):
        assert abs(len(part) - held_out) <= 2
        shares = part.y.bincount(minlength=real.n_classes) / len(part)
        assert (shares - real.train.y.bincount() / len(real.train)).abs().max() < 0.03
    assert len(real.skipped) <= n / 100


def test_secrets_that_are_people_are_in_every_part(real):
    for key in {"writer", "identity"} & set(real.hidden_classes):
        for part in real.parts.values():
            assert len(part.hidden[key].unique()) == len(real.hidden_classes[key])


def test_near_duplicates_do_not_straddle(real):
    if real.name == "qmnist":
        hashes = np.array([hash(image.numpy().tobytes()) for image in all_of(real, lambda part: part.pixels)])
        assert straddling(hashes, part_of_each_row(real)) == 0
        return
    signs = signatures(all_of(real, lambda part: part.pixels))
    groups = near_duplicate_groups(signs)
    assert 0 < len(signs) - len(np.unique(groups)) < len(signs) / 10
    assert straddling(groups, part_of_each_row(real)) == 0
    if "identity" in real.hidden_classes:
        people = all_of(real, lambda part: part.hidden["identity"]).numpy()
        assert straddling(same_person_groups(signs, people, 0.91), part_of_each_row(real)) == 0


def test_a_second_load_decodes_nothing(real, data_root, monkeypatch):
    monkeypatch.setattr(images, "read_picture", lambda *_, **__: pytest.fail("decoded again"))
    assert load_data(real.name, root=data_root).digest == real.digest


def test_what_is_known_of_them(real):
    known = {
        "qmnist": lambda: len(real.hidden_classes["writer"]) == 100 and real.input_shape == (1, 28, 28),
        "utkface": lambda: [line.split("_")[0] for line in real.skipped] == ["61", "61"],
        "celeba": lambda: real.input_shape == (3, 73, 60) and len(real.hidden_classes) == 6,
        "pins": lambda: len(real.hidden_classes["identity"]) == 104,
        "facescrub": lambda: len(real.hidden_classes["identity"]) == 6,
    }
    assert known[real.name]()
