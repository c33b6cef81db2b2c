#!/usr/bin/env python3
"""Train a tiny Nemotron VL to read drawn text.

    tools/fonts.sh build/fonts
    python tools/train_tiny.py build/training

Trains the reference model of the tests and writes ``build/training/checkpoint``. The
same command with ``--resume`` continues after an interruption.

Besides the answers, the model learns which character is where (from the tower's
features) and how many characters come before it (from the language model's second
layer). The drawings supply these labels. Extra heads predict them and are dropped
after the training; with them it needs several times fewer images. At first the tower
trains alone, on pages full of text.
"""

import argparse
import json
import math
import os
import random
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from drawn_text import (
    CHARACTERS,
    KINDS,
    MAX_LENGTH,
    PILLOW_FONT,
    Drawing,
    Question,
    draw_page,
    find_fonts,
    make_question,
)
from vllm_nemotron_vl.entrypoints.nemotron_vl.random_checkpoint import (
    make_checkpoint,
)
from vllm_nemotron_vl.entrypoints.nemotron_vl.reference import RadioTower, Reference

LINES = 3
FIRST_LEVEL = 0.25  # difficulty at the start, from 0 to 1
ENOUGH = 0.6  # share of right answers above which the difficulty rises
SLOTS = 3  # most characters in an image token that are labelled
IGNORED = -100


@dataclass
class Example:
    """A conversation as tensors: n tiles, t tokens, k image tokens per tile."""

    kind: str
    pixels: torch.Tensor  # (n, 3, size, size) uint8
    ids: torch.Tensor  # (t,)
    labels: torch.Tensor  # (t,), IGNORED outside the answers
    patch_targets: torch.Tensor  # (n, patches)
    token_targets: torch.Tensor  # (SLOTS + 2, n * k): characters, index, line


@dataclass
class Batch:
    examples: list[Example]  # shortest first
    # Tiles of pages full of text, for the tower alone: many characters per tile.
    page_pixels: torch.Tensor  # (p, 3, size, size) uint8
    page_targets: torch.Tensor  # (p, patches)


def encode_question(model: Reference, question: Question) -> Example:
    """Encode the conversation in the chat format and label what to learn."""
    encode = model.tokenizer.encode
    pixels, patches, tokens = [], [], []
    for drawing in question.drawings:
        pixels.append(model.to_pixels(drawing.picture))
        patch_targets, token_targets = label(model, drawing)
        patches.append(patch_targets)
        tokens.append(token_targets)
    ids: list[int] = []
    labels: list[int] = []
    for number, (_, answer) in enumerate(question.turns):
        prompt = question.prompt(number)
        if not number:
            prompt = model.expand(prompt, [len(tiles) for tiles in pixels])
        prompt_ids = encode(prompt, add_special_tokens=not number)
        answer_ids = encode(f"{answer}<|eot_id|>", add_special_tokens=False)
        ids += prompt_ids + answer_ids
        labels += [IGNORED] * len(prompt_ids) + answer_ids
    return Example(
        question.kind,
        torch.cat(pixels),
        torch.tensor(ids),
        torch.tensor(labels),
        torch.cat(patches),
        torch.cat(tokens, dim=1),
    )


