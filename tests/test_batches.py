"""Augmentation and batches: volumes stay true, training images alone are learnt from, one seed gives one result."""
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from dataclasses import replace

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from ich_study import train as training
from ich_study.augment import TISSUE, Ranges, draw_warps, kept_share, warp_images, warp_masks
from ich_study.batches import (MISSING, ImageBatches, Normaliser, SeriesBatches, Warp, blood_sd, blood_targets, bucket_series, fit_normaliser, fold_data,
                               label_targets, padded_length, slab_ml, toy_cache, warp_targets)
from ich_study.bleeds import make_patient
from ich_study.cache import Cache
from ich_study.render import patient_tables, render
from ich_study.schema import LABELS, StudyError

pytestmark = pytest.mark.xdist_group("batches")
SIZE = 128


@pytest.fixture(scope="module")
def toy():
    cache, folds = toy_cache(24, 32)
    return fold_data(cache, folds, 0)


@pytest.fixture(scope="module")
def few():
    cache, folds = toy_cache(8, 32)
    return fold_data(cache, folds, 0)


@pytest.fixture(scope="module")
def phantom():
    """A cache of phantom patients who bleed at the edge of the brain and inside, brain window, with their masks."""
    images, masks, tables = [], [], []
    for number in (20, 7):
        patient = make_patient(4, number)
        hu, fraction, g = render(patient)
        labels, _ = patient_tables(patient)
        images += [cv2.resize(np.clip(np.rint(h*255/80.), 0, 255).astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_AREA) for h in hu]
        part = np.minimum(fraction.sum(0, dtype=np.float32)/255, 1)
        masks += [np.rint(255*cv2.resize(p, (SIZE, SIZE), interpolation=cv2.INTER_AREA)).astype(np.uint8) for p in part]
        tables.append(labels.assign(patient=patient.name, series=patient.name, rows=g.rows, columns=g.columns, row_mm=g.row_mm, col_mm=g.col_mm, gap_mm=g.gap_mm))
    rows = pd.concat(tables, ignore_index=True).astype({l: "boolean" for l in LABELS})
    recipe = {"name": "plain", "normalise": "window", "augment": True, "size": SIZE, "steps": [], "checksum": "0"*16}
    return Cache(None, np.stack(images)[..., None], rows, recipe, None, np.stack(masks), np.ones(len(rows), bool))


def measured_ml(masks, rows):
    """mL of masks as a person would count them"""
    return masks.astype(float).sum((1, 2))/255/SIZE**2*slab_ml(rows)


def warped(cache, at, matrices):
    """(target mL, mL counted in the warped masks, labels)"""
    rows = cache.rows.iloc[at]
    labels, blood = warp_targets(cache.images[at], list(cache.masks[at]), matrices, label_targets(rows), blood_targets(rows, 1.))
    return blood*slab_ml(rows), measured_ml(warp_masks(cache.masks[at], matrices), rows), labels


def test_volume_targets_stay_true_under_augmentation(phantom):
    """Within 2 % + 0.02 mL of the warped mask's own volume, beyond what the mask at this size differs already."""
    at = np.flatnonzero(phantom.rows.blood_ml > .1)
    before = measured_ml(phantom.masks[at], phantom.rows.iloc[at])
    assert np.allclose(before, phantom.rows.blood_ml.iloc[at], rtol=.03, atol=.03)
    for seed in range(8):
        matrices, _ = draw_warps(len(at), SIZE, np.random.default_rng(seed))
        target, found, labels = warped(phantom, at, matrices)
        assert (np.abs(target*before/phantom.rows.blood_ml.iloc[at].to_numpy() - found) <= .02*found + .02).all()
        assert (labels == label_targets(phantom.rows.iloc[at])).all()


def test_blood_that_is_cropped_away_is_subtracted(phantom):
    """The frame is moved until its edge cuts through the blood; a border pixel may count as half."""
    at = np.flatnonzero(phantom.rows.blood_ml > .5)
    before = measured_ml(phantom.masks[at], phantom.rows.iloc[at])
    for share in (.25, .5, .75):
        middle = [np.searchsorted(np.cumsum(m.sum(0, dtype=float)), share*m.sum(dtype=float)) for m in phantom.masks[at]]
        target, found, _ = warped(phantom, at, np.array([[[1.2, 0, -1.2*x], [0, 1, 0]] for x in middle], np.float32))
        target *= before/phantom.rows.blood_ml.iloc[at].to_numpy()
        edge = phantom.masks[at].max(1)[np.arange(len(at)), middle]/255*SIZE/SIZE**2*slab_ml(phantom.rows.iloc[at])
        assert (np.abs(target - found) <= .02*found + .6*edge + .02).all()
        assert abs(target.sum()/found.sum() - 1) < .03 and (target < 1.2*before).all()


