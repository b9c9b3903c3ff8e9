# Every target makes .venv at the root first; nothing is installed outside it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
RUNS := $(VENV)/.runs
STAMP := $(VENV)/.installed
DEMO_DIR := work_dirs/demo

# Processes of the tests would compile the package and the tests anew, each for itself.
unexport PYTHONDONTWRITEBYTECODE

# A file's tests stay together: they share detectors that take seconds to export.
ON_ALL_CORES := -n logical --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-all lint format docs benchmark mutate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNS) ## build the embedded dataset, train on it, print COCO AP, draw pictures, write a report
	$(RUN) tools/build_digits.py
	$(RUN) tools/train.py configs/gfl_r18-w16_fpn_digits_short.py --work-dir $(DEMO_DIR)
	$(RUN) tools/test.py $(DEMO_DIR) --show-dir $(DEMO_DIR)/pictures
	$(RUN) tools/report.py $(DEMO_DIR) --out $(DEMO_DIR)/report.html
	@echo "picture: $$(ls $(DEMO_DIR)/pictures/* | head -n 1)"

test: $(STAMP) ## run the test suite on all cores
	$(RUN) -m pytest $(ON_ALL_CORES)

coverage: $(STAMP) ## the same, and which lines of gfl_det it runs: at least 95 %; takes half as long again
	$(RUN) -m pytest $(ON_ALL_CORES) --cov --cov-report=term

test-all: $(STAMP) ## run the slow tests too: 70 kills, restarts of several processes
	$(RUN) -m pytest $(ON_ALL_CORES) -m 'slow or not slow'

lint: $(STAMP) ## ruff (rules and format), mypy and the direction of imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## let ruff rewrite what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(STAMP) ## build the site into site/; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

benchmark: $(STAMP) ## measure against mmdet (about ten minutes on two cores, on an idle machine)
	$(RUN) tools/benchmark.py --out work_dirs/benchmark

mutate: $(STAMP) ## change 300 expressions one at a time; name the changes that no test notices
	$(RUN) -m pip install -r projects/mutation/requirements.txt
	$(RUN) -m projects.mutation --sample 300

clean: ## remove .venv, caches and build output; data/ and work_dirs/ stay
	rm -rf $(VENV) build dist site gfl_det.egg-info gfl_det/.mim .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage* htmlcov
	find gfl_det configs projects tools tests -name __pycache__ -prune -exec rm -rf {} +

$(RUNS): requirements.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned versions need Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -r requirements.txt
	$(RUN) -m pip install --no-deps --no-build-isolation -e .
	touch $@

# All at once, so that pip finds versions for all; wheel is needed by tests of packaging.
$(STAMP): requirements-extras.txt requirements-test.txt $(RUNS)
	$(RUN) -m pip install -r requirements.txt -r requirements-extras.txt -r requirements-test.txt
	touch $@
