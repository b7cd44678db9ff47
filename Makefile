# Everything a fresh clone needs: Python 3.11+, g++ and make.
#
#   make demo     set up, then learn maps between languages on a real model, apply them, and write demo/report.html
#                 DATA=<folder of SIB-200> takes its topics instead of the names of emoji
#   make test     set up, then run the whole test suite
#   make test-gpu-emulated    execute the GPU kernels in the emulators of emulator/ (no GPU needed); ONE_IN=3 takes
#                 the first of three cases of each test
#   make gpu-traffic          count in the emulators what the GPU kernels move; rewrites docs/gpu_traffic.csv
#   make test-serve           the plugin for vLLM, in an environment of its own with vLLM for CPUs; takes ONE_IN too
#   make demo-serve           a server with three languages: ask it, print what it answers, stop it
#   make twin                 the environment of a GPU machine with the oldest supported torch, and what can be tried in it
#   make gpu                  build, check and measure on this machine's GPU with the installed torch, within 430 s
#   make gpu-pack             prepare what travels to a machine with a GPU, and print the command to run there
#   make lint     formatting, lint and types
#   make report-arguments     functions of more than eight parameters; a report, nothing fails
#   make setup    the set-up alone: .venv, CPU torch, the compiled extension, the model, the parallel text
#
# MODEL=smollm2 (default) | gemma3 | <directory of a transformers model>
# PYTHON=python3.12 picks the interpreter. TORCH_INDEX=https://download.pytorch.org/whl/cpu picks where torch comes from.

PYTHON ?= python3
MODEL ?= smollm2
VENV := .venv
BIN := $(VENV)/bin
SERVE := .venv-serve
PIP := $(BIN)/python -m pip --disable-pip-version-check
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
CXX_TESTS := $(shell find tests emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu')
export PYTHONUNBUFFERED := 1

.PHONY: setup demo demo-serve test test-serve test-gpu-emulated gpu-traffic twin gpu gpu-pack lint report-arguments bench bench-regression clean

setup: $(VENV)/.installed
	$(BIN)/python -m demo.fetch --model $(MODEL)

demo: setup
	$(BIN)/python -m demo.run --model $(MODEL) $(if $(DATA),--data $(DATA))

test: $(VENV)/.installed
	$(BIN)/python -m demo.fetch --model gemma3
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not gpu_emulated and not twin"  # one core per worker

test-gpu-emulated: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m gpu_emulated --one-in $(or $(ONE_IN),1)

gpu-traffic: $(VENV)/.installed
	PYTHONPATH=.:tests/helpers:tests/csrc $(BIN)/python -m kernel_traffic

# vLLM has no wheel for some machines; that is said, and is no failure.
test-serve: $(VENV)/.installed
	@if $(BIN)/python -m demo.serving_environment --check; then \
	  $(MAKE) $(SERVE)/.installed && $(SERVE)/bin/python -m pytest tests/serving --one-in $(or $(ONE_IN),1); \
	else echo "SKIPPED: nothing was tested inside vLLM"; fi

demo-serve: $(VENV)/.installed $(SERVE)/.installed
	$(SERVE)/bin/python -m demo.serve --model $(if $(filter file,$(origin MODEL)),smollm2,$(MODEL))

twin: $(VENV)/.installed
	$(PYTHON) tests/twin/build.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m twin tests/twin

# No virtual environment and no network: what is measured is the torch and the CUDA that the machine has.
gpu:
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu

gpu-pack: $(VENV)/.installed
	PYTHONPATH=. $(BIN)/python -m benchmarks.gpu.pack

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/build_api.py --check
	$(BIN)/clang-format --dry-run -Werror $(CSRC) $(CXX_TESTS)

report-arguments: $(VENV)/.installed
	$(BIN)/ruff check --exit-zero --select PLR0913 --config 'lint.pylint.max-args = 8' --output-format concise incline_fast

bench: $(VENV)/.installed
	$(BIN)/incline-fast bench

bench-regression: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks/test_regression.py

clean:
	rm -rf build dist *.egg-info incline_fast/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch comes first and alone: its index can be chosen, and the extension is compiled against it. Compiled in place, so
# that what nvcc made is kept for the next time and for the twin.
$(VENV)/.torch: constraints.txt
	@echo "== creating $(VENV) and installing torch"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q "setuptools>=77" wheel ninja
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	touch $@

$(SERVE)/.vllm: demo/serving_environment.py constraints-serve.txt
	@echo "== creating $(SERVE) and installing vLLM for CPUs"
	test -x $(SERVE)/bin/python || $(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m demo.serving_environment
	touch $@

# The libraries that lie in the folder serve every torch from 2.11 on, and every environment that is given the folder.
$(SERVE)/.installed: $(SERVE)/.vllm $(VENV)/.installed
	$(SERVE)/bin/python -m pip install -q "setuptools>=77" wheel
	INCLINE_FAST_BUILD=0 $(SERVE)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(CSRC)
	@echo "== compiling and installing incline_fast"
	CFLAGS=-Werror $(BIN)/python setup.py -q build_ext --inplace
	INCLINE_FAST_BUILD=0 $(PIP) install -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@
