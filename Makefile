# Everything is installed in .venv, from nothing but Python and pip; a stamp file makes the second call quick.
PYTHON ?= python3
BIN := .venv/bin
RUN := .venv/.stamp-run
DEV := .venv/.stamp-dev

.PHONY: demo test check bench soak clean

demo: $(RUN)
	@$(BIN)/hvemu demo

test: $(DEV)
	$(BIN)/python -m pytest -q

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict hvemu

bench: $(RUN)
	@$(BIN)/hvemu bench

soak: $(DEV)
	$(BIN)/python -m pytest -q -m soak

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(RUN): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(RUN)
