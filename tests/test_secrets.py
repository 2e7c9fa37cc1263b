"""Secrets that no adversary could have learnt are refused or left out; what weakens an attack is said."""

import warnings

import numpy as np
import pytest
import torch

import splitveil as sv
from splitveil.attack import Perceptron, Training
from splitveil.data import Dataset
from splitveil.errors import AttackError
from splitveil.measure import best_attack, reference_lines, view
from splitveil.measure.secrets import warn_of_secret
from splitveil.obfuscate import Identity, PrivacyWarning

QUICK = (Perceptron("linear", hidden=(), dropout=(0.0, 0.0), training=Training(epochs=10, weight_decays=(0.1,))),)
N = 400


def people(person, groups=None, y=None):
    """Images of people whom their brightest row shows plainly; the target is independent of the person."""
    random = np.random.default_rng(0)
    x = random.integers(0, 60, (len(person), 1, 8, 8)).astype(np.uint8)
    x[np.arange(len(person)), 0, np.asarray(person) % 8] += 180
    y = random.integers(0, 2, len(person)) if y is None else y
    x[:, 0, :, :2] //= 1 + np.asarray(y)[:, None, None].astype(np.uint8)
    return Dataset.from_arrays(x, y, {"person": person}, groups=groups)


@pytest.fixture(scope="module")
def split():
    torch.manual_seed(0)
    return sv.SplitModel(sv.Table1Net((1, 8, 8), 2).eval(), at=2)


def attacked(split, data):
    """The leakage of the feature as it is, and the sentences of the warnings."""
    shape = split.client(data.test.images(slice(0, 1))).shape[1:]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leak = sv.leakage(split, Identity(tuple(shape)), data, hidden="person", attacks=QUICK)
    assert all(each.category is PrivacyWarning for each in caught)
    return leak, [str(each.message) for each in caught]


def test_a_secret_that_is_split_by_itself_is_refused_at_every_door(split):
    person = np.repeat(np.arange(40), 15)
    data = people(person, groups=person)
    veil = Identity(tuple(split.client(data.test.images(slice(0, 1))).shape[1:]))
    views = {name: view(split, veil, part)[0] for name, part in data.parts.items()}
    doors = {
        "leakage": lambda: sv.leakage(split, veil, data, hidden="person", attacks=QUICK),
        "references": lambda: reference_lines(split, data, hidden="person", attacks=QUICK),
        "best_attack": lambda: best_attack(views, data, hidden="person", attacks=QUICK),
    }
    for name, door in doors.items():
        with pytest.raises(AttackError, match="occurs in training, so no adversary could name one"):
            print(name, door())


def test_values_that_training_lacks_do_not_count_as_privacy(split):
    """The adversary knows eight people, names them, and cannot name the others, whose photos are in one part each."""
    person = np.concatenate([np.arange(N) % 8, np.repeat(np.arange(8, 48), 5)])
    data = people(person, groups=np.concatenate([np.arange(N) + 100, person[N:]]))
    known = torch.isin(data.test.hidden["person"], torch.unique(data.train.hidden["person"]))
    assert 0.3 < known.double().mean() < 0.9
    leak, said = attacked(split, data)
    assert len(leak.correct) == int(known.sum())
    assert float(leak.attack) > 0.85
    assert float(leak.advantage) == pytest.approx(float(leak.attack) - float(leak.prior))
    unknown = f"{int((~known).sum())} of the {len(known)} test samples have values of 'person' that do not occur in"
    assert said[0].startswith(unknown)
    assert said[0].endswith(f"the estimates are of the other {int(known.sum())}")


def sentences(data):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_secret(data, "person")
    assert all(each.category is PrivacyWarning for each in caught)
    return [str(each.message) for each in caught]


def test_rare_values_are_said():
    (sentence,) = sentences(people(np.concatenate([np.arange(N) % 2, np.repeat([2, 3], 8)])))
    assert sentence.startswith("2 of the 4 values of 'person', ")
    assert "fewer than 10 training samples" in sentence


def test_a_secret_that_follows_from_the_target_is_said():
    y = np.arange(N) % 3 % 2
    for person in (y, 1 - y):
        assert sentences(people(person, y=y)) == [
            "'person' follows from the target, so whoever learns the right answer knows it, whatever is sent"
        ]
    other = np.where(np.arange(N), y, 1 - y)
    assert sentences(people(other, y=y)) == []


def test_an_ordinary_secret_is_measured_without_a_word(split):
    leak, said = attacked(split, people(np.arange(N) % 8))
    assert (said, leak.correct.mean() > 0.85) == ([], True)
