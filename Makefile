# make run    the whole pipeline on the bundled starter inputs
# make up     server, worker and scheduled deployments on the same inputs, until Ctrl-C
# make test   lint and the whole test suite (make test-quick leaves out what takes minutes)
# make docs   the documents as a site, in site/
# Each first prepares this checkout (deployments/setup.sh): system packages, .venv, pinned versions.

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export NO_MKDOCS_2_WARNING = 1
BIN = .venv/bin
PARALLEL = -n 2 --dist loadfile

.PHONY: run up test test-quick lint format docs setup clean

run: setup
	@$(BIN)/meissner discover --profile starter

up: setup
	@$(BIN)/meissner up --profile starter

test: lint
	@$(BIN)/python -m pytest $(PARALLEL) -m "not recovery" $(ARGS)

test-quick: lint
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not recovery" $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/lint-imports
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup
	@$(BIN)/mkdocs build -f deployments/mkdocs.yml

setup:
	@deployments/setup.sh

clean:
	rm -rf .venv workspace .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
