# Every target works from a fresh clone on a machine with python3 (3.11 or newer) and a C compiler; the first makes .venv.

PYTHON ?= python3
WORKERS ?= 2

bin := .venv/bin
ready := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all fuzz lint bench conformance conformance-tools

help:
	@echo "make demo      compile the digits example and verify it"
	@echo "make test      all tests that take seconds (WORKERS=$(WORKERS) processes)"
	@echo "make test-all  every test, with coverage"
	@echo "make fuzz      random models for all targets; FUZZ='--seeds 0:200 --minutes 10 --targets ort_cpu,tosa_int'"
	@echo "make lint      ruff and mypy"
	@echo "make bench     the benchmarks"
	@echo "make conformance-tools, then make conformance"
	@echo "               integer arithmetic against reference models, runtimes, and compiled C on four processors"
	@echo "make setup     only make .venv"

setup: $(ready)

# A worker takes neighbours one after the other: they share what they compile.
tests := -n $(WORKERS) --dist worksteal

# uv installs in a fraction of pip's time. Where it cannot be had, pip does the same. Bytecode is compiled once: where
# Python may not write it later, every process compiles torch anew.
$(ready): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "qcompiler needs Python 3.11 or newer: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(bin)/python || $(PYTHON) -m venv .venv || { \
		rm -rf .venv; echo "python3 cannot make a virtual environment: install its venv module" >&2; exit 1; }
	@if $(bin)/python -m pip install --quiet --constraint constraints.txt uv; then \
		$(bin)/uv pip install --compile-bytecode --python $(bin)/python --constraint constraints.txt --editable '.[dev]'; \
	else \
		$(bin)/python -m pip install --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $@

demo: $(ready)
	@$(bin)/python -m qcompiler demo

# Workers, and the many processes that tests start, take what the first one compiled, even where Python is told to write
# no bytecode.
test test-all: export PYTHONDONTWRITEBYTECODE =

test: $(ready)
	@$(bin)/python -m pytest $(tests) -m "not slow" --durations=10

test-all: $(ready)
	@$(bin)/python -m pytest $(tests) --durations=25 --cov=qcompiler --cov=./passes --cov=./backends

# Finished pairs of model and target stay in out/fuzz: the same call goes on from there.
fuzz: $(ready)
	@OMP_NUM_THREADS=1 $(bin)/python -m tests.fuzz $(FUZZ)

lint: $(ready)
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy

bench: $(ready)
	@$(bin)/python -m benchmarks

# Environments for the reference models and, as root where there is apt-get, cross compilers and emulators.
conformance-tools: $(ready)
	@$(bin)/python -m conformance.environments

# CONFORMANCE=--allow-missing where not every tool is there.
conformance: $(ready)
	@$(bin)/python -m conformance --json out/conformance/report.json $(CONFORMANCE)
