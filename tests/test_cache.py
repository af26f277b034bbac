"""A cache is whole or not there: killed, raced for, out of space or damaged, it never gives other pixels than an undisturbed one."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich_study import cache as cache_module
from ich_study.cache import PRIVATE, build_cache, cache_folder, load_cache, verify_cache
from ich_study.cli import main
from ich_study.cohort import index_folder, save_index
from ich_study.engine import Engine, Places
from ich_study.masks import load_masks
from ich_study.odd import write_series
from ich_study.paths import Paths
from ich_study.phantom import write_cohort
from ich_study.recipes import Recipe, make_recipe
from ich_study.schema import StudyError

ROOT = Path(__file__).resolve().parent.parent
SIZE = 64
PAPER = make_recipe("paper", SIZE)
pytestmark = pytest.mark.xdist_group("cache")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Index of two synthetic patients with masks, and its file."""
    folder = tmp_path_factory.mktemp("cohort")
    made = write_cohort(folder/"phantom", patients=2, seed=17, progress=False)
    index, _ = index_folder(made/"dicom", "phantom", labels=made/"labels.csv", key=b"test", progress=False)
    save_index(index, folder/"index.parquet")
    return index, folder/"index.parquet"


@pytest.fixture(scope="module")
def undisturbed(cohort, tmp_path_factory):
    return build_cache(cohort[0], PAPER, Paths(tmp_path_factory.mktemp("undisturbed")), workers=1, progress=False)


def contents(cache):
    """Every file of a cache and of its masks, byte for byte."""
    folder = cache if isinstance(cache, Path) else cache.folder
    return {f"{d.name}/{f.name}": f.read_bytes() for d in (folder, folder.with_name(f"masks-{SIZE}")) for f in sorted(d.iterdir())}


