"""Makes `cases.json`, the project's own golden cases: `python -m tests.golden.make_cases [FILE]`.

Every number is computed twice, by well-kept libraries (`by_library`) and from its definition (`by_hand`); a case on which the two differ is not
written, and nothing else is written either. Inputs are published tables or generated with fixed seeds; ich_study is never imported. The same
script gives the same bytes."""
import json
import sys
from pathlib import Path

import numpy as np
import pandas
import pingouin
import scipy
import sklearn
import statsmodels

from . import by_hand, by_library
from .form import differences, encode

DIGITS = 12  # significant digits of a float that is written

# topic: (function of both routes, what is asked, what the two routes are)
TOPICS = {
    "diagnostic counts": ("diagnostic_counts",
                          "Of each row of counts (tp, fp, fn, tn): n, n_pos, n_neg; accuracy, sensitivity, specificity, ppv, npv with exact limits (Clopper-Pearson, _lo and _hi); f1; "
        "lr_pos = sensitivity/(1 - specificity) and lr_neg = (1 - sensitivity)/specificity with log limits (Simel 1991), NaN where a cell that they divide by is 0. 0/0 is NaN, more over 0 is infinite.",
        ("scikit-learn, statsmodels beta and log intervals", "fractions, roots of binomial tails, closed form")),
    "averages": ("averages", "Rows are one confusion matrix of K exclusive classes, each class against the rest: unweighted means (macro_*), share right with exact limits (multiclass_accuracy), micro_*, "
        "balanced_accuracy, means weighted by class size, Cohen's kappa, Matthews' coefficient, and 1 - 2(1 - accuracy)/K, which is the mean one-vs-rest accuracy.",
        ("scikit-learn on a matrix with these margins", "sums over the margins")),
    "proportion CI": ("proportion", "Exact 95 % limits of k of n (Clopper and Pearson 1934) for each [k, n]; n = 0 gives NaN twice.",
                      ("scipy binomtest", "roots of binomial tails")),
    "LR CI with zero cells": ("zero_cells",
                              "95 % score limits (Koopman 1984) of the ratio (a/na)/(b/nb), without a correction; no upper limit when b = 0.",
        ("statsmodels score interval, mended where it takes a wrong root", "roots of the score statistic")),
    "AUC CI": ("auc", "Area under the ROC curve (a tie is half a win), its DeLong variance, and 95 % limits within 0 to 1.",
               ("scikit-learn, statsmodels rank_compare_2indep", "all pairs")),
    "paired AUC test": ("auc_paired", "Two scores of the same subjects (DeLong 1988): both areas, diff = a - b, its variance, the covariance, z, two-sided p, 95 % limits of diff.",
        ("ranks of statsmodels, numpy covariance", "variance of the pairwise difference")),
    "AUC edge": ("auc_edge", "Area with DeLong limits and average precision, or the paired test, where something is undefined: NaN and `degenerate`. Variance 0: the limits are the value; "
        "paired: z NaN, and p 1 when the areas are equal.", ("scikit-learn, statsmodels, masked", "all pairs, step sum")),
    "inter-rater": ("readers", "Fleiss' kappa of subjects x readers, z from its null variance (Fleiss, Nee and Landis 1979), kappa of each category in ascending order, percent_agreement = mean share of "
        "agreeing pairs. Subjects with a missing reading are left out; no expected disagreement: NaN.",
        ("statsmodels, collapsed tables", "pairs of readings one by one")),
    "majority vote": ("majority", "The answer of more than half of the readings present; a tie or no reading is missing.", ("pandas", "counting")),
    "ICC": ("icc", "Six intraclass correlations of subjects x raters (Shrout and Fleiss 1979; McGraw and Wong 1996) with 95 % limits.",
            ("pingouin", "mean squares and F quantiles")),
    "Bland-Altman": ("limits", "d = x - y (x measured, y reference) over complete pairs: n, n_missing, bias with t interval, sd (n - 1), limits bias -/+ 1.96 sd, with approximate intervals "
        "(standard error sqrt(3/n) sd; Bland and Altman 1986) and exact ones (Carkeet 2015). With n alone: the coefficients c of the exact interval.",
        ("scipy t and non-central t", "sums, roots, integrated non-central t")),
    "proportional bias": ("proportional", "Regression of x - y on (x + y)/2: intercept, slope, its standard error, two-sided p and 95 % limits.",
                          ("statsmodels OLS", "closed form")),
    "correlation": ("correlation", "Pearson's r with two-sided p and Fisher's 95 % limits, Spearman's rho with mid-ranks, over complete pairs. No spread or fewer than 3 pairs: NaN.",
        ("scipy", "sums, ranks by counting")),
    "agreement": ("agreement", "Pearson, Spearman, Lin's concordance, ICC(A,1), bias x - y and its 1.96 sd limits of one set of pairs.",
                  ("scipy, numpy, pingouin", "definitions")),
    "CCC": ("concordance", "Lin's concordance correlation (1989) with variances over n, and 95 % limits on Fisher's scale with the variance as corrected in 2000.",
        ("precision times accuracy, closed form", "expected disagreement of all pairs, delta method with complex steps")),
    "Deming": ("deming", "Deming regression of y on x; `ratio` is the error variance of y over that of x, 1 where not given.",
               ("scikit-learn principal axis", "closed form")),
    "Passing-Bablok": ("passing_bablok", "Slope by the shifted median of all pairwise slopes, intercept = median(y - slope x), 95 % limits of the slope (Passing and Bablok 1983).",
        ("numpy, angles", "slopes and offset")),
    "repeated-measures Bland-Altman": ("repeated",
                                       "Differences d of repeated pairs, the true value varying within a subject (Bland and Altman 1999, 2007): one-way analysis of variance, "
        "m0 = (N^2 - sum m_i^2)/((k - 1) N), var_between = max(0, (msb - msw)/m0), sd_total = sqrt(var_between + msw), limits bias -/+ 1.96 sd_total, naive_sd of all d.", ("statsmodels anova_lm", "sums")),
    "McNemar": ("mcnemar_tests", "Table [[both right, only first], [only second, neither]]: exact two-sided p, chi-square with continuity correction and its p; without a discordant pair p = 1 and NaN.",
        ("statsmodels", "binomial sums, erfc")),
    "multiplicity": ("holm", "Holm's correction in the order given; a missing p is no test.", ("statsmodels", "counting")),
    "multi-label": ("multilabel", "Columns are labels: average precision (step sum) and ROC area of each, unweighted mean where defined (macro), all pairs pooled (micro), weighted by positives; a label without a "
        "positive is NaN and counted.", ("scikit-learn, masked", "step sums, all pairs")),
    "calibration": ("calibration", "Brier score; expected and greatest calibration error in `bins` (10) equal bins (a, b] with 0 in the first; log loss; intercept and slope of the outcome on logit p; "
        "intercept alone with logit p as offset (citl).", ("scikit-learn, pandas cut, statsmodels GLM", "bins by exact fractions, Newton's steps")),
    "weighted log loss": ("rsna", "Log loss of six columns (any first), any counted twice, probabilities held within 1e-15 of 0 and 1, mean over rows and weights.", ("scikit-learn", "sum")),
    "segmentation": ("segmentation", "Masks and spacing in mm: volumes in ml, Dice, (pred - ref)/ref, distances between border elements (a face neighbour outside the mask): greatest (hd), greater of "
        "the two directed 95th percentiles (hd95_max), 95th percentile and mean of both directions pooled. Empty reference: rvd and distances NaN; both empty: Dice NaN.",
        ("scipy distance transform, scikit-learn", "all pairs of border elements")),
    "volumes": ("volumes", "Volume pairs, null missing: n_total, n_used, n_missing, n_negative_pred, n_zero_ref; mae, rmse, bias; median of |pred - ref|/ref where ref > 0; mae_clipped with negative predictions at 0.",
        ("scikit-learn, pandas", "sums")),
    "subject level": ("subjects", "Images to subjects: label = any; score_max and score_mean over the images that have a score, NaN without; n_slices, n_missing; areas under the ROC curve by subject (auc_max) and image (slice_auc).",
        ("pandas groupby, scikit-learn", "loops")),
    "k-fold": ("folds", "Patients dealt into k folds: every image tested once, no patient in two folds, positive patients spread evenly; with fewer positive patients than folds it is refused or said.",
        ("scikit-learn StratifiedGroupKFold", "reasoning")),
    "cluster bootstrap": ("clusters", "95 % percentile interval of the share of right images, patients drawn with replacement (9999 draws or more); as all images of a patient agree the draws are Binomial(m, k/m)/m. "
        "naive_*: exact limits as if images were independent.", ("scipy binom, binomtest", "exact fractions, roots")),
    "threshold": ("threshold", "Threshold with the greatest Youden index on validation (score >= threshold is positive, ties to the highest), its index, then sensitivity, specificity and index on test; "
        "test_best_j is what choosing on test would claim.", ("scikit-learn roc_curve", "every distinct score")),
    "AUC over folds": ("fold_areas", "ROC area in each fold, mean over the n_defined folds that have both classes, and area of the pooled scores.",
                       ("scikit-learn", "all pairs")),
    "normalisation": ("normalisation", "Mean, sd (over n), least and greatest of the training pixels; test pixels as z = (x - mean)/sd, u = (x - least)/(greatest - least) within 0 to 1, and in a window "
        "(centre 40, width 80) as a share of it; pooled_mean_leaky is what test pixels would make of the mean.", ("scikit-learn scalers", "sums")),
}

