# Every target sets itself up: a .venv with torch 2.13.0, or BCOS_PYTHON=/path/to/python with a torch of its own.

ARGS ?=

ifdef BCOS_PYTHON
  PYTHON := $(BCOS_PYTHON)
  READY := build/.ready$(subst /,-,$(BCOS_PYTHON))
else
  PYTHON := .venv/bin/python
  READY := .venv/.ready
endif

# make runs from the repository, and so does everything it starts: no installation, the sources are the package
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
# many containers forbid bytecode: every process that a test starts would compile the package anew, and pytest its tests
export PYTHONDONTWRITEBYTECODE :=
NATIVE := $(shell find csrc -type f 2>/dev/null)

.PHONY: help setup demo test check thorough sanitize lint docs bench gpu plans triton torch wheel release cuda rehearse clean always
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10 | fold -sw 70 | sed '/^[a-z]*  /!s/^/          /'

setup: $(READY)-test build/.extension ## the environment of the tests and the compiled extension

demo: $(READY)-demo build/.extension ## reference models on real images, as they are and accelerated; writes demo.png (ARGS="--quick")
	$(PYTHON) -m bcos_kernels demo $(ARGS)

# tests run in so many processes; those that share a build or a result stay together. WORKERS=1 is pytest alone
WORKERS ?= 2
SHARED := $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS))

test: setup ## the whole test suite (ARGS="-k conv2d" WORKERS=4)
	$(PYTHON) -m pytest -q $(SHARED) $(ARGS)

check: setup ## the fast part of the test suite, in two minutes (ARGS="-k conv2d")
	$(PYTHON) -m pytest -q -m "not slow and not gpu" $(SHARED) $(ARGS)

thorough: setup ## what make test leaves out: GPU kernels compiled for GPUs other than Hopper, further combinations of options
	$(PYTHON) -m pytest -q -m thorough --ignore tests/gpu_kernels $(SHARED) $(ARGS)

# A build of its own, whose folder is the working directory, so that its package is imported. Sanitizers keep loops from
# being vectorised, and sums in one register are less exact than the sums in many that the tests of long sums ask for,
# test_accuracy.py among them; the cost model's test needs a package in a checkout.
LEFT_OUT := long_sums_of_few_different_values or short_sums or (error_is_at_most_the_authors_own and many_pixels) or the_cost_model_predicts
SANITIZED ?= axes bad_input bfloat16 cpu_kernels defects derivatives dynamic_alignment extremes inplace modules \
	norm orders pairs parity products_bfloat16 recorded remembered repeated rows second traps

sanitize: setup ## tests of the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer of gcc (SANITIZED="norm parity")
	@mkdir -p build/sanitize
	BCOS_KERNELS_SANITIZE=1 BCOS_KERNELS_CUDA=0 BCOS_KERNELS_REQUIRE_C=1 $(PYTHON) setup.py --quiet \
		build --build-base build/sanitize --build-lib build/sanitize/lib > build/sanitize.log 2>&1 || { cat build/sanitize.log; exit 1; }
	cd build/sanitize/lib && LD_PRELOAD="$(foreach library,asan stdc++,$(shell gcc -print-file-name=lib$(library).so))" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(abspath $(PYTHON)) -m pytest -q \
		--capture=sys -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(SANITIZED:%=$(CURDIR)/tests/test_%.py) \
		-k "not ($(LEFT_OUT))" $(ARGS)

lint: $(READY)-test $(READY)-lint docs ## ruff, mypy, clang-format, codespell and the build of the documentation, as checks
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m codespell_lib
	PATH="$(dir $(PYTHON)):$$PATH" clang-format --dry-run -Werror $(filter %.c %.cpp %.h %.cu %.cuh,$(NATIVE) $(shell find tests/cuda_emulation tests/cudnn tests/driver tests/runtime benchmarks/cudnn_plans -type f))

docs: $(READY)-test ## the documentation as a site in build/site; a broken link or any other warning fails
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs --quiet build

