"""Nothing that names a patient, a file or this machine leaves the private index: a cohort with a unique token in every text element and name,
put through every command, those that fail among them."""
import getpass
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from hostile import leaked, plant_canaries, traversal
from ich_study.paths import save_csv

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("privacy")
VARIANTS = ("", "=cmd|' /C calc'!A0 ", "<script>alert(1)</script>", "+1", "@SUM(1)", "-1\n\t=1\r\n")  # before the tokens, one patient each
PRIVATE = ("index.parquet", "index_more.parquet", "own.parquet", "own_series.parquet")  # the index, for its owner alone
STUDY = """name: hostile
dataset: {{kind: folder, folder: {folder}, labels: {labels}}}
models: [bhcnet]
recipes: [plain]
folds: 2
seeds: [17]
profile: quick
parameters: {{epochs: 1}}
accept_classes: [any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural]
"""


class Place:
    """A study root with a home and a temporary folder of its own, and all that was said there."""

    def __init__(self, folder):
        self.folder, self.root, self.said = folder, folder/"KNRYROOTX", {}
        for name in ("KNRYROOTX", "home", "tmp", "KNRYSTUDIESX"): (folder/name).mkdir()
        mine = {"HOME": folder/"home", "TMPDIR": folder/"tmp", "IPYTHONDIR": folder/"home/ipython", "MPLCONFIGDIR": folder/"home/matplotlib",
                "JUPYTER_RUNTIME_DIR": folder/"home/jupyter", "ICH_STUDY_ROOT": self.root, "PYTHONPATH": ROOT}
        self.environment = os.environ | {k: str(v) for k, v in mine.items()}

    def call(self, name, *argv):
        done = subprocess.run([sys.executable, "-c", "import sys; from ich_study.cli import main; sys.exit(main())", *map(str, argv)],
                              cwd=self.root, env=self.environment, capture_output=True, text=True, errors="replace")
        self.said[name] = done
        return done

    def study(self, name, **given):
        file = self.folder/"KNRYSTUDIESX"/f"{name}.yml"
        file.write_text(STUDY.format(**given).replace("name: hostile", f"name: {name}"))
        return file


def poison(folder, out):
    """The phantom with tokens everywhere: (folder of images, labels, tokens of headers and texts, tokens of names)."""
    tokens = {"KNRYSETX", "KNRYLABELSX", "KNRYNOTEX", "KNRYREPORTX", "KNRYMASKX"}
    (out/"masks").mkdir(parents=True)
    for file in sorted((folder/"masks").iterdir()): shutil.move(file, out/"masks"/f"KNRYMASKX{file.name}")
    labels = pd.read_csv(folder/"labels.csv", dtype=str)
    labels["mask_file"] = labels.mask_file.str.replace("masks/", "masks/KNRYMASKX")
    labels.to_csv(out/"KNRYLABELSX.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").disabled = True
        for patient, variant in zip(sorted((folder/"dicom").iterdir()), VARIANTS): tokens |= set(plant_canaries(patient, variant, uids=True))
    shutil.move(folder/"dicom", out/"images")
    (out/"images"/"KNRYNOTEX.txt").write_text("KNRYREPORTX: Jane Doe")
    (out/"images"/"KNRYNOTEX.dcm").write_bytes(b"")
    names = {t for p in out.rglob("*") for t in re.findall(r"KNRY\w*?X", p.name)}
    return out/"images", out/"KNRYLABELSX.csv", tokens - names, names


def series_folders(images): return sorted({p.parent for p in images.rglob("*.dcm") if p.stat().st_size})


