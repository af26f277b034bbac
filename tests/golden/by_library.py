"""First route to the expected numbers: well-kept libraries, called with their traps in mind. Never imports ich_study."""
import warnings
from functools import wraps

import numpy as np
import pandas as pd
import pingouin
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import ndimage, optimize, stats
from sklearn import metrics
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.nonparametric import rank_compare_2indep, rankdata_2samp
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

NAN, Z = np.nan, stats.norm.ppf(.975)


def quiet(f):
    """The same function, silent: what libraries warn of is expected here."""
    @wraps(f)
    def inside(*args):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return f(*args)
    return inside


def numbers(values): return np.array(values, float)


def complete(*columns):
    columns = [numbers(c) for c in columns]
    keep = np.isfinite(columns).all(0)
    return *(c[keep] for c in columns), int((~keep).sum())


# ---------------------------------------------------------------- counts

def _proportion(k, n): return (k/n, *map(float, proportion_confint(k, n, method="beta"))) if n else (NAN,)*3


def _log_ratio(a, na, b, nb):
    if 0 in (a, na, b, nb): return NAN, NAN
    return tuple(map(float, confint_proportions_2indep(a, na, b, nb, method="log", compare="ratio")))


@quiet
def diagnostic_counts(i):
    out = {}
    for row in i["rows"]:
        tp, fp, fn, tn = (row[k] for k in ("tp", "fp", "fn", "tn"))
        y, p = np.repeat([1, 0, 1, 0], [tp, fp, fn, tn]), np.repeat([1, 1, 0, 0], [tp, fp, fn, tn])
        score = lambda f, **k: float(f(y, p, **k)) if len(y) else NAN
        rate = lambda f, label: score(f, pos_label=label, zero_division=np.nan)
        one = {"accuracy": score(metrics.accuracy_score), "sensitivity": rate(metrics.recall_score, 1), "specificity": rate(metrics.recall_score, 0),
               "ppv": rate(metrics.precision_score, 1), "npv": rate(metrics.precision_score, 0), "f1": rate(metrics.f1_score, 1)}
        for name, k, n in (("accuracy", tp + tn, len(y)), ("sensitivity", tp, tp + fn), ("specificity", tn, tn + fp), ("ppv", tp, tp + fp),
                           ("npv", tn, tn + fn)):
            _, one[f"{name}_lo"], one[f"{name}_hi"] = _proportion(k, n)
        sens, spec = np.float64(one["sensitivity"]), np.float64(one["specificity"])
        one |= {"lr_pos": float(sens/(1 - spec)), "lr_neg": float((1 - sens)/spec)}
        one["lr_pos_lo"], one["lr_pos_hi"] = _log_ratio(tp, tp + fn, fp, fp + tn)
        one["lr_neg_lo"], one["lr_neg_hi"] = _log_ratio(fn, tp + fn, tn, fp + tn)
        out[row["name"]] = {"n": len(y), "n_pos": int(y.sum()), "n_neg": int((1 - y).sum())} | one
    return out


def _matrix(rows):
    """A confusion matrix that has these one-vs-rest rows: the errors are placed by a linear programme."""
    k, fn, fp = len(rows), [r["fn"] for r in rows], [r["fp"] for r in rows]
    equal = np.array([np.eye(k)[a].repeat(k) for a in range(k)] + [np.tile(np.eye(k)[a], k) for a in range(k)])
    found = optimize.linprog(np.eye(k).ravel(), A_eq=equal, b_eq=[*fn, *fp], bounds=[(0, 0) if a == b else (0, None) for a in range(k) for b in range(k)])
    return np.rint(found.x).astype(int).reshape(k, k) + np.diag([r["tp"] for r in rows])


