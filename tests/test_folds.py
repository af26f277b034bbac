"""Folds: dealt by patient, by rarest class, tested once each, and proven so; patients held out; every fault named in one line."""
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ich_study.cli import main
from ich_study.cohort import save_index, series_file
from ich_study.folds import (check_folds, fold_proof, fold_table, hold_out, load_folds, load_held_out, make_folds, patient_labels, save_held_out, strata)
from ich_study.schema import INDEX, LABELS, ROLES, SERIES, SUBTYPES, StudyError, check_table

GOLDEN = Path(__file__).resolve().parents[2]/"shared"/"golden"/"cases.json"


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def table_of(rows, names=None):
    """One series per row of five subtypes; patients by name, or all different."""
    made = pd.DataFrame(np.asarray(rows, bool).reshape(-1, 5), columns=list(SUBTYPES))
    return made.assign(any=made.any(axis=1), patient=[f"p{i:03d}" for i in range(len(made))] if names is None else names)


def random_table(n, seed, p=(.1, .3, .1, .2, .2)): return table_of(np.random.default_rng(seed).random((n, 5)) < p)


# Golden: a table of images is dealt by patient

@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file(): pytest.skip("golden cases not found")
    return {c["id"]: c for c in json.loads(GOLDEN.read_text())["cases"]}


@pytest.mark.parametrize("name", ["D41", "D42"])
def test_golden_folds_of_a_table_of_images(name, golden):
    i, expected = golden[name]["input"], golden[name]["expected"]
    images = table_of([[0, 0, 0, 0, v] for v in i["label"]], i["patient"])
    positive, refused, accept = images.groupby("patient")["any"].any(), False, ()
    try: make_folds(images, i["k"], i["seed"])
    except StudyError as e: refused, accept = "any (2)" in str(e) and "subdural (2)" in str(e), LABELS
    folds = make_folds(images, i["k"], i["seed"], accept)
    tested = folds[folds.role == "test"]
    each = images.merge(tested, on="patient")
    found = tested.groupby("fold").patient.agg(lambda who: int(positive[who].sum()))
    got = {"each_slice_once": len(each) == len(images), "patients_shared_between_folds": int(tested.patient.duplicated().sum()), "positive_patients": int(positive.sum()),
           "every_test_fold_has_a_positive": bool((found > 0).all()), "max_positive_patients_in_a_fold": found.max(), "warned_or_raised": refused}
    assert {k: v for k, v in expected.items() if not k.endswith("at_least")} == {k: got[k] for k in expected if not k.endswith("at_least")}
    assert (found == 0).sum() >= expected.get("folds_without_positive_at_least", 0)
    assert folds.equals(make_folds(images, i["k"], i["seed"], accept)) and (fold_proof(folds, i["patient"])[["shared", "tested_again"]] == 0).all(axis=None)


# What holds for any table

@st.composite
def tables(draw, least=3):
    n = draw(st.integers(least, 30))
    cell = st.sampled_from([True, False, False, None])
    rows = draw(st.lists(st.tuples(*[cell]*6, st.integers(0, n - 1)), min_size=n, max_size=2*n))
    who = [*range(n), *(r[6] for r in rows[n:])]
    made = pd.DataFrame([r[:6] for r in rows], columns=list(LABELS)).astype("boolean").assign(patient=[f"p{i}" for i in who])
    return made.sample(frac=1, random_state=draw(st.integers(0, 99))).reset_index(drop=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.integers(2, 8), st.integers(0, 50))
def test_any_table_is_dealt_into_disjoint_folds(table, k, seed):
    n = table.patient.nunique()
    if k > n or (n, k) == (3, 2):
        with pytest.raises(StudyError): make_folds(table, k, seed, LABELS)
        return
    folds = make_folds(table, k, seed, LABELS)
    for _, part in folds.groupby("fold"):
        sets = [set(part.patient[part.role == role]) for role in ROLES]
        assert all(sets) and not any(a & b for a, b in itertools.combinations(sets, 2)) and set().union(*sets) == set(table.patient)
    tested = folds[folds.role == "test"]
    assert sorted(tested.patient) == sorted(table.patient.unique()) and np.ptp(tested.fold.value_counts()) <= 1
    proof = fold_proof(folds, table.patient)
    assert proof.test["all"] == n and (proof.patients == n).all() and (proof[["shared", "tested_again"]] == 0).all(axis=None)
    assert folds.equals(make_folds(table, k, seed, LABELS))
    other = make_folds(table.assign(patient=table.patient.map(lambda p: f"z{(7*int(p[1:]) + 3)%101}")), k, seed, LABELS)
    assert other.role.tolist() == folds.role.tolist()  # the same division whatever patients are called
    stratum = strata(patient_labels(table))
    spread = tested.assign(stratum=stratum[tested.patient].to_numpy()).groupby(["stratum", "fold"]).size().unstack(fill_value=0).reindex(columns=range(k), fill_value=0)
    if (stratum.value_counts() > 1).all() and stratum.value_counts().max() >= k: assert (spread.max(axis=1) - spread.min(axis=1) <= 1).all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.floats(.05, .6), st.integers(0, 50))