CASES = []


def case(topic, name, edge=False, tolerance=1e-9, source="generated", keys=None, notes=None, published=None, **given):
    """Take up one case: `given` is its input; `keys` limits what is expected (a pattern of names)."""
    CASES.append(dict(topic=topic, name=name, edge=edge, tolerance=tolerance, source=source, keys=keys, notes=notes, published=published, input=given))


def rows(*cells): return [dict(zip(("name", "tp", "fp", "fn", "tn"), c)) for c in cells]
def ratios(*cells): return [dict(zip(("name", "a", "na", "b", "nb"), c)) for c in cells]
def rng(seed): return np.random.default_rng(seed)
def listed(values, digits=3): return np.round(values, digits).tolist()


# ---------------------------------------------------------------- published tables

PAPER = "the paper, results table (counts recovered from its percentages)"
TRAIN = rows(("Epidural", 138, 14, 2, 118), ("Intraventricular", 10, 4, 8, 250), ("Intraparenchymal", 43, 12, 10, 207), ("Subdural", 39, 7, 7, 219),
             ("Subarachnoid", 4, 1, 11, 256))
TEST = rows(("Epidural", 30, 3, 1, 35), ("Intraventricular", 4, 0, 2, 63), ("Intraparenchymal", 18, 2, 1, 48), ("Subdural", 10, 0, 0, 59),
            ("Subarachnoid", 2, 0, 1, 66))
