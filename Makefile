# `make study` and `make test` need git, make and Python 3.11 to 3.13 with venv; everything else goes into .venv.
PYTHON ?= python3
BIN    := .venv/bin
UV     := 0.13.9

# Nothing is written outside the checkout: caches and settings of the tools live in the environment.
export MPLCONFIGDIR := $(CURDIR)/.venv/var/matplotlib
export IPYTHONDIR := $(CURDIR)/.venv/var/ipython
export JUPYTER_CONFIG_DIR := $(CURDIR)/.venv/var/jupyter
export JUPYTER_DATA_DIR := $(CURDIR)/.venv/var/jupyter-data
export JUPYTER_RUNTIME_DIR := $(CURDIR)/.venv/var/jupyter-runtime
export DASK_CONFIG := $(CURDIR)/.venv/var/dask
export UV_CACHE_DIR := $(CURDIR)/.venv/var/uv
# Modules are compiled once, not anew in each of some hundred processes.
unexport PYTHONDONTWRITEBYTECODE

define DROP_CHATTER
import nbformat, pathlib
for file in pathlib.Path("nbs").glob("*.ipynb"):
    notebook = nbformat.read(file, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.write(notebook, file)
endef
export DROP_CHATTER

.PHONY: study test setup lock export clean help
.DEFAULT_GOAL := help

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

study: .venv/ready  ## run the main job: synthetic patients to reports/phantom/index.html
	$(BIN)/ich-study run

test: .venv/ready  ## run all tests, every notebook among them; THOROUGH=1: search longer
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations=25

setup: .venv/ready  ## make the environment only

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"ich_study needs Python 3.11 to 3.13, but $(PYTHON) is {v[0]}.{v[1]}; say: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q "uv==$(UV)"
	$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	rm -rf .venv/var/uv
	touch $@

lock: .venv/ready  ## resolve the dependencies of pyproject.toml again
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra jax --extra jpeg --extra dev --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate -q -o requirements.lock

export: .venv/ready  ## clean the notebooks, then write the modules and the README from them
	$(BIN)/python -c "$$DROP_CHATTER"
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/jupyter nbconvert --log-level=WARN --to markdown nbs/index.ipynb --output-dir . --output README --NbConvertApp.output_files_dir=reports/readme --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=remove_input

clean:  ## remove what was computed, keep the environment and published reports
	rm -rf cache runs data/phantom data/smoke
