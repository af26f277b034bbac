"""Sweeps that are disturbed: processes killed, a scheduler lost, a disk filled, a notebook that raises or hangs. Each is resumed, and then
has the tables of a sweep that nobody disturbed."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from processes import ROOT, call, call_here, command, environment_of, free_port, papermill, until

from ich_study.engine import Engine, Places
from ich_study.paths import Paths, is_held, save_json
from ich_study.study import list_runs, load_study, run_fingerprint, survey
from ich_study.sweep import plan, run_folder, run_missing, status, train_missing

STUDY = """name: drill
dataset: {kind: phantom, patients: 6, seed: 5}
models: [bhcnet]
recipes: [plain]
folds: 2
seeds: [17]
parameters: {epochs: 12}
accept_classes: [epidural, intraparenchymal, intraventricular, subarachnoid, subdural]
"""
pytestmark = pytest.mark.xdist_group("sweep")


# ---- a study root, and commands in it

class Place:
    """A study root with a study of two runs; its first run alone where only one is disturbed."""

    def __init__(self, folder, only=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.root, self.file = folder, folder/"drill.yml"
        self.file.write_text(STUDY + ("" if only is None else f"include: [{{fold: {only}}}]\n"))
        self.study, self.paths = load_study(self.file), Paths(folder)
        self.runs = [run_folder(self.study, r, self.paths) for r in list_runs(self.study)]

    def start(self, *argv):
        return subprocess.Popen(command("sweep", self.file, *argv), cwd=self.root, env=environment_of(self.root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def call(self, *argv, code=0):
        done = call(*argv, root=self.root)
        assert done.returncode == code, done.stdout + done.stderr[-3000:]
        return done

    def sweep(self, *argv, code=0): return self.call("sweep", self.file, *argv, code=code)

    def tables(self): return {f"{r.name}/{t}": pd.read_parquet(r/f"{t}.parquet") for r in self.runs for t in ("predictions", "volumes")}


def ended(process, code):
    out, err = process.communicate(timeout=600)
    assert process.returncode == code and "Traceback" not in err, (process.returncode, out, err[-3000:])
    return out, err


def at_work(run):
    """What the note in the folder of a run, or of a study, says while it is being executed."""
    try: return json.loads((run/"running.json").read_text())
    except (OSError, ValueError): return None


def in_training(run):
    """The same, once an epoch of its training has been saved."""
    return (run/"training").is_dir() and any((run/"training").iterdir()) and at_work(run)


def kernel_of(pid):
    """The Jupyter kernel that a worker has started."""
    try: return next((p for p in psutil.Process(pid).children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())), None)
    except psutil.Error: return None


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The study, swept without a disturbance."""
    place = Place(tmp_path_factory.mktemp("calm"))
    assert "2 runs finished now, 0 kept" in place.sweep().stdout
    return place


def beside(calm, folder, only=None):
    """A root with the same data, images and folds, and no run."""
    place = Place(folder, only)
    for part in ("data", "cache"): shutil.copytree(calm.root/part, folder/part)
    (folder/"runs"/"drill").mkdir(parents=True)
    shutil.copy(calm.root/"runs"/"drill"/"folds.csv", folder/"runs"/"drill")
    return place


def same(place, calm):
    wanted = calm.tables()
    for name, table in place.tables().items(): pd.testing.assert_frame_equal(table, wanted[name], check_exact=True)
    assert set(status(place.study, place.root).state) == {"done"} and not list(place.root.rglob("*.part*")) and not list((place.root/"runs").rglob("training"))


# ---- faults

