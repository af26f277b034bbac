"""What every notebook promises, checked without a GPU or patient data."""
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from processes import ROOT, run_notebook

NBS = ROOT/"nbs"
LIB = sorted(NBS.glob("[0-9][0-9]_*.ipynb"))
STUDY = sorted((NBS/"study").glob("[0-9]*.ipynb"))
RUNG = {p.stem.split("_", 1)[1]: int(p.stem[:2]) for p in LIB}
name = lambda p: p.stem


def cells(nb, kind="code"): return [c for c in nbformat.read(nb, 4).cells if c.cell_type == kind]
def lines(source): return [l for l in source.splitlines() if l.strip()]


def tool(*argv, cwd=ROOT):
    """Run a tool of this environment, without the variable that turns nbdev's export off."""
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(cwd)}
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.parametrize("nb", [*LIB, NBS/"index.ipynb"], ids=name)
def test_runs(nb, tmp_path): run_notebook(nb, tmp_path/"said.txt")


@pytest.mark.parametrize("nb", LIB, ids=name)
def test_module_is_the_name_of_the_notebook(nb):
    targets = re.findall(r"^#\| *default_exp (\S+)", "\n".join(c.source for c in cells(nb)), re.M)
    assert targets == [nb.stem.split("_", 1)[1]]


@pytest.mark.parametrize("nb", LIB, ids=name)
def test_imports_only_lower_rungs(nb):
    exported = "\n".join(c.source for c in cells(nb) if c.source.startswith("#| export"))
    for module in re.findall(r"from ich_study\.(\w+) import", exported):
        assert RUNG[module] < int(nb.stem[:2]), f"{nb.name} imports {module}, which is not below it"


def test_light_modules_load_no_network_library():
    """All in one process, so that the module that brings Keras in is named."""
    light = [m for m, rung in RUNG.items() if rung < 50 or m in ("models", "predictions", "study", "cli")]
    code = "import importlib, sys\nfor m in sys.argv[1:]:\n    importlib.import_module('ich_study.' + m)\n    if {'keras', 'tensorflow'} & sys.modules.keys(): sys.exit(m + ' loads Keras')"
    tool("-c", code, *light)


@pytest.mark.parametrize("nb", STUDY, ids=name)
def test_has_one_parameters_cell_of_typed_commented_literals(nb):
    tagged = [c for c in cells(nb) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in lines(tagged[0].source):
        assert re.fullmatch(r'\w+: (str|int|float|bool) = ("[^"]*"|[-\d.e]+|True|False)  # .+', line), line


@pytest.mark.parametrize("nb", STUDY, ids=name)
def test_study_notebook_refuses_unknown_parameters_and_keeps_no_output(nb):
    code = cells(nb)
    after = [c.source for c in code if "parameters" not in c.metadata.get("tags", [])][0]
    assert "refuse_unknown(globals())" in after
    assert not any(c.outputs or c.execution_count for c in code)
    assert not any(re.search(r"^(def|class) ", c.source, re.M) and "library" in c.source for c in code)


@pytest.mark.parametrize("nb", LIB + STUDY, ids=name)
def test_cells_stay_short(nb):
    assert max(len(lines(c.source)) for c in cells(nb)) <= 40


@pytest.mark.parametrize("nb", LIB, ids=name)
def test_there_is_a_word_of_prose_per_line_of_code(nb):
    words = sum(len(c.source.split()) for c in cells(nb, "markdown"))
    assert words >= sum(len(lines(c.source)) for c in cells(nb))


@pytest.mark.parametrize("nb", LIB + STUDY, ids=name)
def test_no_star_imports(nb):
    assert not any(re.search(r"^\s*from \S+ import \*", c.source, re.M) for c in cells(nb))


@pytest.mark.parametrize("nb", LIB, ids=name)
def test_every_public_function_is_shown(nb):
    exported = [c.source for c in cells(nb) if c.source.startswith("#| export")]
    shown = "\n".join(c.source for c in cells(nb) if not c.source.startswith("#| export"))
    public = re.findall(r"^(?:def|class) ([a-zA-Z]\w*)", "\n".join(exported), re.M)
    quiet = [f for f in public if not re.search(rf"\b{f}\b", shown) and not any(len(re.findall(rf"\b{f}\b", s)) for s in exported if f"def {f}" not in s and f"class {f}" not in s)]
    assert not quiet, f"{quiet} are neither shown in {nb.name} nor used in it"


@pytest.mark.parametrize("nb", LIB, ids=name)
def test_outputs_hold_no_chatter(nb):
    assert not [o.text for c in cells(nb) for o in c.outputs if o.get("name") == "stderr"], "run `make export`"


@pytest.mark.parametrize("nb", [*LIB, *STUDY], ids=name)
def test_notebook_is_light(nb):
    assert nb.stat().st_size <= 200_000


def test_library_has_no_orphans():
    assert {p.stem for p in (ROOT/"ich_study").glob("*.py")} - {"__init__", "_modidx"} == set(RUNG)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A copy of the notebooks, cleaned and exported from nothing."""
    copy = tmp_path_factory.mktemp("drift")
    shutil.copytree(NBS, copy/"nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for file in ("settings.ini", "pyproject.toml"): shutil.copy(ROOT/file, copy)
    (copy/"ich_study").mkdir()
    (copy/"ich_study"/"__init__.py").write_text('__version__ = "0.0.0"\n')
    tool("-c", "from nbdev.clean import nbdev_clean; nbdev_clean()", cwd=copy)
    tool("-c", "from nbdev.doclinks import nbdev_export; nbdev_export()", cwd=copy)
    return copy


def test_modules_are_what_the_notebooks_export(exported):
    made, kept = ({p.name: p.read_bytes() for p in (d/"ich_study").glob("*.py")} for d in (exported, ROOT))
    assert made == kept, "run `make export`: " + ", ".join(sorted(n for n in {*made, *kept} if made.get(n) != kept.get(n)))


def test_notebooks_are_clean(exported):
    for nb in NBS.rglob("*.ipynb"):
        if ".ipynb_checkpoints" in nb.parts: continue
        assert nb.read_bytes() == (exported/"nbs"/nb.relative_to(NBS)).read_bytes(), f"run `make export`: {nb.name} is not clean"


def test_readme_is_the_index_notebook(tmp_path):
    tool("-m", "nbconvert", "--log-level=ERROR", "--to", "markdown", NBS/"index.ipynb", "--output-dir", tmp_path, "--output", "README",
         "--NbConvertApp.output_files_dir=reports/readme", "--TagRemovePreprocessor.enabled=True", "--TagRemovePreprocessor.remove_input_tags=remove_input")
    assert (tmp_path/"README.md").read_text() == (ROOT/"README.md").read_text(), "run `make export`"
    for figure in (tmp_path/"reports").rglob("*.png"):
        assert figure.read_bytes() == (ROOT/figure.relative_to(tmp_path)).read_bytes(), "run `make export`"
