# Every target first sets up what it needs; `make` alone lists the targets. PYTHON=python3.12 selects the interpreter.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

bin := .venv/bin
# A stamp is newer than everything it was made from, so that a second `make` starts at once.
installed := .venv/.installed
horovod_installed := .venv/.horovod-installed

# `make test HOROVOD=off`, for a machine without a compiler, leaves out the tests that need Horovod.
HOROVOD ?= on
ifeq ($(HOROVOD),off)
test_needs := $(installed)
test_selection := -m "not horovod"
else
test_needs := $(installed) $(horovod_installed)
test_selection :=
endif

.PHONY: help demo test test-quick test-python-3.12 test-complete chaos lint check upgrade horovod clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(installed) ## train, evaluate, export, verify and serve a model on real data
	scripts/demo

test: $(test_needs) ## every test except the longest, with lint and types
	@scripts/system-packages tests
	$(bin)/pytest -n 2 --dist loadfile --no-loadscope-reorder --only-allowed-skips --durations=10 $(test_selection)

test-quick: $(installed) ## the tests that take minutes: no training process, no Horovod
	$(bin)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 -m "not slow and not horovod"

test-python-3.12: ## test-quick under Python 3.12, if it is installed
	@scripts/test-python-3.12

test-complete: export TRAINER_TESTS_COMPLETE := 1
test-complete: test ## also the longest tests, such as an export of each backbone family

# CHAOS_ARGS=--kills=20, for instance; `python -m tests.chaos run --help` lists them. Goes on where it was interrupted.
chaos: $(test_needs) ## kill training runs until 1,000 kills are on record in .chaos/, damage 10,000 checkpoints, let commands collide
	$(bin)/python -m tests.chaos damages --work .chaos
	$(bin)/python -m tests.chaos collisions --work .chaos
	$(bin)/python -m tests.chaos run --work .chaos $(CHAOS_ARGS)

lint: $(installed) ## ruff and mypy
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

check: lint test test-python-3.12 ## lint first, then every test

# Keras and TensorFlow have bounds in pyproject.toml: raise those first to go beyond them.
upgrade: $(installed) ## lock the newest version of every package, check the private names we use, then run make test
	scripts/lock --upgrade
	$(MAKE) $(test_needs)
	$(bin)/pytest tests/system/test_private_names.py $(test_selection)
	$(MAKE) test

horovod: $(horovod_installed) ## build Horovod for the installed TensorFlow (or take it from the cache) and test it

clean: ## remove the environment, the demo and caches; runs stay
	rm -rf .venv .venv-3.12 demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(installed): pyproject.toml requirements/bootstrap.lock requirements/dev.lock scripts/setup
	scripts/setup
	@touch $@

$(horovod_installed): $(installed) requirements/horovod.lock scripts/build_horovod.py scripts/horovod_allreduce.py
	scripts/system-packages horovod || { echo "or leave Horovod out: make test HOROVOD=off" >&2; exit 2; }
	$(bin)/python scripts/build_horovod.py
	@touch $@
