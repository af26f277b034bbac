"""Which function of ich_study answers which topic. Here inputs are reshaped and results renamed, and rows are counted.

Each function takes the input of a case, decoded, and gives all results that a case of its topic may expect. Input that the library refuses
(`StudyError`) is `Refused`: NaN wherever a number was expected, true where `raises` was."""
import numpy as np
import pandas as pd

from ich_study.agreement import volume_errors
from ich_study.areas import area_covariance, auc_delong, average_precision, paired_auc
from ich_study.calibration import binary_log_loss, brier, calibration_error, calibration_line, rsna_log_loss
from ich_study.comparison import holm, mcnemar_exact, mcnemar_table
from ich_study.concordance import ccc, correlation, deming, icc, pairs, passing_bablok
from ich_study.counts import average_measures, clopper_pearson, confusion_counts, count_measures, likelihood_ratio
from ich_study.detection import fold_areas, multilabel_measures
from ich_study.estimates import percentiles
from ich_study.folds import make_folds
from ich_study.limits import bland_altman, limit_coefficients, proportional_bias, repeated_limits
from ich_study.overlap import mask_measures
from ich_study.readers import fleiss, majority_vote
from ich_study.resampling import draw_patients, resampled_ratios, resampled_sums
from ich_study.scaling import fit_scale, range_shares, window_shares, zscores
from ich_study.schema import LABELS, SERIES, SUBTYPES, StudyError, check_table
from ich_study.units import patient_scores, youden_threshold

from .form import Refused

RESAMPLES = 40_000  # of the cluster bootstrap: enough for quantiles of few patients, which lie on few values


# ---------------------------------------------------------------- small helpers

def level(i): return {"level": next((i[k] for k in ("level", "confidence", "conf_level") if k in i), 1 - i["alpha"] if "alpha" in i else .95)}
def first_of(i, names, default): return next((i[n] for n in names if i.get(n) is not None), default)
def numbers(values): return np.array(values, float)
def table(values): return numbers(values) if len(values) else np.empty((0, 0))
def whole(values): return [int(v) for v in values]


def spread(**estimates):
    """Estimates by name to value, _lo and _hi."""
    return {f"{name}{end}": v for name, e in estimates.items() for end, v in (("", e.value), ("_lo", e.low), ("_hi", e.high))}


def or_refused(function, *given, **more):
    """The answer, or that the library refused to give one."""
    try: return function(*given, **more)
    except StudyError as e: return Refused(str(e))


def known(*columns):
    """The rows in which nothing is missing, and how many others there are."""
    rows = list(zip(*columns, strict=True))
    kept = [r for r in rows if not any(v is None or v != v for v in r)]
    return *([list(c) for c in zip(*kept)] or [[] for _ in columns]), len(rows) - len(kept)


# ---------------------------------------------------------------- counts

def _counts(row, i):
    tp, fp, fn, tn = (row[k] for k in ("tp", "fp", "fn", "tn"))
    return spread(**count_measures(tp, fp, fn, tn, **level(i))) | {"n": tp + fp + fn + tn, "n_pos": tp + fn, "n_neg": fp + tn}

def diagnostic_counts(i): return {str(row.get("name", n)): or_refused(_counts, row, i) for n, row in enumerate(i["rows"])}

def averages(i):
    found = average_measures(i["rows"], **level(i))
    return found | spread(multiclass_accuracy=found["multiclass_accuracy"])

def ends(e): return [np.nan, np.nan] if isinstance(e, Refused) else [e.low, e.high]

def proportion(i):
    each = [or_refused(clopper_pearson, k, n, **level(i)) for k, n in i["kn"]]
    return {"ci": [ends(e) for e in each], "raises": any(isinstance(e, Refused) for e in each)}

def zero_cells(i):
    cells = [[row[k] for k in ("a", "na", "b", "nb")] for row in i["rows"]]
    each = [or_refused(likelihood_ratio, *c, method=i.get("method", "score"), **level(i)) for c in cells]
    return {"ci": [ends(e) for e in each], "ratio": [np.nan if isinstance(e, Refused) else e.value for e in each],
            "raises": any(isinstance(e, Refused) for e in each)}


