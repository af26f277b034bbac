"Segmentation without learning: what each method must find, must not find, and must refuse; pseudo volumes"
import numpy as np
import pandas as pd
import pytest

from ich_study.baselines import baseline_tables, pseudo_volumes, segmenter_summary, segmenter_table
from ich_study.cohort import index_folder, series_of_index
from ich_study.masks import load_masks
from ich_study.overlap import dice, mask_measures
from ich_study.phantom import write_cohort
from ich_study.pixels import load_pixels
from ich_study.schema import StudyError, SUBTYPE_ML, check_table
from ich_study.segment import SEGMENTERS, brain_mask, grow_blood, threshold_blood, walker_blood, watershed_blood

MM, GAP = .5, 5.
METHODS = pytest.mark.parametrize("method", SEGMENTERS.values(), ids=SEGMENTERS)

def head(radius_mm=15., blood=65., images=9, seed=1, shift=(0, 0)):
    "A round head with a ball of blood in it: (HU, true mask)"
    z, y, x = np.ogrid[:images, -120:120, -120:120]
    y, x, z = (y - shift[0])*MM, (x - shift[1])*MM, (z - images//2)*GAP
    r, ball = np.hypot(y, x), (y - 12)**2 + (x - 5)**2 + z**2 < radius_mm**2
    plane = np.select([r < 44, r < 50], [32., 1000.], -1000.)
    return np.where(ball, blood, plane) + np.random.default_rng(seed).normal(0, 4, ball.shape), ball


@METHODS
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 64), (1, 512, 512), (1, 1, 1), (2, 7, 9), (1, 2, 2)])
@pytest.mark.parametrize("value", [-1000., 0., 60., 1000., 3000.])
def test_a_constant_field_holds_no_blood(method, shape, value):
    found = method(np.full(shape, value), MM, MM)
    assert found.shape == shape and found.dtype == bool and not found.any()

@METHODS
def test_a_head_without_blood_holds_none(method):
    assert not method(head(radius_mm=0)[0], MM, MM).any()

@METHODS
@pytest.mark.parametrize("radius_mm", [8., 15., 22.])
def test_a_ball_of_known_volume_is_found_within_a_tenth(method, radius_mm):
    hu, ball = head(radius_mm)
    found = method(hu, MM, MM)
    assert abs(found.sum()/ball.sum() - 1) < .1 and dice(found, ball) > .93

@METHODS
def test_a_ball_of_a_stroke_without_blood_is_not_found(method):
    assert not method(head(blood=20.)[0], MM, MM).any()

@METHODS
def test_calcium_in_the_middle_is_not_blood(method):
    hu, ball = head(blood=400.)
    assert not (method(hu, MM, MM) & ball).any()

@METHODS
def test_the_answer_moves_with_the_head(method):
    (at, _), (moved, _) = head(), head(shift=(8, -6))
    noise = np.random.default_rng(3).normal(0, 4, at.shape)
    still, there = (method(h + n, MM, MM) for h, n in ((at, noise), (moved, np.roll(noise, (8, -6), (1, 2)))))
    assert dice(np.roll(still, (8, -6), (1, 2)), there) > .98

@METHODS
@pytest.mark.parametrize("turn", [lambda a: a[:, ::-1], lambda a: a[:, :, ::-1], lambda a: a[::-1], lambda a: a.transpose(0, 2, 1)])
def test_the_answer_turns_with_the_head(method, turn):
    hu, _ = head()
    assert dice(turn(method(hu, MM, MM)), method(turn(hu), MM, MM)) > .99

@METHODS
def test_an_image_alone_says_the_same_as_in_its_stack(method):
    hu, _ = head()
    alone = np.concatenate([method(i[None], MM, MM) for i in hu])
    assert np.array_equal(alone, method(hu, MM, MM))

@METHODS
def test_all_that_is_found_lies_inside_the_skull(method):
    hu, _ = head(radius_mm=40, blood=70)
    assert not (method(hu, MM, MM) & ~brain_mask(hu, MM, MM)).any()

@METHODS
def test_the_input_is_not_written_to_and_any_kind_of_number_serves(method):
    hu = head()[0].round()
    before, ints = hu.copy(), hu.astype(np.int16)
    assert np.array_equal(method(hu, MM, MM), method(ints, MM, MM)) and np.array_equal(hu, before)

@METHODS
@pytest.mark.parametrize("shape", [(2, 101, 240), (2, 240, 201), (1, 239, 239)])
def test_odd_matrices_are_taken(method, shape):
    hu, _ = head(images=9)
    part = hu[:shape[0], :shape[1], :shape[2]]
    assert method(part, MM, MM).shape == part.shape

@METHODS
def test_oblong_pixels_are_measured_in_mm(method):
    hu, ball = head()
    found = method(hu[:, ::2], 2*MM, MM)
    assert dice(found, ball[:, ::2]) > .9

