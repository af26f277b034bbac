"""Golden cases: the project's own set and, where it lies beside the checkout, another one; and the runner, which must be able to fail."""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from golden import by_hand, make_cases
from golden.__main__ import OWN, main
from golden.form import FormError, Refused, allowed, decode, differences, encode, read_cases
from golden.topics import TOPICS, answer

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent/"shared"/"golden"/"cases.json"
WRITTEN = json.loads(OWN.read_text(encoding="utf-8"))["cases"]
CASES = [pytest.param(c, id=f"{kind}-{c['id']}") for kind, file in (("own", OWN), ("shared", SHARED)) if file.is_file() for c in read_cases(file)]
if not SHARED.is_file(): CASES.append(pytest.param(None, id="shared", marks=pytest.mark.skip(reason="no other golden cases found")))


# ---------------------------------------------------------------- the cases

def changed(value, tolerance, key=""):
    """The same expectation with one number of it off by a little more than is allowed, for each number."""
    if isinstance(value, (dict, list)):
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            for other in changed(v, tolerance, f"{key}.{k}"):
                yield value | {k: other} if isinstance(value, dict) else [*value[:k], other, *value[k + 1:]]
    elif not key.endswith("_at_least"):
        yield not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"{value}?" if isinstance(value, str) else \
            value + 2.1*allowed(tolerance, key, value) + 1e-12*max(1, abs(value)) if math.isfinite(value) else 1. if math.isnan(value) else math.nan


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error")
def test_golden_case(case):
    found, (expected, tolerance) = answer(case["topic"], case["input"]), (case["expected"], case["tolerance"])
    assert not differences(found, expected, tolerance)
    for n, other in enumerate(changed(expected, tolerance)):
        if n < 200: assert differences(found, other, tolerance), f"a wrong number would pass: {other}"


def test_own_set_has_an_ordinary_or_an_edge_case_of_every_topic():
    assert len({c["id"] for c in WRITTEN}) == len(WRITTEN) >= 60
    assert {c["topic"] for c in WRITTEN if c["edge_case"]} == {c["topic"] for c in WRITTEN} == set(TOPICS)
    assert len({json.dumps([c["topic"], c["input"]]) for c in WRITTEN}) == len(WRITTEN)


