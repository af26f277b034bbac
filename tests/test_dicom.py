"""Files as they are found in the wild, files at the limits, files made to harm, and ten thousand broken ones."""
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pandas.testing import assert_frame_equal
from pydicom.dataelem import DataElement

import hostile
from thorough import often

from ich_study.cohort import index_folder
from ich_study.dicom import LIMITS, PLANE, read_file
from ich_study.odd import ODD, height_of, image_dataset, put, shows, write_image, write_series
from ich_study.pixels import load_image
from ich_study.schema import REASONS
from ich_study.series import choose_series, decoded_reasons, scan_folder, series_flags
from ich_study.volume import measure_areas

TESTS = Path(__file__).resolve().parent


# ---- what archives hold --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ODD)
def test_odd_files(name, tmp_path):
    """Each trap gets the reasons and flags it must get, and every image that is used shows the picture at its place."""
    odd, folder = ODD[name], tmp_path/name
    folder.mkdir()
    odd.make(folder)
    table = choose_series(scan_folder(folder, progress=False))
    table["reason"] = decoded_reasons(table)
    assert table.reason.dropna().value_counts().to_dict() == odd.wanted
    for flags in series_flags(table): assert set(odd.flags) <= set(flags) <= {*odd.flags, *odd.may}
    used = table[table.reason.isna()].sort_values("position_mm")
    images = [load_image(row.file, row.frame) for row in used.itertuples()]
    if odd.hu is not None: assert all(shows(hu, odd.hu, odd.within) for hu in images)
    if odd.within < 10: assert (np.diff([height_of(hu) for hu in images]) > 1).all()
    assert len(used) + sum(odd.wanted.values()) == len(table)


# ---- at the limits -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", hostile.CASES)
def test_each_limit_accepts_just_at_and_refuses_just_above(name, tmp_path):
    at, above = (make(tmp_path) for make in hostile.CASES[name])
    rows, refused = read_file(at), read_file(above)
    assert all(row["used"] for row in rows), rows[0]["reason"]
    assert np.isfinite(load_image(at, rows[-1]["frame"])).all()
    assert [row["used"] for row in refused] == [False] and refused[0]["reason"] in ("too_large", "missing_header")


def test_every_limit_is_tried():
    """A limit that is added to the reader needs a pair of files here."""
    named = {"side": "rows most", "spacing_mm": "PixelSpacing most", "position_mm": "ImagePositionPatient most", "slope": "RescaleSlope most", "intercept": "RescaleIntercept most"}
    assert {named.get(limit, limit) for limit in vars(LIMITS)} <= set(hostile.CASES)


# ---- files made to harm --------------------------------------------------------------------------------------------

WANTED = {  # what each is refused for; None: it is read. What is within the memory limit by refusal must be refused for its size, not for want of memory
    "deflated_bomb": "too_large", "gzip_bomb": "too_large", "gzip_plain": "too_large", "gzip_more": "too_large", "huge_matrix": "too_large",
    "rle_large": "too_large", "rle_segment": "too_large", "rle_grows": None, "j2k_large": "damaged", "jls_large": "damaged", "jpeg_large": "damaged",
    "nested_150": None, "nested_300": "unreadable", "nested_3000": "unreadable", "nested_lengths": None, "false_length": "truncated",
    "many_elements": "too_large", "many_items": None, "many_values": None, "many_positions": "missing_header", "long_number": "missing_header", "long_text": None,
    "frame_items": "too_large", "frame_lists": "missing_header", "fifo": "unreadable", "endless_link": "unreadable", "folder_named_dcm": "unreadable",
    "link_loop": "unreadable", "outside_link": "not_dicom", "sparse": "too_large", "traversal": None, "formulas": None}