# ---------------------------------------------------------------- areas

def auc(i):
    truth, score, missing = known(i["y"], i["score"])
    found = auc_delong(truth, score, **level(i))
    return spread(auc=found) | {"lo": found.low, "hi": found.high, "var": area_covariance(truth, [score])[1][0, 0], "n": len(truth),
                                "ap": average_precision(truth, score), "degenerate": bool(found.reason), "n_missing": missing}

def auc_paired(i):
    truth, first, second, missing = known(i["y"], i["a"], i["b"])
    found = paired_auc(truth, first, second, **level(i))
    return spread(auc_a=found.first, auc_b=found.second, diff=found.difference) | {
        "p": found.difference.p, "var_diff": found.variance, "cov": found.covariance, "z": found.z,
        "degenerate": bool(found.difference.reason), "n": len(truth), "n_missing": missing}

def auc_edge(i): return auc_paired(i) if "a" in i else auc(i)

def multilabel(i):
    found = multilabel_measures(table(i["Y"]), table(i["S"]))
    return found | {f"n_defined_{k}": len(found[f"{k}_per_class"]) - found[f"n_undefined_{k}"] for k in ("ap", "auc")}

def _rates(truth, score, cut):
    if cut != cut: return np.nan, np.nan
    found = count_measures(**confusion_counts(truth, numbers(score) >= cut))
    return found["sensitivity"].value, found["specificity"].value

def threshold(i):
    (val_y, val_score, _), (test_y, test_score, _) = known(i["val_y"], i["val_score"]), known(i["test_y"], i["test_score"])
    best_on = lambda truth, score: next(cut if rule == "youden" else np.nan for cut, rule in [youden_threshold(truth, score)])
    chosen, tuned = best_on(val_y, val_score), best_on(test_y, test_score)  # NaN where there is one class: the library says "fixed"
    held, test, best = _rates(val_y, val_score, chosen), _rates(test_y, test_score, chosen), _rates(test_y, test_score, tuned)
    return {"threshold": chosen, "val_sensitivity": held[0], "val_specificity": held[1], "val_j": sum(held) - 1,
            "test_sensitivity": test[0], "test_specificity": test[1], "test_j": sum(test) - 1,
            "test_best_threshold": tuned, "test_best_j": sum(best) - 1, "degenerate": chosen != chosen}

def over_folds(i):
    fold, truth, score, missing = known(i["fold"], i["y"], i["score"])
    found = fold_areas(fold, truth, score)
    return found | {"n_folds": len(found["per_fold"]), "n_undefined": len(found["per_fold"]) - found["n_defined"], "n_missing": missing}

def _subjects(who, label, score):
    found = patient_scores(who, label, score).sort_values("patient", kind="stable")
    area = lambda y, s: or_refused(lambda: auc_delong(*known(y, s)[:2]).value)
    out = {name: [None if v is pd.NA else v for v in found[name]] for name in ("label", "score_max", "score_mean", "n_images", "n_missing")}
    return out | {"subject": found.patient.tolist(), "n_slices": out["n_images"], "auc_max": area(out["label"], out["score_max"]),
                  "auc_mean": area(out["label"], out["score_mean"]), "slice_auc": area(label, score)}

def subjects(i):
    who, label, score = np.array(i["subject"]), i["label"], numbers(i["score"])
    if not (len(label) and isinstance(label[0], list)): return _subjects(who, label, score.tolist())
    each = [_subjects(who, column, (score if score.ndim == 1 else score[:, k]).tolist()) for k, column in enumerate(zip(*label))]  # a label per class
    by_class = ("label", *(("score_max", "score_mean") if score.ndim > 1 else ()))
    return each[0] | {name: list(zip(*(e[name] for e in each))) for name in by_class} | {k: [e[k] for e in each] for k in ("auc_max", "auc_mean", "slice_auc")}


# ---------------------------------------------------------------- readers

def readers(i):
    rows = i["ratings"]
    words = sorted({v for r in rows for v in r if isinstance(v, str)})  # categories with names become numbers in their order
    found = fleiss(table([[words.index(v) if isinstance(v, str) else v for v in r] for r in rows]), **level(i))
    return spread(kappa=found.kappa) | {"z": found.z, "p": found.p, "per_category": list(found.categories.values()),
                                        "percent_agreement": found.agreement, "n_subjects": found.subjects, "n_raters": found.readers,
                                        "n_incomplete": found.incomplete, "degenerate": bool(found.kappa.reason)}

