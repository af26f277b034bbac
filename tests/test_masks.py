"""NIfTI images, masks of others and CT-ICH: places, millilitres, and what is refused."""
import gzip
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from pydicom.sr.codedict import codes

from thorough import often

from ich_study.bleeds import Scanner, image_ml, make_patient
from ich_study.ct_ich import index_ct_ich
from ich_study.series import scan_folder
from ich_study.masks import load_masks, mask_ml, match_mask, read_mask, with_masks
from ich_study.nifti import _unpacked, load_nifti_image, read_nifti
from ich_study.render import mask_affine, write_patient
from ich_study.schema import LABELS, REASONS, SUBTYPE_ML, SUBTYPES, StudyError

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent/"shared"/"data"/"ct_ich"
ML = ["blood_ml", *SUBTYPE_ML]
WAYS = ["".join(w) for p in itertools.permutations(("LR", "AP", "SI")) for w in itertools.product(*p)]


def volume(order="LPS", values=None, affine=None, path=None):
    """A NIfTI file of (images, rows, columns) whose axes are stored in some order"""
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-.5, -.6, 5., 1]) if affine is None else affine)
    nibabel.save(image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(order))), path)
    return path


def lean(gap=5., tilt=0., row=.6, col=.5, turn=0., origin=(3, 4, -50)):
    """Affine of columns, rows and images with a gantry tilt and a head turned in the plane (degrees)"""
    t, a = np.deg2rad(tilt), np.deg2rad(turn)
    right, front = np.array([np.cos(a), np.sin(a), 0]), np.array([-np.sin(a)*np.cos(t), np.cos(a)*np.cos(t), np.sin(t)])
    normal = np.cross(right, front)
    out = np.eye(4)
    out[:3] = np.stack([-col*right, -row*front, np.array([0, 0, gap/normal[2]]), origin], 1)
    return out


@pytest.fixture(scope="module")
def head(): return np.random.default_rng(1).integers(-1000, 1000, (5, 66, 72)).astype(np.int16)


@pytest.mark.parametrize("first", ["L", "R", "A", "P", "S", "I"])
def test_all_48_storage_orders_give_the_same_images_at_the_same_places(head, first, tmp_path):
    ways = [w for w in WAYS if w[0] == first]
    assert len(WAYS) == 48 and len(ways) == 8
    for order in ways:
        rows = pd.DataFrame(read_nifti(volume(order, head, path=tmp_path/f"{order}.nii"))).sort_values("position_mm")
        assert np.allclose(rows.position_mm, 5*np.arange(5)) and np.allclose(rows.row_mm, .6) and np.allclose(rows.col_mm, .5)
        assert np.array_equal(np.stack([load_nifti_image(f, k) for f, k in zip(rows.file, rows.frame)]), head), order


def test_positions_run_along_the_normal_for_any_tilt_and_turn(head, tmp_path):
    rng = np.random.default_rng(2)
    for k in range(40):
        gap, tilt, row, col, turn = rng.uniform((.6, -30, .3, .3, -40), (8, 30, .8, .8, 40))
        order = WAYS[rng.integers(48)]
        rows = pd.DataFrame(read_nifti(volume(order, head, lean(gap, tilt, row, col, turn), tmp_path/"a.nii"))).sort_values("position_mm")
        assert np.allclose(np.diff(rows.position_mm), gap, rtol=1e-4) and np.allclose(rows.tilt_deg, abs(tilt), atol=1e-3), (order, gap, tilt)
        assert np.allclose(rows.row_mm, row, rtol=1e-4) and np.allclose(rows.col_mm, col, rtol=1e-4)


def test_nifti_position_is_the_position_of_the_dicom_image_it_came_from(phantom):
    rows = pd.DataFrame(read_nifti(phantom["hu"])).sort_values("position_mm")
    assert np.allclose(rows.position_mm, phantom["images"].position_mm, atol=1e-3) and np.allclose(rows.tilt_deg, phantom["images"].tilt_deg, atol=1e-3)


