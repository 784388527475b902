# Needs: make, Python 3.10 to 3.12, and a package index for pip. `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
SOURCES := waxlake connectors sinks flows tests benchmarks
TEST_PROCESSES := 2
IN_PROCESSES := --numprocesses=$(TEST_PROCESSES) --dist=loadfile
EXISTING_SOURCES = $(wildcard $(SOURCES))

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fast-tests lint types imports format bench up down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with every extra, at the pinned versions

$(STAMP): pyproject.toml constraints.txt scripts/make-venv
	@scripts/make-venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

demo: $(STAMP) ## the main job on real data, with embedded services
	$(BIN)/waxlake demo

test: $(STAMP) ## every test, by TEST_PROCESSES processes that start services of their own
	$(BIN)/python -m pytest $(IN_PROCESSES)

check: lint types imports fast-tests ## format, lint, types, import rules, fast tests

lint: $(STAMP)
	$(BIN)/ruff format --check $(EXISTING_SOURCES)
	$(BIN)/ruff check $(EXISTING_SOURCES)

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

fast-tests: $(STAMP)
	$(BIN)/python -m pytest -q $(IN_PROCESSES) --hypothesis-profile=quick tests/unit tests/property

format: $(STAMP) ## rewrite the sources in the house format
	$(BIN)/ruff format $(EXISTING_SOURCES)
	$(BIN)/ruff check --fix $(EXISTING_SOURCES)

bench: $(STAMP) ## run every benchmark, one after the other
	@set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; PYTHONPATH=$(CURDIR) $(BIN)/python "$$script"; done
	@echo "== nexmark"; PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks.nexmark

up: ## start Redpanda, MinIO, PostgreSQL, MySQL and the app in containers
	docker compose up --build --detach --wait

down: ## stop the containers and delete their data
	docker compose down --volumes

clean: ## delete .venv and the tools' caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
