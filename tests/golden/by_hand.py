"""Second route to the expected numbers: definitions written out, brute force and closed forms. Never imports ich_study."""
import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, product
from statistics import NormalDist, fmean, median

import numpy as np
from scipy import integrate, optimize, special

NAN = math.nan
Z = NormalDist().inv_cdf(.975)


def known(v): return v is not None and not math.isnan(v)
def ratio(a, b): return float(Fraction(a, b)) if b else NAN
def spread(values): return sum((v - fmean(values))**2 for v in values)
def complete(i): return [(x, y) for x, y in zip(i["x"], i["y"]) if known(x) and known(y)]
def t_sides(t, df): return special.betainc(df/2, .5, df/(df + t*t))  # two-sided p of Student's t


def t_quantile(df):
    """The 97.5 % point of Student's t, by root finding."""
    return optimize.brentq(lambda t: t_sides(t, df) - .05, .1, 1e4, xtol=1e-14)


# ---------------------------------------------------------------- counts

def _tail(k, n, p):
    """Chance of k or more of n, term by term."""
    return math.fsum(math.comb(n, j)*p**j*(1 - p)**(n - j) for j in range(k, n + 1))


def _exact(k, n):
    """Clopper and Pearson's limits as the roots of the binomial tails."""
    if not n: return [NAN, NAN]
    root = lambda f: optimize.brentq(f, 0, 1, xtol=1e-15, rtol=1e-14)
    return [root(lambda p: _tail(k, n, p) - .025) if k else 0., root(lambda p: _tail(k + 1, n, p) - .975) if k < n else 1.]


def _divided(a, b): return a/b if b else math.inf if a > 0 else NAN


def _log_limits(a, na, b, nb):
    if 0 in (a, na, b, nb): return NAN, NAN
    half = Z*math.sqrt(1/a - 1/na + 1/b - 1/nb)
    return a/na/(b/nb)*math.exp(-half), a/na/(b/nb)*math.exp(half)


def diagnostic_counts(i):
    out = {}
    for row in i["rows"]:
        tp, fp, fn, tn = (row[k] for k in ("tp", "fp", "fn", "tn"))
        p, n = tp + fn, fp + tn
        one = {"n": p + n, "n_pos": p, "n_neg": n, "f1": ratio(2*tp, 2*tp + fp + fn)}
        for name, k, of in (("accuracy", tp + tn, p + n), ("sensitivity", tp, p), ("specificity", tn, n), ("ppv", tp, tp + fp), ("npv", tn, tn + fn)):
            one[name], (one[f"{name}_lo"], one[f"{name}_hi"]) = ratio(k, of), _exact(k, of)
        for name, a, b in (("lr_pos", tp, fp), ("lr_neg", fn, tn)):
            one[name] = _divided(a/p, b/n) if p and n else NAN
            one[f"{name}_lo"], one[f"{name}_hi"] = _log_limits(a, p, b, n)
        out[row["name"]] = one
    return out


def averages(i):
    rows, k = i["rows"], len(i["rows"])
    n, hits = sum(r["tp"] + r["fn"] for r in rows), sum(r["tp"] for r in rows)
    sens, ppv = [ratio(r["tp"], r["tp"] + r["fn"]) for r in rows], [ratio(r["tp"], r["tp"] + r["fp"]) for r in rows]
    f1, weight = [ratio(2*r["tp"], 2*r["tp"] + r["fp"] + r["fn"]) for r in rows], [(r["tp"] + r["fn"])/n for r in rows]
    t, p = [r["tp"] + r["fn"] for r in rows], [r["tp"] + r["fp"] for r in rows]
    chance, acc = sum(a*b for a, b in zip(t, p)), hits/n
    mcc = (hits*n - chance)/math.sqrt((n*n - sum(a*a for a in t))*(n*n - sum(b*b for b in p)))
    low, high = _exact(hits, n)
    return {"macro_accuracy": fmean((r["tp"] + r["tn"])/n for r in rows), "macro_ppv": fmean(ppv), "macro_sensitivity": fmean(sens), "macro_f1": fmean(f1),
            "macro_specificity": fmean(r["tn"]/(r["tn"] + r["fp"]) for r in rows), "multiclass_accuracy": acc, "multiclass_accuracy_lo": low,
            "multiclass_accuracy_hi": high,
            **dict.fromkeys(("micro_ppv", "micro_sensitivity", "micro_f1"), acc), "balanced_accuracy": fmean(sens),
            "weighted_sensitivity": sum(w*s for w, s in zip(weight, sens)),
            "weighted_f1": sum(w*f for w, f in zip(weight, f1)), "cohen_kappa": (acc - chance/n**2)/(1 - chance/n**2), "mcc": mcc,
            "identity_mean_ovr_accuracy": 1 - 2*(1 - acc)/k}