def made(path, shape, data=b"", dtype=np.int16, pack=True, **changes):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype); header.set_data_shape(shape); header.set_sform(np.diag([-.5, -.5, 2., 1]), 1)
    header["pixdim"][1:4], header["magic"], header["vox_offset"] = (.5, .5, 2), b"n+1", 352
    for k, v in changes.items(): header[k] = v
    path.write_bytes((gzip.compress if pack else bytes)(header.binaryblock + bytes(4) + data))
    return path


@pytest.mark.parametrize("shape, reason", [
    ((64, 64, 2), None), ((63, 64, 2), "missing_header"), ((64, 63, 2), "missing_header"), ((2048, 64, 2), None), ((2049, 64, 2), "too_large"),
    ((64, 2049, 2), "too_large"), ((64, 64, 2000), None), ((64, 64, 2001), "too_large"), ((64, 64, 1), None), ((1024, 1024, 512), "truncated"), ((1024, 1024, 513), "too_large")], ids=str)
def test_each_limit_accepts_just_at_it_and_refuses_just_above(shape, reason, tmp_path):
    path = made(tmp_path/"a.nii", shape, bytes(2*np.prod(shape)) if np.prod(shape) < 2**24 else b"", pack=False)
    rows = read_nifti(path)
    assert {r["reason"] for r in rows} == {reason} and len(rows) == (1 if reason else shape[2])


