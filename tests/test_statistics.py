"""Areas, paired comparisons and the statistics tables, on a few studies and on many made-up ones; golden cases are in `test_golden`, single rungs in tests of their names."""
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from ich_study.agreement import agreement_table, band_table, call_table, volume_errors
from ich_study.areas import auc_delong, average_precision, fast_auc, paired_auc
from ich_study.comparison import compare_table, holm, mcnemar_exact, paired_difference
from ich_study.counts import PROPORTIONS
from ich_study.detection import detection_table, fold_areas, fold_table, multilabel_measures
from ich_study.resampling import area_measure, mean_measure
from ich_study.schema import LABELS, StudyError, check_table
from ich_study.units import apply_thresholds, choose_thresholds, unit_rows

RUN = dict(analysis="demo", model="bhcnet", recipe="plain", variant="base", seed=17, fold=0, split="test", dataset="demo")


# ---------------------------------------------------------------- tables made from a few numbers

def predictions_of(truth, score, subtype="any", **more):
    """A predictions table with one series per patient."""
    names = [f"s{i}" for i in range(len(truth))]
    table = pd.DataFrame({"patient": names, "series": names, "truth": pd.array(truth, "boolean"), "score": np.asarray(score, float)})
    return check_table(table.assign(**(RUN | dict(image=pd.NA, subtype=subtype) | more)), "predictions")


def volumes_of(truth, predicted, **more):
    """A volumes table with one series per patient."""
    names = [f"s{i}" for i in range(len(truth))]
    table = pd.DataFrame({"patient": names, "series": names, "truth_ml": numbers(truth), "predicted_ml": numbers(predicted)})
    return check_table(table.assign(**(RUN | dict(subtype="any", volume_source="phantom") | more)), "volumes")


def no_thresholds(): return choose_thresholds(predictions_of([0, 1], [.2, .8], split="validation")).iloc[:0]
def numbers(values): return np.array([np.nan if v is None else v for v in values], float)


def pick(table, metric, column="value", **where):
    """The one row of a statistics table that is meant."""
    found = table[(table.metric == metric) & np.logical_and.reduce([np.ones(len(table), bool)] + [(table[k] == v).to_numpy() for k, v in where.items()])]
    assert len(found) == 1, (metric, where, len(found))
    return found[column].iloc[0]


# ---------------------------------------------------------------- definitions, computed another way

@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(11)
    truth = rng.random(90) < .35
    return truth, np.round(np.clip(rng.normal(.4 + .2*truth, .2), 0, 1), 1)  # one decimal: many ties


def test_delong_is_the_variance_of_placements(scored):
    truth, score = scored
    wins = (score[truth][:, None] > score[~truth]) + .5*(score[truth][:, None] == score[~truth])
    se = np.sqrt(wins.mean(1).var(ddof=1)/truth.sum() + wins.mean(0).var(ddof=1)/(~truth).sum())
    assert_allclose(auc_delong(truth, score)[:3], wins.mean() + np.array([0, -1, 1])*stats.norm.ppf(.975)*se)
    assert_allclose(fast_auc(truth, score), wins.mean())


def test_area_keeps_its_meaning_under_any_monotone_map(scored):
    truth, score = scored
    assert_allclose(auc_delong(truth, score**3)[:3], auc_delong(truth, score)[:3])
    assert_allclose(auc_delong(~truth, score)[0], 1 - auc_delong(truth, score)[0])


def test_average_precision_is_the_step_sum(scored):
    truth, score = scored
    total, before = 0, 0
    for cut in sorted(set(score), reverse=True):
        called = score >= cut
        recall = (truth & called).sum()/truth.sum()
        total, before = total + (recall - before)*(truth & called).sum()/called.sum(), recall
    assert_allclose(average_precision(truth, score), total)


