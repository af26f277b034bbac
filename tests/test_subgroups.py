"""Subgroups hold what the tables of all series hold, and say what is not known."""
import numpy as np
import pandas as pd
import pytest

from ich_study.counts import clopper_pearson
from ich_study.schema import SUBTYPES, StudyError
from ich_study.subgroups import KINDS, NOT_AVAILABLE, fairness_statement, limit_precision, precision_table, subgroup_table

RUN = dict(analysis="toy", model="m", recipe="plain", variant="base", seed=1, fold=0, split="test", dataset="toy", subtype="any")


@pytest.fixture(scope="module")
def study():
    rng, n = np.random.default_rng(1), 90
    blood, names = np.arange(n) % 2 == 0, [f"s{i:02}" for i in range(n)]
    ml = np.where(blood, rng.lognormal(2, 1, n), 0)
    series = pd.DataFrame({"dataset": "toy", "series": names, "patient": [f"p{i:02}" for i in range(n)], "any": pd.array(blood, "boolean"), "blood_ml": ml, "volume_source": "mask", "thickness_mm": np.where(np.arange(n) % 3, 5., 1.),
                           "tilt_deg": np.where(np.arange(n) % 5, 0, 12.), "age": rng.integers(20, 90, n).astype(float), "sex": pd.array(["F", "M", None]*30, "string"), "manufacturer": pd.array([None]*n, "string"), "kernel": "soft"})
    for i, s in enumerate(SUBTYPES): series[s] = pd.array(blood & (np.arange(n)//2 % 5 == i), "boolean")
    score = 1/(1 + np.exp(-(2*blood - 1 + rng.normal(0, 1, n))))
    called = pd.DataFrame({**RUN, "patient": series.patient, "series": names, "image": None, "truth": pd.array(blood, "boolean"), "score": score, "called": pd.array(score > .5, "boolean")})
    volumes = pd.DataFrame({**RUN, "patient": series.patient, "series": names, "volume_source": "mask", "truth_ml": ml, "predicted_ml": ml + rng.normal(0, 2, n)})
    return called, volumes, series


def part(table, kind, metric): return table[(table.kind == kind) & (table.metric == metric)].set_index("group")


def test_groups_hold_every_series_once(study):
    table = subgroup_table(*study)
    assert set(table.kind) == set(KINDS)
    for kind in ("size", "thickness", "tilt", "age", "sex"):
        assert part(table, kind, "mae_ml").n.sum() == 90, kind
        found = part(table, kind, "sensitivity")
        assert round((found.value*found.n).sum()) == (study[0].called & study[0].truth).sum(), kind


def test_a_group_is_what_its_own_rows_give(study):
    called, volumes, series = study
    women = called[series.sex.eq("F").fillna(False).to_numpy()]
    got = part(subgroup_table(*study), "sex", "sensitivity").loc["F"]
    exact = clopper_pearson(int((women.called & women.truth).sum()), int(women.truth.sum()))
    assert (got.value, got.low, got.high, got.n) == exact[:4] and "not known" in part(subgroup_table(*study), "sex", "auc").index


def test_what_is_not_known_or_not_divided_is_one_row(study):
    called, volumes, series = study
    table = subgroup_table(called, volumes, series.assign(age=np.nan, blood_ml=np.nan))
    assert table[table.kind == "age"].reason.tolist() == [NOT_AVAILABLE] == table[table.kind == "manufacturer"].reason.tolist()
    assert len(table[table.kind == "kernel"]) == 1 and "one group" in table[table.kind == "kernel"].reason.iloc[0]
    for empty in (volumes.head(0), volumes.assign(volume_source="pseudo"), volumes.assign(truth_ml=np.nan)):
        bare = subgroup_table(called, empty, series)
        assert bare[bare.kind == "size"].reason.tolist() == [NOT_AVAILABLE] and bare[bare.metric == "bias_ml"].value.isna().all()


def test_a_subtype_is_set_against_series_without_blood(study):
    table = subgroup_table(*study)
    assert part(table, "subtype", "auc").loc["subdural"].n == 9 + 45 and part(table, "subtype", "sensitivity").loc["subdural"].n == 9
    assert np.isnan(part(table, "subtype", "specificity").loc["subdural"].value) and part(table, "subtype", "specificity").loc["no blood"].n == 45


def test_two_series_of_a_patient_widen_the_interval(study):
    called, volumes, series = study
    twice = [t.assign(patient=[f"p{i//6:02}" for i in range(90)]) for t in study]
    row = part(subgroup_table(*twice), "thickness", "sensitivity").iloc[0]
    assert "draws of patients" in row.method and row.value == part(subgroup_table(*study), "thickness", "sensitivity").iloc[0].value


def test_no_threshold_leaves_areas(study):
    called, volumes, series = study
    table = subgroup_table(called.assign(called=pd.array([pd.NA]*90, "boolean")), volumes, series)
    assert set(part(table, "sex", "sensitivity").reason) == {"no threshold"} and part(table, "sex", "auc").value.notna().all()


def test_precision_counts_patients_not_series(study):
    series = study[2]
    once, twice = precision_table(series).iloc[0], precision_table(series.assign(patient=[f"p{i//4:02}" for i in range(90)])).iloc[0]
    e = clopper_pearson(round(.9*45), 45)
    assert np.isclose(once["sensitivity 0.90 ±"], (e.high - e.low)/2) and once["series with"] == twice["series with"] == 45
    assert twice["patients with"] == 23 and twice["sensitivity 0.90 ±"] > once["sensitivity 0.90 ±"] and twice["patients without"] == 0 and "no patient without" in twice.reason
    assert limit_precision(series).n == 90 and np.isnan(limit_precision(series.assign(volume_source="none")).value)


def test_fairness_is_said_in_words(study):
    said = fairness_statement(study[2]).set_index("about")
    assert said.known["age"] == 1 and 0 < said.known["sex"] < 1 and NOT_AVAILABLE in said.statement["scanner"] and NOT_AVAILABLE in said.statement["site"]


def test_a_table_of_other_series_is_refused(study):
    with pytest.raises(StudyError, match="not in the series table"): subgroup_table(study[0], study[1], study[2].iloc[5:])