HOSTILE = {
    "claims a gigabyte": lambda p: made(p/"a.nii.gz", (512, 512, 2000), bytes(2**29)),
    "claims more than can be counted": lambda p: made(p/"a.nii.gz", (2048, 2048, 2048), bytes(2**20), np.float64),
    "holds more than it claims": lambda p: made(p/"a.nii.gz", (64, 64, 5), bytes(2**29)),
    "starts late": lambda p: made(p/"a.nii.gz", (64, 64, 5), bytes(2**29), vox_offset=2**29),
    "holds less than it claims": lambda p: made(p/"a.nii.gz", (512, 512, 120), bytes(2**19)),
    "is a sparse file": lambda p: [made(p/"a.nii", (64, 64, 5), pack=False), os.truncate(p/"a.nii", 2**40), p/"a.nii"][2],
    "unfolds to a legal size": lambda p: made(p/"a.nii.gz", (512, 512, 100), bytes(2*512*512*100)),
}
LIMITED = """
import resource, sys, time
from ich_study.nifti import read_nifti, load_nifti_image
from ich_study.masks import match_mask
from ich_study.pixels import open_picture
import pandas as pd
def memory(name): return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1])/1024
open("/proc/self/clear_refs", "w").write("5")  # the peak begins here; getrusage would show that of the process that started this one
before, t = memory("VmRSS"), time.process_time()
resource.setrlimit(resource.RLIMIT_AS, (int(memory("VmSize") + 400)*2**20,)*2)
rows = read_nifti(sys.argv[1])
if rows[0]["used"]: load_nifti_image(sys.argv[1], 0)
elif "mask" in sys.argv:
    try: match_mask(sys.argv[1], "any", pd.DataFrame({"rows": [512], "columns": [512], "row_mm": .5, "col_mm": .5, "position_mm": 0.}))
    except ValueError as e: pass
print(rows[0]["reason"], time.process_time() - t, memory("VmHWM") - before)
"""


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_bomb_is_refused_or_read_in_seconds_and_300_mb(hostile, tmp_path):
    path = HOSTILE[hostile](tmp_path)
    done = subprocess.run([sys.executable, "-c", LIMITED, path, "mask"], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    reason, seconds, mb = done.stdout.split() if not done.returncode else pytest.fail(done.stderr[-2000:])
    assert (reason == "None") == (hostile == "unfolds to a legal size") and float(seconds) < 5 and float(mb) < 300, done.stdout


def test_mutated_files_give_rows_with_reasons_and_raise_nothing(head, tmp_path):
    rng, path = np.random.default_rng(3), tmp_path/"a.nii"
    good = volume("RAS", head, path=path).read_bytes()
    slowest, reasons = 0, set()
    for k in range(often(3000, 2)):
        data = bytearray(good if k % 3 else gzip.compress(good, 1))
        for at in rng.integers(0, 352 if k % 3 else min(len(data), 4000), rng.integers(1, 6)): data[at] = rng.integers(256)
        if k % 10 == 0: data = data[:rng.integers(len(data))]
        path.write_bytes(data)
        start = time.process_time()
        rows = read_nifti(path)
        for row in rows[:2]:
            assert row["used"] or row["reason"] in REASONS
            if row["used"]: assert load_nifti_image(path, row["frame"]).min() >= -1024
        slowest, reasons = max(slowest, time.process_time() - start), reasons | {rows[0]["reason"]}
    assert slowest < 5 and {None, "unreadable", "missing_header", "not_axial"} <= reasons


def test_a_packed_series_is_unpacked_once_and_again_when_it_changes(head, tmp_path):
    path = volume("RAS", head, path=tmp_path/"a.nii.gz")
    _unpacked.cache_clear()
    for k in range(5): load_nifti_image(path, k)
    assert _unpacked.cache_info().misses == 1
    volume("RAS", head + 1, path=path)
    assert np.array_equal(load_nifti_image(path, 0), head[0] + 1) and _unpacked.cache_info().misses == 2


def test_the_digest_tells_files_and_images_apart(head, tmp_path):
    one = [r["digest"] for r in read_nifti(volume("RAS", head, path=tmp_path/"a.nii"))]
    changed = head.copy(); changed[2, 2, 2] += 1
    two = [r["digest"] for r in read_nifti(volume("RAS", changed, path=tmp_path/"b.nii"))]
    assert len({*one, *two}) == 10


# ---- masks

def patients(): return [(n, Scanner(matrix=m, pixel_mm=(p, p + .2), gap_mm=g, tilted=t)) for n, m, p, g, t in
                        ((2, 128, 1.8, 8., 1.), (4, 192, 1.2, 5., 0.), (7, 128, 1.8, 3., 1.))]


def build(number, scanner, folder):
    patient = make_patient(5, number, scanner)
    labels, _ = write_patient(patient, folder)
    images = scan_folder(folder/"dicom", progress=False).merge(labels.drop(columns=["mask_file", "mask_index", *ML]), left_on="sop_uid", right_on="image")
    images = images.sort_values("position_mm", ignore_index=True)
    images[list(LABELS)] = images[list(LABELS)].astype("boolean")
    own = with_masks(images, folder/"masks"/f"{patient.name}.nii.gz", "fractions")
    hu = np.stack([pydicom.dcmread(f).pixel_array for f in images.file]).astype(np.int16)
    return {"images": images, "own": own, "fraction": load_masks(own)[0], "affine": mask_affine(patient.geometry), "exact": image_ml(patient).sum(0),
            "hu": volume("RPS", hu - 1024, mask_affine(patient.geometry), folder/"hu.nii.gz"), "folder": folder}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory): return build(*patients()[0], tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module", params=patients(), ids=lambda p: f"patient {p[0]}")
def each(request, tmp_path_factory): return build(*request.param, tmp_path_factory.mktemp("each"))


def label_values(full): return (full*np.arange(1, 6)).max(-1)


def save_seg(path, values, images, names, kind="BINARY", **options):
    parts = [highdicom.seg.SegmentDescription(
        segment_number=k + 1, segment_label=name, segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Hemorrhage, algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL) for k, name in enumerate(names)]
    seg = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(f) if not isinstance(f, pydicom.Dataset) else f for f in images], pixel_array=values, segmentation_type=kind,
        segment_descriptions=parts, series_instance_uid=highdicom.UID(), series_number=9, sop_instance_uid=highdicom.UID(), instance_number=1,
        manufacturer="SYNTHETIC", manufacturer_model_name="phantom", software_versions="1", device_serial_number="0", **options)
    seg.save_as(path)
    return path