@quiet
def averages(i):
    m = _matrix(i["rows"])
    k, at = len(m), np.indices(m.shape).reshape(2, -1)
    y, p = (np.repeat(a, m.ravel()) for a in at)
    n, hits = len(y), int((y == p).sum())
    value, low, high = _proportion(hits, n)
    mean = lambda f, average: float(f(y, p, average=average, zero_division=np.nan))
    ovr = metrics.multilabel_confusion_matrix(y, p)
    out = {"macro_accuracy": float(np.mean([metrics.accuracy_score(y == c, p == c) for c in range(k)])),
           "macro_ppv": mean(metrics.precision_score, "macro"),
           "macro_sensitivity": mean(metrics.recall_score, "macro"), "macro_specificity": float(np.mean(ovr[:, 0, 0]/ovr[:, 0].sum(1))),
           "macro_f1": mean(metrics.f1_score, "macro"),
           "multiclass_accuracy": value, "multiclass_accuracy_lo": low, "multiclass_accuracy_hi": high,
           "micro_ppv": mean(metrics.precision_score, "micro"),
           "micro_sensitivity": mean(metrics.recall_score, "micro"), "micro_f1": mean(metrics.f1_score, "micro"),
           "balanced_accuracy": float(metrics.balanced_accuracy_score(y, p)),
           "weighted_sensitivity": mean(metrics.recall_score, "weighted"), "weighted_f1": mean(metrics.f1_score, "weighted"),
           "cohen_kappa": float(metrics.cohen_kappa_score(y, p)), "mcc": float(metrics.matthews_corrcoef(y, p))}
    return out | {"identity_mean_ovr_accuracy": 1 - 2*(1 - value)/k}


def proportion(i):
    exact = lambda k, n: stats.binomtest(k, n).proportion_ci(.95, "exact") if n else (NAN, NAN)
    return {"ci": [[float(v) for v in exact(k, n)] for k, n in i["kn"]]}


def _whole(a, na, b, nb):
    """Where all of a group are hits, statsmodels takes a wrong root: the score limits from the likelihood's slope instead."""
    def chi2(theta):
        top = min(1, 1/theta)
        slope = lambda p: (a + b)/p - (nb - b)/(1 - p) - (na - a)*theta/(1 - p*theta)
        p = optimize.brentq(slope, 1e-12, top*(1 - 1e-13), xtol=1e-16) if slope(top*(1 - 1e-13)) < 0 else top
        return sum((k - n*q)**2/(n*q*(1 - q)) if q < 1 else 0 if k == n else np.inf for k, n, q in ((a, na, p*theta), (b, nb, p)))
    middle = a/na/(b/nb)
    return [float(optimize.brentq(lambda t: chi2(t) - Z**2, *ends, xtol=1e-14)) for ends in ((middle*1e-3, middle), (middle, middle*1e3))]


@quiet
def zero_cells(i):
    score = lambda *cells: [float(v) for v in confint_proportions_2indep(*map(float, cells), method="score", compare="ratio", correction=False)]
    out = []
    for a, na, b, nb in ([r[k] for k in ("a", "na", "b", "nb")] for r in i["rows"]):
        swapped = [1/v if v else np.inf for v in reversed(score(b, nb, a, na))] if a == 0 and b == nb else None
        out.append(swapped or (_whole if (a == na or b == nb) and a and b else score)(a, na, b, nb))
    return {"ci": out}


# ---------------------------------------------------------------- areas

@quiet
def _area(y, score):
    y, score = np.array(y, bool), numbers(score)
    if y.all() or not y.any(): return {"auc": NAN, "var": NAN, "lo": NAN, "hi": NAN, "degenerate": True}
    auc = float(metrics.roc_auc_score(y, score))
    if min(y.sum(), (~y).sum()) < 2: return {"auc": auc, "var": NAN, "lo": NAN, "hi": NAN, "degenerate": True}
    found = rank_compare_2indep(score[y], score[~y], use_t=False)
    low, high = np.clip(found.conf_int(alpha=.05), 0, 1) if found.var_prob > 0 else (auc, auc)
    return {"auc": auc, "var": float(found.var_prob), "lo": float(low), "hi": float(high), "degenerate": not found.var_prob > 0}


@quiet
def _ap(y, score): return float(metrics.average_precision_score(y, numbers(score))) if np.any(y) else NAN


def auc(i): return {k: v for k, v in _area(i["y"], i["score"]).items() if k != "degenerate"}


@quiet
def auc_paired(i):
    y, scores = np.array(i["y"], bool), [numbers(i[k]) for k in ("a", "b")]
    found, m, n = [rankdata_2samp(s[y], s[~y]) for s in scores], int(y.sum()), int((~y).sum())  # ranks in both groups, and in the own
    cov = np.cov([f[0] - f[2] for f in found])/n**2/m + np.cov([f[1] - f[3] for f in found])/m**2/n
    a, b = (float(metrics.roc_auc_score(y, s)) for s in scores)
    var, difference = float(cov[0, 0] + cov[1, 1] - 2*cov[0, 1]), a - b
    out = {"auc_a": a, "auc_b": b, "diff": difference, "var_diff": var, "cov": float(cov[0, 1])}
    if np.isnan(var): return out | {"z": NAN, "p": NAN, "diff_lo": NAN, "diff_hi": NAN, "degenerate": True}
    if var < 1e-15: return out | {"var_diff": 0., "z": NAN, "p": 1. if difference == 0 else NAN, "degenerate": True}
    z = difference/np.sqrt(var)
    low, high = stats.norm.interval(.95, difference, np.sqrt(var))
    return out | {"z": float(z), "p": float(2*stats.norm.sf(abs(z))), "diff_lo": float(low), "diff_hi": float(high), "degenerate": False}


