"""Limits of agreement: published numbers, other routes, edges, and what must not change."""
import warnings
from dataclasses import asdict, fields

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from scipy import integrate, stats
from statsmodels.stats.anova import anova_lm

from ich_study.concordance import ccc, correlation
from ich_study.estimates import Estimate, statistics_table
from ich_study.limits import BlandAltman, bland_altman, limit_coefficients, proportional_bias, ratio_limits, repeated_limits, spread_trend
from ich_study.schema import StudyError

pytestmark = pytest.mark.filterwarnings("error")

# Peak expiratory flow by a large and a mini Wright meter, 17 people: Bland and Altman, Lancet 1986; 1:307
LARGE = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427])
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451])
TEN = np.arange(10.)
PARTS = ("bias", "lower", "upper", "lower_approximate", "upper_approximate")


def estimates(found):
    """The estimates of a dataclass by name."""
    return {f.name: getattr(found, f.name) for f in fields(found) if isinstance(getattr(found, f.name), Estimate)}


# ---------------------------------------------------------------- published numbers

def test_limits_of_bland_and_altman_1986():
    found = bland_altman(MINI, LARGE)
    assert [round(v, 1) for v in (*found.bias[:3], found.sd)] == [-2.1, -22.0, 17.8, 38.8]
    assert_allclose([found.lower.value, found.upper.value], [-2.1 - 1.96*38.8, -2.1 + 1.96*38.8], atol=.15)
    # printed for limits 2 SD away: -114.3 to -45.1 and 40.9 to 110.1, so half an interval is 34.6
    half = (found.lower_approximate.high - found.lower_approximate.low)/2
    assert_allclose(half, 34.6, atol=.15)
    assert_allclose(found.bias.p, stats.ttest_rel(LARGE, MINI).pvalue)


# Coefficients of the exact interval of a 95 % limit, as tabulated by Carkeet, Optom Vis Sci 2015; 92:e71
@pytest.mark.parametrize("n, low, high", [(5, .9232, 5.9749), (10, 1.1632, 3.8009), (30, 1.4503, 2.7566), (50, 1.5507, 2.5355), (100, 1.6591, 2.3419)])
def test_coefficients_of_carkeet(n, low, high):
    assert_allclose(limit_coefficients(n), (low, high), atol=1e-4)


# ---------------------------------------------------------------- the same numbers by another route

@pytest.mark.parametrize("n", [4, 12, 60])
def test_coefficients_by_integration(n):
    """P(mean + c SD > z) for a standard normal, integrated over the SD, is the tail."""
    for c, tail in zip(limit_coefficients(n), (.025, .975)):
        density = lambda s: 2*s*(n - 1)*stats.chi2.pdf((n - 1)*s**2, n - 1)
        below = integrate.quad(lambda s: stats.norm.cdf((c*s - stats.norm.ppf(.975))*np.sqrt(n))*density(s), 0, 8, limit=200)[0]
        assert_allclose(below, tail, atol=1e-6)


def test_coefficients_hold_for_many_pairs():
    ns = np.array([2, 3, 50, 369, 1000, 5000, 20_000, 100_000])
    c = np.array([limit_coefficients(int(n)) for n in ns])
    assert np.isfinite(c).all() and (np.diff(c[:, 0]) > 0).all() and (np.diff(c[:, 1]) < 0).all()
    large = 1.959964 + np.outer(np.sqrt((1 + 1.959964**2/2)/ns[-3:]), [-1.959964, 1.959964])
    assert_allclose(c[-3:], large, atol=2e-3)
    assert limit_coefficients(np.int64(10)) == limit_coefficients(10)


def test_the_exact_interval_covers_at_ten():
    rng = np.random.default_rng(3)
    inside = np.mean([e.low <= 1.959964 <= e.high for e in (bland_altman(np.zeros(10), rng.normal(size=10), .8).upper for _ in range(600))])
    assert .76 < inside < .84


def test_proportional_bias_is_least_squares():
    found, line = proportional_bias(MINI, LARGE, .9), stats.linregress((MINI + LARGE)/2, LARGE - MINI)
    t = stats.t.ppf(.95, 15)
    assert_allclose(found["slope"][:3], line.slope + t*line.stderr*np.array([0, -1, 1]))
    assert_allclose(found["intercept"][:3], line.intercept + t*line.intercept_stderr*np.array([0, -1, 1]))
    assert_allclose([found["slope"].p, found["slope_se"]], [line.pvalue, line.stderr])


