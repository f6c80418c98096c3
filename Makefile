# make demo       install, make toy shards, train a small CLIP on the CPU, evaluate it, name a report
# make test       install what is missing, run the tests (under 10 minutes on 2 cores)
# make test-long  the tests that take minutes
# make test-gpu   the tests that need a GPU (some two); without one they are skipped
# make check      lint, types, import contracts
# make format     rewrite the code the way `make check` wants it
#
# PYTHON=python3.12     the interpreter of the virtual environment
# PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"     a Linux laptop without a GPU

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
RUN ?= runs/demo
# Two processes, each with one thread: most of the tests wait for processes of their own.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-long test-gpu check format clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)] and "Python 3.11 or 3.12 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV) (a few minutes the first time)"
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing the development tools into $(VENV)"
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/installed
	$(VENV)/bin/train experiment=toy run.name=$(notdir $(RUN)) paths.runs=$(dir $(RUN)) run.resume=true trainer.accelerator=cpu
	$(VENV)/bin/vlm evaluate run=$(RUN) device=cpu

test: $(VENV)/installed-dev
	$(PYTEST)

test-long: $(VENV)/installed-dev
	$(PYTEST) -m long --timeout 900

test-gpu: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m gpu -rs --timeout 900

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist
