"""How long tests search: `make test THOROUGH=1` tries all that they were written for, which takes much longer."""
import os

THOROUGH = os.environ.get("THOROUGH") == "1"


def often(all_of_them, part=4):
    """How many to try: a part of them unless all are asked for."""
    return all_of_them if THOROUGH else all_of_them//part
