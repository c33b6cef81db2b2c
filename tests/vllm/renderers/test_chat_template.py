"""The fallback chat template writes what the training wrote."""

import pytest
from transformers import PreTrainedTokenizerFast

from vllm_nemotron_vl.config.nemotron_vl_names import CHAT_TEMPLATE

TEMPLATE = CHAT_TEMPLATE.read_text()
IMAGE = {"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}

# Megatron-LM at db8cd9aa3b (2025-06-13), `llama3p1_chat_template`: no date, no system
# message of its own, contents without white space around them.
TRAINED = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Answer the questions.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "<image>\nWhat is the total?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return PreTrainedTokenizerFast.from_pretrained(tiny)


def write(tokenizer, messages: list[dict]) -> str:
    return tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("Answer the questions.", "<image>\nWhat is the total?"),
        (" Answer the questions.\n", "\n<image>\nWhat is the total? \n"),
        (
            [{"type": "text", "text": " Answer the questions.\n"}],
            [IMAGE, {"type": "text", "text": "\nWhat is the total? \n"}],
        ),
    ],
    ids=["text", "white space", "parts"],
)
def test_a_question_is_written_as_in_the_training(tokenizer, system, content):
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": content},
    ]
    assert write(tokenizer, messages) == TRAINED


def test_nothing_is_sent_that_nobody_wrote(tokenizer):
    prompt = write(tokenizer, [{"role": "user", "content": "7?"}])
    assert prompt == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n7?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
