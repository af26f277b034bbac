"""Two masks: golden numbers, all pairs of surface voxels measured one by one, and the edges."""
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from ich_study.overlap import DISTANCES, dice, mask_measures
from ich_study.schema import StudyError

GOLDEN = Path(__file__).resolve().parents[2]/"shared"/"golden"/"cases.json"
NAMES = {"hd": "hd_mm", "hd95_max": "hd95_max_mm", "hd95_pooled": "hd95_pooled_mm", "assd_pooled": "assd_mm"}


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", ["D36", "D37", "D38"])
def test_golden_masks(name):
    if not GOLDEN.is_file(): pytest.skip("golden cases not found")
    case = {c["id"]: c for c in json.loads(GOLDEN.read_text())["cases"]}[name]
    i = case["input"]
    for given in (lambda m: m, np.array, lambda m: np.array(m, bool), lambda m: np.array(m, float)):
        found = mask_measures(given(i["pred"]), given(i["ref"]), i["spacing_mm"])
        for key, value in case["expected"].items():
            assert_allclose(found[NAMES.get(key, key)], np.nan if value == "NaN" else value, atol=case["tolerance"], err_msg=key)
        assert bool(found["reason"]) == any(v == "NaN" for v in case["expected"].values())


def surface(mask):
    """Voxels with a neighbour along an axis that is outside, or beyond the array, one at a time."""
    points = set(map(tuple, np.argwhere(mask)))
    steps = [s*np.eye(mask.ndim, dtype=int)[k] for k in range(mask.ndim) for s in (-1, 1)]
    return np.array([p for p in points if any(tuple(np.add(p, s)) not in points for s in steps)])


def by_hand(predicted, reference, spacing):
    p, r = (surface(m)*np.asarray(spacing) for m in (predicted, reference))
    way = np.sqrt(((p[:, None] - r[None])**2).sum(-1))
    there, back = way.min(1), way.min(0)
    both = np.r_[there, back]
    return max(there.max(), back.max()), max(np.percentile(there, 95), np.percentile(back, 95)), np.percentile(both, 95), both.mean()


def masks(ndim, seed, shape=(5, 9, 11)):
    rng = np.random.default_rng(seed)
    for p in (.02, .3, .9): yield tuple(rng.random((2, *shape[-ndim:])) < p)
    grid = np.indices(shape[-ndim:]) - np.array(shape[-ndim:]).reshape(-1, *[1]*ndim)/2
    yield (grid**2).sum(0) < 6, (np.roll(grid, 2, -1)**2).sum(0) < 9


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_of_all_pairs_of_surface_voxels(ndim, seed):
    for predicted, reference in masks(ndim, seed):
        if not predicted.any() or not reference.any(): continue
        spacing = np.random.default_rng(seed).uniform(.3, 6, ndim)
        found = mask_measures(predicted, reference, spacing)
        assert_allclose([found[d] for d in DISTANCES], by_hand(predicted, reference, spacing), rtol=1e-12)


small = st.integers(2, 3).flatmap(lambda n: st.tuples(*[st.integers(1, 5)]*n)).flatmap(lambda s: st.tuples(arrays(bool, s), arrays(bool, s), st.tuples(*[st.floats(.1, 8)]*len(s))))


@settings(max_examples=200, deadline=None)
@given(small)
def test_what_holds_for_any_two_masks(made):
    p, r, spacing = made
    found, turned = mask_measures(p, r, spacing), mask_measures(r, p, spacing)
    for name in ("dice", "volume_similarity", *DISTANCES): assert_allclose(found[name], turned[name], rtol=1e-12)
    assert np.isnan(found["dice"]) == (not p.any() and not r.any()) == np.isnan(found["volume_similarity"]) and np.isnan(found["rvd"]) == (not r.any())
    if not (p.any() and r.any()):
        assert all(np.isnan(found[d]) for d in DISTANCES) and "empty" in found["reason"]; return
    assert_allclose([found[d] for d in DISTANCES], by_hand(p, r, spacing), atol=1e-12)
    assert 0 <= found["assd_mm"] <= found["hd_mm"] + 1e-12 and found["hd95_max_mm"] <= found["hd_mm"] and (found["hd_mm"] == 0 or not np.array_equal(p, r))
    wide = [np.pad(m, 2) for m in (p, r)]
    assert_allclose([mask_measures(*wide, spacing)[d] for d in DISTANCES], [found[d] for d in DISTANCES], atol=1e-12)
    if p.ndim == 3:
        assert_allclose([found["vol_pred_ml"], found["vol_ref_ml"]], np.array([p.sum(), r.sum()])*np.prod(spacing)/1000)
        flipped = mask_measures(p[::-1, :, ::-1], r[::-1, :, ::-1], spacing)
        assert all(np.isclose(flipped[d], found[d]) for d in DISTANCES)