def test_fractions_give_the_exact_volumes(each):
    got = each["own"][list(SUBTYPE_ML)].sum()
    assert np.allclose(got, each["exact"], rtol=.02, atol=.05), (got, each["exact"])


def test_every_form_of_a_mask_gives_the_same_millilitres(each):
    images, folder, full = each["images"], each["folder"], each["fraction"] >= .5
    area = full.sum((1, 2))*(images.row_mm*images.col_mm/1000).to_numpy()[:, None]
    gap = float(np.diff(images.position_mm).mean())
    wanted, total = area*gap, full.any(-1).sum((1, 2))*(images.row_mm*images.col_mm/1000)*gap
    nifti = lambda name, values, order: volume(order, np.asarray(values, np.uint8), each["affine"], folder/name)
    forms = [(nifti("bhsd.nii.gz", label_values(full), "RAS"), "bhsd"), (nifti("any.nii", full.any(-1)*255, "SPL"), "any"),
             (nifti("one.nii.gz", full.any(-1), "PIR"), "instance"), (save_seg(folder/"seg.dcm", full.astype(np.uint8), images.file, SUBTYPES), "seg"),
             (save_seg(folder/"map.dcm", label_values(full).astype(np.uint8), images.file, SUBTYPES, "LABELMAP"), "seg")]
    for path, kind in forms:
        ml = with_masks(images, path, kind)
        assert np.allclose(ml.blood_ml, total, rtol=1e-3, atol=1e-3) and (ml.volume_source == "mask").all(), (path.name, kind)
        told = ml[list(SUBTYPE_ML)]
        assert told.notna().all(axis=None) or kind in ("any", "instance")
        one = (full.any((1, 2)).sum(1) <= 1)[:, None] & told.notna()
        assert np.allclose(told.fillna(0)*one, wanted*one, rtol=1e-3, atol=1e-3), (path.name, kind)
    exact = each["exact"].sum()
    assert abs(total.sum() - exact) < max(.15*exact, .3)  # a thin crescent fills few coarse voxels by half


def test_a_mask_that_tells_two_subtypes_gives_a_total_only_where_labels_exclude_the_others(phantom, tmp_path):
    full, images = phantom["fraction"] >= .5, phantom["images"]
    path = volume("RAS", np.uint8(full[..., 1] + 2*(full[..., 2] & ~full[..., 1])), phantom["affine"], tmp_path/"a.nii.gz")
    blind = with_masks(images.assign(**dict.fromkeys(LABELS, pd.NA)), path, "hemseg")
    assert blind[["blood_ml", "epidural_ml", "subarachnoid_ml", "subdural_ml"]].isna().all(axis=None) and blind.intraparenchymal_ml.notna().all()
    told = with_masks(images, path, "hemseg")
    assert told[ML].notna().all(axis=None) and np.isclose(told.blood_ml.sum(), phantom["exact"].sum(), rtol=.05)
    unsure = with_masks(images.assign(subdural=pd.array([pd.NA]*len(images), "boolean")), path, "hemseg")
    assert unsure.blood_ml.isna().all() and (unsure.epidural_ml == 0).all()


def test_blood_where_labels_see_none_keeps_its_total_and_loses_its_subtypes(phantom, tmp_path):
    full, images = phantom["fraction"] >= .5, phantom["images"]
    path = volume("RAS", np.uint8(full.any(-1)), phantom["affine"], tmp_path/"a.nii")
    out = with_masks(images.assign(**dict.fromkeys(LABELS, False)), path, "any")
    bloody = full.any((1, 2, 3))
    assert out[list(SUBTYPE_ML)][bloody].isna().all(axis=None) and (out.blood_ml[bloody] > 0).all() and (out[ML][~bloody] == 0).all(axis=None)


