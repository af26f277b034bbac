"""Every rule has three ends, and nothing but numbers decides which."""
import json

import numpy as np
import pandas as pd
import pytest

from ich_study.claims import AGAINST, ALL, CLAIMS, OPEN, SUPPORTED, count_verdicts, judge_claims, strength_sentences, strengths, wider
from ich_study.counts import clopper_pearson

ROW = dict(variant="base", seed=1, n=1000, unit="series", method="DeLong", reason=None)


def around(v, half=.01): return dict(value=v, low=v - half, high=v + half)


def numbers(metric, values, subtype="any", recipe="paper", half=.01, **more):
    """A table with one row per model; `values` is a number for all or a dict."""
    values = values if isinstance(values, dict) else dict.fromkeys(ALL, values)
    return pd.DataFrame([ROW | dict(model=m, recipe=recipe, subtype=subtype, metric=metric, series_set="all") | around(v, half) | more for m, v in values.items()])


def proportions(metric, hits, n=1000):
    return pd.DataFrame([ROW | dict(model=m, recipe="paper", subtype="any") | clopper_pearson(h, n).row(metric, "series") for m, h in hits.items()])


def pairs(metric, better, v=.1, p=1e-4, recipe="paper"):
    """All pairs of models, every model of `better` ahead of all others by v."""
    rows = []
    for i, a in enumerate(ALL):
        for b in ALL[i + 1:]:
            d = v*((a in better) - (b in better))
            rows.append(ROW | dict(over="model", fixed=recipe, first=a, second=b, metric=metric, p=p if d else .9, p_holm=np.nan) | around(d, .05))
    return pd.DataFrame(rows)


def costs(**factor):
    base = {"parameters": 100., "seconds per epoch": 10., "training (s)": 100., "peak memory (MB)": 50.}
    return pd.DataFrame([dict(model=m, recipe="paper") | {k: v*factor.get(m, 1) for k, v in base.items()} for m in ALL])


def folds(low, high, off=None):
    rows = [ROW | dict(model=m, recipe="paper", subtype="any", metric="auc", fold=str(f), value=.9, low=low, high=high) for m in ALL for f in range(3)]
    return pd.DataFrame(rows + [r | off for r in rows[:1] if off and rows.remove(rows[0]) is None])


def steps(step, **metrics):
    return pd.DataFrame([ROW | dict(step=step, metric=m, when=w, value=(lo + hi)/2, low=lo, high=hi, unit="image") for m, (w, lo, hi) in metrics.items()])


def changes(v, half, p, **one):
    rows = [ROW | dict(role="secondary", model=m, recipe="paper", baseline="plain", subtype="any", metric="mae_ml", p=one.get(m, (v, p))[1]) | around(one.get(m, (v, p))[0], half) for m in ALL]
    return pd.DataFrame(rows)


def both(*frames): return pd.concat(frames, ignore_index=True)
def judge(number, acceptable_ml=np.nan, **tables): return judge_claims(tables, acceptable_ml=acceptable_ml).set_index("number").loc[number]


ONE_BAD = {m: 960 for m in ALL} | {"cnn_ds": 700}
GAUSS = lambda noise, edge: dict(steps=both(steps("gaussian", noise_sd=("ratio", *noise)), steps("gaussian", skull_edge_px=("change", *edge), blood_edge_px=("change", *edge))))
PLACES = lambda a, s, t: dict(detection=both(numbers("accuracy", {m: .8 for m in ALL} | {"bhcnet": a}), numbers("specificity", {m: .8 for m in ALL} | {"bhcnet": s}), numbers("sensitivity", {m: .8 for m in ALL} | {"bhcnet": t})))
BALANCE = lambda who: dict(comparison=both(pairs("sensitivity difference", who), pairs("specificity difference", who)), detection=numbers("ap_macro", {m: .8 if m == "cnn_lstm" else .7 for m in ALL}, "all subtypes"))
LR = lambda pos, neg: dict(detection=both(numbers("lr_pos", pos, half=1), numbers("lr_neg", neg)))
R = lambda v, half=.01: dict(agreement=both(numbers("pearson", v, half=half, series_set="positive"), numbers("spearman", v, half=half, series_set="positive")))
SEGMENT = lambda factor, dice, who: dict(costs=costs(cnn_ds=factor), overlap=numbers("dice", {"cnn_ds": dice}), comparison=pairs("sensitivity difference", who))
WIDTHS = lambda half: dict(detection=both(*(numbers(m, .9, half=half) for m in ("accuracy", "sensitivity", "specificity"))))

