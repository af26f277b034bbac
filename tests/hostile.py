"""Files made to harm whoever reads them, files at the limits of what a head CT can need, tokens that may never leak, and mutation.

Every maker takes a folder and returns the path it made; all are quick and small on disk. `HOSTILE` names them,
`limit_cases` writes pairs of files just at and just above each limit, `plant_canaries` puts a token into every text.
`attack` and `fuzz` read such files in a process of their own, whose time and memory they measure.
"""
import gzip
import json
import os
import re
import resource
import signal
import struct
import time
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from jpeg_ls import encode as encode_jpegls
from openjpeg.utils import encode_array
from pydicom import config, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from ich_study.cohort import read_any
from ich_study.dicom import LIMITS
from ich_study.odd import PIXEL_MM, image_dataset, make_odd, put, write_image
from ich_study.pixels import load_pixels
from ich_study.schema import REASONS, StudyError
from ich_study.series import clean_series, series_flags, typed

MIB = 2**20


# bytes of a file, element by element: what pydicom would refuse to write

def element(group, number, vr, value=b"", length=None):
    """One element in explicit VR little endian; `length` may lie."""
    length = len(value) if length is None else length
    long = vr in ("OB", "OW", "SQ", "UN", "UT", "UC", "UR", "OF", "OD", "OL", "OV", "SV", "UV")
    return struct.pack("<HH", group, number) + vr.encode() + (struct.pack("<HI", 0, length) if long else struct.pack("<H", length)) + value


def good_bytes(z=0., **elements):
    """A good CT image as bytes."""
    made = BytesIO()
    ds = image_dataset(z, study="hostile", **elements)
    ds.save_as(made, enforce_file_format=True)
    return made.getvalue()


PIXELS = struct.pack("<HH", 0x7FE0, 0x0010)


def with_elements(path, extra, **elements):
    """A good image with raw bytes put in before its pixels."""
    data = good_bytes(**elements)
    at = data.rindex(PIXELS + b"OW")
    path.write_bytes(data[:at] + extra + data[at:])
    return path


def packed(path, frames, syntax, **elements):
    """An image whose header is good and whose packed frames are what is given."""
    ds = image_dataset(study="hostile", **elements)
    ds["PixelData"] = DataElement(0x7FE00010, "OB", encapsulate(frames))
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


# what unpacks to more than memory

