# make setup   a virtual environment in .venv with the tested, hash-locked versions
# make demo    set up, train, evaluate and translate: Spanish speech to English text and speech
# make test    the tests of every part and command      make test-all   also kills, launchers, several processes
# make lint / make type    ruff / pyright

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
LOCKED := $(filter Linux,$(shell uname -s))

INDEX = $$($(BIN)/python -m pip config get global.index-url 2>/dev/null)
UV = UV_DEFAULT_INDEX=$${UV_DEFAULT_INDEX:-$(INDEX)} $(BIN)/uv pip install --quiet --python $(BIN)/python

COMPILE := uv pip compile --python-version 3.11 --python-platform linux --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --quiet -c constraints.txt
LOCK := $(COMPILE) pyproject.toml --extra demo --extra eval

.PHONY: locks setup setup-dev demo test test-slow test-all lint type

setup: $(VENV)/.demo
setup-dev: $(VENV)/.dev

# uv takes a quarter of the time of pip; where it cannot reach an index that pip knows from its own settings, pip does it.
# Python compiles what it imports by itself, unless it was told to write no bytecode: then each process would do it again.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: requirements-%.lock requirements-uv.lock requirements-quality.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
ifeq ($(LOCKED),Linux)
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements-uv.lock
	@echo uv pip install -r requirements-$*.lock
	@$(UV) --require-hashes -r requirements-$*.lock || \
		$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements-$*.lock
	$(if $(filter dev,$*),@$(UV) --no-deps --require-hashes -r requirements-quality.lock || \
		$(BIN)/python -m pip install --quiet --no-compile --no-deps --require-hashes -r requirements-quality.lock)
	$(if $(PYTHONDONTWRITEBYTECODE),-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib)
	@$(UV) --no-deps -e . || $(BIN)/python -m pip install --quiet --no-deps -e .
else
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,eval,dev]'
	$(BIN)/python -m pip install --quiet --no-deps resemblyzer==0.1.4
endif
	touch $@

demo: setup
	$(BIN)/python -m voxzoo.tasks.commands.demo --root $(RUNS)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

test: setup-dev
	$(PYTEST) -m "not slow"

test-slow: setup-dev
	$(PYTEST) -m slow

test-all: test test-slow

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup-dev
	$(BIN)/pyright

# Versions as in constraints.txt; they resolve alike for Python 3.11, 3.12 and 3.13.
locks:
	$(LOCK) -o requirements-demo.lock
	$(LOCK) -o requirements-dev.lock --extra dev
	echo resemblyzer | $(COMPILE) --no-deps - -o requirements-quality.lock
	echo uv | $(COMPILE) - -o requirements-uv.lock
