"""What must hold for any legal data, whatever the numbers are; and what must be refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose

from thorough import often

from ich_study.agreement import agreement_table, band_table, volume_errors
from ich_study.areas import area_covariance, auc_delong, average_precision, fast_auc, paired_auc
from ich_study.calibration import binary_log_loss, brier, calibration_error, calibration_line, rsna_log_loss
from ich_study.comparison import compare_table, holm, mcnemar_exact, paired_difference
from ich_study.concordance import ccc, correlation, deming, icc, passing_bablok
from ich_study.counts import best_ratio, clopper_pearson, confusion_counts, count_measures, likelihood_ratio
from ich_study.detection import detection_table, fold_table
from ich_study.estimates import Estimate, percentiles
from ich_study.limits import bland_altman, proportional_bias, ratio_limits, repeated_limits, spread_trend
from ich_study.readers import fleiss, majority_vote
from ich_study.resampling import cluster_bootstrap, draw_patients, drawn_estimate, mean_measure, resampled_areas, resampled_sums
from ich_study.schema import LABELS, StudyError, check_table
from ich_study.units import choose_thresholds, specificity_threshold, youden_threshold

try_many = settings(max_examples=often(60), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
try_some = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
pytestmark = pytest.mark.filterwarnings("error")


# ---------------------------------------------------------------- data of any kind

@st.composite
def scored(draw, least=0, most=40, scores=1):
    """Truth, scores with many ties, patients with some rows each; any class, or both, may be absent."""
    n = draw(st.integers(least, most))
    truth = draw(hnp.arrays(bool, n))
    table = draw(hnp.arrays(np.int64, (scores, n), elements=st.integers(0, 20)))/20
    return truth, *table, draw(hnp.arrays(np.int64, n, elements=st.integers(0, 9)))


volumes = st.one_of(st.floats(0, 200, allow_subnormal=False).map(lambda v: round(v, 2)), st.just(0.), st.sampled_from([1., 5., 30.]))


@st.composite
def measured(draw, least=0, most=30, missing=True):
    """Reference and measured volumes (mL), some missing, some zero, a measurement sometimes negative."""
    n = draw(st.integers(least, most))
    truth = np.array(draw(st.lists(volumes, min_size=n, max_size=n)), float)
    error = draw(hnp.arrays(float, n, elements=st.floats(-20, 20, allow_subnormal=False).map(lambda v: round(v, 2))))
    predicted = truth + error
    for column in (truth, predicted) if missing else (): column[draw(hnp.arrays(bool, n, elements=st.integers(0, 7).map(lambda k: k == 0)))] = np.nan
    return truth, predicted


def legal(e, bounds=(-np.inf, np.inf)):
    """What every Estimate keeps to."""
    assert isinstance(e, Estimate) and e.n >= 0 and isinstance(e.reason, str) and "\n" not in e.reason, e
    assert e.reason or np.isfinite(e[:3]).all() or np.isinf(e[:3]).any(), f"a gap without a reason: {e}"
    assert np.isfinite(e.value) or not np.isfinite([e.low, e.high]).all() or np.isinf(e.value), f"limits around nothing: {e}"
    slack = 1e-9*max(1, abs(e.value) if np.isfinite(e.value) else 1)
    if not np.isnan([e.value, e.low]).any(): assert e.low <= e.value + slack, e
    if not np.isnan([e.value, e.high]).any(): assert e.value <= e.high + slack, e
    for x in e[:3]: assert np.isnan(x) or bounds[0] <= x <= bounds[1], e
    assert np.isnan(e.p) or 0 <= e.p <= 1, e
    return e


def same(a, b, **how):
    """Two Estimates with the same numbers."""
    assert_allclose(a[:3], b[:3], **dict(rtol=1e-7, atol=1e-9) | how)
    assert (a.n, a.reason) == (b.n, b.reason) and (np.isnan(a.p) and np.isnan(b.p) or abs(a.p - b.p) < 1e-7), (a, b)


# ---------------------------------------------------------------- areas and draws of patients

@try_many
@given(scored(), st.randoms(use_true_random=False))
def test_an_area_does_not_know_the_order_of_rows_nor_the_names_of_patients(rows, random):
    truth, score, who = rows
    at = np.array(random.sample(range(len(truth)), len(truth)), int)
    names = np.array(random.sample("qwertzuiop", 10))
    for patients, renamed in ((None, None), (who, names[who] if len(who) else who)):
        e = legal(auc_delong(truth, score, patients=patients), (0, 1))
        same(e, auc_delong(truth[at], score[at], patients=None if renamed is None else renamed[at]))
    assert_allclose(average_precision(truth, score), average_precision(truth[at], score[at]))


@try_many
@given(scored())
def test_swapped_truth_or_turned_scores_mirror_the_area(rows):
    truth, score, who = rows
    for patients in (None, who):
        e = auc_delong(truth, score, patients=patients)
        for other in (auc_delong(~truth, score, patients=patients), auc_delong(truth, -score, patients=patients)): same(other, e._replace(value=1 - e.value, low=1 - e.high, high=1 - e.low))
    if truth.any() and not truth.all(): assert_allclose(fast_auc(truth, score), auc_delong(truth, score).value)


@try_many
@given(scored(), st.sampled_from([lambda s: 1000*s, lambda s: s**3, lambda s: np.exp(5*s), lambda s: np.log(s + 1e-3), lambda s: np.where(s > .99, np.inf, s), lambda s: np.where(s < .01, -np.inf, s)]))
def test_only_the_order_of_scores_matters(rows, change):
    truth, score, who = rows
    same(auc_delong(truth, score, patients=who), auc_delong(truth, change(score), patients=who))
    assert_allclose(average_precision(truth, score), average_precision(truth, change(score)))
    if len(who): assert_allclose(resampled_areas(truth, score, *draw_patients(who, 20)), resampled_areas(truth, change(score), *draw_patients(who, 20)))


@try_many
@given(scored(least=1), st.integers(2, 4))
def test_the_same_rows_again_within_patients_are_no_news(rows, times):
    truth, score, who = rows
    again = [np.tile(x, times) for x in rows]
    same(auc_delong(truth, score, patients=who), auc_delong(again[0], again[1], patients=again[2])._replace(n=len(truth)))
    assert_allclose(resampled_areas(truth, score, *draw_patients(who, 30)), resampled_areas(*again[:2], *draw_patients(again[2], 30)))
    assert_allclose(average_precision(truth, score), average_precision(*again[:2]))
    one, two = (cluster_bootstrap(lambda at: t[at].mean(), w, n=50) for t, w in ((truth, who), (again[0], again[2])))
    assert_allclose(one[:3], two[:3])


@try_many
@given(scored(least=1), st.data())
def test_weights_are_repeated_rows(rows, data):
    truth, score, who = rows
    _, code = np.unique(who, return_inverse=True)
    weights = data.draw(hnp.arrays(np.int64, (3, int(code.max()) + 1), elements=st.integers(0, 3)))
    auc, ap = resampled_areas(truth, score, code, weights)
    sums = resampled_sums(score, code, weights)
    for k, times in enumerate(weights[:, code]):
        t, s = np.repeat(truth, times), np.repeat(score, times)
        assert_allclose([auc[k], ap[k], sums[k]], [fast_auc(t, s), average_precision(t, s), s.sum()], atol=1e-12)


@try_many
@given(scored(scores=2))
def test_a_paired_difference_turns_its_sign(rows):
    truth, first, second, who = rows
    for patients in (None, who):
        a, b = paired_auc(truth, first, second, patients=patients), paired_auc(truth, second, first, patients=patients)
        legal(a.difference)
        d = b.difference
        same(a.difference, d._replace(value=-d.value, low=-d.high, high=-d.low))
        assert_allclose([a.variance, a.covariance, a.z], [b.variance, b.covariance, -b.z], atol=1e-12)
        alone = paired_auc(truth, first, first, patients=patients)
        if np.isfinite(alone.difference.value) and alone.variance == 0: assert alone.difference.value == 0 and alone.difference.p == 1


@try_many
@given(scored(least=2))
def test_a_covariance_is_one(rows):
    truth, score, who = rows
    areas, table = area_covariance(truth, [score, -score, score**2], who)
    if np.isfinite(table).all():
        assert_allclose(table, table.T, atol=1e-15)
        assert np.diag(table).min() > -1e-12 and np.linalg.eigvalsh(table).min() > -1e-9
        assert_allclose(table[0, :2].sum(), 0, atol=1e-12)


@try_some
@given(scored(least=1), st.integers(0, 5))
def test_draws_depend_on_patients_and_seed_alone(rows, seed):
    truth, score, who = rows
    code, weights = draw_patients(who, 40, seed)
    at = np.arange(len(who))[::-1]
    turned = draw_patients(who[at], 40, seed)
    assert (turned[1] == weights).all() and (turned[0] == code[at]).all() and (weights.sum(1) == weights.shape[1]).all()
    assert (draw_patients([f"p{w}" for w in who], 40, seed)[1] == weights).all()  # names in the same order
    auc, ap = (drawn_estimate(x, len(who)) for x in resampled_areas(truth, score, *draw_patients(who, 40, seed, observed=True)))
    for e in (auc, ap): legal(e, (0, 1))


def test_other_names_of_patients_move_an_interval_by_no_more_than_another_seed_does():
    """Draws go by the order of names, so another order is another set of draws of the same patients."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(80), 10)
    right = rng.random(800) < rng.beta(4, 1, 80)[who]
    limits = lambda names, seed: cluster_bootstrap(lambda at: right[at].mean(), names[who], seed=seed)[1:3]
    renamed, seeded = (np.array(x) for x in ([limits(rng.permutation(80), 0) for _ in range(6)], [limits(np.arange(80), s) for s in range(6)]))
    width = np.ptp(seeded.mean(0))
    assert np.abs(renamed - seeded.mean(0)).max() < .12*width and np.abs(renamed.mean(0) - seeded.mean(0)).max() < .05*width


