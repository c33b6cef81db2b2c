"""Attention of the tower: head by head, by FlashInfer, and what each option gives."""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from vllm.model_executor.layers.attention import mm_encoder_attention
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from support.encoder_graphs import graphs
from support.loading import make_config
from support.noise import tiles
from vllm_nemotron_vl.config import nemotron_vl_cpu
from vllm_nemotron_vl.config.nemotron_vl_options import check_encoder_attention
from vllm_nemotron_vl.model_executor.models.nemotron_vl_attention import (
    HeadwiseAttention,
    PackedAttention,
)

FLASHINFER = AttentionBackendEnum.FLASHINFER
SIDE = 64


# Options


def kernels_of(platform: str) -> list[AttentionBackendEnum]:
    """What vLLM has for encoders, as its source says; importing it needs the device."""
    folder = Path(find_spec("vllm").submodule_search_locations[0])
    tree = ast.parse((folder / "platforms" / f"{platform}.py").read_text())
    (function,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name == "get_supported_vit_attn_backends"
    )
    names = {
        node.attr: None
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and hasattr(AttentionBackendEnum, node.attr)
    }
    return [AttentionBackendEnum[name] for name in names]


# With a 16-bit dtype and with float32: "works", or what the message names instead.
TRITON, SDPA = "TRITON_ATTN", "TORCH_SDPA"
TABLE = {
    "cuda": {
        "FLASH_ATTN": ("works", TRITON),
        "TRITON_ATTN": ("works", "works"),
        "TORCH_SDPA": ("works", "works"),
        "FLASHINFER": ("works", TRITON),
    },
    "rocm": {
        "FLASH_ATTN": ("works", TRITON),
        "ROCM_AITER_FA": ("works", TRITON),
        "TRITON_ATTN": ("works", "works"),
        "TORCH_SDPA": ("works", "works"),
    },
    "xpu": {  # there, vLLM takes Triton for float32 whatever the option says
        "FLASH_ATTN": ("works", "works"),
        "TRITON_ATTN": ("works", "works"),
        "TORCH_SDPA": ("works", "works"),
    },
    "cpu": {"TORCH_SDPA": ("works", "works")},
}


@pytest.fixture(scope="module")
def config(checkpoint):
    return make_config(checkpoint, "float32")


@pytest.fixture
def on(monkeypatch):
    """Pretend to be on a platform."""

    def pretend(platform: str) -> list[AttentionBackendEnum]:
        kernels = [SDPA] if platform == "cpu" else kernels_of(platform)
        kernels = [AttentionBackendEnum[getattr(k, "name", k)] for k in kernels]
        monkeypatch.setattr(
            current_platform, "get_supported_vit_attn_backends", lambda: kernels
        )
        for name in ("cpu", "rocm", "xpu"):
            monkeypatch.setattr(
                current_platform, f"is_{name}", lambda same=name == platform: same
            )
        return kernels

    return pretend


def found(config, backend, dtype, fp8=False) -> str:
    """The message of the refusal, or "works"."""
    options = config.model_config.get_multimodal_config()
    options.mm_encoder_attn_backend = backend
    options.mm_encoder_attn_dtype = "fp8" if fp8 else None
    config.model_config.dtype = dtype
    try:
        check_encoder_attention(config)
    except ValueError as refusal:
        return str(refusal)
    return "works"


@pytest.mark.parametrize("platform", TABLE)
def test_each_kernel_works_or_is_refused_by_name(config, on, platform):
    kernels = on(platform)
    assert {kernel.name for kernel in kernels} == TABLE[platform].keys()
    for backend in AttentionBackendEnum:
        for column, dtype in enumerate((torch.bfloat16, torch.float32)):
            said = found(config, backend, dtype)
            expected = TABLE[platform].get(backend.name, ("TORCH_SDPA",) * 2)[column]
            if expected == "works":
                assert said == "works", backend
            else:
                start = f"--mm-encoder-attn-backend {backend.name} does not work"
                assert said.startswith(start)
                assert expected in said.partition("or use")[2]
    assert found(config, None, torch.float32) == "works"


@pytest.mark.parametrize(
    ("platform", "backend", "expected"),
    [
        ("cuda", "FLASHINFER", "works"),
        ("cuda", "FLASH_ATTN", "--mm-encoder-attn-backend FLASHINFER"),
        ("cuda", None, "--mm-encoder-attn-backend FLASHINFER"),
        ("rocm", "ROCM_AITER_FA", "works"),
        ("rocm", None, "works"),  # vLLM chooses, or says what is missing
        ("rocm", "TRITON_ATTN", "--mm-encoder-attn-backend ROCM_AITER_FA"),
        ("xpu", None, "does not work for encoders on this platform"),
        ("cpu", None, "does not work for encoders on this platform"),
    ],
)
def test_fp8_needs_its_kernel(config, on, platform, backend, expected):
    on(platform)
    kernel = AttentionBackendEnum[backend] if backend else None
    assert expected in found(config, kernel, torch.bfloat16, fp8=True)


