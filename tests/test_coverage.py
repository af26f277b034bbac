"""The benchmark of intervals runs and says what it measures."""
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_benchmark_of_intervals_ends_in_json():
    run = lambda *more: subprocess.run([sys.executable, ROOT/"benchmarks"/"intervals.py", *more], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "Example" in run("--help").stdout
    done = run("--json", *"--only bootstrap memory delong --patients 20 --images 4 --models 2 --classes 2 --replicates 60 --rows 3000 --rounds 1".split())
    assert not done.returncode, done.stderr[-2000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert set(out) == {"bootstrap", "memory", "delong"} and out["bootstrap"]["ours over gathering"] > 0 and out["memory"]["areas"] == 2*4*60
    assert out["delong"]["paired, clustered"]["3000 rows"] < 3 and "growth" in out["delong"]["alone"]
