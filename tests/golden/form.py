"""A file of golden cases, and how what was got is compared with what was expected."""
import json
import math
from pathlib import Path

SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
REFUSAL = ("raises", "raised", "error", "refused", "warned_or_raised", "degenerate", "undefined")  # keys that are true of input that is refused
STRICT = 1e-9  # tolerance where a case names none


class FormError(Exception):
    """The file is missing, is not JSON or is not of the form."""


class Refused:
    """Input that the library refused: every number of it is NaN, and `raises` is true."""
    def __init__(self, why): self.why = why
    def __repr__(self): return f"refused: {self.why}"


class Missing:
    """A result that was expected and that nothing computed."""
    def __repr__(self): return "nothing"


def decode(value):
    """JSON with the strings for NaN and the infinities turned into floats."""
    if isinstance(value, dict): return {k: decode(v) for k, v in value.items()}
    if isinstance(value, list): return [decode(v) for v in value]
    return SPECIAL.get(value, value) if isinstance(value, str) else value


def encode(value):
    """The way back: floats that JSON does not have, as strings."""
    if isinstance(value, dict): return {k: encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)): return [encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value): return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def read_cases(path):
    """The cases of a file, decoded."""
    try: whole = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError: raise FormError(f"there is no file {path}") from None
    except OSError as e: raise FormError(f"{path} cannot be read: {e.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as e: raise FormError(f"{path} is not JSON: {e}") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("cases"), list):
        raise FormError(f'{path} is not a file of golden cases: it should be an object with a list "cases"')
    for at, case in enumerate(whole["cases"]): _check(case, f"{path}, case {at + 1}")
    return [case | {"input": decode(case["input"]), "expected": decode(case["expected"])} for case in whole["cases"]]


def _check(case, where):
    if not isinstance(case, dict): raise FormError(f"{where} is not an object")
    for key, kind, words in (("id", str, "text"), ("topic", str, "text"), ("input", dict, "an object"), ("expected", dict, "an object")):
        if not isinstance(case.get(key), kind): raise FormError(f'{where} ({case.get("id", "without id")}): "{key}" should be {words}')
    if not _tolerance(case.get("tolerance", STRICT)):
        raise FormError(f'{where} ({case["id"]}): "tolerance" should be a number of 0 or more, or an object of such numbers')


def _tolerance(t):
    if isinstance(t, dict): return all(_tolerance(v) for v in t.values())
    return isinstance(t, (int, float)) and not isinstance(t, bool) and t >= 0


def allowed(tolerance, key, expected):
    """How far a number may be off: `t` is t*max(1, |expected|); an object gives abs and rel, or a value by (the beginning of) a key."""
    if not isinstance(tolerance, dict): return tolerance*max(1, abs(expected))
    names = key.replace("[", ".").split(".")
    by_key = [k for k in tolerance if k not in ("abs", "rel", "default")]
    own = [k for k in by_key if k in names] + sorted((k for k in by_key if any(n.startswith(k) for n in names)), key=len, reverse=True)
    if own: return allowed(tolerance[own[0]], key, expected)
    if {"abs", "rel"} & set(tolerance): return max(tolerance.get("abs", 0), tolerance.get("rel", 0)*abs(expected))
    return allowed(tolerance.get("default", STRICT), key, expected)


def differences(got, expected, tolerance=STRICT, key=""):
    """Where the two differ, as (key, got, expected); nothing when they agree. What is got beyond the expected keys is not looked at."""
    if isinstance(expected, dict):
        if not isinstance(got, (dict, Refused)): return [(key, got, expected)]
        return [d for name, e in expected.items() for d in differences(_look_up(got, name), e, tolerance, f"{key}.{name}" if key else name)]
    if isinstance(expected, list):
        if isinstance(got, Refused): parts = [got]*len(expected)
        else: parts = got.tolist() if hasattr(got, "tolist") else got
        if not isinstance(parts, (list, tuple)) or len(parts) != len(expected): return [(key, got, expected)]
        return [d for n, (g, e) in enumerate(zip(parts, expected)) for d in differences(g, e, tolerance, f"{key}[{n}]")]
    if hasattr(got, "item"): got = got.item()
    return [] if _same(got, expected, tolerance, key) else [(key, got, expected)]


def _look_up(got, name):
    if isinstance(got, Refused): return True if name in REFUSAL else got
    return got.get(name, False if name in ("raises", "raised", "error", "refused") else Missing())


def _same(got, expected, tolerance, key):
    if expected is None: expected = math.nan
    if isinstance(expected, str): return got == expected
    if isinstance(expected, bool): return isinstance(got, bool) and got == expected
    if isinstance(expected, float) and math.isnan(expected): return got is None or isinstance(got, Refused) or (isinstance(got, float) and math.isnan(got))
    if not isinstance(got, (int, float)) or isinstance(got, bool): return False
    if key.endswith("_at_least"): return got >= expected
    if key.endswith("_at_most"): return got <= expected
    if isinstance(expected, int) or math.isinf(expected): return got == expected
    return abs(got - expected) <= allowed(tolerance, key, expected)


def said(tolerance):
    """A tolerance in a few characters."""
    return " ".join(f"{k} {said(v)}" for k, v in tolerance.items()) if isinstance(tolerance, dict) else f"{tolerance:g}"