SIMEL = "Simel, Rennie and Bossuyt, J Gen Intern Med 2008; 23:768, table 5"
PEFR = "Bland and Altman, Lancet 1986; 1:307, first readings of both meters"
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
SHROUT = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
FLEISS = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2],
          [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]


# ---------------------------------------------------------------- counts

case("diagnostic counts", "the paper's training phase", source=PAPER, rows=TRAIN, published={"mean one-vs-rest accuracy (%)": 94.41})
case("diagnostic counts", "the paper's testing phase, three classes without a false alarm", edge=True, source=PAPER, rows=TEST)
case("diagnostic counts", "two examiners", source=SIMEL, rows=rows(("Examiner 1", 20, 15, 10, 55), ("Examiner 2", 15, 5, 8, 52)),
     published={"Examiner 1": "LR+ 3.1 (1.9-5.2), LR- 0.42 (0.25-0.71)", "Examiner 2": "LR+ 7.4 (3.0-18), LR- 0.38 (0.22-0.67)"})
case("diagnostic counts", "nothing, one unit, one class only, nobody called, everybody called, all wrong", edge=True,
     rows=rows(("nothing", 0, 0, 0, 0), ("one hit", 1, 0, 0, 0), ("one false alarm", 0, 1, 0, 0), ("only positives", 7, 0, 3, 0),
               ("only negatives", 0, 2, 0, 9), ("nobody called", 0, 0, 6, 14),
               ("everybody called", 6, 14, 0, 0), ("all wrong", 0, 8, 5, 0), ("many", 40, 31, 3, 226)))
