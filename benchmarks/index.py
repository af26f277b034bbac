#!/usr/bin/env python3
"""How fast and how large is the index of an archive? Writes synthetic files, measures, and plans RSNA 2019 on paper.

Reading: CPU milliseconds per file of pydicom alone, of `read_file` and of a whole `scan_folder`, taken in turn on one pinned core (medians of
rounds). Memory: growth of `scan_folder` at two sizes. Size: an index of a million rows made, opened, filtered and printed, and the whole of
`index_rsna` with labels but without files. Nothing is written outside a temporary folder.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from ich_study.dicom import COLUMNS, PLANE, TAGS, list_files, read_file
from ich_study.schema import LABELS, SUBTYPES

ARCHIVE = 752_803  # images of RSNA 2019
PER_SERIES = 32
CORES = (2, 16, 128)


# ---- files

def header(place, images=PER_SERIES):
    """A header like an archive's: about 90 elements, three sequences, two private blocks."""
    from ich_study.odd import image_dataset, put
    from pydicom import Dataset
    series, k = divmod(place, images)
    z = 5.*k - 40
    code = lambda value: [put(Dataset(), CodeValue=value, CodingSchemeDesignator="99LOCAL", CodeMeaning="HEAD WITHOUT CONTRAST")]
    image = put(Dataset(), ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID="1.2.840.99999.1.2.3.4.5")
    ds = image_dataset(z, hu=np.zeros((64, 64)), study=f"study{series:06d}", SOPInstanceUID=f"1.2.840.99999.4.{10**9 + place}", BitsStored=12,
        Rows=512, Columns=512, ImagePositionPatient=[-125, -125, z], PixelSpacing=[.488281, .488281], SliceThickness=5, InstanceNumber=k + 1,
        SeriesDate="20200101", AcquisitionDate="20200101", ContentDate="20200101", SeriesTime="120001", AcquisitionTime="120002.25",
        ContentTime="120003.5", InstitutionName="HOSPITAL", InstitutionAddress="STREET 1", StationName="CT01", StudyDescription="CT HEAD WO",
        SeriesDescription="HEAD 5.0 H30s", ManufacturerModelName="Model 64", DeviceSerialNumber="12345", SoftwareVersions="VA1.0", Manufacturer="SIEMENS",
        ProtocolName="HeadRoutine", BodyPartExamined="HEAD", ScanOptions="AXIAL", KVP=120, DataCollectionDiameter=500, ReconstructionDiameter=250,
        DistanceSourceToDetector=1040, DistanceSourceToPatient=570, GantryDetectorTilt=0, TableHeight=140, RotationDirection="CW", ExposureTime=1000,
        XRayTubeCurrent=300, Exposure=300, FilterType="0", GeneratorPower=40, FocalSpots=[1.2], SliceLocation=z, ImagesInAcquisition=images,
        PositionReferenceIndicator="OM", WindowCenter=[40, 500], WindowWidth=[80, 3000], WindowCenterWidthExplanation=["BRAIN", "BONE"],
        PatientWeight=70, AdditionalPatientHistory="", TemporalPositionIdentifier=1, SpecificCharacterSet="ISO_IR 100", InstanceCreationDate="20200101",
        InstanceCreationTime="120004", OperatorsName="", PerformingPhysicianName="", PatientID=f"patient{series:06d}", LossyImageCompression="00",
        ProcedureCodeSequence=code("A1"), ReferencedImageSequence=[image, image], RequestAttributesSequence=[put(Dataset(), ScheduledProcedureStepID="1",
        RequestedProcedureID="2", ScheduledProtocolCodeSequence=code("B2"))], PerformedProcedureStepID="3", PixelData=b"")
    for block, name in ((0x0019, "MAKER CT 1"), (0x0021, "MAKER CT 2")):
        private = ds.private_block(block, name, create=True)
        for n in range(8): private.add_new(n, "LO", f"value {n} of this maker")
        private.add_new(0x20, "OB", bytes(600))
    return ds


