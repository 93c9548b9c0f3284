# Needs python3 (3.11 or newer) with venv, git and make; everything else comes as wheels into .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes --only-binary :all:
RUN := .venv/.run-ready
DEV := .venv/.dev-ready

.PHONY: setup up demo test lint lock clean

setup: $(DEV)

# `up` and `demo` need less than the tests, and so start sooner on a fresh machine.
$(RUN): requirements.txt requirements-agent.txt scripts/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'sessiond needs Python 3.11 or newer: make PYTHON=python3.12 …'; exit 1; }
	@test -x $(BIN)/python || { echo 'making .venv'; $(PYTHON) -m venv .venv; }
	@echo 'installing what sessiond runs on'
	@$(PIP) -r requirements.txt
	@echo 'installing the claude binary'
	@$(PIP) --no-deps -r requirements-agent.txt
	@$(BIN)/python scripts/install.py
	@touch $@

$(DEV): $(RUN) requirements-dev.txt
	@echo 'installing what the tests need'
	@$(PIP) -r requirements-dev.txt
	@touch $@

# exec, so that Ctrl-C and SIGTERM reach the program itself and its exit code is make's.
up: $(RUN)
	@exec $(BIN)/python -m sessiond.up

demo: $(RUN)
	@exec $(BIN)/python -m demo

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Rewrites the lock files; needs uv. They name no registry, so that any mirror serves.
LOCK := uv pip compile --no-config --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-header --no-build --quiet --upgrade
lock:
	$(LOCK) pyproject.toml -o requirements.txt
	$(LOCK) -c requirements.txt pyproject.toml --group dev -o requirements-dev.txt
	echo 'claude-agent-sdk==0.2.188' | $(LOCK) --no-deps - -o requirements-agent.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
