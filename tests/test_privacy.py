"""Nothing that names a patient, a file or this machine leaves the private index: a cohort with a unique token in every text element and name
goes through every command, those that fail among them. What people open is harmless: tables, pages, notes."""
import base64
import csv
import getpass
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile import leaked, plant_canaries
from processes import ROOT, command

from ich_study.bleeds import Scanner
from ich_study.cli import main, parser
from ich_study.odd import image_dataset, write_image
from ich_study.paths import save_csv, save_json
from ich_study.phantom import write_cohort
from ich_study.schema import LABELS

pytestmark = pytest.mark.xdist_group("privacy")
VARIANTS = ("", "=cmd|' /C calc'!A0 ", "<script>alert(1)</script>", "+1\n\t@SUM(1)\r\n-")  # before the tokens, for one patient each
STUDY = """name: {name}
dataset: {{kind: folder, folder: {folder}, labels: {labels}}}
models: [bhcnet]
recipes: [plain]
folds: 2
seeds: [17]
parameters: {{epochs: 1}}
accept_classes: [{classes}]
"""


class Place:
    """A study root with a home and a temporary folder of its own, and all that was said there."""

    def __init__(self, folder):
        self.folder, self.root, self.said = folder, folder/"KNRYROOTX", {}
        for name in ("KNRYROOTX", "home", "tmp", "KNRYSTUDIESX"): (folder/name).mkdir()
        mine = {"HOME": folder/"home", "TMPDIR": folder/"tmp", "IPYTHONDIR": folder/"home/ipython", "MPLCONFIGDIR": folder/"home/matplotlib",
                "JUPYTER_RUNTIME_DIR": folder/"home/jupyter", "ICH_STUDY_ROOT": self.root, "PYTHONPATH": ROOT}
        self.environment = os.environ | {k: str(v) for k, v in mine.items()}

    def call(self, code, name, *argv, apart=False):
        """Run `ich-study argv`, which must end with this exit code; `apart` in a process of its own, as what loads Keras must."""
        argv = [str(a) for a in argv]
        if apart:
            done = subprocess.run(command(*argv), cwd=self.root, env=self.environment, capture_output=True, text=True, errors="replace")
            ended, said = done.returncode, done.stdout + done.stderr
        else: ended, said = self._here(argv)
        assert ended == code, (name, said[-3000:])
        self.said[name] = (argv[0], said)

    def _here(self, argv):
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
            for k, v in self.environment.items(): patch.setenv(k, v)
            patch.chdir(self.root)
            try: return main(argv), said.getvalue()
            except Exception: return 1, said.getvalue() + traceback.format_exc()

    def study(self, name, folder, labels):
        file = self.folder/"KNRYSTUDIESX"/f"{name}.yml"
        file.write_text(STUDY.format(name=name, folder=folder, labels=labels, classes=", ".join(LABELS)))
        return file

    def files(self):
        """Everything that the commands wrote, also in the home and the temporary folder; not the data and their key."""
        every = [f for part in (self.root, self.folder/"home", self.folder/"tmp") for f in part.rglob("*") if f.is_file()]
        return [f for f in every if self.root/"data" not in f.parents]

    def private(self, file):
        """The index, the chunks of its making, and nothing else."""
        return file.name in ("index.parquet", "index_more.parquet", "own.parquet", "own_series.parquet") or file.parent.name in ("scan", ".own.parquet.parts")