case("averages", "the paper's training phase: 86 % right are printed as 94 %", source=PAPER, rows=TRAIN, n=272, published={"average_percent": 94.41})
case("averages", "three classes, one found by nobody but called", edge=True, source="a 3 x 3 table made up",
     notes="the matrix is [[5, 2, 1], [1, 9, 2], [1, 2, 0]]",
     rows=rows(("a", 5, 2, 3, 13), ("b", 9, 4, 3, 7), ("c", 0, 3, 3, 17)), n=23)
case("averages", "two classes", source="a 2 x 2 table made up", rows=rows(("no", 40, 3, 6, 11), ("yes", 11, 6, 3, 40)), n=60)
case("proportion CI", "borders, one trial, no trial", edge=True, tolerance=1e-9,
     kn=[[0, 0], [0, 1], [1, 1], [0, 20], [20, 20], [1, 20], [19, 20], [7, 13], [150, 300], [1, 400]])
case("proportion CI", "the standard table of ten", source="standard table of exact binomial limits for n = 10",
     published={"ci": [[0, .3085], [.0025, .4450], [.0252, .5561], [.1871, .8129]]},
     kn=[[0, 10], [1, 10], [2, 10], [5, 10]])
case("LR CI with zero cells", "empty cells in one group, the other, or both", edge=True, tolerance=1e-6,
     rows=ratios(("above", 0, 12, 3, 40), ("below", 9, 12, 0, 40), ("none at all", 0, 12, 0, 40), ("all and none", 12, 12, 0, 40),
                 ("none and all", 0, 12, 40, 40)))
case("LR CI with zero cells", "whole groups, where the library's interval takes a wrong root", edge=True, tolerance=1e-6,
     rows=ratios(("first whole", 12, 12, 7, 40), ("second whole", 5, 12, 40, 40), ("neither", 5, 12, 7, 40)))

# ---------------------------------------------------------------- areas

r = rng(101)
y = (r.random(60) < .4).astype(int)
first, second = listed(np.clip(r.normal(.4 + .25*y, .2), 0, 1), 2), listed(np.clip(r.normal(.45 + .1*y, .2), 0, 1), 1)
case("AUC CI", "60 subjects, two decimals", y=y.tolist(), score=first)
case("AUC CI", "60 subjects, one decimal: many ties", edge=True, y=y.tolist(), score=second)
case("AUC CI", "worse than chance, limits held at 0", edge=True, y=[1, 1, 0, 0, 0], score=[1, 2, 2, 5, 4])
case("paired AUC test", "two scores of 60 subjects", y=y.tolist(), a=first, b=second)
case("paired AUC test", "a score against its reverse", edge=True, y=y.tolist(), a=first, b=listed(1 - np.array(first), 2))
case("AUC edge", "classes apart", edge=True, y=[0, 0, 1, 1, 1], score=[.1, .2, .8, .8, .9])
case("AUC edge", "all scores alike", edge=True, y=[0, 1, 1, 0, 1], score=[.5]*5)
case("AUC edge", "nobody has it", edge=True, y=[0, 0, 0], score=[.5, .1, .9], notes="scikit-learn's average precision is 0 here")
case("AUC edge", "everybody has it", edge=True, y=[1, 1, 1], score=[.5, .1, .9])
case("AUC edge", "a single negative", edge=True, y=[1, 1, 0, 1], score=[.4, .9, .5, .5])
case("AUC edge", "one model twice", edge=True, y=[1, 0, 1, 0, 0, 1], a=[.9, .2, .3, .4, .1, .8], b=[.9, .2, .3, .4, .1, .8])
case("AUC edge", "two perfect models", edge=True, y=[1, 0, 1, 0], a=[.9, .2, .8, .1], b=[.7, .2, .6, .3])

