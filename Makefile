# Wares. `make demo` and `make test` do all the set-up that they need.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell $(name) -c "" 2>/dev/null && echo $(name))) python3)
UV_VERSION := 0.13.9
DEMO_LAKE ?= lake
LOCK ?= requirements.lock
LOCKED := .tools/uv-command pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet --custom-compile-command "make lock"
# Two processes: a Spark session keeps one core busy with planning, and a training rank has one thread.
BESIDE := -n 2 --dist loadgroup --no-loadscope-reorder
export PYTHONPATH := $(CURDIR)/lib

.PHONY: help demo test check proofs bench-lake bench-model quality faults notebooks lint setup lock clean
.DEFAULT_GOAL := help

help:  ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: setup  ## Run the whole way on Complete Journey, into ./lake (DEMO_LAKE=DIR for another place)
	./spark-submit.sh jobs/suite.py --source completejourney --set lake.root=$(DEMO_LAKE)

test: setup  ## Run all tests
	.venv/bin/python -m pytest $(BESIDE)

check: setup  ## Check the style, and run the tests that need no Spark
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest $(BESIDE) -m "not slow and not spark"

proofs: setup  ## Run the slow proofs: random cases of lineage, flow, cutting by key and refresh by change; ranks that come and go; the notebooks in Jupyter
	.venv/bin/python -m pytest -m slow

bench-lake: setup  ## Measure what the lake costs, beside its goals (BENCH="--copies 10" for ten times as many rows)
	PYTHONPATH=lib:tests/bench .venv/bin/python tests/bench/bench_lake.py $(BENCH)

bench-model: setup  ## Measure what training and scoring cost, beside their goals (DEMO_LAKE=DIR for another lake)
	PYTHONPATH=lib:tests/bench .venv/bin/python tests/bench/bench_model.py --lake $(DEMO_LAKE) $(BENCH)

quality: setup  ## Train the model of the demo's lake with 5 seeds, and rank the test days (QUALITY="--seeds 1 --role validation")
	PYTHONPATH=lib .venv/bin/python tests/bench/bench_quality.py --lake $(DEMO_LAKE) $(QUALITY)

faults: setup  ## Kill runs and fill disks at random, and compare the tables (FAULTS="--seed 7 --runs 200" for others)
	PYTHONPATH=lib:tests:tests/lake .venv/bin/python tests/faults/faults.py $(FAULTS)

notebooks: setup  ## Write notebooks/*.ipynb, for Jupyter
	.venv/bin/python notebooks/to_jupyter.py $(wildcard notebooks/[0-9]*.py)

lint: setup  ## Check the style
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

setup: .venv/.jars  ## Make the environment and fetch the jars (demo and test do this too)

# What the system must have, before anything is downloaded.
.tools/.system: conf/check-system.sh
	@conf/check-system.sh "$(PYTHON)"
	@mkdir -p .tools && touch $@

.tools/.uv: .tools/.system
	@if command -v uv >/dev/null && [ "$$(uv --version | cut -d' ' -f2)" = "$(UV_VERSION)" ]; then \
	    ln -sf "$$(command -v uv)" .tools/uv-command; \
	else \
	    echo "setting up: uv $(UV_VERSION), into .tools"; \
	    $(PYTHON) -m venv .tools/uv && .tools/uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) && ln -sf uv/bin/uv .tools/uv-command; \
	fi
	@touch $@

.venv/.packages: .tools/.uv $(LOCK)
	@echo "setting up: Python packages, into .venv (Horovod is compiled, which takes a few minutes)"
	@[ -x .venv/bin/python ] || .tools/uv-command venv --quiet --python $(PYTHON) .venv
	@# Compiled once here: each start of TensorFlow would else compile it again where Python may not write beside it.
	@.tools/uv-command pip sync --quiet --compile-bytecode --python .venv/bin/python --require-hashes $(LOCK)
	@touch $@

.venv/.jars: .venv/.packages
	@echo "setting up: Delta's jars, into .tools/ivy"
	@.venv/bin/python -m wares.lake.session >.tools/jars.log 2>&1 || { tail -n 20 .tools/jars.log >&2; exit 1; }
	@touch $@

lock: .tools/.uv  ## Resolve the dependencies of pyproject.toml into requirements.lock, and for GPUs into requirements-gpu.lock
	$(LOCKED) --group dev -o requirements.lock
	$(LOCKED) --group dev --group gpu --override <(echo "tensorflow-cpu; python_version < '3'") -o requirements-gpu.lock

clean:  ## Remove the environment and what was fetched; lakes stay
	rm -rf .venv .tools .pytest_cache .ruff_cache .hypothesis