def poison(made, out):
    """The phantom with tokens everywhere: (folder of images, labels, tokens of texts, tokens of names)."""
    tokens, images = {"KNRYREPORTX", "KNRYMAKERX", "KNRYKERNELX"}, out/"images"
    (out/"masks").mkdir(parents=True), images.mkdir()
    for file in sorted((made/"masks").iterdir()): shutil.move(file, out/"masks"/f"KNRYMASKX{file.name}")
    (out/"KNRYLABELSX.csv").write_text((made/"labels.csv").read_text().replace("masks/", "masks/KNRYMASKX"))
    for n, (patient, variant) in enumerate(zip(sorted((made/"dicom").iterdir()), VARIANTS)):
        for file in patient.iterdir():
            ds = pydicom.dcmread(file)
            ds.Manufacturer, ds.ConvolutionKernel, ds.PatientAge = "KNRYMAKERX", "=KNRYKERNELX", "097Y"
            ds.save_as(file)
        tokens |= set(plant_canaries(patient, variant, uids=True))
        shutil.move(patient, images/f"KNRYPATIENT{n}X")
    (images/"KNRYNOTEX.txt").write_text("KNRYREPORTX: Jane Doe")
    (images/"KNRYNOTEX.dcm").write_bytes(b"")
    names = {t for p in (out, *out.rglob("*")) for t in re.findall(r"KNRY\w*?X", p.name)}
    return images, out/"KNRYLABELSX.csv", tokens - names, names


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Every command has run on the poisoned cohort, and has failed in its ways."""
    p = Place(tmp_path_factory.mktemp("privacy"))
    made = write_cohort(p.folder/"made", len(VARIANTS), 5, workers=1, progress=False, scanner=Scanner(matrix=128, pixel_mm=(1.7, 1.9)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").disabled = True
        p.images, labels, p.texts, p.names = poison(made, p.root/"data"/"KNRYSETX")
        logging.getLogger("pydicom").disabled = False
    p.dicom = sorted(f for f in p.images.rglob("*.dcm") if f.stat().st_size)
    p.dicom[7].write_bytes(p.dicom[7].read_bytes()[:20_000])  # truncated
    good, own = p.study("hostile", p.images, labels), p.root/"own.parquet"
    p.run = p.root/"runs/hostile/plain/bhcnet/base/seed17/fold0"
    p.call(0, "run", "run", good, apart=True)
    p.call(0, "check", "check", "hostile")
    p.call(0, "status", "status", good)
    p.call(0, "dry", "sweep", good, "--dry-run")
    p.call(0, "index", "index", p.images, "--labels", labels, "--out", own)
    p.call(0, "cache", "cache", own, "--size", 32)
    p.call(0, "folds", "folds", own, "--k", 2, "--out", p.root/"folds.csv", "--accept", *LABELS)
    p.call(0, "predict", "predict", p.images, "--run", p.run, "--out", p.root/"new.csv", apart=True)
    fail(p, good, labels, own)
    return p


def damage(file):
    """Spoil an image so that its folder looks as before: name, size and time stay."""
    about, data = file.stat(), bytearray(file.read_bytes())
    data[128:132] = b"XXXX"
    file.write_bytes(data)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def fail(p, good, labels, own):
    """The same commands where something is missing, damaged or wrong."""
    gone, odd = p.root/"data/KNRYGONEX", p.root/"data/KNRYODDX.csv"
    odd.write_text(labels.read_text().replace("2.25.", "2.25.KNRYODDX"))
    p.names |= {"KNRYGONEX", "KNRYODDX"}
    (p.root/"runs/hostile/pages/cohort/page.json").unlink()
    for file in p.dicom: damage(file)
    p.call(1, "pages that meet a spoilt file", "report", good, apart=True)
    cut = next(f.with_name("images.npy") for f in (p.root/"cache").rglob("recipe.json") if json.loads(f.read_text())["size"] == 32)
    os.truncate(cut, 5000)
    p.call(1, "a cache cut short", "cache", own, "--size", 32)
    p.call(1, "a cache of spoilt files", "cache", own, "--size", 128)
    p.call(1, "the same with its traceback", "cache", own, "--size", 128, "--debug")
    p.call(1, "no folder for a study", "sweep", p.study("gone", gone, labels))
    p.call(1, "no folder for an index", "index", gone, "--out", p.root/"none.parquet")
    p.call(1, "labels of others", "run", p.study("odd", p.images, odd), "--debug")
    p.call(1, "nothing to predict", "predict", p.images, "--run", p.run, "--out", p.root/"none.csv", apart=True)


# what may not leave

def test_every_command_was_tried(place):
    commands = set(parser()._subparsers._group_actions[0].choices)
    assert commands - {command for command, _ in place.said.values()} == {"phantom", "models", "recipes", "kernel", "cluster"}  # they read no image


def test_no_token_leaves_the_private_index(place):
    public = [f for f in place.files() if not place.private(f)]
    assert {"index.html", "executed.ipynb", "failed.ipynb", "kernel.log", "run.json", "runs.json", "sweep.json", "model.keras", "rows.parquet", "recipe.json", "folds.csv",
            "history.csv", "new.csv", "predictions.parquet"} <= {f.name for f in public}
    assert leaked(place.texts | place.names | {"KNRY"}, *public) == []


def test_the_private_index_is_for_its_owner(place):
    kept = [f for f in place.files() if place.private(f)]
    assert len(kept) >= 4 and not [f for f in kept if f.stat().st_mode & 0o077]
    assert leaked(place.names, *kept), "the index should know its files"
    assert leaked(place.texts, *kept) == []


def test_the_terminal_may_name_a_file_but_no_text_of_a_header(place):
    assert [(name, t) for name, (_, said) in place.said.items() for t in place.texts if t in said] == []


def test_a_failed_notebook_says_what_failed(place):
    text = (place.root/"runs/hostile/pages/cohort/failed.ipynb").read_text()
    assert "StudyError" in text and "load_pixels" in text and "told in the terminal alone" in text
    assert any(n in place.said["pages that meet a spoilt file"][1] for n in place.names)


def test_nothing_names_the_machine(place):
    words = {str(place.folder), str(ROOT), str(Path.home()), platform.node(), sys.prefix, getpass.getuser()} - {"root", "/root", "localhost", ""}
    wanted = re.compile("|".join(rf"(?<!\w){re.escape(w)}(?!\w)" for w in words))
    files = [f for f in place.files() if f.suffix in (".html", ".ipynb", ".csv", ".json") and place.root in f.parents]
    assert len(files) > 15 and [f for f in files if wanted.search(re.sub(r"iVBORw0KGgo[\w+/=\\]+", "", f.read_text()))] == []


def png_chunks(data):
    """The kinds of the parts of a PNG."""
    at, kinds = 8, set()
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        kinds.add(kind.decode()); at += 12 + length
    return kinds


def test_pictures_carry_no_text(place):
    pictures = [p for f in (*place.root.rglob("*.html"), *place.root.rglob("*.ipynb")) for p in re.findall(r"iVBORw0KGgo[\w+/=]+", f.read_text().replace("\\n", ""))]
    webp = [base64.b64decode(p) for f in place.root.rglob("*.html") for p in re.findall(r"image/webp;base64,([\w+/=]+)", f.read_text())]
    assert not [w for w in webp if b"EXIF" in w or b"XMP " in w]
    kinds = set().union(*(png_chunks(base64.b64decode(p)) for p in pictures))
    assert len(pictures) + len(webp) > 3 and kinds <= {"IHDR", "PLTE", "IDAT", "IEND", "pHYs", "sBIT", "sRGB", "gAMA", "tRNS"}, kinds


def test_ages_above_ninety_are_not_told(place):
    assert pd.read_parquet(place.root/"own_series.parquet").age.tolist() == [90.]*len(VARIANTS)


def test_a_free_text_is_no_maker_and_no_kernel(place):
    series = pd.read_parquet(place.root/"own_series.parquet")
    assert set(series.manufacturer) == {"other"} and series.kernel.isna().all()


def test_predictions_lead_back_to_the_index_for_its_owner(place):
    told = pd.read_csv(place.root/"new.csv")
    assert "folder" not in told and set(told.series) == set(pd.read_parquet(place.root/"own_series.parquet").series)


# pages

def test_pages_run_their_own_script_alone(place):
    for page in (place.root/"reports").rglob("*.html"):
        text = page.read_text()
        own, = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.S | re.I)
        policy, = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert policy.startswith("default-src 'none'; ") and f"script-src 'sha256-{digest}'" in policy and "unsafe-eval" not in policy
        assert text.index("Content-Security-Policy") < text.index("<style") and "alert(1)" not in text
        assert not re.search(r"<[^>]+\s(on\w+=|href=\"javascript:)|<(iframe|object|embed|form|base)\b", text, flags=re.I), page


def test_notes_are_json_for_any_program(place):
    def refuse(word): raise AssertionError(word)
    notes = [f for f in place.files() if f.suffix == ".json" and place.root in f.parents]
    assert len(notes) > 5
    for note in notes: json.loads(note.read_text(), parse_constant=refuse)


# tables

SIGNS = tuple("=+-@\t\r\n＝＋－＠")
texts = st.text(st.sampled_from("=+-@ '\",;\t\r\n\0|a1＝＠\x85\u2028"), max_size=8) | st.text(max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts, st.floats() | st.none(), st.integers(-9, 9)), min_size=1, max_size=5), st.lists(texts, min_size=3, max_size=3, unique=True))
def test_no_text_of_a_table_is_a_formula(tmp_path_factory, rows, headers):
    path = tmp_path_factory.getbasetemp()/"any.csv"
    save_csv(pd.DataFrame(rows, columns=headers).astype({headers[1]: float}), path)
    with open(path, newline="", encoding="utf-8") as file: head, *body = csv.reader(file)
    assert len(body) == len(rows) and all(len(r) == 3 for r in body)
    for cell in (*head, *(r[0] for r in body)): assert not cell.lstrip().startswith(SIGNS) and not re.search(r"[\x00-\x1f\x7f-\x9f]", cell), cell
    for cells, (_, number, count) in zip(body, rows):
        assert int(cells[2]) == count and (cells[1] == "" if number is None or number != number else float(cells[1]) == number)


def test_every_table_and_note_goes_through_one_door():
    """A module that writes a CSV or JSON file by itself would be forgotten here."""
    for module in sorted((ROOT/"ich_study").glob("*.py")):
        if module.name == "paths.py": continue
        text = module.read_text()
        assert not re.findall(r"to_csv\((?!index=False\))|csv\.writer|json\.dump\(", text), module.name  # to_csv(index=False) alone makes text for a hash
        own = [line for line in re.findall(r".*write_text\(json\.dumps.*", text) if "kernel.json" not in line]
        assert own == [], module.name


def test_notes_have_no_word_that_is_not_json(tmp_path):
    save_json({"a": [float("nan"), {"b": float("inf")}], "c": -.5}, tmp_path/"a.json")
    assert (tmp_path/"a.json").read_text().split() == '{ "a": [ null, { "b": null } ], "c": -0.5 }'.split()


# paths

CLIMBING = ("../../climbed", "/tmp/ich_study_climbed", "~/climbed", "a/../../../climbed", "$(touch climbed)")


def test_no_name_in_a_header_is_a_path(tmp_path, monkeypatch, capsys):
    """Identifiers that would lead out of the folder, through every command that writes."""
    root, scans = tmp_path/"deep"/"er"/"root", tmp_path/"scans"
    root.mkdir(parents=True), scans.mkdir()
    monkeypatch.setenv("ICH_STUDY_ROOT", str(root))
    for name in CLIMBING:
        for z in (0., 5., 10.):
            ds = image_dataset(z, study=name, PatientID=name, StudyInstanceUID=name, SeriesInstanceUID=f"{name}/s", SOPInstanceUID=f"{name}/{z}")
            write_image(scans/f"{hashlib.sha256(f'{name}{z}'.encode()).hexdigest()}.dcm", ds)
    labels = tmp_path/"labels.csv"
    pd.DataFrame({"series": [f"{n}/s" for n in CLIMBING], **{l: int(l in ("any", "subdural")) for l in LABELS}}).to_csv(labels, index=False)
    before = {p for p in tmp_path.rglob("*")}
    index = str(root/"index.parquet")
    assert main(["index", str(scans), "--labels", str(labels), "--headers-only", "--out", index, "--workers", "1"]) == 0
    assert main(["cache", index, "--size", "32", "--workers", "1"]) == 0
    assert main(["folds", index, "--k", "2", "--out", str(root/"folds.csv"), "--accept", *LABELS]) == 0
    assert pd.read_parquet(index).patient.nunique() == len(CLIMBING)
    new = {p for p in tmp_path.rglob("*")} - before
    assert new and all(p.resolve().is_relative_to(root) and "climbed" not in p.name for p in new) and not Path("/tmp/ich_study_climbed").exists()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".x", "a\\b", "a b", "x\n", ""])
def test_a_study_or_data_set_may_not_be_called_after_a_path(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ICH_STUDY_ROOT", str(tmp_path/"root"))
    (tmp_path/"study.yml").write_text(json.dumps({"name": name, "dataset": {"kind": "phantom", "patients": 1}, "folds": 2}))
    assert main(["run", str(tmp_path/"study.yml")]) == 1 and "cannot be a name" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["study.yml"]