def proportion(i): return {"ci": [_exact(k, n) for k, n in i["kn"]]}


def _koopman(a, na, b, nb):
    """Limits at which the score statistic of the ratio equals the quantile (Koopman 1984), by root finding."""
    def chi2(theta):
        half = theta*(na + b) + a + nb  # the shares when their ratio is held at theta: the smaller root of a quadratic
        p2 = 2*(a + b)/(half + math.sqrt(max(0., half*half - 4*theta*(na + nb)*(a + b))))
        p1 = p2*theta
        p1, p2 = min(p1, 1 - 1e-16), min(p2, 1 - 1e-16)
        return (a - na*p1)**2/(na*p1*(1 - p1)) + (b - nb*p2)**2/(nb*p2*(1 - p2))
    edge = lambda near, far: math.exp(optimize.brentq(lambda u: chi2(math.exp(u)) - Z*Z, near, far, xtol=1e-14))
    if a == 0 and b == 0: return [NAN, NAN]
    middle = math.log(a/na/(b/nb)) if a and b else 18. if a else -18.
    return [edge(-18, middle) if a else 0., edge(middle, 18) if b else math.inf]


def zero_cells(i): return {"ci": [_koopman(*(r[k] for k in ("a", "na", "b", "nb"))) for r in i["rows"]]}


# ---------------------------------------------------------------- areas

def _groups(y, score): return [s for t, s in zip(y, score) if t], [s for t, s in zip(y, score) if not t]
def _wins(a, b): return (a > b) + (a == b)/2


def _area(y, score):
    positive, negative = _groups(y, score)
    m, n = len(positive), len(negative)
    if not m or not n: return {"auc": NAN, "var": NAN, "lo": NAN, "hi": NAN, "degenerate": True}
    up, down = [fmean(_wins(p, q) for q in negative) for p in positive], [fmean(_wins(p, q) for p in positive) for q in negative]
    value = fmean(up)
    if min(m, n) < 2: return {"auc": value, "var": NAN, "lo": NAN, "hi": NAN, "degenerate": True}
    var = spread(up)/(m - 1)/m + spread(down)/(n - 1)/n
    half = Z*math.sqrt(var)
    return {"auc": value, "var": var, "lo": max(0., value - half), "hi": min(1., value + half), "degenerate": var == 0}


def _ap(y, score):
    total, before, positives = 0., 0., sum(y)
    if not positives: return NAN
    for cut in sorted(set(score), reverse=True):
        called = [t for t, s in zip(y, score) if s >= cut]
        total, before = total + (sum(called)/positives - before)*fmean(called), sum(called)/positives
    return total


def auc(i): return {k: v for k, v in _area(i["y"], i["score"]).items() if k != "degenerate"}