def test_labels_are_missing_and_not_false_when_all_blood_has_left(phantom):
    at = np.flatnonzero(phantom.rows.blood_ml > .5)[:5]
    away = np.tile(np.array([[1, 0, SIZE], [0, 1, 0]], np.float32), (len(at), 1, 1))
    target, found, labels = warped(phantom, at, away)
    assert (target == 0).all() and (found == 0).all() and (labels == MISSING).all()


def test_a_volume_is_missing_when_tissue_leaves_and_nobody_knows_the_mask(phantom):
    at = np.flatnonzero((phantom.rows.blood_ml > .5) & ((phantom.images[..., 0] > TISSUE).mean((1, 2)) > .1))[:6]
    images, masks, rows = phantom.images[at], [None]*len(at), phantom.rows.iloc[at]
    labels, blood = label_targets(rows), blood_targets(rows, 1.)
    smaller = np.array([[[.9, 0, 6], [0, .9, 6]]]*len(at), np.float32)
    cut = np.array([[[1, 0, 40], [0, 1, 0]]]*len(at), np.float32)
    assert np.allclose(warp_targets(images, masks, smaller, labels, blood)[1], .81*blood, rtol=1e-5)
    kept, lost = warp_targets(images, masks, cut, labels, blood)
    assert (lost == MISSING).all() and (kept == labels).all()
    none = warp_targets(images, masks, cut, 0*labels, 0*blood)
    assert (none[0] == 0).all() and (none[1] == 0).all()  # no blood stays no blood


def test_kept_share_counts_every_pixel_once():
    """Against the plain definition, pixel by pixel, on masks that reach every edge."""
    rng = np.random.default_rng(0)
    for k in range(60):
        mask = (rng.integers(0, 256, (24, 24))*(rng.random((24, 24)) < rng.uniform(.01, .5))).astype(np.uint8)
        matrix = draw_warps(1, 24, rng, Ranges(40, (.7, 1.5), (.5, 1)))[0][0]
        y, x = np.nonzero(mask)
        to = matrix.astype(float) @ np.stack([x, y, np.ones_like(x)])
        inside = ((to >= -.5) & (to < 23.5)).all(0)
        assert np.isclose(kept_share(mask, matrix), mask[y, x][inside].sum(dtype=float)/mask.sum(dtype=float), atol=1e-12)
    assert np.isnan(kept_share(0*mask, matrix))


def test_flips_shifts_and_right_angles_are_exact():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 31, 31, 5), dtype=np.uint8)
    only = lambda **k: Ranges(**({"rotation_deg": 0, "scale": (1, 1), "crop": (1, 1), "flip": 0} | k))
    assert (warp_images(images, draw_warps(4, 31, rng, only())[0]) == images).all()
    assert (warp_images(images, draw_warps(4, 31, rng, only(flip=1))[0]) == images[:, :, ::-1]).all()
    right = np.tile(np.array([[1, 0, 3], [0, 1, 0]], np.float32), (4, 1, 1))
    assert (warp_images(images, right)[:, :, 3:] == images[:, :, :-3]).all() and not warp_images(images, right)[:, :, :3].any()


def test_a_crop_shows_a_window_of_the_image():
    """The four corners of the frame come from a square inside the old frame."""
    matrices, area = draw_warps(200, 64, np.random.default_rng(0), Ranges(0, (1, 1), (.6, 1), 0))
    back = np.stack([cv2.invertAffineTransform(m) for m in matrices])
    corners = back @ np.array([[-.5, 63.5, -.5, 63.5], [-.5, -.5, 63.5, 63.5], [1, 1, 1, 1]])
    assert corners.min() >= -.501 and corners.max() <= 63.501
    assert np.allclose(np.ptp(corners, axis=2)**2, (64**2/area)[:, None], rtol=1e-4)


def test_images_outside_training_change_no_statistic(toy):
    """Neither the normalisation nor the blood's deviation, by sums and by pixels."""
    other, cache = toy.role != "train", toy.cache
    images, rows = cache.images.copy(), cache.rows.copy()
    images[other] = 255 - images[other]
    rows.loc[other, "blood_ml"] = 99.
    sums = cache.sums.copy(); sums[other] = 10**9
    norm, sd = fit_normaliser(toy), blood_sd(toy)
    for changed in (replace(cache, images=images, sums=sums, rows=rows), replace(cache, images=images, sums=None, rows=rows)):
        data = replace(toy, cache=changed)
        assert fit_normaliser(data) == norm and blood_sd(data) == sd
    images[~other] = 255 - images[~other]
    assert fit_normaliser(replace(toy, cache=replace(cache, images=images, sums=None))) != norm


