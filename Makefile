# Every command prepares .venv first, by itself. PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
PYTHON310 ?= python3.10
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SHARED ?= ../shared
OUT ?= runs/demo

.PHONY: setup demo demo-real test test-lowest check lint types layers format clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "qtoolkit needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,train,openvino,rtx]'
	touch $(STAMP)

# The main job on the network that comes with qtool and on rendered people.
demo: setup
	$(BIN)/qtool quantize --mixed 0.3 --out "$(OUT)"

# The main job on a real network and photos: SHARED=FOLDER holds data/models/yolov8n-pose.onnx and data/coco.
demo-real: setup
	$(BIN)/qtool quantize "$(SHARED)/data/models/yolov8n-pose.onnx" --data "$(SHARED)/data/coco" --mixed 0.3 --out "$(OUT)-real"

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The tests with the oldest libraries that setup.cfg allows, in an environment of their own.
test-lowest:
	$(PYTHON310) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[train,openvino]' pytest pytest-xdist hypothesis
	.venv-lowest/bin/python -m pytest -n 2 --dist loadfile

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
