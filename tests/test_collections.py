"""Labels, votes of readers, and two published collections: RSNA 2019 and CQ500, written here in their form."""
import re
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from ich_study.pixels import load_pixels
from ich_study.cq500 import (RULES, choose_cq500, cq500_batches, cq500_name, hash_cq500_reads, index_cq500, load_cq500_reads,
                             rank_cq500)
from ich_study.labels import load_labels, majority, reader_agreement, reader_disagreement, verify_labels
from ich_study.rsna import index_rsna, load_rsna_labels
from ich_study.schema import LABELS, REASONS, SUBTYPES, StudyError, check_table

ROOT = Path(__file__).resolve().parent.parent
READS = ROOT.parent/"shared"/"data"/"cq500"/"reads.csv"
PUBLISHED = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")  # order of RSNA's rows


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def image(hu, **header):
    """One CT image; the pixels and the header are all that is in it."""
    with pydicom.config.disable_value_validation(): return _image(hu, header)


def _image(hu, header):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Modality, ds.SamplesPerPixel, ds.PhotometricInterpretation = "CT", 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape
    ds.ImageOrientationPatient, ds.PixelSpacing, ds.BitsAllocated = [1, 0, 0, 0, 1, 0], [.5, .5], 16
    for name, value in ({"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 1, "RescaleIntercept": 0} | header).items():
        setattr(ds, name, value)
    stored = np.round(hu - float(ds.RescaleIntercept)).astype(int)
    ds.PixelData = (stored & (2**ds.BitsStored - 1) if ds.PixelRepresentation == 0 else stored).astype("<i2").tobytes()
    return ds


def save(ds, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pydicom.config.disable_value_validation(): ds.save_as(path, enforce_file_format=True)


def head(shift=0, shape=(64, 64)):
    hu = np.full(shape, -1000)
    hu[16:48, 16:48] = 40 + shift
    return hu


# Labels of any collection

def test_a_contradiction_costs_one_image_its_labels(tmp_path):
    rows = "".join(f"s{k},{k % 2},{k % 2}\n" for k in range(1000))
    labels = load_labels(write(tmp_path/"l.csv", "image,any,SDH\nbad,0,1\n" + rows))
    assert labels.table.reason.dropna().to_dict() == {"bad": "label_conflict"} and labels.table.loc["bad", list(LABELS)].isna().all()
    assert "label_conflict" in REASONS and labels.table["any"].sum() == 500 and labels.findings.images[0] == 1


def test_any_without_a_subtype_is_told_only_when_all_five_are_known(tmp_path):
    text = "image,any,EDH,IPH,IVH,SAH,SDH\nfull,1,0,0,0,0,0\nopen,1,0,0,0,0,\nfree,0,0,0,0,0,0\n"
    labels = load_labels(write(tmp_path/"l.csv", text))
    assert labels.table.reason.tolist() == ["label_conflict", None, None] and labels.table["any"].tolist() == [pd.NA, True, False]


def test_rows_of_one_image_that_disagree_are_a_conflict_and_alike_ones_are_one(tmp_path):
    labels = load_labels(write(tmp_path/"l.csv", "image,any,SDH\na,1,1\nb,1,1\na,1,1\nb,0,0\nc,1,\nc,,0\n"))
    found = labels.findings.set_index("finding")
    assert labels.table.index.tolist() == ["a", "b", "c"] and labels.table.reason.tolist() == [None, "label_conflict", None]
    assert found.images["labelled twice alike"] == 2 and found["first"]["rows disagree"] == "b"
    assert labels.table.loc["c", ["any", "subdural"]].tolist() == [True, False]


def test_two_rows_that_are_right_alone_and_wrong_together_are_a_conflict(tmp_path):
    labels = load_labels(write(tmp_path/"l.csv", "image,any,SDH\na,0,\na,,1\n"))
    assert labels.table.reason.tolist() == ["label_conflict"]


def test_disputed_volumes_are_missing(tmp_path):
    labels = load_labels(write(tmp_path/"l.csv", "series,any,blood_ml\na,1,3\na,1,4\nb,1,5\n"))
    assert labels.table.blood_ml.isna().tolist() == [True, False] and labels.table.reason.tolist() == ["label_conflict", None]


def test_unknown_labels_are_counted_and_stay_missing(tmp_path):
    labels = load_labels(write(tmp_path/"l.csv", "image,EDH,IPH,IVH,SAH,SDH\na,,,,,\nb,0,,0,0,0\nc,1,,,,\nd,0,0,0,0,0\n"))
    assert labels.table["any"].tolist() == [pd.NA, pd.NA, True, False] and labels.findings.images.tolist() == [0, 0, 0, 0, 2, 1]


@pytest.mark.parametrize("seed", range(8))
def test_random_tables_settle_as_rows_read_one_by_one_would(tmp_path, seed):
    rng = np.random.default_rng(seed)
    cells = np.where(rng.random((200, 5)) < .15, "", (rng.random((200, 5)) < .2).astype(int).astype(str))
    said = [("1" if "1" in row else "0") if rng.random() < .7 else rng.choice(["", "1", "0"]) for row in cells]
    names = [f"n{k}" for k in rng.integers(0, 120, 200)]
    text = "".join(f"{n},{a},{','.join(c)}\n" for n, a, c in zip(names, said, cells))
    labels = load_labels(write(tmp_path/"l.csv", f"image,any,{','.join(SUBTYPES)}\n{text}"))
    for name in set(names):
        rows = [[a, *c] for n, a, c in zip(names, said, cells) if n == name]
        known = [{row[k] for row in rows} - {""} for k in range(6)]
        one = [min(k) if k else "" for k in known]
        positive, closed = "1" in one[1:], "" not in one[1:]
        conflict = any(len(k) > 1 for k in known) or (positive and one[0] == "0") or (closed and not positive and one[0] == "1")
        one[0] = one[0] or ("1" if positive else "0" if closed else "")
        got = ["" if v is pd.NA else str(int(v)) for v in labels.table.loc[name, list(LABELS)]]
        assert (labels.table.reason[name] == "label_conflict") == conflict and got == ([""]*6 if conflict else one), name


@pytest.mark.parametrize("text, says", [
    ("image,any\na,1\nb,maybe\n", "row 3"), ("image,any\na,1\nb,2\n", "row 3"), ("image,any\n,1\n", "row 2"), ("colour,any\na,1\n", "needs one of"),
    ("image,ICH,SDH\na,1,0\n", "ICH"), ("image,ICH,any\na,1,1\n", "ICH"), ("id, hemorrhage\n0, 1\n", "'id'"),
    ("image,SDH,subdural\na,1,1\n", "two columns")])
def test_what_cannot_be_understood_is_refused_with_its_place(tmp_path, text, says):
    with pytest.raises(StudyError, match=says): load_labels(write(tmp_path/"l.csv", text))


@pytest.mark.parametrize("text, means, label", [
    ("image,ICH,IPH\na,1,0\n", None, "any"), ("image,ICH\na,1\n", {"ICH": "any"}, "any"),
    ("image,ich\na,1\n", {"ICH": "intraparenchymal"}, "intraparenchymal"),
    ("id, hemorrhage\na, 1\n", {"id": "image"}, "any"), (" Image , SDH \na, 1\n", None, "subdural"), ("PatientID,Haemorrhage\na,True\n", None, "any")])
def test_headers_are_known_or_answered(tmp_path, text, means, label):
    for encoding in ("utf-8", "utf-8-sig"):
        labels = load_labels(write(tmp_path/"l.csv", text, encoding), means=means)
        assert labels.table.index.tolist() == ["a"] and labels.table[label].tolist() == [True]


def test_an_image_may_be_named_with_and_without_its_extension(tmp_path):
    labels = load_labels(write(tmp_path/"l.csv", "image,any,SDH\nx.dcm,1,\nx,,1\ny.jpg,1,1\ny.png,0,0\ny,,0\n"))
    assert labels.table.index.tolist() == ["x.dcm", "y.jpg", "y.png", "y"] and labels.table.subdural["x.dcm"]


# Readers

def random_reads(seed, series=60, readers=3, unknown=.1):
    rng = np.random.default_rng(seed)
    share = rng.random((series, 1, 6))
    cells = np.where(rng.random((series, readers, 6)) < unknown, None, rng.random((series, readers, 6)) < share)
    rows = [{"dataset": "d", "series": f"s{i}", "reader": f"R{k}"} | dict(zip(LABELS, cells[i, k])) for i in range(series) for k in range(readers)]
    return check_table(pd.DataFrame(rows), "reads"), cells


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
def test_the_vote_is_what_counting_by_hand_gives(readers):
    reads, cells = random_reads(readers, readers=readers, unknown=.3)
    votes, apart = majority(reads), reader_disagreement(reads)
    for i in range(60):
        for k, label in enumerate(LABELS):
            said = [c for c in cells[i, :, k] if c is not None]
            yes, no = said.count(True), said.count(False)
            assert votes[label][i] is pd.NA if yes == no else votes[label][i] == (yes > no)
            assert apart[label][i] is pd.NA if len(said) < 2 else apart[label][i] == (yes > 0 and no > 0)


def test_kappa_is_that_of_statsmodels_over_series_that_everybody_read():
    reads, cells = random_reads(7)
    table = reader_agreement(reads).set_index("label")
    for k, label in enumerate(LABELS):
        full = [row for row in cells[:, :, k] if None not in row]
        assert table.series[label] == len(full)
        np.testing.assert_allclose(table.kappa[label], fleiss_kappa(aggregate_raters(np.array(full, int))[0]))


def test_the_order_of_reads_does_not_matter():
    reads, _ = random_reads(9)
    pd.testing.assert_frame_equal(reader_agreement(reads), reader_agreement(reads.sample(frac=1, random_state=1)))


def test_kappa_is_missing_where_it_is_not_defined():
    reads, _ = random_reads(1, unknown=0)
    assert reader_agreement(reads[reads.reader == "R1"]).kappa.isna().all()
    flat = reader_agreement(reads.assign(epidural=False)).set_index("label")
    assert np.isnan(flat.kappa["epidural"]) and flat.reason["epidural"] == "all readers gave one answer" and flat.kappa.notna().sum() == 5


@pytest.fixture(scope="module")
def real():
    if not READS.is_file(): pytest.skip("the reads of CQ500 are not here")
    return load_cq500_reads(READS)


def test_real_reads_have_labels_by_majority(real):
    votes = majority(real)
    assert len(votes) == 491 and votes[list(LABELS)].notna().all(axis=None)
    assert votes[list(LABELS)].sum().to_dict() == {"any": 205, "intraparenchymal": 134, "subarachnoid": 60, "subdural": 53,
                                                    "intraventricular": 28, "epidural": 13}


def test_real_kappas_are_those_published(real):
    kappa = reader_agreement(real).set_index("label").kappa
    counted = {"any": .7827, "intraparenchymal": .7746, "intraventricular": .6962, "subarachnoid": .6382, "epidural": .6145, "subdural": .5418}
    assert kappa.round(4).to_dict() == counted
    published = {"any": .78, "intraparenchymal": .78, "subdural": .54}  # Chilamkurthy et al. 2018
    assert all(abs(kappa[label] - value) <= .0055 for label, value in published.items())


def test_real_votes_contradict_themselves_in_one_direction_only(real):
    found = verify_labels(majority(real).rename(columns={"series": "name"}), voted=True).set_index("finding").images
    assert found["subtype without any"] == 0 and found["any without a subtype"] == 6
    readers = verify_labels(real.assign(name=real.series + real.reader)).set_index("finding")
    assert readers.images["subtype without any"] == 2 and "R1" in readers["first"]["subtype without any"]


def test_real_batches_and_index_without_images(real, tmp_path):
    assert cq500_batches(READS).value_counts().to_dict() == {"B2": 277, "B1": 214}
    (tmp_path/"reads.csv").symlink_to(READS)
    index, series = index_cq500(tmp_path, progress=False, screen=False)
    assert len(index) == 491 and set(index.reason) == {"no_file"} and not index.used.any()
    assert len(series) == 491 and (series.images == 0).all() and series["any"].sum() == 205 and series.blood_ml.isna().all()
    assert set(hash_cq500_reads(real, index).series) == set(series.series)


# RSNA 2019

def long_rows(name, cells): # "000001" in the published order; "." leaves a row out
    return "".join(f"ID_{name}_{label},{c}\n" for label, c in zip(PUBLISHED, cells) if c != ".")


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    """Folder, index by image, series, warnings."""
    folder = tmp_path_factory.mktemp("rsna")
    wrap = dict(BitsStored=12, HighBit=11, PixelRepresentation=0)
    plain = wrap | dict(RescaleIntercept=-1024)
    images = {  # name: patient, study, series, position (mm), pixels, header
        "m1": ("p1", "t1", "r1", 12.5, head(3), plain), "c2": ("p1", "t1", "r1", 0., head(1), plain), "k3": ("p1", "t1", "r1", 5., head(2), wrap),
        "twin": ("p1", "t1", "r1", 17.5, head(4), plain), "clash": ("p1", "t1", "r1", 22.5, head(5), plain),
        "gone": ("p1", "t1", "r1", 27.5, head(6), plain),
        "a4": ("p1", "t2", "r2", 0., head(7), plain), "b5": ("p1", "t2", "r2", 4., head(8), plain),
        "odd": ("p1", "t2", "r2", 8., head(9, (80, 64)), plain), "pad": ("p1", "t2", "r2", 12., np.where(head() < 0, -2000, 40), {}),
        "mix": ("p1", "t2", "r9", 0., head(10), plain), "new": ("p2", "t3", "r3", 0., head(11), plain),
        "half": ("p3", "t4", "r4", 0., head(12), plain),
        "far": ("p3", "t4", "r4", 5., np.where(head() < 0, -1000, 30549), {})}
    for name, (patient, study, series, z, hu, header) in images.items():
        ds = image(hu, SOPInstanceUID=f"ID_{name}", PatientID=f"ID_{patient}", StudyInstanceUID=f"ID_{study}",
                   SeriesInstanceUID=f"ID_{series}", StudyID="", ImagePositionPatient=[-125, -125, z], WindowCenter=[36, 600], WindowWidth=[80, 2800], **header)
        save(ds, folder/"stage_2_train"/f"ID_{name}.dcm")
    (folder/"stage_2_train"/"ID_half.dcm").write_bytes((folder/"stage_2_train"/"ID_half.dcm").read_bytes()[:-500])
    order = [n for n in images if n not in ("gone", "new")]
    text = "".join(long_rows(n, {"clash": "000010", "k3": "0100.1", "m1": "000101"}.get(n, "000000")) for n in order)
    text += long_rows("twin", "000000") + long_rows("a4", "000011") + long_rows("absent", "100001")
    write(folder/"stage_2_train.csv", "ID,Label\n" + text)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        index, series = index_rsna(folder, key=b"k", progress=False, screen=False)
    return folder, index.set_index(index.file.str.extract(r"ID_(\w+?)(?:\.dcm)?$")[0].to_numpy()), series, told


def test_rsna_series_are_rebuilt_from_headers_in_order_of_position(rsna):
    _, index, series, _ = rsna
    assert index[index.series == index.series["c2"]].index[:4].tolist() == ["c2", "k3", "m1", "twin"]
    assert index.gap_mm[["k3", "m1"]].tolist() == [6.25, 6.25] and series.thickness_mm.isna().all()


def test_rsna_patients_come_back(rsna):
    _, index, series, _ = rsna
    assert series.patient.nunique() == 2 and series.study.nunique() == 3 and len(series) == 4
    assert index.patient["c2"] == index.patient["b5"] and index.study["c2"] != index.study["b5"] and index.series["mix"] != index.series["a4"]


def test_rsna_rows_that_repeat_or_lack_a_label(rsna):
    _, index, _, _ = rsna
    assert index["any"]["twin"] == False and index.used["twin"]  # noqa: E712
    assert index.subdural.isna()["k3"] and index["any"]["k3"] and index.intraparenchymal["k3"]


def test_rsna_rows_that_disagree_take_the_labels_away(rsna):
    folder, index, _, _ = rsna
    labels = load_rsna_labels(folder/"stage_2_train.csv")
    assert labels.table.reason.dropna().to_dict() == {"ID_clash": "label_conflict", "ID_a4": "label_conflict"}
    assert index.loc[["clash", "a4"], list(LABELS)].isna().all(axis=None)
    assert labels.findings.images.tolist() == [1, 0, 1, 1, 1, 0]


def test_rsna_files_and_rows_without_each_other_have_reasons(rsna):
    _, index, _, _ = rsna
    assert index.reason[["gone", "new", "absent", "half", "odd"]].tolist() == ["no_label", "no_label", "no_file", "truncated", "odd_size"]
    assert not index.used[["gone", "new", "absent", "half", "odd"]].any() and index.reason[index.used].isna().all()


def test_rsna_pixels_are_hu_also_where_wrapped_padded_or_beyond_ct(rsna):
    _, index, _, _ = rsna
    for name, air, inside in (("c2", -1000, 41), ("k3", -1000, 42), ("pad", -1024, 40)):
        hu = load_pixels(index.loc[name])
        assert hu[0, 0] == air and hu[32, 32] == inside, name
    assert load_pixels(index.loc["far"]).min() >= -1024


def test_rsna_identifiers_that_are_no_uids_raise_no_warnings(rsna):
    assert not rsna[3]


def test_rsna_has_no_volumes(rsna):
    _, index, series, _ = rsna
    assert set(index.volume_source) == set(series.volume_source) == {"none"}
    assert index.blood_ml.isna().all() and series.blood_ml.isna().all() and index.mask_file.isna().all()


@pytest.mark.parametrize("row, says", [
    ("ID_b_any,0.5", "row 3: Label is '0.5'"), ("ID_b_fracture,1", "row 3: the ID 'ID_b_fracture'"), ("b_any,1", "row 3: the ID"), (",1", "row 3: the ID"), ("ID_b_any,yes", "row 3: Label"), ("ID_any,1", "row 3: the ID")])
def test_rsna_rows_that_cannot_be_understood_are_named(tmp_path, row, says):
    with pytest.raises(StudyError, match=says): load_rsna_labels(write(tmp_path/"s.csv", f"ID,Label\nID_a_any,1\n{row}\n"))


def test_rsna_folder_must_be_as_published(tmp_path):
    with pytest.raises(StudyError, match="stage_2_train.csv"): index_rsna(tmp_path, progress=False, screen=False)


def test_rsna_long_table_is_read_in_seconds(tmp_path):
    names, rng = [f"{k:09x}" for k in range(75_000)], np.random.default_rng(0)
    cells = rng.random((len(names), 5)) < .05
    rows = [f"ID_{n}_{label},{int(c)}\n" for n, five in zip(names, cells) for label, c in zip(PUBLISHED, [*five, five.any()])]
    path = write(tmp_path/"s.csv", "ID,Label\n" + "".join(rows + rows[:24]))
    start = time.process_time()
    labels = load_rsna_labels(path)
    assert time.process_time() - start < 10  # a tenth of the published table, on a busy machine
    assert len(labels.table) == 75_000 and (labels.table[list(SUBTYPES)].to_numpy(bool) == cells).all()
    assert labels.findings.images.tolist() == [0, 0, 0, 4, 0, 0]


# CQ500

HEADER = "name,Category," + ",".join(f"R{r}:{k}" for r in (1, 2, 3) for k in ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")) + "\n"


def reads_csv(path, text):
    return write(path, HEADER + "".join(f"{name},{batch},{','.join(''.join(reads))}\n" for name, batch, *reads in map(str.split, text.splitlines())))


def save_series(folder, study, number, place, kernel, mm, images, **header):
    """One reconstruction, 64 by 64, whose file order is not its image order."""
    for file, k in enumerate(np.random.default_rng(number).permutation(images)):
        ds = image(head(int(k)), SOPClassUID=CTImageStorage, SOPInstanceUID=f"1.2.{number}.{k + 1}", SeriesInstanceUID=f"1.2.{number}",
                   StudyInstanceUID=f"1.2.{number//10}", PatientID=f"CQ500-CT-{number//10}", SeriesDescription=place.removeprefix("CT "),
                   ConvolutionKernel=kernel, SliceThickness=mm, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
                   ImagePositionPatient=[0, 0, mm*int(k)], **header)
        save(ds, folder/study/"Unknown Study"/place/f"CT{file:06d}.dcm")


@pytest.fixture(scope="module")
def cq500(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cq500")
    reads_csv(folder/"reads.csv", "CQ500-CT-1 B1 110000 110000 100001\nCQ500-CT-2 B2 000000 000000 100100\n"
                                  "CQ500-CT-3 B2 100100 100001 000000\nCQ500-CT-44 B1 000000 000000 000000\n")
    for series in (("CQ500CT1 CQ500CT1", 10, "CT 5mm", "STANDARD", 5, 22), ("CQ500CT1 CQ500CT1", 11, "CT 2.5mm", "STANDARD", 2.5, 42),
                   ("CQ500CT1 CQ500CT1", 12, "CT BONE", "BONE", 5, 22), ("CQ500CT1 CQ500CT1", 13, "CT 5mm POST CONTRAST", "STANDARD", 5, 22),
                   ("CQ500-CT-2", 20, "CT Plain", "H31s", 4, 27), ("CQ500CT3", 30, "CT PRE CONTRAST THIN", "UB", 2.5, 42),
                   ("CQ500CT9 CQ500CT9", 90, "CT 5mm", "UB", 5, 22)): save_series(folder, *series)
    (folder/"CQ500CT3"/"Unknown Study"/"CT PRE CONTRAST THIN"/"CT000017.dcm").unlink()
    return folder, *index_cq500(folder, key=b"k", progress=False, screen=False)


def test_cq500_chooses_the_plain_soft_series_nearest_5_mm(cq500):
    folder, index, series = cq500
    used = index[index.used]
    places = {"/".join(Path(f).relative_to(folder).parts[:3:2]) for f in used.file}
    assert places == {"CQ500CT1 CQ500CT1/CT 5mm", "CQ500-CT-2/CT Plain", "CQ500CT3/CT PRE CONTRAST THIN"}
    assert index.reason.value_counts().to_dict() == {"other_series": 86, "no_label": 22, "no_file": 1, "not_dicom": 1}
    assert sorted(series.images) == [22, 27, 41]


def test_cq500_labels_are_the_vote_on_the_study_and_not_of_images(cq500):
    folder, index, series = cq500
    labels = series.set_index("images")
    assert labels["any"].to_dict() == {27: False, 22: True, 41: True} and labels.intraparenchymal[22] and not labels.loc[41, list(SUBTYPES)].any()
    assert index[list(LABELS)].isna().all(axis=None) and series.blood_ml.isna().all() and set(series.volume_source) == {"none"}


def test_cq500_image_order_is_that_of_positions(cq500):
    _, index, _ = cq500
    for _, rows in index[index.used].groupby("series"):
        assert rows.position_mm.is_monotonic_increasing and not rows.file.is_monotonic_increasing


def test_cq500_reads_find_their_series(cq500):
    folder, index, series = cq500
    reads = hash_cq500_reads(load_cq500_reads(folder/"reads.csv"), index)
    votes = majority(reads).set_index("series")
    assert set(series.series) <= set(votes.index) and (votes["any"][series.series].to_numpy() == series["any"].to_numpy()).all()


def test_cq500_without_reads_is_an_index_without_labels(cq500, tmp_path):
    (tmp_path/"CQ500CT1 CQ500CT1").symlink_to(cq500[0]/"CQ500CT1 CQ500CT1")
    save_series(tmp_path, "CQ500CT2 CQ500CT2", 20, "CT Plain", "H31s", 5, 22)
    index, series = index_cq500(tmp_path, progress=False, screen=False)
    assert len(series) == 1 and series["any"].isna().all() and index.used.sum() == 22


def test_cq500_names_have_one_spelling():
    for text in ("CQ500-CT-12", "CQ500CT12 CQ500CT12", "CQ500CT12", "cq500-ct-012", " CQ500_CT_12 ", "CQ500-CT-12 CQ500-CT-12"):
        assert cq500_name(text) == "CQ500-CT-12", text
    assert [cq500_name(t) for t in ("CQ500CT1 CQ500CT12", "CQ500", "CT-12", "", None)] == [None]*5


def scan(*rows, study="CQ500CT9 CQ500CT9"): # rows: folder, kernel, thickness, gap, images
    files = [dict(file=f"data/{study}/Unknown Study/{place}/CT{k:06d}.dcm", study_uid="1.9", series_uid=f"1.9.{n}",
                  position_mm=k*gap, thickness_mm=mm, kernel=kernel, used=True, reason=None)
             for n, (place, kernel, mm, gap, images) in enumerate(rows) for k in range(images)]
    return pd.DataFrame(files).astype({"thickness_mm": float})


def chosen(table, **more):
    ranking = rank_cq500(table, **more)
    return ranking.folder[ranking.chosen].tolist()


@pytest.mark.parametrize("rival, why", [
    ("CT POST CONTRAST, H31s, 5, 28", "contrast medium"), ("CT 4cc sec 150cc D3D on, H31s, 5, 28", "contrast medium"), ("CT C, H31s, 5, 28", "contrast medium"),
    ("CT Plain-2, H60s, 5, 28", "made for bone"), ("CT BONE, , 5, 28", "made for bone"), ("CT Plain, BONEPLUS, 5, 28", "made for bone"),
    ("CT Plain MPR, H31s, 5, 28", "a reformat"), ("CT CORONAL, H31s, 5, 28", "a reformat"), ("CT Plain-3, H31s, 5, 6", "too short for a head"),
    ("CT Plain THIN, H31s, .625, 240", "others fit better"), ("CT 5mm, H31s, 5, 28", "others fit better"), ("CT Plain-2, odd, 5, 28", "others fit better")])
def test_cq500_leaves_a_series_for_a_named_reason(rival, why):
    place, kernel, mm, images = rival.split(", ")
    rival = (place, kernel or None, float(mm), float(mm), int(images))
    ranking = rank_cq500(scan(rival, ("CT PLAIN", "H31s", 4.5, 4.5, 30)))
    assert ranking.folder[ranking.chosen].tolist() == ["CT PLAIN"] and ranking.why[ranking.folder == rival[0]].tolist() == [why]


def test_cq500_contrast_agent_of_the_header_counts_and_none_is_none():
    table = scan(("CT 5mm", "STANDARD", 5, 5, 28), ("CT 2.5mm", "STANDARD", 2.5, 2.5, 60))
    assert chosen(table.assign(contrast=table.thickness_mm.map({5.: "OMNIPAQUE 350", 2.5: None}))) == ["CT 2.5mm"]
    assert chosen(table.assign(contrast="NONE")) == ["CT 5mm"] and chosen(table.assign(contrast="Iohexol")) == []
    assert chosen(table.assign(description=table.thickness_mm.map({5.: "HEAD POST CONTRAST", 2.5: "HEAD"}))) == ["CT 2.5mm"]


def test_cq500_thickness_comes_from_positions_or_words_where_the_header_has_none():
    assert chosen(scan(("CT 1", None, None, 1, 120), ("CT 2", None, None, 4, 30))) == ["CT 2"]


def test_cq500_does_not_choose_a_series_of_unknown_length():
    table = scan(("CT 5mm", "STANDARD", 5, 5, 28))
    assert rank_cq500(table.assign(position_mm=np.nan)).why.tolist() == ["positions unknown"]


def test_cq500_doubt_is_an_error_or_rows_but_no_guess():
    table = scan(("CT 5mm", "STANDARD", 5, 5, 28), ("CT 5mm-2", "STANDARD", 5.1, 5, 31))
    with pytest.raises(StudyError, match="CQ500-CT-9.*CT 5mm-2"): choose_cq500(table)
    assert set(choose_cq500(table, leave_out=True).reason) == {"other_series"}
    kept = choose_cq500(table, {"CQ500CT9": "CT 5mm-2"})
    assert kept.used.sum() == 31 and kept.reason[~kept.used].eq("other_series").all()
    assert choose_cq500(table, {"CQ500-CT-9": "1.9.0"}).used.sum() == 28
    with pytest.raises(StudyError, match="names 'CT 6mm'"): choose_cq500(table, {"CQ500-CT-9": "CT 6mm"})


def test_cq500_override_may_choose_what_a_word_ruled_out():
    table = scan(("CT 5mm", "STANDARD", 5, 5, 28), ("CT BONE", "BONE", 5, 5, 27))
    assert choose_cq500(table, {"CQ500-CT-9": "CT BONE"}).used.sum() == 27


def test_cq500_choice_does_not_depend_on_the_order_of_files():
    table = scan(("CT Plain", "H31s", 5, 5, 28), ("CT PLAIN THIN", "H31s", .625, .625, 224), ("CT BONE", "H60s", 5, 5, 28))
    for seed in range(5): assert chosen(table.sample(frac=1, random_state=seed)) == ["CT Plain"]


def test_cq500_unused_files_keep_their_reasons():
    table = scan(("CT Plain", "H31s", 5, 5, 28), ("CT BONE", "H60s", 5, 5, 28))
    table.loc[[0, 30], ["used", "reason"]] = [False, "truncated"]
    out = choose_cq500(table)
    assert out.reason[[0, 30]].tolist() == ["truncated"]*2 and out.used.sum() == 27 and out.index.equals(table.index)


def test_cq500_rules_compile_and_say_where_they_come_from():
    kinds = {"plain", "contrast", "reformat", "bone", "soft", "thin", "thick"}
    assert all(re.compile(pattern) and means in kinds and source for _, pattern, means, source in RULES)


@pytest.mark.parametrize("text, says", [
    ("CQ500-CT-0 B1 000000 000000 00x000", "row 2"), ("CQ500-CT-0 B1 000000 000000 000000\nCQ500CT0 B1 000000 000000 000000", "row 3"),
    ("Head B1 000000 000000 000000", "row 2")])
def test_cq500_reads_that_cannot_be_understood_are_named(tmp_path, text, says):
    with pytest.raises(StudyError, match=says): load_cq500_reads(reads_csv(tmp_path/"reads.csv", text))


def test_cq500_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(StudyError, match="should hold reads.csv"): index_cq500(tmp_path, progress=False, screen=False)
    (tmp_path/"CQ500-CT-0.zip").write_bytes(b"")
    with pytest.raises(StudyError, match="unpack"): index_cq500(tmp_path, progress=False, screen=False)
    (tmp_path/"images").mkdir(); (tmp_path/"CQ500-CT-0.zip").unlink()
    with pytest.raises(StudyError, match="none of a study"): index_cq500(tmp_path, progress=False, screen=False)