def majority(i): return {"majority": majority_vote(table(i["readings"])).tolist()}

def _icc(rows, i): return spread(**icc(table(rows), **level(i)))

def intraclass(i): return _icc(i["matrix"], i)


# ---------------------------------------------------------------- pairs of measurements: x measured, y reference

def limits(i):
    if "x" not in i:
        sizes = i["n"] if isinstance(i["n"], list) else [i["n"]]
        each = [or_refused(limit_coefficients, n, **level(i)) for n in sizes]
        return {"c": [[np.nan, np.nan] if isinstance(c, Refused) else [*c] for c in each], "raises": any(isinstance(c, Refused) for c in each)}
    found = bland_altman(numbers(i["y"]), numbers(i["x"]), **level(i))
    exact, near = (found.lower, found.upper), (found.lower_approximate, found.upper_approximate)
    out = {"n": found.n, "n_missing": found.missing, "sd": found.sd, "loa_lo": exact[0].value, "loa_hi": exact[1].value, "degenerate": bool(found.reason)}
    for kind, (low, high) in (("exact", exact), ("approx", near)):
        out |= {f"loa_lo_{kind}_lo": low.low, f"loa_lo_{kind}_hi": low.high, f"loa_hi_{kind}_lo": high.low, f"loa_hi_{kind}_hi": high.high}
    return out | spread(bias=found.bias)

def proportional(i):
    found = proportional_bias(numbers(i["y"]), numbers(i["x"]), **level(i))
    slope, intercept = found["slope"], found["intercept"]
    return spread(slope=slope, intercept=intercept) | {"slope_se": found["slope_se"], "slope_p": slope.p, "intercept_p": intercept.p, "n": slope.n}

def _correlations(x, y, i):
    r, rho = (correlation(numbers(y), numbers(x), kind, **level(i)) for kind in ("pearson", "spearman"))
    missing = pairs(numbers(y), numbers(x))[2]
    return spread(pearson=r, spearman=rho) | {"pearson_p": r.p, "spearman_p": rho.p, "n": r.n, "n_missing": missing, "degenerate": bool(r.reason)}

def correlations(i):
    if "x" in i: return _correlations(i["x"], i["y"], i)
    return {name: or_refused(_correlations, *pair, i) for name, pair in i.items() if isinstance(pair, list)}

def concordance(i): return spread(ccc=ccc(numbers(i["y"]), numbers(i["x"]), **level(i)))

def agreement(i):
    x, y, _ = known(i["x"], i["y"])
    return _icc(np.c_[x, y].reshape(-1, 2), i) | limits(i) | concordance(i) | correlations(i)

def _line(function, i, **more):
    x, y = numbers(i["x"]), numbers(i["y"])
    found = function(x, y, **more, **level(i))  # here y is regressed on x
    slope, intercept = found["slope"], found["intercept"]
    return spread(slope=slope, intercept=intercept) | {"n": slope.n, "n_missing": pairs(x, y)[2], "degenerate": bool(slope.reason)}

RATIOS = ("ratio", "variance_ratio", "error_ratio", "lambda", "delta", "vr", "var_ratio")  # error variance of y over that of x

def deming_line(i): return _line(deming, i, ratio=first_of(i, RATIOS, 1.))

def passing_bablok_line(i): return _line(passing_bablok, i)

def repeated(i):
    d = numbers(i["d"]) if "d" in i else numbers(i["x"]) - numbers(i["y"])
    found = repeated_limits(np.array(i["subject"]), d, **level(i))
    names = ("n_subjects", "n_pairs", "msb", "msw", "m0", "var_between", "sd_total", "naive_sd")
    out = {k: getattr(found, k) for k in names} | {"n_missing": found.missing, "degenerate": bool(found.reason)}
    return out | spread(bias=found.bias, loa_lo=found.lower, loa_hi=found.upper)

