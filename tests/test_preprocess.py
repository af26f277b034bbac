"""Steps and recipes: against their references, under hypothesis, and on everything that must be refused."""
import json
import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from scipy import ndimage
from skimage.exposure import equalize_adapthist
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from skimage.transform import downscale_local_mean
from skimage.transform import resize as skimage_resize

from ich_study.preprocess import (
    AIR,
    bilateral,
    blood_and_brain,
    clahe,
    gaussian,
    median,
    neighbours,
    nlm,
    region_growing_channel,
    resize,
    shrink,
    skull_strip,
    tv,
    watershed_channel,
    window,
    windows,
)
from ich_study.recipes import RECIPES, STEPS, Recipe, apply_recipe, check_recipe, contrast_table, make_recipe, recipe_views
from ich_study.schema import StudyError

GREY = {"gaussian": gaussian, "median": median, "bilateral": bilateral, "nlm": nlm, "tv": tv}
small_grey = hnp.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)))
quick = settings(max_examples=40, deadline=None)


def head(size=512, seed=0):
    """A skull of 1,000 HU around textured brain with a bleed of 65 HU, as HU; pixels of 0.5 mm at 512."""
    y, x = np.mgrid[-1:1:size*1j, -1:1:size*1j]
    r, rng = np.hypot(x/.68, y/.84), np.random.default_rng(seed)
    hu = np.select([r < .9, r < 1, r < 1.06], [34 + 4*np.sin(9*x)*np.cos(7*y), 1000., 20.], -1000.)
    hu[np.hypot(x - .2, y + .1) < .16] = 65
    return (ndimage.gaussian_filter(hu, .8) + rng.normal(0, 5, hu.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def hu(): return head()


@pytest.fixture(scope="module")
def grey(hu): return window(hu)


def apart(a, b): return np.abs(np.asarray(a, float) - np.asarray(b, float))


# ---- against references

@quick
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-2000, 4000, width=32)),
       st.floats(-200, 800), st.floats(1, 4000))
def test_window_is_a_clipped_straight_line(hu, centre, width):
    assert apart(window(hu, centre, width), np.clip((hu.astype(float) - centre + width/2)/width, 0, 1)*255).max() <= .52


def test_window_of_the_golden_case_to_half_a_level():
    levels = window(np.array([-50, 10, 40, 90, 300]), 40, 80)
    assert apart(levels/255, [0, .125, .5, 1, 1]).max() <= .5/255


@pytest.mark.parametrize("sigma", [.5, 1, 2.5])
def test_gaussian_agrees_with_scipy_within_a_level(grey, sigma):
    wanted = ndimage.gaussian_filter(grey.astype(float), sigma, mode="mirror", radius=(int(np.rint(sigma*6 + 1)) | 1)//2)
    assert apart(gaussian(grey, sigma), wanted).max() <= 1


@pytest.mark.parametrize("size", [3, 5, 7])
def test_median_is_scipys(grey, size):
    assert (median(grey, size) == ndimage.median_filter(grey, size, mode="nearest")).all()


def test_bilateral_is_its_formula_over_a_disk(grey):
    image = grey[150:350, 150:350].astype(float)
    padded, total, weight = np.pad(image, 3, mode="reflect"), 0, 0
    for dy, dx in [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4) if dy*dy + dx*dx <= 9]:
        near = padded[3 + dy:203 + dy, 3 + dx:203 + dx]
        w = np.exp(-(dy*dy + dx*dx)/(2*1.5**2) - (near - image)**2/(2*40**2))
        total, weight = total + w*near, weight + w
    assert apart(bilateral(grey[150:350, 150:350]), total/weight).max() <= .51


def test_total_variation_is_scikit_images_rounded(grey):
    assert apart(tv(grey), denoise_tv_chambolle(grey/255, weight=.1, max_num_iter=10)*255).max() <= .51


def test_non_local_means_do_what_scikit_images_do(grey):
    part = grey[200:300, 200:300]
    wanted = denoise_nl_means(part/255, patch_size=5, patch_distance=4, h=15/255, fast_mode=True)*255
    off = apart(nlm(part), wanted)
    assert off.mean() < 2 and np.corrcoef(nlm(part).ravel(), wanted.ravel())[0, 1] > .995