def test_any_table_is_parted_with_every_class_on_both_sides(table, share, seed):
    n, labels = table.patient.nunique(), patient_labels(table)
    try: rest, held = hold_out(table, share, seed)
    except StudyError as e:
        assert "never stood on both sides" in str(e) or not 1 <= int(share*n + .5) < n
        return
    assert not set(rest.patient) & set(held.patient) and len(rest) + len(held) == len(table) and len(rest) and len(held)
    for label in LABELS:
        if labels[label].sum() > 1: assert patient_labels(rest)[label].any() and patient_labels(held)[label].any(), label
    assert abs(held.patient.nunique() - share*n) <= strata(labels).nunique() + .5
    again = hold_out(table, share, seed)
    assert again[0].equals(rest) and again[1].equals(held)
    renamed = hold_out(table.assign(patient="x" + table.patient), share, seed)[1]
    assert (renamed.patient.str[1:] == held.patient).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=4, max_size=40), st.floats(.15, .5), st.integers(0, 9))
def test_where_patients_have_one_class_each_nobody_is_refused(classes, share, seed):
    if int(share*len(classes) + .5) < 1: return
    rest, held = hold_out(table_of([[c == k for k in range(5)] for c in classes]), share, seed)
    for c in set(classes) - {-1}:
        if classes.count(c) > 1: assert rest[SUBTYPES[c]].any() and held[SUBTYPES[c]].any()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_out_looks_like_the_rest(seed):
    table = random_table(400, seed)
    rest, held = hold_out(table, .25, seed)
    assert held.patient.nunique() == 100 and (patient_labels(held).mean() - patient_labels(table).mean()).abs().max() < .03


def test_another_seed_holds_out_others():
    table = random_table(100, 1)
    one, two = (set(hold_out(table, .2, seed)[1].patient) for seed in (1, 2))
    assert 0 < len(one & two) < 20 == len(one)


def test_all_series_and_images_of_a_patient_go_together():
    table = pd.concat([random_table(40, 2)]*3)
    rest, held = hold_out(table, .2)
    assert len(held) == 24 and held.patient.value_counts().eq(3).all()
    assert len(make_folds(table, 3, accept=LABELS)) == 3*40


def test_thousands_of_patients_take_seconds():
    import time
    table = random_table(20_000, 3)
    start = time.process_time(); rest, held = hold_out(table, .2); fold_proof(make_folds(rest, 5), rest.patient, held.patient)
    assert time.process_time() - start < 15 and len(held) == 4000


@pytest.mark.parametrize("share, n", [(0, 50), (1, 50), (-.1, 50), (1.5, 50), (20, 50), (np.nan, 50), (.001, 50), (.999, 50), (.5, 1), (.1, 3)])
def test_shares_that_leave_nobody_are_refused(share, n):
    with pytest.raises(StudyError, match="share") as told: hold_out(random_table(n, 0), share)
    assert "\n" not in str(told.value)


def test_a_class_that_cannot_stand_on_both_sides_is_named():
    three = table_of([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 0]])  # three patients, three classes of two: no division has all on both sides
    with pytest.raises(StudyError, match="2 patients of .* never stood on both sides"): hold_out(three, .34)


def test_rare_classes_are_refused_by_name_after_holding_out_too():
    table = table_of([[k < 4, 0, 0, 0, 0] for k in range(40)])
    rest, _ = hold_out(table, .25)
    with pytest.raises(StudyError, match=r"any \(3\), epidural \(3\).*at most 3"): make_folds(rest, 4)
    assert len(make_folds(rest, 3)) == 3*30


@pytest.mark.parametrize("more", [dict(validation=0), dict(validation=1), dict(validation=-.2), dict(k=1), dict(k=0), dict(k=31), dict(k=2.5), dict(k=3.), dict(accept=("blood",))])
def test_wrong_wishes_are_told_in_one_line(more):
    with pytest.raises(StudyError) as told: make_folds(random_table(30, 1), **({"accept": LABELS} | more))
    assert "\n" not in str(told.value)


# Faults of a folds table, as a hand may make them

@pytest.fixture
def dealt():
    table = random_table(24, 5)
    return make_folds(table, 3, accept=LABELS), table.patient


def mine(folds, who="p005"): return folds.patient == who
def changed(folds, role, at): return folds.assign(role=folds.role.mask(mine(folds) & folds.fold.isin(at), role))