def auc_paired(i):
    (p1, q1), (p2, q2) = (_groups(i["y"], i[k]) for k in ("a", "b"))
    m, n = len(p1), len(q1)
    if min(m, n) < 2:
        one = [_area(i["y"], i[k])["auc"] for k in ("a", "b")]
        return {"auc_a": one[0], "auc_b": one[1], "diff": one[0] - one[1], "degenerate": True,
                **dict.fromkeys(("var_diff", "cov", "z", "p", "diff_lo", "diff_hi"), NAN)}
    k1, k2 = ([[_wins(p, q) for q in qs] for p in ps] for ps, qs in ((p1, q1), (p2, q2)))
    a, b = (math.fsum(map(math.fsum, k))/(m*n) for k in (k1, k2))
    gap = [[u - v for u, v in zip(*rows)] for rows in zip(k1, k2)]  # the kernel of the difference itself
    var = spread([fmean(r) for r in gap])/(m - 1)/m + spread([fmean(c) for c in zip(*gap)])/(n - 1)/n
    one = [_area(i["y"], i[k])["var"] for k in ("a", "b")]
    out = {"auc_a": a, "auc_b": b, "diff": a - b, "var_diff": var, "cov": (sum(one) - var)/2}
    if var < 1e-15: return out | {"var_diff": 0., "z": NAN, "p": 1. if a == b else NAN, "degenerate": True}
    half, z = Z*math.sqrt(var), (a - b)/math.sqrt(var)
    return out | {"z": z, "p": math.erfc(abs(z)/math.sqrt(2)), "diff_lo": a - b - half, "diff_hi": a - b + half, "degenerate": False}


def auc_edge(i):
    if "a" in i: return {k: v for k, v in auc_paired(i).items() if k in ("auc_a", "auc_b", "diff", "var_diff", "z", "p", "degenerate")}
    return _area(i["y"], i["score"]) | {"ap": _ap(i["y"], i["score"])}


def multilabel(i):
    columns = list(zip(zip(*i["Y"]), zip(*i["S"])))
    ap, area = [_ap(y, s) for y, s in columns], [_area(y, s)["auc"] for y, s in columns]
    flat = [v for row in i["Y"] for v in row], [v for row in i["S"] for v in row]
    weight = [(sum(y), v) for (y, _), v in zip(columns, ap) if known(v)]
    return {"ap_per_class": ap, "auc_per_class": area, "ap_macro": fmean(filter(known, ap)), "auc_macro": fmean(filter(known, area)),
            "ap_micro": _ap(*flat), "auc_micro": _area(*flat)["auc"],
            "ap_weighted": sum(w*v for w, v in weight)/sum(w for w, _ in weight), "n_undefined_ap": sum(not known(v) for v in ap)}


def _rates(y, score, cut):
    p, q = _groups(y, score)
    return ratio(sum(s >= cut for s in p), len(p)), ratio(sum(s < cut for s in q), len(q))


def threshold(i):
    best = lambda y, s: max((round(sum(_rates(y, s, cut)) - 1, 12), cut) for cut in set(s))
    j, cut = best(i["val_y"], i["val_score"])
    sens, spec = _rates(i["test_y"], i["test_score"], cut)
    return {"threshold": float(cut), "val_j": j, "test_sensitivity": sens, "test_specificity": spec, "test_j": sens + spec - 1,
            "test_best_j": best(i["test_y"], i["test_score"])[0]}


def fold_areas(i):
    of = lambda f: _area([y for y, g in zip(i["y"], i["fold"]) if g == f], [s for s, g in zip(i["score"], i["fold"]) if g == f])["auc"]
    each = [of(f) for f in sorted(set(i["fold"]))]
    return {"per_fold": each, "mean": fmean(filter(known, each)), "n_defined": sum(map(known, each)), "pooled": _area(i["y"], i["score"])["auc"]}