@pytest.mark.parametrize("platform", TABLE)
def test_siglip_has_no_packed_sequences(embed_checkpoint, on, platform):
    """So it gets neither FlashInfer's kernel nor advice to use it."""
    kernels = on(platform)
    config = make_config(embed_checkpoint, "bfloat16")
    for kernel in kernels:
        said = found(config, kernel, torch.bfloat16)
        if kernel.name == "FLASHINFER":
            assert "FLASHINFER does not work for SigLIP" in said
            assert "FLASHINFER" not in said.partition("or use")[2]
        else:
            assert said == "works", kernel
    if platform == "cuda":
        said = found(config, None, torch.bfloat16, fp8=True)
        assert "fp8 does not work for SigLIP on this platform" in said


def test_fp8_in_encoder_graphs_needs_fixed_scales(checkpoint, on, tmp_path):
    on("cuda")
    options = dict(
        mm_encoder_attn_backend="FLASHINFER",
        mm_encoder_attn_dtype="fp8",
        enforce_eager=False,
        compilation_config={"cudagraph_mm_encoder": True},
    )
    with pytest.raises(ValueError, match="Give --mm-encoder-fp8-scale-path"):
        make_config(checkpoint, "bfloat16", **options)
    (tmp_path / "scales.json").write_text("{}")
    scales = dict(mm_encoder_fp8_scale_path=str(tmp_path / "scales.json"))
    assert make_config(checkpoint, "bfloat16", **options, **scales)


# FlashInfer


