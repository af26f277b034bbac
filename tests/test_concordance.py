"""Correlation, agreement and lines between two measurements: published numbers, other routes, edges, and what must not change."""
import warnings

import numpy as np
import pingouin
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from scipy import optimize, stats

from ich_study.concordance import ICCS, ccc, correlation, deming, icc, noted, numbers, pairs, passing_bablok, tails
from ich_study.estimates import statistics_table
from ich_study.schema import StudyError

pytestmark = pytest.mark.filterwarnings("error")

# Peak expiratory flow by a large and a mini Wright meter, 17 people: Bland and Altman, Lancet 1986; 1:307
LARGE = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427])
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451])
# Six subjects by four judges: Shrout and Fleiss, Psychol Bull 1979; 86:420, table 2
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
TEN = np.arange(10.)
AGREE = {"ICC(A,1)": lambda x, y: icc(np.c_[x, y])["ICC(A,1)"], "ccc": ccc, "pearson": correlation, "spearman": lambda x, y: correlation(x, y, "spearman")}
LINES = {"deming": deming, "passing_bablok": passing_bablok}


def every(x, y):
    """All estimates of one data set by name."""
    lines = {f"{k}_{part}": e for k, f in LINES.items() for part, e in f(x, y).items()}
    return {k: f(x, y) for k, f in AGREE.items() if k != "ICC(A,1)"} | icc(np.c_[x, y]) | lines


# ---------------------------------------------------------------- published numbers

def test_peak_flow_correlates_as_printed():
    r = correlation(LARGE, MINI)
    assert round(r.value, 2) == .94 and r.p < 1e-7 and r.n == 17 and not r.reason


def test_six_intraclass_correlations_of_shrout_and_fleiss():
    found = icc(JUDGES)
    assert {k: round(e.value, 2) for k, e in found.items()} == dict(zip(ICCS, (.17, .29, .71, .44, .62, .91)))
    # McGraw and Wong 1996: the lower limit of ICC(C,1) from F = 11.03 on 5 and 15 degrees of freedom
    low = 11.0273/stats.f.ppf(.975, 5, 15)
    assert_allclose(found["ICC(C,1)"].low, (low - 1)/(low + 3), rtol=1e-4)
    assert all(e.low < e.value < e.high and e.n == 6 for e in found.values())


# ---------------------------------------------------------------- the same numbers by another route

@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(4)
    true = rng.gamma(2, 12, 31)
    return true + rng.normal(0, 3, 31), .9*true + 2 + rng.normal(0, 4, 31)


def test_interval_of_spearman_is_that_of_bonett_and_wright(noisy):
    rho = correlation(*noisy, "spearman", .9)
    ranks = np.corrcoef(*(stats.rankdata(v) for v in noisy))[0, 1]
    wide = 1.6448536*np.sqrt((1 + ranks**2/2)/28)
    assert_allclose(rho[:3], (ranks, np.tanh(np.arctanh(ranks) - wide), np.tanh(np.arctanh(ranks) + wide)), rtol=1e-6)


@pytest.mark.parametrize("level", [.5, .8, .99])
def test_pearson_is_scipys_at_every_level(noisy, level):
    assert_allclose(correlation(*noisy, level=level)[1:3], stats.pearsonr(*noisy).confidence_interval(level))


def anova(m):
    """Mean squares of subjects, raters and rest of a full table, each from its definition."""
    (n, k), grand = m.shape, m.mean()
    rest = m - m.mean(1, keepdims=True) - m.mean(0) + grand
    return k*((m.mean(1) - grand)**2).sum()/(n - 1), n*((m.mean(0) - grand)**2).sum()/(k - 1), (rest**2).sum()/(n - 1)/(k - 1)


