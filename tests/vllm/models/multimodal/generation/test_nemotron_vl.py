"""Offline generation: equal to the reference, for every input form and dtype."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError, VLLMValidationError

from nemotron_vl.verify.reference import Reference
from support.chat import text_part

KINDS_OF_HEADS = ("attention", "key_value")
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(make_llm, checkpoint):
    options = dict(dtype="float32", enable_mm_embeds=True, max_logprobs=-1)
    return make_llm(checkpoint, worker_process=True, **options)


def prompt(text: str, *images, **more) -> dict:
    return {"prompt": text, "multi_modal_data": {"image": list(images)}, **more}


def generate(llm, *prompts, **options) -> list[tuple[list[int], list[int]]]:
    """Token ids of the prompt and of the answer, for each prompt."""
    outputs = llm.generate(list(prompts), GREEDY, use_tqdm=False, **options)
    return [(o.prompt_token_ids, list(o.outputs[0].token_ids)) for o in outputs]


def chat(llm, *parts) -> tuple[list[int], list[int]]:
    messages = [{"role": "user", "content": list(parts)}]
    (output,) = llm.chat(messages, GREEDY, use_tqdm=False)
    return output.prompt_token_ids, list(output.outputs[0].token_ids)


def png_part(image: Image.Image) -> dict:
    return {"type": "image_pil", "image_pil": image}


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_greedy_tokens_equal_the_reference(
    start_llm, llm, checkpoint, tiny, photo, page, weights
):
    """64 tokens for each of 22 prompts, and the log-probabilities of the first."""
    if weights == "trained":
        llm, checkpoint = start_llm(tiny, dtype="float32"), tiny
    rng = np.random.default_rng(5)
    sizes = rng.integers(20, 500, (20, 2))
    noise = [Image.fromarray(rng.integers(0, 256, (*s, 3), np.uint8)) for s in sizes]
    requests = [("<image>\nRead the text.", [p]) for p in [*noise, photo]]
    requests.append(("<image> and <image>: compare.", [page.convert("RGB"), photo]))
    sampling = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, logprobs=9)
    outputs = llm.generate(
        [prompt(text, *images) for text, images in requests], sampling, use_tqdm=False
    )
    reference = Reference.load(checkpoint)
    for (text, images), output in zip(requests, outputs, strict=True):
        ids, tokens, logprobs = reference.answer(text, images, 64)
        assert output.prompt_token_ids == ids
        assert list(output.outputs[0].token_ids) == tokens
        for token, found in output.outputs[0].logprobs[0].items():
            assert abs(found.logprob - logprobs[token].item()) < 1e-3


def make_draft(folder: Path, checkpoint: Path, method: str, token: int) -> None:
    """Write a random head of one block for EAGLE or EAGLE-3.

    That of EAGLE-3 reads three layers of the language model. Its vocabulary has one
    token, which it always drafts. EAGLE's shares the vocabulary with the model. It
    reads a direction of the last layer, and drafts the token on one side of it.
    """
    llm = json.loads((checkpoint / "config.json").read_text())["llm_config"]
    random = torch.Generator().manual_seed(0)

    def linear(outputs: int, inputs: int) -> torch.Tensor:
        return torch.randn(outputs, inputs, generator=random) * 0.05

    width, inner = llm["hidden_size"], llm["intermediate_size"]
    head = llm.get("head_dim") or width // llm["num_attention_heads"]
    queries, keys = (llm[f"num_{kind}_heads"] * head for kind in KINDS_OF_HEADS)
    read = 2 * width if method == "eagle3" else width
    block = {
        "self_attn.q_proj": linear(queries, read),
        "self_attn.k_proj": linear(keys, read),
        "self_attn.v_proj": linear(keys, read),
        "self_attn.o_proj": linear(width, queries),
        "mlp.gate_proj": linear(inner, width),
        "mlp.up_proj": linear(inner, width),
        "mlp.down_proj": linear(width, inner),
        "post_attention_layernorm": torch.ones(width),
    }
    if method == "eagle3":
        norms = ("input_layer", "hidden_")
        block |= {f"{name}norm": torch.ones(width) for name in norms}
        tensors = {
            "fc.weight": linear(width, 3 * width),
            "norm.weight": torch.ones(width),
            "lm_head.weight": linear(1, width),
            "d2t": torch.tensor([token]),
        }
        more = {
            "architectures": ["LlamaForCausalLMEagle3"],
            "draft_vocab_size": 1,
            # Model Runner V2 does not read it from "eagle_config", as V1 does.
            "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
        }
    else:
        stored = load_file(checkpoint / "model.safetensors")
        row = stored["language_model.lm_head.weight"][token].float()
        direction = torch.cat([torch.zeros(1, width), linear(1, width)], 1)
        tensors = {"fc.weight": 1e3 * row[:, None] * direction}
        more = {"architectures": ["LlamaForCausalLM"]}
    layer = "midlayer" if method == "eagle3" else "layers.0"
    tensors |= {f"{layer}.{name}.weight": tensor for name, tensor in block.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {**llm, "num_hidden_layers": 1, **more}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("method", ["ngram", "eagle", "eagle3"])
def test_speculation_changes_no_token(
    start_llm, llm, checkpoint, photo, page, method, tmp_path
):
    requests = [
        prompt("<image>\nRead, read, read the text.", photo),
        prompt("1 2 1 2 <image> 1 2 <image> 1 2", page, photo),
        prompt("<image>", page),
    ]
    expected = generate(llm, *requests)
    options: dict = dict(prompt_lookup_min=1, prompt_lookup_max=3)
    if method != "ngram":
        token = Counter(t for _, answer in expected for t in answer).most_common(1)
        make_draft(tmp_path / "draft", checkpoint, method, token[0][0])
        options = dict(model=str(tmp_path / "draft"))
    speculating = start_llm(
        checkpoint,
        dtype="float32",
        disable_log_stats=False,
        speculative_config={"method": method, "num_speculative_tokens": 3, **options},
    )
    assert generate(speculating, *requests) == expected
    counts = {m.name: m.value for m in speculating.get_metrics() if hasattr(m, "value")}
    # Some drafts were accepted and some rejected.
    drafted = counts["vllm:spec_decode_num_draft_tokens"]
    accepted = counts["vllm:spec_decode_num_accepted_tokens"]
    assert 0 < accepted < drafted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_answers(start_llm, llm, checkpoint, photo, page, dtype):
    """Log-probabilities of the whole vocabulary are close to those of float32."""
    engine = llm
    if dtype != "float32":
        engine = start_llm(checkpoint, dtype=dtype, max_logprobs=-1)
    assert engine.llm_engine.model_config.dtype == getattr(torch, dtype)
    first = SamplingParams(temperature=0, max_tokens=1, logprobs=-1)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    for text, images in (
        ("<image>\nRead.", [photo]),
        ("<image><image>", [photo, page]),
        ("no image", []),
    ):
        request = prompt(text, *images) if images else text
        (output,) = engine.generate([request], first, use_tqdm=False)
        (found,) = output.outputs[0].logprobs
        (reference,) = llm.generate([request], first, use_tqdm=False)
        (expected,) = reference.outputs[0].logprobs
        assert found.keys() == expected.keys() == set(range(vocabulary))
        for token in found:
            assert abs(found[token].logprob - expected[token].logprob) < 0.15


def test_the_image_decides_the_answer(llm, photo, page):
    answers = generate(llm, prompt("<image>", photo), prompt("<image>", page))
    assert answers[0][1] != answers[1][1]
    again = generate(llm, prompt("<image>", photo), prompt("<image>", page))
    assert answers == again


def test_the_order_of_images_decides_the_answer(llm, photo, page):
    one, other = generate(
        llm,
        prompt("<image><image>", photo, page),
        prompt("<image><image>", page, photo),
    )
    assert one[1] != other[1]


def test_text_ids_chat_cache_and_uuid_give_the_same(llm, photo, page):
    tokenizer = llm.get_tokenizer()
    text = (
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "<image>\nand\n<image>\nbeside each other?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    images = [photo, page]
    (expected,) = generate(llm, prompt(text, *images))
    ids = {
        "prompt_token_ids": tokenizer.encode(text),
        "multi_modal_data": {"image": images},
    }
    named = {"multi_modal_uuids": {"image": ["photo", "page"]}, "cache_salt": "me"}
    known = {**prompt(text, None, None), **named}
    found = generate(llm, prompt(text, *images), ids, prompt(text, *images, **named))
    found += generate(llm, known)
    llm.reset_mm_cache()
    found += generate(llm, prompt(text, *images))
    found.append(
        chat(
            llm,
            png_part(photo),
            text_part("and"),
            png_part(page),
            text_part("beside each other?"),
        )
    )
    assert found == [expected] * len(found)


def test_without_the_processor_cache_the_same(start_llm, llm, checkpoint, photo, page):
    uncached = start_llm(checkpoint, dtype="float32", mm_processor_cache_gb=0)
    prompts = [prompt("<image>", photo), prompt("<image>a<image>", page, photo)]
    assert generate(uncached, *prompts) == generate(llm, *prompts)


def test_one_batch_of_many_equals_one_by_one(llm, photo, page):
    rng = np.random.default_rng(1)
    prompts = [
        prompt("<image>?", Image.fromarray(rng.integers(0, 256, size, np.uint8)))
        for size in [(64, 64, 3), (30, 300, 3), (200, 100, 3), (1, 1, 3)]
    ] + [prompt("x<image><image>", photo, page)]
    together = generate(llm, *prompts)
    alone = [answer for one in prompts for answer in generate(llm, one)]
    assert [p for p, _ in together] == [p for p, _ in alone]
    assert [a for _, a in together] == [a for _, a in alone]


def test_settings_per_request(llm, photo):
    kwargs = {"mm_processor_kwargs": {"max_dynamic_patch": 1}}
    many, one = generate(
        llm, prompt("<image>", photo), prompt("<image>", photo, **kwargs)
    )
    assert len(many[0]) - len(one[0]) == 12 * 4


def test_image_embeds_equal_the_image_they_were_made_of(llm, photo):
    """The tower's embeddings give the same answer as the image."""
    embeds = llm.apply_model(_embeds_of_zeros)[0]
    black = Image.new("RGB", (64, 64))
    from_image, from_embeds = generate(
        llm, prompt("<image>\n?", black), prompt("<image>\n?", embeds)
    )
    assert from_image == from_embeds
    longer = torch.cat([embeds, embeds])  # of two tiles
    alone, _ = generate(llm, prompt("<image>\n?", embeds), prompt("<image>\n?", longer))
    assert alone == from_image


