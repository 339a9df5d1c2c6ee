# umbel: `make demo` runs the main job on real data, `make test` runs the tests; both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export UMBEL_HOME ?= $(CURDIR)/.umbel
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-long e2e kills fuzz lint bench clean

setup: $(VENV)/.ready

# torch comes first and pinned: an unpinned one would pull gigabytes of CUDA libraries on a CPU machine.
$(VENV)/.ready: pyproject.toml
	@echo "== setting up $(VENV)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "umbel needs Python 3.11 or later: set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/umbel demo

test: setup
	$(BIN)/umbel base build demo
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not long and not flower"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "flower and not long"

test-long: setup
	$(BIN)/umbel base build demo
	$(BIN)/python -m pytest

# A deployment on loopback: PKI, SuperLink behind the proxy, three sites with agents, a private run, a release.
e2e: setup
	$(BIN)/python -m pytest -m e2e tests/e2e

# SIGKILL to every process of a deployment at every moment that matters; about an hour.
kills: setup
	$(BIN)/python -m pytest -m kills tests/e2e

# Every decoder of bytes from the network under a coverage-guided fuzzer; SECONDS=60 for a minute each.
SECONDS ?= 5
fuzz: setup
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/umbel base build demo
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .umbel runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
