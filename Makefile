# `make demo` and `make test` are each the only command on a fresh clone: what they need is set up first, in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCH_READY := .venv/.ready-bench
PEERS_READY := $(patsubst bench/serving/peers/%.txt,.opara-cache/peers/%/.ready,$(sort $(wildcard bench/serving/peers/*.txt)))
# pip shows its progress to a person and only its errors to a log
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,-qq)

# Exact, so that every machine of a kind runs the same. 2.13.0 finds the CPU build where the index has it;
# 2.11.0 is what the kernels are verified with on GPUs.
TORCH_CPU := 2.13.0
TORCH_GPU := 2.11.0

.DEFAULT_GOAL := help
.PHONY: help setup demo serve train test test-deploy gpu-test bench-engine bench-engine-aten bench-simulator bench-warm-start bench-allocation bench-serving bench-peers bench-end-to-end bench-rolling-restart bench-spread bench-capacity bench-soak bench-copies lint format types imports metrics-doc prometheus-rule dashboards dashboard-pictures bench-metrics bench-tracing stubs stubs-check check rehearse-image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-21s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv and install everything into it

$(READY): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv
	@if nvidia-smi >/dev/null 2>&1; then torch=$(TORCH_GPU) extras=dev,gpu; else torch=$(TORCH_CPU) extras=dev; fi; \
	echo "installing torch $$torch and the packages of constraints.txt into .venv"; \
	$(PIP) "torch==$$torch" --editable ".[$$extras]" --constraint constraints.txt
	@touch $@

$(BENCH_READY): $(READY)
	@torch=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch").partition("+")[0])'); \
	echo "installing the models of the benchmarks for torch $$torch into .venv"; \
	$(PIP) "torch==$$torch" --editable ".[bench]" --constraint constraints.txt
	@touch $@

demo: setup ## serve the example, send it real images, print what came back
	$(BIN)/python -m examples.demo

serve: setup ## serve the example until Ctrl-C: gRPC on 127.0.0.1:50051, metrics on :9464
	$(BIN)/opara-server serve --models examples/models

train: setup ## train the example's network again
	$(BIN)/python -m examples.train_digits

test: setup ## run all tests but those with other programs (test-deploy), in three processes at most; those that need a GPU are skipped without one
	$(BIN)/python -m pytest -n auto --maxprocesses 3 --dist loadfile --ignore tests/deploy_live --ignore tests/balancing_live

gpu-test: setup ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

bench-engine: setup $(BENCH_READY) ## every system on every model, tables and plots; goes on where it stopped; needs a GPU
	$(BIN)/python -m bench.engine

bench-engine-aten: setup $(BENCH_READY) ## every policy against the sequential CUDA Graph; needs a GPU
	$(BIN)/python -m bench.engine_aten --graphs bench/data

bench-simulator: setup $(BENCH_READY) ## how well the simulator predicts random schedules; needs a GPU
	$(BIN)/python -m bench.simulator

bench-warm-start: setup $(BENCH_READY) ## how long the server takes to be READY, first and again; needs a GPU
	$(BIN)/python -m bench.warm_start

bench-allocation: setup ## how long Algorithm 1 and Nimble take to allocate streams
	$(BIN)/python -m bench.allocation_time

bench-serving: setup bench-peers ## the request path beside other servers; half an hour, needs h2load and four idle cores
	$(BIN)/python -m bench.serving

bench-end-to-end: setup ## from a call to its answer on a GPU, beside plain servers of the same model; needs h2load
	$(BIN)/python -m bench.end_to_end

bench-rolling-restart: setup ## servers behind proxies, restarted and killed under load: which requests fail; ten minutes, needs the proxies
	$(BIN)/python -m bench.rolling_restart

bench-spread: setup ## how evenly calls are spread over three servers behind proxies, and by a name; two minutes, needs the proxies
	$(BIN)/python -m bench.spread

bench-capacity: setup ## replicas for a load: one server measured, several predicted from it and measured, fleets simulated; ten minutes, needs the proxies
	$(BIN)/python -m bench.capacity

bench-soak: setup ## a million requests, each with numbers of its own: not one wrong answer, and nothing grows; minutes
	$(BIN)/python -m bench.soak

bench-copies: setup ## in how many places a large tensor lies on its way, and what requests leave behind; minutes
	$(BIN)/python -m bench.copies

bench-peers: $(PEERS_READY) ## install the other servers, each into an environment of its own under .opara-cache

.opara-cache/peers/%/.ready: bench/serving/peers/%.txt
	$(PYTHON) -m venv --clear $(@D)
	@echo "installing $$(grep == $< | paste -sd ' ') into $(@D)"; \
	$(@D)/bin/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,-qq) --requirement $<
	@touch $@

test-deploy: setup ## the tests of images, manifests and dashboards, with real programs beside the server (Prometheus, Alertmanager, Envoy, nginx, HAProxy) where they are
	$(BIN)/python -m pytest tests/deploy tests/deploy_live tests/balancing_live

rehearse-image: ## the Dockerfile's steps in chroots; needs root, debootstrap, gigabytes; REHEARSE="--target cuda --build-arg ..."
	$(PYTHON) -m deploy.image.rehearse --work .opara-cache/image $(REHEARSE)

lint: setup ## style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup ## mend the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## which package may import which
	$(BIN)/lint-imports

metrics-doc: setup ## write docs/metrics.md, the table of all metrics, from the code
	$(BIN)/python -m opara_server.observe.reference docs/metrics.md

prometheus-rule: setup ## write the Prometheus Operator's resource from deploy/prometheus/rules.yml
	$(BIN)/python -m deploy.manifests.rules

dashboards: setup ## write deploy/grafana/dashboards from the code
	$(BIN)/python -m deploy.grafana

dashboard-pictures: setup ## draw the dashboards for docs/, of servers under load and of a recorded one; needs Prometheus and Alertmanager
	$(BIN)/python -m bench.observing

bench-tracing: setup ## what tracing costs of the throughput at saturation
	$(BIN)/python -m bench.tracing_cost measure

bench-metrics: setup ## what metrics cost of the throughput at saturation
	$(BIN)/python -m bench.metrics_cost measure

stubs: ## generate the gRPC stubs from protos/
	bash protos/generate.sh

stubs-check: ## compare the committed stubs with what protos/ gives
	bash protos/generate.sh --check

check: lint types imports stubs-check ## everything but the tests

clean: ## remove what was made, .venv too
	rm -rf .venv .venv-stubs dist build .opara-cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
