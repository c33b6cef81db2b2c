# Each target first builds .venv if it is missing or older than its sources.
SHELL := /bin/bash
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
MODEL ?= nemotron_vl/checkpoints/tiny

export VLLM_CPU_KVCACHE_SPACE ?= 1
export VLLM_NO_USAGE_STATS ?= 1

# The first process that imports a module writes its byte code. Without it, each of the
# three processes of an engine compiles torch and vLLM again, which takes 20 s.
unexport PYTHONDONTWRITEBYTECODE

demo test test-releases test-pythons bench: export HF_HUB_OFFLINE = 1

.PHONY: demo test test-releases test-pythons lint bench serve requirements

demo: $(INSTALLED)
	.venv/bin/nemotron-vl demo --out build/demo

test: $(INSTALLED)
	$(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder tests

# make test-releases RELEASES="0.31 0.33" TESTS=tests/tools/test_export_upstream.py
test-releases: $(INSTALLED)
	$(PYTHON) tools/releases/matrix.py $(RELEASES) --tests "$(TESTS)"
	[ -n "$(RELEASES)$(TESTS)" ] || $(MAKE) test-pythons

# make test-pythons PYTHONS="3.12 3.14"
test-pythons: $(INSTALLED)
	$(PYTHON) tools/releases/pythons.py $(PYTHONS)

lint: $(INSTALLED)
	tools/lint.sh

bench: $(INSTALLED)
	for name in preprocess image_threads request_path front_end serve bench_serve documents encoder encoder_parallel hostile retrieval search search_engines soak tile_reuse; do \
		$(PYTHON) benchmarks/$$name.py --quick || exit 1; \
	done

# make serve MODEL=nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1
serve: $(INSTALLED)
	.venv/bin/vllm serve $(MODEL) --host 127.0.0.1 --max-model-len 8192 $(OPTIONS)

requirements: $(INSTALLED)
	tools/compile_requirements.sh

$(INSTALLED): requirements/test.txt requirements/lint.txt pyproject.toml tools/install.sh tools/vllm_metadata/pyproject.toml
	tools/install.sh .venv
	touch $@
