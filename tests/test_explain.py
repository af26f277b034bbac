"""Maps of where a network looked, the check of them, and the galleries."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from thorough import THOROUGH

from ich_study.batches import fold_data, fit_normaliser, toy_cache
from ich_study.explain import METHODS, SHARES, draw_maps, grad_cam, heat_shares, heat_summary, heat_words, reading_layers, shuffled_weights
from ich_study.gallery import FAILURES, PICKS, failure_words, label_ml, pick_failures, pick_gallery, picks_shown
from ich_study.models import load_model_spec
from ich_study.schema import LABELS, StudyError
from ich_study.train import Fitted, fit_model, make_settings, predict_fold
from ich_study.units import choose_thresholds

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("explain")  # one training for all
RUN = dict(analysis="toy", model="bhcnet", recipe="plain", variant="base", seed=17, fold=0)
MODELS = ("bhcnet", "hybrid_cnn", "densenet_resnet", "cnn_lstm", "dl_solution", "cnn_ds")


def toy():
    """Discs inside a ring that is brighter than they are."""
    cache, folds = toy_cache(24, 64)
    y, x = np.mgrid[:64, :64] - 31.5
    ring = (np.abs(np.hypot(x, y) - 29) < 1.5)[..., None]
    return fold_data(replace(cache, images=np.where(ring, np.uint8(255), cache.images), sums=None), folds, 0)


def untrained(name, data):
    import keras
    keras.utils.set_random_seed(3)
    spec = load_model_spec(name)
    return Fitted(spec.build(64), spec.unit, make_settings(name), fit_normaliser(data), 1., pd.DataFrame())


@pytest.fixture(scope="module")
def trained():
    data = toy()
    fitted = fit_model(data, make_settings("bhcnet", epochs=20))
    predictions, volumes = predict_fold(fitted, data, RUN)
    test = lambda t: t[t.split == "test"].reset_index(drop=True)
    return fitted, data, test(predictions), test(volumes), choose_thresholds(predictions)


@pytest.fixture(scope="module")
def shares(trained):
    fitted, data, predictions, _, thresholds = trained
    return heat_shares(fitted, data, predictions, thresholds)


def bleeding(data, n=4): return data.where("test")[data.rows["any"].to_numpy(bool)[data.where("test")]][:n]


def test_mass_lies_in_the_bleed_and_shuffling_undoes_it(shares):
    assert list(shares) == list(SHARES) and len(shares) > 10
    assert shares.ratio.median() >= 3 and (shares.ratio >= 3).mean() > .8
    assert shares.shuffled.median() < 2 and shares.elsewhere.median() < .25*shares.ratio.median()
    assert shares.odds.median() > 2, "painting the bleed over must lower the score of a network that finds it"


def test_check_becomes_estimates_with_intervals(shares):
    table = heat_summary(shares, {"model": "bhcnet"})
    row = table[(table.images == "all") & (table.metric == "heat_ratio")].iloc[0]
    assert row.value == pytest.approx(shares.ratio.median()) and row.low <= row.value <= row.high and row.n == len(shares)
    assert list(table.columns[:2]) == ["model", "images"] and "training made them do so" in heat_words(table)
    flat = heat_words(heat_summary(shares.assign(ratio=1., odds=1.)))
    assert "goes by something else" in flat and "do not read them" in heat_words(heat_summary(shares.assign(ratio=1., odds=9.)))
    assert "read them with care" in heat_words(heat_summary(shares.assign(shuffled=shares.ratio)))


def test_no_mask_no_number(trained):
    fitted, data, predictions, _, thresholds = trained
    for cache in (replace(data.cache, masks=None, masked=None), replace(data.cache, masked=np.zeros(len(data.rows), bool))):
        empty = heat_shares(fitted, replace(data, cache=cache), predictions, thresholds)
        table = heat_summary(empty)
        assert empty.empty and table.value.isna().all() and table.reason.notna().all() and "cannot be checked" in heat_words(table)


def test_check_is_the_same_twice_and_leaves_the_weights(trained, shares):
    fitted, data, predictions, _, thresholds = trained
    before = fitted.model.get_weights()
    pd.testing.assert_frame_equal(shares, heat_shares(fitted, data, predictions.sample(frac=1, random_state=1), thresholds))
    with pytest.raises(RuntimeError):
        with shuffled_weights(fitted.model): raise RuntimeError
    assert all(np.array_equal(a, b) for a, b in zip(before, fitted.model.get_weights()))
    assert len(heat_shares(fitted, data, predictions, thresholds, most=5, shuffles=1)) == 5


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_maps(name):
    data = toy()
    fitted, at = untrained(name, data), bleeding(data, 2)
    for method in METHODS:
        heats, scores = grad_cam(fitted, data, at, "subdural", method)
        assert heats.shape == (2, 64, 64) and np.isfinite(heats).all() and heats.min() >= 0 and heats.max() <= 1
        assert ((scores > 0) & (scores < 1)).all()
    network = fitted.model if fitted.unit == "image" else fitted.model.get_layer("image_network").network
    assert reading_layers(network) and not any("call" in vars(l) for l in reading_layers(network))


def test_slope_is_the_slope():
    """What passes through a place is the score's first-order loss when that place is taken away."""
    import keras
    data = toy()
    image = keras.Input((64, 64, 1))
    x = keras.layers.Conv2D(3, 3, padding="same", activation="relu", name="conv")(image)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    fitted = replace_model(untrained("bhcnet", data), keras.Model(image, {"labels": keras.layers.Dense(6, name="labels")(pooled)}))
    at = bleeding(data, 1)
    heat = grad_cam(fitted, data, at, "any", places=64)[0][0]
    maps = keras.Model(image, x).predict(fitted.normaliser(data.cache.images[at]), verbose=0)[0]
    weight = fitted.model.get_layer("labels").get_weights()[0][:, 0]
    wanted = np.maximum(maps@weight, 0)
    assert np.allclose(heat, wanted/max(wanted.max(), 1e-12), atol=1e-4)
    assert np.allclose(grad_cam(fitted, data, at, "any", "gradcam", places=64)[0][0], heat, atol=1e-4), "before an average both ways agree"


