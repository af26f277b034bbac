"""Figures as they stand on a page: the same bytes every time, readable without colour, on paper of either shade."""
import hashlib
import os
import re
import subprocess
import sys
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ich_study import curves, figures, plots
from ich_study.agreement import band_table
from ich_study.drawing import COLOURS, MARKERS, STYLES, make_axes, published, show_images
from ich_study.schema import LABELS, StudyError


def predictions(n=60, labels=LABELS, seed=0, patients=None):
    rng = np.random.default_rng(seed)
    rows = []
    for label in labels:
        truth = rng.random(n) < (.5 if label == "any" else .25)
        rows.append(pd.DataFrame({"series": [f"s{i}" for i in range(n)], "subtype": label, "truth": truth, "score": np.clip(rng.normal(.35 + .25*truth, .2), 0, 1).round(2)}))
    table = pd.concat(rows, ignore_index=True).assign(image=pd.NA)
    table["truth"] = table.truth.astype("boolean")
    return table.assign(patient=table.series if patients is None else table.series.str[1:].astype(int) % patients, called=(table.score >= .5).astype("boolean"))


def volumes(n=60, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.where(np.arange(n) % 3, rng.lognormal(2, 1.2, n), 0)
    table = pd.DataFrame({"series": [f"s{i}" for i in range(n)], "truth_ml": truth, "predicted_ml": np.clip(truth*rng.lognormal(0, .4, n) + rng.normal(.2, .4, n), 0, None)})
    return table.assign(patient=table.series, analysis="t", model="bhcnet", recipe="plain", variant="base", seed=17, fold=0, split="test", dataset="t", subtype="any", volume_source="phantom")


def estimates(models=6, recipes=8):
    rng = np.random.default_rng(1)
    rows = [dict(model=f"model_{m}", recipe=f"recipe_{r}", metric="mae_ml", value=v, low=v - 1, high=v + 1, n=60, unit="series", seconds=np.exp(m + v/10))
            for m in range(models) for r in range(recipes) for v in rng.normal(5, 1, 1)]
    return pd.DataFrame(rows)


def all_figures():
    p, v, e = predictions(), volumes(), estimates()
    history = pd.DataFrame({"stage": "images", "epoch": range(1, 6), "loss": [3, 2, 1.5, 1.2, 1.], "val_loss": [3, 2.2, 2., 2.1, 2.3], "kept": [False, False, True, False, False]})
    flow = pd.DataFrame({"step": ["listed", "scout: a localiser image", "used"], "left_out": [0, 12, 0], "images": [100, 88, 88], "series": [9]*3, "patients": [9]*3}).set_index("step")
    return {"learning": curves.learning_curves(history), "roc": curves.roc_curves(p), "pr": curves.pr_curves(p), "confusion": curves.confusion_matrices(p), "calibration": curves.calibration_curve(p),
            "scatter": plots.volume_scatter(v), "bland_altman": plots.bland_altman_plot(v), "ratio": plots.bland_altman_plot(v, "ratio"), "differences": plots.difference_histogram(v),
            "bands": plots.band_errors(band_table(v)), "volumes": plots.volume_histogram(v.rename(columns={"truth_ml": "blood_ml"})),
            "flow": figures.flow_diagram(flow), "forest": figures.forest(e, "mae_ml"), "cost": figures.cost_quality(e[e.recipe == "recipe_0"])}


@pytest.fixture(scope="module")
def drawn(): return all_figures()


@pytest.fixture(scope="module")
def pages(drawn): return {k: published(f, f"Figure of {k}", "A caption").html for k, f in drawn.items()}


def digest(pages): return hashlib.sha256("".join(pages[k] for k in sorted(pages)).encode()).hexdigest()


def test_the_same_bytes_again_and_in_another_process(drawn, pages):
    again = {k: published(f, f"Figure of {k}", "A caption").html for k, f in drawn.items()}
    assert {k for k in pages if again[k] != pages[k]} == set()
    code = "from tests.test_figures import all_figures, digest, published; print(digest({k: published(f, f'Figure of {k}', 'A caption').html for k, f in all_figures().items()}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True)
    assert done.stdout.strip() == digest(pages)


def test_a_picture_between_does_not_change_the_vector(drawn):
    figure = drawn["confusion"]
    before = figure.svg("counts")
    figure._repr_png_(), figure.png()
    assert figure.svg("counts") == before


def test_nothing_of_matplotlib_that_harms_a_page(pages):
    for k, text in pages.items():
        svg = re.search(r"<svg.*</svg>", text, re.S)[0]
        assert not re.search(r"<\?xml|DOCTYPE|<metadata|<style|xlink|DejaVu|#000000|#000\b|#ffffff|#fff\b|black|white", svg), k
        assert 'role="img"' in svg and f'aria-label="Figure of {k}"' in svg and "viewBox=" in svg and "max-width:100%;height:auto" in svg and "currentColor" in svg, k
        assert "<image" not in svg and "<text" in svg and "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', ""), k
        assert svg.count("<figcaption") == 0 and text.endswith("<figcaption>A caption</figcaption></figure>"), k


def test_no_id_twice_and_every_reference_has_its_target(drawn, pages):
    seen = set()
    for text in [*pages.values(), drawn["roc"].svg("the same figure under another text")]:
        ids, used = re.findall(r' id="([^"]+)"', text), set(re.findall(r'(?:href="|url\()#([\w-]+)', text))
        assert len(ids) == len(set(ids)) and set(ids) == used and not seen & used
        seen |= used


def test_a_change_of_one_number_changes_the_ids():
    one, other = (published(plots.volume_scatter(volumes(seed=s)), "Volumes").html for s in (0, 1))
    assert not set(re.findall(r' id="([^"]+)"', one)) & set(re.findall(r' id="([^"]+)"', other))


def test_sizes(pages):
    assert len(pages["roc"]) < 30_000 and len(pages["pr"]) < 30_000 and max(map(len, pages.values())) < 40_000, {k: len(p) for k, p in pages.items()}
    assert all(int(re.search(r'width="(\d+)"', p)[1]) <= 640 for p in pages.values())


@pytest.mark.parametrize("alt", ["", "  \n", None, 3])
def test_alternative_text_is_refused_when_empty(drawn, alt):
    with pytest.raises(StudyError, match="alternative text"): published(drawn["flow"], alt)


def test_only_a_drawing_is_published():
    with pytest.raises(StudyError, match="Figure"): published(Figure(), "A figure")


def test_what_people_write_stays_text():
    figure, axes = make_axes()
    axes[0, 0].set_title("a < b & c")
    text = published(figure, 'He said "<b>"', "x < y").html
    assert "a &lt; b &amp; c" in text and 'aria-label="He said &quot;&lt;b&gt;&quot;"' in text and "<figcaption>x &lt; y" in text


def test_every_label_has_its_own_colour_style_and_marker():
    for table in (COLOURS, STYLES, MARKERS): assert list(table) == list(LABELS) and len({str(v) for v in table.values()}) == len(LABELS)


def test_curves_use_the_colour_and_style_of_the_label(drawn):
    for ax, label in zip(drawn["roc"].axes, LABELS):
        line = ax.lines[-1]
        assert line.get_color() == COLOURS[label] and ax.get_title(loc="left").startswith(label)
    dashes = [re.findall(r'stroke-dasharray="([^"]+)"', drawn["roc"].svg("x"))]
    assert len(set(dashes[0])) >= len(LABELS)  # five styles, and the dots of the diagonal


@pytest.mark.parametrize("kind", ["roc", "pr"])
@pytest.mark.parametrize("n, patients", [(12, None), (60, None), (60, 9), (400, None)])
def test_a_band_contains_its_curve(kind, n, patients):
    p = predictions(n, ("any",), seed=n, patients=patients)
    band = curves.curve_band(p.truth, p.score, p.patient, kind)
    assert ((band.low <= band.value) & (band.value <= band.high)).all() and band[["low", "high"]].stack().between(0, 1).all()
    assert (band.high - band.low).max() > .02


def test_a_band_narrows_with_more_patients_but_not_with_copies_of_their_rows():
    def width(table): return (lambda b: (b.high - b.low).mean())(curves.curve_band(table.truth, table.score, table.patient))
    few = predictions(60, ("any",), 3)
    assert width(predictions(900, ("any",), 3)) < .6*width(few)
    assert width(pd.concat([few]*5)) == pytest.approx(width(few))


def test_a_band_is_that_of_patients_drawn_one_by_one():
    from sklearn.metrics import precision_recall_curve, roc_curve
    p = predictions(40, ("any",), 5)
    truth, score, rng = p.truth.to_numpy(bool), p.score.to_numpy(), np.random.default_rng(9)
    drawn = {"roc": [], "pr": []}
    for _ in range(400):
        at = rng.integers(0, 40, 40)
        false, true, _ = roc_curve(truth[at], score[at], drop_intermediate=False)
        precision, recall, _ = precision_recall_curve(truth[at], score[at])
        drawn["roc"].append(np.interp(curves.GRID, false, true))
        drawn["pr"].append([precision[np.flatnonzero(recall >= r - 1e-12)[-1]] if r else np.nan for r in curves.GRID])
    for kind, values in drawn.items():
        band = curves.curve_band(truth, score, np.arange(40), kind)
        low, high = np.nanpercentile(np.array(values)[:, 5:], [2.5, 97.5], axis=0)
        assert np.abs(band.low[5:] - low).mean() < .03 and np.abs(band.high[5:] - high).mean() < .03, kind


WORDS = {
    "no predictions": (lambda: curves.roc_curves(predictions()[:0]), "no row"),
    "no scores": (lambda: curves.pr_curves(predictions().assign(score=np.nan)), "no row"),
    "one class": (lambda: curves.roc_curves(predictions().assign(truth=True)), "one class only"),
    "one series": (lambda: curves.pr_curves(predictions(1)), "one class only"),
    "no calibration": (lambda: curves.calibration_curve(predictions()[:0]), "no row"),
    "no calls": (lambda: curves.confusion_matrices(predictions().assign(called=pd.array([pd.NA]*360, "boolean"))), "not called"),
    "nothing called": (lambda: curves.confusion_matrices(predictions()[:0]), "no row"),
    "no history": (lambda: curves.learning_curves(pd.DataFrame(columns=["stage", "epoch", "loss", "val_loss", "kept"])), "no epoch"),
    "no volumes": (lambda: plots.volume_scatter(volumes()[:0]), "no series"),
    "no reference": (lambda: plots.volume_scatter(volumes().assign(truth_ml=np.nan)), "no series"),
    "two series": (lambda: plots.bland_altman_plot(volumes(2)), "fewer than 3"),
    "no ratio": (lambda: plots.bland_altman_plot(volumes().assign(predicted_ml=0.), "ratio"), "fewer than 3"),
    "no differences": (lambda: plots.difference_histogram(volumes()[:0]), "no series"),
    "no bands": (lambda: plots.band_errors(band_table(volumes())[:0]), "no series"),
    "no blood": (lambda: plots.volume_histogram(pd.DataFrame({"blood_ml": [0., np.nan]})), "above zero"),
    "no seconds": (lambda: figures.cost_quality(estimates().assign(seconds=0.)), "no model"),
    "nothing defined": (lambda: figures.forest(estimates().assign(value=np.nan, low=np.nan, high=np.nan), "mae_ml"), "undefined"),
}


@pytest.mark.parametrize("case", WORDS)
def test_what_cannot_be_drawn_is_said(case):
    draw, words = WORDS[case]
    assert words in published(draw(), case).html


def test_a_few_series_still_give_figures():
    for n in (2, 3, 5):
        for draw in (curves.roc_curves, curves.pr_curves, curves.calibration_curve, curves.confusion_matrices): assert "<svg" in published(draw(predictions(n)), "few").html
        for draw in (plots.volume_scatter, plots.bland_altman_plot, plots.difference_histogram): assert "<svg" in published(draw(volumes(n)), "few").html


def test_a_missing_score_costs_its_row_alone():
    p = predictions()
    titles = [ax.get_title(loc="left") for ax in curves.roc_curves(p.assign(score=p.score.mask((p.subtype == "any") & (p.series == "s0")))).axes]
    assert " of 59\n" in titles[0] and all(" of 60\n" in t for t in titles[1:])


def test_numbers_in_the_figure_are_those_of_the_statistics(drawn):
    from ich_study.areas import auc_delong
    from ich_study.limits import bland_altman, ratio_limits
    p, v = predictions(), volumes()
    g = p[p.subtype == "any"]
    area = auc_delong(g.truth.to_numpy(bool), g.score.to_numpy())
    assert f"area {area.value:.2f} ({area.low:.2f} to {area.high:.2f})" in drawn["roc"].axes[0].get_title(loc="left")
    for name, found, places in (("bland_altman", bland_altman(v.truth_ml, v.predicted_ml), 1), ("ratio", ratio_limits(v.truth_ml, v.predicted_ml), 2)):
        text = drawn[name].svg(name)
        for e in (found.bias, found.lower, found.upper): assert f"{e.value:.{places}f} ({e.low:.{places}f} to {e.high:.{places}f})" in text


def test_series_without_blood_have_a_mark_of_their_own(drawn):
    discs, crosses = drawn["scatter"].axes[0].collections
    assert len(crosses.get_offsets()) == 20 and len(discs.get_offsets()) == 40
    assert discs.get_paths()[0].vertices.shape != crosses.get_paths()[0].vertices.shape


def test_many_points_become_a_picture_inside_the_vector():
    few, many = (published(plots.volume_scatter(volumes(n)), "Volumes").html for n in (1900, 2100))
    assert "<image" not in few and many.count("<image") >= 1 and "true volume (mL)</text>" in many and len(many) < 250_000


def test_48_lines_of_a_forest_do_not_touch(drawn):
    figure = drawn["forest"]
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 48 and all(a.y0 >= b.y1 - .5 for a, b in zip(boxes, boxes[1:]))
    assert sum(t.get_fontweight() == "bold" for t in figure.axes[0].texts) == 6


def test_names_beside_marks_do_not_cover_each_other(drawn):
    figure = drawn["cost"]
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts]
    assert len(boxes) == 6 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_images_become_a_picture_of_twice_the_pixels_on_a_dark_plate():
    figure = show_images([np.linspace(0, 1, 64).reshape(8, 8)]*3, ["a", "b", "c"])
    text = published(figure, "Three images").html
    width, height = map(int, re.search(r'<img alt="Three images" width="(\d+)" height="(\d+)"', text).groups())
    picture = Image.open(BytesIO(figure.png()))
    assert picture.size == (2*width, 2*height) and "svg" not in text
    assert picture.convert("RGB").getpixel((0, 0)) == (0x15, 0x19, 0x1d) and figure.axes[0].title.get_color() == "black"


def test_the_words_that_tell_a_fault_fit_one_line():
    for call in (lambda: figures.forest(estimates(), "auc"), lambda: plots.band_errors(band_table(volumes()), "auc"), lambda: plots.bland_altman_plot(volumes(), "log"),
                 lambda: curves.curve_band([True], [.5], [1], "lift"), lambda: figures.cost_quality(estimates().drop(columns="seconds")), lambda: show_images([])):
        with pytest.raises(StudyError) as e: call()
        assert "\n" not in str(e.value) and len(str(e.value)) > 20
