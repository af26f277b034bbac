"""What `test_models` does with the six models in a process of its own, so that Keras can have another backend there."""
import sys
from pathlib import Path

import keras
import numpy as np

from ich_study.heads import compile_model
from ich_study.models import load_model_spec
from ich_study.weights import load_model, save_model

SIZE = 32


def given(unit, seed=0):
    """Inputs and targets of one small batch; of a series model, two series of three and two images."""
    rng, real = np.random.default_rng(seed), np.array([[1, 1, 1], [1, 1, 0]], np.float32)
    some = lambda *shape: rng.random(shape).astype(np.float32)
    yes = lambda *shape: (rng.random(shape) > .5).astype(np.float32)
    if unit == "series":
        x = {"images": some(2, 3, SIZE, SIZE, 1), "mask": real}
        return x, {"image_labels": np.where(real[..., None] > 0, yes(2, 3, 6), -1), "blood": np.where(real[..., None] > 0, some(2, 3, 1), -1), "labels": yes(2, 6)}
    return some(4, SIZE, SIZE, 1), {"labels": yes(4, 6), "blood": some(4, 1), "mask": yes(4, SIZE, SIZE, 1)}


def whole(model):
    """The model with its outputs under their own names."""
    return keras.Model(model.input, {k: keras.layers.Identity(name=k)(v) for k, v in model.output.items()})


def answers(model, x): return {k: keras.ops.convert_to_numpy(v) for k, v in model(x, training=False).items()}


def train_one_step(name, folder):
    """Build, train one step, save, load: the loaded network answers as the trained one did."""
    spec = load_model_spec(name)
    keras.utils.set_random_seed(3)
    model, (x, y) = spec.build(SIZE, 1, "quick"), given(spec.unit)
    before, learner = [w.copy() for w in model.get_weights()], whole(model) if spec.unit == "series" else model
    compile_model(learner, 1e-3, 10, outlined="mask" in model.output)
    learner.run_eagerly = keras.backend.backend() == "tensorflow"  # the same step, without the seconds that drawing its graph takes
    loss = learner.train_on_batch(x, {k: y[k] for k in model.output})
    assert np.isfinite(np.ravel(loss)[0]), name
    assert any((a != b).any() for a, b in zip(before, model.get_weights())), name
    save_model(model, folder/f"{name}.keras", {"model": name})
    apart = {k: np.abs(v - answers(load_model(folder/f"{name}.keras"), x)[k]).max() for k, v in answers(model, x).items()}
    assert max(apart.values()) < 1e-5, (name, apart)
    np.savez(folder/f"{name}.npz", **answers(model, x))


def compare(name, folder, other):
    """The weights that another backend trained give the same answers here."""
    x, _ = given(load_model_spec(name).unit)
    with np.load(other/f"{name}.npz") as there: apart = {k: float(np.abs(there[k] - v).max()) for k, v in answers(load_model(other/f"{name}.keras"), x).items()}
    print(keras.backend.backend(), name, {k: f"{v:.1e}" for k, v in apart.items()})
    assert max(apart.values()) < 1e-3, (name, apart)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in filter(None, sys.argv[2].split(",")): train_one_step(name, folder)
    for other in map(Path, sys.argv[4:]):
        for name in sys.argv[3].split(","): compare(name, folder, other)
