# `make` lists the targets. Variables: TORCH (any pip requirement for torch), PYTHON (3.11 or newer), VENV, JOBS (miniatures).
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
SCRIPTS = $(shell grep -rlE --exclude=*.py --exclude=*.md --exclude=*.txt '^#!.*[/ ](ba)?sh$$' .ci docker launch tests pipelines standins)
export TORCH PYTHON VENV
# As speechkd itself sets it: spinning threads starve each other on few cores.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo record devcluster test test-system torture bench bench-gpu miniature lint types contracts unit standins schema clean

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup:  ## the virtual environment, once
	@.ci/setup

demo: setup  ## the whole pipeline on synthetic speech, two ranks; the second time it skips what is done
	$(BIN)/speechkd demo

record: setup  ## the finished demo's figures: pipelines/demo_results.json and the tables of both READMEs
	$(BIN)/python pipelines/record_demo.py runs/demo

devcluster:  ## a real SLURM of two nodes on this machine (stop it with launch/devcluster/stop.sh)
	@launch/devcluster/start.sh

test: lint types contracts unit  ## what a change must pass: style, types, import contracts, tests

test-system: setup  ## servers, kills, browser and rebuilds
	@if [ "$$(id -u)" = 0 ] && ! { command -v chromium && command -v slurmctld && command -v munged && command -v ffmpeg; } >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium ffmpeg slurmctld slurmd slurm-client munge >/dev/null || true; fi
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "(system or slow) and not (torture or alone)"
	$(BIN)/python -m pytest -m "alone and not torture"

torture: setup  ## the long forms: the demo's promises
	$(BIN)/python -m pytest -m torture

bench: setup  ## reading, writing, resuming and the fused ops, beside other libraries on the same inputs
	@tests/bench/install $(VENV)
	$(VENV)-bench/bin/python -W ignore -m tests.bench.reading
	$(BIN)/python -m tests.bench.resume
	$(VENV)-bench/bin/python -W ignore -m tests.bench.heads
	$(VENV)-bench/bin/python -W ignore -m tests.bench.projector
	$(VENV)-bench/bin/python -W ignore -m tests.bench.cka_qformer

bench-gpu: setup  ## the kernels beside their floors and other libraries' losses, on one GPU
	@$(BIN)/python -m tests.bench.gpu --look
	@tests/bench/install $(VENV)
	$(VENV)-bench/bin/python -W ignore -m tests.bench.gpu

miniature: setup  ## a paper's effect on small parts: make miniature PAPER=wong26a JOBS=2 (runs side by side)
	$(BIN)/python pipelines/miniatures/run.py $(PAPER) --jobs $(JOBS)

lint: setup  ## flake8 and isort; hadolint, shellcheck and the compose schema
	$(BIN)/flake8
	$(BIN)/isort --check-only --diff .
	$(BIN)/hadolint docker/Dockerfile docker/mlflow.Dockerfile
	$(BIN)/shellcheck --external-sources $(SCRIPTS)
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

types: setup  ## mypy
	$(BIN)/mypy

contracts: setup  ## who may import whom
	$(BIN)/lint-imports

unit: setup  ## the tests alone, a file at a time on each of two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not system and not slow and not torture"

standins: setup  ## rebuild the small teacher and encoder that ship in standins/
	$(BIN)/python standins/build_llm.py --out standins/llm
	$(BIN)/python standins/build_encoder.py --out standins/encoder

schema: setup  ## the JSON schema of cards, for editors
	$(BIN)/python -m speechkd.data.card_schema shards/card.schema.json

clean:  ## remove caches and build leftovers; keeps the environment and runs
	rm -rf .mypy_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
