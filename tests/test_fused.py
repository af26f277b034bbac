"""The compiled pass against OpenCV, and the rows it fills against the plain way."""
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ich_study.bleeds import Scanner, make_patient
from ich_study.fused import HALF, SIDE, grey_codes, plan_of, prepare
from ich_study.odd import image_dataset, write_image
from ich_study.pixels import load_image, load_pixels, load_stored
from ich_study.recipes import RECIPES, apply_recipe, make_recipe
from ich_study.render import render
from ich_study.rows import prepare_rows

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(4)
PLANES = {"upright": [1, 0, 0, 0, 1, 0], "rows reversed": [1, 0, 0, 0, -1, 0], "columns reversed": [-1, 0, 0, 0, 1, 0], "prone": [-1, 0, 0, 0, -1, 0],
          "on its side": [0, 1, 0, -1, 0, 0]}
pytestmark = pytest.mark.xdist_group("fused")  # compiled once


@pytest.fixture(scope="module")
def heads(): return np.asarray(render(make_patient(17, 7, Scanner(matrix=512, pixel_mm=(.45, .46))))[0])[2::5]


def opencv(grey, blur=True, clip=2.):
    if blur: grey = cv2.GaussianBlur(grey, (0, 0), 1., borderType=cv2.BORDER_REFLECT_101)
    if clip: grey = cv2.createCLAHE(clip, (8, 8)).apply(grey)
    return cv2.resize(grey, (HALF, HALF), interpolation=cv2.INTER_LINEAR)