def rows(tensor: torch.Tensor, start: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of a sequence, as the kernel finds them in memory."""
    assert start.dtype == torch.int32
    first = tensor.storage_offset() + start.numpy().item()
    shape = (int(count), *tensor.shape[1:])
    return tensor.as_strided(shape, tensor.stride(), first)


def cudnn_batch_prefill_with_kv_cache(
    q, k, v, scale, workspace_buffer, *, max_token_per_sequence, max_sequence_kv,
    actual_seq_lens_q, actual_seq_lens_kv, causal, return_lse, batch_offsets_q,
    batch_offsets_k, batch_offsets_v, batch_offsets_o, q_scale, k_scale, v_scale,
    o_data_type, out=None,
):  # fmt: skip
    """FlashInfer's function, as its documentation says, in float32."""
    count = len(actual_seq_lens_q)
    assert q.is_contiguous() and k.is_contiguous()
    assert count % 8 == 0  # the sizes for which cuDNN builds kernels
    for lengths in (actual_seq_lens_q, actual_seq_lens_kv):
        assert lengths.shape == (count, 1, 1, 1)
        assert lengths.max() <= max_token_per_sequence == max_sequence_kv
    offsets = [batch_offsets_q, batch_offsets_k, batch_offsets_v, batch_offsets_o]
    assert {x.shape for x in offsets} == {(count + 1, 1, 1, 1)}
    assert not causal and not return_lse
    if out is None:
        out = torch.empty_like(q, dtype=o_data_type)
    out.fill_(torch.nan)
    q_at, k_at, v_at, o_at = (x.flatten() for x in offsets)
    for i, length in enumerate(actual_seq_lens_q.numpy().ravel()):
        query, key, value = (
            rows(x, at[i], length).float().transpose(0, 1) * (1 if s is None else s[0])
            for x, at, s in ((q, q_at, q_scale), (k, k_at, k_scale), (v, v_at, v_scale))
        )
        weights = (query @ key.transpose(1, 2) * scale).softmax(-1)
        rows(out, o_at[i], length).copy_((weights @ value).transpose(0, 1))
    return out, None


@pytest.fixture
def flashinfer(monkeypatch):
    """Build and run models with FlashInfer, whose function is the one above."""
    changes = {
        (current_platform, "get_supported_vit_attn_backends"): lambda: kernels_of(
            "cuda"
        ),
        (current_platform, "get_vit_attn_backend"): lambda *_, backend: backend,
        (MMEncoderAttention, "forward_cpu"): MMEncoderAttention.forward_cuda,
        (mm_encoder_attention, "_get_flashinfer_workspace_buffer"): lambda: torch.empty(
            0
        ),
        (
            mm_encoder_attention,
            "is_flashinfer_cudnn_fp8_prefill_attn_supported",
        ): lambda: True,
    }
    for (owner, name), value in changes.items():
        monkeypatch.setattr(owner, name, value)
    for name in ("flashinfer", "flashinfer.prefill"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    function = cudnn_batch_prefill_with_kv_cache
    monkeypatch.setattr(sys.modules[name], function.__name__, function, raising=False)


@pytest.fixture(scope="module")
def huge(tmp_path_factory) -> Path:
    """One block of ViT-H, whose heads are 80 wide."""
    path = tmp_path_factory.mktemp("huge") / "checkpoint"
    make_checkpoint(path, tower="vit_huge", tower_layers=1, layers=1)
    return path


def features(model, count: int) -> torch.Tensor:
    model.max_encoder_tiles = 16
    return model.extract_feature(tiles(count)).float()


@pytest.mark.parametrize(("fp8", "tolerance"), [(False, 0.005), (True, 0.03)])
def test_flashinfer_gets_the_sequences_that_it_reads(
    load_model, huge, native_products, flashinfer, fp8, tolerance
):
    options = dict(mm_encoder_attn_backend="FLASHINFER")
    if fp8:
        options["mm_encoder_attn_dtype"] = "fp8"
    exact = load_model(huge, "bfloat16", mm_encoder_attn_backend="TORCH_SDPA")
    model = load_model(huge, "bfloat16", **options)
    (block,) = model.vision_model.model.encoder.layers
    assert isinstance(block.attn.attn, PackedAttention)
    for count in (1, 3, 13, 16):
        expected = features(exact, count)
        error = (features(model, count) - expected).norm() / expected.norm()
        assert 0 < error < tolerance


def test_flashinfer_in_encoder_graphs(load_model, huge, native_products, flashinfer):
    options = dict(
        enforce_eager=False,
        mm_encoder_attn_backend="FLASHINFER",
        compilation_config={
            "cudagraph_mm_encoder": True,
            "encoder_cudagraph_token_budgets": [4, 12, 52],
        },
    )
    model = load_model(huge, "bfloat16", **options)
    manager = graphs(model, make_config(huge, "bfloat16", **options))
    for counts in ([1], [3, 1], [13], [2, 3]):
        pixels = tiles(sum(counts))
        inputs = {
            "pixel_values_flat": pixels,
            "image_num_patches": torch.tensor(counts),
            "image_token_id": torch.tensor([1]),
        }
        found = torch.cat(manager.execute(inputs))
        assert torch.equal(found, model.extract_feature(pixels).flatten(0, 1))
    assert manager.graph_hits == 6 and not manager.graph_misses


def test_blocks_with_flashinfer_are_not_compiled(
    load_model, huge, native_products, flashinfer
):
    model = load_model(
        huge,
        "bfloat16",
        enforce_eager=False,
        compilation_config={"compile_mm_encoder": True},
        mm_encoder_attn_backend="FLASHINFER",
    )
    (block,) = model.vision_model.model.encoder.layers
    assert block.do_not_compile


# Head by head


@pytest.mark.parametrize(
    ("flag", "backend", "kind"),
    [
        ("avx512_bf16", None, HeadwiseAttention),
        ("avx512_bf16", "TORCH_SDPA", MMEncoderAttention),
        ("amx_bf16", None, HeadwiseAttention),
        ("bf16", None, MMEncoderAttention),  # of Arm
    ],
)
def test_where_it_is_used(load_model, checkpoint, monkeypatch, flag, backend, kind):
    monkeypatch.setattr(nemotron_vl_cpu, "processor_flags", lambda: frozenset([flag]))
    model = load_model(checkpoint, "bfloat16", mm_encoder_attn_backend=backend)
    for block in model.vision_model.model.encoder.layers:
        assert type(block.attn.attn) is kind


def attend(query, key, value, heads: int, scale: float) -> torch.Tensor:
    """Attention as the formula states it, in float64."""
    query, key, value = (
        x.double().unflatten(2, (heads, -1)).transpose(1, 2)
        for x in (query, key, value)
    )
    weights = (query @ key.transpose(2, 3) * scale).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("tokens", [1, 24, 127, 128, 300, 1032])
@pytest.mark.parametrize(("heads", "head_size"), [(6, 64), (4, 80), (2, 72), (3, 33)])
def test_headwise_attention_is_close_to_exact_attention(tokens, heads, head_size):
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, tokens, 3 * heads * head_size)
    packed = torch.randn(shape, generator=generator).to(torch.bfloat16)
    query, key, value = packed.chunk(3, dim=2)  # strided, as in the tower
    scale = head_size**-0.5
    found = HeadwiseAttention(heads, head_size, scale)(query, key, value)
    expected = attend(query, key, value, heads, scale)
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 0.01


def test_headwise_attention_is_no_less_exact_than_plain_bfloat16():
    """Plain attention, such as timm's unfused one, also rounds the scores."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 1032, 320, generator=generator).to(torch.bfloat16)
    expected = attend(q, k, v, 4, 80**-0.5)
    found = HeadwiseAttention(4, 80, 80**-0.5)(q, k, v)
    q, k, v = (x.unflatten(2, (4, 80)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) * 80**-0.5
    plain = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert (found - expected).norm() <= (plain - expected).norm()