def test_twice_the_spacing_is_twice_the_distance_and_eight_times_the_volume():
    p, r = list(masks(3, 1))[3]
    one, two = mask_measures(p, r, (5, .5, .4)), mask_measures(p, r, (10, 1, .8))
    assert_allclose([two[d] for d in DISTANCES], [2*one[d] for d in DISTANCES])
    assert_allclose(two["vol_ref_ml"], 8*one["vol_ref_ml"]) and two["dice"] == one["dice"]


def test_a_mask_that_fills_the_array_has_its_surface_at_the_border():
    full, core = np.ones((4, 6, 6), bool), np.zeros((4, 6, 6), bool)
    core[1:3, 2:4, 2:4] = True
    assert mask_measures(full, core, (5, 1, 1))["hd_mm"] == pytest.approx(np.sqrt(5**2 + 2**2 + 2**2))


def test_one_image_has_no_volume_unless_its_thickness_is_given():
    image = np.zeros((6, 6), bool); image[2:5, 2:5] = True
    flat, thick = mask_measures(image, np.roll(image, 1, 0), (.5, .5)), mask_measures(image[None], np.roll(image, 1, 0)[None], (5, .5, .5))
    assert np.isnan(flat["vol_ref_ml"]) and "thickness" in flat["reason"] and flat["hd_mm"] == .5 and flat["dice"] == thick["dice"]
    assert thick["vol_ref_ml"] == pytest.approx(9*.5*.5*5/1000) and thick["reason"] == ""


def test_the_masks_are_not_written_to():
    p, r = (m.copy() for m in list(masks(3, 2))[3])
    before = p.copy(), r.copy()
    mask_measures(p, r, (1, 1, 1)); assert np.array_equal(p, before[0]) and np.array_equal(r, before[1])
    assert mask_measures(p[:, ::-1].T, r[:, ::-1].T, (1, 1, 1))["hd_mm"] == mask_measures(p, r, (1, 1, 1))["hd_mm"]


def test_a_bleed_in_a_full_head_takes_less_than_a_second():
    z, y, x = np.ogrid[:40, :512, :512]
    ball = lambda z0, x0: ((z - z0)*5)**2 + ((y - 250)*.45)**2 + ((x - x0)*.45)**2 < 21**2
    one, other = ball(20, 250), ball(21, 260)
    start = time.process_time(); mask_measures(one, other, (5, .45, .45)); assert time.process_time() - start < 1


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 1, 1), (1, 0, 1), (1, -1, 1), (1, np.nan, 1), (1, np.inf, 1), 1, None, ("a", "b", "c"), "mm"])
def test_spacings_that_are_none_are_refused(spacing):
    mask = np.ones((2, 3, 3), bool)
    with pytest.raises(StudyError) as told: mask_measures(mask, mask, spacing)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("wrong", [np.full((2, 3, 3), 2), np.full((2, 3, 3), .5), np.full((2, 3, 3), np.nan), np.full((2, 3, 3), -1), np.full((2, 3, 3), "1"), np.ones((2, 3)), np.ones(3), np.float64(1),
                                   np.ones((2, 3, 3), complex), np.full((2, 3, 3), None), [[1], [1, 0]], None])
def test_masks_that_are_none_are_refused_by_both(wrong):
    good = np.ones((2, 3, 3), bool)
    for call in (lambda: mask_measures(wrong, good, (1, 1, 1)), lambda: mask_measures(good, wrong, (1, 1, 1)), lambda: dice(wrong, good)):
        with pytest.raises(StudyError) as told: call()
        assert "\n" not in str(told.value)
    with pytest.raises(StudyError): mask_measures(np.ones((1, 2, 3, 3)), np.ones((1, 2, 3, 3)), (1, 1, 1, 1))