def replace_model(fitted, model): return Fitted(model, "image", fitted.settings, fitted.normaliser, 1., pd.DataFrame())


def test_series_maps_do_not_depend_on_company():
    data = toy()
    fitted, at = untrained("cnn_lstm", data), bleeding(data, 6)[[0, 2, 5]]
    together, alone = grad_cam(fitted, data, at), [grad_cam(fitted, data, at[i:i + 1]) for i in range(3)]
    for i, (heat, score) in enumerate(alone): assert np.allclose(heat[0], together[0][i], atol=2e-3) and score[0] == pytest.approx(together[1][i], abs=1e-5)
    whole = np.flatnonzero((data.rows.series == data.rows.series.iloc[at[0]]).to_numpy())
    x = {"images": fitted.normaliser(data.cache.images[whole])[None], "mask": np.ones((1, len(whole)), np.float32)}
    scores = fitted.model.predict(x, verbose=0)["image_labels"][0, :, 0]
    assert together[1][0] == pytest.approx(scores[list(whole).index(at[0])], abs=1e-5), "the score is that of the image within its series"


JAX = """
import json, sys
sys.path.insert(0, sys.argv[1] + "/tests")
from test_explain import bleeding, grad_cam, toy, untrained
data = toy()
fitted = untrained("bhcnet", data)
fitted.model.load_weights(sys.argv[2])
found = [x.tolist() for x in grad_cam(fitted, data, bleeding(data, 2))]
print("found" + json.dumps(found))
"""


