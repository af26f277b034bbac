"""The image-quality screen: what it keeps, what it finds, and that neither depends on how an image lies."""
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_study.bleeds import Scanner, make_patient
from ich_study.pixels import load_image, load_pixels
from ich_study.series import scan_folder
from ich_study.render import render
from ich_study.schema import REASONS, StudyError
from ich_study.screen import (MEASURES, SCREEN, add_metal, add_motion, measure_image, screen_counts, screen_image, screen_series,
                              screen_table)

SHARED = Path(__file__).resolve().parent.parent.parent/"shared"/"data"
pytestmark = pytest.mark.xdist_group("screen")  # the heads are drawn once


@cache
def head(number, tilted=0.):
    """(HU of a phantom series, pixel size)"""
    patient = make_patient(31, number, Scanner(matrix=256, pixel_mm=(.84, 1.), tilted=tilted))
    return render(patient)[0].astype(np.float32), patient.geometry.row_mm


def listing(series, mm=1.):
    """Rows of an index and a loader for images in memory: {name: images}"""
    rows = [dict(file=f"{s}/{k}", frame=0, series=s, patient=s, position_mm=5.*k, row_mm=mm, col_mm=mm)
            for s, images in series.items() for k in range(len(images))]
    return pd.DataFrame(rows), partial(pick, series)


def pick(series, row):
    return series[row["series"]][int(row["file"].split("/")[1])]


def screen(series, mm=1.):
    rows, load = listing(series, mm)
    return screen_table(rows, load, workers=1, progress=False)


def measured(images, mm): return pd.DataFrame([measure_image(i, mm, mm) for i in images])


@cache
def measures_of(number): return measured(*head(number))


def verdict(number, place, image):
    """The reason of one changed image within its series"""
    table = measures_of(number).copy()
    for name, value in measure_image(image, *[head(number)[1]]*2).items(): table.loc[place, name] = value
    return screen_series(table)[0][place]


def middle(number): return int(measures_of(number).brain_cm2.argmax())


@pytest.mark.parametrize("tilted", [0., 1.])
def test_good_heads_are_kept(tilted):
    for number in (1, 2, 3):
        volume, mm = head(number, tilted)
        assert screen_series(measured(volume, mm))[0] == [None]*len(volume)


def test_more_noise_of_thin_images_is_no_streak():
    volume, mm = head(1)
    noisy = volume + np.random.default_rng(0).normal(0, 20, volume.shape)  # as 40 HU at half the pixel size
    assert screen_series(measured(noisy[::2], mm))[0] == [None]*len(noisy[::2])


def test_metal_is_found():
    rng = np.random.default_rng(1)
    found = [verdict(n, (k := middle(n) + int(rng.integers(-3, 4))), add_metal(head(n)[0][k], head(n)[1], rng, radius_mm=3)) for n in (1, 2, 3)*3]
    assert found.count("streaks") >= 8


def test_a_jerk_is_found():
    rng = np.random.default_rng(2)
    found = [verdict(n, (k := middle(n) + int(rng.integers(-3, 4))), add_motion(head(n)[0][k], head(n)[1], rng, 15, 8)) for n in (1, 2, 3)*3]
    assert found.count("streaks") >= 7


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("way", [-1, 1])
def test_a_cropped_head_is_found_on_every_side(axis, way):
    k = middle(1)
    volume, mm = head(1)
    moved = np.full_like(volume[k], -1000)
    cut = [slice(None)]*2
    wide = np.flatnonzero((volume[k] > 300).any(1 - axis))
    cut[axis] = slice(wide[0] + 15, None) if way > 0 else slice(0, wide[-1] - 15)  # through the bone
    part = volume[k][tuple(cut)]
    assert screen_image(measure_image(part, mm, mm)) == "cropped"
    put = [slice(0, n) for n in part.shape] if way > 0 else [slice(-n, None) for n in part.shape]
    moved[tuple(put)] = part  # the same within a square field
    assert verdict(1, k, moved) == "cropped"


def round_field(image):
    """Corners outside the circle of the field filled with one value, as many scanners do"""
    y, x = (np.arange(n) - (n - 1)/2 for n in image.shape)
    return np.where(np.hypot(y[:, None], x) < len(image)/2, image, -1024)


