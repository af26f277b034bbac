#!/usr/bin/env python3
"""How fast are intervals that know patients, and how does the time grow? Makes up scores, measures, writes nothing.

Everything is measured against something that does less, in turn on one pinned core with one thread:
  bootstrap   both areas (ROC, precision and recall) of every model and class in all resamples of the patients, against nothing but gathering the scores of
              the drawn rows by numpy, `score[rows]`, for the same resamples
  memory      peak memory of the bootstrap in a process of its own, and how far it has grown since the scores were made
  delong      DeLong's interval at a small and a large number of rows: alone, clustered by patient, two scores compared; against sorting the same scores, and
              against statsmodels where it has the same number
  table       the whole detection table of a made-up study, images of six labels
Numbers are CPU seconds (median of rounds) unless it says otherwise. `growth` is the time of the large over that of the small size, divided by the same
of n log n: 1 means that it grows as n log n does. Sorting itself grows a little faster (large arrays leave the processor's caches).

This file is not called statistics.py because Python would then find it in place of its own module of that name.

Example: python benchmarks/intervals.py --only bootstrap delong --json
"""
import os

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"): os.environ.setdefault(threads, "1")

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ich_study.areas import auc_delong, paired_auc
from ich_study.resampling import drawn_rows, draw_patients, resampled_areas

SECTIONS = ("bootstrap", "memory", "delong", "table")


def peak_mb(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])/1024


