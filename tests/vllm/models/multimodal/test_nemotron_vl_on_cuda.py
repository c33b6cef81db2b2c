"""What the encoder would do on GPUs, rehearsed without one.

vLLM's Python finds GPUs in a child process, and torch's fake tensors are the device,
see ``support/cuda_rehearsal.py``. Kernels are chosen and counted, and run nowhere.
``LACKING`` in ``support/pretended_gpu`` names the compiled modules that vLLM's CPU
build lacks. They, and an engine's start after its model is built, stay untested.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import encoder_ranks
import support
from sizing_table import write_checkpoint
from support.device_trace import BLOCKS, KERNELS_OF_A_PAGE
from support.python_path import with_folders

SUPPORT = Path(*support.__path__)

# In vLLM, for all models: the places of embeddings in the prompt are on the CPU.
KNOWN_WAITS = {
    "prompt": [
        "indices on the CPU (index_put_) in utils.py, _merge_multimodal_embeddings"
    ]
}

# Options that are refused, with a part of the sentence.
REFUSED = {
    "-tp 3": "is not divisible by 3 ranks",
    "FLASH_ATTN in float32": "does not work with --dtype float32",
    "--mm-encoder-attn-dtype fp8": "needs --mm-encoder-attn-backend FLASHINFER",
}

# Kernels of attention where vLLM does not choose FLASH_ATTN.
ATTENTION = {
    "T4": "TORCH_SDPA",
    "--dtype float32": "TRITON_ATTN",
    "--mm-encoder-attn-backend TRITON_ATTN": "TRITON_ATTN",
    "--mm-encoder-attn-backend TORCH_SDPA": "TORCH_SDPA",
    "--mm-encoder-attn-backend FLASHINFER": "FLASHINFER",
    "FLASHINFER in FP8": "FLASHINFER",
}


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """What the child process found out about the published model."""
    folder = tmp_path_factory.mktemp("rehearsal")
    checkpoint, out = folder / "checkpoint", folder / "found.json"
    write_checkpoint(checkpoint, "bfloat16")
    done = subprocess.run(
        [sys.executable, "-m", "support.cuda_rehearsal", checkpoint, out],
        env=with_folders(SUPPORT / "pretended_gpu", SUPPORT.parent),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def forwards(rehearsed):
    return rehearsed["forwards"]


@pytest.fixture(scope="module")
def engines(rehearsed):
    return rehearsed["engines"]


def test_the_rehearsal_notices_what_waits(rehearsed):
    assert [name for name, waits in rehearsed["waiting"].items() if not waits] == []
    assert {name for name, waits in rehearsed["not waiting"].items() if waits} == set()


def test_the_host_does_not_wait_for_the_device(forwards):
    waits = {name: trace["waits"] for name, trace in forwards.items()}
    assert {name: found for name, found in waits.items() if found} == KNOWN_WAITS


def test_pixels_reach_the_device_in_one_copy(forwards):
    copies = {
        name: trace["kernels"].get("_to_copy") for name, trace in forwards.items()
    }
    assert copies["page"] == copies["two pages"] == copies["tensor parallel"] == 1
    # The others are lists of indices: of equal and cached tiles, and of new tiles.
    assert copies["equal tiles"] == copies["all in the cache"] == 2
    assert copies["tile cache"] == 3
    # A graph would repeat a copy of what the host's memory held while it was captured.
    assert copies["graph"] is None


def test_new_tiles_enter_the_cache_in_one_kernel(forwards):
    """Beside those that put embeddings of equal and of cached tiles in their places."""
    assert forwards["tile cache"]["kernels"]["index_copy_"] == 3


def test_pixels_are_conditioned_in_one_kernel(forwards):
    for trace in (forwards["page"], forwards["graph"], forwards["video"]):
        assert trace["kernels"]["triton _fused_mm_input_norm_kernel"] == 1


def test_the_number_of_kernels(forwards):
    kernels = forwards["page"]["kernels"]
    assert sum(kernels.values()) - kernels["_to_copy"] == KERNELS_OF_A_PAGE
    assert kernels["flash attention"] == BLOCKS


def test_ranks_exchange_what_the_scaling_page_says(forwards):
    """Tensor parallel: twice in a block. Data parallel: once, two tiles a rank."""
    config = encoder_ranks.published()
    summed = encoder_ranks.reduced(config, 13)
    assert len(summed) == 2 * BLOCKS + 1
    found = forwards["tensor parallel"]["collectives"]
    assert found == [["all_reduce", size] for size in summed]
    found = forwards["data parallel"]["collectives"]
    assert found == [["all_gather", encoder_ranks.gathered(config, 13, 8)]]


def test_engines_start_or_are_refused_in_one_sentence(engines):
    for name, engine in engines.items():
        outcome = engine.get("attention") or REFUSED.get(name) or engine["error"]
        print(f"{name or '(no option)':<40} {outcome}")
    failed = {name: e["error"] for name, e in engines.items() if not e["built"]}
    assert failed.keys() == REFUSED.keys()
    for name, sentence in REFUSED.items():
        assert sentence in failed[name]
        assert not engines[name]["configured"]


def test_attention_of_the_encoder(engines):
    chosen = {name: e["attention"] for name, e in engines.items() if e["built"]}
    expected = dict.fromkeys(chosen, "FLASH_ATTN") | ATTENTION
    assert chosen == expected


def test_gpus_without_tensor_cores_for_it_get_weight_only_kernels(engines):
    names = [name for name in engines if name.startswith(("FP8", "NVFP4"))]
    kernels = {name: engines[name]["kernel"] for name in names}
    # Both take weights of fewer bits on any GPU. Humming is in vLLM's wheel for CUDA.
    general = re.compile("Marlin|Humming")
    weight_only = {name for name, kernel in kernels.items() if general.match(kernel)}
    print(kernels)
    assert weight_only == {
        "FP8 on A100",
        "NVFP4 on H100",
        "NVFP4 on L4",
        "NVFP4 on A100",
    }


def test_nothing_is_said_about_cpus(engines):
    said = [text for engine in engines.values() for text in engine["said"]]
    assert any("frame(s)" in text for text in said)  # the test hears this package
    assert [text for text in said if "CPU" in text] == []