def auc_edge(i):
    if "a" in i: return {k: v for k, v in auc_paired(i).items() if k in ("auc_a", "auc_b", "diff", "var_diff", "z", "p", "degenerate")}
    return _area(i["y"], i["score"]) | {"ap": _ap(i["y"], i["score"])}


@quiet
def multilabel(i):
    y, s = np.array(i["Y"]), numbers(i["S"])
    ap = [_ap(y[:, k], s[:, k]) for k in range(y.shape[1])]
    area = [_area(y[:, k], s[:, k])["auc"] for k in range(y.shape[1])]
    weigh = lambda v: float(np.average(numbers(v)[np.isfinite(v)], weights=y.sum(0)[np.isfinite(v)]))
    return {"ap_per_class": ap, "auc_per_class": area, "ap_macro": float(np.nanmean(ap)), "auc_macro": float(np.nanmean(area)),
            "ap_micro": float(metrics.average_precision_score(y, s, average="micro")), "auc_micro": float(metrics.roc_auc_score(y, s, average="micro")),
            "ap_weighted": weigh(ap), "n_undefined_ap": int(np.isnan(ap).sum())}


@quiet
def threshold(i):
    def best(y, score):
        fpr, tpr, cut = metrics.roc_curve(y, score, drop_intermediate=False)
        j = np.round(tpr - fpr, 12)[1:]
        return float(cut[1:][j.argmax()]), float(j.max())
    cut, j = best(i["val_y"], i["val_score"])
    called = numbers(i["test_score"]) >= cut
    sens, spec = (float(metrics.recall_score(i["test_y"], called, pos_label=c, zero_division=np.nan)) for c in (1, 0))
    return {"threshold": cut, "val_j": j, "test_sensitivity": sens, "test_specificity": spec, "test_j": sens + spec - 1,
            "test_best_j": best(i["test_y"], i["test_score"])[1]}


def fold_areas(i):
    t = pd.DataFrame(i)
    each = [_area(g.y, g.score)["auc"] for _, g in t.groupby("fold")]
    return {"per_fold": each, "mean": float(np.nanmean(each)), "n_defined": int(np.isfinite(each).sum()), "pooled": _area(t.y, t.score)["auc"]}


def subjects(i):
    t = pd.DataFrame(i).assign(score=numbers(i["score"]))
    g = t.groupby("subject")
    top, known = g.score.max(), t[t.score.notna()]
    return {"subject": list(top.index), "label": g.label.max().tolist(), "score_max": top.tolist(), "score_mean": g.score.mean().tolist(),
            "n_slices": g.size().tolist(),
            "n_missing": g.score.apply(lambda s: int(s.isna().sum())).tolist(), "auc_max": _area(g.label.max()[top.notna()], top.dropna())["auc"],
            "slice_auc": _area(known.label, known.score)["auc"]}


# ---------------------------------------------------------------- readers

@quiet
def readers(i):
    rows = numbers(i["ratings"])
    table, categories = aggregate_raters(rows[np.isfinite(rows).all(1)])
    n, m, share = len(table), table[0].sum(), table.sum(0)/table.sum()
    kappa = float(fleiss_kappa(table, method="fleiss"))
    two = lambda k: np.c_[table[:, k], m - table[:, k]]
    pq = share*(1 - share)
    se = np.sqrt(2/(n*m*(m - 1)))/pq.sum()*np.sqrt(pq.sum()**2 - (pq*(1 - 2*share)).sum())
    return {"kappa": kappa, "z": float(kappa/se), "per_category": [float(fleiss_kappa(two(k), method="fleiss")) for k in range(len(categories))],
            "percent_agreement": float(((table**2).sum(1) - m).mean()/(m*(m - 1)))}


def majority(i):
    counts = [pd.Series(r, dtype=float).dropna().value_counts() for r in i["readings"]]
    return {"majority": [float(c.idxmax()) if len(c) and c.max() > c.sum()/2 else NAN for c in counts]}


