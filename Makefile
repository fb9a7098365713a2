# One command each; every target but gpu-check sets up .venv first: well under a second when nothing has changed.
# PYTHON=python3.12 picks the interpreter, VENV=folder another environment, ARGS="-k match -x" goes to pytest
# (in place of its default, all tests on up to 8 processes).
PYTHON ?= python3
VENV ?= .venv
ARGS ?= --numprocesses auto --maxprocesses 8
BENCH_ARGS ?=
GPU_ARGS ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test sanitize build-matrix bench gpu-check lint clean clean-all

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## create the virtual environment, install, build the native modules
	@$(PYTHON) scripts/setup_env.py --venv $(VENV)

demo: setup  ## embedded data set -> training -> evaluation -> runs/demo/; a few minutes on two CPU cores
	$(BIN)/semimatch data make-demo data/demo
	$(BIN)/semimatch fit --config demo --resume

test: setup  ## all tests
	@$(BIN)/python -m pytest $(ARGS)

sanitize: setup  ## the C++ kernels under the address, undefined-behaviour and thread sanitizers
	@$(BIN)/python scripts/sanitize.py

build-matrix: setup  ## build, install, try and uninstall with another torch and with fewer compilers; needs the network
	@$(BIN)/python scripts/build_matrix.py

bench: setup  ## every op against eager, torch.compile and peers, on this machine; a few minutes in which nothing else may run
	@$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

gpu-check:  ## on a GPU machine, no network needed: build, tests on CUDA, sanitizer, benchmarks; under 8 minutes
	@$(PYTHON) -m benchmarks.gpu_check $(GPU_ARGS)

lint: setup  ## ruff check, ruff format and clang-format over all tracked files (changes them)
	@$(BIN)/pre-commit run --all-files

clean:  ## remove build products, caches and demo output; keep the virtual environment
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks data/demo runs/demo
	rm -f semimatch_kernels/*.so semimatch_kernels/_native_build.json
	find semimatch semimatch_kernels tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean  ## the same, and the virtual environment
	rm -rf $(VENV)
