"""Readers: the vote and Fleiss' kappa against golden numbers, against sums over pairs of readings, and at the edges."""
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from scipy import stats

from ich_study.labels import majority, reader_agreement
from ich_study.readers import fleiss, majority_vote
from ich_study.schema import LABELS, StudyError, check_table

GOLDEN = Path(__file__).resolve().parents[2]/"shared"/"golden"/"cases.json"
number = lambda v: np.nan if v in ("NaN", None) else v


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file(): pytest.skip("golden cases not found")
    return {c["id"]: c for c in json.loads(GOLDEN.read_text())["cases"]}


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", ["D13", "D14", "D15"])
def test_golden_kappa(name, golden):
    found, expected = fleiss(golden[name]["input"]["ratings"]), golden[name]["expected"]
    got = {"kappa": found.kappa.value, "z": found.z, "per_category": list(found.categories.values()), "percent_agreement": found.agreement}
    for key, value in expected.items(): assert_allclose(got[key], [*map(number, value)] if isinstance(value, list) else number(value), atol=golden[name]["tolerance"])


def test_golden_vote(golden):
    np.testing.assert_equal(majority_vote(golden["D16"]["input"]["readings"]), [number(v) for v in golden["D16"]["expected"]["majority"]])


answers = st.integers(1, 7).flatmap(lambda m: arrays(float, st.tuples(st.integers(1, 12), st.just(m)), elements=st.sampled_from([0., 1., 1., 2., np.nan])))


@settings(max_examples=150, deadline=None)
@given(answers)
def test_kappa_is_what_pairs_of_readings_give(table):
    found = fleiss(table, resamples=50)
    said = [[v for v in row if not np.isnan(v)] for row in table]
    m = max(map(len, said))
    full = [row for row in said if len(row) == m and m]
    assert (found.readers, found.subjects, found.incomplete) == (m, len(full), len(said) - len(full))
    if m < 2: assert np.isnan([found.kappa.value, found.agreement, found.z, found.p]).all() and found.kappa.reason; return
    pairs = [pair for row in full for pair in itertools.permutations(row, 2)]
    assert_allclose(found.agreement, np.mean([a == b for a, b in pairs]))
    for c in found.specific: assert_allclose(found.specific[c], np.mean([b == c for a, b in pairs if a == c]))
    everything = [v for row in full for v in row]
    chance = sum((everything.count(c)/len(everything))**2 for c in set(everything))
    assert set(found.categories) == set(everything)
    if len(set(everything)) == 1: assert np.isnan(found.kappa.value) and found.agreement == 1 and found.kappa.reason; return
    assert_allclose(found.kappa.value, (found.agreement - chance)/(1 - chance), atol=1e-12)
    assert np.isnan(found.kappa.low) <= bool(found.kappa.reason) and (np.isnan(found.kappa.low) or -1 <= found.kappa.low <= found.kappa.high <= 1)
    assert_allclose(found.p, 2*stats.norm.sf(abs(found.z)))


@settings(max_examples=100, deadline=None)
@given(answers)
def test_the_vote_is_a_count(table):
    for row, vote in zip(table, majority_vote(table)):
        said = [v for v in row if not np.isnan(v)]
        wins = [c for c in set(said) if 2*said.count(c) > len(said)]
        assert vote == wins[0] if wins else np.isnan(vote)


@settings(max_examples=60, deadline=None)
@given(answers, st.randoms(use_true_random=False))
def test_order_of_readers_and_subjects_and_names_of_categories_play_no_part(table, random):
    rows = [random.sample(list(row), len(row)) for row in table]
    random.shuffle(rows)
    one, other = fleiss(table, resamples=30), fleiss(7 - 3*np.array(rows), resamples=30)
    assert_allclose([one.kappa.value, one.z, one.agreement], [other.kappa.value, other.z, other.agreement], atol=1e-12)
    assert fleiss(np.array(rows), resamples=30).kappa[1:3] == one.kappa[1:3] or np.isnan(one.kappa.low)


def test_the_null_variance_is_that_of_readings_dealt_at_random():
    rng = np.random.default_rng(2)
    found = [fleiss(rng.choice(3, (60, 4), p=[.6, .3, .1]), resamples=1) for _ in range(1500)]
    assert abs(np.std([f.z for f in found]) - 1) < .06 and abs(np.mean([f.p < .05 for f in found]) - .05) < .02


def test_the_interval_is_that_of_drawing_subjects_one_by_one():
    rng = np.random.default_rng(4)
    table = rng.random((80, 3)) < np.where(rng.random(80) < .3, .85, .1)[:, None]
    drawn = [fleiss(table[rng.integers(80, size=80)], resamples=1).kappa.value for _ in range(2000)]
    assert_allclose(fleiss(table, resamples=20_000).kappa[1:3], np.quantile(drawn, [.025, .975]), atol=.02)


def test_the_interval_covers():
    rng, truth = np.random.default_rng(6), .3
    p, same = truth*.9 + (1 - truth)*.05, truth*(.81 + .01) + (1 - truth)*(.95**2 + .05**2)
    kappa = 1 - (1 - same)/(2*p*(1 - p))
    found = [fleiss(rng.random((150, 3)) < np.where(rng.random(150) < truth, .9, .05)[:, None], resamples=500, seed=i).kappa for i in range(400)]
    assert .91 < np.mean([f.low <= kappa <= f.high for f in found]) < .98


def test_many_subjects_take_no_longer_than_they_are_read():
    import time
    table = np.random.default_rng(0).random((20_000, 3)) < .2
    fleiss(table[:50])  # loads what it needs
    start = time.process_time(); fleiss(table); assert time.process_time() - start < 2


def test_same_seed_same_interval_and_wider_coverage_is_wider():
    table = np.random.default_rng(1).random((40, 3)) < np.linspace(0, 1, 40)[:, None]
    a, b, c = fleiss(table, seed=3), fleiss(table, seed=3), fleiss(table, seed=3, level=.99)
    assert a == b and a.kappa.n == 40 and c.kappa.low < a.kappa.low < a.kappa.value < a.kappa.high < c.kappa.high


@pytest.mark.parametrize("table", [np.zeros((5, 3)), np.ones((5, 1)), np.full((3, 2), np.nan), np.empty((0, 3)), np.empty((4, 0)), [[1, 0, 1]],
                                   [[1, 1], [0, 0]], [[1, None], [None, 0]], pd.DataFrame({"a": [True, False], "b": [None, True]}).astype("boolean")])
def test_legal_edges_are_silent_and_every_gap_says_why(table):
    found = fleiss(table)
    if np.isnan(found.kappa.value) or np.isnan(found.kappa.low): assert found.kappa.reason
    assert found.subjects + found.incomplete == len(table) == len(majority_vote(table))


@pytest.mark.parametrize("call", [lambda: fleiss([1, 0]), lambda: fleiss([["a", "b"]]), lambda: fleiss([[np.inf, 1]]), lambda: fleiss([[1, 0], [1]]), lambda: fleiss(np.zeros((2, 2, 2))),
                                  lambda: fleiss([[1, 0]], level=1), lambda: fleiss([[1, 0]], resamples=1.5), lambda: majority_vote(3), lambda: majority_vote("yes"), lambda: majority_vote(None)])
def test_wrong_input_is_told_in_one_line(call):
    with pytest.raises(StudyError) as told: call()
    assert "\n" not in str(told.value)


# The tables of the study

def reads_of(cells):
    rows = [{"dataset": "d", "series": f"s{i}", "reader": f"R{k}"} | dict.fromkeys(LABELS, v) for i, row in enumerate(cells) for k, v in enumerate(row)]
    return check_table(pd.DataFrame(rows), "reads")


def test_the_table_of_a_study_is_made_of_these_two():
    rng = np.random.default_rng(8)
    cells = np.where(rng.random((50, 3)) < .1, None, rng.random((50, 3)) < rng.random((50, 1)))
    numbers = np.array(cells, float)
    table, found = reader_agreement(reads_of(cells)).set_index("label"), fleiss(numbers)
    for label in LABELS:
        row = table.loc[label]
        assert (row.kappa, row.low, row.high) == found.kappa[:3] and (row.series, row.readers) == (found.subjects, found.readers)
        assert row.agreement == found.agreement and row.positive_agreement == found.specific[1] and row.positives == (majority_vote(numbers) == 1).sum()
        np.testing.assert_equal(majority(reads_of(cells))[label].to_numpy(float, na_value=np.nan), majority_vote(numbers))


def test_readers_may_differ_from_series_to_series():
    reads = reads_of([[True, False], [True, True], [False, False]])
    assert_allclose(reader_agreement(reads).kappa, reader_agreement(reads.assign(reader=reads.series + reads.reader)).kappa)


def test_a_gap_in_the_table_has_a_reason_and_no_positive_has_no_positive_agreement():
    table = reader_agreement(reads_of([[False, False], [False, False]]))
    assert table.reason.notna().all() and table.positive_agreement.isna().all() and (table.agreement == 1).all() and table.low.isna().all()