@quiet
def icc(i):
    m = numbers(i["matrix"])
    m = m[np.isfinite(m).all(1)]
    long = pd.DataFrame(m).melt(ignore_index=False, var_name="rater", value_name="rating").reset_index(names="target")
    before, pingouin.options["round.column.CI95"] = pingouin.options["round.column.CI95"], None
    try: found = pingouin.intraclass_corr(long, targets="target", raters="rater", ratings="rating").set_index("Type")
    finally: pingouin.options["round.column.CI95"] = before
    ends = lambda row: zip(("", "_lo", "_hi"), (row.ICC, *row.CI95))
    return {f"{name}{end}": float(v) for name, row in found.iterrows() for end, v in ends(row)}


# ---------------------------------------------------------------- pairs of measurements

def carkeet(n): return [float(v) for v in stats.nct.ppf([.025, .975], n - 1, Z*np.sqrt(n))/np.sqrt(n)]


@quiet
def limits(i):
    if "x" not in i: return {"c": [carkeet(n) for n in i["n"]]}
    x, y, missing = complete(i["x"], i["y"])
    d, n = x - y, len(x)
    sd, se = stats.tstd(d), stats.tstd(d)*np.sqrt(3/n)
    bias, out = d.mean(), {"n": n, "n_missing": missing, "bias": float(d.mean()), "sd": float(sd)}
    out["bias_lo"], out["bias_hi"] = stats.t.interval(.95, n - 1, bias, stats.sem(d))
    low, high = carkeet(n)
    for name, limit, exact in (("loa_lo", bias - 1.96*sd, (bias - high*sd, bias - low*sd)), ("loa_hi", bias + 1.96*sd, (bias + low*sd, bias + high*sd))):
        out[name] = limit
        for kind, (a, b) in (("approx", stats.t.interval(.95, n - 1, limit, se)), ("exact", exact)):
            out |= {f"{name}_{kind}_lo": a, f"{name}_{kind}_hi": b}
    return {k: v if isinstance(v, int) else float(v) for k, v in out.items()}


@quiet
def proportional(i):
    x, y, _ = complete(i["x"], i["y"])
    fit = sm.OLS(x - y, sm.add_constant((x + y)/2, has_constant="add")).fit()
    low, high = fit.conf_int()[1]
    return {"intercept": float(fit.params[0]), "slope": float(fit.params[1]), "slope_se": float(fit.bse[1]), "slope_p": float(fit.pvalues[1]),
            "slope_lo": float(low), "slope_hi": float(high)}


@quiet
def _correlation(x, y):
    x, y, _ = complete(x, y)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0: return dict.fromkeys(("pearson", "pearson_p", "pearson_lo", "pearson_hi", "spearman"), NAN)
    r = stats.pearsonr(x, y)
    low, high = r.confidence_interval(.95)
    return {"pearson": float(r.statistic), "pearson_p": float(r.pvalue), "pearson_lo": float(low), "pearson_hi": float(high),
            "spearman": float(stats.spearmanr(x, y).statistic)}


def correlation(i):
    if "x" in i: return _correlation(i["x"], i["y"])
    return {name: _correlation(*pair) for name, pair in i.items()}


def concordance(i):
    x, y, _ = complete(i["x"], i["y"])
    n, (sx, sy), r = len(x), (x.std(), y.std()), np.corrcoef(x, y)[0, 1]
    scale, shift = sx/sy, (x.mean() - y.mean())**2/(sx*sy)
    c = r*2/(scale + 1/scale + shift)  # precision times accuracy
    var = ((1 - r**2)*c**2*(1 - c**2)/r**2 + 2*c**3*(1 - c)*shift/r - c**4*shift**2/(2*r**2))/(n - 2)
    low, high = np.tanh(stats.norm.interval(.95, np.arctanh(c), np.sqrt(var)/(1 - c**2)))
    return {"ccc": float(c), "ccc_lo": float(low), "ccc_hi": float(high)}


def agreement(i):
    kept = ("pearson", "spearman", "ccc", "bias", "loa_lo", "loa_hi")
    found = correlation(i) | concordance(i) | limits(i)
    return {k: found[k] for k in kept} | {"ICC(A,1)": icc({"matrix": np.c_[i["x"], i["y"]]})["ICC(A,1)"]}


