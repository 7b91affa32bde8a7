# Heliostat. `make` alone prints the targets. The project runs from its folder; nothing of ours is installed.
#
#     make demo                                            on this machine's CPU
#     make demo GPU=1                                      on its GPU
#     make demo ARGS="train.learning_rate=1e-4"        with settings of your own

SHELL := /bin/bash
VENV_PYTHON := .venv/bin/python
# cpu or gpu: GPU=1 asks for gpu; otherwise what .venv holds already, at first cpu
KIND := $(if $(filter-out 0,$(GPU)),gpu,$(or $(shell cut -d' ' -f1 .venv/installed 2>/dev/null),cpu))
ARGS ?=
BENCHES := $(patsubst tests/bench/%.py,bench-%,$(filter-out tests/bench/_%,$(wildcard tests/bench/*.py)))

.DEFAULT_GOAL := help
.PHONY: help environment install install-gpu demo test test-all bench lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 14

install:  ## the pinned packages for a CPU, into .venv (once: minutes; again: at once)
	@requirements/install.sh cpu

install-gpu:  ## the same for CUDA GPUs
	@requirements/install.sh gpu

environment:
	@requirements/install.sh $(KIND)

demo: environment  ## a tiny policy learns arithmetic; GPU=1 on a GPU, ARGS="..." for settings
	$(VENV_PYTHON) -m engine.main $(if $(filter gpu,$(KIND)),cluster=one_gpu) run.resume=never $(ARGS)

test: environment  ## the tests, without the slow ones
	$(VENV_PYTHON) -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow$(if $(filter cpu,$(KIND)), and not gpu)" $(ARGS)

test-all: environment  ## every test that this machine can run
	$(VENV_PYTHON) -m pytest $(if $(filter cpu,$(KIND)),-m "not gpu") $(ARGS)

bench: $(BENCHES)  ## every measurement in tests/bench; one of them: make bench-<name>
	$(if $(BENCHES),,@echo "nothing to measure yet: tests/bench holds no file")

bench-%: environment
	$(VENV_PYTHON) -m tests.bench.$* $(ARGS)

lint: environment  ## style: ruff check and ruff format --check
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

clean:  ## remove caches and build output; .venv and runs stay
	rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