@METHODS
@pytest.mark.parametrize("wrong", ["nan", "inf", "image", "4d", "empty", "no row_mm", "no col_mm", "zero", "negative", "metres"])
def test_what_cannot_be_measured_is_refused_in_one_line(method, wrong):
    hu, sizes = head()[0], {"no row_mm": (np.nan, MM), "no col_mm": (MM, np.nan), "zero": (0, MM), "negative": (MM, -1), "metres": (MM, 500)}
    if wrong in ("nan", "inf"): hu[0, 0, 0] = float(wrong)
    given = {"image": hu[0], "4d": hu[None], "empty": hu[:0]}.get(wrong, hu)
    with pytest.raises(StudyError) as e: method(given, *sizes.get(wrong, (MM, MM)))
    assert "\n" not in str(e.value)

@pytest.mark.parametrize("call", [
    lambda h: threshold_blood(h, MM, MM, low=90, high=80), lambda h: grow_blood(h, MM, MM, low=70, seed=60),
    lambda h: grow_blood(h, MM, MM, seed=110), lambda h: watershed_blood(h, MM, MM, brain=60, seed=55), lambda h: walker_blood(h, MM, MM, brain=60, seed=55)])
def test_limits_in_the_wrong_order_are_refused(call):
    with pytest.raises(StudyError): call(head()[0])


def test_dice_lies_between_0_and_1_and_does_not_care_which_is_first():
    rng = np.random.default_rng(5)
    for p in (.01, .3, .9):
        a, b = rng.random((2, 30, 30)) < p
        assert 0 <= dice(a, b) == dice(b, a) <= 1 and dice(a, a) == 1 and dice(a, ~a) == 0

def test_dice_of_two_empty_masks_is_missing_and_of_two_shapes_refused():
    nothing = np.zeros((3, 3), bool)
    assert np.isnan(dice(nothing, nothing)) and dice(nothing, ~nothing) == 0
    with pytest.raises(StudyError): dice(nothing, nothing[:2])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    "Three synthetic patients: (index, series, labels of the first bleeding series and the first one without blood)"
    out = write_cohort(tmp_path_factory.mktemp("segment")/"phantom", patients=3, seed=3, workers=1, progress=False)
    index, series = index_folder(out/"dicom", "phantom", labels=out/"labels.csv", key=b"demo", workers=1, progress=False)
    return index, series

def without(index, names, **more):
    "The index with the volumes of these series taken away"
    at = index.series.isin(names)
    lost = index.assign(**{c: index[c].mask(at) for c in ("blood_ml", *SUBTYPE_ML)}, volume_source=index.volume_source.mask(at, "none"))
    return lost.assign(**{c: lost[c].mask(at, v) for c, v in more.items()})

def filled(index, method="threshold"): return pseudo_volumes(index, series_of_index(index), method, workers=1, progress=False)

pytestmark = pytest.mark.xdist_group("segment")

def test_pseudo_volumes_fill_what_is_missing_and_say_so(cohort):
    lost = without(cohort[0], [cohort[1].series[0]])
    index, series = filled(lost, "region_growing")
    mine = index.series == cohort[1].series[0]
    assert set(index.volume_source[mine]) == {"pseudo"} and index.blood_ml[mine].notna().all() and index[list(SUBTYPE_ML)][mine].isna().all(axis=None)
    row = series.set_index("series").loc[cohort[1].series[0]]
    assert row.volume_source == "pseudo" and np.isclose(row.blood_ml, index.blood_ml[mine].sum())
    for table, kind in ((index, "index"), (series, "series")): check_table(table, kind)

def test_pseudo_volumes_never_touch_a_reference(cohort):
    lost = without(cohort[0], [cohort[1].series[0]])
    index, series = filled(lost)
    kept, known = index.series != cohort[1].series[0], series.series != cohort[1].series[0]
    pd.testing.assert_frame_equal(index[kept], lost[kept])
    pd.testing.assert_frame_equal(series[known], series_of_index(lost)[known])

def test_with_references_everywhere_nothing_changes(cohort):
    index, series = pseudo_volumes(*cohort, workers=1, progress=False)
    pd.testing.assert_frame_equal(index, cohort[0]); pd.testing.assert_frame_equal(series, cohort[1])

def test_one_image_with_a_reference_keeps_its_whole_series_as_it_is(cohort):
    name = cohort[1].series[0]
    lost = without(cohort[0], [name])
    first = lost.index[lost.series == name][0]
    lost.loc[first, ["blood_ml", "volume_source"]] = [1., "mask"]
    pd.testing.assert_frame_equal(filled(lost)[0], lost)

def test_a_volume_that_is_known_of_the_series_alone_is_not_replaced(cohort):
    lost = without(cohort[0], [cohort[1].series[0]])
    index, series = pseudo_volumes(lost, cohort[1], workers=1, progress=False)
    pd.testing.assert_frame_equal(index, lost); pd.testing.assert_frame_equal(series, cohort[1])