@try_many
@given(hnp.arrays(float, st.integers(0, 40), elements=st.one_of(st.floats(-5, 5), st.just(np.nan))), st.floats(.5, .98), st.floats(-3, 3))
def test_percentiles_move_and_mirror_with_their_values(drawn, level, by):
    low, high = percentiles(drawn, level)
    assert np.isnan([low, high]).all() or low <= high
    assert_allclose(percentiles(drawn + by, level), (low + by, high + by), atol=1e-12)
    assert_allclose(percentiles(-drawn, level), (-high, -low), atol=1e-12)
    wide = percentiles(drawn, (1 + level)/2)
    assert np.isnan(low) or wide[0] <= low + 1e-12 and high <= wide[1] + 1e-12


# ---------------------------------------------------------------- counts

cells = st.tuples(*[st.one_of(st.integers(0, 3), st.integers(0, 60))]*4)


@try_many
@given(cells, st.sampled_from([.8, .9, .95]))
def test_swapped_labels_swap_sensitivity_and_specificity(counts, level):
    tp, fp, fn, tn = counts
    one, two = count_measures(tp, fp, fn, tn, level), count_measures(tn, fn, fp, tp, level)
    for a, b in (("sensitivity", "specificity"), ("ppv", "npv"), ("accuracy", "accuracy")):
        for m, k in ((a, b), (b, a)): assert_allclose(legal(one[m], (0, 1))[:3], two[k][:3])
    for m in ("lr_pos", "lr_neg"): legal(one[m], (0, np.inf))
    if 0 < tp and 0 < tn and fp and fn:
        a, b = one["lr_pos"], two["lr_neg"]
        assert_allclose([a.value*b.value, a.low*b.high, a.high*b.low], 1)


