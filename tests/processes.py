"""Commands as users type them, notebooks run from top to bottom, and what tests of several processes need."""
import io
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from ich_study.cli import main

ROOT = Path(__file__).resolve().parent.parent


def command(*argv): return [sys.executable, "-c", "import sys; from ich_study.cli import main; sys.exit(main())", *map(str, argv)]


def environment_of(root, **more): return os.environ | {"ICH_STUDY_ROOT": str(root), "PYTHONPATH": str(ROOT), "COLUMNS": "300"} | more


def call(*argv, root, **more):
    """One command as a user types it, in a study root of its own."""
    return subprocess.run(command(*argv), cwd=root, env=environment_of(root, **more), capture_output=True, text=True, errors="replace")


def call_here(*argv, root, **more):
    """The same without a process of its own, for what is refused before Keras would be loaded: seconds less each time."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for k, v in environment_of(root, **more).items(): patch.setenv(k, v)
        patch.chdir(root)
        try: code = main([*map(str, argv)])
        except SystemExit as e: code = e.code
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def papermill(*argv, root):
    return subprocess.run([sys.executable, "-m", "papermill", *map(str, argv)], cwd=root, env=environment_of(root, TF_CPP_MIN_LOG_LEVEL="2"), capture_output=True, text=True)


LOADED = ["nbdev.test", "pandas", "scipy.stats", "matplotlib.pyplot", "seaborn", "sklearn.metrics", "statsmodels.api", "skimage.filters", "pydicom", "keras"]


def _top_to_bottom(notebook, log):
    said = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2): os.dup2(said, stream)
    os.environ["PYTHONPATH"] = str(ROOT)  # of what the notebook starts
    from nbdev.test import test_nb
    well, _ = test_nb(notebook, basepath=ROOT)
    for child in multiprocessing.active_children(): child.terminate()  # workers that joblib keeps in case there is more to do
    sys.exit(not well)


def run_notebook(notebook, log):
    """In a fresh process; the libraries that notebooks share, seconds each time, are loaded once, by the server that such processes are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    process = context.Process(target=_top_to_bottom, args=(notebook, log))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()[-4000:]


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def until(true, seconds=300):
    end = time.monotonic() + seconds
    while not (got := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(.05)
    return got