def test_a_head_cut_by_a_round_field_is_found():
    volume, mm = head(1)
    row, column = np.argwhere(volume[middle(1)] > 300).mean(0).astype(int)
    cut = volume[middle(1)][row - 65:row + 65, column - 65:column + 65]  # 130 mm, the head has more
    assert screen_image(measure_image(round_field(cut), mm, mm)) == "cropped"


def test_a_whole_head_in_a_round_field_is_kept():
    volume, mm = head(1)
    assert screen_series(measured([round_field(i) for i in volume], mm))[0] == [None]*len(volume)


@pytest.mark.parametrize("value", [-1024, -1000, 0, 40, 3071])
def test_one_grey_is_blank(value):
    assert screen_image(measure_image(np.full((64, 80), value, np.int16), .5, .5)) == "blank"
    assert screen_image(measure_image(np.full((64, 80), value, np.int16))) == "blank"


def test_air_is_blank_between_images_of_a_head_and_good_above_it():
    volume, mm = head(1)
    air = -1000 + np.random.default_rng(3).normal(0, 8, volume[0].shape).astype(np.float32)
    reasons, _ = screen_series(measured([*volume[10:14], air, *volume[14:], air], mm))
    assert reasons == [None]*4 + ["blank"] + [None]*(len(volume) - 13)
    assert screen_series(measured([air]*3, mm))[0] == ["blank"]*3


def test_other_bodies_are_no_heads():
    y, x = np.mgrid[:128, :128]*3. - 192
    rng = np.random.default_rng(4)
    def noisy(a): return a + rng.normal(0, 6, a.shape)
    spine, leg = np.hypot(x, y - 70), np.hypot(x, y)
    trunk = np.select([spine < 9, spine < 20, (x/160)**2 + (y/110)**2 < 1], [30., 500., 40.], -1000.)
    chest = np.select([spine < 20, np.hypot(abs(x) - 70, y) < 55, (x/160)**2 + (y/110)**2 < 1], [500., -850., 40.], -1000.)
    water = np.where(np.hypot(x, y) < 100, 0., -1000.)
    thigh = np.select([leg < 8, leg < 16, leg < 80], [-50., 1200., 50.], -1000.)
    for other in (trunk, chest, water, thigh):
        assert screen_series(measured([noisy(other) for _ in range(3)], 3.))[0] == ["not_head"]*3


def test_the_vertex_and_the_neck_of_a_head_are_kept():
    table = measures_of(2)
    assert (table.brain_cm2 < SCREEN.limit["no_brain"]).sum() >= 5 and screen_series(table)[0] == [None]*len(table)


def test_flips_and_turns_change_no_verdict():
    volume, mm = head(2)
    k, rng = middle(2), np.random.default_rng(5)
    for image, reason in ((volume[k], None), (add_metal(volume[k], mm, rng), "streaks"), (add_motion(volume[k], mm, rng, 15, 8), "streaks")):
        for way in (lambda a: a, np.fliplr, np.flipud, np.rot90, np.transpose):
            table = measured([way(i) for i in [*volume[k - 4:k], image, *volume[k + 1:k + 5]]], mm)
            assert screen_series(table)[0][4] == reason


def test_matrix_and_pixel_size_change_no_verdict():
    volume, mm = head(3)
    double = volume.repeat(2, 1)  # rows of half the height: not square, unequal pixels
    a, b = measured(volume, mm), pd.DataFrame([measure_image(i, mm/2, mm) for i in double])
    assert screen_series(b) == screen_series(a)
    np.testing.assert_allclose(b.brain_cm2, a.brain_cm2, atol=3)


def test_equal_pixels_across_patients_are_kept_once():
    volume, mm = head(1)
    other, _ = head(2)
    table = screen({"a": volume[8:18], "b": [*other[8:12], volume[12], *other[13:18]]}, mm)
    assert table.reason.dropna().to_dict() == {14: "same_pixels"} and table.same_as[14] == 4


def test_blank_images_are_no_copies_of_each_other():
    volume, mm = head(1)
    table = screen({"a": [volume[10], np.zeros((256, 256)), volume[12], np.zeros((256, 256)), volume[14]]}, mm)
    assert table.reason.tolist() == [None, "blank", None, "blank", None] and table.same_as.isna().all()