def test_paired_difference_of_an_independent_pair_adds_variances():
    rng = np.random.default_rng(3)
    truth = np.arange(4000) < 2000
    a, b = rng.normal(truth, 1), rng.normal(.5*truth, 1)
    half = [(auc_delong(truth, s)[2] - auc_delong(truth, s)[1])/2 for s in (a, b)]
    found = paired_auc(truth, a, b).difference
    assert_allclose((found.high - found.low)/2, np.hypot(*half), rtol=.05)
    assert_allclose(found.p, 2*stats.norm.sf(found.value/((found.high - found.low)/2/stats.norm.ppf(.975))), rtol=1e-6)


def test_exact_mcnemar_is_a_sign_test():
    a, b = np.repeat([1, 0, 1, 0], [4, 7, 9, 3]).astype(bool), np.repeat([1, 1, 0, 0], [4, 7, 9, 3]).astype(bool)
    found = mcnemar_exact(a, b)
    assert (found.only_first, found.only_second) == (9, 7)
    assert_allclose(found.p, stats.binomtest(7, 16).pvalue)


def test_holm_leaves_missing_tests_out():
    assert_allclose(holm([.01, np.nan, .04, .03, .005]), [.03, np.nan, .06, .06, .02])


# ---------------------------------------------------------------- tables: nothing raises on legal data, every gap says why

def made_up(patients=24, series=1, seed=0, **more):
    """Predictions of all labels with intraventricular blood nowhere and epidural blood in one patient."""
    rng, rows = np.random.default_rng(seed), []
    for p in range(patients):
        for s in range(series):
            for label in LABELS:
                truth = {"any": p % 2 == 0, "epidural": p == 0, "intraventricular": False}.get(label, p % 4 == 0)
                rows += [dict(patient=f"p{p}", series=f"p{p}s{s}", image=None if i is None else f"p{p}s{s}i{i}", subtype=label, truth=truth,
                              score=float(np.clip(rng.normal(.3 + .3*truth, .15), 0, 1))) for i in (None, 0, 1)]
    return check_table(pd.DataFrame(rows).assign(**(RUN | more)), "predictions")


def held_out(): return choose_thresholds(made_up(seed=1, split="validation"))


@pytest.mark.parametrize("unit", ["series", "image", "patient"])
def test_detection_table_is_complete_and_explains_its_gaps(unit):
    table = check_table(detection_table(made_up(), held_out(), unit=unit), "statistics")
    assert set(table.subtype) == {*LABELS, "all subtypes", "all labels"} and {*PROPORTIONS, "f1", "auc", "ap", "brier"} <= set(table.metric)
    assert table.reason[table.value.isna()].notna().all()
    assert (table.low.isna() | ((table.low <= table.value + 1e-9) & (table.value <= table.high + 1e-9))).all()
    assert np.isnan(pick(table, "auc", subtype="intraventricular")) and np.isnan(pick(table, "ap", subtype="intraventricular"))
    assert pick(table, "auc_macro", "n") == 4 and pick(table, "auc", "n", subtype="any") == (48 if unit == "image" else 24)


def test_every_missing_interval_says_why():
    for table in (detection_table(made_up(), held_out()), fold_table(made_up()), agreement_table(volumes_of([0, 1, 2, 3, 5, 40], [0, 1, 2, 3, 5, 40])),
                  agreement_table(volumes_of([0, 3], [1, 2])), band_table(volumes_of([0, 3, 70], [1, 2, 60])), compare_table(*recipes())):
        assert len(table) and table.reason[table.low.isna() | table.value.isna()].notna().all(), table[table.low.isna() & table.reason.isna()]


def test_no_thresholds_no_calls():
    table = detection_table(made_up(), held_out().iloc[:0])
    assert np.isnan(pick(table, "sensitivity", subtype="any")) and np.isfinite(pick(table, "auc", subtype="any"))


def test_validation_of_one_class_falls_back_to_a_fixed_threshold():
    cut = held_out().set_index("subtype")
    assert (cut.rule["intraventricular"], cut.value["intraventricular"]) == ("fixed", .5) and cut.rule["any"] == "youden"