def volumes(i):
    found = volume_errors(numbers(i["ref"]), numbers(i["pred"]))
    return found | {"n_negative_pred": found["n_negative"], "n_zero_ref": found["n_zero_reference"]}


# ---------------------------------------------------------------- tests

def mcnemar_tests(i):
    if "table" in i:
        (_, b), (c, _) = i["table"]
        found = mcnemar_table(b, c)
    else: found = mcnemar_exact(i["a"], i["b"])  # right or wrong, one by one
    b, c = found.only_first, found.only_second
    return {"p_exact": found.p, "chi2_cc": found.chi2, "p_cc": found.p_chi2, "b": b, "c": c, "n_discordant": b + c}

def adjusted(i): return {"adj": holm(numbers(i["p"])).tolist()}


# ---------------------------------------------------------------- probabilities

def calibrated(i):
    truth, p, missing = known(i["y"], i["p"])
    ece, mce = calibration_error(truth, p, int(first_of(i, ("bins", "n_bins"), 10)))
    line = calibration_line(truth, p, **level(i))
    return {"brier": brier(truth, p), "log_loss": binary_log_loss(truth, p), "ece": ece, "mce": mce, "n": len(truth), "n_missing": missing} | spread(
        cal_intercept=line["intercept"], cal_slope=line["slope"], citl=line["citl"])

def weighted_loss(i): return {"loss": rsna_log_loss(*(table(i[k]) if i[k] else np.empty((0, 6)) for k in ("Y", "P")))}


# ---------------------------------------------------------------- masks, folds, resampling, pixels

def segmentation(i):
    mm, masks = i["spacing_mm"], [np.array(i[k]) for k in ("pred", "ref")]
    if len(mm) == 3: masks = [m[None] if m.ndim == 2 else m for m in masks]  # a single image of a series
    found = mask_measures(*masks, mm)
    in_mm = {"hd": "hd_mm", "hd95_max": "hd95_max_mm", "hd95_pooled": "hd95_pooled_mm", "assd_pooled": "assd_mm", "assd": "assd_mm"}
    return found | {name: found[ours] for name, ours in in_mm.items()} | {"degenerate": bool(found["reason"])}

def _series(i):
    """One series per patient, with blood of a subtype where any image has it: label k is the k-th subtype, 1 subdural."""
    kinds = ("subdural", *(s for s in SUBTYPES if s != "subdural"))
    label = pd.Series(i["label"]).fillna(0).astype(int).groupby(pd.Series(i["patient"]).astype(str), sort=False)
    has = pd.DataFrame({kind: label.agg(lambda v, k=k: bool((v == k + 1).any())) for k, kind in enumerate(kinds)})
    names = dict.fromkeys(("patient", "series", "study"), has.index)
    rows = has.assign(any=has.any(axis=1), **names, dataset="golden", images=label.size(), volume_source="none")
    return check_table(rows.reset_index(drop=True).reindex(columns=list(SERIES.columns)), "series"), has.any(axis=1)

def k_fold(i):
    (series, positive), k, seed = _series(i), i["k"], i.get("seed", 0)
    refused = isinstance(or_refused(make_folds, series, k, seed), Refused)
    deal = lambda: make_folds(series, k, seed, accept=tuple(LABELS) if refused else ())  # said to know that a class is rare, it deals
    folds = deal()
    tested, wanted = folds[folds.role == "test"], set(map(str, i["patient"]))
    each = positive[tested.patient].groupby(tested.fold.to_numpy()).sum().reindex(range(k), fill_value=0)
    empty = int((each == 0).sum())
    return {"each_slice_once": bool(tested.patient.is_unique and set(tested.patient) == wanted), "n_patients": len(wanted),
            "patients_shared_between_folds": int(tested.patient.duplicated().sum()), "positive_patients": int(positive.sum()),
            "n_folds": int(tested.fold.nunique()), "every_test_fold_has_a_positive": empty == 0, "max_positive_patients_in_a_fold": int(each.max()),
            "min_positive_patients_in_a_fold": int(each.min()), "folds_without_positive": empty, "folds_without_positive_at_least": empty,
            "same_seed_same_folds": bool(folds.equals(deal())), "warned_or_raised": refused}

