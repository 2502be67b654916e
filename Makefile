# Wares. `make demo` and `make test` do all the set-up that they need.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell $(name) -c "" 2>/dev/null && echo $(name))) python3)
UV_VERSION := 0.13.9
DEMO_LAKE ?= lake
FULL_LAKE ?= lake-full
LOCK ?= requirements.lock
LOCKED := .tools/uv-command pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet --custom-compile-command "make lock"
# Two processes: a Spark session keeps one core busy with planning, and a training rank has one thread.
BESIDE := -n 2 --dist loadgroup --no-loadscope-reorder
export PYTHONPATH := $(CURDIR)/lib

.PHONY: help demo demo-full test check proofs bench-lake bench-model quality faults notebooks lint setup lock clean
.DEFAULT_GOAL := help

help:  ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: setup  ## Run the whole way on a small shop, two nights of it, into ./lake (DEMO_LAKE=DIR for another place)
	@.venv/bin/python -m wares.demo first demo
	./spark-submit.sh jobs/suite.py --settings conf/demo.yaml --set lake.root=$(DEMO_LAKE) --show-users
	@.venv/bin/python -m wares.demo second demo
	./spark-submit.sh jobs/suite.py --settings conf/demo.yaml --set lake.root=$(DEMO_LAKE) --show-users --skip train

demo-full: setup  ## Run the whole way on all of Complete Journey, into ./lake-full (FULL_LAKE=DIR): about 20 minutes
	./spark-submit.sh jobs/suite.py --source completejourney --set lake.root=$(FULL_LAKE) --show-users

test: setup  ## Run all tests
	.venv/bin/python -m pytest $(BESIDE)

check: lint  ## Check the style, and run the tests that need no Spark
	.venv/bin/python -m pytest $(BESIDE) -m "not slow and not spark"

proofs: setup  ## Run the slow proofs: random cases of lineage, flow, cutting by key and refresh by change; ranks that come and go; the notebooks in Jupyter
	.venv/bin/python -m pytest -m slow

bench-lake: setup  ## Measure what the lake costs, beside its goals (BENCH="--copies 10" for ten times as many rows)
	PYTHONPATH=lib:tests/bench .venv/bin/python tests/bench/bench_lake.py $(BENCH)

bench-model: setup  ## Measure what training and scoring cost, beside their goals (on the lake of `make demo-full`)
	PYTHONPATH=lib:tests/bench .venv/bin/python tests/bench/bench_model.py --lake $(FULL_LAKE) $(BENCH)

quality: setup  ## Train the model of the lake of `make demo-full` with 5 seeds, and rank the test days (QUALITY="--seeds 1 --role validation")
	PYTHONPATH=lib .venv/bin/python tests/bench/bench_quality.py --lake $(FULL_LAKE) $(QUALITY)

faults: setup  ## Kill runs and fill disks at random, and compare the tables (FAULTS="--seed 7 --runs 200" for others)
	PYTHONPATH=lib:tests:tests/lake .venv/bin/python tests/faults/faults.py $(FAULTS)

notebooks: setup  ## Write notebooks/*.ipynb, for Jupyter
	.venv/bin/python notebooks/to_jupyter.py $(wildcard notebooks/[0-9]*.py)

lint: setup  ## Check the style
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

setup: .venv/.ready  ## Make the environment and fetch the jars (demo and test do this too)

.venv/.ready: conf/setup.sh conf/check-system.sh $(LOCK)
	@conf/setup.sh "$(PYTHON)" "$(LOCK)" "$(UV_VERSION)"
	@touch $@

lock: setup  ## Resolve the dependencies of pyproject.toml into requirements.lock, and for GPUs into requirements-gpu.lock
	$(LOCKED) --group dev -o requirements.lock
	$(LOCKED) --group dev --group gpu --override <(echo "tensorflow-cpu; python_version < '3'") -o requirements-gpu.lock

clean:  ## Remove the environment and what was fetched; lakes stay
	rm -rf .venv .tools .pytest_cache .ruff_cache .hypothesis
