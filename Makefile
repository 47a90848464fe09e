# `make demo` and `make test` are all that a newcomer types: each does its own set-up first.
# Needs Python 3.11 or 3.12, bash and make. PYTHON=/path/to/python chooses the interpreter.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint types format bench clean
export PYTHON

BIN := .venv/bin
# One test file stays on one worker, so that what its tests share is made once.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

help: ## List the targets
	@sed -nE 's/^([a-z%-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## Make .venv with the tested versions and check off-screen rendering
	@scripts/setup.sh

demo: setup ## Evaluate several policies on Meta-World and robosuite, and write a report
	$(BIN)/vla-gym demo --out results/demo

test: lint ## Lint, and the quick tests
	$(PYTEST) -m "not slow"

test-all: lint types ## Lint, types, and every test
	$(PYTEST)

lint: setup ## Check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup ## Check types
	$(BIN)/pyright

format: setup ## Put the code into the common form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## Measure speed and memory against the simulators' own path (ARGS=--quick: less)
	$(BIN)/python benchmarks/run.py $(ARGS)

recipe-%: setup ## Reproduce a result from nothing (docs/recipes): recipe-bc-metaworld, ...
	docs/recipes/$*.sh

clean: ## Remove what the targets above have made, .venv too; not your own results
	rm -rf .venv build dist results/demo *.egg-info .pytest_cache .ruff_cache .hypothesis
