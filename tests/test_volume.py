"""From files with any geometry to millilitres: random series against the exact truth, and what must not matter."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings, strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from thorough import often

from ich_study.anatomy import to_scanner
from ich_study.bleeds import Geometry, make_patient, plan
from ich_study.series import scan_folder
from ich_study.render import _header, blood_fraction, make_uid
from ich_study.schema import SUBTYPES, StudyError
from ich_study.volume import (BANDS, UNMEASURED, abc2_ml, doubtful_gaps, image_gaps_mm, measure_areas, measure_series, missing_counts,
                              missing_error_ml, size_band, volume_ml)

ROOT = Path(__file__).resolve().parent.parent
SERIES, PATIENTS = often(200, 2), 16
pytestmark = pytest.mark.xdist_group("volume")


# ---- random series -------------------------------------------------------------------------------------------------

def turn(axis, degrees):
    """Rotation about one axis."""
    a, (i, j) = np.radians(degrees), [k for k in range(3) if k != axis]
    out = np.eye(3)
    out[i, i] = out[j, j] = np.cos(a)
    out[i, j], out[j, i] = -np.sin(a), np.sin(a)
    return out


def directions(rng):
    """Directions of columns and rows: tilted, a little oblique, turned in plane by quarter turns, flipped. And the normal towards the head."""
    r = turn(0, rng.choice([0, rng.uniform(-25, 25)])) @ turn(1, rng.choice([0, rng.uniform(-6, 6)])) @ turn(2, rng.choice([0, rng.uniform(-8, 8)]))
    u, v = r[:, 0], r[:, 1]
    if rng.random() < .5: u, v = v, -u
    u, v = u*rng.choice([-1, 1]), v*rng.choice([-1, 1])
    n = np.cross(u, v)
    return u, v, n*np.sign(n[2])


def spans(patient, axes):
    """Where the bleeds lie along each direction (mm)."""
    corners = [np.array(np.meshgrid(*zip(b.low, b.high), indexing="ij")).reshape(3, -1) for b in patient.bleeds]
    p = np.concatenate([to_scanner(patient.head, c) for c in corners], axis=1)
    return [(float((a @ p).min()), float((a @ p).max())) for a in axes]


def stack(rng, low, high):
    """Layout, positions and thickness of each image: touching, with gaps, overlapping, or two zones."""
    layout, gap = rng.choice(["touching", "gaps", "overlap", "zones"], p=[.4, .2, .2, .2]), max(rng.choice([2.5, 3, 4, 5, 6, 7]), (high - low)/18)
    thickness = gap*{"touching": 1, "zones": 1, "gaps": rng.uniform(.4, .85), "overlap": rng.uniform(1.15, max(1.2, min(2.2, 10/gap)))}[layout]
    s = np.arange(low - (1 + rng.random())*gap, high + 2*gap, gap)
    t = np.full(len(s), thickness)
    if layout == "zones":
        k = int(rng.integers(4, len(s) - 3))
        first = np.cumsum(np.append(0, [gap/2]*(2*k)))[:-1] + s[0]
        s = np.concatenate([first, np.arange(first[-1] + rng.choice([.75, 1])*gap, high + 2*gap, gap)])
        t = np.where(np.arange(len(s)) < len(first), gap/2, gap)
    return layout, np.round(s, 4), np.round(t, 4)


def draw(rng, patient):
    """A random series: one `Geometry` of a single image for each image, and what is known of it."""
    u, v, n = directions(rng)
    (ul, uh), (vl, vh), (low, high) = spans(patient, (u, v, n))
    layout, s, t = stack(rng, low, high)
    shear = np.array([0, 0, 1.])/n[2] if rng.random() < .5 else n  # the table moves along z, or the images are reformatted
    drift = max(abs(u @ shear), abs(v @ shear))*(s[-1] - s[0])/2
    sizes = [h - l + 2*drift + 8 for l, h in ((vl, vh), (ul, uh))]
    rows, columns = (int(rng.choice([m for m in (64, 80, 96, 128, 160, 192) if m >= size/1.8])) for size in sizes)
    row_mm, col_mm = (round(max(size/m, .4), 4) for size, m in zip(sizes, (rows, columns)))
    row_mm, col_mm = max(row_mm, round(col_mm/1.5, 4)), max(col_mm, round(row_mm/1.3, 4))
    centre = u*(ul + uh)/2 + v*(vl + vh)/2 + n*(s[0] + s[-1])/2
    first = centre - u*col_mm*(columns - 1)/2 - v*row_mm*(rows - 1)/2
    at = first + (s - (s[0] + s[-1])/2)[:, None]*shear
    images = [Geometry(tuple(p), tuple(col_mm*u), tuple(row_mm*v), tuple(d*np.cross(u, v)), 1, rows, columns) for p, d in zip(at, t)]
    return dict(layout=layout, s=s, t=t, normal=n, images=images)


def fractions(patient, images):
    """(5, images, rows, columns) blood fractions, each image drawn with its own thickness."""
    return np.concatenate([blood_fraction(replace(patient, geometry=g, mimics=())) for g in images], axis=1)/np.float32(255)


def write(rng, patient, series, folder):
    """One DICOM file per image; names and instance numbers say nothing about the order. Returns file name -> place in the stack."""
    folder.mkdir()
    names, numbers = rng.permutation(len(series["s"])), rng.permutation(len(series["s"]))
    for k, (g, t) in enumerate(zip(series["images"], series["t"])):
        ds = _header(replace(patient, geometry=g))
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = make_uid(folder.name, k)
        ds.SeriesInstanceUID, ds.InstanceNumber, ds.SliceThickness = make_uid(folder.name), int(numbers[k]) + 1, f"{t:.4f}"
        ds.ImagePositionPatient = [f"{a:.6f}" for a in g.origin]
        ds.add_new("PixelData", "OW", rng.integers(900, 1200, (g.rows, g.columns), dtype=np.uint16).tobytes())
        pydicom.dcmwrite(folder/f"{names[k]:03d}.dcm", ds, enforce_file_format=True)
    return {f"{name:03d}.dcm": k for k, name in enumerate(names)}


def points_in(patient, cell=3., parts=7):
    """Points spread evenly through the blood, one at random in each small cube: places in the scanner (mm), and what each stands for (mm3)."""
    rng, places, weights = np.random.default_rng(0), [], []
    sub = np.stack(np.meshgrid(*[np.arange(parts, dtype=np.float32)]*3, indexing="ij")).reshape(3, 1, -1)
    for bleed in patient.bleeds:
        field, found = bleed.shape.field, []
        axes = [np.arange(l - 1, h + 1, cell, dtype=np.float32) for l, h in zip(bleed.low, bleed.high)]
        cubes = np.stack(np.meshgrid(*axes, indexing="ij"))
        cubes = cubes[:, field(*(cubes + np.float32(cell/2))) < .87*cell*(2.4 if type(bleed.shape).__name__ == "Remainder" else 1.25)]
        for some in np.array_split(cubes, max(cubes.shape[1]//1000, 1), axis=1):
            p = some[:, :, None] + (sub + rng.random((3, some.shape[1], parts**3), dtype=np.float32))*np.float32(cell/parts)
            found.append(p[:, field(*p) < 0])
        places.append(np.concatenate(found, axis=1))
        weights.append(np.full(places[-1].shape[1], bleed.volume_ml*1000/places[-1].shape[1]))
        counted_ml = places[-1].shape[1]*(cell/parts)**3/1000
        assert abs(counted_ml/bleed.volume_ml - 1) < .02, (bleed.subtype, counted_ml, bleed.volume_ml)
    return to_scanner(patient.head, np.concatenate(places, axis=1)), np.concatenate(weights)


def ideal_areas(points, normal, s, t):
    """What images of thickness `t` at `s` see of the blood, without pixels (mm2)."""
    along, weight = normal @ points[0], points[1]
    order = np.argsort(along)
    sums = np.append(0, np.cumsum(weight[order]))
    return (sums[np.searchsorted(along[order], s + t/2)] - sums[np.searchsorted(along[order], s - t/2)])/t


def read(folder, place, mask, keep=None):
    """The series as `scan_folder` reads it: used rows in order of position, with their masks summed over subtypes."""
    table = scan_folder(folder, workers=1, progress=False)
    table = table.assign(place=[place[Path(f).name] for f in table.file])
    used = table[table.used].sort_values("position_mm")
    return used, mask[used.place]


def measured(used, mask):
    return measure_series(mask, used.position_mm, used.row_mm.iloc[0], used.col_mm.iloc[0], used.thickness_mm)


@pytest.fixture(scope="module")
def patients():
    """Patients of all size bands."""
    total = pd.Series({n: plan(3, n)[1] for n in range(1, 300)})
    numbers = total[total > 0].groupby(total.map(size_band)).head(PATIENTS//4).index
    return [make_patient(3, int(n)) for n in numbers]


@pytest.fixture(scope="module")
def found(patients, tmp_path_factory):
    """One row per random series: its truth, what ideal sampling would give, and what was measured, whole and damaged."""
    root, out, points = tmp_path_factory.mktemp("series"), [], [points_in(patient) for patient in patients]
    for i in range(SERIES):
        rng = np.random.default_rng([7, i])
        patient = patients[i % len(patients)]
        series = draw(rng, patient)
        by_subtype = fractions(patient, series["images"])
        mask = by_subtype.sum(0).clip(0, 1)
        folder = root/f"series{i}"
        place = write(rng, patient, series, folder)
        used, masks = read(folder, place, mask)
        row = dict(series=i, layout=series["layout"], n=len(series["s"]), used=len(used), truth=patient.total_ml)
        row |= measured(used, masks) | dict(order=used.place.is_monotonic_increasing, gaps=np.abs(np.diff(used.position_mm) - np.diff(series["s"])).max())
        row["subtypes"] = max(abs(measured(used, by_subtype[j, used.place])["ml"] - sum(b.volume_ml for b in patient.bleeds if b.subtype == name))
                              for j, name in enumerate(SUBTYPES))
        areas = ideal_areas(points[i % len(patients)], series["normal"], series["s"], series["t"])
        row["ideal"] = areas @ image_gaps_mm(series["s"])/1000
        out.append(row | damaged(rng, folder, place, used, mask, series, areas))
    return pd.DataFrame(out)


def damaged(rng, folder, place, used, mask, series, areas):
    """The same series with one image missing, two missing, one doubled and one moved."""
    names, out = {k: name for name, k in place.items()}, {}
    inside = np.flatnonzero(areas[1:-1]) + 1
    k = int(rng.choice(inside))
    (folder/names[k]).unlink()
    left, masks = read(folder, place, mask)
    out["one"] = measured(left, masks)
    kept = np.delete(np.arange(len(series["s"])), k)
    out["one_ideal"] = areas[kept] @ image_gaps_mm(series["s"][kept])/1000
    out["one_touch"] = bool(series["s"][k + 1] - series["s"][k - 1] <= series["t"][[k - 1, k + 1]].max() + .05)
    far = [j for j in range(1, len(kept)) if abs(kept[j] - k) > 1 and j < len(kept) - 1]
    still = np.delete(np.arange(len(kept)), rng.choice(far))
    out["two"] = measured(left.iloc[still], masks[still])
    double, moved = used.copy(), used.copy()
    j = int(rng.integers(1, len(used) - 1))
    double.iloc[j, double.columns.get_loc("position_mm")] = used.position_mm.iloc[j - 1]
    out["double"] = measured(double, mask[used.place])
    others = [p for p in range(1, len(used) - 2) if abs(p - j) > 2]
    to = int(rng.choice(others))
    moved.iloc[j, moved.columns.get_loc("position_mm")] = np.average(used.position_mm.iloc[to:to + 2], weights=rng.dirichlet([3, 3]))
    out["moved"] = measured(moved, mask[used.place])
    return out


def close(value, wanted, times=1): return abs(value - wanted) <= times*np.maximum(.005*wanted, .05)


def test_every_image_is_read_in_order_and_at_its_place(found):
    assert len(found) == SERIES and (found.used == found.n).all() and found.order.all() and found.gaps.max() < .001


def test_touching_slabs_give_the_exact_volume(found):
    rows = found[found.layout == "touching"]
    assert len(rows) > .3*SERIES and close(rows.ml, rows.truth).all(), rows[~close(rows.ml, rows.truth)][["ml", "truth"]]


def test_touching_slabs_give_the_exact_volume_of_each_subtype(found):
    rows = found[found.layout == "touching"]
    assert (rows.subtypes <= np.maximum(.005*rows.truth, .05)).all()


def test_gaps_and_overlap_give_what_ideal_sampling_gives(found):
    rows = found[found.layout != "touching"]
    assert rows.layout.nunique() == 3 and close(rows.ml, rows.ideal).all(), rows[~close(rows.ml, rows.ideal)][["layout", "ml", "ideal"]]


def test_whole_series_are_not_suspected(found):
    assert found.reason.isna().all() and (found.missing == 0).all() and (found.uncertain_ml == 0).all() and not found.doubtful.any()


def test_sampling_errors_shrink_with_size(found):
    rows = found.assign(band=found.truth.map(size_band), error=100*abs(found.ml/found.truth - 1))
    table = rows[rows.layout != "touching"].groupby(["layout", "band"]).error.mean().unstack()[list(BANDS)]
    print(table.round(2))
    assert (table["<5 mL"] > table[">60 mL"]).all()


def test_one_missing_image_is_flagged_with_its_error(found):
    one = pd.DataFrame(found.one.tolist()).assign(full=found.ml, ideal=found.one_ideal, zones=found.layout == "zones")[~found.one_touch]
    even = one[~one.zones]  # where distances change, the rule may count two, or find the gap doubtful
    assert len(even) > .65*SERIES and (even.missing == 1).all() and even.reason.isna().all()
    assert ((one.missing > 0) | one.doubtful.astype(bool)).all()
    known = one[one.ml.notna()]
    assert len(known) > .95*len(one) and close(known.ml, known.ideal, 1.5).all()  # the images beside the hole count half as much again
    assert (abs(known.ml - known.full) <= known.uncertain_ml).mean() >= .98


def test_a_missing_image_among_overlapping_ones_leaves_no_gap(found):
    one = pd.DataFrame(found.one.tolist()).assign(full=found.ml, ideal=found.one_ideal)[found.one_touch]
    assert len(one) and (one.missing == 0).all() and close(one.ml, one.ideal).all()
    assert (abs(one.ml - one.full) <= np.maximum(.05*one.full, .1)).all()


def test_two_missing_images_leave_no_volume(found):
    two = pd.DataFrame(found.two.tolist())[~found.one_touch]
    told = two.ml.isna() | two.doubtful.astype(bool)
    assert told.all() and two.ml.isna().mean() > .95


def test_an_image_at_the_place_of_another_leaves_no_volume(found):
    double = pd.DataFrame(found.double.tolist())
    assert double.ml.isna().all() and (double.reason == "conflict").all()


def test_a_moved_image_is_never_silent(found):
    """Moved past its neighbours into another gap; where images overlap by half, its old place leaves no gap."""
    moved = pd.DataFrame(found.moved.tolist()).assign(full=found.ml)
    told = moved.ml.isna() | (moved.missing > 0) | moved.doubtful.astype(bool)
    assert told.all() and moved.ml.isna().mean() > .9
    known = moved[moved.ml.notna()]
    assert (abs(known.ml - known.full) <= known.uncertain_ml + .05).mean() > .8


# ---- what must not matter ------------------------------------------------------------------------------------------

gaps_mm = st.lists(st.floats(.5, 12), min_size=1, max_size=30)
seeds = st.integers(0, 2**31)
some = settings(max_examples=60, deadline=None, derandomize=True)


def stacked(gaps): return np.concatenate([[0], np.cumsum(gaps)])


def random_mask(seed, n): return np.random.default_rng(seed).random((n, 6, 5))


@some
@given(gaps_mm, seeds, st.floats(-2000, 2000))
def test_order_direction_and_place_do_not_matter(gaps, seed, shift):
    s, order = stacked(gaps), np.random.default_rng(seed).permutation(len(gaps) + 1)
    mask = random_mask(seed, len(s))
    wanted = volume_ml(mask, image_gaps_mm(s), .5, .4)
    for m, at in ((mask[order], s[order]), (mask, -s), (mask, s + shift), (mask[:, ::-1], s), (mask.transpose(0, 2, 1), s)):
        assert volume_ml(m, image_gaps_mm(at), .5, .4) == pytest.approx(wanted, rel=1e-9)


@some
@given(gaps_mm, seeds, st.floats(.1, 10))
def test_volume_grows_with_each_spacing(gaps, seed, times):
    s, mask = stacked(gaps), random_mask(seed, len(gaps) + 1)
    wanted = times*volume_ml(mask, image_gaps_mm(s), .5, .4)
    assert volume_ml(mask, image_gaps_mm(s)*times, .5, .4) == pytest.approx(wanted)
    for row_mm, col_mm in ((.5*times, .4), (.5, .4*times)): assert volume_ml(mask, image_gaps_mm(s), row_mm, col_mm) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int8, np.uint16, np.int16, np.int64, np.float32, np.float64])
def test_storage_does_not_matter(kind):
    mask = random_mask(0, 300) > .5  # many enough for a sum in 8 or 16 bits to run over
    mask = np.repeat(np.repeat(mask, 20, 1), 20, 2)
    assert volume_ml(mask.astype(kind), np.ones(300), 1, 1) == mask.sum()/1000


@some
@given(gaps_mm, st.floats(.5, 12) | st.none(), st.floats(-500, 500))
def test_missing_images_do_not_depend_on_direction_or_place(gaps, thickness, shift):
    s = np.round(stacked(gaps), 3)
    counts, doubts = missing_counts(s, thickness), doubtful_gaps(s, thickness)
    assert len(counts) == len(doubts) == len(gaps) and counts.min() >= 0
    assert (missing_counts(-s, thickness)[::-1] == counts).all() and (doubtful_gaps(-s, thickness)[::-1] == doubts).all()


@some
@given(st.floats(1, 10), st.integers(6, 40), st.data())
def test_a_hole_in_an_even_series_is_counted(gap, n, data):
    first = data.draw(st.integers(1, n - 2))
    holes = data.draw(st.integers(1, min(3, n - 1 - first)))
    s = np.delete(np.arange(n)*gap, np.arange(first, first + holes))
    assert missing_counts(np.round(s, 2), gap).sum() == holes or len(s) < 3


@some
@given(gaps_mm)
def test_slabs_that_touch_hide_nothing(gaps):
    thickest = max(gaps)
    assert not missing_counts(stacked(gaps), thickest).any() and missing_error_ml(np.ones(len(gaps) + 1), stacked(gaps), thickest) == 0


@pytest.mark.parametrize("thick", [(2.5, 5), (4, 7)])
@pytest.mark.parametrize("junction", ["touching", "thick", "overlapping"])
def test_each_image_of_two_stacks_is_missed(thick, junction):
    """Thin images below, thick ones above: any inner image left out is told, unless the slabs beside it still touch."""
    thin, wide = thick
    step = {"touching": (thin + wide)/2, "thick": wide, "overlapping": 1.08}[junction]
    s, t = stacked([thin]*12 + [step] + [wide - .01]*12), np.repeat(thick, 13)
    assert not missing_counts(s, t).any() and not missing_counts(s).any()
    for k in range(1, len(s) - 1):
        left, thickness = np.delete(s, k), np.delete(t, k)
        touch = s[k + 1] - s[k - 1] <= (t[k + 1] + t[k - 1])/2 + .05
        told = missing_counts(left, thickness).sum() > 0 or doubtful_gaps(left, thickness).any()
        assert told or touch, k


any_number = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0., 5., 10., 10.005, np.nan])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(any_number, st.floats(0, 1e5) | st.just(np.nan)), max_size=12), any_number | st.none())
def test_no_geometry_makes_a_wrong_volume(images, thickness):
    s, areas = [p for p, _ in images], [a for _, a in images]
    found = measure_areas(areas, s, thickness)
    assert np.isfinite(found["ml"]) != (found["reason"] is not None) and np.isfinite(found["ml"]) == np.isfinite(found["uncertain_ml"])
    assert found["reason"] is None or found["reason"] in UNMEASURED
    if not np.isfinite(s).all() or not np.isfinite(areas).all() or len(s) < 2 or len(set(s)) < len(s): assert found["reason"] is not None


# ---- known numbers -------------------------------------------------------------------------------------------------

HALF, CENTRE = np.array([18., 24., 20.]), np.array([0., 4., 0.])  # an ellipsoid of 36.19 mL, beside the axis of the tilt


def ellipsoid_ml(s, gaps, tilt=0., pixel=.4):
    """Volume from a mask of pixels whose centres lie in the ellipsoid."""
    t, g = np.radians(tilt), np.arange(-32, 32, pixel) + .13
    x, v = g[:, None], g
    inside = [((x - CENTRE[0])/HALF[0])**2 + ((v*np.cos(t) + k*np.sin(t) - CENTRE[1])/HALF[1])**2 + ((-v*np.sin(t) + k*np.cos(t) - CENTRE[2])/HALF[2])**2 < 1 for k in s]
    return volume_ml(np.array(inside), np.broadcast_to(gaps, s.shape), pixel, pixel)


five = np.arange(-30, 31, 5.)
table = {  # positions, tilt, the wrong length of an image and its volume, the right volume
    "5 mm apart": (five, 0, 5, 35.64, 35.64), "overlap": (np.arange(-30, 31, 2.5), 0, 5, 72.12, 36.06), "gaps": (np.arange(-31.5, 32, 7), 0, 5, 26.15, 36.61),
    "mixed": (np.append(np.arange(-30, 0, 2.5), np.arange(0, 31, 5.)), 0, 2.5, 26.94, 35.85), "missing": (np.delete(five, 8), 0, 5, 30.55, 35.22),
    "twice": (np.insert(five, 7, 5.), 0, 5, 42.01, 35.64)} | {
    f"tilt {t}": (np.arange(-60, 61, 5.)*np.cos(np.radians(t)), t, 5, wrong, right) for t, wrong, right in ((10, 36.58, 36.03), (20, 38.45, 36.13), (25, 39.75, 36.03))}


@pytest.mark.parametrize("name", table)
def test_table_of_wrong_and_right_volumes(name):
    s, tilt, length, wrong, right = table[name]
    once = np.unique(s)
    assert abs(ellipsoid_ml(s, length, tilt) - wrong) < .1
    assert abs(ellipsoid_ml(once, image_gaps_mm(once), tilt) - right) < .1


def test_abc2_of_an_ellipsoid_is_what_the_formula_says():
    g = np.arange(-26, 26, .3)
    mask = (g[:, None, None]/HALF[2])**2 + (g[:, None]/HALF[1])**2 + (g/HALF[0])**2 < 1
    full, gaps = volume_ml(mask, np.full(len(g), .3), .3, .3), np.full(len(g), .3)
    assert near(abc2_ml(mask, gaps, .3, .3, weighted=False)/full, .955) and near(abc2_ml(mask, gaps, .3, .3)/full, .652)


def near(value, wanted): return abs(value - wanted) < .012


def test_unknown_kinds_of_input_are_refused_with_one_line():
    for wrong in (lambda: missing_counts([0, 5, 5]), lambda: missing_counts([0, 5], [5, 5, 5]), lambda: missing_error_ml([1], [0, 5]), lambda: size_band(-1)):
        with pytest.raises(StudyError) as e: wrong()
        assert "\n" not in str(e.value)


def test_real_scanners_are_not_suspected():
    """Two stacks that overlap where they meet; a tilted series whose images overlap; an even one."""
    folder = ROOT.parent/"shared"/"data"/"dcm_qa_ct"
    if not folder.is_dir(): pytest.skip("the real files are not here")
    used = scan_folder(folder, workers=1, progress=False).query("used")
    seen = set()
    for _, rows in used.groupby("series_uid"):
        steps = np.diff(np.sort(rows.position_mm))
        seen |= {float(v) for v in steps.round(1)}
        for thickness in (rows.thickness_mm, None):
            found = measure_areas(np.ones(len(rows)), rows.position_mm, thickness)
            assert found["reason"] is None and found["missing"] == 0 and not found["doubtful"]
    assert {1.1, 7.0} <= seen