def test_without_spacing_there_are_masks_and_no_volumes(phantom, tmp_path):
    full, images = phantom["fraction"] >= .5, phantom["images"]
    nowhere = images.assign(position_mm=np.nan, row_mm=np.nan, col_mm=np.nan)
    path = tmp_path/"a.nii"
    nibabel.save(nibabel.Nifti1Image(np.uint8(full.any(-1)).transpose(2, 1, 0)[:, ::-1], np.eye(4)), path)
    out = with_masks(nowhere, path, "any")
    assert out.mask_file.notna().all() and out[ML].isna().all(axis=None) and (out.volume_source == "none").all()
    assert np.array_equal(load_masks(out)[0][..., 0], full.any(-1))


def test_seg_without_its_empty_frames_is_laid_on_by_uid_and_by_position(phantom, tmp_path):
    full, images = phantom["fraction"] >= .5, phantom["images"]
    path = save_seg(tmp_path/"a.dcm", full[..., 1:3].astype(np.uint8), images.file, ["IPH", "IVH"])
    assert pydicom.dcmread(path).NumberOfFrames < len(images)
    for given in (images, images.drop(columns="sop_uid"), images.assign(sop_uid="of an anonymised copy"), images.sample(frac=1, random_state=1)):
        planes, names = load_masks(with_masks(given, path, "seg").loc[images.index])
        assert names == ("intraparenchymal", "intraventricular") and np.array_equal(planes, full[..., 1:3])


def test_seg_of_a_series_stored_upside_down_comes_back_upright(phantom, tmp_path):
    full, images, sources = phantom["fraction"] >= .5, phantom["images"], []
    for f in images.file:
        ds = pydicom.dcmread(f)
        iop, last = np.array(ds.ImageOrientationPatient, float), np.array([ds.Columns - 1, ds.Rows - 1])*np.array(ds.PixelSpacing, float)[::-1]
        ds.ImagePositionPatient = [round(v, 6) for v in np.array(ds.ImagePositionPatient, float) + iop[:3]*last[0] + iop[3:]*last[1]]
        ds.ImageOrientationPatient = [round(-v, 6) for v in iop]
        sources.append(ds)
    path = save_seg(tmp_path/"a.dcm", np.ascontiguousarray(full[:, ::-1, ::-1, 1:2]).astype(np.uint8), sources, ["IPH"])
    assert np.array_equal(load_masks(with_masks(images.drop(columns="sop_uid"), path, "seg"))[0], full[..., 1:2])


def test_seg_of_every_second_image_leaves_the_others_unknown(phantom, tmp_path):
    full, images = phantom["fraction"] >= .5, phantom["images"]
    path = save_seg(tmp_path/"a.dcm", full[::2, ..., 1:2].astype(np.uint8), images.file[::2], ["IPH"])
    for given in (images, images.drop(columns="sop_uid")):
        out = with_masks(given, path, "seg")
        assert out.mask_index[1::2].isna().all() and out[ML][1::2].isna().all(axis=None) and out.mask_index[::2].notna().sum() >= 2


def test_damaged_segs_raise_study_errors_alone(phantom, tmp_path):
    full, images, rng = phantom["fraction"] >= .5, phantom["images"], np.random.default_rng(4)
    good = save_seg(tmp_path/"a.dcm", full[..., 1:2].astype(np.uint8), images.file, ["IPH"]).read_bytes()
    refused = 0
    for k in range(120):
        data = bytearray(good)
        for at in rng.integers(132, len(data) if k % 2 else 6000, rng.integers(1, 8)): data[at] = rng.integers(256)
        if k % 4 == 0: data = data[:rng.integers(len(data))]
        (tmp_path/"b.dcm").write_bytes(data)
        try:
            out = with_masks(images, tmp_path/"b.dcm", "seg")
            assert len(out) == len(images)
        except StudyError as e: refused += 1; assert "\n" not in str(e)
    assert 30 <= refused < 120