def _zeros(size, squeeze):
    """Deflated zeros: one block of 4 MiB after which the stream starts anew, repeated as it is."""
    head = squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(bytes(4*MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return head + block*(size//(4*MIB))


def deflated_bomb(folder, size=2**30):
    """A megabyte that inflates to a gigabyte of zeros, in a private element before the pixels."""
    path = folder/"deflated bomb.dcm"
    data = good_bytes()
    length = int.from_bytes(data[140:144], "little")
    meta = BytesIO()
    ds = dcmread(BytesIO(data))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(meta, enforce_file_format=True)
    deflated = meta.getvalue()
    body = data[144 + length:]
    at = body.rindex(PIXELS + b"OW")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = deflated[:144 + int.from_bytes(deflated[140:144], "little")]
    with open(path, "wb") as file:
        file.write(head + squeeze.compress(body[:at] + element(0x0029, 0x0010, "LO", b"BOMB") + element(0x0029, 0x1010, "OB", length=size)))
        file.write(_zeros(size, squeeze))
        file.write(squeeze.compress(body[at:]) + squeeze.flush())
    return path


def gzip_bomb(folder, size=2**30, shape=(8192, 8192, 8), name="bomb.nii.gz"):
    """A NIfTI file of a megabyte whose header promises, and whose stream gives, a gigabyte."""
    path = folder/name
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352.)
    struct.pack_into("<2h", header, 252, 0, 1)
    for n, row in enumerate(((-1, 0, 0, 0), (0, -1, 0, 0), (0, 0, 1, 0))): struct.pack_into("<4f", header, 280 + 16*n, *row)
    header[344:348] = b"n+1\0"
    squeeze, crc = zlib.compressobj(9, zlib.DEFLATED, -15), zlib.crc32(header)
    for _ in range(size//(4*MIB)): crc = zlib.crc32(bytes(4*MIB), crc)
    body = squeeze.compress(bytes(header)) + _zeros(size, squeeze) + squeeze.flush()
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + body + struct.pack("<II", crc, len(header) + size & 0xFFFFFFFF))
    return path


def gzip_plain(folder):
    """The same stream under a header of sides that a head CT can have: 2048 x 2048 x 128."""
    return gzip_bomb(folder, shape=(2048, 2048, 128), name="plain bomb.nii.gz")


def gzip_more(folder):
    """A header of eight small images, and a stream that gives a gigabyte all the same."""
    return gzip_bomb(folder, shape=(64, 64, 8), name="more.nii.gz")


def huge_matrix(folder):
    """65535 x 65535 pixels, 2^31 - 1 frames, and nine kilobytes of them."""
    return write_image(folder/"huge matrix.dcm", image_dataset(study="hostile", Rows=65535, Columns=65535, NumberOfFrames=2**31 - 1))


def _rle(segment_bytes):
    """An RLE frame of two segments that each unpack to this many zeros."""
    runs = b"\x81\x00"*(-(-segment_bytes//128))  # 128 times the byte 0
    return struct.pack("<16I", 2, 64, 64 + len(runs), *[0]*13) + runs + runs


def rle_large(folder):
    """A true RLE image of 16384 x 16384: eight megabytes that unpack to half a gigabyte."""
    return packed(folder/"rle large.dcm", [_rle(16384**2)], RLELossless, Rows=16384, Columns=16384)


def rle_segment(folder):
    """64 x 64 pixels by the header, but a segment that unpacks to 512 MB."""
    return packed(folder/"rle segment.dcm", [_rle(512*MIB)], RLELossless)


def rle_grows(folder):
    """As many runs as a run-length image may have, each of which grows 64-fold: 200 MB, of which 8 are shown."""
    return packed(folder/"rle grows.dcm", [_rle((LIMITS.rle_bytes - 64)//4*128)], RLELossless, Rows=2048, Columns=2048)


def j2k_large(folder):
    """64 x 64 pixels by the header, but a codestream of 8000 x 8000 grey ones."""
    stream = encode_array(np.zeros((8000, 8000), np.uint16), bits_stored=16, photometric_interpretation=2)
    return packed(folder/"j2k large.dcm", [bytes(stream)], JPEG2000Lossless)


def jls_large(folder):
    """64 x 64 pixels by the header, but a JPEG-LS stream of 8000 x 8000."""
    return packed(folder/"jls large.dcm", [bytes(encode_jpegls(np.zeros((8000, 8000), np.uint16)))], JPEGLSLossless)


def jpeg_large(folder):
    """A lossless JPEG of 64 x 64 whose frame header claims 65500 x 65500."""
    path = write_image(folder/"jpeg large.dcm", image_dataset(study="hostile"), "1.2.840.10008.1.2.4.70")
    data = path.read_bytes()
    at = data.index(b"\xff\xc3")  # marker, length, precision, rows, columns
    path.write_bytes(data[:at + 5] + struct.pack(">HH", 65500, 65500) + data[at + 9:])
    return path


# what nests, counts or lies

def _nested_open(depth):
    item, close = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF), struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return (element(0x0040, 0xA730, "SQ", length=0xFFFFFFFF) + item)*depth + close*depth


def nested_150(folder):
    """Sequences within sequences, 150 deep, without lengths."""
    return with_elements(folder/"nested 150.dcm", _nested_open(150))


def nested_300(folder):
    """300 deep: pydicom raises RecursionError."""
    return with_elements(folder/"nested 300.dcm", _nested_open(300))


def nested_3000(folder):
    """3000 deep."""
    return with_elements(folder/"nested 3000.dcm", _nested_open(3000))


def nested_lengths(folder, depth=2000):
    """Sequences with lengths, 2000 deep: read lazily, and too deep for whoever walks them."""
    inner = b""
    for _ in range(depth):
        inner = element(0x0040, 0xA730, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner)
    return with_elements(folder/"nested lengths.dcm", inner)


def false_length(folder):
    """An element that promises four gigabytes and has three bytes, at the end of the file."""
    path = folder/"false length.dcm"
    path.write_bytes(good_bytes(PixelData=None) + element(0x7FE0, 0x0010, "OW", b"abc", length=0xFFFFFFFE))
    return path


def many_elements(folder, count=400_000):
    """400,000 private elements."""
    made = bytearray()
    for n in range(count):
        made += struct.pack("<HH2sH", 0x0029 + 2*(n//60000), 0x1000 + n % 60000, b"SH", 0)
    return with_elements(folder/"many elements.dcm", bytes(made))


def many_items(folder, count=10**6):
    """A sequence of a million empty items."""
    return with_elements(folder/"many items.dcm", element(0x0040, 0xA730, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 0)*count))


def many_values(folder, count=5*10**6):
    """A decimal string of five million values; as DS cannot be that long in explicit VR, the file is implicit."""
    path = folder/"many values.dcm"
    write_image(path, image_dataset(study="hostile"), "1.2.840.10008.1.2")
    data = path.read_bytes()
    at = data.rindex(PIXELS)
    value = b"1\\"*count
    path.write_bytes(data[:at] + struct.pack("<HHI", 0x0040, 0xA30A, len(value)) + value + data[at:])
    return path


def many_positions(folder, count=5*10**6):
    """The same, in an element that every reader asks for: ImagePositionPatient."""
    path = folder/"many positions.dcm"
    write_image(path, image_dataset(study="hostile", ImagePositionPatient=None), "1.2.840.10008.1.2")
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x0020, 0x0037))
    value = b"1\\"*count
    path.write_bytes(data[:at] + struct.pack("<HHI", 0x0020, 0x0032, len(value)) + value + data[at:])
    return path


def long_number(folder):
    """A position whose first number has ten million digits."""
    path = folder/"long number.dcm"
    write_image(path, image_dataset(study="hostile", ImagePositionPatient=None), "1.2.840.10008.1.2")
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x0020, 0x0037))
    value = b"0"*10**7 + b"1\\0\\0 "
    path.write_bytes(data[:at] + struct.pack("<HHI", 0x0020, 0x0032, len(value)) + value + data[at:])
    return path


def long_text(folder):
    """A description of ten megabytes, which a table of images would carry along."""
    return _text_of(10**7, folder/"long text.dcm")


def _text_of(size, path, keyword=0x0008103E, **elements):
    """A good implicit file with a text of this many bytes."""
    write_image(path, image_dataset(study="hostile", **elements), "1.2.840.10008.1.2")
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x0010, 0x0010))
    path.write_bytes(data[:at] + struct.pack("<HHI", keyword >> 16, keyword & 0xFFFF, size) + b"a"*size + data[at:])
    return path


ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
ENHANCED = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=2, PixelData=bytes(4*64*64))