def subjects(i):
    rows = list(zip(i["subject"], i["label"], i["score"]))
    names = sorted({r[0] for r in rows})
    of = {n: [s for who, _, s in rows if who == n] for n in names}
    label = [int(any(l for who, l, _ in rows if who == n)) for n in names]
    some = [list(filter(known, of[n])) for n in names]
    top, mean = [max(s) if s else NAN for s in some], [fmean(s) if s else NAN for s in some]
    area = lambda y, s: _area([a for a, b in zip(y, s) if known(b)], list(filter(known, s)))["auc"]
    return {"subject": names, "label": label, "score_max": top, "score_mean": mean, "n_slices": [len(of[n]) for n in names],
            "n_missing": [len(of[n]) - len(s) for n, s in zip(names, some)],
            "auc_max": area(label, top), "slice_auc": area(i["label"], i["score"])}


# ---------------------------------------------------------------- readers

def _kappa(rows, categories):
    """Agreement of all pairs of readers of a row against that of all readings, one by one."""
    m, n = len(rows[0]), len(rows)
    found = fmean(sum(a == b for a, b in combinations(r, 2))/math.comb(m, 2) for r in rows)
    share = [sum(r.count(c) for r in rows)/(n*m) for c in categories]
    chance = sum(s*s for s in share)
    return (found - chance)/(1 - chance) if chance < 1 else NAN, found, share


def readers(i):
    rows = [r for r in i["ratings"] if all(map(known, r))]
    categories, n, m = sorted({v for r in rows for v in r}), len(rows), len(rows[0])
    kappa, found, share = _kappa(rows, categories)
    s2, s3 = sum(p**2 for p in share), sum(p**3 for p in share)
    z = kappa/math.sqrt(2/(n*m*(m - 1))*((1 - s2)**2 - (1 - 3*s2 + 2*s3)))*(1 - s2) if known(kappa) else NAN
    return {"kappa": kappa, "z": z, "per_category": [_kappa([[v == c for v in r] for r in rows], [False, True])[0] for c in categories],
            "percent_agreement": found}


def majority(i):
    def vote(r):
        most = Counter(filter(known, r)).most_common(1)
        return float(most[0][0]) if most and 2*most[0][1] > sum(map(known, r)) else NAN
    return {"majority": [vote(r) for r in i["readings"]]}


def icc(i):
    """Mean squares of the two-way table, and the intervals of McGraw and Wong (Psychol Methods 1996; 1:30)."""
    x = np.array([r for r in i["matrix"] if all(map(known, r))], float)
    n, k = x.shape
    rows, columns = k*((x.mean(1) - x.mean())**2).sum(), n*((x.mean(0) - x.mean())**2).sum()
    within, error = ((x - x.mean(1, keepdims=True))**2).sum(), ((x - x.mean(1, keepdims=True) - x.mean(0) + x.mean())**2).sum()
    msr, msc, msw, mse = rows/(n - 1), columns/(k - 1), within/(n*(k - 1)), error/((n - 1)*(k - 1))
    f = lambda d1, d2: special.fdtri(d1, d2, .975)
    def single(ms, df):
        low, high = msr/ms/f(n - 1, df), msr/ms*f(df, n - 1)
        return (msr - ms)/(msr + (k - 1)*ms), (low - 1)/(low + k - 1), (high - 1)/(high + k - 1)
    r = (msr - mse)/(msr + (k - 1)*mse + k/n*(msc - mse))
    a, b = k*r/(n*(1 - r)), 1 + k*r*(n - 1)/(n*(1 - r))
    v = (a*msc + b*mse)**2/((a*msc)**2/(k - 1) + (b*mse)**2/((n - 1)*(k - 1)))
    lift = k*msc + (k*n - k - n)*mse
    absolute = r, n*(msr - f(n - 1, v)*mse)/(f(n - 1, v)*lift + n*msr), n*(f(v, n - 1)*msr - mse)/(lift + n*f(v, n - 1)*msr)
    out = {}
    for name, values in (("1", single(msw, n*(k - 1))), ("A", absolute), ("C", single(mse, (n - 1)*(k - 1)))):
        for kind, raise_ in (("1", lambda p: p), ("k", lambda p: k*p/(1 + (k - 1)*p))):
            for end, value in zip(("", "_lo", "_hi"), values): out[f"ICC({name},{kind}){end}"] = float(raise_(value))
    return out