def clusters(i):
    m, right, size = (i.get(k) for k in ("m_patients", "k_correct_patients", "slices_per_patient"))
    who = np.array(i["slice_patient"] if "slice_patient" in i else np.repeat(np.arange(m), size))
    hit = numbers(i["slice_correct"] if "slice_correct" in i else np.repeat(np.arange(m) < right, size))
    naive = clopper_pearson(int(hit.sum()), len(hit), **level(i))
    code, weights = draw_patients(who, max(RESAMPLES, first_of(i, ("n_resamples", "resamples"), 0)), i.get("seed", 0), observed=True)
    drawn = resampled_ratios(resampled_sums(hit, code, weights), resampled_sums(np.ones(len(hit)), code, weights))  # the first draw is what was observed
    low, high = percentiles(drawn[1:], **level(i))
    return {"estimate": float(drawn[0]), "boot_lo": low, "boot_hi": high, "naive_lo": naive.low, "naive_hi": naive.high}

def normalisation(i):
    train, test = (known(i[k])[0] for k in ("train", "test"))
    band = i.get("window", {})
    band = {"centre": band[0], "width": band[1]} if isinstance(band, list) else i | band
    centre = first_of(band, ("centre", "center", "level", "window_centre", "window_center", "window_level"), 40)
    shares, fitted = window_shares(test, centre, first_of(band, ("width", "window_width"), 80)), fit_scale(train)
    z = zscores(test, fitted)
    return {"mean": fitted.mean, "sd": fitted.sd, "min": fitted.low, "max": fitted.high, "z_test": z.tolist(), "window_test": shares.tolist(),
            "u_test": range_shares(test, fitted).tolist(), "pooled_mean_leaky": fit_scale([*train, *test]).mean,
            "z_in_unit_interval": bool(((z >= 0) & (z <= 1)).all())}


# ---------------------------------------------------------------- the table

TOPICS = {
    "diagnostic counts": diagnostic_counts,         # counts.count_measures
    "averages": averages,                           # counts.average_measures
    "proportion CI": proportion,                    # counts.clopper_pearson
    "LR CI with zero cells": zero_cells,            # counts.likelihood_ratio
    "AUC CI": auc,                                  # areas.auc_delong, area_covariance, average_precision
    "paired AUC test": auc_paired,                  # areas.paired_auc
    "AUC edge": auc_edge,                           # the two above
    "inter-rater": readers,                         # readers.fleiss
    "majority vote": majority,                      # readers.majority_vote
    "ICC": intraclass,                              # concordance.icc
    "Bland-Altman": limits,                         # limits.bland_altman, limit_coefficients
    "proportional bias": proportional,              # limits.proportional_bias
    "correlation": correlations,                    # concordance.correlation
    "agreement": agreement,                         # concordance and limits, all that a pair of lists gives
    "CCC": concordance,                             # concordance.ccc
    "Deming": deming_line,                          # concordance.deming
    "Passing-Bablok": passing_bablok_line,          # concordance.passing_bablok
    "repeated-measures Bland-Altman": repeated,     # limits.repeated_limits
    "McNemar": mcnemar_tests,                       # comparison.mcnemar_table, mcnemar_exact
    "multiplicity": adjusted,                       # comparison.holm
    "multi-label": multilabel,                      # detection.multilabel_measures
    "calibration": calibrated,                      # calibration.brier, binary_log_loss, calibration_error, calibration_line
    "weighted log loss": weighted_loss,             # calibration.rsna_log_loss
    "segmentation": segmentation,                   # overlap.mask_measures
    "volumes": volumes,                             # agreement.volume_errors
    "subject level": subjects,                      # units.patient_scores, areas.auc_delong
    "k-fold": k_fold,                               # folds.make_folds
    "cluster bootstrap": clusters,                  # resampling.draw_patients, estimates.percentiles, counts.clopper_pearson
    "threshold": threshold,                         # units.youden_threshold, counts.count_measures
    "AUC over folds": over_folds,                   # detection.fold_areas
    "normalisation": normalisation,                 # scaling.fit_scale, zscores, range_shares, window_shares
}


def answer(topic, given):
    """All results of one case."""
    return or_refused(TOPICS[topic], given)
