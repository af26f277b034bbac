"""All pages of a large study from stored tables: 6 models x 8 recipes x 5 folds, 240 runs, nothing trained.

The tables of 240 runs are made up (scores and volumes around the truth of the phantom's patients, a little better or worse by model), sealed like those of real runs, and
each run is given the executed notebook of a real run, so that rendering has its real work. Statistics are computed before the clock starts. Timed: the page
notebooks on their kernels, every page as HTML with its CSV, the checklist. Example:

    python benchmarks/pages.py --run runs/smoke/plain/bhcnet/base/seed17/fold0 --root large
"""
import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ich_study import site, sweep
from ich_study.paths import save_json
from ich_study.predictions import prediction_table, save_run, volume_table
from ich_study.schema import LABELS
from ich_study.study import list_runs, load_study, prepare, run_fingerprint

MODELS = ["bhcnet", "hybrid_cnn", "densenet_resnet", "cnn_lstm", "dl_solution", "cnn_ds"]
RECIPES = ["plain", "paper", "no_gaussian", "no_ahe", "no_normalise", "add_gaussian", "add_ahe", "median"]
STUDY = """name: large
dataset: {{kind: phantom, patients: {patients}, seed: 17}}
models: [{models}]
recipes: [{recipes}]
folds: 5
primary: {{endpoint: mae_ml, over: recipe, of: [paper, plain], model: cnn_lstm}}
family: [cnn_lstm]
acceptable_ml: 5
accept_classes: [epidural, intraparenchymal, intraventricular, subarachnoid, subdural]
"""


def made_up(rows, run, rng):
    """Scores and mL of all rows of a cache: the truth, blurred by an amount of the run's own."""
    blur = .8 + .2*MODELS.index(run["model"]) + .1*RECIPES.index(run["recipe"])
    truth = rows[list(LABELS)].astype(float).to_numpy()
    scores = 1/(1 + np.exp(-(2.5*truth - 1.5 + blur*rng.standard_normal(truth.shape))))
    return scores, np.maximum(rows.blood_ml.astype(float).to_numpy()*(1 + .1*blur*rng.standard_normal(len(rows))) + .05*blur*rng.standard_normal(len(rows)), 0)


def store(study, inputs, template, root):
    """Every run of the study, finished, with the notebook of another."""
    paths, about = sweep.root_paths(root), json.loads((template/"run.json").read_text())
    history = pd.read_csv(template/"history.csv")
    for n, run in enumerate(list_runs(study)):
        folder, rows, names = sweep.run_folder(study, run, paths), inputs.caches[run["recipe"]].rows, {"analysis": study.name, "variant": "base", **run}
        scores, ml = made_up(rows, run, np.random.default_rng(n))
        role = rows.patient.map(inputs.folds[inputs.folds.fold == run["fold"]].set_index("patient").role)
        parts = {split: np.flatnonzero(role == split) for split in ("validation", "test", "train")}
        tables = [(prediction_table(rows.iloc[at], scores[at], names, split), volume_table(rows.iloc[at], ml[at], names, split)) for split, at in parts.items() if split != "train"]
        predictions, volumes = (pd.concat(t, ignore_index=True) for t in zip(*tables))
        save_run(folder, predictions, volumes, history, about | names | {"fingerprint": run_fingerprint(study, inputs, run)})
        prediction_table(rows.iloc[parts["train"]], scores[parts["train"]], names, "test").to_parquet(folder/"training.parquet")
        shutil.copy(template/"executed.ipynb", folder/"executed.ipynb")
        save_json({"stamp": sweep.page_key(folder)}, folder/"page.json")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", type=Path, required=True, help="a finished run whose notebook is rendered for every run")
    p.add_argument("--root", type=Path, required=True, help="a folder for the large study; what is there is used again")
    p.add_argument("--patients", type=int, default=66, help="default %(default)s")
    a = p.parse_args()
    a.root.mkdir(parents=True, exist_ok=True)
    file = a.root/"large.yml"
    file.write_text(STUDY.format(patients=a.patients, models=", ".join(MODELS), recipes=", ".join(RECIPES)))
    study, took = load_study(file), {}
    inputs = prepare(study, a.root)
    start = time.perf_counter(); store(study, inputs, a.run, a.root); took["tables made up"] = time.perf_counter() - start
    start = time.perf_counter(); sweep.save_statistics(study, inputs, a.root); took["statistics"] = time.perf_counter() - start
    shutil.rmtree(a.root/"reports", ignore_errors=True), shutil.rmtree(a.root/"runs/large/pages", ignore_errors=True)
    start = time.perf_counter(); pages = site.save_pages(study, a.root); took["all pages"] = time.perf_counter() - start
    sizes = sorted((f.stat().st_size for f in (a.root/"reports/large").glob("*.html")), reverse=True)
    for what, seconds in took.items(): print(f"{what}: {seconds:.0f} s")
    print(f"{len(pages)} pages, the largest {sizes[0]/1e6:.2f} MB, all {sum(sizes)/1e6:.0f} MB; 2 slots")
    return 0 if took["all pages"] < 180 and sizes[0] < 1.5e6 else 1


if __name__ == "__main__": sys.exit(main())