@pytest.mark.parametrize("column", ["gap_mm", "row_mm", "col_mm"])
def test_without_geometry_a_volume_stays_missing(cohort, column):
    lost = without(cohort[0], [cohort[1].series[0]], **{column: np.nan})
    pd.testing.assert_frame_equal(filled(lost)[0], lost)

@pytest.mark.parametrize("flag", ["missing_images", "conflict", "tilted;conflict"])
def test_a_series_flagged_as_not_measurable_gets_no_pseudo_volume(cohort, flag):
    lost = without(cohort[0], [cohort[1].series[0]])
    series = series_of_index(lost).assign(flags=lambda t: t["flags"].mask(t.series == cohort[1].series[0], flag))
    index, after = pseudo_volumes(lost, series, workers=1, progress=False)
    assert after.blood_ml[0] is pd.NA or np.isnan(after.blood_ml[0])
    pd.testing.assert_frame_equal(index, lost)

def test_where_no_skull_is_seen_a_volume_is_missing_not_zero(cohort, monkeypatch):
    name = cohort[1].series[0]
    lost = without(cohort[0], [name], any=pd.NA)
    monkeypatch.setattr("ich_study.baselines.load_pixels", lambda row: np.full((512, 512), 40., np.float32))
    index, series = filled(lost)
    assert index.blood_ml[index.series == name].isna().all() and series.set_index("series").volume_source[name] == "none"
    predictions, volumes = baseline_tables(lost.assign(mask_file=pd.NA), series, "demo", workers=1, progress=False)
    assert volumes.empty and predictions.empty

def test_what_was_read_as_free_of_blood_gets_0_ml_labelled_pseudo(cohort):
    names = cohort[1].series.tolist()
    index, series = filled(without(cohort[0], names, any=False))
    assert (series.blood_ml == 0).all() and set(index.volume_source) == set(series.volume_source) == {"pseudo"}
    unknown, _ = filled(without(cohort[0], names, any=pd.NA))
    assert unknown.blood_ml.sum() > 0

def test_an_unknown_method_is_refused(cohort):
    with pytest.raises(StudyError, match="otsu"): pseudo_volumes(*cohort, method="otsu", progress=False)

def test_pseudo_rows_reach_the_volumes_table_under_their_name(cohort):
    names = cohort[1].series.tolist()
    index, series = filled(without(cohort[0], names[:1]))
    _, volumes = baseline_tables(index, series, "demo", workers=1, progress=False)
    assert set(volumes.volume_source[volumes.series == names[0]]) == {"pseudo"} and "pseudo" not in set(volumes.volume_source[volumes.series != names[0]])

def test_table_and_summary_of_the_segmentations_agree(cohort):
    table = segmenter_table(cohort[0], workers=1, progress=False)
    assert len(table) == 3*len(SEGMENTERS) and np.allclose(table.error_ml, table.predicted_ml - table.truth_ml)
    assert np.allclose(table.truth_ml, table.series.map(cohort[1].set_index("series").blood_ml), atol=.1)
    summary = segmenter_summary(table).set_index(["model", "metric"])
    g = table[table.model == "watershed"]
    assert np.isclose(summary.value["watershed", "mae_ml"], g.error_ml.abs().mean())
    for metric in ("dice", "hd95_max_mm", "volume_similarity"): assert np.isclose(summary.value["watershed", metric], g[metric][g.truth_ml > 0].mean(), equal_nan=True)
    assert (g.reason.eq("") == g.hd95_max_mm.notna()).all() and summary.reason[summary.low.isna()].notna().all()
    assert len(segmenter_summary(table[:0])) == 0

def test_distances_are_those_of_the_masks_and_missing_where_images_are_uneven(cohort):
    name = cohort[1].series[cohort[1]["any"].fillna(False)].iloc[0]
    rows = cohort[0][cohort[0].used & (cohort[0].series == name)]
    row = segmenter_table(rows, workers=1, progress=False).set_index("model").loc["threshold"]
    fraction, _ = load_masks(rows)
    hu = np.stack([load_pixels(r) for r in rows[["file", "frame"]].to_dict("records")])
    mm = rows.row_mm.iloc[0], rows.col_mm.iloc[0]
    found = mask_measures(threshold_blood(hu, *mm), np.minimum(fraction.sum(-1), 1) >= .5, (rows.gap_mm.mean(), *mm))
    assert np.isclose(row.hd95_max_mm, found["hd95_max_mm"]) and np.isclose(row.volume_similarity, found["volume_similarity"]) and row.dice == found["dice"]
    uneven = segmenter_table(rows.assign(gap_mm=rows.gap_mm*np.where(np.arange(len(rows)) % 2, 1, 1.06)), workers=1, progress=False)
    assert uneven.hd95_max_mm.isna().all() and uneven.volume_similarity.isna().all() and uneven.dice.notna().all() and uneven.reason.str.contains("evenly").all()
    assert segmenter_summary(uneven).set_index("metric").reason["hd95_max_mm"].str.contains("without 1 series").all()