def test_spread_trend_is_least_squares_of_absolute_residuals():
    mean, d = (MINI + LARGE)/2, LARGE - MINI
    line = stats.linregress(mean, d)
    trend = stats.linregress(mean, np.abs(d - line.intercept - line.slope*mean))
    found = spread_trend(MINI, LARGE)
    assert_allclose([found.value, found.p], [trend.slope, trend.pvalue])
    assert found.n == 17 and found.low < found.value < found.high


def test_ratio_limits_are_limits_of_logarithms():
    found, logs = ratio_limits(MINI, LARGE), bland_altman(np.log(MINI), np.log(LARGE))
    for k in PARTS: assert_allclose(getattr(found, k)[:3], np.exp(getattr(logs, k)[:3])); assert getattr(found, k).p == getattr(logs, k).p or k != "bias"
    assert found.sd == pytest.approx(logs.sd) and found.not_positive == 0 and found.n == 17
    assert_allclose(found.bias.value, stats.gmean(LARGE)/stats.gmean(MINI))
    swapped = ratio_limits(LARGE, MINI)
    assert_allclose([1/swapped.upper.high, 1/swapped.upper.value, 1/swapped.upper.low], [found.lower.low, found.lower.value, found.lower.high])


@pytest.fixture(scope="module")
def scans():
    """Differences of 12 patients with one to five scans."""
    rng = np.random.default_rng(8)
    who = np.repeat([f"p{i}" for i in range(12)], rng.integers(1, 6, 12))
    level = dict(zip(np.unique(who), rng.normal(0, 4, 12)))
    return who, 2 + np.array([level[w] for w in who]) + rng.normal(0, 3, len(who))


def test_mean_squares_are_those_of_anova(scans):
    who, d = scans
    table = anova_lm(smf.ols("d ~ C(who)", pd.DataFrame({"who": who, "d": d})).fit())
    found, m = repeated_limits(who, d), np.unique(who, return_counts=True)[1]
    assert_allclose([found.msb, found.msw], table.mean_sq)
    assert_allclose(found.m0, (m.sum() - (m**2).sum()/m.sum())/11)
    assert_allclose(found.sd_total**2, (found.msb - found.msw)/found.m0 + found.msw)
    assert_allclose([found.bias.value, found.naive_sd], [d.mean(), d.std(ddof=1)])
    assert_allclose([found.lower.value, found.upper.value], d.mean() + 1.96*found.sd_total*np.array([-1, 1]))
    assert (found.n_subjects, found.n_pairs, found.missing, found.reason) == (12, len(d), 0, "")


def test_intervals_of_balanced_repeats_follow_zou():
    rng = np.random.default_rng(9)
    d = 1 + np.repeat(rng.normal(0, 4, 15), 3) + rng.normal(0, 2, 45)
    found = repeated_limits(np.repeat(np.arange(15), 3), d)
    means = d.reshape(15, 3).mean(1)
    between, within = means.var(ddof=1), d.reshape(15, 3).var(1, ddof=1).mean()
    assert_allclose(found.sd_total**2, between + 2/3*within)  # equal numbers: the variance of means and two thirds of that within
    q = stats.chi2.ppf
    low = found.sd_total**2 - np.hypot(between*(1 - 14/q(.975, 14)), 2/3*within*(1 - 30/q(.975, 30)))
    high = found.sd_total**2 + np.hypot(between*(14/q(.025, 14) - 1), 2/3*within*(30/q(.025, 30) - 1))
    half = stats.t.ppf(.975, 14)*np.sqrt(between/15)
    assert_allclose(found.bias[:3], (d.mean(), d.mean() - half, d.mean() + half))
    assert_allclose(found.upper.high, found.upper.value + np.hypot(half, 1.96*(np.sqrt(high) - found.sd_total)))
    assert_allclose(found.upper.low, found.upper.value - np.hypot(half, 1.96*(found.sd_total - np.sqrt(low))))
    assert_allclose(found.lower.value - found.lower.low, found.upper.high - found.upper.value)