# ---------------------------------------------------------------- pairs of measurements

def _nct_below(t, df, shift):
    """Chance that a non-central t lies below: the normal and the chi integrated."""
    density = lambda s: math.exp(math.log(2) + df/2*math.log(df/2) - special.gammaln(df/2) + (df - 1)*math.log(s) - df*s*s/2)*special.ndtr(t*s - shift)
    width = 9/math.sqrt(2*df)
    return integrate.quad(density, max(1e-12, 1 - width), 1 + width, epsabs=1e-13, epsrel=1e-12, limit=400, points=[1.])[0]


def carkeet(n):
    shift = Z*math.sqrt(n)
    return [optimize.brentq(lambda t: _nct_below(t, n - 1, shift) - q, 0, 40*shift, xtol=1e-12)/math.sqrt(n) for q in (.025, .975)]


def limits(i):
    if "x" not in i: return {"c": [carkeet(n) for n in i["n"]]}
    d = [x - y for x, y in complete(i)]
    n, bias = len(d), fmean(d)
    sd, t, (low, high) = math.sqrt(spread(d)/(n - 1)), t_quantile(n - 1), carkeet(n)
    out = {"n": n, "n_missing": len(i["x"]) - n, "bias": bias, "sd": sd, "bias_lo": bias - t*sd/math.sqrt(n), "bias_hi": bias + t*sd/math.sqrt(n)}
    for name, side, ends in (("loa_lo", -1, (high, low)), ("loa_hi", 1, (low, high))):
        out[name] = bias + side*1.96*sd
        for end, turn, c in (("lo", -1, ends[0]), ("hi", 1, ends[1])):
            out |= {f"{name}_approx_{end}": out[name] + turn*t*sd*math.sqrt(3/n), f"{name}_exact_{end}": bias + side*c*sd}
    return out


def proportional(i):
    d, m = [x - y for x, y in complete(i)], [(x + y)/2 for x, y in complete(i)]
    n, sxx = len(d), spread(m)
    slope = sum((a - fmean(m))*b for a, b in zip(m, d))/sxx
    intercept = fmean(d) - slope*fmean(m)
    se = math.sqrt(sum((b - intercept - slope*a)**2 for a, b in zip(m, d))/(n - 2)/sxx)
    return {"intercept": intercept, "slope": slope, "slope_se": se, "slope_p": float(t_sides(slope/se, n - 2)),
            "slope_lo": slope - t_quantile(n - 2)*se, "slope_hi": slope + t_quantile(n - 2)*se}


def _mid_ranks(values): return [sum(v < w for v in values) + (sum(v == w for v in values) + 1)/2 for w in values]


def _r(pairs):
    x, y = zip(*pairs)
    return sum((a - fmean(x))*(b - fmean(y)) for a, b in pairs)/math.sqrt(spread(x)*spread(y))


def _correlation(x, y):
    pairs = complete({"x": x, "y": y})
    if len(pairs) < 3 or any(len(set(c)) == 1 for c in zip(*pairs)):
        return dict.fromkeys(("pearson", "pearson_p", "pearson_lo", "pearson_hi", "spearman"), NAN)
    r, n = _r(pairs), len(pairs)
    out = {"pearson": r, "spearman": _r(list(zip(*map(_mid_ranks, zip(*pairs)))))}
    if 1 - abs(r) < 1e-12: return out | {"pearson_p": 0., "pearson_lo": r, "pearson_hi": r}
    half = Z/math.sqrt(n - 3)
    return out | {"pearson_p": float(t_sides(r*math.sqrt((n - 2)/(1 - r*r)), n - 2)), "pearson_lo": math.tanh(math.atanh(r) - half),
                  "pearson_hi": math.tanh(math.atanh(r) + half)}


def correlation(i):
    if "x" in i: return _correlation(i["x"], i["y"])
    return {name: _correlation(*pair) for name, pair in i.items()}