def script(body, root, index, **options):
    """A process that builds the cache with chunks of four images, after `body` has changed something."""
    head = """
        import os, signal, sys, time
        from pathlib import Path
        from ich_study import cache as c
        from ich_study.cohort import load_index
        from ich_study.paths import Paths
        from ich_study.recipes import make_recipe
        c.CHUNK, WORKERS = 4, 1
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without job control hands down that it is ignored
    """
    tail = f"c.build_cache(load_index({str(index)!r}), make_recipe('paper', {SIZE}), Paths(Path({str(root)!r})), WORKERS)"
    text = textwrap.dedent(head) + textwrap.dedent(body) + "\nif __name__ == '__main__':\n    " + tail + "\n"
    (Path(root)/f"build{len(list(Path(root).glob('build*.py')))}.py").write_text(text)
    file = max(Path(root).glob("build*.py"), key=lambda f: f.stat().st_mtime_ns)
    return subprocess.Popen([sys.executable, str(file)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **options)


def finished(root):
    """Images of the unfinished folder that the ledger has."""
    part = next(p for p in Path(root).glob("cache/*/.*.part") if (p/"images.npy").is_file())
    return int(np.count_nonzero(np.load(part/"digests.npy")))


KILL = """
    WORKERS = {workers}
    class bar(c.tqdm):
        done = 0
        def update(self, n):
            bar.done += self.desc.startswith("images")
            if bar.done == 3: os.kill(os.getpid(), signal.SIG{signal})
    c.tqdm = bar
"""


# ---- cut off

@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_that_was_killed_goes_on_to_the_same_bytes(workers, cohort, undisturbed, tmp_path, monkeypatch):
    process = script(KILL.format(workers=workers, signal="KILL"), tmp_path, cohort[1])
    assert process.wait(120) == -signal.SIGKILL, process.stderr.read()
    time.sleep(.5*(workers > 1))  # what the orphaned workers have begun
    kept = finished(tmp_path)
    assert 8 <= kept < len(undisturbed.images) and not list(tmp_path.glob(f"cache/*/{PAPER.hash}"))
    made, real = [], cache_module.prepare_rows
    monkeypatch.setattr(cache_module, "prepare_rows", lambda rows, *a: made.extend(rows) or real(rows, *a))
    monkeypatch.setattr(cache_module, "CHUNK", 4)
    cache = build_cache(cohort[0], PAPER, Paths(tmp_path), workers=1, progress=False)
    assert contents(cache) == contents(undisturbed) and len(made) <= len(cache.images) - kept


def test_control_c_keeps_what_is_finished(cohort, undisturbed, tmp_path):
    process = script(KILL.format(workers=1, signal="INT"), tmp_path, cohort[1])
    assert process.wait(60) != 0 and "KeyboardInterrupt" in process.stderr.read()
    assert 8 <= finished(tmp_path) < len(undisturbed.images)
    assert contents(build_cache(cohort[0], PAPER, Paths(tmp_path), workers=2, progress=False)) == contents(undisturbed)


def test_a_finished_chunk_with_other_bytes_is_made_again(cohort, undisturbed, tmp_path):
    script(KILL.format(workers=1, signal="KILL"), tmp_path, cohort[1]).wait(60)
    images = next(tmp_path.glob(f"cache/*/.{PAPER.hash}.*.part/images.npy"))
    with open(images, "r+b") as file: file.seek(128 + 2*SIZE**2); file.write(os.urandom(50))
    assert contents(build_cache(cohort[0], PAPER, Paths(tmp_path), workers=1, progress=False)) == contents(undisturbed)


def test_an_unfinished_folder_of_another_version_is_thrown_away(cohort, undisturbed, tmp_path, monkeypatch):
    folder = cache_folder(cohort[0], PAPER, Paths(tmp_path))
    with monkeypatch.context() as older:
        older.setattr(cache_module, "_made_by", lambda: undisturbed.recipe | {"versions": {"numpy": "1"}})
        older.setattr(cache_module, "_seal", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): build_cache(cohort[0].assign(mask_file=None), PAPER, Paths(tmp_path), workers=1, progress=False)
    old, = folder.parent.glob(f".{PAPER.hash}.*.part")
    for file in old.glob("*.npy"): file.write_bytes(file.read_bytes()[:-64] + bytes(64))
    cache = build_cache(cohort[0], PAPER, Paths(tmp_path), workers=1, progress=False)
    assert not old.exists() and contents(cache) == contents(undisturbed)


# ---- two at once

def test_two_processes_want_the_same_cache_and_one_makes_it(cohort, undisturbed, tmp_path):
    body = f"""
        made, real = [], c.prepare_rows
        def prepare_rows(rows, *a):
            while not Path({str(tmp_path/'go')!r}).exists(): time.sleep(.01)
            made.extend(rows)
            return real(rows, *a)
        c.prepare_rows = prepare_rows
        import atexit
        atexit.register(lambda: print(len(made)))
    """
    first = script(body, tmp_path, cohort[1])
    while not list(tmp_path.glob(f"cache/*/.{PAPER.hash}.*.part/digests.npy")): assert first.poll() is None; time.sleep(.02)
    second = script(body, tmp_path, cohort[1])
    assert any("waiting for it" in line for line in second.stderr)
    (tmp_path/"go").touch()
    assert first.wait(60) == 0 == second.wait(60)
    assert [int(p.stdout.read()) for p in (first, second)] == [len(undisturbed.images), 0]
    assert contents(cache_folder(cohort[0], PAPER, Paths(tmp_path))) == contents(undisturbed)


# ---- damage

@pytest.fixture
def copy(undisturbed, tmp_path):
    shutil.copytree(undisturbed.folder.parent, tmp_path/"copy")
    return load_cache(tmp_path/"copy"/undisturbed.folder.name)


@pytest.mark.parametrize("file, row", [("images", 5), ("masks", 20), ("sums", 11)])
def test_a_flipped_bit_is_found_and_its_image_is_named(file, row, copy):
    folder = copy.folder.with_name(f"masks-{SIZE}") if file == "masks" else copy.folder
    array = np.lib.format.open_memmap(folder/f"{file}.npy", mode="r+")
    array[row].reshape(-1).view(np.uint8)[-1] ^= 1
    array.flush()
    with pytest.raises(StudyError, match=rf"1 of {len(copy.rows)} .* row {row} \(image {copy.rows.image[row]}\)"): verify_cache(copy.folder)
    with pytest.raises(StudyError, match="changed"): load_cache(copy.folder, verify=True)
    assert load_cache(copy.folder).rows.equals(copy.rows)


def test_a_whole_cache_is_found_whole(copy):
    assert verify_cache(copy.folder) == len(copy.rows)


@pytest.mark.parametrize("file", ["images.npy", "sums.npy", "digests.npy", "rows.parquet", "recipe.json", f"../masks-{SIZE}/masks.npy", f"../masks-{SIZE}/masked.npy"])
def test_a_file_that_was_cut_short_or_lost_is_an_error_in_words(file, copy):
    whole = (copy.folder/file).read_bytes()
    for spoil in (lambda f: f.write_bytes(whole[:len(whole)//2]), lambda f: f.unlink()):
        spoil(copy.folder/file)
        with pytest.raises(StudyError, match="damaged|no finished cache"): load_cache(copy.folder)


@pytest.mark.parametrize("file", ["digests.npy", "rows.parquet"])
def test_a_changed_byte_elsewhere_is_found(file, copy):
    data = bytearray((copy.folder/file).read_bytes())
    data[len(data)//2 + 3] ^= 1
    (copy.folder/file).write_bytes(data)
    with pytest.raises(StudyError, match="damaged"): verify_cache(copy.folder)


def test_a_cache_of_other_code_is_kept_if_it_agrees_and_refused_if_not(cohort, undisturbed, tmp_path, monkeypatch):
    index, paths = cohort[0], Paths(tmp_path)
    made = build_cache(index, PAPER, paths, workers=1, progress=False)
    pixels, newer = (made.folder/"images.npy").read_bytes(), {"versions": made.recipe["versions"] | {"numpy": "9.9"}, "code": "other"}
    monkeypatch.setattr(cache_module, "_made_by", lambda: newer)
    assert build_cache(index, PAPER, paths, progress=False).recipe["agrees"] and (made.folder/"images.npy").read_bytes() == pixels
    monkeypatch.setattr(cache_module, "_made_by", lambda: newer | {"code": "wrong"})
    monkeypatch.setattr(cache_module, "prepare_rows", lambda rows, recipe, out, *a: out.fill(1) or [])
    with pytest.raises(StudyError, match="numpy 9.9.*delete the folder"): build_cache(index, PAPER, paths, progress=False)


# ---- what is in it

def test_recipe_json_makes_the_cache_again(cohort, undisturbed, tmp_path):
    recipe = Recipe.from_dict(json.loads((undisturbed.folder/"recipe.json").read_text()))
    assert contents(build_cache(cohort[0], recipe, Paths(tmp_path), workers=2, progress=False)) == contents(undisturbed)


def test_rows_know_no_file_names(cohort, undisturbed):
    assert not set(PRIVATE) & set(undisturbed.rows) and undisturbed.rows.image.tolist() == cohort[0][cohort[0].used].image.tolist()
    for name, data in contents(undisturbed).items():
        if not name.endswith(".npy"): assert b"IM00" not in data and b".nii" not in data, name


def test_recipes_with_the_same_steps_share_their_pixels(cohort, undisturbed):
    paths = Paths(undisturbed.folder.parents[2])
    other = build_cache(cohort[0], make_recipe("no_augment", SIZE), paths, progress=False)
    assert other.folder == undisturbed.folder and other.recipe["name"] == "no_augment" and not other.recipe["augment"]
    assert other.fingerprint == undisturbed.fingerprint


@pytest.mark.parametrize("name", ["paper", "three_windows"])
def test_sums_are_those_of_numpy(name, cohort, tmp_path):
    cache = build_cache(cohort[0], make_recipe(name), Paths(tmp_path), workers=1, progress=False)
    grey = cache.images.astype(np.int64)
    assert np.array_equal(cache.sums, np.stack([grey.sum((1, 2)), (grey**2).sum((1, 2))], -1))


def test_neighbours_across_chunks_are_those_of_the_series(cohort, tmp_path, monkeypatch):
    index, recipe = cohort[0], make_recipe("neighbours", SIZE)
    whole = build_cache(index, recipe, Paths(tmp_path/"a"), workers=1, progress=False)
    monkeypatch.setattr(cache_module, "CHUNK", 5)
    assert np.array_equal(build_cache(index, recipe, Paths(tmp_path/"b"), workers=1, progress=False).images, whole.images)
    plain = build_cache(index, make_recipe("plain", SIZE), Paths(tmp_path/"a"), workers=1, progress=False)
    series = plain.rows.series.tolist()
    inner = [i for i in range(1, len(series) - 1) if series[i - 1] == series[i] == series[i + 1]]
    assert len(inner) == len(series) - 4
    for i in inner: assert np.array_equal(whole.images[i], np.concatenate(plain.images[i - 1:i + 2], -1))


# ---- masks

def volumes(cache):
    """Millilitres of each image by its small mask."""
    r = cache.rows
    return (cache.masks/255).sum((1, 2))*(r.row_mm*r["rows"]/SIZE)*(r.col_mm*r["columns"]/SIZE)*r.gap_mm/1000


def test_masks_are_block_means_of_the_large_ones_and_hold_their_blood(cohort, undisturbed):
    index = cohort[0][cohort[0].used].reset_index(drop=True)
    assert undisturbed.masked.all() and undisturbed.masks.any()
    for _, rows in index.groupby("series"):
        some = rows[rows["any"]]
        if not len(some): continue
        large = np.minimum(load_masks(some)[0].sum(-1), 1)
        small = large.reshape(len(some), SIZE, 512//SIZE, SIZE, 512//SIZE).mean((2, 4))*255
        assert np.abs(small - undisturbed.masks[some.index]).max() <= .501
    given, ours = undisturbed.rows.blood_ml, volumes(undisturbed)
    assert np.abs(ours - given).max() < .06 and abs(ours.sum()/given.sum() - 1) < .01 and given.sum() > 1


def test_without_a_mask_an_image_is_known_only_if_it_is_free_of_blood(cohort, tmp_path):
    index = cohort[0].copy()
    bleeding = index.index[index["any"].fillna(False)]
    lost, unsaid = bleeding[::2], index.index[~index["any"].fillna(False)][::3]
    index.loc[[*lost, *unsaid], ["mask_file", "mask_kind"]] = None
    index.loc[[*lost, *unsaid], "mask_index"] = pd.NA
    index.loc[unsaid[::2], "any"] = pd.NA
    cache = build_cache(index, make_recipe("plain", SIZE), Paths(tmp_path), workers=1, progress=False)
    unknown = np.zeros(len(index), bool)
    unknown[[*lost, *unsaid[::2]]] = True
    assert np.array_equal(~cache.masked, unknown[index.used]) and not cache.masks[~cache.masked].any() and cache.masks.any()


def test_neighbours_reach_over_the_ends_of_chunks_and_of_the_table():
    table = pd.DataFrame({"series": ["a"]*7, "image": range(7)})
    with pytest.MonkeyPatch.context() as small:
        small.setattr(cache_module, "CHUNK", 3)
        for beside in (0, 1, 2):
            chunks = list(cache_module._chunks(table, beside))
            assert [r["image"] for _, rows, *_ in chunks for r in rows] == list(range(7)) and [start for start, *_ in chunks] == [0, 3, 6]
            for start, rows, before, after in chunks:
                name = lambda found: [r.get("image") for r in found]
                assert name(before) == [k if k >= 0 else None for k in range(start - beside, start)]
                assert name(after) == [k if k < 7 else None for k in range(start + len(rows), start + len(rows) + beside)]


def test_a_data_set_without_masks_has_none(cohort, tmp_path):
    cache = build_cache(cohort[0].assign(mask_file=None, mask_kind=None), make_recipe("plain", SIZE), Paths(tmp_path), workers=1, progress=False)
    assert cache.masks is None and cache.masked is None and not list(tmp_path.glob("cache/*/masks*"))


def test_masks_are_made_once_for_all_recipes(cohort, undisturbed, monkeypatch):
    monkeypatch.setattr(cache_module, "load_masks", None)
    paths = Paths(undisturbed.folder.parents[2])
    other = build_cache(cohort[0], make_recipe("plain", SIZE), paths, workers=1, progress=False)
    assert other.folder != undisturbed.folder and np.array_equal(other.masks, undisturbed.masks)


def test_half_a_mask_of_subtypes_is_no_known_mask():
    rows = pd.DataFrame({s: pd.array([False, None, False], "boolean") for s in cache_module.SUBTYPES})
    rows.loc[2, "subdural"] = True
    assert cache_module._known(rows, ("intraparenchymal", "intraventricular")).tolist() == [True, False, False]
    assert cache_module._known(rows, ("any",)).all() and cache_module._known(rows, cache_module.SUBTYPES).all()


# ---- what goes wrong on the way

def test_too_little_space_is_said_before_the_work_begins(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
    with pytest.raises(StudyError, match=r"need .* GB more, but 1e-05 GB are free .* ICH_STUDY_ROOT"):
        build_cache(cohort[0].assign(mask_file=None), PAPER, Paths(tmp_path), workers=1, progress=False)


def test_a_disk_that_fills_up_loses_nothing(cohort, undisturbed, tmp_path, monkeypatch):
    real, chunks = cache_module._put, []
    def put(file, start, rows):
        chunks.append(start)
        if len(chunks) > 20: raise OSError(errno.ENOSPC, "No space left on device")
        real(file, start, rows)
    monkeypatch.setattr(cache_module, "CHUNK", 4)
    with monkeypatch.context() as full:
        full.setattr(cache_module, "_put", put)
        with pytest.raises(StudyError, match="No space left on device; it needs .* GB.*kept"): build_cache(cohort[0], PAPER, Paths(tmp_path), workers=1, progress=False)
    assert list(tmp_path.glob("cache/*/.*.part"))
    assert contents(build_cache(cohort[0], PAPER, Paths(tmp_path), workers=1, progress=False)) == contents(undisturbed)


def test_a_folder_that_cannot_be_written_is_an_error_in_words(cohort, tmp_path):
    (tmp_path/"cache").write_text("a file where the folder should be")
    with pytest.raises(StudyError, match="cannot write"): build_cache(cohort[0], PAPER, Paths(tmp_path), workers=1, progress=False)


def test_faulty_images_are_named_and_finished_chunks_kept(cohort, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "CHUNK", 4)
    shutil.copytree(Path(cohort[0].file[0]).parents[1], tmp_path/"dicom")
    index = cohort[0].assign(file=cohort[0].file.str.replace(str(Path(cohort[0].file[0]).parents[1]), str(tmp_path/"dicom")))
    bad = [0, 9, 21, 30]
    whole = {i: Path(index.file[i]).read_bytes() for i in bad}
    for i in bad: Path(index.file[i]).write_bytes(b"no image")
    with pytest.raises(StudyError) as caught: build_cache(index, PAPER, Paths(tmp_path), workers=2, progress=False)
    said = str(caught.value)
    assert said.startswith("4 of ") and sum(index.image[i] in said for i in bad) == 3 and str(tmp_path) not in said and "IM00" not in said
    assert finished(tmp_path) == len(index) - 16
    for i in bad: Path(index.file[i]).write_bytes(whole[i])
    assert contents(build_cache(index, PAPER, Paths(tmp_path), workers=1, progress=False)) == contents(undisturbed)


def test_a_faulty_mask_names_its_image_and_no_file(cohort, tmp_path):
    spoilt = tmp_path/"Smith.nii.gz"
    spoilt.write_bytes(Path(cohort[0].mask_file.dropna().iloc[0]).read_bytes()[:5000])
    index = cohort[0].assign(mask_file=cohort[0].mask_file.where(cohort[0].series != cohort[0].series[0], str(spoilt)))
    with pytest.raises(StudyError) as caught: build_cache(index, PAPER, Paths(tmp_path), workers=1, progress=False)
    assert cohort[0].image[0] in str(caught.value) and "Smith" not in str(caught.value) and str(tmp_path) not in str(caught.value)


# ---- scale

MEMORY = """
    import resource, pandas as pd
    many = int(sys.argv[1])
    few = load_index({index!r})
    index = pd.concat([few]*(many//len(few) + 1), ignore_index=True).iloc[:many]
    index["image"] = [f"i{{i}}" for i in range(many)]
    if __name__ == "__main__":
        cache = c.build_cache(index, make_recipe("plain", 128), Paths(Path({root!r})), 1, progress=False)
        print(len(cache.images), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        sys.exit()
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    (tmp_path/"dicom").mkdir()
    write_series(tmp_path/"dicom", positions=np.arange(0, 100, 5.))
    index, _ = index_folder(tmp_path/"dicom", "odd", key=b"test", screen=False, progress=False)
    save_index(index[index.used], tmp_path/"index.parquet")
    kilobytes = {}
    for many in (1000, 10_000):
        process = script(MEMORY.format(index=str(tmp_path/"index.parquet"), root=str(tmp_path)).replace("sys.argv[1]", str(many)), tmp_path, tmp_path/"index.parquet")
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-2000:]
        n, kilobytes[many] = map(int, out.split())
        assert n == many
    grown = (kilobytes[10_000] - kilobytes[1000])*1024
    assert grown < 9000*2500, f"{grown/9000:.0f} bytes an image; an image has {128*128}"  # rows of the index take some hundred bytes each


def test_dask_workers_make_the_same_bytes(cohort, undisturbed, tmp_path, monkeypatch, capsys):
    from distributed import LocalCluster
    monkeypatch.setattr(cache_module, "CHUNK", 8)
    monkeypatch.setenv("ICH_STUDY_ROOT", str(tmp_path))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path/"dask")) as cluster:
        assert main(["cache", str(cohort[1]), "--recipe", "paper", "--size", str(SIZE), "--verify", "--scheduler", cluster.scheduler_address]) == 0
        with Engine(Places(scheduler=cluster.scheduler_address)) as engine, pytest.raises(StudyError, match="none offers a slot"): next(engine.run([(int, ("1",), {})]))
    assert f"{len(undisturbed.images)} of them with the bytes they were made with" in capsys.readouterr().out
    assert contents(cache_folder(cohort[0], PAPER, Paths(tmp_path))) == contents(undisturbed)


# ---- the command

def test_a_recipe_printed_by_the_command_makes_its_cache(cohort, undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ICH_STUDY_ROOT", str(tmp_path))
    assert main(["recipes", "--json", "plain"]) == 0
    (tmp_path/"mine.json").write_text(capsys.readouterr().out)
    recipe = json.loads((tmp_path/"mine.json").read_text())
    recipe["name"], recipe["steps"] = "mine", [*recipe["steps"], ["shrink", {"size": 32}]]
    (tmp_path/"mine.json").write_text(json.dumps(recipe))
    assert main(["cache", str(cohort[1]), "--recipe", str(tmp_path/"mine.json"), "--workers", "1"]) == 0
    assert "32 x 32 x 1" in capsys.readouterr().out
    for wrong, said in ((["--size", "64"], "not 64"), (["--recipe", "papr"], "paper"), (["--recipe", str(tmp_path/"none.json")], "no recipe")):
        argv = ["cache", str(cohort[1]), "--recipe", str(tmp_path/"mine.json"), *wrong]
        assert main(argv) == 1 and said in capsys.readouterr().err
