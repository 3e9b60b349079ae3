# The verbs of this project. Each one creates .venv when it is missing, and renews it when pyproject.toml or
# constraints.txt changed; nothing else has to be installed but Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# In a folder of its own: PEFT imports it wherever it is found, which costs every process two seconds.
QUANTIZE := $(VENV)/quantize
# In a folder of its own as well: an engine is for its tests, and nothing else should find it.
ENGINES := $(VENV)/engines

# What other engines and trainers read adapters and settings with: 380 MB to fetch, so no other verb does.
SOURCES := $(VENV)/engine-sources

# Tests run in this many processes at most, each with one thread, so that numbers do not depend on the machine.
WORKERS ?= 4
TESTENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench real-bases engine-sources format docs clean

help: ## list the verbs
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /|/' | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv with every package at its pinned version

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "loratlas needs Python 3.11 or newer; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "Creating $(VENV)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned packages into $(VENV); the first time this takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY) ## compare three placements on the embedded base; writes loratlas-demo/report.html
	@$(BIN)/loratlas demo

$(QUANTIZE): constraints.txt
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ bitsandbytes
	@touch $@

$(ENGINES): constraints.txt
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --only-binary=:all: --target $@ xllamacpp
	@touch $@

test: $(READY) $(QUANTIZE) $(ENGINES) ## run the whole test suite, then what needs bitsandbytes or llama.cpp
	$(TESTENV) $(BIN)/python -m pytest -n logical --maxprocesses $(WORKERS) --dist worksteal
	$(TESTENV) PYTHONPATH=$(QUANTIZE) $(BIN)/python -m pytest -k quantised
	$(TESTENV) PYTHONPATH=$(ENGINES) $(BIN)/python -m pytest tests/serving/test_llama_cpp.py

check: $(READY) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(READY) ## measure beside Trainer and SFTTrainer on Alpaca rows; writes benchmarks/results/bench.md
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m benchmarks --compiled

real-bases: $(READY) ## fetch real:smollm2-135m and real:gemma3-270m into the user's data folder (700 MB, once)
	HF_HUB_OFFLINE=1 $(BIN)/python tools/real_bases.py

engine-sources: $(READY) ## fetch how vLLM, SGLang, axolotl and ms-swift read adapters and settings (380 MB), and test with it
	$(BIN)/python tools/engine_sources.py $(SOURCES)
	$(TESTENV) $(BIN)/python -m pytest tests/serving/test_engine_sources.py tests/integrations/test_tool_sources.py

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## renew the pages that are counted, not written: docs/results/model_types and docs/zoo
	$(BIN)/python tools/model_types.py
	$(BIN)/python tools/zoo.py
	$(BIN)/python tools/api_reference.py

clean: ## remove what the other verbs made, .venv excepted
	rm -rf build dist loratlas-demo .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
