#!/usr/bin/env python3
"""What does a sweep cost besides training? Runs small studies by the command that a user types, in a temporary folder.

Runs: CPU and wall seconds of a sweep whose data are ready, on one slot and on two in turn, against the seconds of training and
evaluation that its runs note, with one import of the backend per kernel; the seconds of each part of the run's notebook; how many cores
each kernel takes at a time. Nothing to do: 300 finished runs. Scheduling: 1,000 runs that end before their kernel starts.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil

from ich_study.engine import Engine, Places
from ich_study.paths import Paths, save_json, study_files
from ich_study.study import list_runs, load_study, prepare, run_fingerprint
from ich_study.sweep import TRAIN, run_folder, run_missing

STUDY = """name: cost
dataset: {{kind: phantom, patients: {patients}, seed: 5}}
models: [{model}]
recipes: [plain]
folds: 2
seeds: {seeds}
accept_classes: [epidural, intraparenchymal, intraventricular, subarachnoid, subdural]
"""
PARTS = (("import", "from ich_study.reports import"), ("import", "import pandas"), ("inputs", "prepare("), ("training and evaluation", "finish_run("))  # by what a cell says; other cells draw the page


def study_in(root, patients, model, seeds):
    root.mkdir(parents=True, exist_ok=True)
    (root/"cost.yml").write_text(STUDY.format(patients=patients, model=model, seeds=list(seeds)))
    return load_study(root/"cost.yml")


def cpu_of(*argv, watch=None, **env):
    """(CPU seconds, wall seconds, what it printed) of one Python command and all that it started."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    child = subprocess.Popen([sys.executable, *map(str, argv)], env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if watch: watch(child.pid)
    out, err = child.communicate()
    if child.returncode: sys.exit(f"the command failed: {err[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.monotonic() - start, out


def sweep(root, *argv, watch=None):
    """The same of a sweep of the study in a root."""
    return cpu_of("-c", "import sys; from ich_study.cli import main; sys.exit(main())", "sweep", root/"cost.yml", *argv, watch=watch, ICH_STUDY_ROOT=str(root))


class Cores(threading.Thread):
    """What the processes under a command take, looked at once a second: CPU seconds of each, and the cores and threads of Jupyter kernels."""

    def __init__(self):
        super().__init__(daemon=True)
        self.shares, self.busy, self.most, self.taken = [], {}, 0, {}

    def __call__(self, pid): self.process = psutil.Process(pid); self.start()

    def look(self, p, now, last):
        kind = "kernels" if "ipykernel_launcher" in " ".join(p.cmdline()) else "the command" if p == self.process else "workers"
        self.taken[p.pid] = (kind, cpu := sum(p.cpu_times()[:2]))
        if kind != "kernels": return
        if p.pid in last: self.shares.append((cpu - last[p.pid][1])/(now - last[p.pid][0]))
        last[p.pid], threads = (now, cpu), p.threads()
        self.busy[p.pid] = sum(t.user_time + t.system_time > .05*cpu for t in threads)
        self.most = max(self.most, len(threads))

    def run(self):
        last = {}
        while self.process.is_running():
            try: family = [self.process, *self.process.children(recursive=True)]
            except psutil.Error: return
            for p in family:
                try: self.look(p, time.monotonic(), last)
                except psutil.Error: pass
            time.sleep(1)

    def split(self): return ", ".join(f"{kind} {sum(s for k, s in self.taken.values() if k == kind):.0f}" for kind in ("kernels", "workers", "the command"))


def parts_of(folder):
    """Wall seconds of the parts of an executed notebook."""
    seconds = {}
    for cell in nbformat.read(folder/"executed.ipynb", 4).cells:
        if cell.cell_type != "code": continue
        part = next((name for name, word in PARTS if word in cell.source), "page")
        seconds[part] = seconds.get(part, 0) + (cell.metadata.get("papermill", {}).get("duration") or 0)
    return seconds


def import_cost():
    """CPU seconds of one import of the backend, median of three."""
    return statistics.median(cpu_of("-c", "import keras, tensorflow", TF_CPP_MIN_LOG_LEVEL="2")[0] for _ in range(3))


def measure_runs(work, patients, model, rounds):
    root = work/"ready"
    study = study_in(root, patients, model, (17, 18))
    prepare(study, root, progress=False)
    imported, spent = import_cost(), {1: [], 2: []}
    for k in range(rounds):
        for slots in (1, 2) if k % 2 == 0 else (2, 1):
            place, cores = work/f"{slots}_{k}", Cores()
            shutil.copytree(root, place)
            cpu, wall, _ = sweep(place, "--slots", slots, watch=cores)
            runs = [run_folder(study, r, Paths(place)) for r in list_runs(study)]
            noted = sum(json.loads((r/"run.json").read_text())["seconds"]["total"] for r in runs)
            spent[slots].append((cpu, wall))
            print(f"{slots} slot{'s' if slots > 1 else ''}, {len(runs)} runs of {model}: {cpu:.0f} CPU s, {wall:.0f} s; training and evaluation {noted:.0f} s, imports {len(runs)*imported:.0f} CPU s: "
                  f"ratio {cpu/(noted + len(runs)*imported):.2f}; outside of training {(cpu - noted)/len(runs):.1f} CPU s per run")
            print(f"   CPU s: {cores.split()}")
            print(f"   cores taken by a kernel: median {statistics.median(cores.shares):.2f}, 95 % {sorted(cores.shares)[int(.95*len(cores.shares))]:.2f}; "
                  f"threads with more than 5 % of its time: at most {max(cores.busy.values())} of {cores.most}")
            parts = [parts_of(r) for r in runs]
            print("   seconds per run: " + ", ".join(f"{name} {statistics.median(p.get(name, 0) for p in parts):.1f}" for name in ("import", "inputs", "training and evaluation", "page")), flush=True)
    cpu, wall = ([statistics.median(s[i] for s in spent[n]) for n in (1, 2)] for i in (0, 1))
    print(f"two slots against one: CPU {cpu[1]/cpu[0]:.2f}, wall time {wall[1]/wall[0]:.2f}")
    return place


def measure_nothing(ready, patients, model):
    """300 runs that are finished: those of a swept study, the others with their tables and fingerprints of their own."""
    few = load_study(ready/"cost.yml")
    study, paths = study_in(ready, patients, model, range(17, 167)), Paths(ready)
    inputs = prepare(study, ready, progress=False)
    for run in list_runs(study):
        folder, source = run_folder(study, run, paths), run_folder(few, {**run, "seed": 17}, paths)
        if (folder/"run.json").is_file(): continue
        shutil.copytree(source, folder)
        save_json(json.loads((source/"run.json").read_text()) | {"fingerprint": run_fingerprint(study, inputs, run)}, folder/"run.json")
    taken = [sweep(ready) for _ in range(3)]
    if odd := [out for *_, out in taken if "0 runs finished now, 300 kept" not in out]: sys.exit(f"this was not a sweep without changes: {odd[0]}")
    print(f"300 finished runs, nothing to do: {statistics.median(t[1] for t in taken):.1f} s, {statistics.median(t[0] for t in taken):.1f} CPU s for the whole command")


def measure_scheduling(work, n=1000):
    (work/"file").write_text("")
    jobs = [(f"run {i}", study_files()/TRAIN, work/"file"/str(i)/"executed.ipynb", {"fold": 0}) for i in range(n)]  # no folder can be made there
    with Engine(Places(slots=2)) as engine:
        engine.client
        start = time.monotonic()
        found = dict(run_missing(jobs, engine, progress=False, root=work))
    if len(found) != n or any(o.cause != "error" for o in found.values()): sys.exit("a run did not end as planned")
    print(f"{n} runs that end before their kernel starts: {time.monotonic() - start:.1f} s on two slots")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--patients", type=int, default=24, metavar="N", help="of the study (default %(default)s)")
    p.add_argument("--model", default="bhcnet", help="default %(default)s")
    p.add_argument("--rounds", type=int, default=1, metavar="N", help="one slot and two, in turn (default %(default)s)")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        measure_scheduling(work)
        ready = measure_runs(work, a.patients, a.model, a.rounds)
        measure_nothing(ready, a.patients, a.model)


if __name__ == "__main__": main()
