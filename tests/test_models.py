"""Six models on more than one backend, a training that is killed, a seventh model, and kernels without what they were made for."""
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from thorough import THOROUGH

from ich_study.models import model_names, model_table
from ich_study.schema import StudyError
from ich_study.engine import install_kernel

ROOT = Path(__file__).resolve().parent.parent


def python(*argv, wait=True, **env):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT/'tests'}", "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": "1"} | env
    start = subprocess.run if wait else subprocess.Popen
    return start([sys.executable, *map(str, argv)], env=environment, **({"capture_output": True, "text": True} if wait else {}))


@pytest.mark.xdist_group("backends")
def test_every_model_trains_a_step_and_answers_alike_on_each_backend(tmp_path):
    """On JAX, which compiles for half a minute per step and ten seconds per answer, two models answer; with THOROUGH=1 all do both."""
    done = []
    for backend in filter(find_spec, ("tensorflow", "torch", "jax")):
        (tmp_path/backend).mkdir()
        trained, asked = ([], ["cnn_lstm", "cnn_ds"]) if backend == "jax" and not THOROUGH else (model_names(),)*2
        found = python(ROOT/"tests/one_step.py", tmp_path/backend, ",".join(trained), ",".join(asked), *done, KERAS_BACKEND=backend, CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
        assert found.returncode == 0, found.stderr[-3000:]
        assert found.stdout.count(backend) == len(done)*len(asked)
        done.append(tmp_path/backend)
    assert len(done) >= 2


TRAIN = """
import sys
from pathlib import Path
import numpy as np
from ich_study.slots import set_threads
set_threads(1)
from ich_study.batches import fold_data, toy_cache
from ich_study.train import fit_model, make_settings
cache, folds = toy_cache(24, 32)
fitted = fit_model(fold_data(cache, folds, 0), make_settings(sys.argv[1], epochs=6, series_epochs=6, schedule=sys.argv[2]), Path(sys.argv[3]), "one run")
np.savez(sys.argv[4], *fitted.model.get_weights(), loss=fitted.history.loss)
"""


@pytest.mark.xdist_group("backends")
@pytest.mark.parametrize("model,schedule,stage", [("cnn_lstm", "plateau", "series"), *([("bhcnet", "plateau", "images"), ("cnn_lstm", "cosine", "series")] if THOROUGH else [])])
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(tmp_path, model, schedule, stage):
    """Killed by SIGKILL as soon as a checkpoint lies there, which is in the middle of the next epoch."""
    args = lambda name: ("-c", TRAIN, model, schedule, tmp_path/name, tmp_path/f"{name}.npz")
    for name in ("straight", "killed"): (tmp_path/name).mkdir()
    process, until = python(*args("killed"), wait=False), time.monotonic() + 240
    while not list((tmp_path/"killed").glob(f"{stage}.npz*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(.01)
    process.send_signal(signal.SIGKILL); process.wait()
    assert not (tmp_path/"killed.npz").exists()
    for name in ("killed", "straight"):
        done = python(*args(name))
        assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path/"killed.npz") as killed, np.load(tmp_path/"straight.npz") as straight:
        assert killed.files == straight.files and len(killed["loss"]) >= 6
        for key in killed.files: assert np.array_equal(killed[key], straight[key]), key


def test_a_seventh_model_is_one_notebook_and_no_other_change(tmp_path):
    """What CONTRIBUTING promises, with the notebook's module: listed, accepted by a study file, trained."""
    shutil.copytree(ROOT/"ich_study", tmp_path/"ich_study")
    shutil.copytree(ROOT/"nbs/study", tmp_path/"nbs/study")
    (tmp_path/"ich_study/logistic.py").write_text('''# File to edit: ../nbs/54_logistic.ipynb.
from keras import Model, layers
from ich_study.heads import ModelSpec, blood_head, label_head
def build(size, channels=1, profile="quick"):
    image = layers.Input((size, size, channels), name="image")
    x = layers.Flatten()(layers.AveragePooling2D(8)(image))
    return Model(image, {"labels": label_head(x), "blood": blood_head(x, 4)}, name="logistic")
MODEL = ModelSpec("logistic", "Logistic regression", "image", build, "no hidden layer", "Cox 1958", 723, 0)
''')
    code = '''
from ich_study.batches import fold_data, toy_cache
from ich_study.models import model_names
from ich_study.study import check_study
from ich_study.train import fit_model, make_settings
check_study({"name": "x", "dataset": {"kind": "phantom"}, "models": ["logistic", "bhcnet"]})
cache, folds = toy_cache(12, 32)
print(model_names()[0], len(model_names()), len(fit_model(fold_data(cache, folds, 0), make_settings("logistic", epochs=2)).history))
'''
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "2"}, capture_output=True, text=True)
    assert done.stdout.split() == ["logistic", "7", "2"], done.stderr[-2000:]


def test_models_are_listed_without_loading_keras():
    code = "import sys; from ich_study.cli import main; main(['models']); sys.exit('keras' in sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0 and all(f"{row.quick:,} parameters" in done.stdout and row.source in done.stdout for row in model_table().itertuples())


def test_a_kernel_for_a_backend_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("ich_study.engine.find_spec", lambda name: None)
    with pytest.raises(StudyError, match="jax is not installed in this environment"): install_kernel("jax", prefix=str(tmp_path))


def test_a_gpu_kernel_without_a_gpu_says_so_before_anything_else():
    done = python("-c", "from ich_study.train import check_device; check_device()", CUDA_VISIBLE_DEVICES="-1", ICH_STUDY_GPU="0")
    assert "this kernel is for GPU 0, but tensorflow finds no GPU" in done.stderr