def test_statistics_are_those_of_each_channel(toy):
    images = np.concatenate([toy.cache.images, toy.cache.images//2, toy.cache.masks[..., None]], -1)
    data = replace(toy, cache=replace(toy.cache, images=images, sums=None, recipe=toy.cache.recipe | {"normalise": "zscore"}))
    norm, seen = fit_normaliser(data), images[data.where("train")].reshape(-1, 3)
    assert np.allclose(norm.mean, seen.mean(0)) and np.allclose(norm.sd, seen.std(0))
    by_hand = (np.clip((images - np.array(norm.mean))/np.array(norm.sd), -3, 3) + 3)/6
    assert np.allclose(norm(images), by_hand, atol=1e-6) and norm(images).dtype == np.float32
    assert Normaliser("zscore", list(norm.mean), list(norm.sd)) == norm  # as it comes back from JSON


def test_patients_never_cross_roles(toy):
    seen = {r: set(toy.rows.patient.iloc[toy.where(r)]) for r in ("train", "validation", "test")}
    assert not any(seen[a] & seen[b] for a in seen for b in seen if a < b)
    for role in seen:
        batches = ImageBatches(toy, role, fit_normaliser(toy), 1., 7, shuffle=True)
        assert sorted(batches.order) == sorted(toy.where(role)) and sum(len(batches[i][0]) for i in range(len(batches))) == len(batches.order)


def test_a_batch_depends_on_seed_pass_and_number_alone(toy):
    make = lambda seed: ImageBatches(toy, "train", fit_normaliser(toy), 1., 8, True, True, seed, masks=True)
    one, other = make(3), make(3)
    forth, back = [one[i] for i in range(len(one))], [other[i] for i in reversed(range(len(other)))][::-1]
    again = [one[i] for i in range(len(one))]
    same = lambda a, b: all((x == y).all() for (xa, ya), (xb, yb) in zip(a, b) for x, y in ((xa, xb), *((ya[k], yb[k]) for k in ya)))
    assert same(forth, back) and same(forth, again)
    one.on_epoch_end(); other.on_epoch_end()
    assert same([one[0]], [other[0]]) and not same([one[0]], [forth[0]]) and not same([make(4)[0]], [forth[0]])


def test_a_mask_moves_with_its_image(toy):
    known = np.arange(len(toy.rows)) % 3 > 0
    data = replace(toy, cache=replace(toy.cache, masked=known))
    for on in ("loader", "model"):
        batches = ImageBatches(data, "train", fit_normaliser(toy), 1., 64, True, True, 1, on, True)
        x, y = batches[0]
        image, at = (x if on == "loader" else warp_images(x["image"], x["warp"])/255)[..., 0], batches.order[:64]
        assert (y["mask"][~known[at]] == MISSING).all() and (y["mask"][known[at]] >= 0).all() and y["mask"].shape == (64, 32, 32, 1)
        for k in np.flatnonzero(known[at] & toy.rows["any"].iloc[at].to_numpy(bool)):
            assert image[k][y["mask"][k, ..., 0] > .9].min() > image[k][y["mask"][k, ..., 0] == 0].max() - .1


@pytest.mark.parametrize("channels,most,often", [(1, 1, .001), (2, 8, 1), (3, 1, .001), (4, 1, .001), (5, 8, 1)])
def test_loader_and_model_warp_alike(channels, most, often):
    """On noise: one grey level in a pixel of a thousand, or 255/32 levels where OpenCV rounds coordinates to 1/32 pixel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 48, 48, channels), dtype=np.uint8)
    matrices, _ = draw_warps(24, 48, rng)
    apart = np.abs(keras.ops.convert_to_numpy(Warp()(images, matrices)) - warp_images(images, matrices))
    assert apart.max() <= most and (apart > 0).mean() < often


def test_training_with_either_warp_ends_alike(few):
    """Same batches, same targets; the losses differ by rounding alone."""
    zscore = replace(few, cache=replace(few.cache, recipe=few.cache.recipe | {"normalise": "zscore"}))
    losses = [training.fit_model(zscore, training.make_settings("bhcnet", epochs=2, warp_on=on)).history.loss for on in ("loader", "model")]
    assert np.allclose(*losses, rtol=.02)


class Seen(ImageBatches):
    made = []
    def __init__(self, data, role, *more, **named):
        super().__init__(data, role, *more, **named)
        self.made.append(self)


@pytest.mark.parametrize("asked,recipe", [(True, True), (False, True), (True, False)])
def test_training_batches_alone_are_augmented(toy, monkeypatch, asked, recipe):
    """And only if settings and recipe both say so. (What would be trained is looked at, and not trained.)"""
    monkeypatch.setattr(training, "_fit", lambda *_: pd.DataFrame({"stage": ["images"]}))
    monkeypatch.setattr(Seen, "made", [])
    monkeypatch.setattr(training, "ImageBatches", Seen)
    data = replace(toy, cache=replace(toy.cache, recipe=toy.cache.recipe | {"augment": recipe}))
    fitted = training.fit_model(data, training.make_settings("bhcnet", epochs=1, augment=asked))
    roles = {b.data.role[b.order[0]]: b.augmented for b in Seen.made}
    assert roles == {"train": asked and recipe, "validation": False}
    assert training.describe_run(fitted, data, {}, "x")["augmented"] == (asked and recipe)


@pytest.mark.parametrize("shuffled", [False, True])
def test_buckets_hold_every_series_once_and_pad_little(shuffled):
    rng, bounds = np.random.default_rng(0), np.cumsum([0, *np.random.default_rng(1).integers(1, 60, 97)])
    parts = [np.arange(a, b) for a, b in zip(bounds, bounds[1:])]
    batches = bucket_series(parts, 4, rng if shuffled else None)
    assert sorted(np.concatenate([p for b in batches for p in b])) == list(range(bounds[-1])) and sum(map(len, batches)) == 97
    lengths = [max(padded_length(len(p)) for p in b) for b in batches]
    assert set(n % 8 for n in lengths) == {0} and lengths[0] != lengths[1]
    padded = sum(n*len(b) for n, b in zip(lengths, batches))
    assert padded < 1.25*bounds[-1] < .8*97*max(lengths)


def test_series_batches_cover_each_image_of_a_role_once(toy):
    number = np.arange(len(toy.rows), dtype=np.float32)[:, None]
    batches = SeriesBatches(toy, "train", number, 1., 3, True, 5)
    for _ in range(2):
        seen = np.concatenate([x["images"][x["mask"] > 0][:, 0] for x, _ in (batches[i] for i in range(len(batches)))])
        assert sorted(seen) == list(toy.where("train"))
        batches.on_epoch_end()
    x, y = batches[0]
    assert (y["blood"][x["mask"] == 0] == MISSING).all() and (y["image_labels"][x["mask"] == 0] == MISSING).all()


def test_a_series_of_unknown_images_is_not_called_empty(toy):
    rows = toy.rows.astype({l: "boolean" for l in LABELS})
    at = toy.where("train")[0]
    whole = rows.series == rows.series.iloc[at]
    for true, want in ((False, MISSING), (True, 1.)):
        changed = rows.copy()
        changed.loc[whole, list(LABELS)] = true
        changed.loc[at, list(LABELS)] = pd.NA
        batches = SeriesBatches(replace(toy, cache=replace(toy.cache, rows=changed)), "train", np.zeros((len(rows), 1), np.float32), 1., 1)
        assert (batches[[p[0] for [p] in batches.batches].index(at)][1]["labels"] == want).all()


@pytest.mark.parametrize("name,channels", [("bhcnet", 3), ("cnn_lstm", 2)])
def test_images_of_several_channels_train(few, name, channels):
    """Neighbours beside the image, or a mask."""
    cache = few.cache
    more = cache.masks[..., None] if channels == 2 else np.concatenate([np.roll(cache.images, k, 0) for k in (-1, 1)], -1)
    data = replace(few, cache=replace(cache, images=np.concatenate([cache.images, more], -1), sums=None))
    fitted = training.fit_model(data, training.make_settings(name, epochs=1))
    predictions, volumes = training.predict_fold(fitted, data, dict(analysis="toy", model=name, recipe="toy", variant="base", seed=17, fold=0))
    assert fitted.history.loss.iloc[-1] < 5 and volumes.size and predictions.score.between(0, 1).all() and len(fitted.normaliser.mean) == channels


def test_what_cannot_be_done_is_refused(toy):
    norm = fit_normaliser(toy)
    for call, said in ((lambda: ImageBatches(toy, "train", norm, 1., warp_on="gpu"), "loader or model"), (lambda: ImageBatches(toy, "dev", norm, 1.), "dev"),
                       (lambda: Ranges(crop=(.9, 1.2)), "crop"), (lambda: warp_images(np.zeros((2, 8, 8, 1)), np.zeros((2, 2, 3))), "float64"),
                       (lambda: Normaliser("minmax", (0.,), (1.,)), "minmax"), (lambda: training.make_settings("bhcnet", warp_on="gpu"), "gpu")):
        with pytest.raises(StudyError, match=said): call()
