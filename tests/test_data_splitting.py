"""Assignment to parts, groups, near duplicates."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splitveil.data import Dataset, duplicates, splitting
from splitveil.data.duplicates import near_duplicate_groups, same_person_groups, signatures

FRACTIONS = (0.70, 0.15, 0.15)


def hashes(n, seed=0):
    random = np.random.default_rng(seed)
    return splitting.content_hashes(torch.from_numpy(random.integers(0, 256, (n, 1, 4, 4), dtype=np.uint8)))


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=12), share=st.floats(0, 1))
def test_apportion_is_exact_and_within_one_of_proportion(counts, share):
    counts = np.array(counts)
    total = round(share * counts.sum())
    shares = splitting.apportion(total, counts, counts)
    assert shares.sum() == total
    assert (np.abs(shares - total * counts / max(counts.sum(), 1)) < 1).all()


def test_apportion_respects_capacity():
    assert splitting.apportion(10, np.array([1, 1, 8]), np.array([0, 0, 6])).tolist() == [0, 0, 6]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31 - 1), n_strata=st.integers(1, 8))
def test_single_images_fill_the_parts_exactly(seed, n_strata):
    strata = np.random.default_rng(seed).integers(0, n_strata, 300)
    part = splitting.assign(hashes(300, seed), np.arange(300), strata, FRACTIONS)
    assert np.bincount(part).tolist() == [210, 45, 45]
    for stratum in range(n_strata):
        members = part[strata == stratum]
        assert np.abs(np.bincount(members, minlength=3)[1:] - 0.15 * len(members)).max(initial=0) < 1


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31 - 1))
def test_groups_stay_whole_and_parts_keep_within_their_size(seed):
    random = np.random.default_rng(seed)
    groups, strata = splitting.group_ids(random.integers(0, 60, 300)), random.integers(0, 2, 300)
    part = splitting.assign(hashes(300, seed), groups, strata, FRACTIONS)
    assert all(len(set(part[groups == group])) == 1 for group in np.unique(groups))
    sizes = np.bincount(part, minlength=3)
    assert 30 <= sizes[1] <= 45
    assert 30 <= sizes[2] <= 45


def test_one_more_image_moves_few_others():
    content, strata = hashes(301), np.zeros(301, np.int64)
    with_it = splitting.assign(content, np.arange(301), strata, FRACTIONS)[:300]
    without = splitting.assign(content[:300], np.arange(300), strata[:300], FRACTIONS)
    assert (with_it != without).sum() <= 3


def test_a_rare_class_is_trained_on_before_it_is_tested():
    strata = np.concatenate([np.arange(30), np.repeat([30, 31, 32], [2, 3, 65])])
    for seed in range(20):
        part = splitting.assign(hashes(100, seed), np.arange(100), strata, FRACTIONS)
        assert set(strata[part == 0].tolist()) == set(range(33))


def test_a_group_counts_for_the_stratum_of_most_of_its_members():
    groups, strata = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 0, 1, 1])
    assert splitting._main_stratum(groups, strata).tolist() == [1, 0, 1]


def test_merged_groups_are_the_finest_that_contain_both():
    one, other = np.array([0, 0, 1, 2, 3, 4]), np.array([5, 6, 6, 7, 7, 8])
    merged = splitting.merge_groups(one, other)
    assert splitting.group_ids(merged).tolist() == [0, 0, 0, 1, 1, 2]


def picture(seed, size=50):
    """A smooth picture that no other seed's resembles."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def resaved(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def pixels_of(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2).copy())


@pytest.fixture
def photographs():
    """40 pictures, then copies of the first three: another quality, another size, slightly recropped and darker."""
    originals = [picture(seed) for seed in range(40)]
    small = originals[1].resize((30, 30)).resize((50, 50))
    darker = originals[2].resize((50, 50), box=(1, 1, 49, 50)).point(lambda value: int(value * 0.7))
    return pixels_of([*originals, resaved(originals[0], 30), small, darker])


def test_copies_are_found_and_nothing_else(photographs):
    groups = splitting.group_ids(near_duplicate_groups(signatures(photographs)))
    assert groups.tolist() == [*range(40), 0, 1, 2]


def test_the_blocks_do_not_show_in_the_result(photographs, monkeypatch):
    whole = near_duplicate_groups(signatures(photographs))
    monkeypatch.setattr(duplicates, "_ROWS", 7)
    monkeypatch.setattr(duplicates, "_COLUMNS", 11)
    blocks = near_duplicate_groups(signatures(photographs))
    assert splitting.group_ids(blocks).tolist() == splitting.group_ids(whole).tolist()


def test_chains_of_copies_are_one_group():
    steps = torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.8432, 0.5376]])  # neighbours 0.96, ends 0.84
    assert len(set(near_duplicate_groups(steps, 0.94).tolist())) == 1
    assert len(set(near_duplicate_groups(steps[[0, 2]], 0.94).tolist())) == 2


def test_among_one_person_only_that_persons_images_are_compared():
    signs = torch.tensor([[1.0, 0.0], [0.92, 0.3919], [1.0, 0.0]])
    groups = same_person_groups(signs, np.array([0, 0, 1])).tolist()
    assert groups[0] == groups[1] != groups[2]


def test_images_of_one_colour_are_alike_and_hide_no_other_copies(photographs):
    flat = torch.full((2, 3, 50, 50), 7, dtype=torch.uint8)
    flat[1] = 90
    groups = splitting.group_ids(near_duplicate_groups(signatures(torch.cat([photographs, flat]))))
    assert groups.tolist() == [*range(40), 0, 1, 2, 40, 40]


def test_near_duplicates_never_straddle(photographs):
    copies = pixels_of([resaved(picture(seed), 40) for seed in range(40)])
    pixels = torch.cat([photographs[:40], copies])
    who = torch.arange(80) % 40
    apart = Dataset.from_arrays(pixels, torch.arange(80) % 2, {"who": who})
    together = Dataset.from_arrays(pixels, torch.arange(80) % 2, {"who": who}, near_duplicates=0.94)
    assert straddling(apart) > 0
    assert straddling(together) == 0


def straddling(data):
    seen = [set(part.hidden["who"].tolist()) for part in data.parts.values()]
    return len(seen[0] & seen[1]) + len(seen[0] & seen[2]) + len(seen[1] & seen[2])
