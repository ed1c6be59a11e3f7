# Everything runs in a virtual environment of its own; only Python 3 with venv has to be there.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := $(VENV)/.docs

# Idle OpenMP threads must sleep: spinning ones slow torch down many times over as soon as another process is busy.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo real test quick test-cpus guard check fix docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## create the virtual environment

# torch goes first and alone: what is installed after it then takes it as it is, and pulls no second build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "valuembed needs Python 3.10 or newer; name one with: make PYTHON=python3.x")'
	@echo "Setting up $(VENV): a few minutes the first time, not again."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY) ## embed the sample sentences with the bundled model, then search them
	@mkdir -p demo
	HF_HUB_OFFLINE=1 $(BIN)/valuembed embed examples/sentences.txt -o demo/sentences.parquet --overwrite
	HF_HUB_OFFLINE=1 $(BIN)/valuembed search "The train was late." --in demo/sentences.parquet -k 3
	HF_HUB_OFFLINE=1 $(BIN)/valuembed search "A musician played a song." --in demo/sentences.parquet -k 3
	HF_HUB_OFFLINE=1 $(BIN)/valuembed search "The doctor looked after the patient." --in demo/sentences.parquet -k 3

real: $(READY) ## fetch SmolLM2 (90 MB, once), embed and search with it, and compare values with hidden states
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/real_demo.py

# Each worker begins with a half of the tests in their order, so that what a file needs is made once, and helps the other.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(if $(ROOM),tests/$(ROOM))

test: $(READY) ## run the tests; ROOM=readout runs those of one room
	$(PYTEST)

quick: $(READY) ## run the tests but for those that are slow, or need a browser, Ray or processes
	$(PYTEST) -m "not (slow or browser or ray or process)"

test-cpus: $(READY) ## run the numeric tests again, as other CPUs would compute them
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/other_cpus.py

guard: $(READY) ## compare speed with what was recorded on this CPU; three minutes
	$(BIN)/python benchmarks/guard.py

check: $(READY) ## format, lint, types, and which room imports which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY) ## format, and repair what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS) ## build the documentation into site/ and check its links
	$(BIN)/python scripts/docs_site.py

$(DOCS): pyproject.toml constraints.txt | $(READY)
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	@touch $@

clean: ## remove the virtual environment, caches and results
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache build dist demo real site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