ENDS = {  # number: tables that support, that refute, that leave it open
    1: (dict(detection=proportions("accuracy", dict.fromkeys(ALL, 960))), dict(detection=proportions("accuracy", ONE_BAD)), dict(detection=proportions("accuracy", dict.fromkeys(ALL, 90), 100))),
    2: (dict(detection=numbers("sensitivity", .91)), dict(detection=numbers("sensitivity", .8)), dict(detection=numbers("sensitivity", .88))),
    3: (dict(comparison=pairs("sensitivity difference", ["cnn_lstm"])), dict(comparison=pairs("sensitivity difference", ["cnn_ds"])), dict(comparison=pairs("sensitivity difference", ["cnn_lstm"], p=.2))),
    4: (dict(detection=numbers("specificity", {m: .7 for m in ALL} | {"bhcnet": .99})), dict(detection=numbers("specificity", .7)), dict(detection=numbers("specificity", .96))),
    5: (LR(20, .05), LR(20, .5), LR(10.5, .05)),
    6: (dict(detection=numbers("auc", .98)), dict(detection=numbers("auc", .8)), dict(detection=numbers("auc", .95))),
    7: (dict(comparison=pairs("ap difference", ["hybrid_cnn", "cnn_lstm"])), dict(comparison=pairs("ap difference", ["bhcnet"])), dict(comparison=pairs("ap difference", ["hybrid_cnn"]))),
    8: (dict(detection=numbers("ap_macro", {m: .9 if m in ("densenet_resnet", "dl_solution") else .8 for m in ALL}, "all subtypes")), dict(detection=numbers("ap_macro", {m: .9 if m == "bhcnet" else .8 for m in ALL}, "all subtypes")),
        dict(detection=numbers("ap_macro", .8, "all subtypes"))),
    9: (WIDTHS(.04), WIDTHS(.06), dict(detection=numbers("accuracy", .9))),
    10: (dict(fold_auc=folds(.87, .93)), dict(fold_auc=folds(.88, .92, dict(value=.4, low=.39, high=.41))), dict(fold_auc=folds(.7, 1.))),
    11: (R(.95), R(.7), R(.9)),
    12: (dict(agreement=numbers("bias_ml", 0, half=.5), acceptable_ml=1.), dict(agreement=numbers("bias_ml", 3, half=.5), acceptable_ml=1.), dict(agreement=numbers("bias_ml", 0, half=5), acceptable_ml=1.)),
    13: (PLACES(.9, .9, .7), PLACES(.9, .7, .7), PLACES(.9, .8, .7)),
    14: (BALANCE(["hybrid_cnn"]), BALANCE(["bhcnet"]), BALANCE([])),
    15: (dict(costs=costs(densenet_resnet=3)), dict(costs=costs(densenet_resnet=.3)), dict(costs=costs())),
    16: (dict(agreement=numbers("mae_ml", {m: 4 for m in ALL} | {"cnn_lstm": 2}), costs=costs(cnn_lstm=2)), dict(agreement=numbers("mae_ml", {m: 4 for m in ALL} | {"cnn_lstm": 6}), costs=costs(cnn_lstm=2)), dict(agreement=numbers("mae_ml", 4), costs=costs(cnn_lstm=2))),
    17: (dict(comparison=pairs("ap difference", ["hybrid_cnn", "cnn_lstm"])), dict(comparison=pairs("ap difference", ["dl_solution"])), dict(comparison=pairs("ap difference", []))),
    18: (SEGMENT(.5, .8, ["cnn_lstm"]), SEGMENT(.5, .4, ["cnn_lstm"]), SEGMENT(.5, .7, ["cnn_lstm"])),
    19: (GAUSS((.4, .5), (.5, 1.5)), GAUSS((.4, .5), (2.5, 3)), GAUSS((.9, 1.1), (.5, 1.5))),
    20: (dict(steps=steps("clahe", contrast_to_noise=("ratio", 1.1, 1.3))), dict(steps=steps("clahe", contrast_to_noise=("ratio", .4, .6))), dict(steps=steps("clahe", contrast_to_noise=("ratio", .9, 1.1)))),
    21: (dict(steps=steps("normalise", share_in_range=("after", 1., 1.), between_over_within=("ratio", .6, .8))), dict(steps=steps("normalise", share_in_range=("after", 1., 1.), between_over_within=("ratio", 1., 1.))),
         dict(steps=steps("normalise", share_in_range=("after", 1., 1.), between_over_within=("ratio", .8, 1.2)))),
    22: (dict(ablation=changes(-1, .2, 1e-4)), dict(ablation=changes(-1, .2, 1e-4, bhcnet=(1, 1e-4))), dict(ablation=changes(-.1, .5, .5))),
}