@pytest.mark.parametrize("shape,size,most", [((512, 512), 256, .51), ((650, 650), 256, 1), ((256, 256), 400, 1), ((300, 200), 256, 1)])
def test_resize_agrees_with_scikit_image_without_a_prefilter(shape, size, most):
    image = np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)
    wanted = skimage_resize(image.astype(float), (size, size), order=1, anti_aliasing=False, mode="edge")
    assert apart(resize(image, size), wanted).max() <= most


@pytest.mark.parametrize("size", [8, 32, 64, 128, 256])
def test_shrink_is_the_mean_of_blocks(grey, size):
    assert apart(shrink(grey, size), downscale_local_mean(grey.astype(float), (512//size,)*2)).max() <= .51


def test_clahe_differs_from_scikit_image_as_much_as_we_say(grey, hu):
    ours, theirs = clahe(grey, 8, 2.56), equalize_adapthist(grey, kernel_size=64, clip_limit=.01)*255
    inside = (hu > 0) & (hu < 80) & (ndimage.uniform_filter(grey.astype(float), 25) > 60)
    assert 1 < apart(ours, theirs)[inside].mean() < 10 and np.corrcoef(ours[inside], theirs[inside])[0, 1] > .97


# ---- what every step keeps

@pytest.mark.parametrize("name", GREY)
@quick
@given(image=small_grey)
def test_grey_steps_keep_shape_type_and_range(name, image):
    before = image.copy()
    out = GREY[name](image)
    assert out.shape == image.shape and out.dtype == np.uint8 and image.min() <= out.min() and out.max() <= image.max()
    assert (image == before).all()


@pytest.mark.parametrize("name", [*GREY, "clahe"])
def test_grey_steps_treat_channels_one_by_one(name):
    image = np.random.default_rng(5).integers(0, 256, (32, 40, 5)).astype(np.uint8)
    out = STEPS[name](image)
    assert out.shape == image.shape and all((out[..., c] == STEPS[name](image[..., c])).all() for c in range(5))


@pytest.mark.parametrize("value", [0, 1, 77, 254, 255])
@pytest.mark.parametrize("name", [*GREY, "clahe"])
def test_a_constant_image_stays_constant(name, value):
    out = STEPS[name](np.full((40, 33), value, np.uint8))
    assert np.ptp(out) == 0 and (name == "clahe" or out[0, 0] == value)


@quick
@given(small_grey)
def test_resize_and_shrink_stay_within_what_there_was(image):
    out = resize(image, 16)
    assert out.shape == (16, 16) and image.min() <= out.min() and out.max() <= image.max()
    assert out.min() <= shrink(out, 8).min() and shrink(out, 8).max() <= out.max()


@quick
@given(hnp.arrays(np.uint8, (16, 16)), st.integers(1, 5))
def test_clahe_of_one_tile_keeps_the_order_of_grey_levels(image, clip):
    out = clahe(image, 1, float(clip))
    order = np.argsort(image.ravel(), kind="stable")
    assert (np.diff(out.ravel()[order].astype(int)) >= 0).all()


# ---- HU steps

def test_skull_strip_leaves_brain_and_blood_and_nothing_else(hu):
    out = skull_strip(hu, .5, .5)
    assert (out == AIR).mean() > .4 and (out[hu > 400] == AIR).all() and (out == hu)[150:350, 200:300].all()


def test_an_image_without_a_closed_ring_is_not_stripped():
    open_ring = head(); open_ring[:, :240] = 0
    assert (skull_strip(open_ring, .5, .5) == open_ring).all()
    assert (skull_strip(np.full((64, 64), AIR), .5, .5) == AIR).all()


def test_a_picture_whose_window_cut_off_bone_is_neither_stripped_nor_marked(hu):
    picture = np.clip(hu, -20, 100)
    assert (skull_strip(picture) == picture).all() and not watershed_channel(picture).any() and not region_growing_channel(picture).any()


@pytest.mark.parametrize("channel", [watershed_channel, region_growing_channel])
def test_a_blood_channel_finds_the_bleed(hu, channel):
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    true, found = np.hypot(x - .2, y + .1) < .16, channel(hu, .5, .5)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 255}
    assert 2*((found > 0) & true).sum()/((found > 0).sum() + true.sum()) > .9


@pytest.mark.parametrize("step", [skull_strip, watershed_channel, region_growing_channel])
def test_unknown_pixel_sizes_count_as_half_a_millimetre(hu, step):
    assert (step(hu) == step(hu, .5, .5)).all() and (step(hu, None, float("nan")) == step(hu, .5, .5)).all()


def test_neighbours_are_channels_with_the_image_in_the_middle(hu):
    stack = np.stack([hu + 1, hu, hu - 1])
    assert (neighbours(stack) == np.moveaxis(stack, 0, -1)).all()
    out = apply_recipe(RECIPES["neighbours"], stack)
    assert (out[..., 1] == apply_recipe(RECIPES["plain"], hu)[..., 0]).all() and out.shape == (256, 256, 3)


def test_three_windows_are_three_plain_recipes(hu):
    out = apply_recipe(RECIPES["three_windows"], hu)
    for channel, (centre, width) in enumerate(((40, 80), (80, 200), (600, 2800))):
        assert (out[..., channel] == resize(window(hu, centre, width))).all()


# ---- recipes

@pytest.mark.parametrize("size", [256, 64])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_works_and_says_its_shape(name, size, hu):
    recipe = make_recipe(name, size)
    check_recipe(recipe)
    out = apply_recipe(recipe, np.stack([hu]*3) if recipe.neighbours else hu, .5, .5)
    assert out.shape == (size, size, recipe.channels) and recipe.size == size and out.dtype == np.uint8


def test_paper_is_the_four_opencv_calls(hu):
    grey = cv2.GaussianBlur(window(hu), (0, 0), 1.0, borderType=cv2.BORDER_REFLECT_101)
    wanted = cv2.resize(cv2.createCLAHE(2.0, (8, 8)).apply(grey), (256, 256), interpolation=cv2.INTER_LINEAR)
    assert (apply_recipe(RECIPES["paper"], hu)[..., 0] == wanted).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_json_is_enough_to_make_the_recipe_again(name):
    recipe = make_recipe(name, 64)
    stored = json.dumps(recipe.as_dict | {"size": 64, "hash": recipe.hash, "checksum": "1", "versions": {"opencv": "5"}})
    again = Recipe.from_dict(json.loads(stored))
    assert again == recipe and again.hash == recipe.hash and again.as_dict == recipe.as_dict


def test_the_hash_covers_the_steps_alone():
    steps = RECIPES["plain"].steps
    assert len({Recipe(*a).hash for a in (("a", steps), ("b", steps, "zscore"), ("c", steps, "window", False), ("d", steps, "window", True, "words"))}) == 1
    assert RECIPES["paper"].hash == RECIPES["no_augment"].hash == RECIPES["no_normalise"].hash != RECIPES["no_ahe"].hash


def test_any_change_of_a_step_changes_the_hash():
    base = RECIPES["paper"]
    changed = [[(s, {k: v + 1 if (j, k) == at else v for k, v in p.items()}) for j, (s, p) in enumerate(base.steps)] for at in [(i, k) for i, (_, p) in enumerate(base.steps) for k in p]]
    hashes = {Recipe("x", tuple(steps)).hash for steps in [*changed, base.steps[:2] + base.steps[3:], (base.steps[0], base.steps[2], base.steps[1], base.steps[3])]}
    assert len(hashes) == len(changed) + 2 and base.hash not in hashes


@pytest.mark.parametrize("name", RECIPES)
def test_views_end_with_what_the_network_gets(name, hu):
    recipe = make_recipe(name, 64)
    views = recipe_views(recipe, np.stack([hu]*3) if recipe.neighbours else hu, .5, .5)
    assert len(views) == len(recipe.steps) and views[-1][1].shape[:2] == (64, 64)
    assert all(isinstance(t, str) and v.dtype == np.uint8 and (v.ndim == 2 or v.shape[2] == 3) for t, v in views)
    if recipe.channels == 1: assert (views[-1][1] == apply_recipe(recipe, hu, .5, .5)[..., 0]).all()


def test_contrast_is_measured_alike_at_every_size(hu):
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    fraction = (np.hypot(x - .2, y + .1) < .16).astype(np.float32)
    table = contrast_table([make_recipe("plain"), make_recipe("neighbours"), make_recipe("no_gaussian", 128)], hu, fraction, .5, .5)
    assert_allclose(table.contrast["plain"], (65 - 34)*255/80, atol=8)
    assert (table.loc["plain"] == table.loc["neighbours"]).all() and table.ratio["no_gaussian"] > 2
    small, _ = blood_and_brain(hu, fraction, 64)
    assert .7*fraction.sum() < small.sum()*64 < fraction.sum()  # pixels that are wholly blood


def test_contrast_without_blood_is_missing(hu):
    table = contrast_table([RECIPES["plain"]], hu, np.zeros(hu.shape))
    assert table.isna().all(axis=None)
    with pytest.raises(StudyError, match="size of its image"): blood_and_brain(hu, np.zeros((3, 3)))


# ---- what is refused, and in which words

W, G, C, R, S = ("window", {}), ("gaussian", {}), ("clahe", {}), ("resize", {"size": 256}), ("shrink", {"size": 64})
BAD_ORDERS = {
    "second window": (W, W, R), "before the window": (W, ("skull_strip", {}), R), "after the window": (C, W, R), "a window is needed|after the window": (R,),
    "exactly one resize": (W, C), "exactly one resize.*2": (W, R, R), "nothing may follow shrink": (W, R, S, G), "after resize": (W, S, R),
    "must be the first": (("skull_strip", {}), ("neighbours", {}), W, R), "mask channel": (W, ("watershed_channel", {}), C, R),
    "before resize": (W, R, ("watershed_channel", {})), "cannot follow neighbours": (("neighbours", {}), ("windows", {}), R), "exactly one": (),
}


@pytest.mark.parametrize("words", BAD_ORDERS)
def test_an_impossible_order_is_refused_in_one_line(words, hu):
    recipe = Recipe("odd", BAD_ORDERS[words])
    for act in (check_recipe, lambda r: apply_recipe(r, hu), lambda r: Recipe.from_dict(r.as_dict)):
        with pytest.raises(StudyError, match=words) as e: act(recipe)
        assert "\n" not in str(e.value) and "'odd'" in str(e.value)


BAD_PARAMETERS = [("window", {"width": -80}), ("window", {"width": 0}), ("window", {"width": float("nan")}), ("window", {"centre": float("inf")}), ("window", {"width": "wide"}),
                  ("gaussian", {"sigma_px": 0}), ("gaussian", {"sigma_px": -1}), ("clahe", {"tiles": 0}), ("clahe", {"clip": 0}), ("clahe", {"tiles": 2.5}), ("median", {"size": 4}),
                  ("median", {"size": -3}), ("bilateral", {"sigma_grey": -1}), ("bilateral", {"sigma_px": 0}), ("bilateral", {"size": 4}), ("nlm", {"strength": 0}),
                  ("nlm", {"patch": 4}), ("nlm", {"search": 8}), ("tv", {"weight": 0}), ("tv", {"steps": 0}), ("resize", {"size": 0}), ("resize", {"size": 12.5}),
                  ("skull_strip", {"least_cm2": -1}), ("windows", {"bands": []}), ("windows", {"bands": [[40, -80]]}), ("windows", {"bands": [40, 80]}), ("windows", {"bands": 3})]


@pytest.mark.parametrize("step,parameters", BAD_PARAMETERS, ids=lambda x: str(x))
def test_a_parameter_that_makes_no_sense_is_refused_before_any_image_is_read(step, parameters):
    steps = {"window": [W, R], "skull_strip": [("skull_strip", {}), W, R], "resize": [W, R], "windows": [("windows", {}), R]}.get(step, [W, (step, {}), R])
    with pytest.raises(StudyError) as e: check_recipe(Recipe("odd", tuple((s, parameters) if s == step else (s, p) for s, p in steps)))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("given,words", [("papr", "did you mean 'paper'"), ("xyz", "there are plain, paper"), (None, "there are"), ("PLAIN ", "there are")])
def test_an_unknown_recipe_is_answered_with_the_nearest_and_the_list(given, words):
    with pytest.raises(StudyError, match=words): make_recipe(given)


@pytest.mark.parametrize("size", [0, -64, 100, 512, 64.0, 7, "64"])
def test_a_size_that_cannot_be_made_is_refused(size):
    with pytest.raises(StudyError, match="cannot be made"): make_recipe("plain", size)


@pytest.mark.parametrize("given,words", [({}, "needs a 'name'"), ({"name": "x"}, "needs a 'steps'"), ({"name": "x", "steps": 5}, "pairs"), ({"name": "x", "steps": ["window"]}, "pairs"),
                                         ({"name": "../x", "steps": [W, R]}, "cannot be a name"), ({"name": "x", "steps": [["windw", {}]]}, "did you mean 'window'"),
                                         ({"name": "x", "steps": [W, R], "normalise": "zscor"}, "did you mean 'zscore'"), ({"name": "x", "steps": [("window", {"widht": 3}), R]}, "widht")])
def test_a_recipe_json_that_cannot_work_is_refused(given, words):
    with pytest.raises(StudyError, match=words): Recipe.from_dict(given)


@pytest.mark.parametrize("name", RECIPES)
def test_pixels_that_are_no_number_are_refused(name, hu):
    odd = hu.copy(); odd[100, 100] = np.nan; odd[5, 5] = np.inf
    recipe = RECIPES[name]
    with pytest.raises(StudyError, match="no finite number"): apply_recipe(recipe, np.stack([odd]*3) if recipe.neighbours else odd)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", [(), (8,), (2, 64, 64), (0, 5), (1, 2, 64, 64)])
def test_an_array_that_is_no_image_is_refused(name, shape):
    with pytest.raises(StudyError): apply_recipe(RECIPES[name], np.zeros(shape))


@pytest.mark.parametrize("name", RECIPES)
def test_a_one_pixel_image_works_or_is_refused_in_words(name):
    recipe, pixel = RECIPES[name], np.full((1, 1), 40.)
    try: out = apply_recipe(recipe, np.stack([pixel]*3) if recipe.neighbours else pixel)
    except StudyError as e: assert re.search("smaller than 8 x 8 CLAHE tiles", str(e))
    else: assert out.shape == (256, 256, recipe.channels)


@pytest.mark.parametrize("value", [AIR, 40., 3071.])
@pytest.mark.parametrize("name", RECIPES)
def test_constant_and_all_air_images_come_out_constant(name, value):
    recipe, image = make_recipe(name, 64), np.full((256, 256), value)
    out = apply_recipe(recipe, np.stack([image]*3) if recipe.neighbours else image, .5, .5)
    assert np.ptp(out, axis=(0, 1)).max() == 0


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in ("nlm", "tv")])
def test_an_image_of_4096_pixels_works(name):
    recipe, image = make_recipe(name, 64), np.kron(head(512), np.ones((8, 8), np.float32))
    out = apply_recipe(recipe, np.stack([image]*3) if recipe.neighbours else image, .0625, .0625)
    assert out.shape == (64, 64, recipe.channels) and out.max() > 200


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint16), np.zeros(8, np.uint8), np.zeros((2, 8, 8, 1), np.uint8), np.zeros((0, 8), np.uint8)], ids=str)
@pytest.mark.parametrize("name", [*GREY, "clahe", "resize", "shrink"])
def test_grey_steps_take_bytes_of_an_image_and_nothing_else(name, image):
    with pytest.raises(StudyError): STEPS[name](image)


def test_words_and_truth_values_are_no_hu():
    for odd in (np.array([["a", "b"]]), np.ones((8, 8), bool), np.ones((8, 8), complex)):
        with pytest.raises(StudyError, match="HU are numbers"): window(odd)


@pytest.mark.parametrize("mm", [-.5, 0, 50])
def test_an_impossible_pixel_size_is_refused(hu, mm):
    for step in (skull_strip, watershed_channel, region_growing_channel):
        with pytest.raises(StudyError, match="pixel sizes"): step(hu, mm, mm)


def test_windows_need_pairs(hu):
    with pytest.raises(StudyError, match="pairs"): windows(hu, ((40, 80, 1),))
    with pytest.raises(StudyError, match="divide both sides"): shrink(np.zeros((100, 64), np.uint8), 32)
    with pytest.raises(StudyError, match="3 neighbouring images"): neighbours(np.zeros((5, 8, 8)))
    assert_allclose(windows(hu, ((40, 80),))[..., 0], window(hu))