def test_the_order_of_rows_does_not_matter_within_a_series():
    volume, mm = head(3)
    rows, load = listing({"a": volume}, mm)
    mixed = rows.sample(frac=1, random_state=0)
    one, two = (screen_table(t, load, workers=1, progress=False) for t in (rows, mixed))
    pd.testing.assert_frame_equal(one, two.sort_index())


def test_pictures_are_judged_only_by_what_they_show():
    volume, _ = head(1)
    pictures = np.clip(volume, -20, 100)
    table = pd.DataFrame([measure_image(p) for p in pictures])
    assert table[["body_cm2", "edge_share", "brain_cm2", "metal_mm2", "halo_share"]].isna().all(axis=None) and table.streak_hu.notna().any()
    air = pictures.std(axis=(1, 2)) < 1  # above the head, where a picture is one grey
    assert 0 < air.sum() < 5 and screen_series(table) == (["blank" if a else None for a in air], [])


def test_a_series_that_ends_within_the_brain_is_flagged():
    volume, mm = head(1)
    table = screen({"short": volume[10:16]}, mm)
    assert table.reason.isna().all() and (table["flags"] == "cut_off").all()


def test_a_file_that_cannot_be_read_is_a_row(tmp_path):
    (tmp_path/"x.dcm").write_bytes(b"no image")
    rows = pd.DataFrame([dict(file=str(tmp_path/"x.dcm"), frame=None, series=None, patient=None, position_mm=None, row_mm=None, col_mm=None)])
    table = screen_table(rows, workers=1, progress=False)
    assert table.reason.tolist() == ["damaged"] and screen_counts(table).images["damaged"] == 1


def test_no_rows_give_no_rows():
    rows, load = listing({"a": [np.zeros((64, 64))]})
    table = screen_table(rows[:0], load, progress=False)
    assert len(table) == 0 and screen_counts(table).images.sum() == 0


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), seed=st.integers(0, 99), spacing=st.sampled_from([None, np.nan, 0., -1., .3, 2.5, 9.9, 50.]),
       spread=st.sampled_from([0., 1., 300., 1e5]))
def test_any_size_and_spacing_gives_numbers(rows, columns, seed, spacing, spread):
    image = np.random.default_rng(seed).normal(0, spread, (rows, columns))
    found = measure_image(image, spacing, spacing)
    assert set(found) == {*MEASURES, "digest"} and np.isfinite(found["sd_hu"])
    assert screen_image(found) in (None, *REASONS)


@pytest.mark.parametrize("wrong", [np.zeros((0, 5)), np.zeros(5), np.zeros((2, 5, 5)), np.full((9, 9), np.inf)])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(StudyError): measure_image(wrong)


@pytest.mark.skipif(not (SHARED/"dcm_qa_ct").is_dir(), reason="needs the real files")
def test_a_real_head_is_kept_and_a_head_phantom_without_brain_is_not():
    table = scan_folder(SHARED/"dcm_qa_ct"/"In", workers=1, progress=False).query("used").assign(frame=0)
    table = screen_table(table.rename(columns={"series_uid": "series", "patient_id": "patient"}), workers=1, progress=False)
    reasons = table.groupby("manufacturer").reason.unique().map(set)
    assert reasons["GE"] == {None} and reasons["Philips"] == {"not_head"}
    assert screen_counts(table).images["kept"] == 28 and load_image(table.file.iloc[0]).shape == (512, 512)


@pytest.mark.skipif(not (SHARED/"ct_ich").is_dir(), reason="needs the real files")
def test_real_pictures_are_kept():
    files = sorted((SHARED/"ct_ich"/"Patients_CT").glob("*/brain/*.jpg"))[::10]
    rows = pd.DataFrame({"file": map(str, files), "frame": 0, "series": [f.parts[-3] for f in files], "patient": [f.parts[-3] for f in files],
                         "position_mm": np.nan, "row_mm": np.nan, "col_mm": np.nan})
    table = screen_table(rows, load_pixels, workers=1, progress=False)
    assert len(table) > 200 and table.reason.isna().all() and table["flags"].isna().all()