def run_apart(code, *arguments, timeout=400):
    """The last line that a process of its own prints, which has the makers of hostile files at hand."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run([sys.executable, "-c", f"import sys, hostile; from pathlib import Path; {code}", *map(str, arguments)], cwd=TESTS, env=os.environ | {"PYTHONPATH": path},
                          capture_output=True, text=True, timeout=timeout)
    return done


def test_no_hostile_file_harms_its_reader(tmp_path):
    """Every one is refused or read in seconds of processor (under two on a usual machine) and 300 MB, and the process lives."""
    paths = {}
    for name, make in hostile.HOSTILE.items():
        (tmp_path/name).mkdir()
        paths[str(make(tmp_path/name))] = name
    done = run_apart("hostile.attack(sys.argv[1:])", *paths)
    said = {paths[one["file"]]: one for one in map(json.loads, done.stdout.splitlines())}
    table = pd.DataFrame(said).T
    print(table.to_string())
    assert set(said) == set(WANTED) == set(hostile.HOSTILE), done.stderr[-2000:]
    assert not table.wrong.explode().any()
    assert {name: one["reasons"] for name, one in said.items()} == {name: [str(reason)] for name, reason in WANTED.items()}
    assert table.seconds.max() < 5 and table.mb.max() < 300


# ---- broken files --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", [1, 2])
def test_no_broken_file_is_a_surprise(seed, tmp_path):
    """Mutated files of every packing, 5,000 for each of two seeds where all are asked for: a row with a reason or an image of its shape, never an exception."""
    many = often(5000)
    done = run_apart(f"hostile.fuzz(Path(sys.argv[1]), {many}, int(sys.argv[2]))", tmp_path, seed)
    assert done.returncode == 0, f"died at file {(tmp_path/'at').read_text()} of seed {seed}: {done.stderr[-2000:]}"
    said = json.loads(done.stdout.splitlines()[-1])
    print(said)
    assert said["files"] == many and not said["wrong"]
    assert said["slowest"][0] < 5 and said["mb"] < 1024
    assert set(said["rows"]) <= {"used", *REASONS} and len(said["rows"]) > 10 and said["rows"]["used"] > .06*many  # the faults are of many kinds


_AWKWARD = st.sampled_from(["", " ", "0", "-0", "1", "-1", "NaN", "inf", "-inf", "1e400", "1e-400", "5,0", "5.0 mm", "0x10", "1_0", "\0", "1\\2", "1\\2\\3", "\\", "\\\\", "1e5", "-1e5",
                            "\u0663", "9"*400, "1.", ".5", "+2", "2.5\\2.5", "1\\0\\0\\0\\1\\0", "0\\0\\0", "1\\0\\0\\0\\0\\1"])
_NUMBER = st.one_of(st.floats(width=64).map(repr), st.integers(-2**40, 2**40).map(str), _AWKWARD)
_TEXT = st.one_of(_NUMBER, st.lists(_NUMBER, min_size=1, max_size=7).map("\\".join), st.lists(st.floats(-4, 4).map(lambda v: f"{v:.6f}"), min_size=1, max_size=7).map("\\".join))
_DECIMALS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "SliceThickness", "NumberOfFrames", "AcquisitionNumber")
_SHORTS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PixelPaddingValue")
_SHORT = st.one_of(st.sampled_from([0, 1, 8, 12, 15, 16, 32, 63, 64, 65, 2048, 2049, 65535]), st.integers(0, 65535))


def in_range(value, low, high): return value is None or (math.isfinite(value) and low <= value <= high)


@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(elements=st.fixed_dictionaries({}, optional={k: _TEXT for k in _DECIMALS} | {k: _SHORT for k in _SHORTS} | {"PatientAge": _AWKWARD}))
def test_numbers_of_a_used_image_are_finite_and_within_the_limits(elements, tmp_path):
    """Whatever stands in the elements that hold numbers."""
    texts = {k: v.encode("ascii", "replace").decode() if isinstance(v, str) else DataElement(k, "US", v) for k, v in elements.items()}
    path = write_image(tmp_path/"one", put(image_dataset(10.), **texts))
    for row in read_file(path):
        assert row["used"] == (row["reason"] is None) and row["reason"] in (None, *REASONS)
        assert in_range(row["thickness_mm"], .1, 50) and in_range(row["age"], 0, 90) and in_range(row["acquisition"], -2**31, 2**31)
        assert in_range(row["slope"], *LIMITS.slope) and in_range(row["intercept"], *LIMITS.intercept)
        assert all(in_range(row[k], *LIMITS.spacing_mm) for k in ("row_mm", "col_mm")) and all(in_range(row[k], -1.01, 1.01) for k in PLANE)
        assert all(in_range(row[k], -LIMITS.position_mm, LIMITS.position_mm) for k in ("x_mm", "y_mm", "z_mm")) and in_range(row["position_mm"], -9000, 9000)
        if not row["used"]: continue
        assert None not in (row[k] for k in ("position_mm", "tilt_deg", "row_mm", "col_mm", "rows", "columns", "slope", "intercept", *PLANE))
        assert LIMITS.side[0] <= row["rows"] <= LIMITS.side[1] and LIMITS.side[0] <= row["columns"] <= LIMITS.side[1] and row["tilt_deg"] <= 45
        assert load_image(path, row["frame"]).shape == (row["rows"], row["columns"])


# ---- never a wrong volume in silence -------------------------------------------------------------------------------

POSITIONS = tuple(5.*np.arange(12))
PIXELS = dict(zip((f"a-{10*z:05.0f}.dcm" for z in POSITIONS), (0, 40, 90, 150, 260, 330, 300, 240, 180, 90, 30, 0)))  # of blood in each image


def volume_of(folder):
    """(mL or NaN, flags) of the series in a folder as it is read now; each file has its number of pixels of blood."""
    table = choose_series(scan_folder(folder, progress=False))
    flags, used = series_flags(table), table[table.used]
    if len(flags) != 1: return np.nan, ("no series",)
    areas = used.row_mm*used.col_mm*[PIXELS[Path(f).name] for f in used.file]
    return measure_areas(areas, used.position_mm, used.thickness_mm)["ml"], flags.iloc[0]


def garbled(text, rng):
    """A text with one or two characters changed, put in, left out or exchanged, as broken writers do."""
    text = list(text)
    for _ in range(int(rng.integers(1, 3))):
        i, j = (int(rng.integers(max(len(text), 1))) for _ in range(2))
        way, new = int(rng.integers(4)), "0123456789.-+e\\ "[int(rng.integers(16))]
        if way == 0 or not text: text.insert(i, new)
        elif way == 1: text[i] = new
        elif way == 2: del text[i]
        else: text[i], text[j] = text[j], text[i]
    return "".join(text)


PLACES = {"ImagePositionPatient": "-78.75\\-78.75\\{z}", "ImageOrientationPatient": "1\\0\\0\\0\\1\\0", "PixelSpacing": "2.5\\2.5", "SliceThickness": "5", "AcquisitionNumber": "1"}


def broken(name, good, rng):
    """The bytes of one image of the series with faults anywhere in its header, or in an element that places it."""
    if rng.random() < .4: return hostile.mutate(good, rng)
    z, keyword = POSITIONS[list(PIXELS).index(name)], list(PLACES)[int(rng.choice(5, p=(.4, .25, .25, .05, .05)))]
    made = image_dataset(z, study="s", **{keyword: garbled(PLACES[keyword].format(z=z), rng)})
    made.save_as(out := BytesIO(), enforce_file_format=True)
    return out.getvalue()


def test_no_broken_image_makes_the_volume_wrong_in_silence(tmp_path):
    """One of twelve images is broken, again and again: the volume stays within 0.5 %, is missing, or the series is flagged."""
    (tmp_path/"s").mkdir()
    files = write_series(tmp_path/"s", POSITIONS)
    true, flags = volume_of(tmp_path/"s")
    assert true == pytest.approx(sum(PIXELS.values())*2.5**2*5/1000) and not flags
    told = Counter()
    many = often(400)
    for n in range(many):
        rng = np.random.default_rng([3, n])
        file = files[int(rng.integers(len(files)))]
        good = file.read_bytes()
        file.write_bytes(broken(file.name, good, rng))
        ml, flags = volume_of(tmp_path/"s")
        file.write_bytes(good)
        right = abs(ml/true - 1) <= .005
        assert right or math.isnan(ml) or set(flags) & {"uneven", "incomplete", "missing_image", "missing_images", "doubtful", "conflict", "mixed_planes"}, (n, file.name, ml, flags)
        told["right" if right else "flagged" if ml == ml else "missing"] += 1
    print(told)
    assert told["right"] > many/8 and told["flagged"] > many/8 and told["missing"] > many/130  # the faults matter, and not all of them


def test_an_image_lost_at_an_end_leaves_the_head_cut_off(tmp_path):
    """Positions cannot tell that a last image is missing; the quality screen can, where the head still shows."""
    files = write_series(tmp_path, POSITIONS)
    write_image(files[-1], image_dataset(POSITIONS[-1], study=tmp_path.name, SeriesInstanceUID="1.2.3"))
    assert not series_flags(choose_series(scan_folder(tmp_path, progress=False))).explode().dropna().any()
    index, series = index_folder(tmp_path, "odd", progress=False)
    assert index.reason.dropna().tolist() == ["other_series"] and series["flags"].tolist() == ["cut_off"]


# ---- killed and parallel -------------------------------------------------------------------------------------------

SCAN = """
import sys, time
from ich_study import series
series.CHUNK = 50

