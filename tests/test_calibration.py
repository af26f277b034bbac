"""Calibration: against scikit-learn, a fit by another optimiser, statsmodels' robust variance, plain resampling, and at every edge."""
import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.testing import assert_allclose
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from ich_study.calibration import (EPS, RSNA_WEIGHTS, apply_recalibration, binary_log_loss, brier, calibration_error, calibration_line, calibration_measures,
                                   fit_recalibration, reliability, rsna_log_loss, rsna_losses)
from ich_study.counts import clopper_pearson
from ich_study.estimates import FEW_DEFINED, Estimate, percentiles
from ich_study.resampling import NO_WIDTH, draw_patients, drawn_rows
from ich_study.schema import LABELS, StudyError

LINE = ("intercept", "slope", "citl")
# sixteen rows on bin borders; expected values by two tools (statsmodels/scikit-learn and R's glm/cut)
Y = np.array([0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 0])
P = np.array([.02, .1, .1, .2, .25, .3, .3, .4, .6, .7, .7, .8, .9, .9, .97, .05])


@pytest.fixture(autouse=True)
def silent():
    """No warning leaks, PerfectSeparationWarning among them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def made_up(n=300, seed=0, slope=1., shift=0., patients=None):
    """Truth, scores and patients; scores are calibrated when slope is 1 and shift 0."""
    rng = np.random.default_rng(seed)
    code = np.arange(n) if patients is None else rng.permutation(np.arange(n) % patients)
    x = rng.normal(-.5, 1.3, n) + (0 if patients is None else rng.normal(0, .7, patients)[code])
    return rng.random(n) < expit(shift + slope*x), expit(x), code


# ---------------------------------------------------------------- values

def test_sixteen_rows_have_the_values_of_two_other_tools():
    line = calibration_line(Y, P)
    found = [brier(Y, P), *calibration_error(Y, P), binary_log_loss(Y, P), *(line[k].value for k in LINE)]
    assert_allclose(found, [.20414375, .228125, .8, .5868310773, .1871100715, .6379434222, .3086765782], atol=1e-7)


def test_rsna_loss_of_three_images():
    truth = [[1, 0, 1, 0, 0, 0], [0]*6, [1, 0, 0, 0, 1, 1]]
    score = [[.9, .1, .8, .05, .1, .2], [.1, .02, .05, .02, .05, .1], [.7, .1, .2, .1, .6, .4]]
    assert_allclose(rsna_log_loss(truth, score), .1882108017227794, rtol=1e-9)
    assert LABELS[0] == "any" and RSNA_WEIGHTS == (2, 1, 1, 1, 1, 1)
    assert_allclose(rsna_losses(truth, score), [rsna_log_loss([t], [s]) for t, s in zip(truth, score)]); assert rsna_losses(np.zeros((0, 6)), np.zeros((0, 6))).shape == (0,)
    swapped = [[r[5], *r[1:5], r[0]] for r in score]
    assert rsna_log_loss(truth, swapped) > .3


@pytest.mark.parametrize("seed", range(5))
def test_losses_are_those_of_sklearn(seed):
    truth, score, _ = made_up(seed=seed)
    assert_allclose([brier(truth, score), binary_log_loss(truth, score)], [brier_score_loss(truth, score), log_loss(truth, score)])
    six, flags = np.random.default_rng(seed).random((40, 6)), np.random.default_rng(seed + 9).random((40, 6)) < .2
    assert_allclose(rsna_log_loss(flags, six), log_loss(flags.ravel(), six.ravel(), sample_weight=np.tile(RSNA_WEIGHTS, 40)))


def test_a_sure_and_wrong_score_costs_a_finite_loss():
    assert_allclose(binary_log_loss([1], [0]), -np.log(EPS)); assert_allclose(binary_log_loss([0], [1]), -np.log(EPS), rtol=1e-4)
    assert binary_log_loss([1, 0], [1, 0]) < 1e-14 and brier([1, 0], [0, 1]) == 1


@pytest.mark.parametrize("bins", [1, 2, 5, 10, 15, 20])
@pytest.mark.parametrize("seed", range(3))
def test_bins_are_those_of_sklearn(bins, seed):
    truth, score, _ = made_up(120, seed)
    score = np.round(score, 2 if seed else 1)
    score[:4] = 0, 1, .5, .3
    share, mean = calibration_curve(truth, score, n_bins=bins)
    table = reliability(truth, score, bins)
    assert_allclose(table[["share", "score"]], np.c_[share, mean])
    assert table.n.sum() == 120 and (table.above.le(table.score + 1e-12) & table.score.le(table.to + 1e-12)).all()
    gap = np.abs(share - mean)
    assert_allclose(calibration_error(truth, score, bins), [gap@table.n/120, gap.max()])
    for r in table.itertuples(): assert_allclose((r.low, r.high), clopper_pearson(round(r.share*r.n), r.n)[1:3])


def test_an_edge_belongs_to_the_bin_below_and_zero_to_the_first():
    edges = np.array([0, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1])
    table = reliability(np.zeros(11), edges)
    assert table.n.tolist() == [2] + [1]*9


# ---------------------------------------------------------------- the line

def by_scipy(truth, score):
    """Intercept, slope and citl from the likelihood itself, by optimisers that know nothing of logistic regression."""
    x = logit(np.clip(score, 1e-15, 1 - 1e-15))
    loss = lambda eta: np.sum(np.logaddexp(0, eta) - truth*eta)
    line = minimize(lambda b: loss(b[0] + b[1]*x), [0, 1], method="Nelder-Mead", options=dict(xatol=1e-10, fatol=1e-13, maxiter=10_000)).x
    return [*line, minimize_scalar(lambda a: loss(a + x), bracket=(-1, 1), tol=1e-12).x]


@pytest.mark.parametrize("seed,slope,shift", [(0, 1, 0), (1, .4, -.8), (2, 2, 1), (3, -.3, 0)])
def test_line_is_the_maximum_of_the_likelihood(seed, slope, shift):
    truth, score, _ = made_up(80, seed, slope, shift)
    line = calibration_line(truth, score)
    assert_allclose([line[k].value for k in LINE], by_scipy(truth, score), atol=2e-6)
    x = logit(score)
    mu = expit(line["intercept"].value + line["slope"].value*x)
    information = np.linalg.inv(np.array([[np.sum(mu*(1 - mu)*x**i*x**j) for j in (0, 1)] for i in (0, 1)]))
    for i, k in enumerate(("intercept", "slope")):
        se = np.sqrt(information[i, i])
        assert_allclose(line[k][1:3], line[k].value + np.array([-1, 1])*norm.ppf(.975)*se, rtol=1e-6)
        assert_allclose(line[k].p, 2*norm.sf(abs(line[k].value - i)/se), rtol=1e-5)
        assert line[k].n == 80 and line[k].method == "Wald"


@pytest.mark.parametrize("seed", range(3))
def test_robust_intervals_are_those_of_statsmodels_where_it_has_them(seed):
    truth, score, code = made_up(200, seed, .7, .2, patients=25)
    line = calibration_line(truth, score, code)
    robust = dict(cov_type="cluster", cov_kwds=dict(groups=code), tol=1e-12)
    y, x = truth.astype(float), logit(score)
    fit = sm.GLM(y, np.c_[np.ones(200), x], family=sm.families.Binomial()).fit(**robust)
    large = sm.GLM(y, np.ones(200), family=sm.families.Binomial(), offset=x).fit(**robust)
    assert_allclose([line[k][1:3] for k in LINE], np.vstack([fit.conf_int(), large.conf_int()]), rtol=1e-6)
    assert "25 patients" in line["slope"].method
    names = pd.Series([f"p{c}" for c in code])
    assert calibration_line(truth, score, names) == line


def test_one_row_per_patient_is_the_plain_line():
    truth, score, code = made_up(60)
    assert calibration_line(truth, score, code) == calibration_line(truth, score)


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = np.zeros(3)
    for seed in range(200):
        truth, score, _ = made_up(200, seed, .6, .5)
        line = calibration_line(truth, score)
        inside += [line["intercept"].low <= .5 <= line["intercept"].high, line["slope"].low <= .6 <= line["slope"].high, 0]
    assert (inside[:2]/200 > .9).all()


@pytest.mark.parametrize("truth,score,words", [
    ([], [], "nothing"), ([1], [.4], "one class"), ([0, 0, 0], [.1, .5, .9], "one class"), ([1, 1], [.2, .4], "one class"), ([0, 1], [.3, .3], "equal"),
    ([0, 1, 1], [0, 0, 1e-16], "equal"), ([0, 1], [.1, .9], "separate"), ([0, 0, 1], [.1, .2, .2], "separate"), ([1, 1, 0, 0], [.1, .2, .3, .4], "separate"), ([0, 0, 1, 1], [0, 0, 1, 1], "separate")])
def test_no_line_has_a_reason(truth, score, words):
    line = calibration_line(truth, score)
    for k in ("intercept", "slope"): assert np.isnan(line[k][:3]).all() and words in line[k].reason and line[k].n == len(truth)
    assert np.isfinite(line["citl"].value) == (words in ("equal", "separate") and score != [0, 0, 1, 1]) and (line["citl"].reason or np.isfinite(line["citl"].low))
    assert np.isnan(fit_recalibration(truth, score)).all()


def test_scores_of_exactly_0_and_1_leave_finite_numbers_or_reasons():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = rng.integers(1, 14)
        score = np.where(rng.random(n) < .4, rng.integers(0, 2, n), rng.random(n))
        line = calibration_line(rng.integers(0, 2, n), score, rng.integers(0, n, n) if rng.random() < .5 else None)
        for e in line.values():
            assert isinstance(e, Estimate) and (e.reason or np.isfinite(e[:3]).all()) and (np.isnan(e.low) or e.low <= e.value <= e.high)


def test_float32_scores_that_are_rounded_to_1_are_read():
    score = expit(np.array([-20, -1, 0, 1, 20, 30], np.float32))
    assert score[-1] == 1
    assert all(np.isfinite(e.value) for e in calibration_line([0, 1, 0, 1, 0, 1], score).values())


# ---------------------------------------------------------------- recalibration

def test_recalibration_mends_what_it_is_fitted_on_and_keeps_the_order():
    truth, score, _ = made_up(400, 5, .5, -1)
    line = fit_recalibration(truth, score)
    after = apply_recalibration(score, line)
    assert_allclose([e.value for e in calibration_line(truth, after).values()], [0, 1, 0], atol=1e-6)
    assert_allclose(after.mean(), truth.mean()); assert_allclose(roc_auc_score(truth, after), roc_auc_score(truth, score))
    assert binary_log_loss(truth, after) < binary_log_loss(truth, score) and brier(truth, after) < brier(truth, score)


def test_recalibration_of_validation_helps_the_test():
    held, test = made_up(600, 1, .5, -1), made_up(600, 2, .5, -1)
    after = apply_recalibration(test[1], fit_recalibration(*held[:2]))
    assert calibration_error(test[0], after)[0] < .5*calibration_error(test[0], test[1])[0] and binary_log_loss(test[0], after) < binary_log_loss(test[0], test[1])


def test_no_line_no_scores():
    assert np.isnan(apply_recalibration([0, .5, 1], fit_recalibration([0, 1], [.1, .9]))).all()
    assert_allclose(apply_recalibration([0, .5, 1], (0, 1)), [0, .5, 1], atol=1e-14)
    assert len(apply_recalibration([], (0, 1))) == 0


# ---------------------------------------------------------------- resampling

def draws(patients, n=400, seed=0): return draw_patients(np.arange(patients), n, seed)[1]


def test_resampled_limits_are_those_of_gathered_rows():
    truth, score, code = made_up(90, 4, .6, .3, patients=12)
    w = draws(12, 150)
    found = calibration_measures(truth, score, code, w)
    rows = list(drawn_rows(code, w))
    for m, f in (("brier", brier), ("log_loss", binary_log_loss), ("ece", lambda t, s: calibration_error(t, s)[0])):
        low, high = percentiles([f(truth[at], score[at]) for at in rows])
        assert_allclose(found[m].value, f(truth, score)); assert_allclose(found[m].high, high)
        assert found[m].low <= found[m].value <= found[m].high and found[m].n == 90 and "150 draws" in found[m].method
        if m != "ece": assert_allclose(found[m].low, low)
    assert {k: found[k] for k in LINE} == calibration_line(truth, score, code) and list(found) == ["brier", "log_loss", "ece", *LINE]


def test_lower_limit_of_the_calibration_error_is_its_distance_from_the_draws():
    truth, score, code = made_up(500, 4, .3, 1)
    w = draws(500)
    place = np.ceil(score*10).astype(int) - 1
    gap = np.stack([np.where(place == k, score - truth, 0) for k in range(10)], axis=1)
    moved = np.abs(w@gap/500 - gap.mean(0)).sum(1)
    found = calibration_measures(truth, score, code, w)["ece"]
    assert_allclose(found.low, found.value - percentiles(moved)[1]); assert found.low > 0


@pytest.mark.parametrize("slope,shift", [(1, 0), (.6, 0), (1, 1)])
@pytest.mark.parametrize("n", [60, 300])
def test_limits_of_the_calibration_error_hold_the_true_one(slope, shift, n):
    x = np.random.default_rng(99).normal(-.5, 1.3, 1_000_000)
    true = np.abs(np.bincount(np.ceil(expit(x)*10).astype(int), expit(shift + slope*x) - expit(x))).sum()/len(x)
    w = draws(n, 200)
    found = [calibration_measures(*made_up(n, seed, slope, shift), w)["ece"] for seed in range(150)]
    assert np.mean([e.low <= true + 1e-9 and true <= e.high for e in found]) > .9


def test_limits_are_deterministic_and_widen_with_the_level():
    truth, score, code = made_up(90, 4, patients=12)
    w = draws(12)
    wide, narrow = (calibration_measures(truth, score, code, w, level) for level in (.95, .5))
    assert calibration_measures(truth, score, code, w) == wide
    for m in wide: assert wide[m].low <= narrow[m].low <= narrow[m].high <= wide[m].high


def test_patients_twice_bring_no_news():
    truth, score, code = made_up(150, 6, .6, .3)
    one, two = calibration_measures(truth, score, code, draws(150)), calibration_measures(*(np.tile(v, 2) for v in (truth, score, code)), draws(150))
    for m in one: assert two[m].high - two[m].low > .9*(one[m].high - one[m].low), m


def test_gaps_of_resampling_have_reasons():
    alone = calibration_measures(Y, P, np.zeros(16, int), np.ones((9, 1), int))
    assert all(alone[m].low == alone[m].value == alone[m].high and alone[m].reason == NO_WIDTH for m in ("brier", "log_loss", "ece"))
    assert all(np.isfinite(alone[m].value) and np.isnan(alone[m].low) and alone[m].reason for m in LINE)
    absent = calibration_measures(Y, P, np.arange(16) % 2, np.tile([0, 0, 3], (9, 1)))
    assert all(absent[m].reason == FEW_DEFINED and np.isnan(absent[m].high) for m in ("brier", "log_loss", "ece"))
    assert calibration_measures(Y, P, np.arange(16), np.ones((0, 16), int))["brier"].reason == FEW_DEFINED
    nothing = calibration_measures([], [], np.zeros(0, int), np.ones((9, 3), int))
    assert all(np.isnan(e[:3]).all() and e.reason and e.n == 0 for e in nothing.values())
    one_class = calibration_measures(np.ones(16), P, np.arange(16), draws(16))
    assert all(one_class[m].low < one_class[m].high for m in ("brier", "log_loss", "ece")) and one_class["citl"].reason


def test_a_patient_of_another_label_may_have_no_rows():
    truth, score, code = made_up(60, 2, patients=10)
    spread, w = code*2, draws(10)
    wide = np.zeros((len(w), 20), int); wide[:, ::2] = w
    sparse, dense = calibration_measures(truth, score, spread, wide), calibration_measures(truth, score, code, w)
    for m in dense: assert_allclose(sparse[m][:4], dense[m][:4])


# ---------------------------------------------------------------- what is refused

WRONG = {"outside": ([1, 0], [1.2, .5]), "negative": ([1, 0], [-.1, .5]), "nan": ([1, 0], [np.nan, .5]), "infinite": ([1, 0], [np.inf, .5]), "text": ([1, 0], ["a", "b"]), "none": ([1, 0], [None, .5]),
         "short": ([1, 0], [.5]), "matrix": ([1, 0], [[.5, .5]]), "truth missing": ([1, np.nan], [.5, .5]), "truth of two": ([1, 2], [.5, .5]), "truth text": (["1", "0"], [.5, .5])}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("call", [brier, binary_log_loss, calibration_error, reliability, calibration_line, fit_recalibration,
                                  lambda t, s: calibration_measures(t, s, np.arange(2), np.ones((3, 2), int)), lambda t, s: rsna_log_loss([t]*6, [s]*6)])
def test_wrong_scores_and_truths_are_told_in_one_line(name, call):
    with pytest.raises(StudyError) as told: call(*WRONG[name])
    assert "\n" not in str(told.value) and len(str(told.value)) < 250


@pytest.mark.parametrize("call", [
    lambda: calibration_error(Y, P, 0), lambda: calibration_error(Y, P, 2.5), lambda: reliability(Y, P, "ten"), lambda: reliability(Y, P, level=95), lambda: calibration_line(Y, P, level=0),
    lambda: calibration_line(Y, P, np.arange(3)), lambda: calibration_line(Y, P, [None]*16), lambda: rsna_log_loss(np.zeros((3, 5)), np.zeros((3, 5))), lambda: rsna_log_loss(np.zeros(6), np.zeros(6)), lambda: rsna_log_loss([[0]*6, [0]], [[0]*6, [0]]),
    lambda: apply_recalibration([1.5], (0, 1)), lambda: apply_recalibration(P, 1), lambda: apply_recalibration([np.nan], (0, 1)),
    *(lambda c=code, w=weights: calibration_measures(Y, P, c, w) for code, weights in (
        (np.arange(16), np.ones((3, 15))), (np.arange(15), np.ones((3, 16))), (np.arange(16) - 1, np.ones((3, 16))), (np.arange(16.), np.ones((3, 16))), (np.arange(16), np.ones(16)),
        (np.arange(16), -np.ones((3, 16))), (np.arange(16), np.full((3, 16), np.nan)), (list("abcdefghijklmnop"), np.ones((3, 16)))))])
def test_wrong_calls_are_told_in_one_line(call):
    with pytest.raises(StudyError) as told: call()
    assert "\n" not in str(told.value) and len(str(told.value)) < 250
