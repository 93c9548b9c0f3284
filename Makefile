# All tasks of this project. Each target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP) --require-hashes --only-binary :all:
# `make lock LOCK_FLAGS=--upgrade` takes new releases, `LOCK_FLAGS="--upgrade-package flask"` those of one package.
LOCK_FLAGS ?=
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(LOCK_FLAGS)
EXTRAS := server services embedded

.PHONY: help setup lock up demo lint unit package test check-lock check-agent check-answers check-walls check-see compose-test clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z][a-z-]*:.*  ## / { name = $$1; sub(":.*", "", name); sub(/.*  ## /, ""); printf "  make %-14s %s\n", name, $$0 }' \
	  $(firstword $(MAKEFILE_LIST))

##@ Set up
setup: $(VENV)/installed  ## make .venv: the locked packages and this project, editable

$(VENV)/ready: requirements/dev.txt requirements/agent.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) -r requirements/dev.txt
	$(LOCKED) --no-deps -r requirements/agent.txt
	touch $@

$(VENV)/installed: $(VENV)/ready pyproject.toml services/common/sessiond_common/__init__.py
	$(PIP) --no-index --no-build-isolation --check-build-dependencies --no-deps --editable .
	touch $@

# The largest lock file comes first, and the others take its versions. The agent's lists no dependencies: only its binary
# is used.
lock: $(VENV)/ready  ## write requirements/*.txt again from pyproject.toml; locked versions stay
	$(LOCKED) -r requirements/lock.txt
	$(COMPILE) pyproject.toml $(EXTRAS:%=--extra %) --group dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/base.txt
	for extra in $(EXTRAS); do $(COMPILE) pyproject.toml --extra $$extra -c requirements/dev.txt -o requirements/$$extra.txt || exit; done
	$(COMPILE) pyproject.toml --extra agent --no-deps -c requirements/dev.txt -o requirements/agent.txt
	$(COMPILE) --group build -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE) --group lock -o requirements/lock.txt

clean:  ## remove .venv, .state, dist and the caches
	rm -rf $(VENV) .state dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

##@ Run
up: setup  ## run all services in the foreground with an embedded Redis; Ctrl-C ends them
	exec $(BIN)/python -m sessiond_ops.up

demo: setup  ## show a worker that three review comments preempt; needs no key
	@exec $(BIN)/python tests/system/demo.py

##@ Test
lint: setup  ## ruff, format, strict mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup  ## the unit tests, in one process
	$(BIN)/pytest tests/unit

package: setup  ## build wheel and sdist, install them in clean environments of each Python found
	$(BIN)/pytest tests/system/test_package.py

# The tests mostly wait: five processes keep two cores busy.
test: lint  ## lint and every test
	$(BIN)/pytest -n 5 --dist worksteal -m "not alone"
	$(BIN)/pytest -m alone

##@ Test one part with its largest tables
# Only parts with larger tables; at most five minutes.
check-lock: setup  ## the lock, its store and its owner, with every fault
	FULL=1 $(BIN)/pytest -n 5 --dist worksteal tests/system/sessiond/session tests/unit/sessiond/lock \
	  tests/unit/sessiond/verify tests/integration/sessiond/lock tests/integration/sessiond/cli \
	  tests/integration/sessiond/store/test_ledger.py tests/integration/sessiond/store/test_store.py \
	  tests/integration/sessiond/session/pipeline

check-agent: setup  ## the agent: the fault table with a scripted agent, then the real binary
	FULL=1 $(BIN)/pytest -n 3 --dist worksteal tests/unit/sessiond/agent tests/integration/sessiond/agent \
	  tests/integration/sessiond/session/agent tests/system/sessiond/agent tests/system/claude

check-answers: setup  ## comments and tasks, with each process killed at each step
	FULL=1 $(BIN)/pytest -n 3 --dist worksteal tests/unit/webhook tests/unit/worker tests/integration/common \
	  tests/integration/webhook tests/integration/worker tests/system/webhook tests/system/worker \
	  tests/system/test_deliveries.py tests/system/test_log_correlation.py tests/system/test_metrics.py

check-walls: setup  ## each attack and fault of docs/concepts/threat-model.md, a line each
	FULL=1 $(BIN)/pytest -n 3 --dist worksteal -m wall

# Needs Debian's prometheus and chromium; without them, pytest skips these tests and names the packages.
check-see: setup  ## metrics, alert rules, panels, board and logs, with a real Prometheus and Chromium
	FULL=1 $(BIN)/pytest -n 3 --dist worksteal tests/unit/grafana tests/system/grafana tests/system/test_metrics.py \
	  tests/system/test_log_correlation.py tests/system/sessiond/http tests/integration/sessiond/http/board \
	  tests/integration/common/log

compose-test: setup  ## all services in containers from a fresh clone; needs an engine with compose v2
	$(BIN)/python tests/system/compose/run.py
