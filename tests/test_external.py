"""Frozen networks on other data: nobody twice, nothing fitted there, nothing predicted twice."""
import json
import shutil
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import logit

from ich_study.batches import fold_data
from ich_study.bleeds import plan
from ich_study.calibration import fit_recalibration
from ich_study.external import (ALL, MAJORITY, MENDED, OTHERS, RAW, batch_parts, check_apart, combine_folds, combine_volumes, external_answer, external_calibration,
                                external_detection, external_drop, external_folder, external_tables, predict_external, read_external, recalibrate,
                                recalibration_lines, save_external, with_series_truth)
from ich_study.paths import Paths, study_files
from ich_study.phantom import SCANNERS, patient_numbers
from ich_study.predictions import save_run
from ich_study.reports import execute
from ich_study.schema import SUBTYPES, StudyError, check_table
from ich_study.study import check_study, list_runs, load_study, prepare, prepare_external, run_fingerprint
from ich_study.train import describe_run, fit_model, make_settings, predict_fold, save_fitted
from ich_study.units import choose_thresholds

pytestmark = pytest.mark.xdist_group("external")  # drawn and trained once
RUN = dict(analysis="a", model="m", recipe="r", variant="base", seed=17)
FAR = {"name": "far", "kind": "phantom", "patients": 4, "seed": 91, "scanner": "B", "positive": .5}
GONE = {"name": "cq500", "kind": "cq500", "folder": "data/cq500"}
SAID = {"name": "ours", "dataset": {"kind": "phantom", "patients": 6, "seed": 2}, "models": ["bhcnet"], "recipes": ["plain"], "folds": 2, "accept_classes": list(SUBTYPES)}


# --- the study file ---

@pytest.mark.parametrize("given, words", [
    (FAR, "list of mappings"), ([3], "external should be a mapping"), ([FAR | {"kind": "mri"}], "kind is one of"), ([FAR | {"name": "a/b"}], "cannot be a name"),
    ([{k: v for k, v in FAR.items() if k != "name"}], "needs `name`"), ([FAR | {"name": "phantom"}], "names other data"), ([FAR | {"name": "ours"}], "names other data"),
    ([FAR, FAR], "names other data"), ([FAR, FAR | {"name": "b", "folder": "data/./far"}], "folder of their own"), ([FAR | {"folder": "data/ours"}], "folder of their own"),
    ([FAR | {"scanner": "Z"}], "scanner is 'Z'"), ([FAR | {"positive": 25}], "0 to 1"), ([FAR | {"positive": "few"}], "0 to 1"), ([FAR | {"positive": True}], "0 to 1"),
    ([FAR | {"seed": 2}], "the same patients"), ([FAR | {"patients": 0}], "external.patients"), ([FAR | {"labels": "x"}], "takes"),
    ([{"name": "cq500", "kind": "cq500"}], "needs `folder`"), ([GONE | {"pseudo": "threshold"}], "not ['pseudo']"), ([GONE | {"scanner": "B"}], "not ['scanner']")])
def test_study_file_refuses(given, words):
    with pytest.raises(StudyError) as e: check_study(SAID | {"external": given})
    assert words in str(e.value) and "\n" not in str(e.value)


def test_study_files_name_external_data():
    assert [d["scanner"] for d in load_study("phantom").external] == ["B"] and [d["kind"] for d in load_study("rsna").external] == ["cq500"]
    assert check_study(SAID).external == () and check_study(SAID | {"external": [FAR, GONE]}).external == (FAR, GONE)


# --- the phantom of another clinic ---

@pytest.mark.parametrize("patients, positive, wanted", [(30, .25, 8), (30, 0, 0), (7, 1, 7), (10, .04, 0), (10, .05, 1), (66, None, 39)])
def test_share_of_patients_with_blood(patients, positive, wanted):
    numbers = patient_numbers(patients, 91, positive)
    assert len(set(numbers)) == patients and numbers == sorted(numbers) and sum(bool(plan(91, n)[0]) for n in numbers) == wanted
    assert numbers == patient_numbers(patients, 91, positive)


