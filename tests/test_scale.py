"""An archive of 752,803 files: headers at pydicom's own rate, tables of a million rows, work that goes on where it was cut off."""
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pydicom
import pytest

from ich_study import series as series_module
from ich_study.cohort import make_index, series_of_index
from ich_study.dicom import DEFLATED, FIRST, read_file
from ich_study.odd import image_dataset, write_image, write_series
from ich_study.pixels import load_image
from ich_study.series import clean_series, geometry_flags, rows_by, scan_folder, series_flags, typed
from ich_study.volume import measure_areas

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT/"benchmarks"/"index.py"


def load_script():
    spec = importlib.util.spec_from_file_location("index_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load_script()


# ---- reading

def test_a_header_is_read_within_twice_the_time_of_pydicom_alone(tmp_path):
    files, ours, theirs = bench.write_files(tmp_path/"a", 30), [], []
    def cpu(read):
        start = time.process_time()
        for file in files: read(file)
        return time.process_time() - start
    for k in range(16):
        theirs.append(cpu(lambda f: pydicom.dcmread(f, stop_before_pixels=True)))
        ours.append(cpu(read_file))
    ratio = statistics.median(a/b for a, b in zip(ours[1:], theirs[1:]))  # measured: 1.1 to 1.2
    assert ratio <= 2 and all(read_file(f)[0]["used"] for f in files)


def padded(path, size, syntax="1.2.840.10008.1.2.1"):
    """An image whose pixels begin after about `size` bytes of private elements."""
    ds = image_dataset(5.)
    block = ds.private_block(0x0029, "PADDING", create=True)
    for n in range(size//4000): block.add_new(n, "OB", bytes(4000))
    block.add_new(0xF0, "OB", bytes(size % 4000//2*2))
    return write_image(path, ds, syntax)


SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED, "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_header_beyond_the_first_bytes_gives_the_same_row(syntax, tmp_path):
    rows = [read_file(padded(tmp_path/"a", size, syntax))[0] | {"digest": None} for size in (0, FIRST//2, 2*FIRST)]
    assert rows[0]["used"] and rows[0] == rows[1] == rows[2]
    assert np.array_equal(load_image(padded(tmp_path/"a", 2*FIRST, syntax)), load_image(padded(tmp_path/"a", 0, syntax)))


def test_wherever_the_first_bytes_end_the_row_is_the_same(tmp_path):
    plain = read_file(padded(tmp_path/"a", 0))[0] | {"digest": None}
    start = (tmp_path/"a").stat().st_size - 64*64*2  # where the pixels begin without padding
    for before in (*range(-24, 26, 2), 100): # the tag, length and value of the pixels fall on either side of the end
        row = read_file(padded(tmp_path/"a", FIRST - start - 17*12 + before))[0]
        assert row | {"digest": None} == plain, before


def test_a_file_is_told_by_its_beginning_and_its_middle(tmp_path):
    data = bytearray(padded(tmp_path/"a", 2*FIRST).read_bytes())
    def digest(at=None):
        changed = bytearray(data)
        if at is not None: changed[at] ^= 1
        (tmp_path/"a").write_bytes(changed)
        return read_file(tmp_path/"a")[0]["digest"]
    assert len({digest(), digest(FIRST - 1), digest(len(data)//2)}) == 3 and digest() == digest()


# ---- series

def lines(rng, n, spread):
    """Places of images whose gaps differ by up to `spread`, now and then with one lost or moved."""
    at = np.cumsum(rng.uniform(.15, 8)*(1 + rng.uniform(0, spread, n)))
    return rng.permutation(at if rng.random() < .6 or n < 5 else np.delete(at, rng.integers(1, n - 1)))


def test_the_short_judgement_of_gaps_is_the_long_one():
    rng, alike = np.random.default_rng(7), 0
    for k in range(2000):
        at = lines(rng, rng.integers(2, 40), (0, .03, .049, .051, .3)[k % 5])
        thick = (np.nan, 5., .5)[k % 3]
        found, long, steps = geometry_flags(at, np.full(len(at), thick)), measure_areas(np.zeros(len(at)), at, thick), np.diff(np.sort(at))
        assert found["doubtful"] == bool(long["doubtful"]) and found["missing_image"] == (long["missing"] == 1 and long["reason"] is None), at
        assert found["missing_images"] == (long["reason"] == "missing_images") and found["conflict"] == (long["reason"] == "conflict"), at
        assert found["uneven"] == (steps.max() > 1.05*steps.min())
        alike += not found["uneven"]
    assert 500 < alike < 1900


def test_groups_by_places_are_those_of_pandas():
    rng = np.random.default_rng(3)
    for n in (1, 2, 30, 500):
        names = pd.Series(rng.choice(["a", "b", "c d", None], n))
        ours, theirs = rows_by(names), {k: g.index.tolist() for k, g in names.groupby(names, sort=False)}
        assert list(ours) == list(theirs) and {k: v.tolist() for k, v in ours.items()} == theirs
        assert sum(map(len, rows_by(names, missing=True).values())) == n


def made_up_rows(n):
    names = [f"/none/ID_{k:08d}.dcm" for k in range(n)]
    return typed([row for name in names for row in bench.made_up(name)])


def test_one_series_is_judged_alike_alone_and_among_others():
    rng = np.random.default_rng(1)
    table = made_up_rows(20*bench.PER_SERIES)
    lost = rng.random(len(table)) < .05
    table = table.assign(used=~lost, reason=pd.Series(None, table.index, object).mask(lost, "damaged"), thickness_mm=5.).sample(frac=1, random_state=2, ignore_index=True)
    table["y_mm"] = table.y_mm.where(rng.random(len(table)) > .01, table.y_mm + 40)
    whole = clean_series(table)
    flags = series_flags(whole)
    for uid, rows in table.groupby("series_uid", sort=False):
        alone = clean_series(rows)
        texts = lambda t: t.astype({"reason": object}).fillna({"reason": ""})  # no reason at all has another type than some
        pd.testing.assert_frame_equal(texts(alone), texts(whole.loc[rows.index]))
        assert series_flags(alone)[uid] == flags[uid]
    assert flags.map(len).gt(0).any() and flags.map(len).eq(0).any()


def test_the_index_tells_the_flags_of_each_series():
    index = make_index(bench.listing(4000, 100, 80, lost=.02), "made_up")
    flags = series_of_index(index).set_index("series")["flags"].fillna("")
    for name, rows in index[index.used].groupby("series", sort=False):
        true = {f for f, yes in geometry_flags(rows.position_mm.to_numpy(float), np.full(len(rows), np.nan)).items() if yes}
        assert {*flags[name].split(";")} - {"", "incomplete"} == true
        assert ("incomplete" in flags[name]) == (~index.used[index.series == name]).any()


# ---- many files

@pytest.fixture
def small_chunks():
    with mock.patch.object(series_module, "CHUNK", 3): yield


class Stopped(Exception): pass


def test_a_scan_that_was_cut_off_reads_only_what_is_missing(tmp_path, small_chunks):
    (tmp_path/"a").mkdir(); (tmp_path/"parts").mkdir()
    files, read = write_series(tmp_path/"a", np.arange(0, 100, 5.)), []
    def stops(path):
        if len(read) == 10: raise Stopped
        read.append(path)
        return read_file(path)
    with pytest.raises(Stopped): scan_folder(tmp_path/"a", 1, False, stops, tmp_path/"parts")
    assert len(list((tmp_path/"parts").glob("*.parquet"))) == 3
    again = []
    def counts(path): again.append(path); return read_file(path)
    found = scan_folder(tmp_path/"a", 1, False, counts, tmp_path/"parts")
    assert sorted({*read[:9], *again}) == sorted(map(str, files)) and len(again) == 11
    pd.testing.assert_frame_equal(found, scan_folder(tmp_path/"a", 1, False))
    write_image(files[0], image_dataset(0., study="a", PatientAge="050Y"))  # a file that changed is read again, with its chunk
    again.clear()
    assert scan_folder(tmp_path/"a", 1, False, counts, tmp_path/"parts").age.max() == 50 and len(again) == 3


def test_two_processes_find_what_one_finds(tmp_path, small_chunks):
    (tmp_path/"a").mkdir()
    write_series(tmp_path/"a", np.arange(0, 330, 5.))
    pd.testing.assert_frame_equal(scan_folder(tmp_path/"a", 2, False), scan_folder(tmp_path/"a", 1, False))


def grown_kb(rows):
    """Memory that the rows of made-up files take on their way to index and series table, each count in a process of its own."""
    code = f"""
import sys, tempfile
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("b", {str(SCRIPT)!r}); b = importlib.util.module_from_spec(spec); spec.loader.exec_module(b)
with tempfile.TemporaryDirectory() as folder: b.whole_path(Path(folder), {rows})
print(b.peak_mb()*1024)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert not done.returncode, done.stderr[-2000:]
    return float(done.stdout)


def test_the_index_of_all_of_rsna_needs_less_than_3_gb():
    few, many = grown_kb(4000), grown_kb(24_000)
    assert few + (many - few)/20_000*bench.ARCHIVE < 3*2**20, f"{(many - few)/20_000:.1f} kB for each image"


# ---- a million rows

@pytest.fixture(scope="module")
def million(tmp_path_factory):
    folder = tmp_path_factory.mktemp("million")
    return folder, bench.child("million", folder, 1_000_000)


@pytest.mark.xdist_group("million")
def test_a_million_rows_become_an_index_within_2_gb(million):
    _, made = million
    assert made["peak_mb"] < 2048 and made["make_index"] + made["series_of_index"] + made["save"] < 90  # measured: 12 s


@pytest.mark.xdist_group("million")
def test_a_million_rows_open_filter_and_print_within_2_gb(million):
    folder, _ = million
    page = bench.child("page", folder)
    assert page["images"] == 1_000_000 and page["series"] == 25_000 and 100_000 < page["bleeding"] < 300_000
    assert page["peak_mb"] < 2048 and page["cpu"] < 20  # measured: 7 s, interpreter and imports included; the benchmark has the time by the clock


# ---- the benchmark itself

def test_the_benchmark_says_what_it_does_and_ends_in_json():
    run = lambda *more: subprocess.run([sys.executable, SCRIPT, *more], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "--folder" in run("--help").stdout
    done = run("--json", "--files", "4", "--rounds", "1", "--scan", "40", "--rows", "2000", "--archive", "2000")
    assert not done.returncode, done.stderr[-2000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert {"reading", "memory", "million", "whole", "plan_hours", "screen_ms"} <= set(out) and out["memory"]["40"]["used"] == 40
