PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTOS ?=
SCENARIO ?=

.PHONY: help models setup demo up test compose-test faults audit lint format bench-pipeline bench-models bench-bulk bench-autoscale clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ –/'

# The stamp makes every target set itself up, and once only.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Vitrina needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV): 6.5 GB, two to ten minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[worker,production,embedded,export,demo,otel]' --group lint --group test
	@touch $@

# Apart from the stamp, since models lie elsewhere and may be deleted: what is there is only looked at.
models: $(VENV)/.ready ## fetch the starter models that are missing
	@$(BIN)/vitrina models fetch

setup: models ## make .venv with everything, fetch the starter models

demo: models ## sample photos (or PHOTOS=folder) to a catalogue and a report
	$(BIN)/vitrina demo $(if $(PHOTOS),"$(PHOTOS)")

up: models ## the embedded stack in the foreground
	$(BIN)/vitrina up

test: models ## the whole test suite
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

compose-test: $(VENV)/.ready ## a catalogue in containers while workers die and the broker restarts, and every page; PHOTOS=folder; status 77 without Docker
	$(BIN)/python tests/deploy/compose_job.py $(if $(PHOTOS),"$(PHOTOS)")

faults: $(VENV)/.ready ## kill, stop, wipe, cut off and poison for 20 minutes, and count; SCENARIO=name for one
	$(BIN)/python tests/faults/run.py $(SCENARIO)

audit: ## look the pinned dependencies up in the advisories; 3 when not all could be
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit==2.10.1'; }
	@$(VENV)/audit/bin/python tests/audit.py $(VENV)/audit/bin/pip-audit

lint: $(VENV)/.ready ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.ready ## fix style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-pipeline: models ## the pipeline against a plain serial loop
	$(BIN)/python -m bench.pipeline $(if $(PHOTOS),"$(PHOTOS)")

bench-models: models ## each model stage from one at a time to batches; full size on a GPU, tiny elsewhere
	$(BIN)/python -m bench.models

bench-bulk: $(VENV)/.ready ## bulk jobs with instant models: KEYS=50000 for a short run
	$(BIN)/python -m bench.bulk

bench-autoscale: $(VENV)/.ready ## a day under the autoscaling rules of deploy/k8s: waiting times and GPU hours; no GPU needed
	$(BIN)/python -m bench.autoscale

clean: ## remove what make made
	rm -rf $(VENV) vitrina-demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
