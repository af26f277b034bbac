"""Searches for counterexamples try the same ones in every run, so that a failure belongs to the change at hand.
`pytest --hypothesis-profile=default` searches elsewhere each time. Each test process keeps to one core: libraries that take both cores while
another process has work for both wait for themselves most of the time."""
import os

from hypothesis import settings

from ich_study.slots import THREADS

for variable in THREADS: os.environ.setdefault(variable, "1")
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
