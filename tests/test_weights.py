"""Model files: what they say, what they may hold, and what training may start from."""
import importlib
import json
import random
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from unittest import mock
from urllib.error import URLError

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from ich_study import weights as W
from ich_study.schema import StudyError
from ich_study.weights import BACKBONES, find_backbones, foreign_parts, load_model, read_about, save_model, start_weights

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("bhcnet", "hybrid_cnn", "densenet_resnet", "cnn_lstm", "dl_solution", "cnn_ds")
ABOUT = {"model": "tiny", "profile": "quick", "size": 8, "channels": 1, "recipe": {"name": "plain", "checksum": "0123456789abcdef", "steps": [["window", {"centre": 40}]]}}
pytestmark = pytest.mark.xdist_group("weights")


def build(name, size=64, channels=1, profile="quick"): return importlib.import_module(f"ich_study.{name}").build(size, channels, profile)
def about(name, **more): return ABOUT | {"model": name, "size": 64} | more
def config(path): return json.loads(zipfile.ZipFile(path).read("config.json"))
def same(a, b): return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


def tiny(seed=1, units=3):
    keras.utils.set_random_seed(seed)
    image = keras.layers.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten(name="flat")(keras.layers.Conv2D(units, 3, name="stem")(image))
    return keras.Model(image, keras.layers.Dense(6, name="labels")(x), name="tiny")


def pixels(model):
    draw = np.random.default_rng(3)
    if not isinstance(model.input, dict): return draw.random((2, *model.input.shape[1:])).astype("float32")
    return {k: np.ones((2, 3), "float32") if k == "mask" else draw.random((2, 3, *v.shape[2:])).astype("float32") for k, v in model.input.items()}


def outputs(model):
    found = model(pixels(model), training=False)
    return [np.asarray(found[k]) for k in sorted(found)]


@pytest.fixture
def saved(tmp_path):
    save_model(tiny(), tmp_path/"model.keras", ABOUT)
    return tmp_path/"model.keras"


def edited(saved, **entry):
    """A copy of a file in which the entry of the layer `flat` is changed."""
    path = saved.with_name("edited.keras")
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        plan = json.loads(old.read("config.json"))
        next(l for l in plan["config"]["layers"] if l["name"] == "flat").update(entry)
        for member in old.namelist(): new.writestr(member, json.dumps(plan) if member == "config.json" else old.read(member))
    return path


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_with_the_same_outputs(name, tmp_path):
    model = build(name)
    save_model(model, tmp_path/"m.keras", about(name))
    back = load_model(tmp_path/"m.keras")
    assert same(model.get_weights(), back.get_weights()) and all(np.allclose(a, b, atol=1e-5) for a, b in zip(outputs(model), outputs(back)))


@pytest.mark.parametrize("name", MODELS)
def test_the_check_knows_every_part_of_a_compiled_model_in_mixed_precision(name, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try: model = build(name)
    finally: keras.config.set_dtype_policy("float32")
    rate = keras.optimizers.schedules.CosineDecay(.001, 10)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.), loss={o: "mse" for o in model.output_names}, metrics={model.output_names[0]: ["mae"]})
    model.save(tmp_path/"m.keras")
    assert foreign_parts(config(tmp_path/"m.keras")) == []


def test_a_file_says_what_it_was_saved_with(saved): assert read_about(saved) == ABOUT


def test_keras_itself_loads_the_file_in_safe_mode(saved):
    assert same(keras.models.load_model(saved, safe_mode=True).get_weights(), tiny().get_weights())


def test_a_fresh_process_loads_a_file_by_the_name_of_its_model(tmp_path):
    save_model(build("cnn_lstm", 32), tmp_path/"m.keras", about("cnn_lstm", size=32))
    code = "import sys; from ich_study.weights import load_model; print(load_model(sys.argv[1]).name)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path/"m.keras"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "cnn_lstm", done.stderr[-2000:]


def test_a_failed_save_leaves_the_file_before_it(saved):
    before, model = saved.read_bytes(), tiny(2)
    with mock.patch.object(zipfile.ZipFile, "writestr", side_effect=OSError(28, "No space left on device")), pytest.raises(StudyError, match="No space left"):
        save_model(model, saved, ABOUT)
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == ["model.keras"]


@pytest.mark.parametrize("value", [float("nan"), np.float32(1), {1, 2}, b"x"], ids=repr)
def test_what_is_no_plain_json_is_not_saved(value, tmp_path):
    with pytest.raises(StudyError, match="plain JSON"): save_model(tiny(), tmp_path/"m.keras", ABOUT | {"more": value})
    assert not list(tmp_path.iterdir())


