# Each target makes .venv first, if it is missing or older than what it is made of.
SHELL := /bin/bash
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
MODEL ?= build/nemotron_vl_tiny

export VLLM_CPU_KVCACHE_SPACE ?= 1
export VLLM_NO_USAGE_STATS ?= 1

demo test bench: export HF_HUB_OFFLINE = 1

.PHONY: demo test lint bench serve requirements

demo: $(INSTALLED)
	$(PYTHON) examples/demo.py

test: $(INSTALLED)
	$(PYTHON) -m pytest tests

lint: $(INSTALLED)
	tools/lint.sh

bench: $(INSTALLED)
	for script in benchmarks/*.py; do $(PYTHON) $$script --quick || exit 1; done

# make serve MODEL=nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1
serve: $(INSTALLED) $(filter build/%,$(MODEL))
	.venv/bin/vllm serve $(MODEL) --host 127.0.0.1 --max-model-len 8192 $(OPTIONS)

build/nemotron_vl_tiny: | $(INSTALLED)
	.venv/bin/nemotron-vl make-checkpoint $@

requirements: $(INSTALLED)
	tools/compile_requirements.sh

$(INSTALLED): requirements/test.txt requirements/lint.txt pyproject.toml tools/install.sh tools/vllm_metadata/pyproject.toml
	tools/install.sh .venv
	touch $@
