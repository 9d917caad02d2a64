# Everything from one command; `make help` lists the targets.
# Variables: PYTHON=/path/to/python3, VENV=.venv, BUDGET=tiny, DATASET=, CONFIG=, RUN=, RUN_ARGS=, PYTEST_ARGS=, BENCH_ARGS=, GPU_PYTHON=, GPU_ARGS=
VENV ?= .venv
DATASET ?= pointmaze-umaze
CONFIG ?= benchmarks/pointmaze-umaze.json
RUN ?= runs/umaze
RUN_ARGS ?=
TINY_ARGS ?= --recipe.steps.prior 100 --recipe.steps.backend 100 --recipe.steps.extractor 100 --recipe.evaluation.episodes 4
REPRODUCE_ARGS ?= --seeds 0,1,2
PYTEST_ARGS ?= -n 2
BENCH_ARGS ?=
GPU_PYTHON ?= python3
GPU_ARGS ?=
TABLES ?= pointmaze-umaze pointmaze-umaze-backends pointmaze-medium hopper-medium hopper-medium-expert hopper-multi-policy door-human \
  temperatures-hopper clipping-hopper few-steps-umaze few-steps-hopper
INSTALLED := $(VENV)/.installed
# Networks this small train as fast on one thread, and two would wait for each other wherever something else runs.
export OMP_NUM_THREADS ?= 1

ifeq ($(BUDGET),tiny)
RUN := runs/tiny
ARGS = $(TINY_ARGS) $(RUN_ARGS)
else ifneq ($(BUDGET),)
$(error unknown BUDGET=$(BUDGET): leave it out, or use BUDGET=tiny)
else
ARGS = $(RUN_ARGS)
endif

.DEFAULT_GOAL := help
.PHONY: help setup run reproduce tables test gate kernels wheel docs bench gpu clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make the virtual environment and install ddice into it (run and test do it by themselves)

$(INSTALLED): pyproject.toml .ci/install
	PYTHON='$(PYTHON)' VENV='$(VENV)' sh .ci/install
	@touch $@

run: $(INSTALLED) ## train, evaluate and compare on PointMaze umaze, one seed; BUDGET=tiny only shows that all works
	@echo '==> first the dataset $(DATASET), where it is not there yet: a minute or two'
	$(VENV)/bin/ddice data make $(DATASET)
	@echo '==> then, in $(RUN), training and evaluation; measured in a moment, this machine needs for them:'
	$(VENV)/bin/ddice compare --config $(CONFIG) --run $(RUN) $(ARGS) --dry-run
	$(VENV)/bin/ddice compare --config $(CONFIG) --run $(RUN) $(ARGS)

reproduce: $(INSTALLED) ## the table of the README: the same with three seeds
	$(VENV)/bin/ddice data make $(DATASET)
	$(VENV)/bin/ddice compare --config $(CONFIG) --run $(RUN)-reproduce $(REPRODUCE_ARGS) $(ARGS)

test: $(INSTALLED) ## ruff, mypy and the tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest $(PYTEST_ARGS)

gate: $(INSTALLED) ## the tests that take longest of those that every change must pass: processes that are killed, commands of the pages
	$(VENV)/bin/pytest -n 2 -m gate

docs: $(INSTALLED) ## the pages of docs/ and a reference made of the docstrings, in build/site/index.html
	$(VENV)/bin/mkdocs build --strict --quiet

bench: $(INSTALLED) ## the speed measurements of benchmarks/, rendered into benchmarks/README.md (10 to 20 minutes on a quiet machine)
	@mkdir -p .benchmarks
	$(VENV)/bin/pytest benchmarks -o addopts= -q --benchmark-only --benchmark-json=.benchmarks/bench.json $(BENCH_ARGS)
	$(VENV)/bin/python benchmarks/render_speed.py .benchmarks/bench.json

gpu: ## what an NVIDIA GPU can tell, in eight minutes at most; needs torch with CUDA, triton and what ddice imports: GPU_PYTHON=, GPU_ARGS='--data maze.npz'
	$(GPU_PYTHON) benchmarks/gpu.py $(GPU_ARGS)

tables: $(INSTALLED) ## every table of docs/which.md, three seeds: hours. The Hopper and door sets must be there (docs/which.md)
	$(VENV)/bin/ddice data make pointmaze-umaze
	$(VENV)/bin/ddice data make pointmaze-medium
	set -e; for name in $(TABLES); do \
	  $(VENV)/bin/ddice compare --config benchmarks/$$name.json --run runs/tables/$$name $(REPRODUCE_ARGS); \
	  $(VENV)/bin/ddice diagnose runs/tables/$$name; \
	done
	$(VENV)/bin/python benchmarks/few_steps.py runs/tables/few-steps-umaze runs/tables/few-steps-hopper
	$(VENV)/bin/python benchmarks/tables.py runs/tables

kernels: $(INSTALLED) ## the tests of the Triton kernels, which need no GPU: in the interpreter, and compiled for sm_90 (installs triton, 190 MB)
	$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --editable '.[triton]'
	$(VENV)/bin/pytest tests/test_fused.py -m 'slow or not slow'

wheel: $(INSTALLED) ## build the wheel and try the installed one: train, save, load, act
	VENV='$(VENV)' .ci/wheel

clean: ## remove the virtual environment and everything that tools left behind; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	find ddice tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
