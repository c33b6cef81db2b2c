"""Adapters on the language model, the tower and the connector.

Each answer must be that of the reference with the adapter merged into it.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from reference.nemotron_vl import Reference

RANK, ALPHA = 4, 16
PROMPT = "<image>\nRead the text."

TARGETS = {
    "language": [
        "language_model.model.layers.0.self_attn.q_proj",
        "language_model.model.layers.1.mlp.down_proj",
    ],
    "tower": [
        "vision_model.radio_model.model.blocks.0.attn.qkv",
        "vision_model.radio_model.model.blocks.1.attn.proj",
        "vision_model.radio_model.model.blocks.1.mlp.fc1",
        "vision_model.radio_model.model.blocks.1.mlp.fc2",
    ],
    "connector": ["mlp1.1", "mlp1.3"],
}
TARGETS["all"] = [name for names in TARGETS.values() for name in names]


def linear(reference: Reference, name: str) -> torch.nn.Linear:
    module = reference.get_submodule(Reference.own_name(name))
    assert isinstance(module, torch.nn.Linear)
    return module


def make_adapter(folder: Path, reference: Reference, part: str) -> Path:
    """Write an adapter in PEFT's format and merge it into the reference."""
    generator = torch.Generator().manual_seed(sum(map(ord, part)))
    tensors = {}
    for name in TARGETS[part]:
        weight = linear(reference, name).weight
        a = torch.randn(RANK, weight.shape[1], generator=generator) * 0.05
        b = torch.randn(weight.shape[0], RANK, generator=generator) * 0.05
        weight += ALPHA / RANK * b @ a
        key = f"base_model.model.{name}"
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": RANK,
                "lora_alpha": ALPHA,
                "target_modules": TARGETS[part],
                "bias": "none",
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def adapters(checkpoint, tmp_path_factory) -> dict[str, tuple[Path, Reference]]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {}
    for part in TARGETS:
        reference = Reference.load(checkpoint)
        made[part] = make_adapter(folder / part, reference, part), reference
    return made


@pytest.fixture(scope="module")
def llm(make_llm, checkpoint):
    return make_llm(
        checkpoint,
        dtype="float32",
        enable_lora=True,
        enable_tower_connector_lora=True,
        max_lora_rank=8,
        max_loras=2,
        # vLLM caches processed pictures without regard to the adapter.
        mm_processor_cache_gb=0,
    )


def generate(llm, picture, requests) -> list[list[int]]:
    prompts = [
        {"prompt": PROMPT, "multi_modal_data": {"image": [picture]}} for _ in requests
    ]
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    outputs = llm.generate(prompts, greedy, lora_request=requests, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_each_adapter_answers_as_merged(llm, checkpoint, adapters, photo):
    plain = Reference.load(checkpoint).answer(PROMPT, [photo], 24)[1]
    assert generate(llm, photo, [None]) == [plain]
    for number, (part, (folder, reference)) in enumerate(adapters.items(), 1):
        expected = reference.answer(PROMPT, [photo], 24)[1]
        assert expected != plain
        request = LoRARequest(part, number, str(folder))
        assert generate(llm, photo, [request]) == [expected], part


def test_two_adapters_in_one_batch(llm, adapters, page):
    """Not with a third request without adapter: vLLM's LoRA kernels for CPUs
    give it one, as they read its index, -1, as that of the last adapter."""
    page = page.convert("RGB")
    expected, requests = [], []
    for number, part in ((1, "language"), (3, "connector")):
        folder, reference = adapters[part]
        expected.append(reference.answer(PROMPT, [page], 24)[1])
        requests.append(LoRARequest(part, number, str(folder)))
    assert generate(llm, page, requests) == expected