def concordance(i):
    """One minus the share of the disagreement expected by chance; the variance by the delta method from normal moments."""
    pairs = complete(i)
    x, y, n = *zip(*pairs), len(pairs)
    value = 1 - fmean((a - b)**2 for a, b in pairs)/fmean((a - b)**2 for a, b in product(x, y))
    vx, vy, c = spread(x)/n, spread(y)/n, sum((a - fmean(x))*(b - fmean(y)) for a, b in pairs)/n
    f = lambda m: 2*m[4]/(m[2] + m[3] + (m[0] - m[1])**2)
    at, step = [fmean(x), fmean(y), vx, vy, c], 1e-30
    slope = np.array([f([v + step*1j*(k == j) for j, v in enumerate(at)]).imag/step for k in range(5)])
    cov = np.zeros((5, 5))
    cov[:2, :2] = [[vx, c], [c, vy]]
    cov[2:, 2:] = [[2*vx**2, 2*c**2, 2*vx*c], [2*c**2, 2*vy**2, 2*vy*c], [2*vx*c, 2*vy*c, vx*vy + c**2]]
    half = Z*math.sqrt(slope@cov@slope/(n - 2))/(1 - value**2)
    return {"ccc": value, "ccc_lo": math.tanh(math.atanh(value) - half), "ccc_hi": math.tanh(math.atanh(value) + half)}


def agreement(i):
    found = correlation(i) | concordance(i) | limits(i)
    found["ICC(A,1)"] = icc({"matrix": list(zip(i["x"], i["y"]))})["ICC(A,1)"]
    return {k: found[k] for k in ("pearson", "spearman", "ccc", "bias", "loa_lo", "loa_hi", "ICC(A,1)")}


def deming(i):
    pairs, d = complete(i), i.get("ratio", 1)
    x, y = zip(*pairs)
    sxx, syy, sxy = spread(x), spread(y), sum((a - fmean(x))*(b - fmean(y)) for a, b in pairs)
    slope = (syy - d*sxx + math.sqrt((syy - d*sxx)**2 + 4*d*sxy**2))/(2*sxy)
    return {"slope": slope, "intercept": fmean(y) - slope*fmean(x)}