function = lambda name, module="builtins", **more: {"class_name": "Activation", "config": {"activation": {"class_name": "function", "module": module, "config": name, **more}}}
STRANGERS = {
    "lambda layer": dict(class_name="Lambda", config={"name": "l", "function": {"class_name": "__lambda__", "config": {"code": "4w=="}}}),
    "bare lambda": dict(config={"name": "flat", "extra": {"class_name": "__lambda__", "config": {"value": "4w=="}}}),
    "function of os": function("system", "os", registered_name="system"),
    "function by full name": function("os.system"),
    "fetching": dict(class_name="get_file", module="keras.utils"),
    "unsafe switch": dict(class_name="function", module="keras.config", config="enable_unsafe_deserialization"),
    "loader of loaders": function("deserialize"),
    "loader as class": dict(class_name="deserialize", module="keras.layers"),
    "pickle of torch": dict(class_name="TorchModuleWrapper", config={"module": "gASV"}),
    "saved program": dict(class_name="TFSMLayer", config={"filepath": "/tmp/x"}),
    "vocabulary file": dict(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
    "type spec": dict(class_name="__typespec__", spec_name="Popen", module="subprocess"),
    "class of Keras's inside": dict(class_name="Lambda", module="keras.src.layers.core.lambda_layer"),
    "module that is not loaded": dict(class_name="X", module="keras_hub.models"),
    "other registration": dict(class_name="Dense", registered_name="other>Dense"),
    "unregistered own": dict(class_name="X", registered_name="ich_study>X"),
    "old form": dict(module=None),
    "names that are no text": dict(class_name=["Dense"]),
    "wrapped": dict(class_name="TimeDistributed", config={"layer": {"class_name": "Lambda", "module": "keras.layers", "config": {}}}),
    "compile of a part": dict(compile_config={"loss": {"class_name": "function", "module": "os", "config": "system"}}),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_strangers_file_is_refused_before_keras_sees_it(kind, saved):
    with mock.patch("keras.models.load_model") as keras_loads, pytest.raises(StudyError, match="edited.keras"): load_model(edited(saved, **STRANGERS[kind]))
    keras_loads.assert_not_called()


def test_a_module_named_in_a_file_is_not_imported(saved, tmp_path, monkeypatch):
    (tmp_path/"ich_evil.py").write_text(f"open({str(tmp_path/'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for entry in (dict(module="ich_evil", class_name="X"), function("x", "ich_evil")):
        with pytest.raises(StudyError, match="ich_evil"): load_model(edited(saved, **entry))
    save_model(tiny(), tmp_path/"m.keras", ABOUT | {"model": "../ich_evil"})
    load_model(tmp_path/"m.keras")
    assert not (tmp_path/"ran").exists()


def test_a_lambda_layer_that_keras_wrote_is_named(tmp_path):
    keras.Sequential([keras.layers.Input((2,)), keras.layers.Lambda(lambda x: x*2)]).save(tmp_path/"twice.keras")
    with pytest.raises(StudyError, match=r"twice\.keras holds Lambda"): load_model(tmp_path/"twice.keras")


@pytest.mark.parametrize("more", ["assets/x.py", "model.weights.npz", "../up", "config.json"])
def test_a_member_more_is_refused(more, saved):
    with warnings.catch_warnings(), zipfile.ZipFile(saved, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(more, "x")
    with pytest.raises(StudyError): load_model(saved)


def test_a_packed_member_is_not_unpacked(saved):
    packed = saved.with_name("packed.keras")
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist(): new.writestr(member, old.read(member))
    for call in (load_model, read_about):
        with pytest.raises(StudyError, match="packed"): call(packed)


def test_damage_anywhere_is_told_or_changes_nothing(saved):
    whole, draw, wanted = saved.read_bytes(), random.Random(17), tiny().get_weights()
    told = 0
    for i in range(80):
        data = bytearray(whole)
        if i % 4 == 0: del data[draw.randrange(len(data)):]
        else:
            for _ in range(draw.choice((1, 1, 30))): data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        saved.write_bytes(data)
        try: assert same(load_model(saved).get_weights(), wanted)
        except StudyError as e:
            assert "\n" not in str(e)
            told += 1
    assert told >= 60


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder with stand-ins for Keras's two files, in their form, and the networks they were written from."""
    folder, donors = tmp_path_factory.mktemp("imagenet"), {}
    for last, (_, make, file) in BACKBONES.items():
        donors[last] = make(include_top=False, weights=None, input_shape=(32, 32, 3))
        donors[last].set_weights([w + .1*np.random.default_rng(i).random(w.shape) if w.ndim == 1 else w for i, w in enumerate(donors[last].get_weights())])
        with h5py.File(folder/file, "w") as f: save_weights_to_hdf5_group(f, donors[last])
    return folder, donors


@pytest.fixture(scope="module")
def two(): return build("densenet_resnet", 32, 3, "paper")
@pytest.fixture(scope="module")
def grey(): return build("cnn_lstm", 32, 1, "paper")


def test_both_backbones_of_a_model_are_filled_layer_by_layer(imagenet, two):
    folder, donors = imagenet
    said, found = start_weights(two, str(folder), about("densenet_resnet")), dict(find_backbones(two))
    assert set(found) == set(donors) and "DenseNet-121" in said and "ResNet-50" in said
    for last, donor in donors.items():
        assert all(same(layer.get_weights(), found[last].get_layer(layer.name).get_weights()) for layer in donor.layers if layer.weights)


def test_a_backbone_inside_a_layer_answers_to_grey_as_the_donor_does(imagenet, grey):
    folder, donors = imagenet
    start_weights(grey, str(folder/BACKBONES["conv5_block16_concat"][2]), about("cnn_lstm"))
    (last, network), x = find_backbones(grey)[0], np.random.default_rng(5).random((2, 32, 32, 1)).astype("float32")
    there = keras.layers.GlobalAveragePooling2D()(donors[last](x.repeat(3, -1), training=False))
    assert np.allclose(np.asarray(network(x, training=False))[:, :1024], np.asarray(there), rtol=1e-3, atol=1e-4*float(np.abs(there).max()))


def test_layers_that_are_no_backbone_stay_as_they_were(imagenet, grey):
    head = grey.get_layer("sequence").get_weights()
    start_weights(grey, str(imagenet[0]), about("cnn_lstm"))
    assert same(head, grey.get_layer("sequence").get_weights())


def test_one_file_for_two_backbones_is_refused(imagenet, two):
    with pytest.raises(StudyError, match="more than one backbone"): start_weights(two, str(imagenet[0]/BACKBONES["conv5_block3_out"][2]), ABOUT)


def test_the_file_of_another_backbone_changes_nothing(imagenet, grey):
    before = grey.get_weights()
    with pytest.raises(StudyError, match="does not fit DenseNet-121"): start_weights(grey, str(imagenet[0]/BACKBONES["conv5_block3_out"][2]), ABOUT)
    assert same(before, grey.get_weights())


def test_with_one_of_two_files_missing_neither_backbone_is_filled(imagenet, two, tmp_path):
    name, before = BACKBONES["conv5_block16_concat"][2], two.get_weights()
    (tmp_path/name).symlink_to(imagenet[0]/name)
    with pytest.raises(StudyError, match=BACKBONES["conv5_block3_out"][2]): start_weights(two, str(tmp_path), ABOUT)
    assert same(before, two.get_weights())


def test_without_a_network_the_message_names_the_file_and_its_place(grey, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with mock.patch("keras.src.utils.file_utils.urlretrieve", side_effect=URLError("no network")), \
         mock.patch("keras.src.utils.file_utils.config.keras_home", return_value=str(tmp_path)), pytest.raises(StudyError) as told:
        start_weights(grey, "imagenet", ABOUT)
    assert BACKBONES["conv5_block16_concat"][2] in str(told.value) and str(tmp_path/"models") in str(told.value)


def test_the_word_imagenet_asks_keras_for_its_own_weights(imagenet, grey):
    donor = imagenet[1]["conv5_block16_concat"]
    make = mock.Mock(return_value=donor)
    with mock.patch.dict(W.BACKBONES, conv5_block16_concat=("DenseNet-121", make, "x.h5")): said = start_weights(grey, "imagenet", ABOUT)
    assert make.call_args.kwargs["weights"] == "imagenet" and make.call_count == 1 and "ImageNet" in said


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_the_sum_over_channels_is_kept(channels):
    kernel = np.random.default_rng(1).normal(size=(7, 7, 3, 4)).astype("float32")
    spread = W.spread_channels(kernel, channels)
    assert spread.shape == (7, 7, channels, 4) and np.allclose(spread.sum(2), kernel.sum(2), atol=1e-5)


@pytest.mark.parametrize("weights", ["", "none", " none "])
def test_none_leaves_the_random_start(weights):
    model = tiny()
    assert start_weights(model, weights, ABOUT) == "random" and same(model.get_weights(), tiny().get_weights())


def test_a_model_without_a_backbone_says_so():
    with pytest.raises(StudyError, match="tiny has no ImageNet backbone.*DenseNet-121 and ResNet-50"): start_weights(tiny(), "imagenet", ABOUT)


@pytest.mark.parametrize("weights", ["imagnet", "/nowhere/model.keras", __file__])
def test_what_is_no_choice_is_named_with_the_choices(weights):
    with pytest.raises(StudyError) as told: start_weights(tiny(), weights, ABOUT)
    assert weights in str(told.value) and "imagenet" in str(told.value) and "folder of a finished run" in str(told.value)


@pytest.mark.parametrize("folder", [True, False])
def test_the_weights_of_a_run_of_the_same_kind_are_taken_whole(folder, saved):
    model = tiny(2)
    start_weights(model, str(saved.parent if folder else saved), ABOUT | {"seed": 2})
    assert same(model.get_weights(), tiny().get_weights())


OTHERS = [{"model": "big"}, {"profile": "paper"}, {"size": 16}, {"channels": 3}, {"recipe": {"name": "paper", "checksum": "fedcba"}}, {"recipe": {"name": "plain"}}]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_weights_of_another_kind_are_refused_with_both_named(other, saved):
    model = tiny(2)
    with pytest.raises(StudyError) as told: start_weights(model, str(saved), ABOUT | other)
    assert W._words(ABOUT) in str(told.value) and W._words(ABOUT | other) in str(told.value)
    assert same(model.get_weights(), tiny(2).get_weights())


def test_a_file_of_other_code_is_refused_whole(saved):
    model = tiny(2, units=4)
    with pytest.raises(StudyError, match="another version"): start_weights(model, str(saved), ABOUT)
    assert same(model.get_weights(), tiny(2, units=4).get_weights())