def test_scanners_differ():
    a, b = SCANNERS["A"], SCANNERS["B"]
    for name in ("manufacturer", "kernel", "noise_hu", "noise_peak", "blur_mm", "pixel_mm", "gap_mm", "tilted"): assert getattr(a, name) != getattr(b, name), name


# --- the rule of the folds ---

def rows(scores, truth, split="external", fold=0, label="any", patients=None):
    n = len(scores)
    return check_table(pd.DataFrame({**{k: [v]*n for k, v in RUN.items()}, "fold": fold, "split": split, "dataset": "d", "patient": patients or [f"{split}{k}" for k in range(n)],
                                     "series": [f"{split}s{k}" for k in range(n)], "image": None, "subtype": label, "truth": truth, "score": scores}), "predictions")

def cuts(values): return pd.DataFrame([{**{k: v for k, v in RUN.items() if k != "analysis"}, "fold": k, "subtype": "any", "rule": "youden", "value": v} for k, v in enumerate(values)])


def test_mean_score_and_majority_by_hand():
    each = np.array([[.1, .6, .9], [.2, .7, .1], [.6, .2, .8]])  # folds x series
    far = pd.concat([rows(s, [False, True, True], fold=k) for k, s in enumerate(each)])
    out = combine_folds(far, cuts([.5, .65, .55]))
    np.testing.assert_allclose(out.score, each.mean(0))
    np.testing.assert_allclose(out["share"], [1/3, 2/3, 2/3])  # fold 0 calls .6 .9, fold 1 .7, fold 2 .6 .8
    assert out.called.tolist() == [False, True, True] and .5 < MAJORITY < .5001
    tie = combine_folds(far[far.fold < 2], cuts([.5, .65]))
    assert tie["share"].tolist() == [0, 1, .5] and tie.called.tolist() == [False, True, False]
    shuffled = combine_folds(far.sample(frac=1, random_state=0), cuts([.5, .65, .55])).sort_values("series").reset_index(drop=True)
    pd.testing.assert_frame_equal(shuffled, out)


def test_a_missing_score_or_volume_is_not_averaged_away():
    far = pd.concat([rows([.4, np.nan if k else .5], [True, False], fold=k) for k in range(2)])
    assert combine_folds(far, cuts([.3, .3])).score.isna().tolist() == [False, True]
    ml = pd.concat([pd.DataFrame([{**RUN, "fold": k, "split": "external", "dataset": "d", "patient": s, "series": s, "subtype": "any", "volume_source": "mask", "truth_ml": 4., "predicted_ml": v}
                                  for s, v in (("x", 3. + k), ("y", [5., np.nan][k]))]) for k in range(2)])
    assert combine_volumes(ml).predicted_ml.tolist()[0] == 3.5 and np.isnan(combine_volumes(ml).predicted_ml[1])


def test_detection_counts_the_majority_and_ranks_the_mean():
    rng = np.random.default_rng(1)
    truth, each = rng.random(40) < .4, rng.random((3, 40))
    far = pd.concat([rows(s, truth, fold=k) for k, s in enumerate(each)])
    out = combine_folds(far, cuts([.3, .5, .7]))
    table = external_detection(out, {ALL: set(out.series)}).set_index(["unit", "subtype", "metric"])
    called = (each >= np.array([[.3], [.5], [.7]])).sum(0) >= 2
    assert table.value[("series", "any", "tp")] == (called & truth).sum() and table.value[("series", "any", "fp")] == (called & ~truth).sum()
    mean = each.mean(0)
    assert np.isclose(table.value[("series", "any", "auc")], (mean[truth][:, None] > mean[~truth]).mean())
    for unit in ("series", "patient"):
        assert np.isclose(table.value[(unit, "any", "prevalence")], truth.mean())
        for metric in ("ppv", "npv"): assert f"holds where {truth.mean():.0%} have it" in table.reason[(unit, "any", metric)]
    assert not table.method.str.contains("folds pooled").any()