def test_killed_kernels_and_workers_and_a_second_sweep(calm, tmp_path):
    """A kernel dies and no further try is allowed; then a worker dies, and the same sweep goes on from the last epoch."""
    place = beside(calm, tmp_path/"root", only=0)
    [run] = place.runs
    first = place.start("--retries", "0")
    kernel = kernel_of(until(lambda: in_training(run))["pid"])
    kernel.suspend()  # so that it is still in training below
    second = place.sweep(code=1)
    assert re.fullmatch(rf"ich-study: .*running drill \(process {first.pid} on {re.escape(socket.gethostname())}.*\n", second.stderr), second.stderr
    assert "a sweep is at work: process" in (said := place.call("status", place.file).stdout) and " running " in said, said
    kernel.kill()
    out, _ = ended(first, 1)
    assert "failed: bhcnet, fold 0" in out and "cause: killed" in out and "1 failed" in out and (run/"failed.ipynb").is_file()
    cells = [c for c in nbformat.read(run/"failed.ipynb", 4).cells if c.cell_type == "code"]
    assert any(c.outputs for c in cells) and not cells[-1].outputs  # what was reached is there
    assert "failed" in place.call("status", place.file).stdout

    third = place.start()
    who = until(lambda: in_training(run))
    os.kill(who["pid"], signal.SIGKILL)
    out, _ = ended(third, 0)
    assert "1 runs finished now" in out
    same(place, calm)


@contextmanager
def small_disk(folder, megabytes):
    """A file system of this size, and a way to enlarge it; None where none may be mounted."""
    folder.mkdir()
    mount = lambda *options: subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "ich_study", str(folder)], capture_output=True)
    if not shutil.which("mount") or mount(f"size={megabytes}m").returncode: yield None
    else:
        try: yield lambda more: mount("remount", f"size={more}m")
        finally: subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_hang_a_notebook_that_raises_and_a_full_disk(calm, tmp_path):
    """One after the other they befall the same run, which then has the tables of one that nothing befell."""
    size = sum(f.stat().st_size for part in ("data", "cache") for f in (calm.root/part).rglob("*") if f.is_file())
    with small_disk(tmp_path/"root", round(size*1.02/1e6) + 8) as enlarge:
        place = beside(calm, tmp_path/"root", only=1)
        [run] = place.runs
        sweep = place.start("--timeout", "15")
        os.kill(until(lambda: (who := at_work(run)) and kernel_of(who["pid"])).pid, signal.SIGSTOP)
        out, _ = ended(sweep, 1)
        assert "cause: time" in out and "it took longer than 15 s and was ended" in out, out

        (run/"history.csv").mkdir(parents=True)
        out = place.sweep(code=1).stdout
        assert "cause: error" in out and "history.csv" in out and re.search(r"cell \d+: ", out) and str(run/"failed.ipynb") in out, out
        journal = (place.root/"runs/drill/sweep.json").read_text()
        assert str(tmp_path) not in journal and json.loads(journal)["runs"]["drill/plain/bhcnet/base/seed17/fold1"]["cause"] == "error"
        (run/"history.csv").rmdir()

        if enlarge:
            (place.root/"filled").write_bytes(bytes(max(0, shutil.disk_usage(place.root).free - 300_000)))  # a model needs more
            out = place.sweep(code=1).stdout
            assert "1 failed" in out and "cause: disk" in out and "o space left" in out, out
            assert not (run/"run.json").exists() and not list(place.root.rglob("*.part*"))
            (place.root/"filled").unlink()
            enlarge(round(size/1e6) + 60)
        assert "1 runs finished now" in place.sweep().stdout
        same(place, calm)


# ---- workers elsewhere

