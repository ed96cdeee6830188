# Every target sets up what it needs first; `make` alone lists them. PYTHON=python3.12 chooses the interpreter.

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

.PHONY: help demo test test-quick test-complete lint check horovod clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(installed) ## from nothing to a trained, exported, verified and served model
	scripts/demo

test: $(test_needs) ## every test but the longest, lint and types included
	@scripts/system-packages tests
	$(bin)/pytest -n 2 --dist loadfile --only-allowed-skips --durations=10 $(test_selection)

test-quick: $(installed) ## for while you work: minutes, no training process, no Horovod
	$(bin)/pytest -n 2 --dist loadfile --durations=10 -m "not slow and not horovod"

test-complete: export TRAINER_TESTS_COMPLETE := 1
test-complete: test ## the longest tests too, such as an export of each family of backbones

lint: $(installed) ## ruff and mypy, quickly
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

check: lint test ## lint first, then every test

horovod: $(horovod_installed) ## build Horovod for the installed TensorFlow, or take it from the cache, and try it

clean: ## remove what make made: the environment, the demo and caches; runs stay
	rm -rf .venv demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(installed): pyproject.toml requirements/bootstrap.lock requirements/dev.lock scripts/setup
	scripts/setup
	@touch $@

$(horovod_installed): $(installed) requirements/horovod.lock scripts/build_horovod.py scripts/horovod_allreduce.py
	scripts/system-packages horovod || { echo "or leave Horovod out: make test HOROVOD=off" >&2; exit 2; }
	$(bin)/python scripts/build_horovod.py
	@touch $@
