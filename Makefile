# vitdeploy: everything a developer runs. CI runs these same targets (.ci/run).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST_FLAGS ?=
# For two cores: tests of a device over SSH mostly wait. Timed tests run alone (tests/turns.py).
PARALLEL := -n 3
# Costs a tenth of the time that tests take. coverage.py costs half before Python 3.12.
COVERED := $(BIN)/python -m slipcover --source vitdeploy --json --out .coverage.json

# Where it is set, as in many container images, every process of a test compiles vitdeploy again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup jetson-wheels demo docs test test-long chaos fuzz zoo benchmarks lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv and install vitdeploy with all extras, editable (only when something changed)

demo: setup ## the demo recipe end to end: export, audit, measure, gate; leaves build/demo
	$(BIN)/vitdeploy run demo -o build/demo --force

docs: setup ## the documentation as a site in build/site; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test: lint ## everything CI checks: lint, types, layers, tests with coverage (CONTRIBUTING.md says how to be quick)
	$(COVERED) -m pytest $(PARALLEL) -m "not long" $(PYTEST_FLAGS)
	@$(BIN)/python -c "import json; print('lines of vitdeploy covered:', json.load(open('.coverage.json'))['summary']['percent_covered_display'], '%')"

test-long: setup ## the tests marked `long`, which CI runs once a week
	$(BIN)/pytest $(PARALLEL) -m long $(PYTEST_FLAGS)

jetson-wheels: setup ## whether the light base has wheels for a Jetson (asks the package index)
	$(BIN)/python .ci/jetson_wheels.py

chaos: setup ## fail every file operation of the commands once, and kill them before each (an hour; SAMPLE=N tries N)
	$(BIN)/python -m tests.robustness.chaos $(if $(SAMPLE),--sample $(SAMPLE)) --seed $(or $(SEED),0)

fuzz: setup ## damaged and hostile input of every kind (N=cases of each kind, SEED=, KIND="onnx weights")
	$(BIN)/python -m tests.robustness.fuzz $(if $(N),-n $(N)) $(if $(KIND),--kind $(KIND)) --seed $(or $(SEED),0)

benchmarks: setup ## measure every page of benchmarks/ anew on this commit and CPU (a day; continues; ARGS="roofline streams", ARGS=--list)
	$(BIN)/python -m benchmarks $(ARGS)

zoo: setup ## export every model of the zoo to every target; writes benchmarks/zoo.md (hours; continues; ARGS='"timm *"')
	$(BIN)/python -m benchmarks.zoo $(ARGS)

lint: setup ## ruff, formatting, mypy --strict, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint Dockerfile.jetson

format: setup ## fix what ruff can fix, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove build outputs and caches; .venv stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage.json *.egg-info
	find vitdeploy tests benchmarks website -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A new venv has the pip of its Python, which may not know --group (pip 25.1).
# torch first and alone: what is installed after it then settles on this build, and no other one is fetched on the way.
# The constraints name the tested versions; without them pip takes whatever was released today.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install -q -c constraints.txt "torch>=2.9" "torchvision>=0.24"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[all]" --group dev
	@touch $@
