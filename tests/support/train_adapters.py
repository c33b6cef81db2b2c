"""Train adapters in PEFT's format for a few steps on the reference.

    python tests/support/train_adapters.py CHECKPOINT OUT

writes one folder for each part of the model. An adapter learns to answer questions
about drawn text with a fixed text of its own.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from drawn_text import make_question
from nemotron_vl.verify.reference import Reference
from typefaces import PILLOW_FONT

LANGUAGE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOWER = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
CONNECTOR = ["mlp1.1", "mlp1.3"]
TARGETS = {
    "language": LANGUAGE,
    "tower": TOWER,
    "connector": CONNECTOR,
    "all": LANGUAGE + TOWER + CONNECTOR,
    "embeddings": ["embed_tokens"],
}
# The answer that each adapter learns; all differ, so it shows which one was used.
ANSWERS = {
    "language": "1:1",
    "tower": "2,2",
    "connector": "3.3",
    "all": "4-4",
    "embeddings": "5/5",
}


class PublishedNames(nn.Module):
    """The reference's modules under the names of the checkpoint."""

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self.vision_model = nn.Module()
        self.vision_model.radio_model = nn.Module()
        self.vision_model.radio_model.model = reference.tower
        self.mlp1 = reference.mlp1
        self.language_model = reference.language_model


@torch.inference_mode(False)  # other tests turn it on
@torch.enable_grad()
def train(
    checkpoint: Path,
    part: str,
    folder: Path,
    *,
    answer: str | None = None,
    rate: float = 1e-2,
    rank: int = 4,
    steps: int = 24,
) -> Reference:
    """Train an adapter on one part and save it.

    Args:
        checkpoint: The model's.
        part: Key of `TARGETS`.
        folder: Where the adapter is saved.
        answer: What it learns to answer instead of its own text. ``{}`` stands for the
            text in the image.
        rate: Learning rate.
        rank: Rank of the adapter's matrices.
        steps: Questions that it sees.

    Returns:
        The reference with the adapter merged into its weights.
    """
    torch.manual_seed(0)
    rng = random.Random(0)
    reference = Reference.load(checkpoint)
    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=TARGETS[part])
    model = get_peft_model(PublishedNames(reference), config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        question = make_question(rng, PILLOW_FONT, reference, "read")
        ids, embeds = reference.embed(question.prompt(), question.images)
        said = (answer or ANSWERS[part]).format(question.turns[0][1])
        tokens = reference.tokenizer.encode(
            said + "<|eot_id|>", add_special_tokens=False
        )
        shown = reference.language_model.get_input_embeddings()(
            torch.tensor([tokens[:-1]])
        )
        output = reference.language_model(
            inputs_embeds=torch.cat([embeds, shown], dim=1)
        )
        logits = output.logits[0, len(ids) - 1 :]
        loss = F.cross_entropy(logits, torch.tensor(tokens))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Else PEFT adds the whole table of embeddings.
    model.save_pretrained(folder, save_embedding_layers=False)
    model.merge_and_unload()
    return reference.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for part in TARGETS:
        train(args.checkpoint, part, args.out / part)


if __name__ == "__main__":
    main()