def clock(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def images(patients, each, models=1, classes=1, seed=1):
    """Truth per class, scores per model and class (correlated within a patient), and the patient of each row."""
    rng, who = np.random.default_rng(seed), np.repeat(np.arange(patients), each)
    truth = (rng.random((classes, patients)) < .4)[:, who] & (rng.random((classes, len(who))) < .4)
    noise = rng.normal(0, .7, (models, classes, patients))[..., who] + rng.normal(0, .7, (models, classes, len(who)))
    return truth, truth + noise, who


def pairs_of(args):
    truth, score, who = images(args.patients, args.images, args.models, args.classes)
    return [(truth[c], score[m, c]) for m in range(args.models) for c in range(args.classes)], who


# ---- the bootstrap

def gather(pairs, drawn):
    for _, score in pairs:
        for rows in drawn: score[rows]  # not kept: memory for them all would cost more than the gathering


def bootstrap(args, rounds=40):
    """All resamples of all pairs, both ways in turn; the gathering has the rows of a resample ready, which costs it nothing here."""
    pairs, who = pairs_of(args)
    draw, (code, weights) = clock(lambda: draw_patients(who, args.replicates)), draw_patients(who, args.replicates)
    resampled_areas(*pairs[0], code, weights[:2])  # compiles
    ours, bare, parts = [], 0., np.array_split(weights, min(rounds, len(weights)))
    turns = np.array_split(np.arange(len(pairs)), len(parts))
    for part, turn in zip(parts, turns):
        ours += [clock(lambda: resampled_areas(*pairs[k], code, weights)) for k in turn]
        drawn = list(drawn_rows(code, part))
        bare += clock(lambda: gather(pairs, drawn))
    total = draw + sum(ours)
    return {"models x classes": len(pairs), "rows": len(who), "patients": args.patients, "resamples": args.replicates, "drawing": round(draw, 3), "seconds": round(total, 2),
            "gathering": round(bare, 2), "ours over gathering": round(total/bare, 3)}


def run_memory(args):
    pairs, who = pairs_of(args)
    resampled_areas(*pairs[0], who, np.ones((2, args.patients), np.int32))
    before = peak_mb()
    code, weights = draw_patients(who, args.replicates)
    areas = [resampled_areas(*pair, code, weights) for pair in pairs]
    return {"peak_mb": round(peak_mb(), 1), "before_mb": round(before, 1), "grown_mb": round(peak_mb() - before, 1), "areas": int(np.size(areas))}


def memory(args):
    command = [sys.executable, __file__, "--part", "memory", *(str(x) for name in ("patients", "images", "models", "classes", "replicates") for x in (f"--{name}", getattr(args, name)))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)})
    if done.returncode: raise SystemExit(f"the bootstrap failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- DeLong

def theirs(truth, score):
    from statsmodels.stats.nonparametric import rank_compare_2indep
    return rank_compare_2indep(score[truth], score[~truth], use_t=False).conf_int()


def delong(args):
    sizes, found = (args.rows//10, args.rows), {}
    ways = {"alone": lambda t, s, who: auc_delong(t, s[0]), "clustered": lambda t, s, who: auc_delong(t, s[0], patients=who),
            "paired": lambda t, s, who: paired_auc(t, *s), "paired, clustered": lambda t, s, who: paired_auc(t, *s, patients=who),
            "statsmodels, alone": lambda t, s, who: theirs(t, s[0]), "sorting": lambda t, s, who: np.argsort(s[0], kind="stable")}
    data = {n: (t[0], s[:, 0], who) for n in sizes for t, s, who in [images(max(n//30, 1), 30, models=2)]}
    rng = random.Random(1)
    for k in range(args.rounds + 1):
        for name, n in rng.sample([(name, n) for name in ways for n in sizes], len(ways)*2):
            spent = clock(lambda: ways[name](*data[n]))
            if k: found.setdefault((name, n), []).append(spent)  # the first round warms up
    rows = {n: len(data[n][2]) for n in sizes}
    few, many = sizes
    expected = rows[many]*np.log(rows[many])/(rows[few]*np.log(rows[few]))
    medians = {key: statistics.median(v) for key, v in found.items()}
    return {name: {f"{rows[n]} rows": round(medians[name, n], 4) for n in sizes} | {"growth": round(medians[name, many]/max(medians[name, few], 1e-9)/expected, 2),
            "over sorting": round(medians[name, many]/max(medians["sorting", many], 1e-9), 1)} for name in ways}


# ---- a table

def table(args):
    from ich_study.detection import detection_table
    from ich_study.schema import LABELS, THRESHOLDS, check_table
    each = args.table_images
    truth, score, who = images(args.series, each, classes=len(LABELS))
    run = dict(analysis="made up", model="bhcnet", recipe="plain", variant="base", seed=17, fold=0, split="test", dataset="made up")
    name = np.char.add("s", np.arange(args.series).astype(str))
    image = np.char.add(np.char.add(name[who], "i"), np.tile(np.arange(each), args.series).astype(str))
    rows = pd.concat([pd.DataFrame(run | dict(patient=np.char.replace(name, "s", "p")[who], series=name[who], image=image, subtype=label, truth=truth[k],
                                              score=1/(1 + np.exp(1 - score[0, k])))) for k, label in enumerate(LABELS)], ignore_index=True)
    rows = check_table(rows, "predictions")
    cut = check_table(pd.DataFrame([{c: run.get(c) for c in THRESHOLDS.columns} | dict(subtype=label, rule="fixed", value=.5) for label in LABELS]), "thresholds")
    before, made = peak_mb(), []
    spent = clock(lambda: made.append(detection_table(rows, cut, unit="image")))
    return {"series": args.series, "images": len(who), "predictions": len(rows), "seconds": round(spent, 2), "statistics": len(made[0]), "peak_mb": round(peak_mb(), 1), "before_mb": round(before, 1)}


# ---- running

def report(out):
    for name in SECTIONS:
        if name not in out: continue
        nested = {k: v for k, v in out[name].items() if isinstance(v, dict)}
        print(f"\n{name}\n" + (pd.DataFrame(nested).T if nested else pd.Series(out[name], dtype=object)).to_string())
    print("\nwanted: bootstrap under 60 s and at most 3 times the gathering; DeLong under 3 s at 750,000 rows, and a growth near 1")


def main():
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to measure (default: all)")
    about.add_argument("--patients", type=int, default=500, help="patients of the bootstrap (default 500)")
    about.add_argument("--images", type=int, default=32, help="images of each (default 32)")
    about.add_argument("--models", type=int, default=6, help="models (default 6)")
    about.add_argument("--classes", type=int, default=6, help="classes (default 6)")
    about.add_argument("--replicates", type=int, default=10_000, help="resamples (default 10000)")
    about.add_argument("--rows", type=int, default=750_000, help="rows of the larger DeLong (default 750000; a tenth is the smaller one)")
    about.add_argument("--rounds", type=int, default=5, help="rounds of DeLong whose median counts (default 5)")
    about.add_argument("--series", type=int, default=10_000, help="series of the table, one per patient (default 10000)")
    about.add_argument("--table-images", type=int, default=30, help="images of each (default 30)")
    about.add_argument("--json", action="store_true", help="last line: all numbers as JSON")
    about.add_argument("--part", choices=("memory",), help=argparse.SUPPRESS)
    args = about.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if args.part: return print(json.dumps(run_memory(args)))
    out = {}
    for name in args.only:
        print(f"{name} ...", flush=True)
        out[name] = globals()[name](args)
    report(out)
    if args.json: print(json.dumps(out))


if __name__ == "__main__": main()
