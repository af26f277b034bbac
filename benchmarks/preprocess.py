#!/usr/bin/env python3
"""How fast does an image become a row of the cache? Writes synthetic files, measures, and plans RSNA 2019 on paper.

Everything is measured against something that does the same in another way, in turn and in shuffled order on one pinned core with one thread:
  speed       recipe `paper` from uncompressed DICOM of 512 x 512 to 256 x 256 bytes in a memory map: the naive scikit-image pipeline (float64), plain
              pydicom + OpenCV as a careful user writes it, ours, and the floor (reading the pixels' bytes and storing 64 kB)
  windows     the same with three windows
  workers     ours with one and with two processes
  compressed  run-length, lossless JPEG and JPEG 2000, against the decoder's own time
  cold        files that are not in memory, against only reading them (by the clock)
  cache       `build_cache` with one and two workers, and under a local Dask cluster
  batches     a shuffled batch of 32 from a memory map, and reading with augmentation against four stacked Keras layers
  memory      peak memory of `build_cache` at 1,000 and at 10,000 images
Nothing is written outside a temporary folder. Numbers are CPU milliseconds per image (median of rounds, least in brackets) unless it says otherwise.

Example: OMP_NUM_THREADS=1 python benchmarks/preprocess.py --only speed windows --rounds 5 --json
"""
import os

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(threads, "1")

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom

from ich_study.dicom import PLUGIN, open_header, read_file
from ich_study.recipes import Recipe, make_recipe
from ich_study.rows import prepare_rows

ARCHIVE = 752_803  # images of RSNA 2019
CORES = (2, 16, 128)
DISKS = (.4, 2., 10.)  # GB/s
BANDS = ((40, 80), (80, 200), (600, 2800))
THREE = Recipe("paper_three_windows", (("windows", {"bands": [list(b) for b in BANDS]}), ("gaussian", {"sigma_px": 1.}), ("clahe", {"tiles": 8, "clip": 2.}), ("resize", {"size": 256})))
PACKED = {"run-length": "1.2.840.10008.1.2.5", "lossless JPEG": "1.2.840.10008.1.2.4.70", "JPEG 2000": "1.2.840.10008.1.2.4.90"}
RSNA = ("SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "StudyID", "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel",
        "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "WindowCenter", "WindowWidth",
        "RescaleIntercept", "RescaleSlope", "PixelData")
SECTIONS = ("speed", "windows", "workers", "compressed", "cold", "cache", "batches", "memory")
cv2.setNumThreads(1)


# ---- files