# ---------------------------------------------------------------- readers

case("inter-rater", "14 readers, 5 categories", source="Wikipedia, Fleiss' kappa", published={"kappa": .21},
     ratings=[sum(([c]*n for c, n in enumerate(row, 1)), []) for row in FLEISS])
r = rng(102)
truth = r.random(30) < .4
readings = np.where(r.random((30, 3)) < .12, ~truth[:, None], truth[:, None]).astype(int)
case("inter-rater", "three readers, yes or no", ratings=readings.tolist())
gaps = [[None if (k, j) in {(2, 0), (9, 1), (9, 2)} else int(v) for j, v in enumerate(row)] for k, row in enumerate(readings)]
case("inter-rater", "missing readings: two subjects left out", edge=True, ratings=gaps)
case("inter-rater", "all say yes", edge=True, ratings=[[1, 1, 1]]*5, keys=("kappa", "percent_agreement"))
case("inter-rater", "two readers who never agree", edge=True, ratings=[[0, 1], [1, 0], [0, 1], [1, 0]])
case("majority vote", "ties, gaps, nobody, two and five readers", edge=True, tolerance=0,
     readings=[[1, 1, 0], [0, 1, None], [None, None, None], [1, None, None], [0, 0, None], [2, 1, 0], [2, 2, 0]], keys=("majority",))
case("majority vote", "four readers", edge=True, tolerance=0, readings=[[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, None, 1], [None, 1, 1, 0]])

# ---------------------------------------------------------------- pairs of measurements

case("ICC", "6 targets, 4 judges", tolerance=1e-8, source="Shrout and Fleiss, Psychol Bull 1979; 86:420", matrix=SHROUT,
     published={"ICC(1,1)": .17, "ICC(A,1)": .29, "ICC(C,1)": .71, "ICC(1,k)": .44, "ICC(A,k)": .62, "ICC(C,k)": .91})
case("ICC", "two meters of 17 people", tolerance=1e-8, source=PEFR, matrix=[list(p) for p in zip(MINI, LARGE)])
r = rng(103)
case("ICC", "no agreement beyond chance: below zero", edge=True, tolerance=1e-8, matrix=listed(r.normal(20, 3, (8, 3)), 1))
case("Bland-Altman", "peak flow by two meters", tolerance=1e-8, source=PEFR, x=LARGE, y=MINI,
     published={"bias": -2.1, "sd": 38.8, "bias_ci": [-22.0, 17.8]})
case("Bland-Altman", "three pairs of five, a gap on either side", edge=True, tolerance=1e-8, x=[3.5, None, 12.0, 7.25, 0.0], y=[4.0, 2.0, 10.5, None, 0.5])
r = rng(104)
truth = np.where(np.arange(40) < 12, 0, r.lognormal(2.5, 1, 40))
ml = dict(x=listed(truth*1.05 + r.normal(-.5, 2, 40), 2), y=listed(truth, 2))
case("Bland-Altman", "40 volumes, a third of them zero, some negative", tolerance=1e-8, **ml)
case("Bland-Altman", "coefficients of the exact interval", tolerance=1e-7, n=[3, 4, 8, 20, 60, 150], keys=("c",))
case("proportional bias", "peak flow by two meters", tolerance=1e-8, source=PEFR, x=LARGE, y=MINI)
case("proportional bias", "volumes measured 5 % too large, with gaps", edge=True, tolerance=1e-8, x=[None, *ml["x"]], y=[3.0, *ml["y"]])
case("correlation", "peak flow by two meters", tolerance=1e-8, source=PEFR, x=LARGE, y=MINI, published={"pearson": .94})
case("correlation", "40 volumes, tied zeros", edge=True, tolerance=1e-8, **ml)
case("correlation", "no spread, one pair, two pairs, two pairs of three", edge=True, constant=[[2, 2, 2, 2], [1, 5, 3, 4]], one_pair=[[4], [5]],
     two_pairs=[[1, 2], [2, 1]], a_gap=[[1, None, 3], [4, 5, 2]])