def pixels(rng, rows=512):
    """Noise in a circle: it packs about as badly as a head does."""
    y, x = np.ogrid[:rows, :rows]
    inside = np.hypot(y - rows/2, x - rows/2) < rows*.4
    return np.where(inside, rng.normal(1064, 8, (rows, rows)), 24).astype(np.uint16)


def write_files(folder, n, kind="plain", seed=1):
    """`n` files: plain ones, packed ones (run-length and JPEG 2000 in turn), or one enhanced file of `n` frames."""
    from ich_study.odd import put, write_image
    from pydicom import Dataset
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    images = [pixels(rng) for _ in range(4)]
    if kind == "enhanced": return [write_image(folder/"many.dcm", enhanced(n, images, put, Dataset))]
    files = []
    for place in range(n):
        ds = header(place)
        ds.PixelData = images[place % 4].tobytes()
        syntax = "1.2.840.10008.1.2.1" if kind == "plain" else ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90")[place % 2]
        files.append(write_image(folder/f"{place:07d}.dcm", ds, syntax))
    return files


def enhanced(n, images, put, Dataset):
    one = lambda **elements: [put(Dataset(), **elements)]
    ds = header(0)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept"): del ds[keyword]
    shared = put(Dataset(), PixelMeasuresSequence=one(PixelSpacing=[.488, .488], SliceThickness=5), PlaneOrientationSequence=one(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    frames = [put(Dataset(), PlanePositionSequence=one(ImagePositionPatient=[-125, -125, 5.*k]), FrameContentSequence=one(FrameAcquisitionNumber=1),
                  PixelValueTransformationSequence=one(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")) for k in range(n)]
    put(ds, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=n, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
        PixelData=b"".join(images[k % 4].tobytes() for k in range(n)))
    ds["PixelData"].VR = "OW"
    return ds


def write_hollow(folder, n):
    """`n` different files whose pixels are holes, so that 10,000 of them fit on any disk."""
    from ich_study.odd import write_image
    folder.mkdir(parents=True)
    templates = []
    for k in range(PER_SERIES):
        ds = header(k)
        ds.PixelData = bytes(512*512*2)
        templates.append(write_image(folder/"template", ds).read_bytes()[:-512*512*2])
    (folder/"template").unlink()
    uid = str(read_series_uid(templates[0])).encode()
    for place in range(n):
        series, k = divmod(place, PER_SERIES)
        own = f"{series:06d}".encode()
        head = templates[k].replace(f"{10**9 + k}".encode(), f"{10**9 + place}".encode()).replace(b"patient000000", b"patient" + own)
        head = head.replace(uid, uid[:-6] + own)
        with open(folder/f"{place:07d}.dcm", "wb") as file:
            file.write(head)
            file.truncate(len(head) + 512*512*2)


def read_series_uid(head):
    import io
    import pydicom
    return pydicom.dcmread(io.BytesIO(head), stop_before_pixels=True).SeriesInstanceUID


# ---- reading

def rates(files, rounds, folder=None):
    """CPU milliseconds per file, median of rounds; in each round every way is taken once."""
    import pydicom
    tags = list(TAGS.values())
    from ich_study.series import scan_folder
    def each(read):
        for f in files: read(f)  # nothing is kept: many live headers would make the collector of garbage slow
    ways = {"dcmread": lambda: each(lambda f: pydicom.dcmread(f, stop_before_pixels=True)),
            "dcmread of our tags": lambda: each(lambda f: pydicom.dcmread(f, stop_before_pixels=True, specific_tags=tags)),
            "read_file": lambda: each(read_file)}
    if folder: ways["scan_folder"] = lambda: scan_folder(folder, 1, False)
    found = {name: [] for name in ways}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(rounds + 1):
            for name, way in ways.items():
                start = time.process_time()
                way()
                if k: found[name].append(1000*(time.process_time() - start)/len(files))  # the first round warms up
    out = {name: round(statistics.median(v), 4) for name, v in found.items()}
    return out | {"files": len(files), "ratio": round(out["read_file"]/out["dcmread"], 3)} | (
        {"ratio of scan_folder": round(out["scan_folder"]/out["dcmread"], 3)} if folder else {})


def usable(folder):
    return [f for f in list_files(folder) if any(r["used"] for r in read_file(f))]


def screen_ms(rounds):
    """CPU milliseconds to measure one head of 512 x 512."""
    from ich_study.bleeds import Scanner, make_patient
    from ich_study.render import render
    from ich_study.screen import measure_image
    hu = np.asarray(render(make_patient(1, 1, Scanner(matrix=512, pixel_mm=(.45, .46))))[0])
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for image in hu: measure_image(image, .45, .45)
        found.append(1000*(time.process_time() - start)/len(hu))
    return round(statistics.median(found), 2)


# ---- size

def listing(images=1_000_000, series=25_000, patients=20_000, seed=1, lost=.001):
    """A generated listing as `make_index` takes it: labels, distances, reasons; a thousandth of the images is damaged."""
    rng = np.random.default_rng(seed)
    of = np.sort(rng.integers(0, series, images))
    place = np.arange(images) - np.searchsorted(of, np.arange(series))[of]
    owner = rng.permutation(np.concatenate([np.arange(patients), rng.integers(0, patients, series - patients)]))
    number = pd.Series(np.arange(images)).astype(str)
    gap = rng.choice([1.25, 2.5, 5., 5., 5.], series)
    subtypes = rng.random((images, 5)) < [.004, .05, .035, .047, .06]
    gone = rng.random(images) < lost
    return pd.DataFrame({
        "series_uid": "1.2.840.99999." + pd.Series(of).astype(str), "patient_id": "patient " + pd.Series(owner[of]).astype(str),
        "study_uid": "1.2.840.99998." + pd.Series(of).astype(str), "image_name": "image " + number, "file": "/archive/images/" + number + ".dcm",
        "position_mm": place*gap[of] + rng.normal(0, 50, series)[of].round(1), "gap_mm": gap[of], "row_mm": .488, "col_mm": .488, "rows": 512,
        "columns": 512, "any": pd.array(subtypes.any(1), "boolean"), **{s: pd.array(subtypes[:, k], "boolean") for k, s in enumerate(SUBTYPES)},
        "volume_source": "none", "digest": number.str.zfill(32), "used": ~gone, "reason": pd.Series(None, range(images), object).mask(gone, "damaged")})


def make_million(folder, rows):
    """Index and series table of a listing, saved as the study saves them."""
    from ich_study.cohort import make_index, save_index, series_file, series_of_index
    folder.mkdir(parents=True, exist_ok=True)
    steps, start = {}, time.perf_counter()
    table = listing(rows, max(rows//40, 1), max(rows//50, 1))
    steps["listing"], start = time.perf_counter() - start, time.perf_counter()
    index = make_index(table, "generated")
    steps["make_index"], start = time.perf_counter() - start, time.perf_counter()
    series = series_of_index(index)
    series = series.assign(manufacturer=np.resize(["GE", "Siemens", "Philips", None], len(series)), thickness_mm=5., age=60.)
    steps["series_of_index"], start = time.perf_counter() - start, time.perf_counter()
    save_index(index, folder/"index.parquet")
    save_index(series, series_file(folder/"index.parquet"))
    return steps | {"save": time.perf_counter() - start}


def cohort_page(folder):
    """Open, filter and print: what a page about the patients and images shows, in a process of its own."""
    steps, last = {}, time.perf_counter()
    def tick(name):
        nonlocal last
        steps[name], last = time.perf_counter() - last, time.perf_counter()
    from ich_study.cohort import load_index, load_series_table
    from ich_study.datasets import acquisition_table, count_table, flag_table, flow_table, maker_table, reason_table
    from ich_study.labels import verify_labels
    tick("imports")
    index, series = load_index(folder/"index.parquet"), load_series_table(folder/"index.parquet")
    tick("open")
    bleeding = index[index.used & index["any"].fillna(False)]
    tick("filter")
    shown = {"bleeding": len(bleeding), "images": len(index), "series": len(series)}
    for table in (flow_table(index), count_table(index, series), reason_table(index), flag_table(series), acquisition_table(series), maker_table(series)):
        print(table.to_string(), "\n")
    tick("tables")
    print(verify_labels(index[index.used].assign(name=index.image).drop_duplicates("name"))[["finding", "images", "done"]])
    tick("labels verified")
    return steps | shown


def made_up(path):
    """The row that a header would give, of a file that is not there."""
    n = int(path[-12:-4])
    series, k = divmod(n, PER_SERIES)
    known = dict(file=path, patient_id=f"ID_{series*7 % 18_938:08x}", study_uid=f"ID_{series:010x}", series_uid=f"ID_{series + 7:010x}", sop_uid=f"ID_{n:09x}",
                 x_mm=-125., y_mm=-125. + series % 7, z_mm=5.*k, position_mm=5.*k, tilt_deg=0., row_mm=.488281, col_mm=.488281, rows=512, columns=512,
                 contrast=False, lossy=False, unsigned=False, slope=1., intercept=-1024., digest=f"{n:032x}", used=True)
    return [dict.fromkeys(COLUMNS) | known | dict(zip(PLANE, (1., 0., 0., 0., 1., 0.)))]


def whole_path(folder, rows):
    """`index_rsna` of a folder with as many labels as RSNA 2019 and no files: the rows are made up."""
    from ich_study.rsna import index_rsna
    (folder/"stage_2_train").mkdir(parents=True)
    files = [str(folder/"stage_2_train"/f"ID_{n:08d}.dcm") for n in range(rows)]
    subtypes = np.random.default_rng(0).random((rows, 5)) < .04
    with open(folder/"stage_2_train.csv", "w") as file:
        file.write("ID,Label\n")
        for n, cells in enumerate(np.column_stack([subtypes.any(1), subtypes]).astype(int).tolist()):
            file.writelines(f"ID_{n:09x}_{label},{cell}\n" for label, cell in zip(LABELS, cells))
    start = time.perf_counter()
    with mock.patch("ich_study.series.list_files", lambda folder: files), mock.patch("ich_study.cohort.read_any", made_up):
        index, series = index_rsna(folder, workers=1, progress=False, screen=False)
    return {"whole": time.perf_counter() - start, "images": int(index.used.sum()), "series": len(series)}


def scan(folder, workers):
    from ich_study.series import scan_folder
    before, start = peak_mb(), time.perf_counter()
    table = scan_folder(folder, workers, False)
    return {"wall": time.perf_counter() - start, "used": int(table.used.sum()), "grown_mb": peak_mb() - before}


# ---- running

def peak_mb():
    """Peak memory of this process (getrusage would show that of the process that started it)."""
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])/1024

PARTS = {"million": make_million, "page": cohort_page, "whole": whole_path, "scan": scan}


def child(part, folder, n=None, cpus=None):
    """Run one part in a process of its own; its seconds, counts and peak memory (MB)."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)] + ([] if n is None else ["--number", str(n)])
    pin = (lambda: os.sched_setaffinity(0, cpus)) if cpus else None
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=env, preexec_fn=pin)
    if done.returncode: raise SystemExit(f"{part} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - start}


def run_part(args):
    more = () if args.number is None else (args.number,)
    found = PARTS[args.part](Path(args.folder), *more)
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()} | {"peak_mb": round(peak_mb()), "cpu": round(time.process_time(), 2)}))


def plan(cpu_ms, serial_s, n=ARCHIVE): return {f"{c} cores": round((n*cpu_ms/1000/c + serial_s)/3600, 3) for c in CORES}


def measure(args, temporary, cpus):
    out, one = {}, {min(cpus)}
    os.sched_setaffinity(0, one)
    print("reading ...", flush=True)
    sets = {kind: write_files(temporary/kind, n, kind) for kind, n in (("plain", args.files), ("packed", max(args.files//4, 1)), ("enhanced", 40))}
    out["reading"] = {k: rates(f, args.rounds if k != "enhanced" else 10*args.rounds, None if k == "enhanced" else temporary/k) for k, f in sets.items()}
    out["reading"]["enhanced"]["read_file, per image"] = round(out["reading"]["enhanced"]["read_file"]/40, 4)
    if args.folder: out["reading"]["folder"] = rates(usable(args.folder), args.rounds)
    out["screen_ms"] = screen_ms(args.rounds)
    os.sched_setaffinity(0, cpus)
    print("scanning ...", flush=True)
    write_hollow(temporary/"few", args.scan//10)
    write_hollow(temporary/"many", args.scan)
    out["memory"] = {n: child("scan", temporary/f, 1, one) for f, n in (("few", args.scan//10), ("many", args.scan))}
    if len(cpus) > 1 and args.scan >= 20_000: out["two_workers"] = child("scan", temporary/"many", 2, cpus)
    print("a million rows ...", flush=True)
    out["million"] = {part: child(part, temporary/"index", n, one) for part, n in (("million", args.rows), ("page", None))}
    print("RSNA's size without files ...", flush=True)
    out["whole"] = child("whole", temporary/"rsna", args.archive, one)
    serial = out["whole"]["whole"]*ARCHIVE/args.archive
    out["plan_hours"] = {"headers": plan(out["reading"]["plain"]["read_file"], serial), "headers and screen": plan(out["reading"]["plain"]["read_file"] + out["screen_ms"], serial)}
    return out


def report(out, args):
    print(pd.DataFrame(out["reading"]).T.to_string(), "\n(CPU ms per file, one core; ratio: read_file to dcmread, at most 2 wanted; pydicom leaves the lists of an enhanced file unread)\n")
    small, large = list(out["memory"].values())
    per_row = (large["grown_mb"] - small["grown_mb"])*1024/(args.scan - args.scan//10)
    print("scan_folder:", *(f"{n} files {m['wall']:.1f} s ({m['cpu']:.1f} s of CPU with imports), {m['grown_mb']:.0f} MB grown;" for n, m in out["memory"].items()), f"{per_row:.2f} kB per file, "
          f"{per_row*ARCHIVE/2**20:.2f} GB for {ARCHIVE}")
    if "two_workers" in out: print(f"two workers: {out['two_workers']['wall']:.1f} s by the clock, starting them included")
    for part, found in out["million"].items(): print(f"{args.rows} rows, {part}:", found)
    print(f"index_rsna of {args.archive} rows without files:", out["whole"])
    print(f"screen: {out['screen_ms']} ms an image")
    print(f"plan for {ARCHIVE} files (hours, disk not counted):\n{pd.DataFrame(out['plan_hours']).T.to_string()}")


def main():
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("--files", type=int, default=200, help="plain files to write and read, 0.5 MB each (default 200)")
    about.add_argument("--rounds", type=int, default=7, help="rounds whose median counts (default 7)")
    about.add_argument("--scan", type=int, default=20_000, help="files of the larger scan, 8 kB of disk each (default 20000; below that workers do not pay)")
    about.add_argument("--rows", type=int, default=1_000_000, help="rows of the generated index (default 1000000)")
    about.add_argument("--archive", type=int, default=ARCHIVE, help=f"images of the made-up archive (default {ARCHIVE})")
    about.add_argument("--folder", help="also read the usable files of this folder")
    about.add_argument("--json", action="store_true", help="last line: all numbers as JSON")
    about.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    about.add_argument("--number", type=int, help=argparse.SUPPRESS)
    args = about.parse_args()
    if args.part: return run_part(args)
    with tempfile.TemporaryDirectory() as temporary: out = measure(args, Path(temporary), os.sched_getaffinity(0))
    report(out, args)
    if args.json: print(json.dumps(out))


if __name__ == "__main__": main()
