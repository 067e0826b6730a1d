# Everything a newcomer needs; `make help` lists it.
.DEFAULT_GOAL := help
UPWELL := .venv/bin/upwell
PYTEST := .venv/bin/pytest

.PHONY: help setup demo up down test long unit mutations chaos benchmark check lock

# Of `make chaos`.
SEED ?= 1
MINUTES ?= 10
MODEL ?= real

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv from the hashed lock; quick when nothing changed
	@./infra/bootstrap.sh

demo: setup ## The whole line on real components: live changes, searches before and after, a report
	@$(UPWELL) demo

up: setup ## Start stack, capture and workers in the background; again: restart what died
	@$(UPWELL) up

down: setup ## Stop what `make up` started; what was stored stays
	@$(UPWELL) down

# They need no stack, and one core.
ENCODERS := tests/integration/test_encoder.py tests/integration/test_export.py

test: check ## The rungs of the tests but the long one and benchmarks, on the real components
	@$(PYTEST) -n auto --maxprocesses 4 --dist loadfile $(ENCODERS) tests/unit tests/property tests/contracts tests/browser tests/mutations
	@$(PYTEST) -m "not long" $(ENCODERS:%=--ignore=%) tests/integration tests/acceptance

long: setup ## The long rung: faults, kinds of change and reconciliations that take minutes each
	@$(PYTEST) -m long tests/acceptance

unit: setup ## Unit and property tests: no stack, a minute
	@$(PYTEST) tests/unit tests/property

mutations: setup ## Take out each guard in turn: a named test must fail
	@.venv/bin/python -m tests.mutations

chaos: setup ## Random changes and faults against the promises: SEED=1 MINUTES=10; again: goes on
	@.venv/bin/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) --model $(MODEL)

benchmark: setup ## Measure it here, next to its parts alone: twenty minutes on a quiet machine; OPTIONS=--quick
	@$(UPWELL) benchmark $(OPTIONS)

check: setup ## ruff, mypy strict, import-linter
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet . || (.venv/bin/ruff format --check . ; exit 1)
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-timing 2>/dev/null || .venv/bin/lint-imports

lock: setup ## Resolve the Python lock anew (maintainers)
	@.venv/.uv/bin/uv pip compile pyproject.toml --extra stack --extra dev --generate-hashes --universal \
	    --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --quiet -o infra/requirements.lock
