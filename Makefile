# Every target does all the set-up itself, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-cuda clean

demo: $(VENV)/.installed
	$(BIN)/clip-randlora demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow" --durations=10

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow --durations=10

test-cuda: $(VENV)/.installed-test
	CLIP_RANDLORA_TEST_CUDA=1 $(BIN)/python -m pytest -m cuda

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