def deming(i):
    """The first principal axis of the cloud, on the scale where both errors are alike."""
    x, y, _ = complete(i["x"], i["y"])
    scale = np.sqrt(i.get("ratio", 1))
    across, up = PCA(1).fit(np.c_[x, y/scale]).components_[0]
    return {"slope": float(up/across*scale), "intercept": float(y.mean() - up/across*scale*x.mean())}


def passing_bablok(i):
    """Angles between -45 and 135 degrees instead of slopes and an offset."""
    x, y, _ = complete(i["x"], i["y"])
    a, b = np.triu_indices(len(x), 1)
    dx, dy = x[b] - x[a], y[b] - y[a]
    keep = ~((dx == 0) & (dy == 0)) & ~((dx == -dy) & (dx != 0))
    angle = np.arctan2(dy[keep], dx[keep])
    angle = np.sort((angle + np.pi/4) % np.pi - np.pi/4)
    n, size = len(angle), len(x)
    slope = np.median(np.tan(angle)[[(n - 1)//2, n//2]])
    half = Z*np.sqrt(size*(size - 1)*(2*size + 5)/18)
    first = round((n - half)/2)
    return {"slope": float(slope), "intercept": float(np.median(y - slope*x)), "slope_lo": float(np.tan(angle[first - 1])),
            "slope_hi": float(np.tan(angle[n - first]))}


@quiet
def repeated(i):
    t = pd.DataFrame({"subject": i["subject"], "d": numbers(i["d"])}).dropna()
    table = sm.stats.anova_lm(smf.ols("d ~ C(subject)", t).fit())
    msb, msw = table.mean_sq
    m = t.groupby("subject").size()
    m0 = (m.sum() - (m**2).sum()/m.sum())/(len(m) - 1)
    between = max(0., (msb - msw)/m0)
    sd = np.sqrt(between + msw)
    return {"n_subjects": len(m), "n_pairs": len(t),
            **{k: float(v) for k, v in dict(bias=t.d.mean(), msb=msb, msw=msw, m0=m0, var_between=between, sd_total=sd,
            loa_lo=t.d.mean() - 1.96*sd, loa_hi=t.d.mean() + 1.96*sd, naive_sd=t.d.std()).items()}}


def volumes(i):
    pred, ref = numbers(i["pred"]), numbers(i["ref"])
    t = pd.DataFrame({"pred": pred, "ref": ref}).dropna()
    some = t[t.ref > 0]
    return {"n_total": len(pred), "n_used": len(t), "n_missing": len(pred) - len(t), "n_negative_pred": int((t.pred < 0).sum()),
            "n_zero_ref": int((t.ref == 0).sum()),
            "mae": float(metrics.mean_absolute_error(t.ref, t.pred)), "rmse": float(metrics.root_mean_squared_error(t.ref, t.pred)),
            "bias": float((t.pred - t.ref).mean()),
            "median_abs_rel_error": float(((some.pred - some.ref).abs()/some.ref).median()),
            "mae_clipped": float(metrics.mean_absolute_error(t.ref, t.pred.clip(lower=0)))}


# ---------------------------------------------------------------- tests

@quiet
def mcnemar_tests(i):
    exact, corrected = mcnemar(i["table"], exact=True), mcnemar(i["table"], exact=False, correction=True)
    none = i["table"][0][1] + i["table"][1][0] == 0
    return {"p_exact": float(exact.pvalue), "chi2_cc": NAN if none else float(corrected.statistic), "p_cc": NAN if none else float(corrected.pvalue)}


def holm(i):
    p = numbers(i["p"])
    if np.isfinite(p).any(): p[np.isfinite(p)] = multipletests(p[np.isfinite(p)], method="holm")[1]
    return {"adj": p.tolist()}


# ---------------------------------------------------------------- probabilities

@quiet
def calibration(i):
    y, p, bins = np.array(i["y"]), numbers(i["p"]), i.get("bins", 10)
    edges = np.linspace(0, 1, bins + 1)
    t = pd.DataFrame({"y": y, "p": p, "bin": pd.cut(p, edges, include_lowest=True)}).groupby("bin", observed=True)
    gap = (t.y.mean() - t.p.mean()).abs()
    logit = np.log(p/(1 - p))
    line = sm.GLM(y, sm.add_constant(logit), family=sm.families.Binomial()).fit(tol=1e-14, maxiter=200)
    large = sm.GLM(y, np.ones(len(y)), family=sm.families.Binomial(), offset=logit).fit(tol=1e-14, maxiter=200)
    return {"brier": float(metrics.brier_score_loss(y, p)), "ece": float((gap*t.size()).sum()/len(y)), "mce": float(gap.max()),
            "log_loss": float(metrics.log_loss(y, p, labels=[0, 1])),
            "cal_intercept": float(line.params[0]), "cal_slope": float(line.params[1]), "citl": float(large.params[0])}


def rsna(i):
    y, p = np.array(i["Y"]), np.clip(numbers(i["P"]), 1e-15, 1 - 1e-15)
    return {"loss": float(metrics.log_loss(y.ravel(), p.ravel(), labels=[0, 1], sample_weight=np.tile([2, 1, 1, 1, 1, 1], len(y))))}


# ---------------------------------------------------------------- masks, folds, resampling, pixels

@quiet
def segmentation(i):
    pred, ref, mm = np.array(i["pred"], bool), np.array(i["ref"], bool), i["spacing_mm"]
    voxel = float(np.prod(mm))/1000
    out = {"vol_pred_ml": pred.sum()*voxel, "vol_ref_ml": ref.sum()*voxel,
           "dice": float(metrics.f1_score(ref.ravel(), pred.ravel(), zero_division=np.nan)),
           "rvd": float((pred.sum() - ref.sum())/ref.sum()) if ref.any() else NAN}
    if not (pred.any() and ref.any()): return out | dict.fromkeys(("hd", "hd95_max", "hd95_pooled", "assd_pooled"), NAN)
    edges = [m & ~ndimage.binary_erosion(m, ndimage.generate_binary_structure(m.ndim, 1)) for m in (pred, ref)]
    there, back = (ndimage.distance_transform_edt(~b, sampling=mm)[a] for a, b in (edges, edges[::-1]))
    both = np.r_[there, back]
    return {k: float(v) for k, v in (out | {"hd": both.max(), "hd95_max": max(np.percentile(d, 95) for d in (there, back)),
                                            "hd95_pooled": np.percentile(both, 95), "assd_pooled": both.mean()}).items()}


@quiet
def folds(i):
    t = pd.DataFrame({k: i[k] for k in ("patient", "label")})
    tested = np.full(len(t), -1)
    for fold, (_, test) in enumerate(StratifiedGroupKFold(i["k"], shuffle=True, random_state=i["seed"]).split(t, t.label, t.patient)):
        assert (tested[test] == -1).all()
        tested[test] = fold
    patient = t.assign(fold=tested).groupby("patient").agg(label=("label", "max"), fold=("fold", "first"), folds=("fold", "nunique"))
    positives = patient[patient.label == 1].fold.value_counts().reindex(range(i["k"]), fill_value=0)
    few = 0 < patient.label.sum() < i["k"]
    out = {"each_slice_once": bool((tested >= 0).all()), "patients_shared_between_folds": int((patient.folds > 1).sum()),
           "positive_patients": int(patient.label.sum())}
    return out | ({"folds_without_positive_at_least": int((positives == 0).sum()), "warned_or_raised": True} if few else
                  {"every_test_fold_has_a_positive": bool((positives > 0).all()), "max_positive_patients_in_a_fold": int(positives.max())})


def clusters(i):
    m, k, size = i["m_patients"], i["k_correct_patients"], i["slices_per_patient"]
    low, high = stats.binom.ppf([.025, .975], m, k/m)/m
    naive = stats.binomtest(k*size, m*size).proportion_ci(.95, "exact")
    return {"estimate": k/m, "boot_lo": float(low), "boot_hi": float(high), "naive_lo": float(naive.low), "naive_hi": float(naive.high)}


def normalisation(i):
    train, test = (numbers(i[k])[:, None] for k in ("train", "test"))
    z, u = StandardScaler().fit(train), MinMaxScaler(clip=True).fit(train)
    centre, width = i.get("centre", 40), i.get("width", 80)
    band = MinMaxScaler(clip=True).fit(np.array([[centre - width/2], [centre + width/2]], float))
    scores = z.transform(test).ravel()
    return {"mean": float(z.mean_[0]), "sd": float(z.scale_[0]), "z_test": scores.tolist(), "u_test": u.transform(test).ravel().tolist(),
            "window_test": band.transform(test).ravel().tolist(),
            "pooled_mean_leaky": float(np.r_[train, test].mean()), "z_in_unit_interval": bool(((scores >= 0) & (scores <= 1)).all())}