def frame_items(folder, count=10**6):
    """A million entries in the list of frames that a reader of many frames must open."""
    return with_elements(folder/"frame items.dcm", element(0x5200, 0x9230, "SQ", ITEM*count), **ENHANCED)


def frame_lists(folder):
    """Both lists of frames together just within the limit, and no entry empty."""
    entry = struct.pack("<HHI", 0xFFFE, 0xE000, 8) + element(0x0008, 0x0016, "UI")
    lists = b"".join(element(0x5200, number, "SQ", entry*(LIMITS.items//2)) for number in (0x9229, 0x9230))
    return with_elements(folder/"frame lists.dcm", lists, **ENHANCED)


# what is no file

def fifo(folder):
    """A pipe that nobody writes to: reading it waits for ever."""
    os.mkfifo(folder/"fifo.dcm")
    return folder/"fifo.dcm"


def endless_link(folder):
    """A link to a device that never ends."""
    (folder/"zero.dcm").symlink_to("/dev/zero")
    return folder/"zero.dcm"


def folder_named_dcm(folder):
    """A folder with the name of a file, and an image in it."""
    (folder/"x.dcm").mkdir()
    write_image(folder/"x.dcm"/"image", image_dataset(study="hostile"))
    return folder/"x.dcm"


def link_loop(folder):
    """A folder that links to the one above, and two links that name each other."""
    (folder/"loop").mkdir()
    (folder/"loop"/"up").symlink_to(folder.resolve(), target_is_directory=True)
    (folder/"loop"/"a.dcm").symlink_to(folder/"loop"/"b.dcm")
    (folder/"loop"/"b.dcm").symlink_to(folder/"loop"/"a.dcm")
    return folder/"loop"


def outside_link(folder):
    """A link to a file outside the folder."""
    (folder/"passwd.dcm").symlink_to("/etc/passwd")
    return folder/"passwd.dcm"


def sparse(folder, size=10*2**30):
    """An image followed by a hole: ten gigabytes that take eight kilobytes of disk."""
    path = folder/"sparse.dcm"
    path.write_bytes(good_bytes())
    os.truncate(path, size)
    return path


# what harms further on

def traversal(folder):
    """Identifiers that would be paths out of the folder."""
    return write_image(folder/"traversal.dcm", image_dataset(study="hostile", SOPInstanceUID="../../x", SeriesInstanceUID="/tmp/ich_study_escaped",
                       StudyInstanceUID="..\\..\\y", PatientID="../../../etc/cron.d/z"))


FORMULA, SCRIPT = "=cmd|' /C calc'!A0", "<script>alert(1)</script>"


def formulas(folder):
    """Texts that a spreadsheet runs, or a browser."""
    return write_image(folder/"=1+1.dcm", image_dataset(study="hostile", PatientID=FORMULA, PatientName=FORMULA, ConvolutionKernel="=1+1",
                       Manufacturer="@SUM(1)", StudyDescription="+1", SeriesDescription=SCRIPT, SOPInstanceUID="=1+1", SeriesInstanceUID="-1+1", StudyInstanceUID="\t=1"))


HOSTILE = {f.__name__: f for f in (
    deflated_bomb, gzip_bomb, gzip_plain, gzip_more, huge_matrix, rle_large, rle_segment, rle_grows, j2k_large, jls_large, jpeg_large, nested_150, nested_300, nested_3000, nested_lengths, false_length,
    many_elements, many_items, many_values, many_positions, long_number, long_text, frame_items, frame_lists, fifo, endless_link, folder_named_dcm, link_loop, outside_link, sparse, traversal, formulas)}


# just at and just above each limit: name -> (maker of the one that must be read, maker of the one that must not)

def _image(name, hu=None, **elements):
    return lambda folder: write_image(folder/f"{name}.dcm", image_dataset(0., hu, study="limits", **elements))


def _sides(rows, columns): return _image(f"{rows} x {columns}", np.full((rows, columns), 35, np.int16))


def _sized(size):
    """A good image and then the padding that the standard allows at the end, up to `size` bytes (a hole on disk)."""
    def make(folder):
        path = folder/f"size {size}.dcm"
        data = good_bytes()
        head = data + element(0xFFFC, 0xFFFC, "OB", length=size - len(data) - 12)
        path.write_bytes(head)
        os.truncate(path, size)
        return path
    return make


def _inflated(size):
    """The same in a deflated file, whose data set unpacks to `size` bytes."""
    def make(folder):
        path = folder/f"inflated {size}.dcm"
        ds = image_dataset(study="limits")
        plain = good_bytes()
        body = plain[144 + int.from_bytes(plain[140:144], "little"):]
        body += element(0xFFFC, 0xFFFC, "OB", bytes(size - len(body) - 12))
        write_image(path, ds, DeflatedExplicitVRLittleEndian)
        head = path.read_bytes()
        squeeze = zlib.compressobj(1, zlib.DEFLATED, -15)
        path.write_bytes(head[:144 + int.from_bytes(head[140:144], "little")] + squeeze.compress(body) + squeeze.flush())
        return path
    return make


def _frames(count, side=64, frame=None):
    """An enhanced CT of `count` frames; plain zeros, or one packed frame of run lengths again and again."""
    def make(folder):
        none = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType"))
        one = lambda **elements: [put(Dataset(), **elements)]
        shared = put(Dataset(), PixelMeasuresSequence=one(PixelSpacing=[PIXEL_MM]*2, SliceThickness=.1), PlaneOrientationSequence=one(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
                     PixelValueTransformationSequence=one(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"))
        each = [put(Dataset(), PlanePositionSequence=one(ImagePositionPatient=[0, 0, round(.1*k, 1)])) for k in range(count)]
        elements = dict(none, Rows=side, Columns=side, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=count, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=each)
        path = folder/f"frames {count}.dcm"
        if frame: return packed(path, [frame]*count, RLELossless, **elements)
        return write_image(path, image_dataset(study="limits", PixelData=bytes(2*side*side*count), **elements))
    return make


def _cubes(most, side=LIMITS.side[1]):
    """Frames of the largest side: as many as may be held, and one more."""
    count = most//(2*side*side)
    return tuple(_frames(n, side, _rle(side*side)) for n in (count, count + 1))


def _short_elements(count):
    """So many private elements before the pixels, each of which costs the reader two steps or fewer."""
    made = b"".join(struct.pack("<HH2sH", 0x0029 + 2*(n//60000), 0x1000 + n % 60000, b"SH", 0) for n in range(count))
    return lambda folder: with_elements(folder/f"elements {count}.dcm", made)


def _wanted_bytes(size):
    """Texts of this many bytes in all, none of them too long for one."""
    def make(folder):
        path = _text_of(2, folder/f"header {size}.dcm")
        data = path.read_bytes()
        at = data.index(struct.pack("<HH", 0x0008, 0x103E))
        each = size//8
        texts = b"".join(struct.pack("<HHI", 0x0008, 0x103E, each) + b"a"*each for _ in range(8))
        path.write_bytes(data[:at] + texts + data[at:])
        return path
    return make


def _entries_of(count):
    """Two frames, and an entry that all share, which has so many within it as make this number together."""
    def make(folder):
        path = _frames(2)(folder).rename(folder/f"entries {count}.dcm")
        data = path.read_bytes()
        own = sum(data.count(ITEM[:4], data.index(struct.pack("<HH", 0x5200, n))) for n in (0x9229,))
        extra = element(0x0040, 0xA730, "SQ", ITEM*(count - own))
        at = data.index(struct.pack("<HH", 0x5200, 0x9229))  # tag, VR, 2 empty bytes, length; the item's tag, its length
        size, inner = (int.from_bytes(data[at + k:at + k + 4], "little") for k in (8, 16))
        head = data[:at + 8] + struct.pack("<I", size + len(extra)) + data[at + 12:at + 16] + struct.pack("<I", inner + len(extra)) + extra
        path.write_bytes(head + data[at + 20:])
        return path
    return make


def _padded(size):
    """A JPEG 2000 stream with a comment that makes it so many bytes long."""
    def make(folder):
        stream = bytes(encode_array(np.full((64, 64), 1059, np.uint16), bits_stored=16, photometric_interpretation=2))
        at = 4 + int.from_bytes(stream[4:6], "big")  # behind the marker that tells the size
        room = size - len(stream) - 4
        return packed(folder/f"padded {size}.dcm", [stream[:at] + struct.pack(">HHH", 0xFF64, room + 2, 0) + bytes(room - 2) + stream[at:]], JPEG2000Lossless)
    return make


def _runs(size):
    """A true run-length image of this many bytes: small runs, then the byte that stands for nothing."""
    def make(folder):
        rle = _rle(2048*2048)
        return packed(folder/f"runs {size}.dcm", [rle.ljust(size, b"\x80")], RLELossless, Rows=2048, Columns=2048)
    return make


def _spaced(size):
    """Pixel sizes written with spaces up to this many bytes."""
    return lambda folder: write_image(folder/f"text {size}.dcm", image_dataset(study="limits", PixelSpacing="2.5\\2.5".ljust(size)))


def _range(keyword, low, high, text, **elements):
    """Values at both ends of a range, and a thousandth of it beyond."""
    far = (high - low)/1000
    make = lambda v: _image(f"{keyword} {v:g}", **{keyword: text(f"{v:.10g}")}, PixelData=bytes(8192), **elements)
    return {f"{keyword} least": (make(low), make(low - far)), f"{keyword} most": (make(high), make(high + far))}


_LOW, _HIGH = LIMITS.side
_FAR = LIMITS.position_mm
CASES = {
    "rows least": (_sides(_LOW, _LOW + 16), _sides(_LOW - 1, _LOW + 16)), "columns least": (_sides(_LOW + 16, _LOW), _sides(_LOW + 16, _LOW - 1)),
    "rows most": (_sides(_HIGH, _LOW), _sides(_HIGH + 1, _LOW)), "columns most": (_sides(_LOW, _HIGH), _sides(_LOW, _HIGH + 1)),
    "frames": (_frames(LIMITS.frames), _frames(LIMITS.frames + 1)), "pixel_bytes": _cubes(LIMITS.pixel_bytes),
    "file_bytes": (_sized(LIMITS.file_bytes), _sized(LIMITS.file_bytes + 2)), "inflated_bytes": (_inflated(LIMITS.inflated_bytes), _inflated(LIMITS.inflated_bytes + 2)),
    "element_bytes": tuple(lambda folder, n=n: _text_of(n, folder/f"element {n}.dcm") for n in (LIMITS.element_bytes, LIMITS.element_bytes + 2)),
    "header_bytes": (_wanted_bytes(LIMITS.header_bytes - 2**18), _wanted_bytes(LIMITS.header_bytes)),  # other reads count, too
    "reads": (_short_elements(LIMITS.reads - 2000), _short_elements(LIMITS.reads)),
    "items": (_entries_of(LIMITS.items), _entries_of(LIMITS.items + 1)), "text_bytes": (_spaced(LIMITS.text_bytes), _spaced(LIMITS.text_bytes + 2)),
    "packed": (_padded(int(64*64*2*LIMITS.packed) + 4096), _padded(int(64*64*2*LIMITS.packed) + 4098)), "rle_bytes": (_runs(LIMITS.rle_bytes), _runs(LIMITS.rle_bytes + 2)),
    **_range("PixelSpacing", *LIMITS.spacing_mm, lambda v: f"{v}\\1"), **_range("ImagePositionPatient", -_FAR, _FAR, lambda v: f"0\\{v}\\0"),
    **_range("RescaleSlope", *LIMITS.slope, str), **_range("RescaleIntercept", *LIMITS.intercept, str),
}


def limit_cases(folder):
    """Write every pair: rows of (name, file just at the limit, file just above it)."""
    cases = []
    for name, pair in CASES.items():
        (folder/name).mkdir()
        cases.append((name, *(make(folder/name) for make in pair)))
    return cases


# tokens that may never be seen again

TEXT_VRS = ("AE", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT", "AS")
KEPT = ("Modality", "ImageType", "PhotometricInterpretation", "RescaleType", "SpecificCharacterSet", "PatientSex", "PatientAge", "LossyImageCompression",
        "PatientPosition", "BurnedInAnnotation", "FrameType", "ConvolutionKernel", "Manufacturer", "PatientIdentityRemoved")  # what a reader decides by, or a table shows
PATIENT = ("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "PatientComments",
           "AdditionalPatientHistory", "EthnicGroup", "Occupation", "MilitaryRank", "IssuerOfPatientID", "MedicalRecordLocator", "CountryOfResidence")
STUDY = ("AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName", "ReferringPhysicianAddress", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
         "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "AdmittingDiagnosesDescription", "RequestingPhysician", "RequestedProcedureDescription", "RequestedProcedureID")
SERIES = ("SeriesDescription", "ProtocolName", "OperatorsName", "PerformingPhysicianName", "StationName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
          "PerformedProcedureStepDescription", "PerformedProcedureStepID")
IMAGE = ("ImageComments", "DerivationDescription", "AcquisitionComments", "FrameComments")


def _token(mint, level, key, keyword):
    """The one token of an element at its level, made when first asked for."""
    return mint.setdefault((level, key, keyword), f"KNRY{len(mint):06d}X")


def _plant(ds, mint, keys, variant):
    for level, keywords in (("patient", PATIENT), ("study", STUDY), ("series", SERIES), ("image", IMAGE)):
        put(ds, **{keyword: variant + _token(mint, level, keys[level], keyword) for keyword in keywords})
    block = ds.private_block(0x0029, _token(mint, "series", keys["series"], "private creator"), create=True)
    block.add_new(0x10, "LO", variant + _token(mint, "image", keys["image"], "private text"))
    known = {*PATIENT, *STUDY, *SERIES, *IMAGE, *KEPT}

    def visit(_, e):
        if e.VR in TEXT_VRS and e.VR not in ("DA", "TM", "DT", "AS") and e.keyword and e.keyword not in known and e.value not in (None, ""):
            e.value = variant + _token(mint, "series", keys["series"], e.keyword)
    ds.walk(visit)


def plant_canaries(folder, variant="", dates=True, uids=False):
    """Rewrite every DICOM file below `folder` with a token in each text element, and rename files and folders; the tokens.

    The same patient, study and series keep one token each, so that they still belong together; UIDs stay. `variant` goes
    before each token: "=cmd|" or "<script>". Birth and study dates get unlikely values of their own, listed as tokens, too;
    with `uids` the study, series and image UIDs are listed as well.
    """
    mint, before, folder = {}, config.settings.writing_validation_mode, Path(folder)
    config.settings.writing_validation_mode = config.IGNORE
    extra = set()
    try:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            if path.read_bytes()[128:132] != b"DICM": continue
            ds = dcmread(path)
            keys = {"patient": str(ds.get("PatientID")), "study": str(ds.get("StudyInstanceUID")), "series": str(ds.get("SeriesInstanceUID")), "image": str(path)}
            _plant(ds, mint, keys, variant)
            if uids: extra |= {str(ds.get(k)) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if ds.get(k)}
            if dates:
                put(ds, PatientBirthDate="19010203", StudyDate="19870605", SeriesDate="19870606", AcquisitionDate="19870607", ContentDate="19870608",
                    StudyTime="010203.040506", SeriesTime="010203.040507")
                extra |= {"19010203", "19870605", "19870606", "19870607", "19870608", "010203.040506", "010203.040507"}
            ds.save_as(path, enforce_file_format=True)
    finally: config.settings.writing_validation_mode = before
    safe = re.sub(r"[/\0]", "", variant)
    for path in sorted((p for p in folder.rglob("*") if not p.is_symlink()), key=lambda p: -len(p.parts)):
        ending = path.suffix if path.is_file() and len(path.suffix) < 6 else ""
        path.rename(path.with_name(safe + _token(mint, "path", str(path), "name") + ending))
    return sorted({*mint.values(), *extra})


def _contents(path):
    """The bytes of a file, and those it unpacks to."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b": return data + gzip.decompress(data)
    if data[:4] == b"PAR1": return data + pd.read_parquet(path).reset_index().to_csv().encode()
    if not zipfile.is_zipfile(path): return data
    with zipfile.ZipFile(path) as packed_files: return data + b"\0".join(n.encode() + packed_files.read(n) for n in packed_files.namelist())


def leaked(tokens, *places):
    """(token, file) for each token that stands in a file or below a folder, or in a name there; packed tables and archives are opened."""
    found = []
    wanted = re.compile("|".join(map(re.escape, sorted(tokens))).encode())
    for place in map(Path, places):
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            data = (_contents(path) if path.is_file() else b"") + b"\0" + path.name.encode()
            found += [(m.decode(), str(path)) for m in sorted(set(wanted.findall(data)))]
    return found


# mutation

SYNTAXES = tuple(f"1.2.840.10008.1.2{s}".encode() for s in ("", ".1", ".2", ".5", ".1.99", ".4.50", ".4.57", ".4.70", ".4.80", ".4.90", ".4.95", ".4.201", ".4.205"))
VRS = (b"DS", b"IS", b"US", b"SS", b"UI", b"SQ", b"UN", b"OB", b"OW", b"PN", b"LO", b"AT", b"FD", b"FL", b"UL", b"DA", b"UT", b"??", b"\0\0")
LENGTHS = (0, 1, 2, 3, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
TAGS = tuple(struct.pack("<HH", *t) for t in ((0x0028, 0x0010), (0x0028, 0x0011), (0x0028, 0x0008), (0x0028, 0x0100), (0x0028, 0x0101), (0x0028, 0x0103), (0x0028, 0x0030),
             (0x0020, 0x0032), (0x0020, 0x0037), (0x0028, 0x1052), (0x0028, 0x1053), (0x0028, 0x0002), (0x0028, 0x0120), (0x0008, 0x0005), (0x5200, 0x9229), (0x7FE0, 0x0010), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)))
TEXTS = (b"NaN", b"1e400", b"-inf", b"5,0", b"", b"1\\2\\3", b"-1", b"999999999999", b"\xff\xfe", b"0x10", b"1_0", b"\0\0\0\0", b"../../x", b" ")


def _at(data, rng):
    """A place, in the header nine times of ten."""
    pixels = data.rfind(PIXELS)
    end = pixels + 12 if pixels > 132 and rng.random() < .9 else len(data)
    return int(rng.integers(min(132, max(0, end - 1)), max(end, 1))) if end > 1 else 0


def _explicit(data, rng):
    """Where the VR of some element of an explicit file stands, or any place."""
    places = [m.start() for m in re.finditer(rb"[\x00-\x7f]\x00..(?:DS|IS|US|SS|UI|CS|LO|SH|PN|SQ|OW|OB|DA|TM|UL|AS|ST|LT|UN)", data[:20_000], re.S)]
    return places[int(rng.integers(len(places)))] + 4 if places else _at(data, rng)


def _flip(data, rng): i = _at(data, rng); data[i] ^= 1 << int(rng.integers(8)); return data
def _byte(data, rng): data[_at(data, rng)] = int(rng.integers(256)); return data
def _cut(data, rng): return data[:_at(data, rng)]
def _tail(data, rng): return data[:len(data) - int(rng.integers(1, max(2, len(data)//2)))]
def _vr(data, rng): i = _explicit(data, rng); data[i:i + 2] = VRS[int(rng.integers(len(VRS)))]; return data


def _length(data, rng):
    i, n = _explicit(data, rng), LENGTHS[int(rng.integers(len(LENGTHS)))]
    long = data[i:i + 2] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    where, form = (i + 4, "<I") if long else (i + 2, "<H")
    if where + 4 <= len(data): struct.pack_into(form, data, where, n if long else n & 0xFFFF)
    return data


def _tag(data, rng):
    i = _explicit(data, rng) - 4
    data[max(i, 0):max(i, 0) + 4] = TAGS[int(rng.integers(len(TAGS)))]
    return data


def _value(data, rng):
    """Other text of the same length in the value of a short element, or other bytes in a number."""
    i = _explicit(data, rng)
    size = int.from_bytes(data[i + 2:i + 4], "little")
    text = TEXTS[int(rng.integers(len(TEXTS)))]
    if size < 200: data[i + 4:i + 4 + size] = text[:size].ljust(size, b" ")
    return data


def _resized(data, rng):
    """Other text in a short element, whose length follows."""
    i = _explicit(data, rng)
    size, text = int.from_bytes(data[i + 2:i + 4], "little"), TEXTS[int(rng.integers(len(TEXTS)))]
    text += b" "*(len(text) % 2)
    return data[:i + 2] + struct.pack("<H", len(text)) + text + data[i + 4 + size:] if size < 200 else data


def _double(data, rng):
    i, n = _at(data, rng), int(rng.integers(1, 400))
    return data[:i] + data[i:i + n]*int(rng.integers(2, 5)) + data[i + n:]


def _drop(data, rng): i = _at(data, rng); return data[:i] + data[i + int(rng.integers(1, 60)):]


def _insert(data, rng):
    """A whole element, often a wrong one, where another begins."""
    i, tag = _explicit(data, rng) - 4, TAGS[int(rng.integers(len(TAGS)))]
    text = TEXTS[int(rng.integers(len(TEXTS)))]
    return data[:max(i, 0)] + tag + VRS[int(rng.integers(len(VRS)))] + struct.pack("<H", len(text)) + text + data[max(i, 0):]


def _syntax(data, rng):
    """The name of another transfer syntax, as long as the old one or with its length set."""
    tag = data.find(struct.pack("<HH", 0x0002, 0x0010) + b"UI")
    if tag < 0: return data
    new = SYNTAXES[int(rng.integers(len(SYNTAXES)))]
    new += b"\0"*(len(new) % 2)
    size = int.from_bytes(data[tag + 6:tag + 8], "little")
    struct.pack_into("<I", data, 140, int.from_bytes(data[140:144], "little") + len(new) - size & 0xFFFFFFFF)
    return data[:tag + 6] + struct.pack("<H", len(new)) + new + data[tag + 8 + size:]


MUTATIONS = (_flip, _flip, _byte, _byte, _cut, _tail, _vr, _length, _length, _tag, _value, _value, _resized, _resized, _double, _drop, _insert, _insert, _syntax)


def mutate(data, rng):
    """The bytes of a DICOM file with one to four faults, most of them in its header; `rng` a numpy Generator."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if len(out) < 200: break
        out = bytearray(MUTATIONS[int(rng.integers(len(MUTATIONS)))](out, rng))
    return bytes(out)


FIELDS = ((40, "h"), (42, "h"), (44, "h"), (46, "h"), (48, "h"), (70, "h"), (72, "h"), (76, "f"), (80, "f"), (84, "f"), (88, "f"), (92, "f"), (108, "f"), (112, "f"), (116, "f"),
          (123, "B"), (252, "h"), (254, "h"), (256, "f"), (260, "f"), (264, "f"), (268, "f"), *((280 + 4*k, "f") for k in range(12)))  # of a NIfTI header
SHORTS, FLOATS = (0, -1, 1, 2, 3, 4, 8, 16, 63, 64, 512, 2048, 2049, 32767, -32768), (0, -1, 1, np.nan, np.inf, -np.inf, 1e-6, .01, .5, 4, 100, 1e6, 3e38, 1e-40, 352, 351, 344)


def mutate_nifti(data, rng):
    """The bytes of a NIfTI file, plain or packed, with one to four faults in its header, and sometimes torn or changed anywhere."""
    packed_file = data[:2] == b"\x1f\x8b"
    out = bytearray(gzip.decompress(data) if packed_file else data)
    for _ in range(int(rng.integers(1, 5))):
        at, form = FIELDS[int(rng.integers(len(FIELDS)))]
        values = FLOATS if form == "f" else SHORTS
        value = values[int(rng.integers(len(values)))]
        struct.pack_into("<" + form, out, at, value if form != "B" else value & 0xFF)
    if rng.random() < .2: out[int(rng.integers(min(352, len(out))))] = int(rng.integers(256))
    out = bytearray(gzip.compress(bytes(out), 1)) if packed_file else out
    if rng.random() < .2: out = out[:int(rng.integers(1, len(out)))]
    if rng.random() < .2: out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


# reading in a process of its own

def _memory(name):
    """A line of /proc/self/status in MB."""
    with open("/proc/self/status") as file: return next(int(line.split()[1])/1024 for line in file if line.startswith(name + ":"))


def _bound(megabytes, seconds):
    """Let this process take no more memory or processor time than so much beyond what it has."""
    size = int((_memory("VmSize") + megabytes)*MIB)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    used = int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (used, used))


def faults_of(path, most=2):
    """Read a file and its first images: (rows, what is wrong with the reader)."""
    rows = read_any(path)
    wrong = [f"{row['used']} with the reason {row['reason']!r}" for row in rows if row["used"] != (row["reason"] is None) or row["reason"] not in (None, *REASONS)]
    if not rows: wrong.append("no row")
    for row in [row for row in rows if row["used"]][:most]:
        try: hu = load_pixels(row)
        except StudyError: continue
        if hu.shape != (row["rows"], row["columns"]) or not np.isfinite(hu).all() or hu.min() < -1024: wrong.append(f"{row['rows']} x {row['columns']} images of shape {hu.shape}")
    return rows, wrong


def attack(paths, megabytes=300):
    """Read each file in a fork that may take so much memory; prints a line of JSON for each: `file reasons shapes seconds mb wrong died`."""
    for path in paths:
        there, here = os.pipe()
        if not (child := os.fork()):
            told = {"file": str(path)}
            try:
                with open("/proc/self/clear_refs", "w") as file: file.write("5")  # the peak begins anew
                before, start = _memory("VmHWM"), time.process_time()
                _bound(megabytes, 10)
                rows, wrong = faults_of(path)
                told |= dict(seconds=time.process_time() - start, mb=_memory("VmHWM") - before, wrong=wrong, reasons=sorted({str(row["reason"]) for row in rows}), rows=len(rows))
            except BaseException as e: told |= dict(wrong=[f"{type(e).__name__}: {e}"])
            os.write(here, json.dumps(told).encode())
            os._exit(0)
        os.close(here)
        with os.fdopen(there, "rb") as pipe: said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(said.decode() if said else json.dumps({"file": str(path), "wrong": [f"died of signal {status & 127}"]}), flush=True)


PACKINGS = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless,
            "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")


def seeds(folder):
    """The good files that are mutated: (bytes, function that mutates them)."""
    folder.mkdir()
    hu = np.full((66, 64), -1000, np.int16)
    hu[20:50, 20:44] = np.arange(24)
    good = [write_image(folder/f"{n}.dcm", image_dataset(5., hu, study="fuzz"), syntax) for n, syntax in enumerate(PACKINGS)]
    good += [at/"many.dcm" for at in make_odd(folder, ("enhanced_frames", "enhanced_packed", "converted_enhanced")).values()]
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.stack([hu]*4, 2), np.diag([-2.5, -2.5, 5, 1])), folder/name)
        good.append(folder/name)
    return [(path.read_bytes(), mutate_nifti if ".nii" in path.name else mutate) for path in good]


def fuzz(folder, count, seed, megabytes=1024, batch=250):
    """Read so many mutated files; prints JSON: `files used reasons slowest mb wrong`. The same seed makes the same files."""
    good, wrong, slowest, reasons = seeds(folder/"seeds"), [], (0., -1), {}
    for data, _ in good: (folder/"good").write_bytes(data); faults_of(folder/"good")  # loads what is loaded once
    with open("/proc/self/clear_refs", "w") as file: file.write("5")
    before = _memory("VmHWM")
    _bound(megabytes, 600)
    signal.setitimer(signal.ITIMER_PROF, 0)
    for first in range(0, count, batch):
        table = []
        for n in range(first, min(first + batch, count)):
            rng = np.random.default_rng([seed, n])
            data, change = good[n % len(good)]
            path = folder/f"{n}.bin"
            path.write_bytes(change(data, rng))
            (folder/"at").write_text(str(n))  # what to look at if this process dies
            signal.setitimer(signal.ITIMER_PROF, 20)
            start = time.process_time()
            try:
                rows, faults = faults_of(path)
                wrong += [f"file {n}: {fault}" for fault in faults]
                table += rows
            except Exception as e: wrong.append(f"file {n}: {type(e).__name__}: {e}")
            slowest = max(slowest, (time.process_time() - start, n))
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            scan = clean_series(typed(table))
            series_flags(scan)
            wrong += [f"files from {first}: {int(odd)} rows whose reason does not fit" for odd in [(scan.used != scan.reason.isna()).sum()] if odd]
            for reason, n in scan.reason.fillna("used").value_counts().items(): reasons[reason] = reasons.get(reason, 0) + int(n)
        except Exception as e: wrong.append(f"files from {first} together: {type(e).__name__}: {e}")
        for path in folder.glob("*.bin"): path.unlink()
    print(json.dumps(dict(files=count, rows=reasons, slowest=slowest, mb=_memory("VmHWM") - before, wrong=wrong)))