@pytest.mark.parametrize("shape", [(5, 2), (3, 2), (2, 3), (20, 3), (7, 5)])
def test_intraclass_correlations_from_mean_squares(shape):
    rng = np.random.default_rng(sum(shape))
    m = rng.normal(0, 2, (shape[0], 1)) + rng.normal(0, 1, shape) + rng.normal(0, 1, shape[1]) + 50
    (n, k), (s, r, e) = shape, anova(m)
    w = (r + (n - 1)*e)/n
    wanted = ((s - w)/(s + (k - 1)*w), (s - e)/(s + (k - 1)*e + k*(r - e)/n), (s - e)/(s + (k - 1)*e), (s - w)/s, (s - e)/(s + (r - e)/n), (s - e)/s)
    for (name, got), value in zip(icc(m).items(), wanted):
        if np.isfinite(got.value): assert_allclose(got.value, value, rtol=1e-8, err_msg=name)
        else: assert name.endswith("k)") and got.reason
        assert got.reason or got.low <= got.value <= got.high


def test_intraclass_limits_are_pingouins_unrounded_at_95_percent():
    import pandas as pd
    long = pd.DataFrame(JUDGES).melt(ignore_index=False).reset_index()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pingouin.intraclass_corr(long, targets="index", raters="variable", ratings="value").set_index("Type").CI95
    for name, e in icc(JUDGES).items(): assert_allclose(e[1:3], theirs[name], atol=.0051)


def test_icc_leaves_the_options_of_pingouin_as_they_were():
    pingouin.options["round"] = 1
    try: assert abs(icc(JUDGES)["ICC(A,1)"].value - .28976) < 1e-5 and pingouin.options["round"] == 1 and pingouin.options["round.column.CI95"] == 2
    finally: pingouin.set_default_options()


def test_concordance_as_lin_wrote_it(noisy):
    x, y = noisy
    n, sx, sy, u = len(x), x.std(), y.std(), (x.mean() - y.mean())/np.sqrt(x.std()*y.std())
    r = np.corrcoef(x, y)[0, 1]
    c = 2*r*sx*sy/(sx**2 + sy**2 + (x.mean() - y.mean())**2)
    variance = ((1 - r**2)*c**2/((1 - c**2)*r**2) + 2*c**3*(1 - c)*u**2/(r*(1 - c**2)**2) - c**4*u**4/(2*r**2*(1 - c**2)**2))/(n - 2)
    z = np.arctanh(c) + stats.norm.ppf([.5, .025, .975])*np.sqrt(variance)
    assert_allclose(ccc(x, y)[:3], np.tanh(z))


@pytest.mark.parametrize("ratio", [.25, 1, 4])
def test_deming_minimises_weighted_distances(noisy, ratio):
    x, y = noisy
    found = deming(x, y, ratio)
    loss = lambda b: ((y - b[0] - b[1]*x)**2).sum()/(ratio + b[1]**2)
    best = optimize.minimize(loss, [0, 1], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 4000}).x
    assert_allclose([found["intercept"].value, found["slope"].value], best, rtol=1e-5, atol=1e-5)
    axis = np.linalg.eigh(np.cov(x*np.sqrt(ratio), y))[1][:, -1]
    assert_allclose(found["slope"].value, np.sqrt(ratio)*axis[1]/axis[0])


def test_jackknife_leaves_out_each_pair(noisy):
    x, y = noisy
    n, b = len(x), deming(x, y)
    for part in b:
        each = np.array([deming(np.delete(x, i), np.delete(y, i))[part].value for i in range(n)])
        wide = stats.t.ppf(.975, n - 2)*stats.sem(n*b[part].value - (n - 1)*each)
        assert_allclose(b[part][1:3], (b[part].value - wide, b[part].value + wide))


def test_jackknife_covers():
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(300):
        true = rng.gamma(2, 12, 40)
        line = deming(true + rng.normal(0, 4, 40), 1 + .9*true + rng.normal(0, 4, 40))
        inside += line["slope"].low <= .9 <= line["slope"].high
    assert .9 < inside/300 < .99


