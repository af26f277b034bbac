"""Counts: a published table digit by digit, published examples, score intervals against their own test, and every edge."""
import math
import warnings
from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, matthews_corrcoef, precision_score, recall_score
from statsmodels.stats.contingency_tables import Table2x2
from statsmodels.stats.proportion import confint_proportions_2indep

from ich_study.counts import (CELLS, PROPORTIONS, PUBLISHED_COUNTS, PUBLISHED_MEASURES, PUBLISHED_PERCENT, as_flags, average_measures, best_ratio,
                              clopper_pearson, confusion_counts, count_measures, likelihood_ratio, published_table)
from ich_study.estimates import Estimate
from ich_study.schema import StudyError, check_table

RATIOS = ("lr_pos", "lr_neg")


@pytest.fixture(autouse=True)
def silent():
    """No warning leaks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---------------------------------------------------------------- the published table

# as printed: phase, class, then accuracy, precision, sensitivity, specificity, F, each in per cent, and the four counts behind them
PRINTED = """
train epidural          94.12  90.79  98.57  89.39  94.52  138 14  2 118
train intraventricular  95.59  71.43  55.56  98.43  62.50   10  4  8 250
train intraparenchymal  91.91  78.18  81.13  94.52  79.63   43 12 10 207
train subdural          94.85  84.78  84.78  96.90  84.78   39  7  7 219
train subarachnoid      95.59  80.00  26.67  99.61  40.00    4  1 11 256
train average           94.41  81.04  69.34  95.77  72.29
test  epidural          94.20  90.91  96.77  92.11  93.75   30  3  1  35
test  intraventricular  97.10 100.00  66.67 100.00  80.00    4  0  2  63
test  intraparenchymal  95.65  90.00  94.74  96.00  92.31   18  2  1  48
test  subdural         100.00 100.00 100.00 100.00 100.00   10  0  0  59
test  subarachnoid      98.55 100.00  66.67 100.00  80.00    2  0  1  66
test  average           97.10  96.18  84.97  97.62  89.21
"""
ROWS = [line.split() for line in PRINTED.strip().splitlines()]
CLASSES = [r for r in ROWS if r[1] != "average"]
name = lambda r: f"{r[0]}-{r[1]}"


def half_up(share): return f"{Fraction(math.floor(share*10_000 + Fraction(1, 2)), 100).__float__():.2f}"


def shares(tp, fp, fn, tn):
    """The five printed measures as fractions."""
    return [Fraction(*pair) for pair in ((tp + tn, tp + fp + fn + tn), (tp, tp + fp), (tp, tp + fn), (tn, tn + fp), (2*tp, 2*tp + fp + fn))]


@pytest.mark.parametrize("row", CLASSES, ids=name)
def test_published_row_is_reproduced_to_every_digit(row):
    counts = PUBLISHED_COUNTS[row[0]][row[1]]
    assert list(counts) == list(CELLS) and list(counts.values()) == [int(v) for v in row[7:]]
    assert [half_up(s) for s in shares(**counts)] == row[2:7] == [f"{v:.2f}" for v in PUBLISHED_PERCENT[row[0]][row[1]]]
    found = count_measures(**counts)
    assert_allclose([found[m].value for m in PUBLISHED_MEASURES], [float(s) for s in shares(**counts)], rtol=1e-15)


@pytest.mark.parametrize("row", [r for r in ROWS if r[1] == "average"], ids=name)
def test_published_average_is_a_plain_mean_over_the_classes(row):
    counts = PUBLISHED_COUNTS[row[0]].values()
    assert [half_up(sum(column)/5) for column in zip(*(shares(**c) for c in counts))] == row[2:] == [f"{v:.2f}" for v in PUBLISHED_PERCENT[row[0]]["average"]]
    means = average_measures(list(counts))
    assert_allclose([100*means[f"macro_{m}"] for m in PUBLISHED_MEASURES], [float(v) for v in row[2:]], atol=.005)


def test_published_table_has_every_interval_or_says_why_not():
    table = check_table(published_table(), "statistics")
    assert list(table)[:2] == ["phase", "subtype"] and len(table) == 2*(5*8 + 15)
    assert table.reason[table.low.isna() | table.high.isna() | table.value.isna()].notna().all()
    rows = table[table.subtype != "all subtypes"]
    assert (rows.low.le(rows.value) & rows.value.le(rows.high)).all() and rows.low.notna().all()
    assert (rows.unit == "image").all() and rows.n[rows.metric == "accuracy"].tolist() == [272]*5 + [69]*5
    score = rows[rows.method.str.startswith("score")]
    assert list(zip(score.subtype, score.metric)) == [("intraventricular", "lr_pos"), ("subdural", "lr_pos"), ("subdural", "lr_neg"), ("subarachnoid", "lr_pos")]
    narrow = published_table(level=.5).set_index(["phase", "subtype", "metric"])
    for r in rows.itertuples():
        inner = narrow.loc[(r.phase, r.subtype, r.metric)]
        assert r.low <= inner.low and inner.high <= r.high


PUBLISHED_LIMITS = [  # not in print: from exact beta quantiles and the log formula, by a second tool
    ("train", "epidural", "lr_pos", 9.29, 5.66, 15.26), ("train", "intraventricular", "lr_neg", .452, .269, .757), ("train", "subarachnoid", "lr_pos", 68.53, 8.16, 575.87),
    ("train", "intraparenchymal", "ppv", .7818, .6499, .8819), ("test", "subdural", "sensitivity", 1, .6915, 1), ("test", "subarachnoid", "ppv", 1, .1581, 1),
    ("test", "intraventricular", "lr_pos", math.inf, 11.364477, math.inf), ("test", "subdural", "lr_pos", math.inf, 16.358749, math.inf), ("test", "subdural", "lr_neg", 0, 0, .277533)]


@pytest.mark.parametrize("phase,subtype,metric,value,low,high", PUBLISHED_LIMITS)
def test_published_table_has_the_limits_of_another_tool(phase, subtype, metric, value, low, high):
    table = published_table().set_index(["phase", "subtype", "metric"])
    assert_allclose(table.loc[(phase, subtype, metric), ["value", "low", "high"]].astype(float), [value, low, high], rtol=2e-3)


@pytest.mark.parametrize("phase,right,n,low,high,kappa,mcc", [("train", 234, 272, .8133, .8992, .7817, .7844), ("test", 64, 69, .8389, .9761, .8931, .8947)])
def test_what_the_published_averages_are_averages_of(phase, right, n, low, high, kappa, mcc):
    means = average_measures(list(PUBLISHED_COUNTS[phase].values()))
    assert_allclose(means["multiclass_accuracy"][:3], [right/n, low, high], atol=5e-5)
    assert_allclose(means["macro_accuracy"], 1 - 2*(1 - right/n)/5, rtol=1e-14)
    assert_allclose([means["cohen_kappa"], means["mcc"]], [kappa, mcc], atol=5e-5)
    assert means["micro_ppv"] == means["micro_sensitivity"] == means["micro_f1"] == right/n and means["reason"] == ""
    assert_allclose(means["weighted_sensitivity"], right/n); assert means["balanced_accuracy"] == means["macro_sensitivity"]


# ---------------------------------------------------------------- proportions

@pytest.mark.parametrize("k,n,low,high", [(0, 10, 0, .3085), (1, 10, .0025, .4450), (2, 10, .0252, .5561), (3, 10, .0667, .6525), (4, 10, .1216, .7376), (5, 10, .1871, .8129),
                                          (10, 10, .6915, 1), (0, 1, 0, .975), (1, 1, .025, 1), (0, 3, 0, .7076), (81, 263, .2527, .3676)])
def test_clopper_pearson_is_the_binomial_table(k, n, low, high):
    found = clopper_pearson(k, n)
    assert isinstance(found, Estimate) and found.n == n and found.method == "Clopper-Pearson"
    assert_allclose(found[:3], [k/n, low, high], atol=5e-5)
    assert_allclose(found[1:3], stats.binomtest(k, n).proportion_ci(method="exact"), atol=1e-9)
    if 0 < k: assert_allclose(stats.binom.sf(k - 1, n, found.low), .025)
    if k < n: assert_allclose(stats.binom.cdf(k, n, found.high), .025)


def test_clopper_pearson_covers_at_least_what_it_says():
    n, p = 17, np.linspace(.01, .99, 99)
    for level in (.8, .95):
        low, high = np.transpose([clopper_pearson(k, n, level)[1:3] for k in range(n + 1)])
        inside = (low <= p[:, None]) & (p[:, None] <= high)
        assert (stats.binom.pmf(np.arange(n + 1), n, p[:, None])*inside).sum(1).min() >= level


def test_f1_covers_at_least_what_it_says_when_units_are_taken_as_they_come():
    n, share = 9, np.array([.3, .15, .1, .45])
    truth = 2*share[0]/(2*share[0] + share[1] + share[2])
    tables = [t for t in product(range(n + 1), repeat=4) if sum(t) == n]
    inside = [not (found := count_measures(*t)["f1"]).low > truth and not found.high < truth for t in tables]
    assert stats.multinomial.pmf(tables, n, share)@inside >= .95


# ---------------------------------------------------------------- likelihood ratios

@pytest.mark.parametrize("a,na,b,nb,value,low,high", [(20, 30, 15, 70, 3.11, 1.86, 5.21), (10, 30, 55, 70, .424, .252, .714), (15, 23, 5, 57, 7.43, 3.06, 18.1), (8, 23, 52, 57, .381, .217, .671)])
def test_log_interval_of_published_examiners(a, na, b, nb, value, low, high):
    """Simel, Rennie and Bossuyt 2008, table 5."""
    found = likelihood_ratio(a, na, b, nb)
    assert_allclose(found[:3], [value, low, high], rtol=3e-3)
    assert_allclose(found[1:3], Table2x2([[a, na - a], [b, nb - b]], shift_zeros=False).riskratio_confint(), rtol=1e-10)
    assert_allclose(found[1:3], found.value*np.exp(np.array([-1, 1])*stats.norm.ppf(.975)*math.sqrt(1/a - 1/na + 1/b - 1/nb)))


def koopman(r, a, na, b, nb):
    """p of a Pearson chi-square of both groups, their proportions fitted by bisection of the score of the likelihood, not by its closed form."""
    low, high = 0., min(1., 1/r)
    slope = lambda p: (a + b)/p - (na - a)*r/max(1 - r*p, 1e-300) - (nb - b)/max(1 - p, 1e-300)
    for _ in range(200):
        middle = (low + high)/2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    fitted = [(a, na, r*low), (b, nb, low)]
    return stats.chi2.sf(sum((k - m*q)**2/max(m*q*(1 - q), 1e-300) for k, m, q in fitted), 1)


SCORED = [(30, 31, 3, 38), (4, 6, 0, 63), (10, 10, 0, 59), (0, 10, 59, 59), (5, 10, 59, 59), (9, 10, 59, 59), (10, 10, 58, 59), (58, 59, 10, 10), (1, 1, 0, 1), (0, 1, 1, 1), (7, 7, 9, 9), (1, 900, 2, 5)]


@pytest.mark.parametrize("table", SCORED, ids=str)
@pytest.mark.parametrize("level", [.8, .95, .99])
def test_score_limits_are_where_the_test_has_p_of_the_level(table, level):
    value, low, high, *_ = likelihood_ratio(*table, "score", level)
    assert all(isinstance(v, float) for v in (low, high)) and low <= value <= high
    for edge, inside, outside in ((low, 1.02, .98), (high, .98, 1.02)):
        if 0 < edge < math.inf:
            assert_allclose(koopman(edge, *table), 1 - level, rtol=1e-5)
            assert koopman(edge*inside, *table) > 1 - level > koopman(edge*outside, *table)


def test_score_interval_holds_exactly_the_ratios_that_are_not_rejected():
    ratios = np.exp(np.linspace(-6, 6, 61))
    for na, nb in product((1, 2, 4), (1, 3)):
        for a, b in product(range(na + 1), range(nb + 1)):
            if not a and not b: continue
            _, low, high, *_ = likelihood_ratio(a, na, b, nb, "score")
            assert [low <= r <= high for r in ratios] == [koopman(r, a, na, b, nb) >= .05 for r in ratios], (a, na, b, nb)


def test_score_interval_is_that_of_statsmodels_where_that_is_right():
    for table in ((30, 31, 3, 38), (20, 30, 15, 70), (8, 23, 52, 57), (15, 23, 5, 57)):
        assert_allclose(likelihood_ratio(*table, "score")[1:3], confint_proportions_2indep(*table, method="score", compare="ratio", correction=False), rtol=1e-7)


@pytest.mark.parametrize("table", SCORED, ids=str)
def test_a_ratio_upside_down_has_its_limits_upside_down(table):
    value, low, high, *_ = likelihood_ratio(*table, "score")
    other = likelihood_ratio(*table[2:], *table[:2], "score")
    inverse = lambda v: math.inf if v == 0 else 1/v
    assert_allclose(other[:3], [inverse(value), inverse(high), inverse(low)], rtol=1e-9)


def test_a_ratio_has_the_log_interval_where_there_is_one():
    assert best_ratio(30, 31, 3, 38) == likelihood_ratio(30, 31, 3, 38)
    for table in ((4, 6, 0, 63), (0, 10, 59, 59), (7, 7, 9, 9)): assert best_ratio(*table) == likelihood_ratio(*table, "score") and "Koopman" in best_ratio(*table).method


def test_the_largest_tables_have_intervals():
    for table in ((1, 10**9, 10**9 - 1, 10**9), (10**9, 10**9, 1, 10**9), (1, 10**6, 0, 10**6), (10**6, 10**6, 10**6, 10**6), (1, 1, 1, 10**12)):
        value, low, high, *_ = likelihood_ratio(*table, "score")
        assert 0 < low < value*(1 + 1e-9) and value <= high


# ---------------------------------------------------------------- edges

@pytest.mark.parametrize("table", list(product((0, 2), repeat=4)), ids=str)
def test_every_pattern_of_zeros_is_silent_and_explained(table):
    tp, fp, fn, tn = table
    found = count_measures(*table)
    assert list(found) == [*PROPORTIONS, "f1", *RATIOS]
    for m, (top, below) in PROPORTIONS.items():
        cell, e = dict(zip(CELLS, table)), found[m]
        n = sum(cell[c] for c in below)
        assert e.n == n and (e.value == sum(cell[c] for c in top)/n if n else math.isnan(e.value))
    for m, (a, b) in zip(RATIOS, ((tp, fp), (fn, tn))):
        wanted = math.nan if not tp + fn or not fp + tn or not (a or b) else math.inf if not b else a/(tp + fn)/(b/(fp + tn))
        assert_allclose(found[m].value, wanted)
        assert math.isnan(found[m].low) == math.isnan(found[m].high) == (math.isnan(wanted) or not a or not b)
    for e in found.values(): assert e.reason or not np.isnan(e[:3]).any()


def test_no_estimate_holds_a_number_of_numpy():
    for e in count_measures(*map(np.int64, (30, 3, 1, 35))).values(): assert all(type(v) is float for v in e[:3]) and type(e.n) is int


def test_flags_of_many_kinds_are_read_and_missing_ones_refused():
    for values in ([True, False], [1, 0], [1., 0.], np.array([1, 0], np.uint8), pd.Series([True, False]), pd.array([True, False], "boolean"), np.array([True, False], object)):
        assert as_flags(values).tolist() == [True, False]
    assert as_flags([]).shape == (0,)
    for values in ([1, np.nan], [True, None], pd.array([True, None], "boolean"), ["1", "0"], ["a"], [2, 0], [[1], [0]], [[1], [1, 0]], 1, [-1], [.5]):
        with pytest.raises(StudyError, match="flag|True"): as_flags(values)


# ---------------------------------------------------------------- averages

def one_vs_rest(truth, called, k): return [confusion_counts(truth == i, called == i) for i in range(k)]


@pytest.mark.parametrize("seed", range(8))
def test_averages_are_those_of_sklearn(seed):
    rng = np.random.default_rng(seed)
    k, n = rng.integers(2, 7), rng.integers(3, 60)
    truth, called = rng.integers(0, k, n), rng.integers(0, k, n)
    called = np.where(rng.random(n) < .6, truth, called)
    means, labels = average_measures(one_vs_rest(truth, called, k)), dict(labels=range(k), zero_division=np.nan)
    assert_allclose([means["cohen_kappa"], means["mcc"]], [cohen_kappa_score(truth, called), matthews_corrcoef(truth, called)])
    for ours, theirs in (("ppv", precision_score), ("sensitivity", recall_score), ("f1", f1_score)):
        with np.errstate(invalid="ignore"): assert_allclose(means[f"macro_{ours}"], theirs(truth, called, average="macro", **labels))
        assert_allclose(means[f"micro_{ours}"], theirs(truth, called, average="micro", **labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_allclose(means["balanced_accuracy"], balanced_accuracy_score(truth, called))
    assert_allclose(means["weighted_f1"], f1_score(truth, called, average="weighted", **labels))
    assert_allclose(means["macro_accuracy"], means["identity_mean_ovr_accuracy"])


def test_classes_without_a_value_are_left_out_of_a_mean_and_counted():
    means = average_measures(one_vs_rest(np.array([0, 0, 1, 1]), np.zeros(4, int), 3))
    assert means["macro_ppv"] == .5 and means["macro_sensitivity"] == .5 and means["classes"] == 3 and math.isnan(means["mcc"]) and means["cohen_kappa"] == 0
    assert means["reason"] == "ppv is undefined in 2 of 3 classes; sensitivity is undefined in 1 of 3 classes; f1 is undefined in 1 of 3 classes; all units have one label or one call: no correlation"


def test_one_class_alone_or_nothing_has_no_agreement_and_says_so():
    alone = average_measures(one_vs_rest(np.zeros(3, int), np.zeros(3, int), 2))
    assert alone["multiclass_accuracy"].value == 1 and math.isnan(alone["cohen_kappa"]) and math.isnan(alone["mcc"]) and alone["reason"]
    nothing = average_measures([dict.fromkeys(CELLS, 0)]*2)
    assert math.isnan(nothing["macro_accuracy"]) and math.isnan(nothing["identity_mean_ovr_accuracy"]) and nothing["multiclass_accuracy"].reason == nothing["reason"] == "nothing to count"


BAD_ROWS = [[], [dict(tp=1, fp=0, fn=0, tn=0)], [dict(tp=3, fp=0, fn=0, tn=2), dict(tp=4, fp=0, fn=0, tn=1)], [dict(tp=1, fp=1, fn=1, tn=2), dict(tp=2, fp=0, fn=0, tn=3)],
            [dict(tp=1, fp=0, fn=0, tn=1), dict(tp=1, fp=0, fn=0, tn=2)], [dict(tp=1, fp=1, fn=0, tn=0), dict(tp=1, fp=0, fn=0, tn=1)], [dict(tp=1, fp=0, tn=1)]*2, [(1, 0, 0, 1)]*2, "rows"]


@pytest.mark.parametrize("call", [
    *(lambda a=args: clopper_pearson(*a) for args in ((3, 2), (-1, 2), (.5, 2), (1, 2.5), (np.nan, 2), (1, np.nan), (1, np.inf), ("1", 2), (None, 2), ([1], 2), (1, 2, 0), (1, 2, 1), (1, 2, 95))),
    *(lambda a=args: likelihood_ratio(*a) for args in ((3, 2, 1, 2), (1, 2, 3, 2), (-1, 2, 1, 2), (1, 2, .5, 2), (1, np.nan, 1, 2), (1, 2, 1, 2, "wald"), (1, 2, 1, 2, "score", 1.))),
    *(lambda a=args: count_measures(*a) for args in ((-1, 0, 0, 0), (.5, 0, 0, 0), (1, np.nan, 0, 0), (1, 0, 0, "0"), (1, 1, 1, 1, 0))),
    *(lambda r=rows: average_measures(r) for rows in BAD_ROWS), lambda: average_measures(list(PUBLISHED_COUNTS["test"].values()), 2),
    lambda: best_ratio(3, 2, 1, 2), lambda: confusion_counts([1], [1, 0]), lambda: confusion_counts([1, np.nan], [1, 0]), lambda: published_table(95)])
def test_wrong_counts_are_told_in_one_line(call):
    with pytest.raises(StudyError) as told: call()
    assert "\n" not in str(told.value) and len(str(told.value)) < 250
