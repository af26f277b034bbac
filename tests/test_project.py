"""The lists of dependencies agree, and the project stands alone."""
import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]
LOCK = (ROOT/"requirements.lock").read_text()
EXTRAS = PROJECT["optional-dependencies"]


def locked():
    """Name to the versions and markers that the lock holds."""
    found = {}
    for line in LOCK.splitlines():
        if m := re.match(r"([\w.-]+)==(\S+)", line): found.setdefault(canonicalize_name(m[1]), []).append(m[2])
    return found


@pytest.mark.parametrize("wanted", [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["jpeg"], *EXTRAS["dev"]])
def test_lock_holds_every_dependency(wanted):
    need = Requirement(wanted)
    versions = locked().get(canonicalize_name(need.name), [])
    assert versions and all(need.specifier.contains(v, prereleases=True) for v in versions), f"run `make lock`: {wanted}, the lock has {versions}"


def test_lock_is_hashed_and_names_no_registry():
    pinned = len(re.findall(r"^[\w.-]+==", LOCK, re.M))
    assert pinned > 100 and len(re.findall(r"^[\w.-]+==[^\n]*\\\n    --hash=sha256:", LOCK, re.M)) == pinned
    assert "://" not in LOCK and "index" not in LOCK.replace("jupyter-index", "")


def test_conda_environment_adds_nothing():
    names = yaml.safe_load((ROOT/"environment.yml").read_text())["dependencies"]
    python, pip, extra = names
    assert pip == "pip" and extra == {"pip": ["-e .[cpu,jax,jpeg,dev]"]} and set(EXTRAS) >= {"cpu", "gpu", "jax", "torch", "jpeg", "dev"}
    assert Requirement(python).specifier == Requirement("python " + PROJECT["requires-python"]).specifier


def test_settings_agree_with_the_project():
    settings = configparser.ConfigParser(); settings.read(ROOT/"settings.ini")
    s = settings["DEFAULT"]
    assert s["lib_name"] == PROJECT["name"] and s["description"] == PROJECT["description"]
    assert f'__version__ = "{s["version"]}"' in (ROOT/"ich_study"/"__init__.py").read_text()
    assert not {"requirements", "dev_requirements", "pip_requirements"} & set(s)


def test_the_nbdev_set_that_reads_settings_ini_is_pinned():
    assert {"nbdev==2.4.14", "execnb<0.2"} <= set(EXTRAS["dev"]) and any(d.startswith("fastcore") and "<2" in d for d in EXTRAS["dev"])


def test_wheel_carries_the_study_notebooks(tmp_path):
    made = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT],
                          capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    inside = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = {f"ich_study/study_files/{p.name}" for p in (ROOT/"nbs"/"study").iterdir() if p.suffix in (".ipynb", ".yml")}
    assert wanted and wanted <= inside and "ich_study/cli.py" in inside


def tracked():
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode: pytest.skip("not a git checkout")
    return [ROOT/f for f in out.stdout.split()]


def test_published_pages_are_small():
    pages = [f for f in tracked() if f.is_relative_to(ROOT/"reports")]
    assert sum(f.stat().st_size for f in pages) <= 6_000_000


def test_no_patient_image_and_no_path_of_a_machine_is_tracked():
    for file in tracked():
        assert file.suffix not in (".dcm", ".jpg", ".jpeg", ".nii", ".gz", ".npy"), file
        if file.suffix in (".py", ".ipynb", ".yml", ".md", ".html", ".toml") and file.parent.name != "tests":
            assert not re.search(r"(?<![\w.])/(home|root|work|tmp)/\w", file.read_text()), file