# Inputs with next to nothing in them, or with what is no answer: the library answers or refuses, and never breaks or warns.
BARE = {
    "diagnostic counts": [{"rows": []}, {"rows": [{"name": "a", "tp": -1, "fp": 0, "fn": 0, "tn": 1},
                                                  {"name": "b", "tp": 1, "fp": None, "fn": 0, "tn": 1}]}],
    "averages": [{"rows": []}, {"rows": [{"tp": 3, "fp": 0, "fn": 0, "tn": 0}]}, {"rows": [{"tp": 3, "fp": 1, "fn": 0, "tn": 0}]*2},
                 {"rows": [{"tp": 0, "fp": 0, "fn": 0, "tn": 0}]*2}],
    "proportion CI": [{"kn": []}, {"kn": [[3, 2], [None, 2], [1.5, 2]]}],
    "LR CI with zero cells": [{"rows": []}, {"rows": [{"a": 0, "na": 0, "b": 0, "nb": 0}, {"a": 3, "na": 2, "b": 1, "nb": 1}]}],
    "AUC CI": [{"y": [], "score": []}, {"y": [1], "score": [.5]}, {"y": [1, 0], "score": [None, .5]}, {"y": [1, 0, 2], "score": [.1, .2, .3]},
               {"y": [0, 1, 0, 1], "score": [math.inf, math.inf, -math.inf, .5]}],
    "paired AUC test": [{"y": [], "a": [], "b": []}, {"y": [1, 0], "a": [.1, .2], "b": [.3, None]},
                        {"y": [1, 1, 0, 0], "a": [.1, .2, .3, .4], "b": [.5]*4}],
    "AUC edge": [{"y": [1, 0], "score": [.5, .5]}, {"y": [1, 1], "a": [.1, .2], "b": [.3, .1]}],
    "inter-rater": [{"ratings": []}, {"ratings": [[1], [0]]}, {"ratings": [[1, 0, None]]}, {"ratings": [[None, None]]*3},
                    {"ratings": [["yes", "no"], ["yes", "yes"], [None, "no"]]}],
    "majority vote": [{"readings": []}, {"readings": [[]]}, {"readings": [[1]]}],
    "ICC": [{"matrix": []}, {"matrix": [[1, 2]]}, {"matrix": [[1], [2]]}, {"matrix": [[5, 5], [5, 5], [5, 5]]},
            {"matrix": [[1, None], [2, 3], [4, 5], [6, 6]]}],
    "Bland-Altman": [{"x": [], "y": []}, {"x": [1], "y": [2]}, {"x": [1, 2], "y": [1, 3]}, {"x": [1, 2, 3], "y": [1, 2, 3]},
                     {"x": [None, 2], "y": [1, None]}, {"n": [0, 1, 2, 5000]}, {"n": 17}],
    "proportional bias": [{"x": [], "y": []}, {"x": [1, 2], "y": [2, 4]}, {"x": [1, 2, 3], "y": [3, 2, 1]}],
    "correlation": [{"x": [], "y": []}, {"x": [1, 2, 3], "y": [2, 4, 5]}, {"all_missing": [[None, None], [1, 2]], "unequal": [[1, 2], [1]]}],
    "agreement": [{"x": [], "y": []}, {"x": [1, 2, None], "y": [1, 2, 3]}, {"x": [4]*5, "y": [4]*5}],
    "CCC": [{"x": [], "y": []}, {"x": [1, 2, 3], "y": [1, 2, 3]}, {"x": [1, 1, 1], "y": [1, 2, 3]}],
    "Deming": [{"x": [], "y": []}, {"x": [1, 1, 1], "y": [1, 2, 3]}, {"x": [1, 2, 3], "y": [1, 2, 4], "lambda": -1}],
    "Passing-Bablok": [{"x": [], "y": []}, {"x": [1, 1, 1], "y": [1, 2, 3]}, {"x": [1, 2, 2, 3], "y": [1, 2, 2, 3]}],
    "repeated-measures Bland-Altman": [{"subject": [], "d": []}, {"subject": [1, 1], "d": [1, 2]}, {"subject": ["a", "b"], "d": [1, 2]},
                                       {"subject": ["a", "a", "b"], "d": [1, None, 2]}],
    "McNemar": [{"table": [[0, 0], [0, 0]]}, {"table": [[1, -1], [2, 3]]}, {"a": [1, 0, 1], "b": [0, 1, 1]}],
    "multiplicity": [{"p": []}, {"p": [None]}, {"p": [1.5, .1]}],
    "multi-label": [{"Y": [], "S": []}, {"Y": [[1]], "S": [[.3]]}, {"Y": [[0, 0], [0, 0]], "S": [[.1, .2], [.3, .4]]},
                    {"Y": [[1, 0], [0, 1]], "S": [[None, .2], [.3, .4]]}],
    "calibration": [{"y": [], "p": []}, {"y": [1], "p": [.3]}, {"y": [1, 1, 1], "p": [.2, .4, .9]}, {"y": [0, 0, 1, 1], "p": [.1, .2, .8, .9]},
                    {"y": [0, 1, 1, 0], "p": [0, 1, .5, .5]}, {"y": [0, 1], "p": [1.2, .5]},
                    {"y": [0, 1, 0, 1], "p": [.3]*4}],
    "weighted log loss": [{"Y": [], "P": []}, {"Y": [[0]*6], "P": [[0]*6]}, {"Y": [[0]*6], "P": [[None]*6]}, {"Y": [[0]*5], "P": [[.1]*5]}],
    "segmentation": [{"pred": [[1, 0], [0, 0]], "ref": [[1, 1], [0, 0]], "spacing_mm": [.5, .5]},
                     {"pred": [[[1]]], "ref": [[[1]]], "spacing_mm": [5, 1, 1]}, {"pred": [[[1]]], "ref": [[[1, 0]]], "spacing_mm": [5, 1, 1]},
                     {"pred": [[[1]]], "ref": [[[0]]], "spacing_mm": [0, 1, 1]}],
    "volumes": [{"pred": [], "ref": []}, {"pred": [None], "ref": [1]}, {"pred": [3], "ref": [0]}, {"pred": [1], "ref": [1, 2]}],
    "subject level": [{"subject": [], "label": [], "score": []}, {"subject": [1, 1, 2], "label": [0, None, 1], "score": [None, None, .5]},
                      {"subject": ["a", "b"], "label": [[0, 1], [1, 0]], "score": [.2, .3]}],
    "k-fold": [{"patient": ["a", "b"], "label": [0, 1], "k": 5, "seed": 0}, {"patient": [1, 2, 3, 4], "label": [0]*4, "k": 2, "seed": 0},
               {"patient": [1, 2], "label": [0, 1], "k": 2, "seed": 1}, {"patient": [], "label": [], "k": 3}],
    "cluster bootstrap": [{"m_patients": 1, "k_correct_patients": 1, "slices_per_patient": 3}, {"slice_patient": [], "slice_correct": []}],
    "threshold": [{"val_y": [1, 1], "val_score": [.1, .2], "test_y": [0], "test_score": [.5]},
                  {"val_y": [1, 0], "val_score": [.5, .5], "test_y": [], "test_score": []}],
    "AUC over folds": [{"fold": [], "y": [], "score": []}, {"fold": ["a", "a", "b"], "y": [1, 1, 0], "score": [.1, .2, None]}],
    "normalisation": [{"train": [], "test": [1]}, {"train": [5, 5], "test": [1, 5]},
                      {"train": [1, 2.5], "test": [], "window": {"level": 80, "width": 200}}],
}


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.filterwarnings("error")
def test_bare_input_is_answered_or_refused(topic):
    for given in BARE[topic]: assert isinstance(answer(topic, given), (dict, Refused)), given