@pytest.mark.skipif(not THOROUGH, reason="a minute of compiling: make test THOROUGH=1")
def test_jax_gives_the_same_maps(tmp_path):
    pytest.importorskip("jax")
    data = toy()
    fitted, file = untrained("bhcnet", data), tmp_path/"bhcnet.weights.h5"
    fitted.model.save_weights(file)
    env = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", JAX, str(ROOT), str(file)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    heats, scores = json.loads(done.stdout.split("found")[-1])
    wanted = grad_cam(fitted, data, bleeding(data, 2))
    assert np.allclose(heats, wanted[0], atol=1e-2) and np.allclose(scores, wanted[1], atol=1e-4)


def test_bad_input_is_refused_in_one_line(trained):
    fitted, data, predictions, volumes, thresholds = trained
    at = bleeding(data)
    for call in (lambda: grad_cam(fitted, data, at, "stroke"), lambda: grad_cam(fitted, data, at, method="x"), lambda: grad_cam(fitted, data, []), lambda: grad_cam(fitted, data, 3),
                 lambda: grad_cam(fitted, data, [len(data.rows)]), lambda: grad_cam(fitted, data, [-1]), lambda: grad_cam(fitted, data, at, places=65), lambda: grad_cam(fitted, data, at, images=data.cache.images[:1]),
                 lambda: heat_shares(fitted, data, predictions, thresholds, shuffles=0), lambda: heat_shares(fitted, data, predictions, thresholds, most=0),
                 lambda: draw_maps(fitted, data, pick_gallery(data.rows, predictions, thresholds).assign(series="gone"))):
        with pytest.raises(StudyError) as e: call()
        assert "\n" not in str(e.value)


def test_galleries_are_drawn_and_say_what_they_show(trained):
    fitted, data, predictions, volumes, thresholds = trained
    picks = pick_gallery(data.rows, predictions, thresholds)
    figure = draw_maps(fitted, data, picks)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(titles) == len(picks) and all("mL" in t for t in titles)
    assert figure._repr_png_() == draw_maps(fitted, data, picks)._repr_png_()
    assert not any(s in " ".join(titles) for s in picks.series), "no name of a series on a page"
    assert "no such image" in draw_maps(fitted, data, picks[:0]).texts[0].get_text()
    unknown = replace(data, cache=replace(data.cache, masks=None, masked=None))
    assert draw_maps(fitted, unknown, picks.assign(ml=np.nan)).axes[0].get_title().split("\n")[1].startswith("mL not known")


def tables(score, ml=None):
    """Four series of three images: s0 5 mL, s1 50 mL, s2 and s3 without blood."""
    blood = np.array([[1, 3, 1], [10, 30, 10], [0, 0, 0], [0, 0, 0]], float)
    rows = pd.DataFrame([{"series": f"s{s}", "image": f"s{s}i{i}", "blood_ml": v} | {l: v > 0 and l in ("any", "subdural") for l in LABELS} for s, vs in enumerate(blood) for i, v in enumerate(vs)])
    images = pd.concat([rows[["series", "image"]].assign(subtype=l, truth=rows[l], score=np.repeat(score, 3)*np.tile([.8, 1, .9], 4)) for l in LABELS])
    series = images.groupby(["series", "subtype"], as_index=False).agg(truth=("truth", "max"), score=("score", "max"))
    predictions = pd.concat([images, series], ignore_index=True).assign(**RUN, split="test")
    thresholds = pd.DataFrame([{k: RUN[k] for k in ("model", "recipe", "variant", "seed", "fold")} | {"subtype": l, "rule": "fixed", "value": .5} for l in LABELS])
    volumes = pd.DataFrame({"series": [f"s{s}" for s in range(4)], "subtype": "any", "split": "test", "truth_ml": blood.sum(1), "predicted_ml": blood.sum(1) if ml is None else ml})
    return rows, predictions.assign(truth=predictions.truth.astype("boolean")), volumes, thresholds