@contextmanager
def hosts():
    """An address for a scheduler, and what to put before commands of two workers: two network namespaces of their own where that is allowed."""
    ip, mark = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"), f"ich{os.getpid() % 100000}"
    run = lambda *argv: ip is not None and subprocess.run([ip, *argv], capture_output=True).returncode == 0
    with ExitStack() as stack:
        stack.callback(run, "link", "del", mark)
        there = run("link", "add", mark, "type", "bridge") and run("addr", "add", "10.213.77.1/24", "dev", mark) and run("link", "set", mark, "up")
        for i in (0, 1) if there else ():
            space, ends = f"{mark}n{i}", (f"{mark}a{i}", f"{mark}b{i}")
            stack.callback(run, "netns", "del", space)
            there = there and run("netns", "add", space) and run("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]) and run("link", "set", ends[0], "master", mark, "up")
            there = there and run("link", "set", ends[1], "netns", space) and run("-n", space, "addr", "add", f"10.213.77.{i + 2}/24", "dev", ends[1])
            there = there and run("-n", space, "link", "set", ends[1], "up") and run("-n", space, "link", "set", "lo", "up")
        yield ("10.213.77.1", [[ip, "netns", "exec", f"{mark}n{i}"] for i in (0, 1)]) if there else ("127.0.0.1", [[], []])


@contextmanager
def dask(folder, address, port, before):
    """A scheduler and two workers, started as a user starts them."""
    tool, environment, started = str(Path(sys.executable).with_name("dask")), os.environ | {"PYTHONPATH": str(ROOT)}, []
    def start(name, *argv):
        with open(folder/f"{name}.log", "ab") as log: started.append(subprocess.Popen([*map(str, argv)], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True))
        return started[-1]
    try:
        scheduler = start("scheduler", tool, "scheduler", "--host", address, "--port", port, "--no-dashboard")
        for i, prefix in enumerate(before):
            start(f"worker{i}", *prefix, tool, "worker", f"tcp://{address}:{port}", "--nthreads", 1, "--resources", "slot=1", "--no-dashboard", "--local-directory", folder/f"w{i}")
        yield scheduler
    finally:
        for p in started:
            try: os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError: pass
            p.wait(10)


def images(place, *where):
    """Bytes of the images of another recipe, made on these workers."""
    place.call("cache", place.root/"cache/drill/index.parquet", "--recipe", "paper", "--size", "32", *where)
    [made] = [f.parent for f in (place.root/"cache").rglob("recipe.json") if json.loads(f.read_text())["size"] == 32]
    return {f.name: f.read_bytes() for f in sorted(made.glob("*.npy"))}


def test_workers_of_a_scheduler_that_is_lost_on_the_way(calm, tmp_path):
    place, port = beside(calm, tmp_path/"root"), free_port()
    with hosts() as (address, before):
        there = f"tcp://{address}:{port}"
        assert "no Dask scheduler answers at" in place.sweep("--scheduler", there, code=1).stderr
        with dask(tmp_path, address, port, before) as scheduler:
            sweep = place.start("--scheduler", there)
            pids = until(lambda: all(map(in_training, place.runs)) and {at_work(r)["pid"] for r in place.runs})
            assert len(pids) == 2 and at_work(place.root/"runs"/"drill")["where"] == there  # one run on each
            scheduler.kill()
            _, err = ended(sweep, 1)
            assert "was lost" in err.splitlines()[-1] and "same command" in err.splitlines()[-1]
        until(lambda: not any(is_held(r/".lock") for r in place.runs))  # a kernel ends itself when it sees that its worker is gone
        with dask(tmp_path, address, port, before):
            done = place.sweep("--scheduler", there)
            assert re.search(r"[12] runs finished now, [01] kept from before, 0 failed", done.stdout), done.stdout
            same(place, calm)
            assert images(place, "--scheduler", there) == images(calm)


# ---- slots, by small notebooks on the real engine

def small(folder, source):
    """A notebook of one cell, and where it goes."""
    parameters = new_code_cell("n: int = 1  # a number [0..9]", metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[parameters, new_code_cell(source)], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    folder.mkdir()
    nbformat.write(book, folder/"small.ipynb")
    return folder.name, folder/"small.ipynb", folder/"out"/"executed.ipynb", {"n": 2}


def results(jobs, places, root):
    with Engine(places) as engine: found = dict(run_missing(jobs, engine, progress=False, root=root))
    return [found[i] for i in range(len(jobs))]


def test_too_much_memory_a_kernel_that_dies_and_threads(tmp_path):
    """What dies of memory comes back on a bigger slot; what is killed is tried once more, and no more; each kernel is held to its threads."""
    hungry = "import time\nheld = bytearray(800_000_000)\nfor i in range(0, len(held), 4096): held[i] = 1\ntime.sleep(2)"
    dies = f"import os, signal\nwith open({str(tmp_path/'once')!r}, 'a') as f: f.write('x')\nif os.path.getsize({str(tmp_path/'once')!r}) < 2: os.kill(os.getpid(), signal.SIGKILL)"
    always = f"import os, signal\nwith open({str(tmp_path/'ever')!r}, 'a') as f: f.write('x')\nos.kill(os.getpid(), signal.SIGKILL)"
    threads = "import cv2, os\nfrom ich_study.slots import THREADS\nassert n == 2 and {os.environ[k] for k in THREADS} == {'1'}"
    jobs = [small(tmp_path/name, source) for name, source in (("hungry", hungry), ("dies", dies), ("always", always), ("threads", threads))]
    memory, once, ever, held = results(jobs, Places(slots=2, memory_gb=.5), tmp_path)
    assert memory.status == "done" and memory.peak_gb > .8
    assert once.status == "done" and (tmp_path/"once").read_text() == "xx"
    assert ever.status == "failed" and ever.cause == "killed" and (tmp_path/"ever").read_text() == "xx" and Path(ever.notebook).name == "failed.ipynb"
    assert held.status == "done", held.error
    assert not list(tmp_path.rglob("running.json"))


# ---- what is finished stays so

def test_another_clock_changes_nothing(calm):
    """Files from the future and from long ago are what their contents are."""
    for run, when in zip(calm.runs, (0, 4e9)):
        for f in run.iterdir(): os.utime(f, (when, when))
    assert set(plan(calm.study, calm.root).action) == {"keep"}
    assert "0 runs finished now, 2 kept from before, 0 failed" in calm.sweep().stdout


def test_papermill_takes_the_parameter_files(calm, tmp_path):
    """The notebook of a run that is finished finds it so, and trains nothing."""
    assert "2 files of parameters" in calm.sweep("--parameters", tmp_path/"files").stdout
    given, before = tmp_path/"files"/"bhcnet_plain_base_seed17_fold1.yml", (calm.runs[1]/"run.json").read_bytes()
    done = papermill(ROOT/"nbs"/"study"/"3_train.ipynb", tmp_path/"out.ipynb", "-f", given, root=calm.root)
    assert done.returncode == 0 and (calm.runs[1]/"run.json").read_bytes() == before and set(plan(calm.study, calm.root).action) == {"keep"}, done.stderr[-3000:]


def test_three_hundred_finished_runs_are_kept(calm, tmp_path):
    """Runs of other seeds under their own fingerprints; one table is then changed, and that run alone is not finished."""
    place = beside(calm, tmp_path/"root")
    place.file.write_text(STUDY.replace("seeds: [17]", f"seeds: {list(range(17, 167))}"))
    many = load_study(place.file)
    inputs = survey(many, place.root)[0]
    for run in list_runs(many):
        folder, source = run_folder(many, run, place.paths), calm.runs[run["fold"]]
        folder.mkdir(parents=True)
        for table in ("predictions", "volumes"): os.link(source/f"{table}.parquet", folder/f"{table}.parquet")
        save_json(json.loads((source/"run.json").read_text()) | {"fingerprint": run_fingerprint(many, inputs, run)}, folder/"run.json")
    summary = train_missing(many, place.root, progress=False)
    assert (summary.kept, summary.done, summary.failed) == (300, [], [])
    (folder/"volumes.parquet").unlink()
    (folder/"volumes.parquet").write_bytes((source/"volumes.parquet").read_bytes()[:-1])
    assert status(many, place.root, inputs).state.value_counts().to_dict() == {"done": 299, "waiting": 1}


@pytest.mark.parametrize("argv, code, said", [
    (("--slots", "0"), 2, "'0' should be a whole number of 1 or more"), (("--timeout", "-5"), 2, "'-5' should be a number of 0 or more"), (("--memory-gb", "nan"), 2, "'nan' should be"),
    (("--scheduler", "host:8786"), 1, "should look like tcp://host:8786"), (("--scheduler", "tcp://127.0.0.1:9", "--cluster", "slurm"), 1, "name one of them"),
    (("--gpus", "0", "0"), 1, "different numbers"), (("--cluster", "none.yml"), 1, "none.yml"), (("--kernel", "nix"), 1, "no kernel is called 'nix'")])
def test_wrong_arguments_are_one_line(tmp_path, argv, code, said):
    place = Place(tmp_path/"root")
    done = call_here("sweep", place.file, *argv, root=place.root)
    assert done.returncode == code and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr and not (place.root/"data").exists(), done.stderr