def test_a_missing_score_is_not_a_negative_call():
    rows = made_up()
    called = apply_thresholds(rows.assign(score=rows.score.mask(rows.series == "p0s0")), held_out())
    assert called.called[called.series == "p0s0"].isna().all() and called.called[called.series != "p0s0"].notna().all()


def test_a_missing_score_is_left_out_and_lowers_n():
    rows = made_up()
    table = detection_table(rows.assign(score=rows.score.mask(rows.series == "p0s0")), held_out())
    assert pick(table, "auc", "n", subtype="any") == pick(table, "accuracy", "n", subtype="any") == 23


def test_two_thresholds_for_one_label_are_refused():
    with pytest.raises(StudyError, match="threshold"): apply_thresholds(made_up(), pd.concat([held_out(), held_out().assign(rule="other")]))


def test_validation_rows_are_not_judged():
    with pytest.raises(StudyError, match="split"): detection_table(pd.concat([made_up(), made_up(split="validation")]), held_out())


def test_scores_outside_zero_to_one_are_refused():
    with pytest.raises(StudyError, match="score"): detection_table(made_up().assign(score=1.5), held_out())


def test_two_series_of_a_patient_are_not_two_patients():
    one, two = made_up(), pd.concat([made_up(), made_up().assign(series=lambda t: t.series + "b", image=lambda t: t.image + "b")])
    width = lambda rows, metric: pick(t := detection_table(rows, held_out()), metric, "high", subtype="any") - pick(t, metric, "low", subtype="any")
    for metric in ("auc", "sensitivity", "accuracy"): assert width(two, metric) > .8*width(one, metric), metric


def test_agreement_does_not_count_a_patient_twice():
    rng = np.random.default_rng(0)
    truth = rng.lognormal(2, 1, 30)
    one = volumes_of(truth, truth + rng.normal(0, 3, 30))
    two = pd.concat([one, one.assign(series=one.series + "b")])
    width = lambda v, m: pick(t := agreement_table(v), m, "high", series_set="all") - pick(t, m, "low", series_set="all")
    for metric in ("mae_ml", "bias_ml"): assert width(two, metric) > .8*width(one, metric), metric


def test_perfect_measurements_have_a_bias_of_zero():
    table = agreement_table(volumes_of([0, 0, 3, 8, 40, 90], [0, 0, 3, 8, 40, 90]))
    assert pick(table, "bias_ml", series_set="all") == pick(table, "mae_ml", series_set="all") == 0
    assert pick(table, "sensitivity_30ml", series_set="all") == pick(table, "icc_a1", series_set="all") == 1


def test_a_volume_that_was_not_measured_is_counted():
    table = agreement_table(volumes_of([1, 2, 3, None, 5, 6], [1, 2, None, 4, 5, 7]))
    assert pick(table, "mae_ml", "n", series_set="all") == 4 and pick(table, "unmeasured", series_set="all") == 1


def test_external_and_test_volumes_are_not_pooled():
    with pytest.raises(StudyError, match="split"): agreement_table(pd.concat([volumes_of([1, 2, 3], [1, 2, 3]), volumes_of([1, 2, 3], [1, 2, 3], split="external")]))


def recipes(**more):
    rng = np.random.default_rng(5)
    truth = np.where(np.arange(40) < 20, 0, rng.lognormal(2, 1, 40))
    made = [(predictions_of(truth > 0, np.clip(rng.normal(.4 + gap*(truth > 0), .2), 0, 1), recipe=r, **more),
             volumes_of(truth, truth + rng.normal(0, sd, 40), recipe=r, **more)) for r, gap, sd in (("plain", .2, 3), ("paper", .3, 1))]
    return tuple(pd.concat(t) for t in zip(*made))


