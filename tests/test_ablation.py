"""What the ablation promises: changes by patients, honest p values, and an answer that says no more than the numbers."""
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from thorough import often

from ich_study import ablation, comparison
from ich_study.ablation import ablation_table, answer, detectable_effect, effect_lines, found_table, paired_effect
from ich_study.comparison import compare_table, holm, volume_measures
from ich_study.effects import effect_figure
from ich_study.reports import execute, render
from ich_study.resampling import area_measure
from ich_study.schema import LABELS, PREDICTIONS, SERIES, StudyError, check_table
from ich_study.study import Study, check_study, list_runs
from ich_study.site import page_list
from ich_study.paths import study_files
from ich_study.results import _comparison, _statistics, has_ablation, own_seed

pytestmark = pytest.mark.xdist_group("ablation")  # one table for all
N = 66
PATIENTS = np.array([f"p{i:02}" for i in range(N)])
DECLARED = {"endpoint": "mae_ml", "over": "recipe", "of": ["paper", "plain"], "model": "cnn_lstm"}


def tables(sets, n=N, each=1, seed=0, volumes=True):
    """Predictions and volumes of made-up runs; `sets` holds (model, recipe, seed, scale of the errors)."""
    rng = np.random.default_rng(seed)
    ml = np.where(np.arange(n) < 2*n//3, rng.lognormal(2, 1, n), 0)
    shared, scores, measured = rng.normal(0, 1, n)*(1 + .3*ml), [], []
    for model, recipe, s, scale in sets:
        base = dict(analysis="t", model=model, recipe=recipe, variant="base", seed=s, fold=0, split="test", dataset="t",
                    patient=[f"p{i//each:02}" for i in range(n)], series=[f"s{i:02}" for i in range(n)])
        error = scale*shared + rng.normal(0, .5, n)
        for k, label in enumerate(LABELS):
            truth = (ml > 0) & ((np.arange(n) % 5 == k - 1) | (k == 0))
            scores.append(pd.DataFrame(base | dict(image=pd.NA, subtype=label, truth=truth, score=1/(1 + np.exp(-2*truth/scale + rng.normal(1, 1, n))))))
        measured.append(pd.DataFrame(base | dict(subtype="any", volume_source="phantom" if volumes else "none", truth_ml=ml if volumes else np.nan, predicted_ml=ml + error)))
    return check_table(pd.concat(scores)[list(PREDICTIONS.columns)], "predictions"), check_table(pd.concat(measured), "volumes")


MODELS = ("bhcnet", "cnn_lstm")
SETS = [(m, r, s, k) for m in MODELS for r, s, k in (("plain", 17, 1), ("paper", 17, .6), ("no_ahe", 17, 1), ("plain", 18, 1))]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Tables with fewer draws and swaps: these tests ask what is compared, the simulations how well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "paired_effect", partial(paired_effect, resamples=often(600, 2), swaps=499))
        yield


@pytest.fixture(scope="module")
def table(): return ablation_table(*tables(SETS), primary=DECLARED)