def passing_bablok_as_written(x, y, z=1.959963985):
    """The paper of 1983, step by step, for data whose shifted ranks stay inside."""
    slopes = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            if x[i] == x[j] and y[i] == y[j]: continue
            b = np.sign(y[i] - y[j])*np.inf if x[i] == x[j] else (y[i] - y[j])/(x[i] - x[j])
            if b != -1: slopes.append(b)
    slopes, n = sorted(slopes), len(x)
    count, shift = len(slopes), sum(b < -1 for b in slopes)
    b = slopes[(count + 1)//2 + shift - 1] if count % 2 else (slopes[count//2 + shift - 1] + slopes[count//2 + shift])/2
    first = round((count - z*np.sqrt(n*(n - 1)*(2*n + 5)/18))/2)
    low, high = slopes[first + shift - 1], slopes[count - first + shift]
    return (b, low, high), tuple(np.median([q - s*p for p, q in zip(x, y)]) for s in (b, high, low))


@pytest.mark.parametrize("decimals", [3, 0, -1])  # few, many and very many ties
@pytest.mark.parametrize("n", [20, 31])
def test_passing_bablok_by_brute_force(n, decimals):
    rng = np.random.default_rng(n)
    true = rng.gamma(2, 20, n)
    x, y = np.round(true + rng.normal(0, 6, n), decimals) + 0., np.round(2 + .95*true + rng.normal(0, 6, n), decimals) + 0.
    found, wanted = passing_bablok(x, y), passing_bablok_as_written(x, y)
    for part, e in zip(("slope", "intercept"), wanted): assert_allclose(found[part][:3], e)


def test_passing_bablok_does_not_care_which_axis_is_which(noisy):
    x, y = noisy[0][:10], noisy[1][:10]  # 45 slopes, an odd number
    there, back = passing_bablok(x, y)["slope"], passing_bablok(y, x)["slope"]
    assert_allclose([1/back.value, 1/back.high, 1/back.low], there[:3])


# ---------------------------------------------------------------- edges

EDGES = {"nothing": ([], []), "one": ([1], [2]), "two": ([1, 2], [3, 5]), "three": (TEN[:3], [1, 3, 2]), "four": (TEN[:4], [1, 3, 2, 5]), "constant truth": (TEN*0 + 3, TEN),
         "constant both": (TEN*0, TEN*0), "constant prediction": (TEN, TEN*0), "identical": (TEN, TEN), "line": (TEN, 2*TEN + 10), "shifted": (TEN, TEN + .1),
         "falling": (TEN, -TEN), "steep": (TEN, -3*TEN), "all missing": ([np.nan]*5, TEN[:5]), "zeros and one": ([0, 0, 0, 0, 7], [0, 0, 0, 0, 5]),
         "nearly constant": (1e9 + 1e-9*TEN, TEN), "tiny": (TEN*1e-300, TEN[::-1]*1e-300), "tiny beside large": (TEN*1e-250, TEN), "cross": ([-1, 1, 0, 0], [0, 0, -1, 1]),
         "opposed": ([1, 9, 5, 2], [9, 1, 5, 8]), "whole numbers": (LARGE.tolist(), MINI.tolist()), "switches": ([True, False, True, True], [True, False, False, True])}


@pytest.mark.parametrize("name", EDGES)
def test_legal_edges_are_silent_and_give_their_reasons(name):
    found = every(*(np.asarray(v, float) for v in EDGES[name])) if name != "nothing" else {k: f([], []) for k, f in AGREE.items() if k != "ICC(A,1)"}
    for metric, e in found.items():
        assert not np.isinf(e[:3]).any(), (metric, e)
        assert e.reason or np.isfinite(e[:3]).all(), (metric, e)
        assert np.isnan(e.low) == np.isnan(e.high) and not (e.low > e.value + 1e-12 or e.high < e.value - 1e-12), (metric, e)
        assert isinstance(e.value, float) and isinstance(e.n, int)
    statistics_table([e.row(k, "pairs") for k, e in found.items()])


def test_what_undefined_means():
    nan = lambda e: np.isnan(e[:3]).all() and bool(e.reason)
    for kind in ("pearson", "spearman"): assert all(nan(correlation(*EDGES[k], kind)) for k in ("nothing", "one", "two", "constant truth", "constant prediction", "all missing", "nearly constant"))
    three = correlation(*EDGES["three"])
    assert_allclose(three.value, .5)
    assert three[1:3] == (-1, 1) and "3 pairs" in three.reason and three.p > .5
    perfect, ordered = correlation(TEN, 2*TEN), correlation(TEN, TEN**3, "spearman")
    assert perfect[:3] == ordered[:3] == (1, 1, 1) and perfect.reason == ordered.reason and np.isnan(ordered.p)
    assert correlation(TEN, -TEN)[:3] == (-1, -1, -1)
    assert nan(ccc(TEN, TEN*0)) and ccc(TEN, TEN).value == 1 and ccc(TEN, -TEN + 9).value == -1
    assert all(nan(e) for e in icc(np.ones((6, 2))).values()) and all(nan(e) for e in icc([[1, 2], [3, 4]]).values()) and all(nan(e) for e in icc(np.ones((0, 2))).values())


def test_raters_who_agree_have_no_interval():
    for m in ([[1, 1], [2, 2], [3, 3], [5, 5]], np.c_[TEN/10, TEN/10, TEN/10]):
        for e in icc(m).values(): assert_allclose(e.value, 1); assert np.isnan(e[1:3]).all() and "agree fully" in e.reason and np.isnan(e.p)
    apart = icc(np.c_[TEN/10, TEN/10 + .7])
    assert_allclose(apart["ICC(C,k)"].value, 1)
    assert all(np.isnan(apart[k].low) and "constant" in apart[k].reason for k in ICCS if "1," not in k) and np.isfinite(apart["ICC(1,1)"].low)


def test_subjects_and_pairs_with_a_gap_are_left_out_and_counted():
    gap = JUDGES.astype(float); gap[[1, 4], [0, 3]] = np.nan
    got, full = icc(gap), icc(JUDGES[[0, 2, 3, 5]])
    for k in ICCS: assert got[k][:4] == full[k][:4] and "2 subjects left out" in got[k].reason
    x, y, left = pairs([1, np.nan, 3, 4, None], [1, 2, None, -4, 5])
    assert x.tolist() == [1, 4] and y.tolist() == [1, -4] and left == 3
    missing = np.r_[LARGE.astype(float), np.nan]
    for name, e in every(missing, np.r_[MINI, 300.]).items():
        assert e.n == 17 and "1 " in e.reason and "left out" in e.reason and e[:3] == every(LARGE, MINI)[name][:3]


def test_a_column_of_pandas_counts_by_place():
    import pandas as pd
    frame = pd.DataFrame({"a": pd.array([1, 2, None, 4.5, 9], "Float64"), "b": [2, 1, 3, 5, 8.]}, index=[4, 3, 2, 1, 0])
    assert correlation(frame.a, frame.b) == correlation([1, 2, np.nan, 4.5, 9], [2, 1, 3, 5, 8]) and pairs([1, pd.NA], [1, 2])[2] == 1


# ---------------------------------------------------------------- refused, in one line

@pytest.mark.parametrize("call, words", [
    (lambda: pairs([1, 2], [1]), ("(2,)", "(1,)")), (lambda: pairs([[1, 2]], [[1, 2]]), ("(1, 2)",)), (lambda: ccc([1, 2, np.inf], [1, 2, 3]), ("1 of 3", "infinite")),
    (lambda: numbers([1, -1e101]), ("1 of 2", "beyond 1e+50")), (lambda: numbers(["a"]), ("<U1",)), (lambda: numbers([1, "3"]), ("NaN",)), (lambda: numbers([1, None, "3"]), ("NaN",)), (lambda: numbers([1j]), ("complex",)),
    (lambda: numbers(np.array(["2020-01-01"], "datetime64[D]")), ("datetime",)), (lambda: numbers([[1], [1, 2]]), ("length",)), (lambda: correlation(TEN, TEN, "kendall"), ("kendall", "spearman")),
    *[(lambda v=v: correlation(TEN, TEN, level=v), (repr(v), "between 0 and 1")) for v in (0, 1, 95, -.1, np.nan, "95", None)],
    *[(lambda f=f: f(TEN, TEN + 1, level=95), ("95",)) for f in (ccc, deming, passing_bablok)], (lambda: icc(JUDGES, 95), ("95",)),
    (lambda: icc(TEN), ("(10,)", "np.c_")), (lambda: icc(TEN[:, None]), ("(10, 1)",)), *[(lambda v=v: deming(TEN, TEN, v), ("above 0",)) for v in (0, -1, np.nan, np.inf, "1", None)]])
def test_illegal_data_never_give_a_number(call, words):
    with pytest.raises(StudyError) as e: call()
    assert "\n" not in str(e.value) and all(w in str(e.value) for w in words)


def test_helpers():
    assert tails(.9) == pytest.approx((.05, .95)) and noted("", 0) == "" and noted("a", 1) == "a; 1 pair left out: a value is missing" and "2 raters" in noted("", 2, "rater")


# ---------------------------------------------------------------- what must not change

LIST = st.lists(st.tuples(*[st.floats(-50, 300).map(lambda v: round(v, 2))]*2), min_size=5, max_size=20)

def of(name, x, y): return AGREE[name](x, y) if name in AGREE else LINES[name](x, y)["slope"]


def close(a, b, tolerance=1e-5):
    """Two estimates that should be one; where rounding decides whether there is an interval, the values alone."""
    if np.isnan(a.value) or np.isnan(b.value): return np.isnan(a.value) == np.isnan(b.value)
    limits = 3 if np.isfinite(a[1:3] + b[1:3]).all() else 1
    return np.allclose(a[:limits], b[:limits], rtol=tolerance, atol=tolerance)


def spread(x, y):
    """Data that are clear of every edge."""
    return min(np.std(x), np.std(y), np.std(x - y)) > .5 and .999 > abs(np.corrcoef(x, y)[0, 1]) > .05


@settings(max_examples=15, deadline=None)
@given(LIST, st.randoms(use_true_random=False), st.sampled_from([.001, .1, 1000.]))
def test_order_and_unit_do_not_matter(rows, random, unit):
    x, y = np.array(rows).T
    if not spread(x, y): return
    shuffled = list(rows); random.shuffle(shuffled)
    for name in (*AGREE, *LINES):
        assert close(of(name, x, y), of(name, *np.array(shuffled).T)), name
        assert close(of(name, x, y), of(name, unit*x, unit*y)), name
    assert np.isclose(deming(x, y)["intercept"].value*unit, deming(unit*x, unit*y)["intercept"].value, rtol=1e-4, atol=1e-4*unit)


@settings(max_examples=15, deadline=None)
@given(LIST)
def test_swapping_the_two_leaves_agreement(rows):
    x, y = np.array(rows).T
    if not spread(x, y): return
    for name in AGREE: assert close(AGREE[name](x, y), AGREE[name](y, x)), name
    there, back = deming(x, y)["slope"].value, deming(y, x)["slope"].value
    assert np.isclose(there*back, 1)
    assert abs(ccc(x, y).value) <= abs(correlation(x, y).value) + 1e-12  # closeness to the line of identity only takes away


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.one_of(st.none(), st.integers(0, 3), st.floats(0, 1e6))]*2), min_size=0, max_size=9))
def test_anything_legal_is_silent(rows):
    x, y = [r[0] for r in rows], [r[1] for r in rows]
    if not rows: return
    for name, e in every(numbers(x), numbers(y)).items():
        assert not np.isinf(e[:3]).any() and (e.reason or np.isfinite(e[:3]).all()), (name, e)
        assert np.isnan(e.low) or e.low <= e.value + 1e-9*abs(e.value) and e.value <= e.high + 1e-9*abs(e.value), (name, e)