def test_comparison_is_the_difference_of_the_two_tables():
    predictions, volumes = recipes()
    table, auc, error = compare_table(predictions, volumes), detection_table(predictions, no_thresholds()), agreement_table(volumes)
    get = lambda t, metric, recipe, **w: pick(t, metric, recipe=recipe, **w)
    row = table.set_index("metric")
    assert tuple(row.loc["auc difference", ["first", "second"]]) == ("plain", "paper")
    assert_allclose(row.value["auc difference"], get(auc, "auc", "plain", subtype="any") - get(auc, "auc", "paper", subtype="any"))
    assert_allclose(row.value["mae difference (mL)"], get(error, "mae_ml", "plain", series_set="all") - get(error, "mae_ml", "paper", series_set="all"))
    assert (table.p_holm >= table.p).all() and table.low.lt(table.value).all() and table.value.lt(table.high).all()


def test_comparison_keeps_seeds_and_variants_apart():
    predictions, volumes = (pd.concat(t) for t in zip(recipes(), recipes(seed=18), recipes(variant="wide")))
    table = compare_table(predictions, volumes)
    assert len(table) == 18 and set(zip(table.seed, table.variant)) == {(17, "base"), (18, "base"), (17, "wide")}


def test_comparison_refuses_validation_rows():
    predictions, volumes = recipes()
    with pytest.raises(StudyError, match="split"): compare_table(pd.concat([predictions.assign(split="validation"), predictions]), volumes)


def test_comparison_of_a_pair_does_not_depend_on_a_third():
    predictions, volumes = recipes()
    third = [t[t.recipe == "plain"].assign(recipe="none yet").head(12) for t in (predictions, volumes)]
    table = compare_table(pd.concat([predictions, third[0]]), pd.concat([volumes, third[1]]))
    assert table.n[(table["first"] == "plain") & (table["second"] == "paper")].tolist() == [40]*6


def test_comparison_without_a_shared_series_has_a_reason():
    predictions, volumes = recipes()
    apart = volumes.recipe.eq("plain") == volumes.series.isin([f"s{i}" for i in range(20)])
    row = compare_table(predictions, volumes[apart]).set_index("metric").loc["mae difference (mL)"]
    assert np.isnan(row.value) and row.n == 0 and row.reason


def test_swapping_patients_never_gives_p_zero():
    assert 0 < paired_difference(mean_measure(np.repeat([2., 1.], 20)), np.arange(20)).difference.p < .01


def test_roles_are_those_of_the_study_file():
    predictions, volumes = recipes()
    both = [pd.concat([t, t.assign(model="cnn_lstm")]) for t in (predictions, volumes)]
    declared = dict(endpoint="mae_ml", over="recipe", of=["paper", "plain"], model="cnn_lstm")
    table = compare_table(*both, family=("cnn_lstm",), primary=declared)
    role = table.set_index(["fixed", "metric"]).role
    assert role["cnn_lstm", "mae difference (mL)"] == "primary" and set(role["bhcnet"]) == {"explored"} and role["cnn_lstm", "auc difference"] == "family"
    assert table.p_holm[table.role == "family"].notna().all() and table.p_holm[table.role != "family"].isna().all()
    models = compare_table(*both, over="model", family=("bhcnet", "cnn_lstm"))
    for _, g in models.groupby("metric"): assert set(g.role) == {"family"} and np.allclose(g.p_holm, holm(g.p.to_numpy()))


def test_sensitivity_at_a_wanted_specificity_comes_from_validation():
    specific = choose_thresholds(made_up(seed=1, split="validation"), "specificity")
    table = detection_table(made_up(), held_out(), specific=specific)
    called = apply_thresholds(made_up(), specific)
    mine = called[called.image.isna() & (called.subtype == "any")]
    assert_allclose(pick(table, "specificity_at_specificity", subtype="any"), 1 - mine.called[~mine.truth.astype(bool)].mean())
    assert_allclose(pick(table, "sensitivity_at_specificity", subtype="any"), mine.called[mine.truth.astype(bool)].mean())


