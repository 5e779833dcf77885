# Few verbs, the same everywhere: people, CI and the README use these.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each process of a swarm would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
PROTO := $(wildcard proto/distqat/v1/*.proto)

.PHONY: install proto proto-check fmt lint types test sim e2e soak bench demo clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data,dev,bench,models,wandb]'
	touch $@

proto: install
	$(BIN)/python proto/generate.py distqat/pb

proto-check: install
	$(BIN)/python proto/generate.py --check distqat/pb

fmt: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Side by side, a little more than there are cores: much of it waits. Real daemons want the cores for themselves.
test: install
	$(BIN)/pytest -m 'not soak and not e2e' --numprocesses 3 --dist worksteal
	$(BIN)/pytest -m 'e2e and not soak'

sim: install
	$(BIN)/pytest -m sim

e2e: install
	$(BIN)/pytest -m 'e2e and not soak'

soak: install
	$(BIN)/pytest -m soak --timeout 3600
	HYPOTHESIS_PROFILE=new $(BIN)/pytest -m 'hypothesis and not soak' --numprocesses 2 --timeout 3600

bench: install
	$(BIN)/python -m bench --quick

demo: install
	$(BIN)/distqatctl sandbox configs/digits.yaml

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis logs