def errors(rng, scale=1., n=N):
    """Correlated, skewed errors of two recipes whose mean absolute errors stand as `scale` to 1."""
    spread = np.where(np.arange(n) < 2*n//3, .3*rng.lognormal(2, .7, n), .3)
    return np.stack([scale*rng.normal(0, 1, n)*spread, rng.normal(0, 1, n)*spread])


def scores(rng, n=N):
    truth = np.arange(n) < 2*n//3
    return truth, np.stack([truth*1.2]*2) + rng.normal(0, .8, n) + rng.normal(0, .5, (2, n))


def simulated(draw, times, patients=PATIENTS, **options):
    """`paired_effect` of many simulated studies as a table."""
    return pd.DataFrame([paired_effect(draw(), patients, resamples=500, swaps=199, **options) for _ in range(times)])


def test_a_known_change_is_found_with_its_sign_and_size():
    rng, true = np.random.default_rng(1), -.4*np.mean([np.abs(errors(np.random.default_rng(i))[1]).mean() for i in range(400)])
    found = simulated(lambda: volume_measures(errors(rng, .6))["mae_ml"], 200)
    assert abs(found.value.mean() - true) < .05*abs(true)
    assert ((found.low <= true) & (true <= found.high)).mean() > .88 and (found.value < 0).mean() > .95


@pytest.mark.parametrize("endpoint", ["mae_ml", "bias_ml", "limits_ml", "auc", "ap"])
def test_without_a_change_p_is_uniform_and_the_interval_covers(endpoint):
    rng = np.random.default_rng(2)
    def draw():
        if endpoint.endswith("ml"): return volume_measures(errors(rng))[endpoint]
        truth, s = scores(rng)
        return area_measure(np.tile(truth, 2), s.ravel(), endpoint)
    found = simulated(draw, 250)
    assert .015 <= (found.p <= .05).mean() <= .09 and stats.kstest(found.p, "uniform").pvalue > .001
    assert .87 <= ((found.low <= 0) & (found.high >= 0)).mean() <= .985
    assert abs(found.value.mean()) < 4*found.value.sem()


def test_a_difference_in_bias_alone_is_none_in_spread():
    rng = np.random.default_rng(3)
    found = simulated(lambda: volume_measures(errors(rng) + [[3.], [0.]])["limits_ml"], 200)
    assert (found.p <= .05).mean() <= .1


def test_patients_are_the_clusters():
    """Two alike series of each patient are no new evidence; taken for independent ones they find too much."""
    rng = np.random.default_rng(4)
    draw = lambda: volume_measures(np.repeat(errors(rng, n=33), 2, axis=1))["mae_ml"]
    whole, apart = simulated(draw, 200, np.repeat(PATIENTS[:33], 2)), simulated(draw, 200, PATIENTS)
    assert (whole.p <= .05).mean() <= .1 < (apart.p <= .05).mean()
    assert (whole.high - whole.low).mean() > 1.25*(apart.high - apart.low).mean()


def test_p_is_that_of_scipy():
    one = errors(np.random.default_rng(5), .75)
    ours = paired_effect(volume_measures(one)["mae_ml"], PATIENTS)
    theirs = stats.permutation_test(tuple(np.abs(one)), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", vectorized=True, n_resamples=9999, rng=1)
    assert abs(ours["p"] - theirs.pvalue) < .02 and np.isclose(ours["value"], theirs.statistic)
    few = paired_effect(volume_measures(one[:, :6])["mae_ml"], PATIENTS[:6])
    exact = stats.permutation_test(tuple(np.abs(one[:, :6])), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", vectorized=True)
    assert abs(few["p"] - exact.pvalue) < .02


def test_the_detectable_change_is_found_in_four_of_five_studies():
    rng = np.random.default_rng(6)
    least = np.mean([detectable_effect(rng.normal(0, 1, N)) for _ in range(50)])
    share = (stats.ttest_1samp(rng.normal(least, 1, (3000, N)), 0, axis=1).pvalue <= .05).mean()
    assert .76 < share < .84


def test_the_same_numbers_as_the_table_of_all_pairs(table):
    predictions, volumes = (t[t.seed == 17] for t in tables(SETS))
    pairs = compare_table(predictions, volumes).set_index(["metric", "fixed", "first", "second"])
    for metric, name in (("mae_ml", "mae difference (mL)"), ("auc", "auc difference")):
        for r in table[(table.metric == metric) & (table.seed == 17)].itertuples():
            other = pairs.loc[(name, r.model, "plain", r.recipe)]
            assert np.isclose(r.value, -other.value) and np.allclose([r.low, r.high], [-other.high, -other.low], atol=.25*(r.high - r.low))


def test_roles_and_families(table):
    first = table.iloc[0]
    assert (first.role, first.model, first.recipe, first.metric) == ("primary", "cnn_lstm", "paper", "mae_ml") and first.p == first.p_holm
    for family, g in table[table.role == "secondary"].groupby("family"):
        assert set(g.metric) == {family} and len(g) == {"mae_ml": 3, "ap": 20}.get(family, 4) and np.allclose(g.p_holm, holm(g.p.to_numpy()))
    control = table[table.role == "control"]
    assert set(control.seed) == {18} and set(control.baseline_seed) == {17} and control.p_holm.isna().all() and control.family.isna().all()
    assert np.allclose(table.after - table.before, table.value)


def test_a_recipe_with_a_second_seed_is_compared_with_the_baseline_of_that_seed():
    found = ablation_table(*tables([*SETS, ("cnn_lstm", "paper", 18, .6)]), primary=DECLARED)
    again = found[found.role == "repeat"]
    assert set(again.recipe) == {"paper"} and set(again.baseline_seed) == {18} and again.p_holm.isna().all()
    assert (found.role == "primary").sum() == 1


def test_the_order_of_rows_and_the_size_of_blocks_change_nothing(table, monkeypatch):
    monkeypatch.setattr(comparison, "BLOCK", 20_000)
    predictions, volumes = tables(SETS)
    rng = np.random.default_rng(0)
    within = lambda t: t.iloc[np.lexsort((rng.permutation(len(t)), t.groupby(["model", "recipe", "seed"], sort=False).ngroup()))]
    pd.testing.assert_frame_equal(ablation_table(within(predictions), within(volumes), primary=DECLARED), table)


def test_data_without_volumes_have_detection_rows_alone():
    found = ablation_table(*tables(SETS, volumes=False), primary=DECLARED)
    assert set(found.metric) == {"auc", "ap"} and found[["value", "low", "high", "p"]].notna().all(axis=None) and not (found.role == "primary").any()
    assert len(effect_figure(found).axes) == 1 and "cannot be answered" in answer(found)


def test_only_test_rows_count(table):
    predictions, volumes = tables(SETS)
    other = tables(SETS, seed=9)
    more = [pd.concat([own, extra.assign(split="validation")]) for own, extra in zip((predictions, volumes), other)]
    pd.testing.assert_frame_equal(ablation_table(*more, primary=DECLARED), table)


def test_incomplete_sets_are_named_and_compared_with_nothing():
    predictions, volumes = tables([*SETS, ("cnn_lstm", "median", 17, 1), ("cnn_ds", "plain", 17, 1), ("cnn_ds", "paper", 17, 1)])
    lost = lambda t: ((t.recipe == "median") | ((t.model == "cnn_ds") & (t.recipe == "plain"))) & (t.series < "s05")
    found = ablation_table(predictions[~lost(predictions)], volumes[~lost(volumes)], primary=DECLARED)
    out = found[found.role == "left out"]
    assert sorted(zip(out.model, out.recipe)) == [("cnn_ds", "paper"), ("cnn_ds", "plain"), ("cnn_lstm", "median")]
    assert out.reason.str.contains("61 of 66|not complete").all() and not (found[found.role != "left out"].recipe == "median").any()


def test_one_class_is_told_and_not_a_number_of_its_own():
    predictions, volumes = tables(SETS)
    found = ablation_table(predictions[(predictions.subtype != "epidural") | ~predictions.truth], volumes)
    bare = found[(found.subtype == "epidural")]
    assert len(bare) == 6 and bare.value.isna().all() and set(bare.reason) == {"only one class is present"}
    assert "nan" not in effect_lines(found[found.role != "left out"]).to_string()


def test_identical_recipes_change_nothing():
    predictions, volumes = tables([("cnn_lstm", "plain", 17, 1)])
    twin = [pd.concat([t, t.assign(recipe="paper")]) for t in (predictions, volumes)]
    found = ablation_table(*twin, primary=DECLARED)
    assert (found.value.abs() < 1e-12).all() and (found.p == 1).all() and (found.detectable < 1e-9).all() and "neither" in answer(found).lower()


def test_the_answer_has_four_forms(table):
    assert "**On synthetic heads, improvement is shown" in answer(table, True) and answer(table).startswith("**Improvement is shown")
    turned = table.assign(value=-table.value, low=-table.high, high=-table.low)
    assert answer(turned).startswith("**Harm is shown")
    neither = answer(table.assign(p=.2))
    assert neither.startswith("**Neither improvement nor harm") and "80 %" in neither and "not evidence that the two are equal" in neither
    assert "cannot be answered on synthetic heads" in answer(table[table.role != "primary"], True)
    assert "another seed, by chance alone" in answer(table) and "was not measured" in answer(table[table.role != "control"])


def test_better_is_up_for_areas_and_down_for_errors(table):
    counts = found_table(table.assign(p_holm=.01, low=-2., high=-1., value=-1.5)).set_index("endpoint")
    assert counts.better["mean absolute error"] == 4 and counts.better["average precision"] == 0 and counts.worse["average precision"] == 20
    assert counts.better["bias"] == "0 up" and counts.worse["bias"] == "4 down"


def test_typos_are_told():
    predictions, volumes = tables(SETS[:2])
    with pytest.raises(StudyError, match="plian.*paper"): ablation_table(predictions, volumes, "plian")
    with pytest.raises(StudyError, match="tested twice"): ablation_table(pd.concat([predictions, predictions.assign(variant="again")]), volumes)


# the study around it

SAID = {"name": "t", "dataset": {"kind": "phantom"}, "folds": 3}


@pytest.mark.parametrize("odd, words", [
    ({"primary": DECLARED | {"endpoint": "mae"}}, ("endpoint", "mae_ml")), ({"primary": DECLARED | {"over": "model"}}, ("over", "recipe")),
    ({"primary": DECLARED | {"of": ["paper", "clahe"]}}, ("of", "clahe")), ({"primary": DECLARED | {"of": [["paper"], {}]}}, ("of",)),
    ({"primary": DECLARED | {"model": "cnn"}}, ("model", "cnn_lstm")), ({"primary": {"endpoint": "auc"}}, ("over",)), ({"primary": ["mae_ml"]}, ("mapping",)),
    ({"primary": DECLARED, "exclude": [{"model": "cnn_lstm", "recipe": "paper"}]}, ("no run",)), ({"exclude": [{"recipe": "papr"}]}, ("papr", "paper")),
    ({"include": [{"seed": [17, 18]}]}, ("18",)), ({"seeds": [1, 1]}, ("different",)), ({"seeds": []}, ("seeds",)), ({"exclude": [{"model": ["bhcnet", "cnn_lstm"]}]}, ("no run",)),
])
def test_study_files_say_what_is_wrong_before_anything_is_trained(odd, words):
    with pytest.raises(StudyError) as e: check_study(SAID | odd, "t.yml")
    assert all(w in str(e.value) for w in ("t.yml", *words)) and "\n" not in str(e.value)


def test_a_control_takes_one_line_of_a_study_file():
    by_include = check_study(SAID | {"seeds": [17, 18], "include": [{"seed": 17}, {"seed": 18, "recipe": "plain"}]})
    by_exclude = check_study(SAID | {"seeds": [17, 18], "exclude": [{"seed": 18, "recipe": ["paper"]}]})
    assert list_runs(by_include) == list_runs(by_exclude) and len(list_runs(by_include)) == 2*2*3 + 2*3 and own_seed(by_include) == 17


def test_further_seeds_stand_in_the_ablation_alone():
    study = Study("t", {"kind": "phantom"}, seeds=(17, 18), primary=DECLARED)
    predictions, volumes = tables(SETS)
    both = [pd.concat([t, t.assign(split="validation", series=t.series + "v")]) for t in (predictions, volumes)]
    tested = both[1][["dataset", "patient", "series"]].drop_duplicates("series")
    known = {"study": tested.series, "images": 1, "volume_source": "phantom"}
    series = tested.assign(**known, **{c: float("nan") if kind == "number" else pd.NA for c, kind in SERIES.columns.items() if c not in {*known, "dataset", "patient", "series"}})
    made = _statistics(study, *both, predictions[:0], SimpleNamespace(baselines=(predictions[:0], volumes[:0]), series=check_table(series, "series")))
    for name in set(made) - {"ablation"}: assert "seed" not in made[name] or set(made[name].seed.dropna()) <= {17}, name
    assert set(made["ablation"].seed) == {17, 18}


def test_many_recipes_are_compared_with_the_baseline_alone():
    pairs = _comparison(Study("t", {"kind": "phantom"}), *tables([("bhcnet", r, 17, 1) for r in ("paper", "plain", "a", "b", "c")]), None)
    assert len(pairs) == 6*4 and all("plain" in p for p in zip(pairs["first"], pairs["second"]))
    for _, g in pairs.groupby("metric"): assert np.allclose(g.p_holm, holm(g.p.to_numpy()))


def test_pages_follow_the_study():
    names = lambda s: [page[0] for page in page_list(s)]
    assert names(check_study(SAID)) == ["cohort", "preprocess", "compare", "ablation", "claims"]
    assert names(check_study(SAID | {"recipes": ["paper"]})) == ["cohort", "preprocess", "compare", "claims"] and not has_ablation(check_study(SAID | {"recipes": ["paper"]}))
    other = {"name": "b", "kind": "phantom", "patients": 4, "seed": 3, "scanner": "B"}
    assert "external" in names(check_study(SAID | {"external": [other]}))


@pytest.mark.parametrize("volumes", [True, False], ids=["volumes", "no volumes"])
def test_the_page_is_made_from_the_table(tmp_path, volumes):
    kind = "{kind: phantom}" if volumes else "{kind: ct_ich, folder: data/ct_ich}"
    file = tmp_path/"t.yml"
    file.write_text(f"name: t\ndataset: {kind}\nrecipes: [plain, paper]\nseeds: [17, 18]\ninclude: [{{seed: 17}}, {{seed: 18, recipe: plain}}]\n"
                    f"primary: {{endpoint: {'mae_ml' if volumes else 'auc'}, over: recipe, of: [paper, plain], model: cnn_lstm}}\n")
    sets = [s for s in SETS if s[1] != "no_ahe" and s[:3] != ("bhcnet", "plain", 18)]
    made = ablation_table(*tables(sets, volumes=volumes), primary=DECLARED | {"endpoint": "mae_ml" if volumes else "auc"})
    (tmp_path/"runs/t").mkdir(parents=True)
    made.to_parquet(tmp_path/"runs/t/ablation.parquet")
    out = execute(study_files()/"5_ablation.ipynb", tmp_path/"page/executed.ipynb", {"study": str(file), "root": str(tmp_path)})
    assert out.status == "done", out.error
    whole = render(out.notebook, tmp_path/"page.html", "t").read_text()
    page, pictures = re.subn(r"<svg.*?</svg>", "", whole, flags=re.S)
    page = re.sub(r"<details class=.code.>.*?</details>", "", page, flags=re.S)  # folded code
    assert pictures == 1 and "bhcnet, plain, seed 18" in page and not re.search(r"\bnan\b|>NaN<", page) and "Traceback" not in page
    assert ("On synthetic heads" in page) == volumes and ("no reference volume" in page) != volumes
    assert len(whole.encode()) < 400_000 and str(tmp_path) not in page