def test_an_accepted_class_is_marked_and_has_no_fold_of_its_own():
    rows = made_up()
    table, folds = detection_table(rows, held_out(), accepted=("epidural",)), fold_table(rows, accepted=("epidural",))
    assert table.method[(table.subtype == "epidural") & (table.metric == "auc")].str.contains("fewer patients than folds").all()
    assert not table.method[table.subtype == "any"].str.contains("fewer patients").any() and "epidural" not in set(folds.subtype)


def test_images_are_judged_with_their_patients():
    """Thirty alike images of each patient are no more evidence than one."""
    rng, rows = np.random.default_rng(3), []
    for p in range(40):
        score = float(np.clip(rng.normal(.4 + .2*(p % 2), .2), 0, 1))
        for label in LABELS:
            rows += [dict(patient=f"p{p}", series=f"s{p}", image=i if i is None else f"s{p}i{i}", subtype=label, truth=p % 2 == 1, score=score) for i in (None, *range(30))]
    rows = check_table(pd.DataFrame(rows).assign(**RUN), "predictions")
    series, images = detection_table(rows, held_out()), detection_table(rows, held_out(), unit="image")
    width = lambda t, m: pick(t, m, "high", subtype="any") - pick(t, m, "low", subtype="any")
    for metric in ("auc", "ap", "sensitivity", "brier"):
        assert_allclose(pick(images, metric, subtype="any"), pick(series, metric, subtype="any"), atol=1e-9)
        assert width(images, metric) > .8*width(series, metric), metric


@pytest.mark.parametrize("truth, predicted", [([], []), ([1], [2]), ([0, 0], [1, 2]), ([3, 3, 3], [3, 3, 3]), ([0, 0, 0], [0, 0, 0]), ([1, 2, 3, 40], [0, 0, 0, 0]), ([5, 5, 5, 5], [1, 2, 3, 4]), ([0, 31, 29, 30], [-1, 30, 31, None])])
def test_few_or_flat_volumes_have_reasons_and_raise_nothing(truth, predicted):
    volumes = volumes_of(truth, predicted)
    for table in (agreement_table(volumes), band_table(volumes), agreement_table(volumes.assign(patient="one"))):
        assert (table.n >= 0).all() and table.reason[table.value.isna() | table.low.isna()].notna().all()
    found = volume_errors(numbers(truth), numbers(predicted))
    assert found["n_used"] + found["n_missing"] == found["n_total"] == len(truth)


def test_calls_by_size_of_patients_with_two_series_are_drawn():
    truth = [0, 0, 3, 3, 40, 40]
    scored = predictions_of([v > 0 for v in truth], [.1, .6, .2, .9, .9, .9]).assign(patient=[f"p{i//2}" for i in range(6)])
    table = call_table(scored.assign(called=scored.score >= .5), volumes_of(truth, truth))
    assert table.reason.notna().all() and (table.low == table.high).all()  # one patient per band


@pytest.mark.parametrize("call", [lambda: auc_delong([1, 0], [.1, np.nan]), lambda: volume_errors([1, 2], [1]), lambda: detection_table(made_up(), held_out(), accepted=("blood",)), lambda: paired_auc([1, 0], [.1, .2], [.1]), lambda: mcnemar_exact([1], [1, 0]), lambda: unit_rows(made_up(), "voxel"),
                                  lambda: choose_thresholds(made_up()), lambda: compare_table(*recipes(), over="fold"), lambda: agreement_table(volumes_of([1], [1]).drop(columns="truth_ml"))])
def test_wrong_input_is_told_in_one_line(call):
    with pytest.raises(StudyError) as told: call()
    assert "\n" not in str(told.value)


# ---------------------------------------------------------------- any study at all: nothing legal raises or warns, order and unit do not matter

quick = settings(max_examples=60, deadline=None)
few = settings(max_examples=8, deadline=None, phases=[p for p in Phase if p != Phase.shrink])  # a table takes a second
grades = st.sampled_from([0., .1, .25, .5, .5000001, .9, 1.])  # many ties
studies = st.lists(st.tuples(st.booleans(), grades, grades, st.integers(0, 4)), min_size=1, max_size=30)  # truth, two scores, patient