def test_all_22_claims_stand_there_once():
    assert [c.number for c in CLAIMS] == list(range(1, 23)) == sorted(ENDS)
    assert len({c.claim for c in CLAIMS}) == 22 and all(c.rule.count("supported when") >= 1 and "not supported when" in c.rule for c in CLAIMS)
    assert json.loads(json.dumps([c.parts for c in CLAIMS]))  # a machine can read them


@pytest.mark.parametrize("end", range(3), ids=[SUPPORTED, AGAINST, "open"])
@pytest.mark.parametrize("number", ENDS)
def test_every_rule_has_three_ends(number, end):
    found = judge(number, **ENDS[number][end])
    assert found.verdict == (SUPPORTED, AGAINST, OPEN)[end], (found.measured, found.why)
    assert len(found.why) > 5 and found.unit_of_analysis


@pytest.mark.parametrize("number", ENDS)
def test_an_interval_that_is_missing_supports_nothing(number):
    given = ENDS[number][0]
    broken = {k: t.assign(**{c: np.nan for c in ("low", "high", "p", "parameters", "seconds per epoch") if c in t}) if isinstance(t, pd.DataFrame) else t for k, t in given.items()}
    assert judge(number, **broken).verdict == OPEN


@pytest.mark.parametrize("number", [n for n in ENDS if n not in (4, 6, 17, 18, 19, 20, 21)])
def test_without_one_of_six_models_nothing_about_all_is_supported(number):
    given = {k: t[(t.get("model", t.get("first")) != "cnn_ds") & (t["second"] != "cnn_ds" if "second" in t else True)] if isinstance(t, pd.DataFrame) else t for k, t in ENDS[number][0].items()}
    assert judge(number, **given).verdict == OPEN


@pytest.mark.parametrize("number", ENDS)
def test_without_tables_nothing_can_be_told(number):
    for tables in ({}, {"detection": None}, {"detection": pd.DataFrame(), "agreement": pd.DataFrame(), "comparison": pd.DataFrame(), "costs": pd.DataFrame(), "steps": pd.DataFrame()}):
        found = judge(number, **tables)
        assert found.verdict == OPEN and found.why and "nan" not in found.measured


def test_an_interval_that_says_it_is_none_supports_nothing():
    table = numbers("accuracy", 1., half=0, reason="no variance; the interval is no interval")
    assert judge(1, detection=table).verdict == OPEN


def test_a_wide_interval_around_nothing_is_no_support():
    undeclared = judge(12, agreement=numbers("bias_ml", 0, half=.1))
    assert undeclared.verdict == OPEN and "no evidence" in undeclared.why
    sloped = both(numbers("bias_ml", 0, half=.1), numbers("slope", -.3, half=.1))
    assert judge(12, acceptable_ml=1., agreement=sloped).verdict == AGAINST
    assert judge(22, acceptable_ml=1., ablation=changes(0, .5, .9)).verdict == AGAINST and judge(22, ablation=changes(0, .5, .9)).verdict == OPEN