bench: $(READY)-explain build/.extension ## times of layers, models and curves on this machine, and the tables of README and docs; half an hour (ARGS="--quick")
	$(PYTHON) -m bcos_kernels bench $(or $(ARGS),--scaling)
	$(PYTHON) -m bcos_kernels bench report $$($(PYTHON) -m bcos_kernels bench $(or $(ARGS),--scaling) --where) \
		$(if $(ARGS),,--readme README.md docs/benchmarks.md)

gpu: ## on this machine's GPU, 9 minutes each: is it right, how fast, and the rest (ARGS=right | fast | tune, OUT=/a/folder)
	$(or $(BCOS_PYTHON),python3) -m benchmarks.gpu $(ARGS)

plans: setup ## the plans of cuDNN's graphs, built for three GPUs without one; downloads a gigabyte (ARGS="--arch sm_90")
	$(PYTHON) -m benchmarks.cudnn_plans $(ARGS)

TRITON ?= 3.6.0

triton: setup ## the Triton tests on another Triton, into build/ (TRITON=3.9.0)
	$(PYTHON) -m pip install --quiet --no-deps --upgrade --target build/triton-$(TRITON) triton==$(TRITON) 'numpy<2.4'
	PYTHONPATH="$(CURDIR)/build/triton-$(TRITON):$$PYTHONPATH" $(PYTHON) -m pytest -q -m "not gpu and not thorough" tests/gpu_kernels $(wildcard tests/test_triton_*.py) $(or $(ARGS),-k triton)

TORCH ?= 2.11.0

torch: ## the fast part of the test suite on another torch, in build/; downloads gigabytes (TORCH=2.12.1)
	python3 .ci/other_torch.py $(TORCH) $(ARGS)

wheel: $(READY) ## a wheel and a source archive in dist/; for every GPU where torch has CUDA
	$(PYTHON) .ci/wheel.py

release: $(READY)-release ## the same, checked by twine, and installed and tried in clean environments with and without a compiler
	$(PYTHON) .ci/release.py

CUDA_TORCH ?= 2.11.0

cuda: ## the wheel built and imported against torch's CUDA build, without a GPU; downloads gigabytes (CUDA_TORCH=2.11.0)
	@test -n "$$CUDA_HOME" || { echo "CUDA_HOME must name a CUDA toolkit, of the version of torch's"; exit 1; }
	test -x build/cuda-$(CUDA_TORCH)/bin/python || python3 -m venv build/cuda-$(CUDA_TORCH)
	build/cuda-$(CUDA_TORCH)/bin/python -m pip install --quiet torch==$(CUDA_TORCH) 'setuptools>=77,<82' wheel ninja numpy
	build/cuda-$(CUDA_TORCH)/bin/python .ci/wheel.py --check

rehearse: ## what a GPU is asked, without one: torch's CUDA build in front of a stand-in, computed by the CPU; downloads gigabytes (CUDA_TORCH=2.11.0)
	python3 .ci/rehearse.py $(CUDA_TORCH) $(ARGS)

clean: ## removes what was built, keeps .venv
	rm -rf build dist *.egg-info bcos_kernels/_C.*.so bcos_kernels/_C.*.pyd bcos_kernels/_C.failed.txt .pytest_cache .ruff_cache .hypothesis

# ready when torch is there, and -EXTRA when the requirements of an extra are; again after a change of them
$(READY): .ci/environment.py
	@python3 .ci/environment.py "$(BCOS_PYTHON)"
	@mkdir -p $(@D) && touch $@

$(READY)-%: $(READY) pyproject.toml
	@python3 .ci/environment.py "$(BCOS_PYTHON)" $*
	@touch $@

build/.extension: $(READY) build/.interpreter setup.py pyproject.toml $(NATIVE)
	@printf "building the extension (build/extension.log) ... "; start=$$(date +%s); \
		$(PYTHON) setup.py --quiet build_ext --inplace > build/extension.log 2>&1 || { cat build/extension.log; exit 1; }; \
		echo "$$(($$(date +%s) - start)) s"
	@grep '^bcos_kernels:' build/extension.log || true
	@touch $@

# holds the interpreter that the extension was built for; touched only when that changes
build/.interpreter: always
	@mkdir -p build
	@test "$$(cat $@ 2>/dev/null)" = "$(PYTHON)" || echo "$(PYTHON)" > $@