@quick
@given(st.lists(st.tuples(*[st.sampled_from([0., 1., np.nan])]*3, *[grades]*3), min_size=1, max_size=15))
def test_averages_over_classes_do_not_depend_on_their_order(rows):
    table = np.array(rows)
    truth, score = table[:, :3], table[:, 3:]
    one, other = multilabel_measures(truth, score), multilabel_measures(truth[:, ::-1], score[:, ::-1])
    for name in set(one) - {"auc_per_class", "ap_per_class"}: assert_allclose(one[name], other[name], equal_nan=True)
    assert_allclose(one["ap_per_class"], other["ap_per_class"][::-1], equal_nan=True)


@quick
@given(studies)
def test_folds_of_one_are_pooled_scores(rows):
    truth, a, _, _ = (np.array(c) for c in zip(*rows))
    told = fold_areas(np.zeros(len(rows)), truth, a)
    assert_allclose([told["mean"], *told["per_fold"]], [told["pooled"]]*2, equal_nan=True)


@quick
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_mcnemar_is_symmetric(rows):
    first, second = (np.array(c, bool) for c in (zip(*rows) if rows else ((), ())))
    one, other = mcnemar_exact(first, second), mcnemar_exact(second, first)
    assert one.p == other.p and (one.only_first, one.only_second) == (other.only_second, other.only_first) and 0 < one.p <= 1


volumes_ml = st.one_of(st.just(0.), st.floats(.01, 150))


def made_volumes(rows):
    n = len(rows)
    truth, predicted, who = zip(*rows)
    table = pd.DataFrame({"patient": [f"p{w}" for w in who], "series": [f"s{i}" for i in range(n)], "truth_ml": truth, "predicted_ml": predicted})
    return check_table(table.assign(**(RUN | dict(subtype="any", volume_source="phantom"))), "volumes")


@few
@given(st.lists(st.tuples(volumes_ml, volumes_ml, st.integers(0, 12)), min_size=1, max_size=25))
def test_agreement_of_any_volumes_has_reasons_and_scales_with_the_unit(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = agreement_table(made_volumes(rows)).set_index(["series_set", "metric"])
    assert table.reason[table.value.isna() | table.low.isna()].notna().all()
    tenth = agreement_table(made_volumes([(t/8, p/8, w) for t, p, w in rows])).set_index(["series_set", "metric"])
    assert list(table.index) == list(tenth.index)
    length = [m for m in table.index if m[1] in ("mae_ml", "rmse_ml", "median_error_ml", "bias_ml", "sd_ml", "limit_low_ml", "limit_high_ml")]
    free = [m for m in table.index if m[1] in ("pearson", "spearman", "icc_a1", "ccc", "slope", "median_relative_error")]
    for rows_, scale in ((length, 8), (free, 1)):
        assert_allclose(scale*tenth.loc[rows_, ["value", "low", "high"]].to_numpy(float), table.loc[rows_, ["value", "low", "high"]].to_numpy(float), rtol=1e-5, atol=1e-7, equal_nan=True)


@few
@given(st.lists(st.tuples(volumes_ml, volumes_ml, st.integers(0, 12)), min_size=2, max_size=25), st.randoms(use_true_random=False))
def test_agreement_does_not_depend_on_the_order_of_rows(rows, random):
    volumes = made_volumes(rows)
    one, other = (agreement_table(v).set_index(["series_set", "metric"])[["value", "low", "high"]].to_numpy(float) for v in (volumes, volumes.iloc[random.sample(range(len(rows)), len(rows))]))
    assert_allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)