def _embeds_of_zeros(model) -> torch.Tensor:
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    return model.extract_feature(pixels)[0]


BAD = {
    "no image for a placeholder": ({"prompt": "<image>"}, "1 <image> .* 0 image"),
    "fewer images": (prompt("<image><image>", Image.new("RGB", (9, 9))), "2 .* 1 "),
    "more images": (
        prompt("<image>", *[Image.new("RGB", (9, 9))] * 2),
        r"1 <image> placeholder\(s\) for 2 image",
    ),
    "no placeholder": (prompt("Read.", Image.new("RGB", (9, 9))), "0 .* for 1 "),
    "over the limit": (
        prompt("<image>" * 4, *[Image.new("RGB", (9, 9))] * 4),
        "At most 3 image",
    ),
    "no pixels": (prompt("<image>", Image.new("RGB", (9, 0))), "9x0 pixels"),
    "wrong width": (
        prompt("<image>", torch.zeros(4, 99)),
        "got 99, but model expects 256",
    ),
    "unknown setting": (
        prompt(
            "<image>", Image.new("RGB", (9, 9)), mm_processor_kwargs={"max_tiles": 2}
        ),
        "Unknown mm_processor_kwargs",
    ),
    "too long": (
        prompt("word " * 3000 + "<image>", Image.new("RGB", (9, 9))),
        "maximum context length is 2048",
    ),
    "too many tiles": (
        prompt("<image>" + "!" * 2020, Image.new("RGB", (1200, 900))),
        "longer than the maximum model length of 2048",
    ),
    "video": (
        {"prompt": "?", "multi_modal_data": {"video": np.zeros((2, 8, 8, 3))}},
        "video",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_the_next_request_served(llm, page, case):
    request, message = BAD[case]
    with pytest.raises((ValueError, VLLMClientError), match=message):
        generate(llm, request)
    assert generate(llm, prompt("<image>", page))[0][1]


def test_a_typed_placeholder_takes_no_images_place(llm, photo, page):
    with pytest.raises(VLLMValidationError, match="must not contain <image>"):
        chat(llm, text_part("I typed <image>"), png_part(photo))
    with pytest.raises(VLLMValidationError, match="1 <image> .* 0 image"):
        chat(llm, text_part("I typed <image>"))
    several_turns = [
        {"role": "user", "content": "What does <image> mean?"},
        {"role": "assistant", "content": "An image."},
        {"role": "user", "content": [png_part(page), text_part("Read.")]},
    ]
    with pytest.raises(VLLMValidationError, match="2 <image> .* 1 image"):
        llm.chat(several_turns, GREEDY, use_tqdm=False)


def test_tower_and_connector_are_not_loaded_without_images(start_llm, checkpoint):
    text_only = start_llm(checkpoint, limit_mm_per_prompt={"image": 0})
    ((_, answer),) = generate(text_only, "Hello")
    assert len(answer) == 16
    with pytest.raises(VLLMValidationError, match="<image>"):
        generate(text_only, "Hello <image>")