def test_failures_follow_their_rules():
    rows, predictions, volumes, thresholds = tables([.2, .1, .9, .1], [9., 20., 1., 0.])
    picks = pick_failures(rows, predictions, volumes, thresholds)
    assert list(picks) == list(PICKS) and list(picks.kind) == ["missed bleed"]*2 + ["false alarm"] + ["volume too high"]*2 + ["volume too low"]
    assert list(picks.image) == ["s1i1", "s0i1", "s2i1", "s0i1", "s2i1", "s1i1"], "most blood first; the alarm's highest image; errors of 4, 1 and -30 mL"
    assert len(pick_failures(rows, predictions, volumes, thresholds, most=1)) == 4
    assert "series" not in picks_shown(picks) and not set(picks.series) & set(picks_shown(picks).astype(str).to_numpy().ravel())


def test_failures_without_volumes_go_by_score():
    rows, predictions, volumes, thresholds = tables([.2, .1, .9, .1], [9., 20., 1., 0.])
    picks = pick_failures(rows.assign(blood_ml=np.nan), predictions, volumes.assign(truth_ml=np.nan), thresholds)
    assert list(picks.kind) == ["missed bleed"]*2 + ["false alarm"] and list(picks.series) == ["s1", "s0", "s2"]
    assert "no series with volume too high and none with volume too low" in failure_words(picks)


def test_a_run_without_failures_says_so():
    rows, predictions, volumes, thresholds = tables([.9, .9, .1, .1])
    picks = pick_failures(rows, predictions, volumes, thresholds)
    assert picks.empty and all(k in failure_words(picks) for k in FAILURES) and len(picks_shown(picks)) == 0


def test_predicted_blood_chooses_the_image_of_an_overestimate():
    rows, predictions, volumes, thresholds = tables([.9, .9, .1, .1], [5., 50., 0., 7.])
    ml = np.zeros(12); ml[11] = 7
    assert pick_failures(rows, predictions, volumes, thresholds, image_ml=ml).image.tolist() == ["s3i2"]


def test_unknown_labels_are_neither_missed_nor_alarms():
    rows, predictions, volumes, thresholds = tables([.2, .1, .9, .1])
    unknown = predictions.assign(truth=predictions.truth.mask(predictions.series.isin(["s1", "s2"])))
    assert set(pick_failures(rows, unknown, volumes, thresholds).series) == {"s0"}
    picks = pick_gallery(rows, unknown, thresholds)
    assert set(picks.series) == {"s0"} and set(picks.kind) == {"only", "missed"}


def test_gallery_shows_small_and_large():
    rows, predictions, _, thresholds = tables([.2, .1, .9, .1])
    picks = pick_gallery(rows, predictions, thresholds).set_index(["kind", "subtype"])
    assert picks.image["small", "subdural"] == "s0i1" and picks.image["large", "subdural"] == "s1i1" and picks.ml["large", "any"] == 30
    assert ("small", "epidural") not in picks.index and picks.image["false alarm", "any"] == "s2i1"
    assert np.isnan(label_ml(rows.assign(epidural=True), "subdural")[1]), "two subtypes in an image: the total is nobody's"


def test_galleries_refuse_what_they_cannot_use():
    rows, predictions, volumes, thresholds = tables([.2, .1, .9, .1])
    for call in (lambda: pick_gallery(rows, predictions[:0], thresholds), lambda: pick_gallery(rows[:5], predictions, thresholds), lambda: pick_gallery(rows, predictions, thresholds, wrong=-1),
                 lambda: pick_failures(rows, predictions, volumes.assign(split="external"), thresholds), lambda: pick_failures(rows, predictions, volumes, thresholds, most=-1),
                 lambda: pick_failures(rows, predictions, volumes, thresholds, image_ml=np.zeros(3)), lambda: label_ml(rows, "blood"),
                 lambda: pick_gallery(rows, pd.concat([predictions, predictions.assign(split="validation")]), thresholds),
                 lambda: pick_gallery(rows, pd.concat([predictions, predictions.assign(model="cnn_ds")]), thresholds)):
        with pytest.raises(StudyError) as e: call()
        assert "\n" not in str(e.value)