FAULTS = {
    "the same row twice": (lambda f: pd.concat([f, f[mine(f)].head(1)]), "p005 stands 2 times in fold 0"),
    "two parts of a fold": (lambda f: pd.concat([f, f[mine(f) & (f.role == "train")].head(1).assign(role="validation")]), "p005 stands 2 times in fold .*train and validation"),
    "tested in two folds": (lambda f: changed(f, "test", [0, 1, 2]), "p005 is tested in folds 0 and 1 and 2"),
    "never tested": (lambda f: changed(f, "train", [0, 1, 2]), "p005 is tested in no fold"),
    "no role in a fold": (lambda f: f[~(mine(f) & (f.role != "test"))], r"p005 has no role in fold \d"),
    "a missing fold": (lambda f: f[f.fold != 1], "numbered 0, 2"),
    "folds from 1 on": (lambda f: f.assign(fold=f.fold + 1), "numbered 1, 2, 3"),
    "a lost patient": (lambda f: f[~mine(f)], r"1 \(first p005\) are missing and 0 unknown"),
    "an unknown patient": (lambda f: f.replace({"patient": {"p005": "stranger"}}), r"1 \(first p005\) are missing and 1 \(first stranger\) unknown"),
    "nobody to validate on": (lambda f: f.assign(role=f.role.mask((f.fold == 2) & (f.role == "validation"), "train")), "fold 2 has no validation"),
    "a role that is none": (lambda f: f.assign(role="dev"), "dev"), "no column role": (lambda f: f.drop(columns="role"), "role"), "no rows": (lambda f: f[:0], "24 .*are missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_patient_and_folds(fault, dealt, tmp_path):
    folds, patients = dealt
    make, says = FAULTS[fault]
    for call in (lambda: fold_proof(make(folds), patients), lambda: check_folds(make(folds), patients)):
        with pytest.raises(StudyError, match=says) as told: call()
        assert "\n" not in str(told.value)
    make(folds).to_csv(tmp_path/"folds.csv", index=False)
    with pytest.raises(StudyError, match=says): load_folds(tmp_path/"folds.csv", patients)


def test_a_patient_held_out_and_dealt_is_named(dealt):
    with pytest.raises(StudyError, match="p005 is held out"): fold_proof(*dealt, held_out=["p005", "other"])
    assert (fold_proof(*dealt, held_out=["other"]).held_out == 0).all() and "held_out" not in fold_proof(*dealt)


def test_the_order_of_rows_plays_no_part_in_the_proof(dealt):
    folds, patients = dealt
    assert fold_proof(folds.sample(frac=1, random_state=0), patients).equals(fold_proof(folds, patients)) and fold_proof(folds).equals(fold_proof(folds, patients))


# Files and the command

def test_who_is_held_out_stays_so(tmp_path):
    table, path = random_table(40, 1), tmp_path/"held_out.csv"
    held = hold_out(table, .2, 1)[1]
    save_held_out(held, path), save_held_out(held, path)
    assert load_held_out(path) == held.patient.tolist() and pd.read_csv(path)["any"].sum() == held["any"].sum()
    for other in (hold_out(table, .2, 2)[1], held.head(3), held[:0]):
        with pytest.raises(StudyError, match="held out before"): save_held_out(other, path)
    path.write_text("name\nx\n")
    with pytest.raises(StudyError, match="patient"): load_held_out(path)


@pytest.fixture
def index(tmp_path):
    table = random_table(40, 7)
    series = table.assign(dataset="demo", images=1, volume_source="none", study=table.patient, series=table.patient)
    save_index(check_table(pd.DataFrame(columns=list(INDEX.columns)), "index"), tmp_path/"index.parquet")
    save_index(check_table(series.reindex(columns=list(SERIES.columns)), "series"), series_file(tmp_path/"index.parquet"))
    return tmp_path/"index.parquet", table


def test_the_command_deals_the_others_and_prints_the_proof(index, capsys):
    path, table = index
    argv = ["folds", str(path), "--k", "3", "--held-out", "0.2", "--accept", *LABELS, "--out", str(path.with_name("folds.csv"))]
    assert main(argv) == 0
    said = capsys.readouterr().out
    held = load_held_out(path.with_name("held_out.csv"))
    assert held == hold_out(table, .2)[1].patient.tolist() and len(held) == 8
    folds = load_folds(path.with_name("folds.csv"), set(table.patient) - set(held))
    assert fold_proof(folds, held_out=held).to_string() in said and fold_table(folds, table).to_string() in said
    assert "8 of 40 patients are held out" in said and "each of 32 is tested once" in said
    assert main(argv) == 0
    for other in (argv[:4] + argv[6:], [*argv, "--seed", "3"]):
        assert main(other) == 1 and "held out before" in capsys.readouterr().err
    assert load_folds(path.with_name("folds.csv"), set(table.patient) - set(held)).equals(folds)


@pytest.mark.parametrize("share", ["0", "1", "-0.1", "nan", "0.001"])
def test_the_command_refuses_shares_that_leave_nobody(index, capsys, share):
    path, _ = index
    assert main(["folds", str(path), f"--held-out={share}", "--out", str(path.with_name("folds.csv"))]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not path.with_name("folds.csv").exists()


def test_the_command_without_a_share_deals_everybody(index, capsys):
    path, table = index
    assert main(["folds", str(path), "--k", "3", "--accept", *LABELS, "--out", str(path.with_name("folds.csv"))]) == 0
    assert len(load_folds(path.with_name("folds.csv"), table.patient)) == 120 and not path.with_name("held_out.csv").exists()
    assert "tested_again" in capsys.readouterr().out