FAULTS = {
    "another series": (lambda p, m: match_mask(m, "any", p["images"].assign(position_mm=p["images"].position_mm + 3.7)), "none meet"),
    "another matrix": (lambda p, m: match_mask(m, "any", p["images"].assign(rows=256)), "has 128 rows, the images 256"),
    "another pixel size": (lambda p, m: match_mask(m, "any", p["images"].assign(row_mm=.4)), "mm between rows"),
    "oedema": (lambda p, m: with_masks(p["images"], m, "oedema"), "are not blood"),
    "unknown kind": (lambda p, m: with_masks(p["images"], m, "blood"), "there are fractions, any"),
    "other values": (lambda p, m: with_masks(p["images"], m, "hemseg"), r"holds the values \[255\]"),
    "no channels": (lambda p, m: with_masks(p["images"], m, "fractions"), "has 5 channels"),
    "no such file": (lambda p, m: with_masks(p["images"], m.with_name("gone.nii"), "any"), "cannot be read"),
    "no such place": (lambda p, m: read_mask(m, [0, 999], "any", 128, 128), "none at place 999"),
    "an image as mask": (lambda p, m: with_masks(p["images"], p["images"].file[0], "any"), "is DICOM"),
    "no seg": (lambda p, m: with_masks(p["images"], p["images"].file[0], "seg"), "no segmentation"),
    "no images": (lambda p, m: with_masks(p["images"][:0], m, "any"), "no images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mask_that_does_not_fit_is_refused_in_one_line_that_says_why(phantom, fault, tmp_path):
    path = volume("RAS", np.uint8(255*(phantom["fraction"] >= .5).any(-1)), phantom["affine"], tmp_path/"a.nii")
    call, words = FAULTS[fault]
    with pytest.raises(StudyError, match=words) as e: call(phantom, path)
    assert "\n" not in str(e.value)


def test_a_mask_without_a_place_is_laid_on_by_order_only_if_the_counts_agree(phantom, tmp_path):
    images, full = phantom["images"], (phantom["fraction"] >= .5).any(-1)
    nibabel.save(nibabel.Nifti1Image(np.uint8(full).transpose(2, 1, 0)[:, ::-1], np.eye(4)), path := tmp_path/"a.nii")
    mixed = images.sample(frac=1, random_state=2)
    assert match_mask(path, "any", mixed)[images.index].tolist() == list(range(len(images)))
    assert np.isclose(mask_ml(path, match_mask(path, "any", mixed), "any", mixed).blood_ml.sum(), phantom["exact"].sum(), rtol=.05)
    with pytest.raises(StudyError, match=f"has {len(images)} planes and does not say where they are; wanted {len(images) - 1}"): match_mask(path, "any", images[1:])


def test_a_mask_saved_without_its_affine_shares_the_axes_of_its_nifti_images(phantom, tmp_path):
    full, images = phantom["fraction"] >= .5, phantom["images"]
    hu = pd.DataFrame(read_nifti(phantom["hu"])).assign(**dict.fromkeys(LABELS, pd.NA))  # stored from the left to the right
    stored = np.uint8(full.any(-1)).transpose(2, 1, 0)[::-1]
    nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), tmp_path/"a.nii")
    out = with_masks(hu, tmp_path/"a.nii", "any")
    assert np.array_equal(load_masks(out)[0][..., 0], full.any(-1)) and np.isclose(out.blood_ml.sum(), phantom["exact"].sum(), rtol=.05)


# ---- CT-ICH

HEADER = "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,No_Hemorrhage,Fracture_Yes_No\n"


def diagnosis(number, images):
    order = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")
    return "".join(f"{number},{k + 1},{','.join(str(int(r[s])) for s in order)},{int(not r['any'])},0\n" for k, (_, r) in enumerate(images.iterrows()))


