# make demo    train methods on an embedded classifier and detector, write runs/demo/report.html
# make test    run the tests, one process per core, one thread each
# make numeric the tests of numbers again, as other processors and settings compute them
# make check   lint, formatting, types, dead code, code that stands twice, documentation without a broken link
# make docs    build the documentation into site/
# make results write docs/results.md, its pictures and the tables of docs/benchmarks.md from docs/data
#
# The first two create .venv once and install pinned dependencies; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

NUMERIC := $(addprefix tests/, backbones contract detection methods metrics models prompts reference training \
  test_artifacts.py test_evaluation.py test_predictor.py)

.PHONY: demo test numeric check docs results clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/duotune demo

test: $(VENV)/installed-tests
	$(PYTEST)

# Tests whose numbers come from matrix products: MKL's kernels that give the same bits wherever a tensor lies, kernels
# for processors without AVX2 and AVX-512, and one thread, whatever the machine would choose.
numeric: $(VENV)/installed-tests
	MKL_CBWR=COMPATIBLE $(PYTEST) $(NUMERIC)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(NUMERIC)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTEST) $(NUMERIC)

check: $(VENV)/installed-checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/checks/dead_code.py
	$(BIN)/python scripts/checks/duplicates.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir site

docs: $(VENV)/installed-checks
	$(BIN)/mkdocs build --strict --site-dir site

results: $(VENV)/installed
	$(BIN)/python scripts/results/render.py

# Stamps: a later run installs nothing unless the declared dependencies changed.
$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.10 or newer, or say PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); say PYTHON=..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "make: cannot create $(VENV); does $(PYTHON) have its venv module (Debian: python3-venv)?" >&2; exit 1; }
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/installed-tests: $(VENV)/installed
	$(PIP) -c constraints.txt -e ".[test]"
	@touch $@

$(VENV)/installed-checks: $(VENV)/installed
	$(PIP) -c constraints.txt -e ".[check]"
	@touch $@

clean:
	rm -rf $(VENV) runs/demo site