def test_patients_with_two_series_are_one_row_by_patient():
    who = [f"p{k//2}" for k in range(40)]
    truth, score = np.arange(40) % 4 == 0, np.linspace(.1, .9, 40)
    out = combine_folds(pd.concat([rows(score, truth, fold=k, patients=who) for k in range(2)]), cuts([.5, .5]))
    table = external_detection(out, {ALL: set(out.series)}).set_index(["unit", "subtype", "metric"])
    assert table.n[("series", "any", "auc")] == 40 and table.n[("patient", "any", "auc")] == 20
    assert table.value[("series", "any", "prevalence")] == .25 and table.value[("patient", "any", "prevalence")] == .5
    assert "draws" in table.method[("series", "any", "sensitivity")] and "Clopper" in table.method[("patient", "any", "sensitivity")]


def test_batches_stand_apart_when_they_can():
    who = pd.Series([f"p{k}" for k in range(24)], [f"s{k}" for k in range(24)])
    parts = batch_parts(pd.Series(["B1"]*10 + ["B2"]*12 + ["B3"]*2, who.index), who)
    assert {k: len(v) for k, v in parts.items()} == {ALL: 24, "B1": 10, "B2": 12, OTHERS: 2}
    assert list(batch_parts(pd.Series("B1", who.index), who)) == [ALL]
    twins = pd.Series(["p0"]*12 + [f"p{k}" for k in range(12)], who.index)  # twelve series of one patient are no batch
    assert list(batch_parts(pd.Series(["B1"]*12 + ["B2"]*12, who.index), twins)) == [ALL, "B2", OTHERS]


# --- recalibration ---

def homes(n=60, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for fold in range(2):
        score = rng.uniform(.05, .95, n)
        made += [rows(score, rng.random(n) < score**2, split, fold, patients=[f"{split}{fold}-{k}" for k in range(n)]).assign(series=[f"{split}{fold}-{k}" for k in range(n)]) for split in ("validation", "test")]
    return pd.concat(made, ignore_index=True)


def test_recalibration_never_sees_external_or_test_rows():
    home, rng = homes(), np.random.default_rng(3)
    each = rng.uniform(.05, .95, (2, 50))
    far = lambda truth: pd.concat([rows(s, truth, fold=k) for k, s in enumerate(each)], ignore_index=True)
    right, wrong = far(rng.random(50) < .5), far(rng.random(50) < .05)
    lines = recalibration_lines(home)
    held = home[home.split == "validation"]
    np.testing.assert_allclose(lines.value, fit_recalibration(held.truth.to_numpy(bool), held.score.to_numpy(float)))
    flipped = home.assign(truth=home.truth.where(home.split == "validation", ~home.truth))
    for t in (right, wrong): pd.testing.assert_frame_equal(recalibration_lines(pd.concat([flipped, t])), lines)
    volumes = pd.DataFrame([{**RUN, "fold": 0, "split": s, "dataset": "d", "patient": "p", "series": "s", "subtype": "any", "volume_source": "none", "truth_ml": np.nan, "predicted_ml": np.nan} for s in ("external", "test")])
    batches = pd.Series("one", right.series.unique())
    a, b = (external_tables((home, volumes[1:]), t, volumes[:1], batches) for t in (right, wrong))
    pd.testing.assert_series_equal(a["external_predictions"].recalibrated, b["external_predictions"].recalibrated)
    pd.testing.assert_series_equal(a["external_predictions"].called, b["external_predictions"].called)
    pd.testing.assert_frame_equal(a["external_lines"], b["external_lines"])
    assert not a["external_calibration"].equals(b["external_calibration"]) and a["external_agreement"].empty


def test_recalibration_is_the_line_of_each_network_before_the_mean():
    lines = recalibration_lines(homes())
    (a, b), each = lines.value, np.array([[.2], [.8]])
    far = pd.concat([rows(s, [True], fold=k) for k, s in enumerate(each)])
    moved = combine_folds(recalibrate(far, lines), cuts([.5, .5])).score[0]
    assert np.isclose(moved, (1/(1 + np.exp(-a - b*logit(each)))).mean())


def test_recalibration_helps_where_the_shift_is_the_same_and_says_when_there_is_no_line():
    home, rng = homes(300), np.random.default_rng(5)
    score = rng.uniform(.05, .95, 300)
    far = rows(score, rng.random(300) < score**2)
    thresholds, parts = choose_thresholds(home), {ALL: set(far.series)}
    before, after = combine_folds(far, thresholds), combine_folds(recalibrate(far, recalibration_lines(home)), thresholds)
    table = external_calibration(before, after, recalibration_lines(home), parts).set_index(["scores", "metric"])
    assert table.high[(MENDED, "brier change")] < 0 and abs(table.value[(MENDED, "citl")]) < abs(table.value[(RAW, "citl")])
    sure = home.assign(score=home.truth.astype(float)*.5 + .2)
    none = recalibration_lines(sure)
    table = external_calibration(before, combine_folds(recalibrate(far, none), thresholds), none, parts).set_index(["scores", "metric"])
    assert np.isnan(table.value[(MENDED, "brier")]) and "separate" in table.reason[(MENDED, "brier")] and np.isfinite(table.value[(RAW, "brier")])


# --- the change ---

def test_change_of_the_area_is_external_minus_internal():
    home = homes().assign(called=True)
    tested = home[home.split == "test"]
    far = pd.concat([rows(np.linspace(0, 1, 30), np.arange(30) % 2 == 0, fold=k) for k in range(2)])
    both = combine_folds(far, cuts([.5, .5]))
    volumes = check_table(pd.DataFrame([{**RUN, "fold": 0, "split": "external", "dataset": "d", "patient": f"q{k}", "series": f"q{k}", "subtype": "any", "volume_source": "mask", "truth_ml": 3., "predicted_ml": 5.} for k in range(5)]), "volumes")
    drop = external_drop(tested, far, both, volumes.assign(split="test", predicted_ml=4.), volumes).set_index(["networks", "metric"])
    area = lambda t: (t.score[t.truth].to_numpy()[:, None] > t.score[~t.truth].to_numpy()).mean()
    assert np.isclose(drop.value[("combined", "auc change")], area(both) - area(tested)) and drop.high[("combined", "auc change")] < 0
    assert np.isclose(drop.value[("single", "auc internal")], np.mean([area(tested[tested.fold == k]) for k in range(2)]))
    assert drop.value[("combined", "mae_ml change")] == 1 and "worse" in external_answer(drop.reset_index())[0]


def test_few_patients_of_a_class_are_said():
    home = homes().assign(called=True)
    far = rows(np.linspace(0, 1, 30), np.arange(30) >= 26)
    none = check_table(pd.DataFrame(columns=["analysis", "model", "recipe", "variant", "seed", "fold", "split", "dataset", "patient", "series", "subtype", "volume_source", "truth_ml", "predicted_ml"]), "volumes")
    drop = external_drop(home[home.split == "test"], far, combine_folds(far, cuts([.5])), none, none)
    assert drop.reason[drop.metric == "auc change"].str.contains("only 4 patients").all() and "only 4 patients" in external_answer(drop)[0]


# --- from end to end ---

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("external")
    study = check_study(SAID | {"external": [FAR, GONE]})
    inputs = prepare(study, root, progress=False)
    folders = [train(study, inputs, run, root) for run in list_runs(study)]
    states = save_external(study, inputs, folders, root, progress=False)
    return study, inputs, folders, root, states


def train(study, inputs, run, root, **changed):
    data, names = fold_data(inputs.caches["plain"], inputs.folds, run["fold"]), dict(analysis=study.name, **run)
    fitted, folder = fit_model(data, make_settings("bhcnet", epochs=1, **changed)), Paths(root).run(study.name, "plain", "bhcnet", fold=run["fold"])
    save_run(folder, *predict_fold(fitted, data, names), fitted.history, describe_run(fitted, data, names, run_fingerprint(study, inputs, run, epochs=1, **changed)), lambda f: save_fitted(fitted, data, f))
    return folder


def test_end_to_end(made):
    study, inputs, folders, root, states = made
    assert states.state.tolist() == ["ready", "missing"]
    state, tables = read_external(study, "far", root)
    assert tables["external_predictions"].series.nunique() == 4 and set(tables["external_predictions"].dataset) == {"far"}
    share = tables["external_detection"].query("metric == 'prevalence' and subtype == 'any' and unit == 'patient'")
    assert share.value.tolist() == [.5] and share.n.tolist() == [4]
    for name in ("external_detection", "external_calibration", "external_drop", "external_agreement", "external_folds", "external_lines"):
        t = tables[name]
        assert len(t) and not ((t.value.isna() | t.low.isna()) & t.reason.isna()).any(), name
    who = tables["who"].set_index("measure")
    assert who.external["noise (HU)"] == "5 to 9" and who.internal["noise (HU)"] == "3 to 6" and "SYN45" in who.external["maker and kernel"]
    cohort = json.loads((root/"data/far/cohort.json").read_text())
    assert cohort["positive"] == .5 and len(cohort["numbers"]) == 4 and cohort["scanner"]["name"] == "B"


def test_data_that_are_not_there_have_a_reason(made):
    study, inputs, folders, root, states = made
    state, tables = read_external(study, "cq500", root)
    assert state["state"] == "missing" and "data/cq500" in state["reason"] and str(root) not in json.dumps(state) and tables == {}
    with pytest.raises(StudyError, match="no such folder"): prepare_external(study, "cq500", root, progress=False)
    with pytest.raises(StudyError, match="no external data called"): prepare_external(study, "elsewhere", root, progress=False)
    named = replace(study, external=(GONE | {"folder": "/home/Jane Doe/cq500"},))
    assert "Jane" not in save_external(named, inputs, folders, root, progress=False).reason[0]
    save_external(study, inputs, folders, root, progress=False)


def test_page_of_data_that_are_there_and_are_not(made, tmp_path):
    study, inputs, folders, root, _ = made
    file = tmp_path/"ours.yml"
    file.write_text(yaml.safe_dump(SAID | {"external": [FAR, GONE]}))
    done = execute(study_files()/"6_external.ipynb", tmp_path/"out.ipynb", {"study": str(file), "root": str(root)})
    assert done.status == "done", done.error
    said = "\n".join(o.get("data", {}).get("text/markdown", "") + o.get("data", {}).get("text/html", "") for c in nbformat.read(tmp_path/"out.ipynb", 4).cells for o in c.get("outputs", []))
    assert "the data are not there: looked for in `data/cq500`" in said and "### far" in said and "Synthetic images" in said and "SYN45" in said and str(root) not in said
    plain = tmp_path/"none.yml"
    plain.write_text(yaml.safe_dump(SAID))
    done = execute(study_files()/"6_external.ipynb", tmp_path/"none.ipynb", {"study": str(plain), "root": str(root)})
    assert done.status == "done" and "names no external data" in (tmp_path/"none.ipynb").read_text()


def test_only_a_changed_run_predicts_again(made):
    study, inputs, folders, root, _ = made
    place = external_folder(study, "far", root)
    times = lambda: {f.name: f.stat().st_mtime_ns for f in [*place.glob("parts/*.parquet"), *place.glob("*.parquet")]}
    before = times()
    save_external(study, inputs, folders, root, progress=False)
    assert times() == before
    train(study, inputs, list_runs(study)[1], root, learning_rate=1e-3)
    save_external(study, inputs, folders, root, progress=False)
    after = times()
    changed = {n for n in before if before[n] != after[n]}
    assert all("fold0" not in n for n in changed) and {n for n in changed if "fold1" in n} == {n for n in before if "fold1" in n} and "external_drop.parquet" in changed


def test_no_patient_and_no_image_of_the_study(made):
    study, inputs, folders, root, _ = made
    far = prepare_external(study, "far", root, progress=False)
    check_apart(inputs, far)
    mine = inputs.index[inputs.index.used].head(3)
    for rows_ in (mine, mine.assign(patient="a new name")):
        mixed = replace(far, index=pd.concat([far.index, rows_]))
        with pytest.raises(StudyError, match="share"): predict_external(study, inputs, mixed, folders, root, progress=False)


def test_labels_known_for_series_alone_are_used(made):
    study, inputs, folders, root, _ = made
    far = prepare_external(study, "far", root, progress=False)
    predictions, volumes = predict_external(study, inputs, far, folders, root, progress=False)
    blind = predictions.assign(truth=pd.array([pd.NA]*len(predictions), "boolean")), volumes.assign(truth_ml=np.nan, volume_source="none")
    seen, ml = with_series_truth(*blind, far.series)
    whole = predictions.image.isna()
    pd.testing.assert_series_equal(seen.truth[whole], predictions.truth[whole])
    assert seen.truth[~whole].isna().all() and np.allclose(ml.truth_ml, volumes.truth_ml) and set(ml.volume_source) == {"phantom"}


def test_fingerprints_of_runs_do_not_know_of_external_data(made):
    study, inputs, folders, root, _ = made
    alone = check_study(SAID)
    assert [run_fingerprint(alone, prepare(alone, root, progress=False), r) for r in list_runs(alone)] == [run_fingerprint(study, inputs, r) for r in list_runs(study)]


def test_cq500_with_its_batches_and_labels_of_series(made):
    study, inputs, folders, root, _ = made
    code, readers = ("ICH", "EDH", "IPH", "IVH", "SAH", "SDH"), ("R1", "R2", "R3")
    truth = pd.read_csv(root/"data/far/truth.csv").groupby("patient").subtype.agg(set)
    rows_ = []
    for k, source in enumerate(sorted((root/"data/far/dicom").iterdir())[:3]):
        shutil.copytree(source, root/f"data/cq500/CQ500CT{k} CQ500CT{k}/Unknown Study/CT Plain")
        has = truth.get(source.name, set())
        flags = dict(zip(code, [int(bool(has)), *(int(s in has) for s in SUBTYPES)]))
        rows_.append({"name": f"CQ500-CT-{k}", "Category": "B1" if k < 2 else "B2"} | {f"{r}:{c}": v for r in readers for c, v in flags.items()})
    pd.DataFrame(rows_).to_csv(root/"data/cq500/reads.csv", index=False)
    try:
        other = prepare_external(study, "cq500", root, progress=False)
        assert sorted(other.batches) == ["B1", "B1", "B2"]
        assert save_external(study, inputs, folders, root, progress=False).state.tolist() == ["ready", "ready"]
        tables = read_external(study, "cq500", root)[1]
        seen = tables["external_predictions"]
        assert seen.truth.notna().all() and set(seen.series) == set(other.series.series)
        assert seen[seen.subtype == "any"].truth.sum() == sum(bool(truth.get(p.name, set())) for p in sorted((root/"data/far/dicom").iterdir())[:3])
        assert tables["external_agreement"].empty and tables["who"].set_index("measure").external["noise (HU)"] == "not known"
    finally: shutil.rmtree(root/"data/cq500")