case("agreement", "a perfect line that is far off: y = 3x - 4", edge=True, tolerance=1e-8, x=[1.5, 3.0, 7.0, 11.0, 18.0, 26.0, 40.0],
     y=[.5, 5.0, 17.0, 29.0, 50.0, 74.0, 116.0],
     keys=("pearson", "spearman", "ccc", "bias", "loa_lo", "loa_hi", "ICC(A,1)"))
case("agreement", "40 volumes", tolerance=1e-8, **ml)
case("CCC", "peak flow by two meters", tolerance=1e-8, source=PEFR, x=LARGE, y=MINI)
case("CCC", "opposed measurements", edge=True, tolerance=1e-8, x=[1, 2, 3, 4, 5, 6], y=[5, 6, 4, 3, 1, 2])
case("Deming", "peak flow by two meters", tolerance=1e-8, source=PEFR, x=LARGE, y=MINI)
case("Deming", "40 volumes, y four times as noisy", tolerance=1e-8, x=ml["y"], y=ml["x"], ratio=4.0)
case("Deming", "falling line with a gap", edge=True, tolerance=1e-8, x=[1, 2, 3, None, 5], y=[9.5, 7, 6, 5, 1])
r = rng(105)
x = np.sort(r.uniform(2, 60, 18))
case("Passing-Bablok", "18 pairs without ties", tolerance=1e-8, x=listed(x, 2), y=listed(1.1*x - 1 + r.normal(0, 2, 18), 2))
case("Passing-Bablok", "19 noisy pairs: slopes below -1", edge=True, tolerance=1e-8, x=listed(r.normal(10, 3, 19), 3),
     y=listed(r.normal(10, 3, 19), 3), keys=("slope", "intercept"))
r = rng(106)
who = np.repeat(np.arange(12), r.integers(1, 5, 12))
case("repeated-measures Bland-Altman", "12 patients, 1 to 4 pairs each", tolerance=1e-8, subject=[f"p{n:02d}" for n in who],
     d=listed(-1 + r.normal(0, 3, 12)[who] + r.normal(0, 1.5, len(who)), 2))
case("repeated-measures Bland-Altman", "patients more alike than their pairs: variance between them held at 0", edge=True, tolerance=1e-8,
     subject=[1, 1, 1, 2, 2, 2, 3, 3, 3], d=[-4, 0, 4, -3, 0, 3, -5, 1, 4])

# ---------------------------------------------------------------- tests

case("McNemar", "1 against 9", table=[[50, 1], [9, 12]])
case("McNemar", "one side only", edge=True, table=[[20, 6], [0, 4]])
case("McNemar", "nobody differs", edge=True, table=[[7, 0], [0, 3]])
case("McNemar", "many", table=[[300, 41], [77, 120]])
case("multiplicity", "ties and ones", edge=True, p=[.02, .02, 1.0, .3, .0001])
case("multiplicity", "missing tests", edge=True, p=[.01, None, .04, .03, "NaN", .005], notes="the two that are missing do not count")
case("multiplicity", "a single test, none", edge=True, p=[.04])

# ---------------------------------------------------------------- probabilities

r = rng(107)
Y = (r.random((25, 4)) < [.5, .3, .2, 0]).astype(int)
case("multi-label", "25 subjects, 4 labels, one nobody has", edge=True, Y=Y.tolist(), S=listed(np.clip(r.normal(.4 + .2*Y, .2), 0, 1), 1))
Y = (r.random((12, 2)) < .5).astype(int)
case("multi-label", "two labels, all scores distinct", Y=Y.tolist(), S=listed(r.permutation(24).reshape(12, 2)/24 + .02, 4))
r = rng(108)
p = np.clip(r.beta(1.2, 2, 60), .02, .97).round(2)
case("calibration", "60 forecasts, two decimals, edges of bins among them", edge=True, tolerance=1e-7, y=(r.random(60) < p**1.3).astype(int).tolist(),
     p=p.tolist())
