# Two commands for a newcomer: `make demo` and `make test`. Each sets up .venv when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo
EXTRAS ?= dicom,sites,clinic,baselines,dev
# Two workers of one thread each; one that has no more to do takes over half of what the other has left.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

SEED ?= 1
# Nothing, where all tests are run anyway.
FAST ?= quick

.PHONY: demo test check types quick hunt format bench clean

demo: $(STAMP)
	$(BIN)/veilray demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

test: $(STAMP)
	$(PYTEST)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs=2 types $(FAST)

types: $(STAMP)
	$(BIN)/mypy

quick: $(STAMP)
	$(PYTEST) -m "not slow"

# All tests in another order, their processes stopped at random: see tests/hunting.py.
hunt: $(STAMP)
	HUNT_SEED=$(SEED) $(PYTEST) -p tests.hunting

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Veilray needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@
