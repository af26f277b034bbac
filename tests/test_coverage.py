"""Intervals hold the truth as often as they say, in fewer studies than the notebook has; the benchmark of intervals runs."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ich_study.counts import clopper_pearson
from ich_study.coverage import coverage_of, coverage_table, held, scenarios, simulate
from ich_study.estimates import Estimate
from ich_study.schema import STATISTICS, StudyError

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("coverage")


@pytest.fixture(scope="module")
def table(): return coverage_table(studies=200, seed=5)


def test_promised_intervals_hold_and_naive_ones_do_not(table):
    for row in table[table.promised != "nothing"].itertuples():
        hits = round(row.value*row.n)
        assert stats.binom.cdf(hits, row.n, .935) > 1e-3, row
        if row.promised == "95 %": assert stats.binom.sf(hits - 1, row.n, .965) > 1e-3, row
    naive = table[table.interval.str.contains("by image")]
    assert len(naive) == 3 and (naive.value < .8).all()


def test_the_table_is_one_of_statistics(table):
    assert list(table)[:4] == ["promised", "scenario", "interval", "nominal"] and set(STATISTICS.columns) <= set(table)
    assert set(table.promised) == {"95 %", "at least 95 %", "nothing"} and (table.metric == "coverage").all() and table.low.le(table.value).all() and table.value.le(table.high).all()
    assert set(table.scenario) == {s.name for s in scenarios()} and len({s.name for s in scenarios()}) == len(scenarios())


def test_the_same_seed_gives_the_same_studies():
    draw = scenarios()[0].draw
    a, b, c = (simulate(draw, 5, seed)["AUC, DeLong"] for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).all()


@pytest.mark.parametrize("n,p", [(12, .8), (60, .9), (250, .97)])
def test_simulated_coverage_is_the_one_that_the_binomial_distribution_adds_up(n, p):
    truth = stats.binom.pmf(np.arange(n + 1), n, p)[held([clopper_pearson(k, n)[1:3] for k in range(n + 1)], p) == 0].sum()
    found = coverage_of(lambda rng: {"x": clopper_pearson(rng.binomial(n, p), n)}, {"x": p}, 3000, 7)["x"]
    assert truth >= .95 and abs(found.value - truth) < 4*np.sqrt(truth*(1 - truth)/3000)


def test_studies_without_an_interval_are_left_out_and_counted():
    def every_other(rng, state=iter(range(1000))): return {"x": Estimate(.5, 0., 1., 3, "made up") if next(state) % 2 else Estimate(np.nan, np.nan, np.nan, 0, "", "none")}
    found = coverage_of(every_other, {"x": .5}, 40)["x"]
    assert found.n == 20 and found.value == 1 and "20 studies have none" in found.reason
    none = coverage_of(lambda rng: {"x": Estimate(np.nan, np.nan, np.nan, 0, "", "none")}, {"x": .5}, 4)["x"]
    assert none.n == 0 and np.isnan(none.value) and none.reason


@pytest.mark.parametrize("call,word", [(lambda: simulate(lambda rng: {}, 0), "0 studies"), (lambda: coverage_of(scenarios()[0].draw, {"kappa": 1.}, 1), "kappa")])
def test_what_makes_no_sense_is_told_in_one_line(call, word):
    with pytest.raises(StudyError, match=word) as told: call()
    assert "\n" not in str(told.value)


def test_the_benchmark_of_intervals_ends_in_json():
    run = lambda *more: subprocess.run([sys.executable, ROOT/"benchmarks"/"intervals.py", *more], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "Example" in run("--help").stdout
    done = run("--json", *"--patients 20 --images 4 --models 2 --classes 2 --replicates 60 --rows 3000 --rounds 1 --series 20 --table-images 3".split())
    assert not done.returncode, done.stderr[-2000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert set(out) == {"bootstrap", "memory", "delong", "table"} and out["bootstrap"]["ours over gathering"] > 0 and out["memory"]["areas"] == 2*4*60
    assert out["delong"]["paired, clustered"]["3000 rows"] < 3 and "growth" in out["delong"]["alone"] and out["table"]["predictions"] == 20*3*6