@try_many
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.sampled_from(["log", "score"]))
def test_a_ratio_turned_over_turns_its_limits_over(a, more, b, other, method):
    na, nb = a + more, b + other
    one, two, best = likelihood_ratio(a, na, b, nb, method), likelihood_ratio(b, nb, a, na, method), best_ratio(a, na, b, nb)
    for e in (one, two, best): legal(e, (0, np.inf))
    if a and b and np.isfinite([*one[:3], *two[:3]]).all(): assert_allclose([one.value*two.value, one.low*two.high, one.high*two.low], 1, rtol=1e-6)
    assert not np.isnan(best.low) or best.reason


@try_many
@given(st.integers(0, 300), st.integers(0, 300))
def test_an_exact_interval_mirrors_and_nests(hits, more):
    n = hits + more
    e, other, narrow = legal(clopper_pearson(hits, n), (0, 1)), clopper_pearson(more, n), clopper_pearson(hits, n, .8)
    assert_allclose([1 - e.value, 1 - e.high, 1 - e.low], other[:3], atol=1e-12)
    if n: assert e.low <= narrow.low <= narrow.high <= e.high and (e.low == 0) == (hits == 0) and (e.high == 1) == (more == 0)


@try_many
@given(hnp.arrays(bool, (2, 25)))
def test_counts_are_those_of_a_table(both):
    truth, called = both
    c, turned = confusion_counts(truth, called), confusion_counts(~truth, ~called)
    assert sum(c.values()) == 25 and (c["tp"], c["fp"], c["fn"], c["tn"]) == (turned["tn"], turned["fn"], turned["fp"], turned["tp"])
    assert mcnemar_exact(truth, called).p == mcnemar_exact(called, truth).p


# ---------------------------------------------------------------- thresholds

@try_many
@given(scored(least=1))
def test_thresholds_follow_the_order_of_scores(rows):
    truth, score, _ = rows
    for choose in (youden_threshold, specificity_threshold):
        (cut, rule), (moved, again) = choose(truth, score), choose(truth, score/2 + .25)
        assert rule == again and (rule == "fixed" or moved == cut/2 + .25 or np.isinf([cut, moved]).all())
    if rule != "fixed": assert (score[~truth] >= cut).mean() <= .1 + 1e-12


# ---------------------------------------------------------------- calibration

@try_many
@given(scored())
def test_losses_are_the_same_for_swapped_labels(rows):
    truth, score, _ = rows
    score = (score*18 + 1)/20 - .013  # off the edges of bins, which belong to the bin below
    for loss in (brier, binary_log_loss): assert_allclose(loss(truth, score), loss(~truth, 1 - score), atol=1e-12)
    assert_allclose(calibration_error(truth, score), calibration_error(~truth, 1 - score), atol=1e-12)
    assert 0 <= brier(truth, score) <= 1 or not len(truth)