def label(model: Reference, drawing: Drawing) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels for the extra heads, tile by tile; a thumbnail is not labelled.

    The label of a patch is the character whose centre it contains, or 0 for none
    (character i of ``CHARACTERS`` is class i + 1). The labels of an image token are its
    characters from left to right, then index and line of the first. A place with too
    many characters is ignored.
    """
    side = model.tile_size // model.tower.patch_size
    columns, rows = model.choose_grid(*drawing.picture.size)

    def place(patches_per_place: int, slots: int) -> np.ndarray:
        """(slots + 2, places of the tiles): characters, index and line."""
        across = side // patches_per_place
        shape = (slots + 2, rows * across, columns * across)
        targets = np.full(shape, IGNORED)
        targets[:slots] = 0
        found = defaultdict(list)
        for c in drawing.characters:
            x = int(c.x * shape[2] / drawing.picture.width)
            y = int(c.y * shape[1] / drawing.picture.height)
            if 0 <= x < shape[2] and 0 <= y < shape[1]:
                found[y, x].append(c)
        for (y, x), characters in found.items():
            characters.sort(key=lambda c: c.x)
            first = characters[0]
            if len(characters) > slots or any(c.line != first.line for c in characters):
                targets[:, y, x] = IGNORED
                continue
            for slot, c in enumerate(characters):
                targets[slot, y, x] = CHARACTERS.index(c.text) + 1
            targets[slots:, y, x] = first.index, first.line
        cut = targets.reshape(-1, rows, across, columns, across)
        cut = cut.transpose(0, 1, 3, 2, 4).reshape(len(targets), -1)
        if rows * columns > 1:
            thumbnail = np.full((len(targets), across**2), IGNORED)
            cut = np.concatenate([cut, thumbnail], axis=1)
        return cut

    return (
        torch.from_numpy(place(1, 1)[0].reshape(-1, side**2)),
        torch.from_numpy(place(model.shuffle, SLOTS)),
    )


class Batches(Dataset):
    """The batches of a training by step; ``level`` is their difficulty (0 to 1).

    The level is shared with the process that draws the images.
    """

    def __init__(self, model: Reference, fonts: list, args: argparse.Namespace) -> None:
        self.model, self.fonts, self.args = model, fonts, args
        self.level = torch.full((1,), FIRST_LEVEL).share_memory_()

    def __getitem__(self, step: int) -> Batch:
        torch.set_num_threads(1)
        args = self.args
        rng = random.Random(f"{args.seed} {step}")
        level = self.level.item()
        examples: list[Example] = []
        tiles = 0
        while step >= args.page_steps and tiles < args.batch_tiles:
            kind = "read"
            if rng.random() < level:
                (kind,) = rng.choices([*KINDS], [*KINDS.values()])
            question = make_question(
                rng,
                self.fonts,
                self.model,
                kind,
                longest=math.ceil(MAX_LENGTH * level),
                effort=level,
                turns=rng.randint(1, 2),
            )
            examples.append(encode_question(self.model, question))
            tiles += len(examples[-1].pixels)
        pixels, targets = [], []
        for _ in range(1 if examples else 6):
            effort = max(level, min(1.0, 0.2 + 2 * step / args.page_steps))
            page = draw_page(rng, self.fonts, self.model, effort)
            # The last tile of a page is its thumbnail.
            pixels.append(self.model.to_pixels(page.picture)[:-1])
            targets.append(label(self.model, page)[0][:-1])
        examples.sort(key=lambda example: len(example.ids))
        return Batch(examples, torch.cat(pixels), torch.cat(targets))


class Heads(nn.Module):
    """The extra heads, which are dropped after the training."""

    def __init__(self, tower_width: int, decoder_width: int) -> None:
        super().__init__()
        classes = len(CHARACTERS) + 1
        self.patch = nn.Linear(tower_width, classes)
        self.token = nn.Linear(decoder_width, SLOTS * classes + MAX_LENGTH + LINES)
        self.token_sizes = [*[classes] * SLOTS, MAX_LENGTH, LINES]


def losses(
    model: Reference, heads: Heads, batch: Batch, groups: int = 2
) -> tuple[dict[str, torch.Tensor], list[bool]]:
    """Mean losses of a batch, and which examples were answered correctly.

    An answer is correct if each of its tokens is the likeliest one after the correct
    tokens before it. Greedy decoding gives the answer exactly in that case.
    """
    examples = batch.examples
    pixels = torch.cat([batch.page_pixels, *(e.pixels for e in examples)])
    targets = torch.cat([batch.page_targets, *(e.patch_targets for e in examples)])
    features = model.tower(model.condition(pixels))
    result = {
        "patch": F.cross_entropy(
            heads.patch(features).flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )
    }
    if not examples:
        return result, []

    embeds = model.connect(features[len(batch.page_pixels) :])
    embed_tokens = model.language_model.get_input_embeddings()
    image_id = model.tokenizer.convert_tokens_to_ids("<image>")
    parts = defaultdict(list)
    right = []
    tile = 0
    per_group = math.ceil(len(examples) / groups)
    for start in range(0, len(examples), per_group):
        group = examples[start : start + per_group]
        ids = nn.utils.rnn.pad_sequence([e.ids for e in group], batch_first=True)
        labels = nn.utils.rnn.pad_sequence(
            [e.labels for e in group], batch_first=True, padding_value=IGNORED
        )
        tiles = sum(len(e.pixels) for e in group)
        is_image = ids == image_id
        inputs = embed_tokens(ids).masked_scatter(
            is_image[..., None], embeds[tile : tile + tiles]
        )
        tile += tiles
        output = model.language_model(
            inputs_embeds=inputs, output_hidden_states=True, use_cache=False
        )
        target = labels[:, 1:]
        logits = output.logits[:, :-1]
        is_answer = target != IGNORED
        parts["answer"].append((logits[is_answer], target[is_answer]))
        wrong = (logits.argmax(-1) != target) & is_answer
        right += (~wrong.any(1)).tolist()
        hidden = heads.token(output.hidden_states[2][is_image])
        for name, logits, target in zip(
            (*["character"] * SLOTS, "index", "line"),
            hidden.split(heads.token_sizes, -1),
            torch.cat([e.token_targets for e in group], dim=1),
            strict=True,
        ):
            parts[name].append((logits, target))
    for name, pairs in parts.items():
        logits, targets = (torch.cat(column) for column in zip(*pairs, strict=True))
        result[name] = F.cross_entropy(logits, targets, ignore_index=IGNORED)
    return result, right


WEIGHTS = {"answer": 1.0, "patch": 1.0, "character": 0.5, "index": 0.3, "line": 0.1}


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Warm-up, plateau and descent, once for the tower alone and once for all.

    The tower alone gets twice the rate.
    """
    first, last, rate = 0, args.page_steps, 2 * args.learning_rate
    if step >= args.page_steps:
        first, last, rate = args.page_steps, args.steps, args.learning_rate
    left = (last - step) / ((last - first) * 0.4)
    return rate * min(1.0, (step - first + 1) / 100, left)


