"""LoRA adapters on the models that find and rank pages, compared with the reference
that has them merged into its weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nemotron_vl.verify.reference_retrieval import RetrievalReference
from support.noise import noise
from support.quantised_layers import build

RANK = 4
LANGUAGE = [
    "language_model.layers.0.self_attn.q_proj",
    "language_model.layers.1.self_attn.o_proj",
    "language_model.layers.1.mlp.gate_proj",
    "language_model.layers.0.mlp.down_proj",
]
ENCODER = [
    "vision_model.vision_model.encoder.layers.0.self_attn.v_proj",
    "vision_model.vision_model.encoder.layers.1.self_attn.out_proj",
    "vision_model.vision_model.encoder.layers.1.mlp.fc1",
    "mlp1.1",
    "mlp1.3",
]
REQUESTS = [
    ("query: what is the total?", []),
    ("passage: <image> The total.", [noise(130, 90)]),
    ("passage: <image> ", [noise(64, 64)]),
]


def adapter(folder: Path, reference: RetrievalReference, names: list[str]) -> Path:
    """Write an adapter in PEFT's format, and merge it into the reference."""
    generator = torch.Generator().manual_seed(len(names))
    tensors = {}
    for name in names:
        weight = reference.get_parameter(reference.own_name(f"{name}.weight"))
        rows, columns = weight.shape
        a = torch.randn(RANK, columns, generator=generator) / columns**0.5
        b = torch.randn(rows, RANK, generator=generator) / 8
        weight += b @ a  # the scale is 1: alpha equals the rank
        for part, value in {"A": a, "B": b}.items():
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = value
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in names})
    options = dict(peft_type="LORA", r=RANK, lora_alpha=RANK, target_modules=modules)
    (folder / "adapter_config.json").write_text(json.dumps(options))
    return folder


@pytest.mark.releases
def test_adapters_on_all_parts(start_llm, embed_checkpoint, tmp_path):
    """Two in one batch, and one that has a layer which the model does not have."""
    from vllm.lora.request import LoRARequest

    parts = {"language": LANGUAGE, "all": LANGUAGE + ENCODER}
    references, requests = [], []
    for number, (part, names) in enumerate(parts.items(), 1):
        references.append(RetrievalReference(embed_checkpoint))
        folder = adapter(tmp_path / part, references[-1], names)
        requests.append(LoRARequest(part, number, str(folder)))
    llm = start_llm(
        embed_checkpoint,
        dtype="float32",
        mm_processor_kwargs=None,
        max_model_len=1024,
        enable_lora=True,
        enable_tower_connector_lora=True,
        max_lora_rank=8,
        max_loras=2,
    )
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": images} if images else None}
        for text, images in REQUESTS
        for _ in requests
    ]
    outputs = llm.embed(prompts, lora_request=requests * len(REQUESTS), use_tqdm=False)
    plain = RetrievalReference(embed_checkpoint)
    found = iter(outputs)
    for text, images in REQUESTS:
        for reference in references:
            vector = torch.tensor(next(found).outputs.embedding)
            merged, unmerged = (
                torch.nn.functional.normalize(model.pooled(text, images), dim=0)
                for model in (reference, plain)
            )
            assert torch.allclose(vector, merged, atol=1e-5), text
            assert not torch.allclose(vector, unmerged, atol=1e-3), text
    save_file(
        {
            f"base_model.model.mlp1.2.lora_{part}.weight": torch.zeros(4, 4)
            for part in "AB"
        },
        tmp_path / "all" / "adapter_model.safetensors",
    )
    with pytest.raises(Exception, match=r"'mlp1.2' \(not in the model\)"):
        llm.llm_engine.add_lora(LoRARequest("bad", 9, str(tmp_path / "all")))


@pytest.mark.parametrize("kind", ["embed", "rerank"])
@pytest.mark.parametrize("encoder", [False, True])
def test_layers_of_adapters_have_the_names_of_the_checkpoint(request, kind, encoder):
    checkpoint = request.getfixturevalue(f"{kind}_checkpoint")
    model = build(checkpoint, enable_lora=True, enable_tower_connector_lora=encoder)
    modules = dict(model.named_modules())
    prefix = "model." if kind == "rerank" else ""
    for name in LANGUAGE + ENCODER:
        mapped = model.hf_to_vllm_mapper.map_name(f"{prefix}{name}.lora_A.weight")
        if name in ENCODER and not encoder:
            assert "need --enable-tower-connector-lora" in mapped
            continue
        layer = mapped.removesuffix(".lora_A.weight")
        for shard in ("q", "k", "v"):
            layer = layer.replace(f".{shard}_proj", ".qkv_proj")
        assert layer.replace(".gate_proj", ".gate_up_proj") in modules
        for alias in (
            name.replace("vision_model.vision_model.", "vision_model."),
            name.replace("language_model.", "language_model.model."),
        ):
            given = f"{prefix}{alias}.lora_A.weight"
            assert model.hf_to_vllm_mapper.map_name(given) == mapped
    unknown = f"{prefix}language_model.layers.99.mlp.up_proj"
    mapped = model.hf_to_vllm_mapper.map_name(f"{unknown}.lora_A.weight")
    assert mapped.startswith(f"'{unknown}' (not in the model")
    assert (model.tile_reuse is None) == encoder


@pytest.mark.parametrize("kind", ["embed", "rerank"])
def test_without_images_an_adapters_layers_of_the_tower_are_kept_aside(request, kind):
    """vLLM would refuse the whole adapter, also for questions."""
    model = build(
        request.getfixturevalue(f"{kind}_checkpoint"),
        enable_lora=True,
        enable_tower_connector_lora=True,
        limit_mm_per_prompt={"image": 0},
    )
    prefix = "model." if kind == "rerank" else ""
    for name in ENCODER:
        mapped = model.hf_to_vllm_mapper.map_name(f"{prefix}{name}.lora_A.weight")
        assert mapped.startswith("in another process.")
        assert mapped.endswith(".o_proj.lora_A.weight")