@pytest.mark.parametrize("between", [0, 4])
def test_intervals_of_repeats_cover(between):
    rng = np.random.default_rng(between)
    who = np.repeat(np.arange(20), np.resize([1, 2, 3, 6], 20))
    true, hits = 1.96*np.hypot(between, 3), []
    for _ in range(400):
        found = repeated_limits(who, rng.normal(0, 1, 20)[who]*between + rng.normal(0, 3, len(who)))
        hits.append([found.upper.low <= true <= found.upper.high, found.lower.low <= -true <= found.lower.high, found.bias.low <= 0 <= found.bias.high])
    assert (np.mean(hits, axis=0) > .91).all()


# ---------------------------------------------------------------- edges

EDGES = {"nothing": ([], []), "one": ([1], [2]), "two": ([1, 2], [3, 5]), "three": (TEN[:3], [1, 3, 2]), "four": (TEN[:4], [1, 3, 2, 5]), "constant truth": (TEN*0 + 3, TEN),
         "constant both": (TEN*0, TEN*0), "identical": (TEN, TEN), "line": (TEN, 2*TEN + 10), "shifted": (TEN/10, TEN/10 + .1), "constant mean": (TEN, -TEN),
         "all missing": ([None]*5, TEN[:5]), "zeros and one": ([0, 0, 0, 0, 7], [0, 0, 0, 0, 5]), "nearly constant": (1e9 + 1e-9*TEN, 1e9 + 1e-9*TEN[::-1]),
         "tiny": (TEN*1e-300, TEN[::-1]**2*1e-300), "tiny beside large": (TEN*1e-250, TEN**2), "wild ratios": ([1e-300, 1, 2], [1e49, 1, 2]), "one sign": (TEN + 1, 3*(TEN + 1)),
         "whole numbers": (LARGE.tolist(), MINI.tolist()), "missing and zero": ([0, 1, 2, np.nan, 4, 5, -3], [1, 0, 3, 4, 5, None, 2])}


