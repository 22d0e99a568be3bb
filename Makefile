# Every target does all the set-up itself, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --durations=10
# Two workers share the tests out. Those marked alone, which measure time, run after the others.
WORKERS ?= 2
TOGETHER := --numprocesses $(WORKERS) --dist worksteal
ALONE := $$(grep -l mark.alone -r tests --include="test_*.py")

.PHONY: demo docs test test-slow test-cuda clean

demo: $(VENV)/.installed
	$(BIN)/clip-randlora demo

docs: $(VENV)/.installed-docs
	$(BIN)/zensical build --clean --strict

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) $(TOGETHER) -m "not slow and not alone"
	$(PYTEST) -m "not slow and alone" $(ALONE)

test-slow: $(VENV)/.installed-test
	$(PYTEST) $(TOGETHER) -m "slow and not alone"
	$(PYTEST) -m "slow and alone" $(ALONE)

test-cuda: $(VENV)/.installed-test
	CLIP_RANDLORA_TEST_CUDA=1 $(BIN)/python -m pytest -m cuda

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[app,data]'
	touch $@

$(VENV)/.installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
