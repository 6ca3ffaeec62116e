# One door: `make` lists what there is. Every target sets up what it needs, from a clean clone on,
# in a virtual environment of its own (.venv).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What to test, and where: `make test T=tests/sim`, `make test DEVICE=sim`, `make test ARGS=-x`.
T ?=
DEVICE ?=
ARGS ?=
# Where `make test-gpu` writes what came of it.
GPU_JSON ?= bench/results/test-gpu.json
# And `make bench-gpu` what it measured; its plots go beside.
BENCH_JSON ?= bench/results/bench-gpu.json

# Exactly these: an open range of torch may bring gigabytes of CUDA libraries to a machine without a
# GPU. All of them can be imported without one; Numba's kernels then run in its CUDA simulator.
# NumPy 2.5 dropped a function that this numba-cuda needs.
FRAMEWORKS := torch==2.13.0 cupy-cuda13x==14.2.0 numba-cuda==0.30.4 nvidia-ml-py==13.615.71 'numpy<2.5'

# A stamp says "installed, from the pyproject.toml that was current then".
BASE := $(VENV)/.base-installed
WITH_FRAMEWORKS := $(VENV)/.frameworks-installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv test test-gpu lint check format demo bench bench-gpu proof mutants scorecard clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(BASE) $(WITH_FRAMEWORKS)  ## create .venv with all that development needs, the frameworks included

test: $(BASE) $(WITH_FRAMEWORKS)  ## run every test, the examples in docstrings and README included
	$(BIN)/python -m pytest $(if $(DEVICE),--device $(DEVICE)) $(ARGS) $(T)

# The machine's own Python, which has what is needed: nothing is installed where the GPU is.
test-gpu:  ## run the CUDA suite on a GPU, in four passes; installs nothing, takes under ten minutes
	PYTHONPATH=. $(PYTHON) -m tests.gpu.passes --json $(GPU_JSON) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

lint: $(BASE)  ## check style, types and the rule who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## all that a change must pass; needs no GPU

format: $(BASE)  ## mend what ruff can mend by itself
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

demo: $(BASE) $(if $(findstring cuda,$(ARGS)),$(WITH_FRAMEWORKS))  ## photographs through four stages; writes gpufut-demo/timeline.html and a contact sheet
	$(BIN)/python -m gpufut demo $(ARGS)

bench: $(BASE) $(WITH_FRAMEWORKS)  ## measure futures and hand-offs beside torch.futures and others; under ten minutes
	$(BIN)/python -m gpufut bench --json bench/results/bench.json --plots bench/results $(ARGS)

# As test-gpu. What matplotlib is not there to draw, `gpufut bench --show FILE --plots DIR` draws elsewhere.
bench-gpu:  ## measure hand-offs and the device itself on a GPU; installs nothing, takes under ten minutes
	PYTHONPATH=. $(PYTHON) -m gpufut bench --on cuda --json $(BENCH_JSON) --plots $(dir $(BENCH_JSON)) $(ARGS)

proof: $(BASE) $(WITH_FRAMEWORKS)  ## test, explore, search and break at length: twenty minutes, `make proof ARGS='--minutes 1'` for less
	$(BIN)/python -m tests.proof $(ARGS)

mutants: $(BASE) $(WITH_FRAMEWORKS)  ## plant hundreds of faults in copies, one by one: the tests must find every one; under ten minutes
	$(BIN)/python -m tests.mutants $(ARGS)

# gpufut on the simulated device, torch.futures on the CPU, and what was recorded elsewhere. That a
# check fails, exit code 1, is a result here and not an error.
KIT := -m gpufut.testing.conformance
REPORTS := build/scorecard
scorecard: $(BASE) $(WITH_FRAMEWORKS)  ## ask gpufut and torch.futures whether they keep the contract; writes docs/scorecard.md
	$(BIN)/python $(KIT) --json $(REPORTS)/gpufut-sim.json
	$(BIN)/python $(KIT) --implementation torch.futures --device cpu --json $(REPORTS)/torch-cpu.json || test $$? -eq 1
	$(BIN)/python $(KIT) --page docs/scorecard.md $(REPORTS)/gpufut-sim.json $(REPORTS)/torch-cpu.json $(sort $(wildcard docs/scorecard/*.json))

clean:  ## remove .venv and everything that was made
	rm -rf $(VENV) build dist gpufut-demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml | $(BIN)/python
	@echo "installing gpufut and its tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(WITH_FRAMEWORKS): $(BASE)
	@echo "installing $(FRAMEWORKS) into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(FRAMEWORKS)
	@touch $@