case("calibration", "five bins", tolerance=1e-7, y=[0, 1, 0, 0, 1, 1, 0, 1, 1, 0], p=[.1, .2, .2, .4, .4, .6, .7, .8, .9, .35], bins=5)
r = rng(109)
Y = (r.random((8, 6)) < .3).astype(int)
Y[:, 0] = Y[:, 1:].max(1)
case("weighted log loss", "8 images", Y=Y.tolist(), P=listed(np.clip(r.normal(.25 + .5*Y, .2), .01, .99), 2))
case("weighted log loss", "certain and wrong: held at 1e-15", edge=True, Y=[[1, 0, 0, 0, 0, 1]], P=[[0, 1, 0, .5, 0, 1]])

# ---------------------------------------------------------------- masks, images, folds, pixels

def ball(shape, middle, radius, spacing):
    away = [((g - c)*s)**2 for g, c, s in zip(np.indices(shape), middle, spacing)]
    return (np.sqrt(sum(away)) <= radius).astype(int)

shape, mm = (5, 9, 10), [4.0, .8, .7]
case("segmentation", "two balls in thick slices", tolerance=1e-9, pred=ball(shape, (2, 4, 5), 5, mm).tolist(),
     ref=ball(shape, (2, 4, 4), 4.2, mm).tolist(), spacing_mm=mm)
case("segmentation", "one voxel against a plate at the border", edge=True, tolerance=1e-9, pred=ball((3, 4, 5), (2, 3, 4), 0, (1, 1, 1)).tolist(),
     ref=(np.indices((3, 4, 5))[0] == 0).astype(int).tolist(), spacing_mm=[2.5, 1.0, .5])
case("segmentation", "the same mask", edge=True, tolerance=1e-9, pred=ball((3, 5, 5), (1, 2, 2), 2, (1, 1, 1)).tolist(),
     ref=ball((3, 5, 5), (1, 2, 2), 2, (1, 1, 1)).tolist(), spacing_mm=[5.0, .5, .5])
for name, a, b in (("both empty", 0, 0), ("nothing found", 0, 1), ("nothing to find", 1, 0)):
    case("segmentation", name, edge=True, tolerance=1e-9, pred=np.full((2, 3, 3), a).tolist(), ref=np.full((2, 3, 3), b).tolist(),
         spacing_mm=[5.0, .4, .4])
case("volumes", "gaps, zeros, a negative measurement", edge=True, pred=[-1.5, 0.0, 3.2, None, 18.0, 7.5, None, 61.0],
     ref=[0.0, 0.0, 2.0, 4.0, 20.5, None, None, 55.0])
case("volumes", "40 volumes", pred=ml["x"], ref=ml["y"])
case("subject level", "names out of order, gaps", edge=True, subject=["p9", "p10", "p9", "p1", "p1", "p10", "p2", "p3", "p3"],
     label=[0, 1, 1, 0, 0, 0, 0, 1, 0],
     score=[.2, .7, None, .3, .1, .9, None, .25, .25])
for name, positive, n, k, edge in (("18 patients, 6 positive, 3 folds", 6, 18, 3, False), ("24 patients, 7 positive, 5 folds", 7, 24, 5, False),
                                   ("3 positive of 15, 5 folds", 3, 15, 5, True)):
    who = np.repeat(np.arange(n), 4)
    case("k-fold", name, edge=edge, tolerance=0, patient=[f"r{w:02d}" for w in who], label=(who < positive).astype(int).tolist(), k=k, seed=0)
for m, k, size, edge in ((10, 7, 15, False), (25, 20, 8, False), (6, 6, 10, True)):
    case("cluster bootstrap", f"{k} of {m} patients right, {size} images each", edge=edge, tolerance={"boot": .02, "naive": 1e-8}, m_patients=m,
         k_correct_patients=k, slices_per_patient=size,
         slice_patient=np.repeat(np.arange(m), size).tolist(), slice_correct=np.repeat((np.arange(m) < k).astype(int), size).tolist())
