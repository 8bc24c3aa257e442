# Each target makes what it needs: .venv, when it is missing or its ingredients changed; the native core, when its
# sources changed. PYTHON chooses the Python, PIPERT_CUDA=OFF|ON|AUTO whether the core is built with CUDA.
PYTHON ?= python3
# Where .venv is activated, the Python that it was made with.
override PYTHON := $(or $(shell PATH="$$(printf %s "$$PATH" | sed 's|$(CURDIR)/.venv/bin:||g')" \
	sh -c 'command -v $(PYTHON)'),$(PYTHON))
PYTEST_ARGS ?=
PIP_ARGS ?=
FUZZ_SECONDS ?= 120

# "KEY HAS_TORCH": .venv is stale when the key changes; a torch that PYTHON has is used, not installed again.
INGREDIENTS := $(shell $(PYTHON) -c 'import hashlib, importlib.util, os, sys; \
	torch = importlib.util.find_spec("torch") is not None; \
	key = repr((sys.version, sys.prefix, torch, os.getcwd(), open("requirements-dev.txt").read())); \
	print(hashlib.sha256(key.encode()).hexdigest()[:16], "torch" if torch else "")')
HAS_TORCH := $(word 2,$(INGREDIENTS))
READY := .venv/ready-$(firstword $(INGREDIENTS))
INSTALLED := .venv/installed
MEGATRON := .venv/megatron
NATIVE := $(shell find csrc -type f) setup.py pyproject.toml pipert/ops.py pipert/version.py
CXX_FILES := $(shell find csrc tests/native tests/fake -name '*.h' -o -name '*.cpp' -o -name '*.cu')
CMAKE_TESTS := cmake -S csrc -G Ninja -DPIPERT_BUILD_TESTS=ON -DPIPERT_CUDA=OFF
# ThreadSanitizer cannot cope with much address randomisation.
FIXED_ADDRESSES := $(shell setarch -R true 2>/dev/null && echo setarch -R)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIPERT_BUILD_DIR := $(CURDIR)/build/extension

.PHONY: help setup run test megatron bars bench lint format peers gpu gpu-test gpu-bench native-test tsan fuzz clean FORCE

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(INSTALLED)  ## .venv with the pinned tools, and pipert in it (editable)

run: $(INSTALLED)  ## train a small GPT over four pipeline ranks and verify it bit by bit (about two minutes)
	pipert train --ranks 4 --schedule zb-v --verify

test: $(INSTALLED) $(MEGATRON)  ## all tests: Python, C++, several processes
	python -m pytest $(PYTEST_ARGS)

megatron: $(INSTALLED) $(MEGATRON)  ## the drop-in engine on megatron-core: its tests, a run, a comparison
	PIPERT_MEGATRON_ALL=1 python -m pytest tests/megatron $(PYTEST_ARGS)
	torchrun --standalone --nproc-per-node 4 -m pipert.megatron --pipert-schedule zb-1p \
	  tests/megatron/pretrain_gpt.py --pipeline-model-parallel-size 4
	pipert verify-dropin --nproc-per-node 4 --schedule zb-v -- tests/megatron/pretrain_gpt.py \
	  --pipeline-model-parallel-size 4 --virtual-pipeline-model-parallel-size 2

bars: $(INSTALLED)  ## the tests that draw samples, with all of them: minutes
	PIPERT_RANDOM_PROGRAMS=10000 PIPERT_ALL_REORDERINGS=1 python -m pytest \
	  tests/unit/test_random_programs.py tests/unit/test_reordered_edges.py $(PYTEST_ARGS)

bench: $(INSTALLED)  ## the benchmarks, beside torch.distributed.pipelining
	python -m pytest tests/bench/bench_*.py --benchmark-only --benchmark-columns=median,rounds -s $(PYTEST_ARGS)

lint: $(INSTALLED) pipert/kernels  ## format, lint and types, of Python and C++
	ruff format --check .
	ruff check .
	clang-format --dry-run -Werror $(CXX_FILES)
	mypy
	python -m mypy.stubtest pipert._core --allowlist csrc/bindings/stubtest_allowlist.txt

# mypy names a module by its path alone, and knows nothing of setup.py's package_dir.
pipert/kernels:
	ln -s ../kernels $@

format: $(READY)  ## rewrite the sources as `make lint` wants them
	ruff format .
	ruff check --fix .
	clang-format -i $(CXX_FILES)

peers:  ## wheels of the layers to measure beside, for a machine without a network; PIP_ARGS: for which Python
	$(PYTHON) -m pip download --quiet --no-deps --only-binary :all: -r profiles/peers/requirements.txt -d profiles/peers $(PIP_ARGS)

gpu:  ## on a machine with a GPU: build, test, train, measure; with the Python that is there: no .venv, no network
	$(PYTHON) profiles/gpu_check.py

gpu-test:  ## the part of it that tests
	$(PYTHON) profiles/gpu_check.py test

gpu-bench:  ## the part of it that measures
	$(PYTHON) profiles/gpu_check.py bench

native-test: $(READY)  ## the C++ tests alone
	$(CMAKE_TESTS) -B build/native
	cmake --build build/native
	ctest --test-dir build/native --output-on-failure

tsan: $(READY)  ## the C++ tests under ThreadSanitizer
	$(CMAKE_TESTS) -B build/tsan -DPIPERT_SANITIZE=thread
	cmake --build build/tsan
	$(FIXED_ADDRESSES) ctest --test-dir build/tsan --output-on-failure

fuzz: $(READY)  ## the plan loader under ASan and UBSan, for FUZZ_SECONDS
	$(CMAKE_TESTS) -B build/fuzz -DPIPERT_SANITIZE=address,undefined
	cmake --build build/fuzz --target fuzz_plan
	build/fuzz/fuzz_plan $(FUZZ_SECONDS)

clean:  ## remove everything that make made
	rm -rf .venv build dist *.egg-info pipert/_core.*.so .mypy_cache .ruff_cache .pytest_cache .benchmarks .hypothesis

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit("pipert needs Python 3.10 or newer: make PYTHON=..." if sys.version_info < (3, 10) else 0)'
	rm -rf .venv
	$(PYTHON) -m venv $(if $(HAS_TORCH),--system-site-packages) .venv
ifdef HAS_TORCH
	@# Where PYTHON is itself a virtual environment, its packages are no system packages.
	$(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(echo .venv/lib/python*/site-packages)/caller.pth
	grep -v '^torch==' requirements-dev.txt > .venv/requirements.txt
	python -m pip install --quiet --ignore-installed -r .venv/requirements.txt
else
	python -m pip install --quiet -r requirements-dev.txt
endif
	touch $@

$(MEGATRON): $(READY) requirements-megatron.txt
	@# Without its dependencies, which .venv has: it would bring a torch of its own.
	python -m pip install --quiet --no-deps --only-binary :all: -r requirements-megatron.txt \
	  || echo "megatron-core cannot be installed for this Python: the tests of the drop-in engine are skipped"
	touch $@

$(INSTALLED): $(READY) $(NATIVE) $(if $(wildcard pipert/_core.*.so),,FORCE)
	python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@