def heads(images):
    """Synthetic heads of 512 x 512, 30 images each; a second copy of each head is enough for another file."""
    from ich_study.bleeds import Scanner, make_patient
    from ich_study.render import render
    found = []
    while len(found) < min(images, 120): found += list(np.asarray(render(make_patient(17, 1 + len(found)//30, Scanner(matrix=512, pixel_mm=(.45, .46))))[0]))
    return [found[k % len(found)] for k in range(images)]


def rsna_header(k, hu):
    """The 22 elements that files of RSNA 2019 have."""
    from ich_study.odd import image_dataset
    ds = image_dataset(5.*k, hu=hu, study=f"study{k//30:06d}", SOPInstanceUID=f"1.2.840.99999.4.{10**9 + k}", StudyID="", PixelRepresentation=1, BitsStored=16,
                       RescaleIntercept=-1024, RescaleSlope=1, WindowCenter=40, WindowWidth=80)
    for element in list(ds):
        if element.keyword not in RSNA: del ds[element.tag]
    return ds


def cq500_header(k, hu):
    """About 130 elements, three sequences and two private blocks, as a scanner writes them."""
    from ich_study.odd import put
    from pydicom import Dataset
    ds = rsna_header(k, hu)
    code = [put(Dataset(), CodeValue="A1", CodingSchemeDesignator="99LOCAL", CodeMeaning="HEAD")]
    image = put(Dataset(), ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID="1.2.840.99999.1.2.3")
    words = ("InstitutionName", "InstitutionAddress", "StationName", "StudyDescription", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "ProtocolName",
             "BodyPartExamined", "ScanOptions", "RotationDirection", "FilterType", "PositionReferenceIndicator", "ImageComments", "StudyComments", "AccessionNumber", "PatientComments")
    numbers = ("KVP", "DataCollectionDiameter", "ReconstructionDiameter", "DistanceSourceToDetector", "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight",
               "ExposureTime", "XRayTubeCurrent", "Exposure", "GeneratorPower", "FocalSpots", "SliceLocation", "ImagesInAcquisition", "TemporalPositionIdentifier", "PatientWeight")
    for word in words: setattr(ds, word, "WORD 1" if word != "BodyPartExamined" else "HEAD")
    for word in numbers: setattr(ds, word, 120)
    for part in ("Series", "Acquisition", "Content", "Study", "InstanceCreation"): put(ds, **{f"{part}Date": "20200101", f"{part}Time": "120000"})
    put(ds, ProcedureCodeSequence=code, ReferencedImageSequence=[image, image], ReferencedStudySequence=[image])
    for block in (0x0019, 0x0021, 0x0027):
        private = ds.private_block(block, f"MAKER {block}", create=True)
        for n in range(18): private.add_new(n, "LO", f"value {n}")
    return ds


def write_files(folder, images, header, syntax="1.2.840.10008.1.2.1"):
    from ich_study.odd import write_image
    folder.mkdir(parents=True)
    rows = []
    for k, hu in enumerate(images):
        file = write_image(folder/f"{k:05d}.dcm", header(k, hu), syntax)
        rows.append(dict(file=str(file), frame=None, image=f"{k:016d}", series=f"series{k//30}", row_mm=.45, col_mm=.46))
    os.sync()
    return rows


def starts(rows):
    """Where the pixels begin in each file."""
    found = []
    for row in rows:
        with open_header(row["file"]) as h: found.append(h.start)
    return found


# ---- the ways

def naive(row, out, bands):
    from skimage.exposure import equalize_adapthist
    from skimage.filters import gaussian
    from skimage.transform import resize
    ds = pydicom.dcmread(row["file"])
    hu = ds.pixel_array*float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    for c, (centre, width) in enumerate(bands):
        image = np.clip((hu - (centre - width/2))/width, 0, 1)
        image = resize(equalize_adapthist(gaussian(image, 1), kernel_size=(64, 64), clip_limit=.01), (256, 256), order=1, anti_aliasing=True)
        out[..., c] = np.round(image*255)


def careful(row, out, bands):
    ds = pydicom.dcmread(row["file"])
    hu = ds.pixel_array.astype(np.float32)*np.float32(ds.RescaleSlope) + np.float32(ds.RescaleIntercept)
    for c, (centre, width) in enumerate(bands):
        grey = np.rint(np.clip((hu - (centre - width/2))/width, 0, 1)*255).astype(np.uint8)
        grey = cv2.createCLAHE(2., (8, 8)).apply(cv2.GaussianBlur(grey, (0, 0), 1))
        out[..., c] = cv2.resize(grey, (256, 256), interpolation=cv2.INTER_LINEAR)


def floor(row, start, out, image):
    np.fromfile(row["file"], np.int16, 512*512, offset=start)
    out[:] = image


def ours(rows, recipe, out, chunk=32):
    faults = [f for k in range(0, len(rows), chunk) for f in prepare_rows(rows[k:k + chunk], recipe, out[k:k + chunk])]
    assert not faults, faults[:3]


def in_turn(ways, rounds, seed=1, clock=time.process_time):
    """Milliseconds per image: {way: [median, least]}; `ways` are (function, images); each round takes all of them in another order."""
    rng, found = random.Random(seed), {name: [] for name in ways}
    for k in range(rounds + 1):
        for name in rng.sample(list(ways), len(ways)):
            call, images = ways[name]
            start = clock()
            call()
            if k: found[name].append(1000*(clock() - start)/images)  # the first round warms up
    return {name: [round(statistics.median(v), 4), round(min(v), 4)] for name, v in found.items()}


def ratio(found, a, b): return round(found[a][0]/found[b][0], 3)


def memory_map(folder, n, channels=1): return np.lib.format.open_memmap(folder/f"{n}-{channels}-{time.monotonic_ns()}.npy", "w+", np.uint8, (n, 256, 256, channels))


def compare(folder, rows, recipe, bands, rounds):
    """The four ways on the same files."""
    out, begin = memory_map(folder, len(rows), len(bands)), starts(rows)
    image, few = np.full(out.shape[1:], 7, np.uint8), rows[::max(len(rows)//12, 1)]
    def each(call): return lambda: [call(k, row) for k, row in enumerate(rows)]
    ways = {"naive": (lambda: [naive(row, out[k], bands) for k, row in enumerate(few)], len(few)),
            "careful": (each(lambda k, row: careful(row, out[k], bands)), len(rows)),
            "ours": (lambda: ours(rows, recipe, out), len(rows)),
            "floor": (each(lambda k, row: floor(row, begin[k], out[k], image)), len(rows))}
    found = in_turn(ways, rounds)
    return found | {"naive_over_ours": ratio(found, "naive", "ours"), "careful_over_ours": ratio(found, "careful", "ours"), "ours_over_floor": ratio(found, "ours", "floor")}


# ---- sections

def speed(args, folder, cpus):
    paper = make_recipe("paper")
    images = heads(args.files)
    found = {"rsna": compare(folder, write_files(folder/"rsna", images, rsna_header), paper, BANDS[:1], args.rounds)}
    return found | {"cq500": compare(folder, write_files(folder/"cq500", images[:args.files//2], cq500_header), paper, BANDS[:1], args.rounds)}


def windows(args, folder, cpus):
    rows = write_files(folder/"windows", heads(args.files//2), rsna_header)
    return compare(folder, rows, THREE, BANDS, max(args.rounds//2, 2))


def work(rows, start, file):
    """One piece of work of a process; its CPU seconds."""
    begin = time.process_time()
    out = np.lib.format.open_memmap(file, "r+")
    faults = prepare_rows(rows, make_recipe("paper"), out[start:start + len(rows)])
    assert not faults, faults[:3]
    return time.process_time() - begin


def workers(args, folder, cpus):
    """CPU and wall milliseconds per image of one and of two processes, in turn."""
    os.sched_setaffinity(0, cpus)
    rows = write_files(folder/"workers", heads(args.files), rsna_header)
    file = folder/"workers.npy"
    np.lib.format.open_memmap(file, "w+", np.uint8, (len(rows), 256, 256, 1))
    pieces = list(range(0, len(rows), 32))
    pools = {n: ProcessPoolExecutor(n, mp_context=get_context("spawn")) for n in (1, 2)}
    found = {n: [] for n in pools}
    for k in range(2*args.rounds + 2):
        for n, pool in pools.items():
            start = time.perf_counter()
            cpu = sum(pool.map(work, [rows[p:p + 32] for p in pieces], pieces, [str(file)]*len(pieces)))
            if k > 1: found[n].append((1000*cpu/len(rows), 1000*(time.perf_counter() - start)/len(rows)))
    for pool in pools.values(): pool.shutdown()
    cpu, wall = ({n: round(statistics.median(v[i] for v in f), 4) for n, f in found.items()} for i in (0, 1))
    least = {n: round(min(v[0] for v in f), 4) for n, f in found.items()}
    os.sched_setaffinity(0, {min(cpus)})
    return {"cpu": cpu, "least": least, "wall": wall, "two_over_one": round(cpu[2]/cpu[1], 3), "least_two_over_one": round(least[2]/least[1], 3), "speed_up": round(wall[1]/wall[2], 2)}


def unpack(row):
    """The decoder alone: the packed bytes are in memory, and the frame comes out as numbers."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    ds = pydicom.dcmread(row["file"])
    from pydicom.encaps import generate_frames
    data = encapsulate([next(generate_frames(ds.PixelData, number_of_frames=1))])
    syntax = str(ds.file_meta.TransferSyntaxUID)
    about = dict(rows=ds.Rows, columns=ds.Columns, number_of_frames=1, samples_per_pixel=1, photometric_interpretation="MONOCHROME2", bits_allocated=16,
                 bits_stored=ds.BitsStored, pixel_representation=ds.PixelRepresentation, pixel_keyword="PixelData")
    return lambda: get_decoder(syntax).as_array(data, raw=True, decoding_plugin=PLUGIN[syntax], **about)


def compressed(args, folder, cpus):
    found, images = {}, heads(24)
    for name, syntax in PACKED.items():
        rows = write_files(folder/syntax, images, rsna_header, syntax)
        decoders, out = [unpack(row) for row in rows], memory_map(folder, len(rows))
        one = in_turn({"decoder": (lambda: [d() for d in decoders], len(rows)), "ours": (lambda: ours(rows, make_recipe("paper"), out), len(rows))}, max(args.rounds//2, 3))
        found[name] = one | {"ours_over_decoder": ratio(one, "ours", "decoder")}
    return found


def forget(rows):
    for row in rows:
        handle = os.open(row["file"], os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_whole(rows):
    buffer = bytearray(2**20)
    for row in rows:
        handle = os.open(row["file"], os.O_RDONLY)
        while os.readv(handle, [buffer]): pass
        os.close(handle)


def cold(args, folder, cpus):
    rows = write_files(folder/"cold", heads(args.files), rsna_header)
    out, found, rng = memory_map(folder, len(rows)), {"reading": [], "ours": []}, random.Random(1)
    ways = {"reading": lambda: read_whole(rows), "ours": lambda: ours(rows, make_recipe("paper"), out)}
    ways["ours"]()
    for _ in range(args.rounds):
        for name in rng.sample(list(ways), 2):
            forget(rows)
            start = time.perf_counter()
            ways[name]()
            found[name].append(1000*(time.perf_counter() - start)/len(rows))
    start = time.perf_counter()
    read_whole(rows)
    warm = 1000*(time.perf_counter() - start)/len(rows)
    found = {name: [round(statistics.median(v), 4), round(min(v), 4)] for name, v in found.items()}
    return found | {"reading_from_memory": round(warm, 4), "ours_over_reading": ratio(found, "ours", "reading"), "least_ours_over_reading": round(found["ours"][1]/found["reading"][1], 3)}


# ---- the cache

def index_of(folder, rows, images):
    """An index of `images` rows over a few files, by symbolic links."""
    from ich_study.cohort import make_index
    (folder/"links").mkdir(parents=True, exist_ok=True)
    read = [read_file(row["file"])[0] for row in rows]
    listing = []
    for k in range(images):
        link = folder/"links"/f"{k:06d}.dcm"
        if not link.exists(): link.symlink_to(rows[k % len(rows)]["file"])
        own = read[k % len(rows)]
        listing.append({"series_uid": f"1.2.{k//30}", "patient_id": f"p{k//30}", "study_uid": f"1.3.{k//30}", "image_name": f"image {k}", "file": str(link),
                        "position_mm": 5.*(k % 30), "gap_mm": 5., "row_mm": own["row_mm"], "col_mm": own["col_mm"], "rows": 512, "columns": 512, "volume_source": "none",
                        "digest": f"{k:032d}", "used": True, "reason": None})
    return make_index(pd.DataFrame(listing), "generated")


def build(folder, images, processes=1, scheduler=None):
    """One cache in a process of its own."""
    from contextlib import nullcontext
    import joblib
    from ich_study.cache import build_cache
    from ich_study.paths import Paths
    index = pd.read_parquet(Path(folder)/f"index-{images}.parquet")
    root = Path(tempfile.mkdtemp(dir=folder))
    client = None
    if scheduler:
        from dask.distributed import Client, LocalCluster
        client = Client(LocalCluster(n_workers=processes, threads_per_worker=1, dashboard_address=None))
    start, cpu = time.perf_counter(), time.process_time()
    with joblib.parallel_config("dask") if scheduler else nullcontext(): build_cache(index, make_recipe("paper"), Paths(root), processes, False)
    found = {"wall": time.perf_counter() - start, "cpu_own": time.process_time() - cpu}
    if client: client.close()
    return found | {"images": images}


def peak_mb(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])/1024


def child(folder, images, processes, scheduler, cpus):
    command = [sys.executable, __file__, "--part", "build", "--folder", str(folder), "--number", str(images), "--processes", str(processes)] + (["--dask"] if scheduler else [])
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, preexec_fn=lambda: os.sched_setaffinity(0, cpus))
    if done.returncode: raise SystemExit(f"build_cache failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def indices(folder, sizes):
    rows = write_files(folder/"sources", heads(30), rsna_header)
    for n in sizes: index_of(folder, rows, n).to_parquet(folder/f"index-{n}.parquet")


def cache(args, folder, cpus):
    """Milliseconds by the clock for each image more: starting processes and importing libraries is in both sizes, so it cancels."""
    few, many = args.cache//4, args.cache
    indices(folder, [few, many])
    ways = {"one worker": (1, False), "two workers": (2, False)} | ({"Dask, two workers": (2, True)} if len(cpus) > 1 else {})
    found = {name: {few: [], many: []} for name in ways}
    for _ in range(max(args.rounds//3, 2)):
        for name, (n, dask) in ways.items():
            for size in (few, many): found[name][size].append(child(folder, size, n, dask, cpus))
    least = lambda some, what: min(f[what] for f in some)
    more = lambda sizes, what: round(1000*(least(sizes[many], what) - least(sizes[few], what))/(many - few), 4)
    return {name: {"wall_per_image": more(sizes, "wall"), f"wall_of_{few}_images_s": round(least(sizes[few], "wall"), 2)} | (
        {"cpu_per_image": more(sizes, "cpu_own")} if name == "one worker" else {}) for name, sizes in found.items()}


def memory(args, folder, cpus):
    sizes = (args.memory//10, args.memory)
    indices(folder, sizes)
    found = {n: child(folder, n, 1, False, {min(cpus)}) for n in sizes}
    return {f"{n} images": round(f["peak_mb"], 1) for n, f in found.items()} | {"grown_mb": round(found[sizes[1]]["peak_mb"] - found[sizes[0]]["peak_mb"], 1)}


# ---- batches

def batches(args, folder, cpus):
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    from keras import layers
    from ich_study.augment import draw_warps, warp_images
    from ich_study.batches import ImageBatches, Normaliser, blood_sd, fold_data, toy_cache
    from dataclasses import replace
    images = memory_map(folder, 2400)
    images[:] = np.random.default_rng(0).integers(0, 255, images.shape, np.uint8)
    stored, folds = toy_cache(60, 256)
    stored = replace(stored, images=np.ascontiguousarray(stored.images), sums=None)
    data = fold_data(stored, folds, 0)
    plain = ImageBatches(data, "train", Normaliser("window", 0., 1.), blood_sd(data), 32, shuffle=True)
    orders = [np.random.default_rng(k).permutation(len(images))[:32] for k in range(20)]
    mapped = np.lib.format.open_memmap(images.filename, "r")
    layered = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(12/360, "constant"), layers.RandomZoom(.1, fill_mode="constant"), layers.RandomTranslation(.05, .05, "constant")])
    rng = np.random.default_rng(0)
    def with_warps(at):
        warps, _ = draw_warps(len(at), 256, rng)
        return Normaliser("window", 0., 1.)(warp_images(mapped[at], warps))
    ways = {"bare read": (lambda: [np.stack([mapped[i] for i in np.sort(at)]) for at in orders], 20), "fancy index": (lambda: [mapped[at] for at in orders], 20),
            "batch": (lambda: [plain[k % len(plain)] for k in range(20)], 20),
            "bare read, as float32": (lambda: [mapped[at].astype(np.float32)/255 for at in orders], 20),
            "read, warp, normalise": (lambda: [with_warps(at) for at in orders], 20),
            "Keras layers": (lambda: [layered(mapped[at].astype(np.float32)/255, training=True) for at in orders[:4]], 4)}
    found = in_turn(ways, max(args.rounds//2, 3))
    return found | {"unit": "ms per batch of 32", "read_over_bare": ratio(found, "fancy index", "bare read"), "batch_over_float_read": ratio(found, "batch", "bare read, as float32"),
                    "layers_over_warp": ratio(found, "Keras layers", "read, warp, normalise")}


# ---- on paper

def plan(milliseconds, megabytes=.526):
    """Minutes for an archive: by the processors, and by the disk that must deliver its files."""
    processor = {f"{c} cores": round(ARCHIVE*milliseconds/1000/c/60, 2) for c in CORES}
    disk = {f"{d:g} GB/s": round(ARCHIVE*megabytes/1000/d/60, 2) for d in DISKS}
    bound = {cores: {speed: "processor" if p > d else "disk" for speed, d in disk.items()} for cores, p in processor.items()}
    return {"processor_minutes": processor, "disk_minutes": disk, "bound_by": bound}


def measure(args, temporary, cpus):
    out = {"cpus": len(cpus), "load": os.getloadavg()[0]}
    os.sched_setaffinity(0, {min(cpus)})
    for name in args.only:
        print(f"{name} ...", flush=True)
        folder = temporary/name
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try: out[name] = globals()[name](args, folder, cpus)
            except ImportError as e: out[name] = {"skipped": str(e)}
    if "speed" in out:
        out |= {k: out["speed"]["rsna"][k] for k in ("naive_over_ours", "careful_over_ours", "ours_over_floor")}
        out["plan"] = plan(out["speed"]["rsna"]["ours"][0])
    return out


def show(value): return f"{value[0]} ({value[1]})" if isinstance(value, list) else value


def report(out):
    for name in SECTIONS:
        if name not in out: continue
        parts = {k: v for k, v in out[name].items() if isinstance(v, dict)}
        rest = {k: show(v) for k, v in out[name].items() if k not in parts}
        print(f"\n{name}")
        if parts: print(pd.DataFrame({k: {i: show(j) for i, j in v.items()} for k, v in parts.items()}).T.to_string())
        if rest: print(pd.Series(rest, dtype=object).to_string())
    if "plan" in out:
        print(f"\n{ARCHIVE} images on paper, minutes: {out['plan']['processor_minutes']} of processor; {out['plan']['disk_minutes']} of disk")
        for cores, bound in out["plan"]["bound_by"].items(): print(f"  {cores}: " + ", ".join(f"{speed} bound by {what}" for speed, what in bound.items()))


def main():
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to measure (default: all)")
    about.add_argument("--files", type=int, default=240, help="files of 0.5 MB to write and read in a section (default 240)")
    about.add_argument("--rounds", type=int, default=7, help="rounds whose median counts (default 7)")
    about.add_argument("--cache", type=int, default=2400, help="images of the larger of two caches that are timed (default 2400; a quarter is the smaller one)")
    about.add_argument("--memory", type=int, default=10_000, help="images of the larger cache whose peak memory is measured (default 10000; a tenth is the smaller one)")
    about.add_argument("--json", action="store_true", help="last line: all numbers as JSON")
    about.add_argument("--part", choices=("build",), help=argparse.SUPPRESS)
    about.add_argument("--folder", help=argparse.SUPPRESS)
    about.add_argument("--number", type=int, help=argparse.SUPPRESS)
    about.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    about.add_argument("--dask", action="store_true", help=argparse.SUPPRESS)
    args = about.parse_args()
    if args.part:
        found = build(args.folder, args.number, args.processes, args.dask)
        return print(json.dumps(found | {"peak_mb": peak_mb()}))
    with tempfile.TemporaryDirectory() as temporary: out = measure(args, Path(temporary), os.sched_getaffinity(0))
    report(out)
    if args.json: print(json.dumps(out))


if __name__ == "__main__": main()