@pytest.mark.parametrize("mask_affine", ["alike", "none", "turned"])
def test_ct_ich_1_3_1_gives_the_volumes_of_its_masks(phantom, tmp_path, mask_affine):
    full, images = phantom["fraction"] >= .5, phantom["images"]
    for part in ("ct_scans", "masks"): (tmp_path/part).mkdir()
    ct = nibabel.load(phantom["hu"]).as_reoriented(ornt_transform(axcodes2ornt("RPS"), axcodes2ornt("LAS")))
    nibabel.save(ct, tmp_path/"ct_scans"/"049.nii")
    stored = np.uint8(255*full.any(-1)).transpose(2, 1, 0)[:, ::-1]
    nibabel.save(nibabel.Nifti1Image(stored, {"alike": ct.affine, "none": np.eye(4), "turned": np.diag([1., 1, 5, 1])}[mask_affine]), tmp_path/"masks"/"049.nii")
    (tmp_path/"hemorrhage_diagnosis_raw_ct.csv").write_text(HEADER + diagnosis(49, images) + "60,1,0,0,0,0,0,1,0\n", encoding="utf-8-sig")
    (tmp_path/"Patient_demographics.csv").write_text('"Patient Number","Age\n(years)","Gender"\n49,0.5,Female\n')
    index, series = index_ct_ich(tmp_path, progress=False, screen=False)
    assert index.used.sum() == len(images) and index.reason.dropna().tolist() == ["no_file"] and series.age.tolist() == [.5]
    assert np.isclose(series.blood_ml[0], with_masks(images, volume("RAS", np.uint8(full.any(-1)), phantom["affine"], tmp_path/"m.nii"), "any").blood_ml.sum(), rtol=1e-3)
    assert np.allclose(index.position_mm[:len(images)], images.position_mm, atol=1e-3) and "tilted" in series["flags"][0]
    used = index[index.used]
    assert np.array_equal(load_masks(used)[0][..., 0], full.any(-1))
    one = (images[list(SUBTYPES)].sum(axis=1) == 1).to_numpy()
    assert used[list(SUBTYPE_ML)][one].notna().all(axis=None) and one.any()


def test_ct_ich_patients_whose_file_is_bad_or_whose_labels_are_lost_are_rows(tmp_path):
    (tmp_path/"ct_scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 3), np.int16), np.diag([-.5, -.5, 5, 1])), tmp_path/"ct_scans"/"049.nii")
    (tmp_path/"ct_scans"/"050.nii").write_bytes(b"torn"); (tmp_path/"ct_scans"/"051.nii").write_bytes(b"")
    (tmp_path/"hemorrhage_diagnosis_raw_ct.csv").write_text(HEADER + "49,1,0,0,0,0,0,1,0\n49,2,0,0,0,0,0,1,0\n50,1,0,0,0,0,0,1,0\n50,2,0,0,0,0,0,1,0\n")
    index, _ = index_ct_ich(tmp_path, progress=False, screen=False)
    assert index.groupby(index.file.map(lambda f: Path(f).name)).reason.apply(lambda r: r.fillna("").tolist()).to_dict() == {
        "049.nii": ["", "", "no_label"], "050.nii": ["unreadable"]*2, "051.nii": ["empty"]}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real pictures are not here")
def test_real_ct_ich_has_the_counts_of_its_labels_and_says_what_is_missing():
    index, series = index_ct_ich(REAL, progress=False, screen=False)
    assert len(index) == 2501 and index.used.sum() == 2471 and index.reason.value_counts().to_dict() == {"no_file": 30}
    assert index[~index.used]["any"].sum() == 15 and len(series) == 82
    assert {s: (int(index[s].sum()), index[index[s]].patient.nunique()) for s in LABELS} == {
        "any": (318, 36), "epidural": (173, 21), "intraparenchymal": (73, 16), "intraventricular": (24, 5), "subarachnoid": (18, 7), "subdural": (56, 4)}
    assert (~index["any"]).sum() == 2183 and (index[list(SUBTYPES)].sum(axis=1) >= 2).sum() == 25
    assert index[ML].isna().all(axis=None) and series["flags"].str.contains("no_spacing").all() and index.mask_file.isna().all()
    assert (index[["rows", "columns"]].dropna() == 650).all(axis=None) and series.age.notna().all() and series.sex.value_counts().to_dict() == {"M": 46, "F": 36}