# ---------------------------------------------------------------- how the own set is made

@pytest.mark.parametrize("n", range(1, len(WRITTEN) + 1, 7))
def test_a_case_is_made_the_same_again(n):
    assert encode(make_cases.made(n, make_cases.CASES[n - 1])) == WRITTEN[n - 1]


def test_nothing_is_written_where_the_two_routes_differ(monkeypatch):
    n, right = next(n for n, c in enumerate(make_cases.CASES) if c["topic"] == "multiplicity"), by_hand.holm
    monkeypatch.setattr(by_hand, "holm", lambda i: {"adj": [p + 1e-6 for p in right(i)["adj"]]})
    with pytest.raises(SystemExit, match="differ"): make_cases.made(n, make_cases.CASES[n])
    with pytest.raises(SystemExit, match="differ"): make_cases.text()


def test_the_maker_knows_nothing_of_the_library():
    done = subprocess.run([sys.executable, "-c", "import sys, tests.golden.make_cases; print([m for m in sys.modules if m.startswith('ich_study')])"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ---------------------------------------------------------------- the rules of comparison

@pytest.mark.parametrize("got, expected, tolerance, agree", [
    (1.05, 1., .1, True), (1.2, 1., .1, False), (0., .05, .1, True), (108., 100., .1, True), (111., 100., .1, False),  # t max(1, |expected|)
    (1.01, 1., {"abs": .02, "rel": 0}, True), (101., 100., {"abs": .1, "rel": .02}, True), (103., 100., {"abs": .1, "rel": .02}, False),
    (math.inf, math.inf, .1, True), (1e300, math.inf, .1, False),
    (math.nan, math.nan, 0, True), (0., math.nan, 9, False), (math.nan, 0., 9, False), (3, 3, 9, True), (3., 3, 9, True), (4, 3, 9, False),
    (3.001, 3, 9, False), (True, True, 9, True), (1, True, 9, False), (True, 1, 9, False),
    ("a", "a", 0, True), ("b", "a", 9, False), ([1., 2.], [1., 2., 3.], 9, False), ([], [], 0, True), ([], [math.nan], 0, False), (5, [5], 9, False),
    ({"a": 1.}, {"a": 1.}, 0, True)])
def test_rules_of_comparison(got, expected, tolerance, agree):
    assert (not differences(got, expected, tolerance)) == agree


def test_a_tolerance_by_key_is_taken_by_its_beginning():
    found = {"boot_lo": .51, "naive_lo": .51, "estimate": .8}
    assert [k for k, *_ in differences(found, {"boot_lo": .5, "naive_lo": .5, "estimate": .8}, {"boot": .02, "naive": 1e-8})] == ["naive_lo"]
    assert [k for k, *_ in differences(found, {"estimate": .8001}, {"boot": .02})] == ["estimate"]


def test_what_was_refused_is_nan_and_raises():
    refused = Refused("3 of 2 is no proportion")
    assert not differences(refused, {"ci": [[math.nan, math.nan]], "raises": True, "value": math.nan, "error": True})
    assert len(differences(refused, {"value": 1., "n": 3, "raises": False})) == 3
    assert not differences({"value": 1.}, {"value": 1., "raises": False})
    assert differences({"value": 1.}, {"raises": True}) and differences({"value": 1.}, {"other": 1.})


def test_at_least_is_an_inequality():
    assert not differences({"folds_at_least": 4}, {"folds_at_least": 3}, 0) and differences({"folds_at_least": 2}, {"folds_at_least": 3}, 0)


# ---------------------------------------------------------------- the runner

@pytest.fixture
def file(tmp_path):
    """A file of four cases: right, wrong, of an unknown topic, and one that breaks the mapping."""
    one = next(c for c in WRITTEN if c["topic"] == "McNemar")
    cases = [one | {"id": "A", "name": "right"},
             one | {"id": "B", "name": "wrong by a little", "expected": {"p_exact": one["expected"]["p_exact"] + 1e-6}},
             one | {"id": "C", "name": "what", "topic": "tea leaves"}, one | {"id": "D", "name": "no table", "input": {"tabel": 1}}]
    path = tmp_path/"cases.json"
    path.write_text(json.dumps({"cases": cases}))
    return path


def run(*argv): return subprocess.run([sys.executable, "-m", "tests.golden", *map(str, argv)], cwd=ROOT, capture_output=True, text=True)


def test_runner_tells_what_fails(file):
    done = run(file)
    wrong, unknown, broken, end = done.stdout.splitlines()
    assert done.returncode == 1 and end == "4 cases: 1 passed, 3 failed"
    assert wrong.startswith('FAILED B "wrong by a little": p_exact: got 0.0') and "expected 0.0" in wrong and wrong.endswith("tolerance 1e-09")
    assert 'C "what"' in unknown and '"tea leaves"' in unknown and all(t in unknown for t in TOPICS)
    assert 'D "no table"' in broken and "KeyError" in broken


def test_runner_takes_the_own_set_unless_told():
    done = run("-k", "mcnemar", "-v")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr and all(line.startswith("passed G") for line in lines[:-1])
    assert lines[-1] == f"{len(lines) - 1} cases: {len(lines) - 1} passed, 0 failed ({len(WRITTEN) - len(lines) + 1} not chosen)"


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as left: main(["--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and "example:" in said and "python -m tests.golden" in said and "-k" in said and "-v" in said


def test_choosing_by_id_name_or_topic(file, capsys):
    for text, end in (("A", "4 cases: 1 passed, 3 failed (0 not chosen)"), ("RIGHT", "1 case: 1 passed, 0 failed (3 not chosen)"),
                      ("tea leaves", "1 case: 0 passed, 1 failed (3 not chosen)")):
        assert main([str(file), "-k", text]) == int("0 failed" not in end) and capsys.readouterr().out.splitlines()[-1] == end
    assert main([str(file), "-k", "nowhere"]) == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("text, said", [
    (None, "no file"), ("{", "not JSON"), ("[]", "golden cases"), ('{"cases": 3}', "golden cases"), ('{"cases": [3]}', "case 1"),
    ('{"cases": [{"id": "A"}]}', "topic"),
    ('{"cases": [{"id": "A", "topic": "ICC", "input": [], "expected": {}}]}', "input"),
    ('{"cases": [{"id": "A", "topic": "ICC", "input": {}, "expected": 1}]}', "expected"),
    ('{"cases": [{"id": "A", "topic": "ICC", "input": {}, "expected": {}, "tolerance": "small"}]}', "tolerance"),
    ('{"cases": [{"id": "A", "topic": "ICC", "input": {}, "expected": {}, "tolerance": {"abs": -1}}]}', "tolerance")])
def test_a_file_that_is_none_ends_with_2_and_one_line(text, said, tmp_path, capsys):
    path = tmp_path/"cases.json"
    if text is not None: path.write_text(text)
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and said in err and str(path) in err
    with pytest.raises(FormError): read_cases(path)


def test_runner_ends_with_2_in_a_shell(tmp_path):
    done = run(tmp_path/"nowhere.json")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout


def test_an_empty_file_of_cases_passes(tmp_path, capsys):
    (tmp_path/"cases.json").write_text('{"cases": []}')
    assert main([str(tmp_path/"cases.json")]) == 0 and capsys.readouterr().out == "0 cases: 0 passed, 0 failed\n"


def test_special_numbers_go_both_ways():
    assert encode([math.inf, -math.inf, {"a": 1.5}, None, "x"]) == ["Infinity", "-Infinity", {"a": 1.5}, None, "x"]
    assert encode(math.nan) == "NaN" and math.isnan(decode("NaN"))