def passing_bablok(i):
    """All slopes in order, and an offset by those below -1 (Passing and Bablok, J Clin Chem Clin Biochem 1983; 21:709)."""
    pairs = complete(i)
    slopes = []
    for (x1, y1), (x2, y2) in combinations(pairs, 2):
        if x1 == x2 and y1 == y2: continue
        slope = (y2 - y1)/(x2 - x1) if x1 != x2 else math.copysign(math.inf, y2 - y1)
        if slope != -1: slopes.append(slope)
    slopes.sort()
    n, size, k = len(slopes), len(pairs), sum(s < -1 for s in slopes)
    slope = slopes[(n - 1)//2 + k] if n % 2 else (slopes[n//2 - 1 + k] + slopes[n//2 + k])/2
    first = round((n - Z*math.sqrt(size*(size - 1)*(2*size + 5)/18))/2)
    return {"slope": slope, "intercept": median(y - slope*x for x, y in pairs), "slope_lo": slopes[first + k - 1], "slope_hi": slopes[n - first + k]}


def repeated(i):
    rows = [(s, d) for s, d in zip(i["subject"], i["d"]) if known(d)]
    of = {s: [d for who, d in rows if who == s] for s in dict.fromkeys(s for s, _ in rows)}
    d, k, n = [v for _, v in rows], len(of), len(rows)
    bias = fmean(d)
    msb, msw = sum(len(v)*(fmean(v) - bias)**2 for v in of.values())/(k - 1), sum(map(spread, of.values()))/(n - k)
    m0 = (n*n - sum(len(v)**2 for v in of.values()))/((k - 1)*n)
    between = max(0., (msb - msw)/m0)
    sd = math.sqrt(between + msw)
    return {"n_subjects": k, "n_pairs": n, "bias": bias, "msb": msb, "msw": msw, "m0": m0, "var_between": between, "sd_total": sd,
            "loa_lo": bias - 1.96*sd, "loa_hi": bias + 1.96*sd,
            "naive_sd": math.sqrt(spread(d)/(n - 1))}


def volumes(i):
    used = [(p, r) for p, r in zip(i["pred"], i["ref"]) if known(p) and known(r)]
    n = len(used)
    return {"n_total": len(i["pred"]), "n_used": n, "n_missing": len(i["pred"]) - n, "n_negative_pred": sum(p < 0 for p, _ in used),
            "n_zero_ref": sum(r == 0 for _, r in used),
            "mae": fmean(abs(p - r) for p, r in used), "rmse": math.sqrt(fmean((p - r)**2 for p, r in used)), "bias": fmean(p - r for p, r in used),
            "median_abs_rel_error": median(abs(p - r)/r for p, r in used if r > 0), "mae_clipped": fmean(abs(max(p, 0) - r) for p, r in used)}


# ---------------------------------------------------------------- tests

def mcnemar_tests(i):
    (_, b), (c, _) = i["table"]
    n, few = b + c, min(b, c)
    if not n: return {"p_exact": 1., "chi2_cc": NAN, "p_cc": NAN}
    chi2 = (abs(b - c) - 1)**2/n
    return {"p_exact": float(min(Fraction(1), Fraction(2*sum(math.comb(n, j) for j in range(few + 1)), 2**n))), "chi2_cc": chi2,
            "p_cc": math.erfc(math.sqrt(chi2/2))}


def holm(i):
    order = sorted((p, at) for at, p in enumerate(i["p"]) if known(p))
    out, worst = [NAN]*len(i["p"]), 0.
    for rank, (p, at) in enumerate(order): out[at] = worst = max(worst, min(1., (len(order) - rank)*p))
    return {"adj": out}


# ---------------------------------------------------------------- probabilities

def _bin(p, bins):
    """Number of the bin (a, b] with 0 in the first, on the decimals as they are written."""
    return max(0, math.ceil(Fraction(str(p))*bins) - 1)


def calibration(i):
    y, p, bins = i["y"], i["p"], i.get("bins", 10)
    inside = [[(a, b) for a, b in zip(y, p) if _bin(b, bins) == k] for k in range(bins)]
    gap = [(len(g), abs(fmean(a for a, _ in g) - fmean(b for _, b in g))) for g in inside if g]
    logit = [math.log(b/(1 - b)) for b in p]
    minus = lambda w: math.fsum(math.log1p(math.exp(w[0] + w[1]*x)) - t*(w[0] + w[1]*x) for t, x in zip(y, logit))
    intercept, slope = _newton(minus, y, logit)
    large = optimize.brentq(lambda a: sum(t - 1/(1 + math.exp(-a - x)) for t, x in zip(y, logit)), -30, 30, xtol=1e-14)
    return {"brier": fmean((a - b)**2 for a, b in zip(y, p)), "ece": sum(n*g for n, g in gap)/len(y), "mce": max(g for _, g in gap),
            "log_loss": -fmean(math.log(b if a else 1 - b) for a, b in zip(y, p)), "cal_intercept": intercept, "cal_slope": slope, "citl": large}


def _newton(loss, y, x):
    """Logistic regression by Newton's steps until the score is zero."""
    w, x, y = np.zeros(2), np.c_[np.ones(len(x)), x], np.array(y, float)
    for _ in range(100):
        p = 1/(1 + np.exp(-x@w))
        w = w + np.linalg.solve((x.T*(p*(1 - p)))@x, x.T@(y - p))
    assert np.abs(x.T@(y - 1/(1 + np.exp(-x@w)))).max() < 1e-10 and loss(w) <= min(loss(w + d) for d in np.eye(2)*1e-3)
    return map(float, w)


def rsna(i):
    total = 0.
    for truth, p in zip(i["Y"], i["P"]):
        for k, (t, v) in enumerate(zip(truth, p)):
            held = min(max(v, 1e-15), 1 - 1e-15)
            total -= (2 if k == 0 else 1)*math.log(held if t else 1 - held)
    return {"loss": total/(7*len(i["Y"]))}


# ---------------------------------------------------------------- masks, folds, resampling, pixels

def _border(voxels):
    steps = [tuple(d*(j == k) for j in range(len(next(iter(voxels))))) for k in range(len(next(iter(voxels)))) for d in (-1, 1)]
    return [v for v in voxels if any(tuple(a + b for a, b in zip(v, s)) not in voxels for s in steps)]


def _percentile(values, q):
    values = sorted(values)
    at = q/100*(len(values) - 1)
    low = int(at)
    return values[low] + (at - low)*(values[min(low + 1, len(values) - 1)] - values[low])


def segmentation(i):
    pred, ref = ({tuple(map(int, v)) for v in np.argwhere(np.array(i[k]))} for k in ("pred", "ref"))
    mm, voxel = i["spacing_mm"], math.prod(i["spacing_mm"])/1000
    out = {"vol_pred_ml": len(pred)*voxel, "vol_ref_ml": len(ref)*voxel, "dice": ratio(2*len(pred & ref), len(pred) + len(ref)),
           "rvd": ratio(len(pred) - len(ref), len(ref))}
    if not pred or not ref: return out | dict.fromkeys(("hd", "hd95_max", "hd95_pooled", "assd_pooled"), NAN)
    edges = _border(pred), _border(ref)
    apart = lambda u, v: math.sqrt(sum(((a - b)*s)**2 for a, b, s in zip(u, v, mm)))
    there, back = ([min(apart(u, v) for v in b) for u in a] for a, b in (edges, edges[::-1]))
    return out | {"hd": max(there + back), "hd95_max": max(_percentile(there, 95), _percentile(back, 95)),
                  "hd95_pooled": _percentile(there + back, 95), "assd_pooled": fmean(there + back)}


def folds(i):
    """What a good dealing must come to: positives spread as evenly as can be."""
    positive = len({p for p, l in zip(i["patient"], i["label"]) if l})
    out = {"each_slice_once": True, "patients_shared_between_folds": 0, "positive_patients": positive}
    if 0 < positive < i["k"]: return out | {"folds_without_positive_at_least": i["k"] - positive, "warned_or_raised": True}
    return out | {"every_test_fold_has_a_positive": positive >= i["k"], "max_positive_patients_in_a_fold": -(-positive//i["k"])}


def clusters(i):
    """Quantiles of the number of right patients in m draws, by adding up the chances."""
    m, k, size = i["m_patients"], i["k_correct_patients"], i["slices_per_patient"]
    below = [sum(Fraction(math.comb(m, j)*k**j*(m - k)**(m - j), m**m) for j in range(top + 1)) for top in range(m + 1)]
    at = lambda q: next(j for j, b in enumerate(below) if b >= q)/m
    return {"estimate": k/m, "boot_lo": at(Fraction(1, 40)), "boot_hi": at(Fraction(39, 40)),
            **dict(zip(("naive_lo", "naive_hi"), _exact(k*size, m*size)))}


def normalisation(i):
    train, test = i["train"], i["test"]
    mean, low, high = fmean(train), min(train), max(train)
    sd, clip = math.sqrt(spread(train)/len(train)), lambda v: min(1., max(0., v))
    bottom, width = i.get("centre", 40) - i.get("width", 80)/2, i.get("width", 80)
    z = [(v - mean)/sd for v in test]
    return {"mean": mean, "sd": sd, "z_test": z, "u_test": [clip((v - low)/(high - low)) for v in test],
            "window_test": [clip((v - bottom)/width) for v in test],
            "pooled_mean_leaky": fmean([*train, *test]), "z_in_unit_interval": all(0 <= v <= 1 for v in z)}