def grey_images():
    """Images in grey levels that no head resembles."""
    y, x = np.mgrid[:SIDE, :SIDE]
    yield from (np.full((SIDE, SIDE), v, np.uint8) for v in (0, 1, 127, 254, 255))
    yield from ((x//2).astype(np.uint8), (y//2).astype(np.uint8), ((x + y) % 256).astype(np.uint8), ((x//64 + y//64) % 2*255).astype(np.uint8))
    yield from (RNG.integers(low, high, (SIDE, SIDE)).astype(np.uint8) for low, high in ((0, 256), (0, 2), (120, 130), (200, 256)))
    for part in (1e-5, 1e-3, .1, .9): yield np.where(RNG.random((SIDE, SIDE)) < part, 200, 0).astype(np.uint8)
    for a, b in ((0, 0), (511, 511), (0, 511), (31, 32), (63, 64), (255, 480)):
        image = np.zeros((SIDE, SIDE), np.uint8)
        image[a, b] = 255
        yield image


@pytest.mark.parametrize("blur", [True, False])
@pytest.mark.parametrize("clip", [None, .01, 1.3, 2., 40.])
def test_odd_images_are_within_one_level_of_opencv(blur, clip):
    for k, grey in enumerate(grey_images()):
        assert np.abs(prepare(grey, blur=blur, clip=clip).astype(int) - opencv(grey, blur, clip)).max() <= 1, k


def test_the_filter_is_exact():
    smooth = np.empty((SIDE, SIDE), np.uint8)
    for k, grey in enumerate(grey_images()):
        prepare(grey, smooth=smooth)
        assert (smooth == cv2.GaussianBlur(grey, (0, 0), 1., borderType=cv2.BORDER_REFLECT_101)).all(), k


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("slope, intercept", [(1., 0.), (1., -1024.), (.5, -1000.), (1.37, -1000.)])
def test_heads_are_within_one_level_of_the_recipe(heads, signed, slope, intercept):
    for hu in heads:
        stored = np.clip(np.rint((hu - intercept)/slope), -32768 if signed else 0, 32767).astype(np.int16 if signed else np.uint16)
        exact = np.maximum(stored.astype(np.float32)*np.float32(slope) + np.float32(intercept), np.float32(-1024))
        for centre, width in ((40, 80), (80, 200), (600, 2800), (-600, 1500), (40.5, 3)):
            recipe = make_recipe("paper")
            recipe = type(recipe)("any", (("window", {"centre": centre, "width": width}), *recipe.steps[1:]))
            ours = prepare(stored, grey_codes(signed, slope, intercept, centre, width))
            assert np.abs(ours.astype(int) - apply_recipe(recipe, exact)[..., 0]).max() <= 1, (centre, width)


def test_the_whole_range_of_stored_numbers_has_its_grey_level():
    for signed, dtype in ((True, np.int16), (False, np.uint16)):
        every = np.arange(65536, dtype=np.uint16).view(dtype)
        images = np.concatenate([every, RNG.permutation(np.concatenate([every]*3))]).reshape(-1, SIDE, SIDE)
        for image in images:
            hu = np.maximum(image.astype(np.float32) - 1024, -1024)
            assert (prepare(image, grey_codes(signed, 1., -1024., 40, 80), False, None) == apply_recipe(make_recipe("plain"), hu)[..., 0]).all()


def test_memory_that_was_used_before_changes_nothing(heads):
    codes, smooth, out = grey_codes(True, 1., 0.), np.full((SIDE, SIDE), 77, np.uint8), np.full((HALF, HALF), 77, np.uint8)
    for hu in (*heads, *heads[::-1]):
        stored = np.rint(hu).astype(np.int16)
        assert (prepare(stored, codes, smooth=smooth, out=out) == prepare(stored, codes)).all()


def test_two_threads_do_not_disturb_each_other(heads):
    from concurrent.futures import ThreadPoolExecutor
    images = [np.rint(hu).astype(np.int16) for hu in heads]*4
    one = [prepare(i, grey_codes(True, 1., 0.)) for i in images]
    with ThreadPoolExecutor(2) as pool: two = list(pool.map(lambda i: prepare(i, grey_codes(True, 1., 0.)), images))
    assert all((a == b).all() for a, b in zip(one, two))


# ---- files

def rows_of(folder, heads, plane=(1, 0, 0, 0, 1, 0), syntax="1.2.840.10008.1.2.1", **elements):
    folder.mkdir(exist_ok=True)
    files = [write_image(folder/f"{k}.dcm", image_dataset(5.*k, hu=hu, ImageOrientationPatient=list(plane), **elements), syntax) for k, hu in enumerate(heads)]
    return [dict(file=str(f), frame=None, image=f"hash{k}", series="one", row_mm=.45, col_mm=.46) for k, f in enumerate(files)]


def filled(rows, recipe, **beyond):
    out = np.full((len(rows), recipe.size, recipe.size, recipe.channels), 99, np.uint8)
    return out, prepare_rows(rows, recipe, out, **beyond)


def plainly(rows, recipe):
    images = [load_pixels(row) for row in rows]
    if recipe.neighbours: images = [np.stack([images[min(max(i + k, 0), len(rows) - 1)] for k in (-1, 0, 1)]) for i in range(len(rows))]
    return np.stack([apply_recipe(recipe, image, .45, .46) for image in images])


@pytest.mark.parametrize("name", RECIPES)
def test_rows_of_every_recipe_are_those_of_the_plain_way(tmp_path, heads, name):
    rows = rows_of(tmp_path/"a", heads[:2] if name in ("nlm", "tv") else heads[:4])
    for size in (256, 64):
        recipe = make_recipe(name, size)
        out, faults = filled(rows, recipe)
        assert not faults and np.abs(out.astype(int) - plainly(rows, recipe)).max() <= (plan_of(recipe.steps) is not None)


@pytest.mark.parametrize("plane", PLANES)
def test_rows_are_upright_however_the_file_counts(tmp_path, heads, plane):
    rows = rows_of(tmp_path/"a", heads[:2], PLANES[plane])
    assert load_stored(rows[0]) is not None
    for name in ("paper", "three_windows"):
        out, faults = filled(rows, make_recipe(name))
        assert not faults and np.abs(out.astype(int) - plainly(rows, make_recipe(name))).max() <= 1


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70"])
def test_rows_are_the_same_however_the_file_is_packed(tmp_path, heads, syntax):
    rows = rows_of(tmp_path/"a", heads[:2], syntax=syntax)
    out, faults = filled(rows, make_recipe("paper"))
    assert not faults and np.abs(out.astype(int) - filled(rows_of(tmp_path/"b", heads[:2]), make_recipe("paper"))[0]).max() == 0


@pytest.mark.parametrize("elements", [dict(PixelRepresentation=1), dict(PixelRepresentation=1, BitsStored=12, RescaleIntercept=0), dict(BitsStored=12, RescaleIntercept=0),
    dict(PixelPaddingValue=-2000, PixelRepresentation=1), dict(PixelPaddingValue=-990, PixelRepresentation=1), dict(PixelPaddingValue=5000), dict(PixelPaddingValue=0), dict(RescaleSlope="0.5", RescaleIntercept="-1000.5"),
    dict(WindowCenter=[1, 2]*40), dict(PhotometricInterpretation="MONOCHROME1"), dict(ImageComments="x"*20_000)], ids=str)
def test_stored_numbers_mean_what_the_careful_way_says(tmp_path, heads, elements):
    from ich_study.pixels import _hu
    row, = rows_of(tmp_path/"a", heads[1:2], **elements)
    careful, found = _hu(row["file"], None), load_stored(row)
    assert (load_image(row["file"]) == careful).all()
    if found: assert (np.maximum(found[0].astype(np.float32)*np.float32(found[1]) + np.float32(found[2]), -1024) == careful).all()
    assert np.abs(filled([row], make_recipe("paper"))[0].astype(int) - apply_recipe(make_recipe("paper"), careful)).max() <= 1


def test_damaged_files_are_named_by_hash_and_the_rest_goes_on(tmp_path, heads):
    rows = rows_of(tmp_path/"a", heads[:4]) + rows_of(tmp_path/"b", heads[:1], RescaleSlope=None)
    Path(rows[0]["file"]).unlink()
    Path(rows[2]["file"]).write_bytes(Path(rows[2]["file"]).read_bytes()[:5000])
    os.mkfifo(tmp_path/"pipe")
    rows += [rows[1] | {"file": str(tmp_path/"pipe"), "image": "hash5"}, rows[1] | {"image": "hash6"}]
    rows[4]["image"] = "hash4"
    for name in ("paper", "median", "neighbours"):
        out, faults = filled(rows, make_recipe(name))
        assert [f.split(":")[0] for f in faults] == ["image hash0", "image hash2", "image hash4", "image hash5"] and str(tmp_path) not in "".join(faults)
        assert not out[[0, 2, 4, 5]].any() and out[1].any() and (out[6][..., out.shape[-1]//2] == out[1][..., out.shape[-1]//2]).all()


def test_a_seam_between_pieces_of_work_cannot_be_seen(tmp_path, heads):
    rows = rows_of(tmp_path/"a", heads[:5])
    whole, _ = filled(rows, make_recipe("neighbours", 64))
    for cut in (1, 2, 4):
        first, second = filled(rows[:cut], make_recipe("neighbours", 64), after=rows[cut])[0], filled(rows[cut:], make_recipe("neighbours", 64), before=rows[cut - 1])[0]
        assert (np.concatenate([first, second]) == whole).all()


def test_a_series_that_ends_lends_nothing_to_the_next(tmp_path, heads):
    rows = rows_of(tmp_path/"a", heads[:4])
    for row in rows[2:]: row["series"] = "two"
    together, _ = filled(rows, make_recipe("neighbours", 64))
    apart = [filled(part, make_recipe("neighbours", 64))[0] for part in (rows[:2], rows[2:])]
    assert (together == np.concatenate(apart)).all()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0 and not Path("/proc/self").exists(), reason="no place that cannot be written")
def test_a_place_that_cannot_be_written_breaks_nothing():
    code = "import numpy as np; from ich_study.fused import _compiled; print(_compiled(lambda x: x + 1)(2))"
    env = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": "/proc/self/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "3", done.stderr[-2000:]


def test_the_benchmark_explains_itself():
    done = subprocess.run([sys.executable, ROOT/"benchmarks"/"preprocess.py", "--help"], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and "Example" in done.stdout
