# Every command prepares .venv first, by itself. PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SHARED ?= ../shared
OUT ?= runs/demo

.PHONY: setup demo test check lint types layers format clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "qtoolkit needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,train]'
	touch $(STAMP)

demo: setup
	@if [ -d "$(SHARED)/data/coco" ]; then \
	  $(BIN)/qtool quantize "$(SHARED)/data/models/yolov8n-pose.onnx" --data "$(SHARED)/data/coco" --mixed 0.3 --out "$(OUT)"; \
	else \
	  echo "make demo needs a network and photos: give SHARED=FOLDER that holds data/models/yolov8n-pose.onnx and data/coco."; \
	  echo "A default network and rendered people that need nothing come with the next release."; \
	fi

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What CI runs after the tests.
check: setup lint types layers

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