def damage(file):
    """Spoil an image so that its folder looks as before: name, size and time stay."""
    about, data = file.stat(), bytearray(file.read_bytes())
    data[128:132] = b"XXXX"
    file.write_bytes(data)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def snapshot(folder): return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Every command has run on the poisoned cohort, and has failed in its ways."""
    p = Place(tmp_path_factory.mktemp("privacy"))
    p.call("phantom", "phantom", p.folder/"made", "--patients", len(VARIANTS), "--seed", 5)
    p.images, labels, p.texts, p.names = poison(p.folder/"made", p.root/"data"/"KNRYSETX")
    files = sorted(f for f in p.images.rglob("*.dcm") if f.stat().st_size)
    files[7].write_bytes(files[7].read_bytes()[:100_000])  # truncated
    good = p.study("hostile", folder=p.images, labels=labels)
    assert p.call("run", "run", good).returncode == 0, p.said["run"].stdout + p.said["run"].stderr[-3000:]
    run = p.root/"runs/hostile/plain/bhcnet/base/seed17/fold0"
    for name, *argv in (("status", "status", good), ("sweep", "sweep", good), ("dry", "sweep", good, "--dry-run"), ("models", "models"), ("recipes", "recipes"),
                        ("index", "index", p.images, "--labels", labels, "--out", p.root/"own.parquet"),
                        ("cache", "cache", p.root/"own.parquet", "--size", 32), ("folds", "folds", p.root/"own.parquet", "--k", 2, "--out", p.root/"folds.csv", "--accept", "any",
                         "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"),
                        ("predict", "predict", p.images, "--run", run, "--out", p.root/"new.csv")):
        assert p.call(name, *argv).returncode == 0, (name, p.said[name].stdout, p.said[name].stderr[-3000:])
    fail(p, good, labels, run)
    return p


def fail(p, good, labels, run):
    """The same commands where something is missing, damaged or wrong."""
    for file in (p.root/"runs/hostile/pages").rglob("page.json"): file.unlink()
    for file in p.images.rglob("*.dcm"):
        if file.stat().st_size > 100_000: damage(file)
    gone, odd = p.root/"data/KNRYGONEX", p.root/"data/KNRYODDX.csv"
    odd.write_text(labels.read_text().replace("2.25.", "2.25.KNRYODDX"))
    for name, *argv in (("report", "report", good), ("unread", "cache", p.root/"own.parquet", "--size", 64), ("debug", "cache", p.root/"own.parquet", "--size", 64, "--debug"),
                        ("gone", "run", p.study("gone", folder=gone, labels=labels)), ("missing", "index", gone, "--out", p.root/"none.parquet"),
                        ("odd", "run", p.study("odd", folder=p.images, labels=odd), "--debug"), ("nothing", "predict", p.images, "--run", run, "--out", p.root/"none.csv"),
                        ("lost", "folds", gone/"own.parquet", "--out", p.root/"none.csv")):
        assert p.call(name, *argv).returncode == 1, (name, p.said[name].stdout, p.said[name].stderr[-3000:])


def written(p):
    """What the commands left behind and others may see: everything but the data, its key, and the index."""
    every = [f for part in (p.root, p.folder/"home", p.folder/"tmp") for f in part.rglob("*") if f.is_file()]
    return [f for f in every if p.root/"data" not in f.parents and not (f.name in PRIVATE or {"scan", "own.parquet.parts"} & {d.name for d in f.parents})]


def test_every_command_was_tried(place):
    from ich_study.cli import parser
    commands = set(parser()._subparsers._group_actions[0].choices)
    assert commands - {done.args[3] for done in place.said.values()} == {"kernel"}  # it writes into the environment and reads no image


def test_no_token_leaves_the_private_index(place):
    assert leaked(place.texts | place.names | {"KNRY"}, *written(place)) == []


def test_the_terminal_may_name_a_file_but_no_text_of_a_header(place):
    found = [(name, t) for name, done in place.said.items() for t in place.texts if t in done.stdout + done.stderr]
    assert found == []


def test_nothing_names_the_machine(place):
    words = [str(place.folder), str(ROOT), str(Path.home()), platform.node(), sys.prefix]
    assert leaked([w for w in words if len(w) > 3], place.root/"reports", place.root/"runs", place.root/"new.csv", place.root/"folds.csv") == []
    pages = " ".join(f.read_text() for f in (place.root/"reports").rglob("*.html"))
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", re.sub(r'src="data:[^"]*"|\broot study|study root', "", pages))