r = rng(110)
halves = [(r.random(n) < .4).astype(int) for n in (30, 24)]
case("threshold", "chosen on 30, judged on 24", val_y=halves[0].tolist(), val_score=listed(r.normal(.4 + .2*halves[0], .15), 2),
     test_y=halves[1].tolist(), test_score=listed(r.normal(.4 + .2*halves[1], .15), 2))
case("threshold", "two thresholds equally good: the higher", edge=True, val_y=[1, 0, 1, 0], val_score=[.8, .6, .4, .2], test_y=[1, 0, 0],
     test_score=[.5, .8, .1])
case("AUC over folds", "scores on different scales, a fold of one class", edge=True, fold=[0, 0, 0, 1, 1, 1, 2, 2], y=[1, 0, 1, 1, 0, 0, 0, 0],
     score=[.9, .7, .8, .3, .1, .2, .4, .6])
case("normalisation", "training pixels only", edge=True, train=[-900, -20, 0, 15, 33, 41, 58, 700, 77, 62], test=[-1100, -5, 20, 60, 80, 900])


# ---------------------------------------------------------------- both routes, and the file

def rounded(value):
    """Floats to as many digits as every machine agrees on."""
    if isinstance(value, dict): return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list): return [rounded(v) for v in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) and np.isfinite(value) else value


def made(number, c):
    """One case as it is written, or an exit that says how the two routes differ."""
    from .form import decode
    function, call, tools = TOPICS[c["topic"]]
    routes = [getattr(m, function)(decode(c["input"])) for m in (by_library, by_hand)]
    if c["keys"]: routes = [{k: r[k] for k in c["keys"]} for r in routes]
    one, other = routes
    tight = 0 if c["topic"] == "k-fold" else 1e-9 if isinstance(c["tolerance"], dict) else max(c["tolerance"]/10, 1e-12)
    if wrong := differences(one, other, tight) + differences(other, one, tight):
        raise SystemExit(f'the two routes differ, nothing is written: {c["topic"]}, {c["name"]}: (key, library, by hand) {wrong[:3]}')
    return {"id": f"G{number:02d}", "name": c["name"], "topic": c["topic"], "edge_case": c["edge"], "input": c["input"], "call": call,
            "expected": rounded(one), "tolerance": c["tolerance"],
            "source": c["source"], "published": c["published"], "notes": c["notes"], "tools": list(tools),
            "cross_check": {"oracle": tools[1], "values_compared": _values(one)}}


def _values(v): return sum(map(_values, v.values() if isinstance(v, dict) else v)) if isinstance(v, (dict, list)) else 1


ABOUT = {
    "about": "Golden cases of ich_study, made by tests/golden/make_cases.py from published tables and fixed seeds, each number by two routes that do not know of ich_study",
    "versions": {m.__name__: m.__version__ for m in (np, scipy, statsmodels, sklearn, pingouin, pandas)},
    "conventions": {"encoding": '"NaN", "Infinity" and "-Infinity" stand for the floats; null in an input is a missing value',
                    "tolerance": "a number t allows |got - expected| <= t max(1, |expected|); an object gives abs and rel, or one value for the keys that begin so; NaN is met by NaN only, booleans and integers exactly",
                    "sign": "measured minus reference", "confidence": "95 %, two-sided", "positive": "score >= threshold"},
}


def text():
    """The whole file, a field a line."""
    dump = lambda v: json.dumps(encode(v), ensure_ascii=False)
    cases = ["  {" + ",\n   ".join(f"{dump(k)}: {dump(v)}" for k, v in made(n, c).items()) + "}" for n, c in enumerate(CASES, 1)]
    head = "".join(f" {dump(k)}: {dump(v)},\n" for k, v in ABOUT.items())
    return "{\n" + head + ' "cases": [\n' + ",\n".join(cases) + "\n ]\n}\n"


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("cases.json")
    whole = text()
    file.write_text(whole, encoding="utf-8")
    print(f"{len(CASES)} cases over {len({c['topic'] for c in CASES})} topics are in {file}, {len(whole)/1024:.0f} KB")