def all_of(x, y):
    """Every estimate of a pair of lists."""
    lines = proportional_bias(x, y)
    repeated = repeated_limits(np.arange(len(x))//2, [np.nan if a is None or b is None else b - a for a, b in zip(x, y)])
    return ({k: v for k, v in lines.items() if k != "slope_se"} | {"spread": spread_trend(x, y)} | estimates(bland_altman(x, y))
            | {f"ratio_{k}": e for k, e in estimates(ratio_limits(x, y)).items()} | {f"repeated_{k}": e for k, e in estimates(repeated).items()})


@pytest.mark.parametrize("name", EDGES)
def test_legal_edges_are_silent_and_give_their_reasons(name):
    found = all_of(*EDGES[name])
    for metric, e in found.items():
        assert not np.isinf(e[:3]).any() and (e.reason or np.isfinite(e[:3]).all()), (metric, e)
        assert not e.low > e.value and not e.high < e.value, (metric, e)
        assert isinstance(e.value, float) and isinstance(e.n, int)
    statistics_table([e.row(k, "series") for k, e in found.items()])


@pytest.mark.parametrize("name", ["nothing", "one", "all missing"])
def test_fewer_than_two_pairs_have_no_limits(name):
    found = bland_altman(*EDGES[name])
    assert isinstance(found, BlandAltman) and "fewer than 2 pairs" in found.reason and np.isnan(found.sd)
    assert np.isnan(found.bias.value) == (name != "one") and all(np.isnan(e[1:3]).all() and e.reason == found.reason and e.n == found.n for e in estimates(found).values())
    assert found.missing == (5 if name == "all missing" else 0)


def test_equal_differences():
    found = bland_altman(TEN/10, TEN/10 + .1)
    assert found.sd == 0 and all(np.ptp(e[:3]) == 0 and "equal" in e.reason and np.isnan(e.p) for e in estimates(found).values())
    assert_allclose(found.upper.value, .1)
    line = proportional_bias(TEN/10, TEN/10 + .1)
    assert line["slope"][:3] == (0, 0, 0) and np.isnan(line["slope"].p) and line["slope_se"] == 0 and spread_trend(TEN, TEN + 1).value == 0
    tripled = ratio_limits(TEN, 3*TEN)
    assert tripled.not_positive == 1 and tripled.sd == 0
    assert_allclose(tripled.bias[:3], 3)


def test_means_without_spread_have_no_slope():
    line = proportional_bias(TEN, -TEN)
    assert np.isnan(line["slope"][:3]).all() and np.isnan(line["intercept"].value) and np.isnan(line["slope_se"]) and "means" in line["slope"].reason
    assert np.isnan(spread_trend(TEN, -TEN).value)


def test_missing_zero_and_negative_values_are_told_apart():
    x, y = EDGES["missing and zero"]
    plain, ratios = bland_altman(x, y), ratio_limits(x, y)
    assert (plain.n, plain.missing, plain.not_positive) == (5, 2, 0) and plain.reason == "2 pairs left out: a value is missing"
    assert (ratios.n, ratios.missing, ratios.not_positive) == (2, 2, 3) and "3 pairs left out: no ratio" in ratios.reason
    assert plain.bias.value == np.mean([1, -1, 1, 1, 5])


def test_ratios_too_large_for_a_number_are_missing():
    found = ratio_limits(*EDGES["wild ratios"])
    assert np.isnan(found.upper.high) and "too large" in found.upper.reason and np.isfinite(found.sd)


@pytest.mark.parametrize("labels", [["a", "a", "b", "b", "c"], [1, 1, 2, 2, 3], [("x", 1), ("x", 1), "b", "b", 2.5], np.array([7., 7, 1, 1, 2]), pd.Categorical(["u", "u", "v", "v", "w"]),
                                    pd.Series(["a", "a", "b", "b", "c"], index=[9, 8, 7, 6, 5], dtype="string")], ids=str)
def test_subjects_may_be_called_anything(labels):
    assert repeated_limits(labels, [1, 2, 5, 7, 3.]) == repeated_limits(list("aabbc"), [1, 2, 5, 7, 3])


def test_repeats_that_allow_no_limits():
    for who, d, words in (([], [], "fewer than 2"), ([1, 1, 1], [1, 2, 3], "fewer than 2"), ([1, 2, 3], [1, 2, 4], "twice"), ([1, 1, 2], [1, np.nan, 2], "twice"), ([1, 1], [None, None], "fewer than 2")):
        found = repeated_limits(who, d)
        assert words in found.reason and np.isnan([found.msb, found.msw, found.m0, found.var_between, found.sd_total, found.lower.value, found.upper.low, found.bias.low]).all()
    assert repeated_limits([1, 1, 1], [1, 2, 3]).bias.value == 2 and repeated_limits([1, 2, 3], [1, 2, 4]).naive_sd > 1
    assert repeated_limits([1, 1, 2, 2], [1, np.nan, 2, 4]).missing == 1


def test_variance_between_subjects_stops_at_zero():
    found = repeated_limits([1, 1, 2, 2, 3, 3], [-5, 5, -6, 6, -4, 4.])
    assert found.var_between == 0 and found.msb == 0 and found.sd_total == pytest.approx(np.sqrt(found.msw)) and found.upper.low < found.upper.value < found.upper.high
    same = repeated_limits([1, 1, 2, 2], [3, 3, 3, 3])
    assert same.sd_total == 0 and same.upper[:3] == (3, 3, 3) and "equal" in same.reason


# ---------------------------------------------------------------- refused, in one line

@pytest.mark.parametrize("call, words", [
    *[(lambda f=f: f([1, 2], [1]), ("(2,)", "(1,)")) for f in (bland_altman, proportional_bias, spread_trend, ratio_limits)],
    *[(lambda f=f: f([1, 2, np.inf], [1, 2, 3]), ("infinite",)) for f in (bland_altman, proportional_bias, spread_trend, ratio_limits)],
    *[(lambda f=f, n=n: f(TEN[:n], TEN[:n] + 1, 95), ("95",)) for f in (bland_altman, proportional_bias, spread_trend, ratio_limits) for n in (0, 10)],
    *[(lambda n=n: limit_coefficients(n), (repr(n), "2 or more")) for n in (1, 0, -3, 2.5, np.nan, "10", None)], (lambda: limit_coefficients(10, 1), ("between 0 and 1",)),
    (lambda: repeated_limits([1, 2], [1]), ("2 labels", "(1,)")), (lambda: repeated_limits([1, None], [1, 2]), ("1 labels",)), (lambda: repeated_limits([1, 1], ["a", "b"]), ("numbers",)),
    (lambda: repeated_limits([1, 1, 2, 2], [1, 2, 3, 4], 0), ("0",)), (lambda: repeated_limits([1, 1], [[1, 2]]), ("(1, 2)",))])
def test_illegal_data_never_give_a_number(call, words):
    with pytest.raises(StudyError) as e: call()
    assert "\n" not in str(e.value) and all(w in str(e.value) for w in words)


# ---------------------------------------------------------------- what must not change

VALUE = st.floats(0, 300).map(lambda v: round(v, 2))
LIST = st.lists(st.tuples(VALUE, VALUE), min_size=4, max_size=25)


def near(a, b, unit=1.): return np.allclose(np.array(a[:3])*unit, b[:3], rtol=1e-6, atol=1e-6*unit, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(LIST, st.randoms(use_true_random=False), st.sampled_from([.001, .1, 1000.]))
def test_order_does_not_matter_and_the_unit_scales(rows, random, unit):
    x, y = np.array(rows).T
    shuffled = list(rows); random.shuffle(shuffled)
    here, there, scaled = bland_altman(x, y), bland_altman(*np.array(shuffled).T), bland_altman(unit*x, unit*y)
    for k in PARTS: assert near(getattr(here, k), getattr(there, k)) and near(getattr(here, k), getattr(scaled, k), unit), k
    assert np.isclose(here.sd*unit, scaled.sd)
    if min(np.std(x), np.std(y), np.std(x + y), np.std(x - y)) < .5: return
    assert near(proportional_bias(x, y)["slope"], proportional_bias(unit*x, unit*y)["slope"])
    assert near(proportional_bias(x, y)["intercept"], proportional_bias(unit*x, unit*y)["intercept"], unit)
    assert near(ratio_limits(x, y).upper, ratio_limits(unit*x, unit*y).upper)
    assert np.isclose(correlation(x, y).value, correlation(unit*x, unit*y).value) and np.isclose(ccc(x, y).value, ccc(unit*x, unit*y).value)


@settings(max_examples=40, deadline=None)
@given(LIST)
def test_swapping_the_two_flips_the_bias(rows):
    x, y = np.array(rows).T
    there, back = bland_altman(x, y), bland_altman(y, x)
    flip = lambda e: (-e.value, -e.high, -e.low)
    for a, b in (("bias", "bias"), ("lower", "upper"), ("upper", "lower"), ("lower_approximate", "upper_approximate")): assert near(getattr(there, a), flip(getattr(back, b)))
    assert np.isclose(there.sd, back.sd)
    if min(np.std(x + y), np.std(x - y)) > .5:
        assert near(proportional_bias(x, y)["slope"], flip(proportional_bias(y, x)["slope"])) and near(spread_trend(x, y), spread_trend(y, x))
    if there.sd > .01: assert there.upper.high > there.upper_approximate.high and there.lower.high < there.lower_approximate.high


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), VALUE), min_size=0, max_size=20), st.randoms(use_true_random=False))
def test_repeats_in_any_order_and_by_any_name(rows, random):
    who, d = [r[0] for r in rows], [r[1] for r in rows]
    shuffled = list(rows); random.shuffle(shuffled)
    here, there = repeated_limits(who, d), repeated_limits([f"patient {r[0]}" for r in shuffled], [r[1] for r in shuffled])
    for a, b in zip(asdict(here).values(), asdict(there).values()):
        if isinstance(a, tuple): assert near(a, b)
        elif not isinstance(a, str): assert np.isclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert np.isnan(here.sd_total) or here.sd_total**2 >= here.msw*(1 - 1e-9)
    assert not here.upper.low > here.upper.value and not here.upper.high < here.upper.value


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.one_of(st.none(), st.integers(0, 3), st.floats(0, 1e6))]*2), min_size=0, max_size=9))
def test_anything_legal_is_silent(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, e in all_of([r[0] for r in rows], [r[1] for r in rows]).items():
            assert not np.isinf(e[:3]).any() and (e.reason or np.isfinite(e[:3]).all()), (name, e)
            assert np.isnan(e.low) or e.low <= e.value + 1e-9*abs(e.value) and e.value <= e.high + 1e-9*abs(e.value), (name, e)
