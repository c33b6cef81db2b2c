# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer with the special tokens and the splitting of Llama 3."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Steps
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from vllm_nemotron_vl.config.nemotron_vl_names import CHAT_TEMPLATE

from ..regular_files import naming
from .files import write_json

BOS, EOS = "<|begin_of_text|>", "<|eot_id|>"
# NVIDIA/Megatron-LM appends them to the vocabulary of Llama in this order, and
# after them those of quadrilaterals, references and boxes.
_IMAGE_TOKENS = ("<image>", "<img>", "</img>")
_OTHER_ADDED = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
_LLAMA_TOKENS = (
    BOS,
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    EOS,
)

# Llama 3 splits words, runs of at most three digits, punctuation and spaces.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The tokenizer learns a few merges from it.
_TOKENIZER_TEXT = (
    "system user assistant Read the text in this image. What is the total of "
    "the invoice? Describe the picture. How many characters are there? The "
    "table shows the value of each item and the sum of all items in the list."
)


def train_tokenizer(image_tokens: Sequence[str] = _IMAGE_TOKENS) -> Tokenizer:
    """Bytes, a few merges and the special tokens, split as Llama 3 does."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Steps(
        [
            Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=384,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TOKENIZER_TEXT], trainer)
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False)
            for token in (*_LLAMA_TOKENS, *image_tokens, *_OTHER_ADDED)
        ]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def write_tokenizer(out: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write the tokenizer's files, with the chat template, into a folder."""
    with naming(out / "tokenizer.json") as file:
        file.write_text(tokenizer.to_str(pretty=True))
    write_json(
        out / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(number): {"content": token.content, "special": True}
                for number, token in tokenizer.get_added_tokens_decoder().items()
            },
            "bos_token": BOS,
            "chat_template": CHAT_TEMPLATE.read_text(),
            "clean_up_tokenization_spaces": False,
            "eos_token": EOS,
            "model_max_length": context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