@try_some
@given(scored(), st.randoms(use_true_random=False))
def test_a_calibration_line_turns_with_its_labels(rows, random):
    truth, score, who = rows
    score, at = .05 + .9*score, np.array(random.sample(range(len(truth)), len(truth)), int)
    for patients in (None, who):
        found = {k: legal(e) for k, e in calibration_line(truth, score, patients).items()}
        turned = calibration_line(~truth, 1 - score, patients)
        moved = calibration_line(truth[at], score[at], None if patients is None else np.array([f"{w:03}" for w in patients[at]], dtype=object))
        for k, e in found.items():
            assert_allclose(e[:3], moved[k][:3], rtol=1e-5, atol=1e-6)
            a = turned[k]
            assert_allclose(e[:3], a[:3] if k == "slope" else (-a.value, -a.high, -a.low), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- volumes

PLAIN = {"pearson": correlation, "spearman": lambda x, y: correlation(x, y, "spearman"), "ccc": ccc, "icc": lambda x, y: icc(np.c_[x, y])["ICC(A,1)"],
         "icc_c": lambda x, y: icc(np.c_[x, y])["ICC(C,1)"]}  # numbers without a unit, the same from both sides
LINES = {"deming": deming, "passing_bablok": passing_bablok, "proportional": proportional_bias}


def all_of(x, y):
    """Everything that is said about pairs, as Estimates."""
    found, ratios = bland_altman(x, y), ratio_limits(x, y)
    sides = ("bias", "lower", "upper", "lower_approximate", "upper_approximate")
    return {m: f(x, y) for m, f in PLAIN.items()} | {s: getattr(found, s) for s in sides} | {f"ratio {s}": getattr(ratios, s) for s in sides} | {
        f"{m} {k}": f(x, y)[k] for m, f in LINES.items() for k in ("slope", "intercept")} | {"spread": spread_trend(x, y)}


@try_some
@given(measured())
@example((np.array([0., 1., 0.]), np.array([0., 3., 1.])))  # upright without one of the pairs
def test_whatever_the_volumes_every_estimate_is_legal(both):
    for e in all_of(*both).values(): legal(e)
    told = volume_errors(*both)
    assert told["n_total"] == told["n_used"] + told["n_missing"] == len(both[0]) and (np.isnan(told["mae"]) if not told["n_used"] else told["mae"] >= abs(told["bias"]) - 1e-9)
    assert np.isnan(told["rmse"]) or told["rmse"] >= told["mae"] - 1e-9


@try_some
@given(measured(least=6, missing=False), st.randoms(use_true_random=False))
def test_agreement_does_not_know_the_order_and_counts_what_is_missing(both, random):
    x, y = both
    at = np.array(random.sample(range(len(x)), len(x)), int)
    found, moved = all_of(x, y), all_of(x[at], y[at])
    gaps = all_of(np.r_[x, np.nan, 3.], np.r_[y, 2., np.nan])
    for m, e in found.items():
        assert_allclose(e[:3], moved[m][:3], rtol=1e-6, atol=1e-7, err_msg=m)
        assert_allclose(e[:3], gaps[m][:3], rtol=1e-9, atol=1e-12, err_msg=m)
        assert "2" in gaps[m].reason and e.n == gaps[m].n, (m, gaps[m])


@try_some
@given(measured(least=6, missing=False))
def test_litres_agree_as_millilitres_do(both):
    x, y = both
    assume(np.ptp(x) > 1 and np.ptp(y) > 1 and np.ptp(x - y) > .1)
    ml, litres = all_of(x, y), all_of(x/1000, y/1000)
    for m, e in ml.items():
        unit = 1000 if m in ("bias", "lower", "upper", "lower_approximate", "upper_approximate") or m.endswith("intercept") else 1
        assert_allclose(np.array(litres[m][:3])*unit, e[:3], rtol=1e-5, atol=1e-6, err_msg=m)
    for m, v in volume_errors(x, y).items(): assert_allclose(volume_errors(x/1000, y/1000)[m]*(1000 if m in ("mae", "rmse", "bias", "mae_clipped") else 1), v, rtol=1e-9, atol=1e-12, err_msg=m)


@try_some
@given(measured(least=6, missing=False))
def test_the_two_sides_of_a_pair_can_be_swapped(both):
    x, y = both
    assume(np.ptp(x) > 1 and np.ptp(y) > 1)
    for m, f in PLAIN.items(): assert_allclose(f(x, y)[:3], f(y, x)[:3], rtol=1e-6, atol=1e-8, err_msg=m)
    a, b = bland_altman(x, y), bland_altman(y, x)
    for one, two in ((a.bias, b.bias), (a.lower, b.upper), (a.lower_approximate, b.upper_approximate)): assert_allclose(one[:3], [-two.value, -two.high, -two.low], atol=1e-9)
    p, q = proportional_bias(x, y)["slope"], proportional_bias(y, x)["slope"]
    assert_allclose(p[:3], [-q.value, -q.high, -q.low], atol=1e-8)
    s, t = deming(x, y)["slope"], deming(y, x)["slope"]
    if np.isfinite([s.value, t.value]).all() and abs(t.value) > 1e-6: assert_allclose(s.value, 1/t.value, rtol=1e-5)
    u, v = ratio_limits(x, y).bias, ratio_limits(y, x).bias
    assert_allclose(u[:3], [1/v.value, 1/v.high, 1/v.low])


@try_some
@given(measured(least=4, missing=False), st.data())
def test_limits_of_repeated_series_are_those_of_patients_of_any_name(both, data):
    d = both[1] - both[0]
    who = data.draw(hnp.arrays(np.int64, len(d), elements=st.integers(0, 4)))
    found, named, turned = repeated_limits(who, d), repeated_limits([f"p{9 - w}" for w in who][::-1], d[::-1]), repeated_limits(who, -d)
    for side, other in (("lower", "upper"), ("upper", "lower"), ("bias", "bias")):
        e, o = legal(getattr(found, side)), getattr(turned, other)
        assert_allclose(e[:3], getattr(named, side)[:3], rtol=1e-6, atol=1e-7)
        assert_allclose(e[:3], [-o.value, -o.high, -o.low], rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- readers

answers = hnp.arrays(float, st.tuples(st.integers(0, 12), st.integers(1, 5)), elements=st.sampled_from([0., 1., 1., 2., np.nan]))


@try_many
@given(answers, st.randoms(use_true_random=False))
def test_readers_and_subjects_have_no_order(table, random):
    subjects, readers = (random.sample(range(k), k) for k in table.shape)
    moved = table[subjects][:, readers]
    assert_allclose(majority_vote(moved), majority_vote(table)[subjects])
    one, two, named = (fleiss(t, resamples=50) for t in (table, moved, 7 - 2*table))
    legal(one.kappa, (-1, 1))
    for other in (two, named): assert_allclose([other.kappa.value, other.z, other.agreement], [one.kappa.value, one.z, one.agreement], atol=1e-9)
    assert (one.subjects, one.incomplete) == (two.subjects, two.incomplete) and one.subjects + one.incomplete == len(table)
    if len(table): assert_allclose(fleiss(np.r_[table, table], resamples=50).kappa.value, one.kappa.value, atol=1e-9)


# ---------------------------------------------------------------- comparisons

@try_some
@given(hnp.arrays(float, (2, 12), elements=st.floats(-9, 9).map(lambda v: round(v, 1))), hnp.arrays(np.int64, 12, elements=st.integers(0, 5)))
def test_a_difference_of_two_methods_turns_its_sign(values, who):
    one, two = (paired_difference(mean_measure(v.ravel()), who, resamples=60, swaps=99) for v in (values, values[::-1]))
    a, b = legal(one.difference), two.difference
    assert (one.first, one.second) == (two.second, two.first)
    assert_allclose(a[:3], [-b.value, -b.high, -b.low], atol=1e-9)
    assert np.isnan(a.p) and np.isnan(b.p) or a.p == b.p


@settings(max_examples=8, deadline=None)  # statsmodels collects garbage in each call
@given(hnp.arrays(float, st.integers(0, 12), elements=st.one_of(st.floats(0, 1), st.just(np.nan))), st.randoms(use_true_random=False))
def test_corrected_p_values_keep_their_order_and_their_gaps(p, random):
    out, at = holm(p), np.array(random.sample(range(len(p)), len(p)), int)
    assert_allclose(out[at], holm(p[at]))
    known = ~np.isnan(p)
    assert (np.isnan(out) == ~known).all() and (out[known] >= p[known]).all() and (out[known] <= 1).all()
    order = np.argsort(p[known], kind="stable")
    assert (np.diff(out[known][order]) >= -1e-12).all()
    assert_allclose(holm(np.r_[p, np.nan])[:-1], out)


# ---------------------------------------------------------------- tables

RUN = dict(analysis="made up", model="bhcnet", recipe="plain", variant="base", seed=17, fold=0, split="test", dataset="made up")


@st.composite
def predicted(draw, series=st.integers(1, 2)):
    """Predictions of two labels for some patients with one or two series of up to three images."""
    rows = []
    for p in range(draw(st.integers(3, 8))):
        for s in range(draw(series)):
            for image in (None, *range(draw(st.integers(1, 3)))):
                for label in ("any", "subdural"):
                    rows.append(dict(patient=f"p{p}", series=f"p{p}s{s}", image=None if image is None else f"p{p}s{s}i{image}", subtype=label,
                                     truth=draw(st.booleans()), score=draw(st.integers(0, 20))/20))
    return check_table(pd.DataFrame(rows).assign(**RUN), "predictions")


def cuts(value=.5): return check_table(pd.DataFrame([{k: v for k, v in RUN.items() if k not in ("analysis", "split", "dataset")} | dict(subtype=label, rule="fixed", value=value) for label in LABELS]), "thresholds")
def keyed(table, keys=("subtype", "metric")): return table.set_index(list(keys))[["value", "low", "high"]].astype(float).sort_index()


def equal(a, b, only=None, **how):
    assert list(a.index) == list(b.index)
    if only is not None: a, b = (t[t.index.get_level_values("metric").str.fullmatch(only)] for t in (a, b))
    assert len(a)
    assert_allclose(a.to_numpy(), b.to_numpy(), **dict(rtol=1e-6, atol=1e-9) | how)


@try_some
@given(predicted(), st.sampled_from(["series", "image", "patient"]), st.integers(0, 99))
def test_a_detection_table_does_not_know_the_order_of_rows(rows, unit, seed):
    table = detection_table(rows, cuts(), unit=unit)
    bare = table.value.isna() | table.low.isna() | table.high.isna()
    assert table.reason[bare].notna().all() and (table.low.isna() | table.value.isna() | (table.low <= table.value + 1e-9) & (table.value <= table.high + 1e-9)).all()
    moved = rows.sample(frac=1, random_state=seed)
    named = moved.assign(**{c: "x" + moved[c] for c in ("patient", "series", "image")})
    for other in (moved, named): equal(keyed(table), keyed(detection_table(other, cuts(), unit=unit)))
    equal(keyed(fold_table(rows), ["subtype", "fold", "metric"]), keyed(fold_table(named), ["subtype", "fold", "metric"]))


@try_some
@given(predicted(), st.sampled_from(["series", "image", "patient"]))
def test_a_detection_table_follows_the_order_of_scores_and_their_threshold(rows, unit):
    one, two = (keyed(detection_table(r, c, unit=unit)) for r, c in ((rows, cuts()), (rows.assign(score=rows.score**3), cuts(.125))))
    equal(one, two, "(auc|ap|sensitivity|specificity|ppv|npv|f1|accuracy|lr_pos|lr_neg)(_macro|_micro|_weighted)?|tp|fp|fn|tn", atol=1e-7)


@try_some
@given(predicted(series=st.just(2)))
def test_another_copy_of_every_series_narrows_no_interval(rows):
    again = pd.concat([rows, rows.assign(series=rows.series + "b", image=rows.image + "b")])
    for unit in ("series", "image"):
        one, two = (keyed(detection_table(r, cuts(), unit=unit)) for r in (rows, again))
        equal(one, two, "auc|ap|brier|log_loss|sensitivity|specificity|ppv|npv|f1|accuracy|lr_pos|lr_neg")


@try_some
@given(measured(least=4, most=16), st.integers(1, 2), st.integers(0, 99))
@example((np.array([0, 0, 131.57, 108.61, 37.23, 0, 0]), np.array([1.2, 3.66, 114.68, 109.61, 37.23, 0, -7.32])), 2, 0)  # draws of patients without blood alone
@example((np.array([0., 6, 0, 0]), np.array([-6.87, 6, 8.89, 4])), 1, 0)  # the line is upright without the one patient with blood
@example((np.array([0., 6, 0, 0]), np.array([2.87, 6, 3.5, 3.5])), 1, 0)
def test_an_agreement_table_does_not_know_the_order_of_rows(both, per_patient, seed):
    truth, measured_ml = both
    names = [f"p{k//per_patient}s{k}" for k in range(len(truth))]
    rows = check_table(pd.DataFrame({"patient": [n.split("s")[0] for n in names], "series": names, "truth_ml": truth, "predicted_ml": measured_ml}).assign(**RUN | dict(subtype="any", volume_source="mask")), "volumes")
    table = agreement_table(rows)
    assert table.reason[table.value.isna() | table.low.isna()].notna().all() and (table.low.isna() | table.value.isna() | (table.low <= table.value + 1e-7)).all()
    moved = rows.sample(frac=1, random_state=seed)
    if len(table): equal(keyed(table, ["series_set", "metric"]), keyed(agreement_table(moved.assign(patient="x" + moved.patient)), ["series_set", "metric"]), rtol=1e-5, atol=1e-6)


def test_a_comparison_turns_its_sign_when_the_two_change_places():
    rng = np.random.default_rng(2)
    truth = np.where(np.arange(30) < 12, 0, rng.lognormal(2, 1, 30))
    names = [f"p{k}" for k in range(30)]
    made = {r: (rng.normal(.4 + gap*(truth > 0), .2).clip(0, 1), truth + rng.normal(0, sd, 30)) for r, gap, sd in (("plain", .2, 3), ("paper", .3, 1))}
    def table(first, second):
        predictions = pd.concat([pd.DataFrame(RUN | {"recipe": r, "patient": names, "series": names, "image": None, "subtype": "any", "truth": truth > 0, "score": made[r][0]}) for r in (first, second)])
        volumes = pd.concat([pd.DataFrame(RUN | {"recipe": r, "patient": names, "series": names, "subtype": "any", "volume_source": "mask", "truth_ml": truth, "predicted_ml": made[r][1]}) for r in (first, second)])
        return compare_table(check_table(predictions, "predictions"), check_table(volumes, "volumes")).set_index("metric")
    one, two = table("plain", "paper"), table("paper", "plain")
    assert set(one["first"]) == {"plain"} == set(two["second"]) and len(one) > 3
    assert_allclose(one[["value", "low", "high"]].astype(float), -two[["value", "high", "low"]].astype(float), atol=1e-9)
    assert_allclose(one.p.astype(float), two.p.astype(float))


# ---------------------------------------------------------------- what is refused

NAN, INF = np.nan, np.inf


def predictions(**more):
    rows = [dict(patient=f"p{k}", series=f"p{k}", image=None, subtype="any", truth=k % 2 == 0, score=k/9) for k in range(9)]
    return pd.DataFrame(rows).assign(**RUN | more)


def volumes_table(truth, measured_ml, **more):
    names = [f"p{k}" for k in range(len(truth))]
    return pd.DataFrame({"patient": names, "series": names, "truth_ml": np.array(truth, float), "predicted_ml": np.array(measured_ml, float)}).assign(**RUN | dict(subtype="any", volume_source="mask") | more)


@pytest.mark.parametrize("word,call", [
    ("missing", lambda: auc_delong([1, 0, 1], [.1, NAN, .3])), ("truth holds nan", lambda: auc_delong([1, NAN, 1], [.1, .2, .3])), ("truth holds 2", lambda: auc_delong([2, 0, 1], [.1, .2, .3])),
    ("truth holds 'yes'", lambda: auc_delong(["yes", "no"], [.1, .2])), ("dimensions", lambda: auc_delong([[1, 0]], [[.1, .2]])), ("None", lambda: auc_delong([True, None], [.1, .2])), ("numbers", lambda: auc_delong([1, 0], ["low", "high"])),
    ("no patient", lambda: auc_delong([1, 0, 1], [1, 2, 3], patients=[1, NAN, 2])), ("no patient", lambda: auc_delong([1, 0, 1], [1, 2, 3], patients=["a", None, "b"])), ("2", lambda: auc_delong([1, 0, 1], [.1, .2])), ("patients", lambda: auc_delong([1, 0, 1], [1, 2, 3], patients=[1, 2])),
    ("coverage", lambda: auc_delong([1, 0], [1, 2], 95)), ("coverage", lambda: auc_delong([1, 0], [1, 2], NAN)), ("2", lambda: paired_auc([1, 0], [1, 2], [1])), ("missing", lambda: average_precision([1, 0], [NAN, 1])),
    ("missing", lambda: fast_auc([1, 0], [NAN, 1])), ("patient", lambda: draw_patients([])), ("resamples", lambda: draw_patients([1], 0)), ("whole", lambda: draw_patients([1], 1.5)), ("no patient", lambda: draw_patients([1., NAN])), ("no patient", lambda: draw_patients(["a", None])), ("no patient", lambda: draw_patients(pd.array(["a", None], "string"))),
    ("belong together", lambda: resampled_sums([1, 2, 3], [0, 1], np.ones((2, 2)))), ("belong together", lambda: resampled_sums([1, 2], [0, 5], np.ones((2, 2)))), ("whole", lambda: resampled_areas([1, 0], [1, 2], [0, 1], [[.5, .5]])),
    ("whole", lambda: resampled_areas([1, 0], [1, 2], [0, 1], [[NAN, 1]])), ("truth holds 2", lambda: resampled_areas([2], [1], [0], [[1]])), ("yes and no", lambda: youden_threshold([2, 0], [.1, .3])), ("less than zero", lambda: resampled_areas([1], [1], [0], [[-1]])),
    ("group", lambda: resampled_areas([1], [1], [2], [[1]])), ("shapes", lambda: resampled_areas([1], [1, 2], [0], [[1]])), ("missing", lambda: resampled_areas([1], [NAN], [0], [[1]])), ("coverage", lambda: percentiles([1, 2], 2)),
    ("3 of 2", lambda: clopper_pearson(3, 2)), ("0.5", lambda: clopper_pearson(.5, 2)), ("-1", lambda: clopper_pearson(-1, 2)), ("nan", lambda: clopper_pearson(NAN, 2)), ("inf", lambda: clopper_pearson(1, INF)), ("coverage", lambda: clopper_pearson(1, 2, 1)),
    ("truths", lambda: confusion_counts([1], [1, 0])), ("nan", lambda: confusion_counts([1, NAN], [1, 0])), ("called holds 2", lambda: confusion_counts([1, 0], [2, 0])), ("proportions", lambda: likelihood_ratio(3, 2, 1, 2)),
    ("wald", lambda: likelihood_ratio(1, 2, 1, 2, "wald")), ("tp", lambda: count_measures(-1, 1, 1, 1)), ("0 to 1", lambda: brier([1, 0], [1.2, 0])), ("missing", lambda: brier([1, 0], [NAN, 0])), ("one score", lambda: brier([1, 0], [.1])),
    ("infinite", lambda: binary_log_loss([1, 0], [INF, 0])), ("bins", lambda: calibration_error([1], [.5], 0)), ("patient", lambda: calibration_line([1, 0], [.1, .2], [1])), ("columns", lambda: rsna_log_loss([[1, 0]], [[.1, .2]])),
    ("one length", lambda: correlation([1, 2, 3], [1, 2])), ("infinite", lambda: correlation([1, 2, INF], [1, 2, 3])), ("kendall", lambda: correlation([1, 2, 3], [1, 2, 3], "kendall")), ("numbers", lambda: correlation(["a", "b"], [1, 2])),
    ("raters", lambda: icc([1, 2, 3])), ("infinite", lambda: icc([[1, 2], [2, INF], [3, 4]])), ("coverage", lambda: ccc([1, 2, 3, 4], [1, 2, 3, 5], 1.5)), ("ratio", lambda: deming([1, 2, 3], [1, 2, 4], 0)), ("one length", lambda: passing_bablok([1, 2], [1])),
    ("infinite", lambda: bland_altman([1, 2, INF], [1, 2, 3])), ("one length", lambda: bland_altman([1, 2], [1])), ("coverage", lambda: bland_altman([1, 2, 3], [1, 2, 4], 0)), ("subject", lambda: repeated_limits([1, 2], [1.])),
    ("infinite", lambda: repeated_limits([1, 2], [1., INF])), ("label", lambda: repeated_limits([1, None], [1., 2.])), ("-1 mL", lambda: volume_errors([-1, 2], [1, 2])), ("infinite", lambda: volume_errors([1, INF], [1, 2])),
    ("numbers", lambda: majority_vote([["a", "b"]])), ("shape", lambda: majority_vote([1, 0])), ("infinite", lambda: majority_vote([[1, INF]])), ("resamples", lambda: fleiss([[1, 0]], resamples=0)), ("coverage", lambda: fleiss([[1, 0], [1, 1]], level=95)),
    ("one score", lambda: youden_threshold([1, 0], [.1])), ("missing", lambda: youden_threshold([1, 0], [.1, NAN])), ("specificity", lambda: specificity_threshold([1, 0], [.1, .2], 90)), ("same units", lambda: mcnemar_exact([1], [1, 0])),
    ("nan", lambda: mcnemar_exact([1, NAN], [1, 0])), ("1.2", lambda: holm([.1, 1.2])), ("inf", lambda: holm([INF]))])
def test_wrong_numbers_are_refused_by_name(word, call):
    with pytest.raises(StudyError, match=word) as told: call()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("word,call", [
    ("told apart", lambda: detection_table(predictions(), cuts(), by=("modell",))), ("infinite", lambda: band_table(volumes_table([1, 2, 3], [1, 2, INF]))), ("-1 mL", lambda: band_table(volumes_table([-1, 2, 3], [1, 2, 3]))),
    ("voxel", lambda: detection_table(predictions(), cuts(), unit="voxel")), ("0 to 1", lambda: detection_table(predictions(score=2.), cuts())), ("0 to 1", lambda: detection_table(predictions(score=-.1), cuts())),
    ("0 to 1", lambda: detection_table(predictions(score=INF), cuts())), ("repeat", lambda: detection_table(pd.concat([predictions()]*2), cuts())), ("split", lambda: detection_table(pd.concat([predictions(), predictions(split="validation")]), cuts())),
    ("truth", lambda: detection_table(predictions().drop(columns="truth"), cuts())), ("stroke", lambda: detection_table(predictions(subtype="stroke"), cuts())), ("two thresholds", lambda: detection_table(predictions(), pd.concat([cuts(), cuts().assign(rule="other")]))),
    ("stroke", lambda: detection_table(predictions(), cuts(), accepted=("stroke",))), ("patient", lambda: detection_table(predictions(patient=None), cuts())), ("0 to 1", lambda: fold_table(predictions(score=2.))),
    ("truth_ml", lambda: agreement_table(volumes_table([1, 2], [1, 2]).drop(columns="truth_ml"))), ("repeat", lambda: agreement_table(pd.concat([volumes_table([1, 2], [1, 2])]*2))), ("-1 mL", lambda: agreement_table(volumes_table([-1, 2, 3], [1, 2, 3]))),
    ("infinite", lambda: agreement_table(volumes_table([1, 2, 3], [1, 2, INF]))), ("split", lambda: agreement_table(pd.concat([volumes_table([1, 2], [1, 2]), volumes_table([1, 2], [1, 2], split="external")]))),
    ("fold", lambda: compare_table(predictions(), volumes_table([1, 2], [1, 2]), over="fold")), ("best", lambda: choose_thresholds(predictions(split="validation"), "best")), ("validation", lambda: choose_thresholds(predictions()))])
def test_wrong_tables_are_refused_by_name(word, call):
    with pytest.raises(StudyError, match=word) as told: call()
    assert "\n" not in str(told.value)
