"""The runner: `python -m tests.golden [FILE]`."""
import argparse
import json
import sys
from pathlib import Path

from .form import STRICT, FormError, differences, encode, read_cases, said
from .topics import TOPICS, answer

OWN = Path(__file__).with_name("cases.json")


def check(case):
    """What is wrong with one case, in one line; nothing when all agrees."""
    if case["topic"] not in TOPICS: return f'nobody answers the topic "{case["topic"]}"; the topics are {", ".join(TOPICS)}'
    tolerance = case.get("tolerance", STRICT)
    try: wrong = differences(answer(case["topic"], case["input"]), case["expected"], tolerance)
    except Exception as e: return " ".join(f"broke with {type(e).__name__}: {e}".split())
    if not wrong: return ""
    key, got, expected = wrong[0]
    more = f" (and {len(wrong) - 1} more: {', '.join(k for k, *_ in wrong[1:6])}{', …' if len(wrong) > 6 else ''})" if len(wrong) > 1 else ""
    return " ".join(f"{key}: got {_short(got)}, expected {_short(expected)}, tolerance {said(tolerance)}{more}".split())


def _short(value, most=120):
    text = json.dumps(encode(value)) if isinstance(value, (list, dict, str, bool, float)) else repr(value)
    return text if len(text) <= most else text[:most] + "…"


def arguments():
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m tests.golden", formatter_class=argparse.RawDescriptionHelpFormatter,
                                description="Check the statistics of ich_study against a file of golden cases: one line for each case that fails, then a count.",
                                epilog="example:\n  python -m tests.golden tests/golden/cases.json -k kappa -v\n\n"
                                       "exit code: 0 all passed, 1 a case failed, 2 the file is missing or not of the form")
    p.add_argument("file", nargs="?", type=Path, default=OWN, help="JSON of the form of tests/golden/cases.json (default: that file)")
    p.add_argument("-k", metavar="TEXT", default="", help="only the cases that have TEXT in their id, name or topic")
    p.add_argument("-v", action="store_true", help="a line for every case")
    return p


def main(argv=None):
    """Run it; the exit code comes back."""
    asked = arguments().parse_args(argv)
    try: cases = read_cases(asked.file)
    except FormError as e: return _stop(e)
    chosen = [c for c in cases if any(asked.k.lower() in str(c.get(f, "")).lower() for f in ("id", "name", "topic"))]
    if asked.k and not chosen: return _stop(f"none of the {len(cases)} cases has {asked.k!r} in its id, name or topic")
    failed = 0
    for case in chosen:
        wrong = check(case)
        failed += bool(wrong)
        if wrong or asked.v: print(f'{"FAILED" if wrong else "passed"} {case["id"]} "{case.get("name", "")}"{": " if wrong else ""}{wrong}', flush=True)
    left = f" ({len(cases) - len(chosen)} not chosen)" if asked.k else ""
    print(f"{len(chosen)} case{'s' if len(chosen) != 1 else ''}: {len(chosen) - failed} passed, {failed} failed{left}")
    return int(failed > 0)


def _stop(why):
    print(" ".join(str(why).split()), file=sys.stderr)
    return 2


if __name__ == "__main__": sys.exit(main())
