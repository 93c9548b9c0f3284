# Everything this project does; each target sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all:

.PHONY: setup up demo test check-lock check-agent check-answers check-see compose-test lint clean

setup: $(VENV)/ready

$(VENV)/ready: requirements-dev.txt requirements-agent.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps -r requirements-agent.txt
	$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "sessiond-services.pth").write_text("".join(str(pathlib.Path("services", name).resolve()) + "\n" for name in ("common", "ops", "sessiond", "webhook", "worker")))'
	for name in sessiond:sessiond.main sessionctl:sessiond_ops.sessionctl; do \
	  printf '#!/bin/sh\nexec "%s" -m %s "$$@"\n' "$(CURDIR)/$(BIN)/python" "$${name#*:}" > "$(BIN)/$${name%:*}" && chmod +x "$(BIN)/$${name%:*}"; done
	touch $@

up: setup
	exec $(BIN)/python -m sessiond_ops.up

demo: setup
	@exec $(BIN)/python tests/system/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Most of a test's time is waiting: five processes keep two cores busy.
test: lint
	$(BIN)/pytest -n 5 --dist worksteal -m "not alone"
	$(BIN)/pytest -m alone

# The lock, its store and its owner under everything that can go wrong; tables, then one line. What has no larger form
# is left to `make test`, which tries it all the same: this shall take five minutes at most.
check-lock: setup
	FULL=1 $(BIN)/pytest -n 5 --dist worksteal tests/system/sessiond/session tests/unit/sessiond/lock \
	  tests/unit/sessiond/verify tests/integration/sessiond/lock tests/integration/sessiond/cli \
	  tests/integration/sessiond/store/test_ledger.py tests/integration/sessiond/store/test_store.py \
	  tests/integration/sessiond/session/pipeline

# The same for the agent: the fault table with the scripted one, then the real binary.
check-agent: setup
	FULL=1 $(BIN)/pytest -n 3 --dist worksteal tests/unit/sessiond/agent tests/integration/sessiond/agent \
	  tests/integration/sessiond/session/agent tests/system/sessiond/agent tests/system/claude

# What a comment and a task come to, whatever dies: every row, printed.
check-answers: setup
	FULL=1 $(BIN)/pytest -n 3 --dist worksteal tests/unit/webhook tests/unit/worker tests/integration/common \
	  tests/integration/webhook tests/integration/worker tests/system/webhook tests/system/worker \
	  tests/system/test_deliveries.py tests/system/test_log_story.py tests/system/test_metrics.py

# All of it in containers, from a fresh clone; needs an engine with compose v2, and says so where there is none.
compose-test: setup
	$(BIN)/python tests/system/compose/run.py

# What one sees, without an engine: metrics, rules and every panel in a real Prometheus, the board in a real Chromium,
# the logs; what is not installed (Debian's prometheus, chromium) is skipped and named.
check-see: setup
	FULL=1 $(BIN)/pytest -n 3 --dist worksteal tests/unit/grafana tests/system/grafana tests/system/test_metrics.py \
	  tests/system/test_log_story.py tests/system/sessiond/http tests/integration/sessiond/http/board \
	  tests/integration/common/log

clean:
	rm -rf $(VENV) .state .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