def slowly(path):
    time.sleep(.002)
    return series.read_file(path)

series.scan_folder(sys.argv[1], workers=1, progress=False, parts=sys.argv[2], read=slowly)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """1,220 files: the thirty images of a series in each of forty folders, and some files that are no images."""
    folder = tmp_path_factory.mktemp("many")
    (folder/"0").mkdir()
    first = write_series(folder/"0", 5.*np.arange(30))
    for n in range(1, 40):
        (folder/str(n)).mkdir()
        for file in first: os.link(file, folder/str(n)/file.name)
    for n in range(20): (folder/f"{n}.txt").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def undisturbed(many):
    table = scan_folder(many, workers=1, progress=False)
    assert len(table) == 1220 and table.used.sum() == 30 and table.reason.value_counts().to_dict() == {"duplicate": 39*30, "not_dicom": 20}
    return table


def test_a_killed_scan_goes_on_where_it_was(many, undisturbed, tmp_path, monkeypatch):
    """Killed without warning in the middle and begun anew: finished parts are not read again, and the table is the same."""
    parts = tmp_path/"parts"
    child = subprocess.Popen([sys.executable, "-c", SCAN, str(many), str(parts)], env=os.environ | {"PYTHONPATH": str(TESTS.parent)})
    end = time.monotonic() + 120
    while len(list(parts.glob("[!.]*.parquet"))) < 4 and time.monotonic() < end and child.poll() is None: time.sleep(.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = {file: file.stat().st_mtime_ns for file in parts.glob("[!.]*.parquet")}
    assert 4 <= len(before) < 25
    monkeypatch.setattr("ich_study.series.CHUNK", 50)
    read = []
    table = scan_folder(many, workers=1, progress=False, parts=parts, read=lambda path: (read.append(path), read_file(path))[1])
    assert_frame_equal(table, undisturbed)
    assert len(list(parts.glob("[!.]*.parquet"))) == 25 and all(file.stat().st_mtime_ns == at for file, at in before.items())
    assert len(read) <= 1220 - 50*len(before) + 30  # one part is shorter


def test_a_changed_file_makes_its_part_anew(many, undisturbed, tmp_path, monkeypatch):
    """The other parts stay."""
    monkeypatch.setattr("ich_study.series.CHUNK", 50)
    scan_folder(many, workers=1, progress=False, parts=tmp_path)
    read = []
    os.utime(many/"3.txt", (1, 1))
    again = scan_folder(many, workers=1, progress=False, parts=tmp_path, read=lambda path: (read.append(path), read_file(path))[1])
    assert len(read) == 50 and str(many/"3.txt") in read
    assert_frame_equal(again, undisturbed)


def test_a_torn_part_is_read_again(many, undisturbed, tmp_path, monkeypatch):
    """Half a part, as a full disk leaves it, is made anew."""
    monkeypatch.setattr("ich_study.series.CHUNK", 50)
    scan_folder(many, workers=1, progress=False, parts=tmp_path)
    torn, junk = sorted(tmp_path.glob("[!.]*.parquet"))[:2]
    torn.write_bytes(torn.read_bytes()[:2000])
    junk.write_bytes(b"")
    assert_frame_equal(scan_folder(many, workers=1, progress=False, parts=tmp_path), undisturbed)


def test_a_name_that_is_no_text_is_a_row(tmp_path):
    """Names in an old encoding cannot stand in a table: such a file is refused, the others are read."""
    files = write_series(tmp_path)
    os.rename(files[2], os.fsencode(tmp_path) + b"/M\xfcller.dcm")
    os.rename(files[1], tmp_path/"new\nline.dcm")
    index, series = index_folder(tmp_path, "odd", progress=False, parts=tmp_path/".parts")
    assert index.reason.dropna().tolist() == ["unreadable"] and index.used.sum() == 4 and "missing_image" in series["flags"][0]
    assert str(tmp_path/"M\\udcfcller.dcm") in set(index.file) and str(tmp_path/"new\nline.dcm") in set(index.file)


def test_one_process_and_two_make_the_same_table(many, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("ich_study.series.CHUNK", 50)
    assert_frame_equal(scan_folder(many, workers=2, progress=False), undisturbed)
