"""Searches for counterexamples try the same ones in every run, so that a failure belongs to the change at hand.
`pytest --hypothesis-profile=default` searches elsewhere each time."""
from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