def made_predictions(rows):
    """One series per row, all six labels; a subtype shows in some of the positives."""
    out = [dict(patient=f"p{w}", series=f"s{i}", image=pd.NA, subtype=label, truth=bool(t) and (k == 0 or (i + k) % 5 == 0), score=a if k % 2 else b)
           for i, (t, a, b, w) in enumerate(rows) for k, label in enumerate(LABELS)]
    return check_table(pd.DataFrame(out).assign(**RUN), "predictions")


@few
@given(studies, st.randoms(use_true_random=False))
def test_detection_of_any_study_has_reasons_whatever_the_order(rows, random):
    predictions = made_predictions(rows)
    cut = choose_thresholds(predictions.assign(split="validation"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (detection_table(p, cut).set_index(["subtype", "metric"]).sort_index() for p in (predictions, predictions.iloc[random.sample(range(len(predictions)), len(predictions))]))
    numbers = ["value", "low", "high"]
    assert one.reason[one.value.isna() | one.low.isna()].notna().all()
    assert_allclose(one[numbers].to_numpy(float), other.loc[one.index, numbers].to_numpy(float), rtol=1e-6, atol=1e-9, equal_nan=True)


@few
@given(studies)
def test_a_difference_with_oneself_is_nothing(rows):
    truth, a, _, who = (np.array(c) for c in zip(*rows))
    for measure in (mean_measure(np.r_[a, a]), area_measure(np.r_[truth, truth], np.r_[a, a])):
        found = paired_difference(measure, who, resamples=50, swaps=99).difference
        assert found.reason and (np.isnan(found.value) or (abs(found.value) < 1e-12 and (np.isnan(found.p) or found.p == 1)))


@quick
@given(st.lists(st.tuples(volumes_ml, st.floats(-20, 200)), max_size=20))
def test_errors_of_volumes_add_up(rows):
    t, p = zip(*rows) if rows else ((), ())
    told = volume_errors(t, p)
    assert told["n_used"] == len(rows) and told["n_negative"] == sum(x < 0 for x in p)
    if rows: assert told["mae_clipped"] <= told["mae"] + 1e-9 and abs(told["bias"]) <= told["mae"] + 1e-9 <= told["rmse"] + 1e-6


# ---------------------------------------------------------------- what is illegal gives no number, and is named

TEN = np.arange(10) % 2 == 0
ROWS = [(i % 2 == 0, .1*i, .05*i, i) for i in range(10)]


@pytest.mark.parametrize("call, named", [
    (lambda: auc_delong(TEN, np.where(TEN, np.nan, .5)), "missing"),
    (lambda: auc_delong(TEN, np.ones(9)), "10 truths"),
    (lambda: auc_delong(TEN*2, np.ones(10)), "truth holds 2; give True or False"),
    (lambda: auc_delong(TEN, np.ones(10), patients=[1]), "1 patients"),
    (lambda: detection_table(made_predictions(ROWS).assign(score=1.01), choose_thresholds(made_predictions(ROWS).assign(split="validation"))), "1.01"),
    (lambda: detection_table(made_predictions(ROWS).assign(score=np.inf), choose_thresholds(made_predictions(ROWS).assign(split="validation"))), "inf"),
    (lambda: check_table(pd.concat([made_predictions(ROWS)]*2), "predictions"), "repeat"),
    (lambda: agreement_table(pd.concat([made_volumes([(1., 2., 0)])]*2)), "repeat"),
    (lambda: volume_errors([1, np.inf], [1, 2]), "infinite"),
    (lambda: volume_errors([1, 2], ["1 mL", "2"]), "numbers"),
    (lambda: multilabel_measures([[1, 0]], [[.5]]), "one shape"),
    (lambda: multilabel_measures(np.zeros((3, 0)), np.zeros((3, 0))), "a column per class"),
    (lambda: mcnemar_exact(None, None), "the first method"),
    (lambda: mcnemar_exact([True, None], [True, False]), "None"),
])
def test_what_is_illegal_is_named(call, named):
    with pytest.raises(StudyError) as told: call()
    assert named in str(told.value) and "\n" not in str(told.value)