def initialise(tower: RadioTower) -> None:
    """Initialise attention so that it looks at neighbouring patches.

    Position embeddings start as sines, keys close to the queries, and the output of
    attention opposes its input (Trockman and Kolter 2023, "Mimetic initialization of
    self-attention layers"). A small vision transformer then learns from far fewer
    images.
    """
    width = tower.positions.shape[-1]
    frequencies = 20.0 ** (-torch.arange(width // 4) / (width // 4)) * torch.pi / 2
    places = torch.arange(tower.grid)[:, None] * frequencies
    waves = torch.cat([places.sin(), places.cos()], dim=1)
    grid = torch.cat(
        [
            waves[:, None].expand(-1, tower.grid, -1),
            waves[None].expand(tower.grid, -1, -1),
        ],
        dim=-1,
    )
    tower.positions.data = grid.reshape(1, -1, width).clone()
    for block in tower.blocks:
        queries, keys, values = block.attn.qkv.weight.data.split(width)
        keys.mul_(0.3).add_(queries, alpha=0.8)
        values.copy_(torch.linalg.qr(torch.randn(width, width))[0])
        noise = torch.randn(width, width) * width**-0.5
        block.attn.proj.weight.data = 0.4 * (noise - values.T)


def export(model: Reference, template: Path, out: Path) -> None:
    """Write the weights with the names, shapes and types of the ``template``."""
    (file,) = template.glob("*.safetensors")
    state = model.state_dict()
    tensors = {
        name: state[model.own_name(name)].reshape(tensor.shape).to(tensor.dtype)
        for name, tensor in load_file(file).items()
    }
    shutil.copytree(template, out, dirs_exist_ok=True)
    temporary = out / "model.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, out / file.name)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    template = args.folder / "untrained"
    if not template.exists():
        make_checkpoint(
            template,
            tower_layers=4,
            layers=4,
            hidden_size=256,
            intermediate_size=512,
            projector_hidden_size=384,
            tile_size=64,
            cpe_max_size=128,
            seed=args.seed,
            vision_options={
                "hidden_size": 192,
                "intermediate_size": 768,
                "num_attention_heads": 4,
            },
        )
    model = Reference.load(template).requires_grad_(True)
    initialise(model.tower)
    heads = Heads(192, 256)
    tower = [*model.tower.parameters(), *heads.patch.parameters()]
    rest = [
        *model.mlp1.parameters(),
        *model.language_model.parameters(),
        *heads.token.parameters(),
    ]
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in [*tower, *rest] if (p.ndim == 2) == decays],
                "weight_decay": 0.05 if decays else 0.0,
            }
            for decays in (True, False)
        ],
        betas=(0.9, 0.98),
    )
    first, seconds = 0, 0.0
    saved = args.folder / "state.pt"
    if args.resume:
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
    elif saved.exists():
        sys.exit(f"{saved} exists: use --resume to continue.")

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "heads": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
            "level": drawn.level.item(),
            "step": step,
            "seconds": seconds + time.time() - start,
        }
        torch.save(state, saved.with_suffix(".tmp"))
        os.replace(saved.with_suffix(".tmp"), saved)

    fonts = PILLOW_FONT if args.pillow_font else find_fonts(args.fonts / "training")
    drawn = Batches(model, fonts, args)
    if args.resume:
        drawn.level.fill_(state["level"])
    batches = DataLoader(
        drawn,
        batch_size=None,
        sampler=range(first, args.steps),
        num_workers=1,
        prefetch_factor=8,
        collate_fn=lambda batch: batch,
    )
    start = time.time()
    seen: dict[str, float] = {}
    for step, batch in enumerate(batches, first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        parts, right = losses(model, heads, batch)
        sum(WEIGHTS[name] * loss for name, loss in parts.items()).backward()
        for part in (tower, rest):
            nn.utils.clip_grad_norm_(part, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found = {name: loss.item() for name, loss in parts.items()}
        for kind in KINDS:
            rights = [
                r for e, r in zip(batch.examples, right, strict=True) if e.kind == kind
            ]
            if rights:
                found[kind] = sum(rights) / len(rights)
        for name, value in found.items():
            seen[name] = 0.97 * seen.get(name, value) + 0.03 * value
        done = step + 1
        if done % 20 == 0 and seen.get("read", 0) > ENOUGH:
            drawn.level.add_(0.02)
        # The difficulty is at its maximum when the learning rate starts to descend.
        progress = (done - args.page_steps) / (args.steps - args.page_steps)
        drawn.level.clamp_(min=progress / 0.6, max=1.0)
        if done % args.log_every == 0:
            now = seconds + time.time() - start
            figures = " ".join(f"{name} {value:.3f}" for name, value in seen.items())
            print(
                f"step {done}/{args.steps} {now:.0f} s, level "
                f"{drawn.level.item():.2f}: {figures}",
                flush=True,
            )
        if done % args.save_every == 0 or done == args.steps:
            save(done)
    export(model, template, args.folder / "checkpoint")
    seconds += time.time() - start
    (args.folder / "training.json").write_text(
        json.dumps({"steps": args.steps, "seed": args.seed, "seconds": round(seconds)})
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder for all output")
    parser.add_argument("--fonts", type=Path, default=Path("build/fonts"))
    parser.add_argument("--pillow-font", action="store_true", help="use only Pillow's")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch-tiles", type=int, default=72, help="for questions")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--page-steps", type=int, default=5000, help="of pages only, for the tower"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--resume", action="store_true")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