def test_one_of_six_that_fails_by_chance_does_not_decide():
    close = numbers("accuracy", {m: .95 for m in ALL} | {"bhcnet": .889}, half=.01)
    assert close.high[0] < .9 and judge(1, detection=close).verdict == OPEN  # widened for six, its limit is above 0.9
    assert judge(1, detection=close.assign(low=close.value - .001, high=close.value + .001)).verdict == AGAINST


def test_plain_stands_in_for_paper_and_is_named():
    found = judge(1, detection=numbers("accuracy", .95, recipe="plain"))
    assert found.verdict == SUPPORTED and found.measured.count("recipe plain") == 6
    order = judge(3, comparison=pairs("sensitivity difference", ["cnn_lstm"], recipe="plain"))
    assert order.verdict == SUPPORTED and "recipe plain" in order.measured


def test_classical_methods_and_other_seeds_do_not_count():
    table = both(numbers("accuracy", .95), numbers("accuracy", {"threshold": .2}, recipe="none", seed=0), numbers("accuracy", .2, seed=2), numbers("accuracy", .2, variant="pretrained"))
    assert judge(1, detection=table).verdict == SUPPORTED


def test_the_comparison_stands_in_for_the_ablation():
    rows = pd.DataFrame([ROW | dict(over="recipe", fixed=m, first="plain", second="paper", metric="mae difference (mL)", p=1e-4) | around(1, .2) for m in ALL])
    assert judge(22, comparison=rows).verdict == SUPPORTED
    assert judge(22, comparison=rows.assign(first="paper", second="plain")).verdict == AGAINST


def test_wider_intervals_hold_narrower_ones():
    for method in ("DeLong", "Clopper-Pearson, folds pooled", "log (Simel 1991)"):
        e = clopper_pearson(80, 100)
        row = pd.Series(dict(value=.8, low=e.low, high=e.high, n=100, method=method))
        ends = [wider(row, k) for k in (1, 2, 6)]
        assert np.allclose(ends[0], (e.low, e.high)) and all(b[0] < a[0] and a[1] < b[1] for a, b in zip(ends, ends[1:]))


def test_counts_add_up():
    judged = judge_claims({})
    assert count_verdicts(judged) == "Of 22 claims, 0 are supported, 0 are not supported, and 22 cannot be told from these data."


def test_strengths_follow_numbers_not_names():
    table = numbers("auc", {"bhcnet": .9, "cnn_lstm": .8, "cnn_ds": .8, "dl_solution": .7})
    found = strengths(table).set_index("model").verdict
    assert found.to_dict() == {"bhcnet": "strength", "cnn_lstm": "neither", "cnn_ds": "neither", "dl_solution": "weakness"}
    turned = {"bhcnet": "dl_solution", "dl_solution": "bhcnet"}
    assert strengths(table.assign(model=table.model.replace(turned))).set_index("model").verdict["dl_solution"] == "strength"
    assert (strengths(table.assign(low=np.nan, high=np.nan)).verdict == "neither").all()
    assert strengths(agreement=None).empty and strengths(table.head(1)).verdict.tolist() == ["neither"]


def test_less_error_is_a_strength_and_pairs_go_before_medians():
    error = numbers("mae_ml", {"bhcnet": 2., "cnn_lstm": 4., "cnn_ds": 4., "dl_solution": 6.}, half=.1)
    said = strengths(numbers("auc", .8), error).query("metric == 'mae_ml'").set_index("model").verdict
    assert said["bhcnet"] == "strength" and said["dl_solution"] == "weakness"
    paired = strengths(numbers("auc", .8), comparison=pairs("auc difference", ["cnn_ds"]))
    assert paired.set_index("model").verdict.to_dict() == {m: "strength" if m == "cnn_ds" else "weakness" for m in ALL}
    assert "better than BHCNet" in strength_sentences(paired).set_index("model").sentence["cnn_ds"]
