#!/usr/bin/env python3
"""Train the tiny checkpoint that finds pages of drawn numbers.

    tools/fonts.sh build/fonts
    python tools/train_finder.py build/finder

Trains the reference of the model that embeds pages and questions and writes
``build/finder/embed``. The schedule follows the time that passes.
tools/train_ranker.py trains the one that ranks from its weights.
"""

import argparse
import random
import shutil
import time
from pathlib import Path

import torch
from torch import nn

from nemotron_vl.checkpoints.random_retrieval import make_retrieval_checkpoint
from nemotron_vl.verify.reference_retrieval import RetrievalReference
from tiny_finder.forward import Pooler, encode
from tiny_finder.learning import (
    Spelling,
    embedding_losses,
    texts_loss,
)
from tiny_finder.pages import Page, PageDrawer
from tiny_finder.weights import Optimizers, initialise
from tiny_reader.batches import Stage
from tiny_reader.forward import fastest_dtype
from tiny_reader.supply import Supply
from tiny_reader.training import Heads, Means, tower_losses
from train_tiny import export, use_tcmalloc

WIDTH = 192  # of the tower
# Share of the time at which the tower no longer learns alone.
TOWER_ALONE = 0.45
# Steps of the language model on texts alone, and texts of a step.
TEXT_STEPS, TEXTS = 1000, 96
# Share of the time from which the learning rate falls.
FALL = 0.6


def make_template(folder: Path, ranks: bool, seed: int) -> None:
    """Write a checkpoint of the sizes to train, with random weights."""
    shutil.rmtree(folder, ignore_errors=True)
    make_retrieval_checkpoint(
        folder,
        ranks=ranks,
        tile_size=128,
        seed=seed,
        vision_options={
            "hidden_size": WIDTH,
            "intermediate_size": 288,
            "num_hidden_layers": 4,
            "vision_use_head": False,
        },
        text_options={"intermediate_size": 384, "num_hidden_layers": 3},
    )


def stage_at(progress: float) -> Stage:
    """What is drawn after a share of the time."""
    share = min(1.0, progress / TOWER_ALONE)
    effort = min(0.8, 0.1 + share)
    tiles = min(1.0, max(0.0, 2 * share - 0.6))
    return Stage(progress >= TOWER_ALONE, tiles, effort)


def rate_at(progress: float, start: float) -> float:
    """Share of the full learning rate: warm-up, plateau, linear descent."""
    warm = min(1.0, (progress - start) / 0.02 + 0.02)
    return max(0.0, warm * min(1.0, (1 - progress) / (1 - FALL)))


def losses_of(
    model: RetrievalReference,
    heads: Heads,
    spelling: Spelling,
    pages: list[Page],
    rng: random.Random,
    answers: bool,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    pixels = torch.cat([page.views.pixels for page in pages])
    features = encode(model, pixels, dtype)
    losses = tower_losses(heads, features, [page.views for page in pages])
    if answers:
        tiles = [len(page.views.pixels) for page in pages]
        pooler = Pooler(model, features, tiles, dtype)
        losses |= embedding_losses(spelling, pooler, pages, rng)
    return losses


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tower's labels stay part of the loss: the pages alone say too little."""
    weights = {"cell": 0.5, "before": 0.2, "line": 0.05}
    weights |= {"find": 0.5, "spelt": 2.0, "asked": 1.0}
    found = [weights[name] * loss for name, loss in losses.items() if name in weights]
    return torch.stack(found).sum()


def learn_from_texts(
    model: RetrievalReference,
    spelling: Spelling,
    optimizers: Optimizers,
    seed: int,
    dtype: torch.dtype,
) -> None:
    """Train the language model on texts alone, which takes little time.

    Otherwise it would learn the order of characters from pages, of which a tower that
    has not finished sees too little.
    """
    rng, mean = random.Random(f"texts {seed}"), 0.0
    no_tiles = torch.zeros(1, (model.tile_size // model.patch_size) ** 2, WIDTH)
    for step in range(TEXT_STEPS):
        pooler = Pooler(model, no_tiles.to(dtype), [1], dtype)
        loss = texts_loss(spelling, pooler, TEXTS, rng)
        left = min(1.0, 2 - 2 * step / TEXT_STEPS, (step + 1) / 20)
        optimizers.step(loss, (0.0, left))
        mean = 0.98 * (mean or loss.item()) + 0.02 * loss.item()
        if step % 50 == 49:
            print(f"step {step + 1} of texts alone, loss {mean:.3f}", flush=True)


def train(args: argparse.Namespace) -> None:
    dtype = fastest_dtype()
    template = args.folder / "embed_untrained"
    make_template(template, ranks=False, seed=args.seed)
    model = RetrievalReference(template).train().requires_grad_(True)
    heads, spelling = Heads(WIDTH), Spelling(model.llama.config.hidden_size)
    saved = args.folder / "embed.pt"
    begin, learnt_texts = 0.0, args.more
    if args.more:
        begin = TOWER_ALONE
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        spelling.load_state_dict(state["spelling"])
    else:
        initialise(model)
    optimizers = Optimizers(model, heads, spelling, args.learning_rate)
    drawer = PageDrawer(args.fonts, model.tile_size, args.batch_tiles)
    means, seconds, last = Means(), 0.0, 0.0
    step, budget = 0, 60 * args.minutes
    log = (args.folder / "embed.log").open("a")
    with Supply(drawer, args.seed, args.threads) as supply:
        supply.draw(0, stage_at(begin))
        start = time.monotonic()
        while seconds < budget:
            progress = begin + (1 - begin) * seconds / budget
            stage = stage_at(progress)
            if stage.answers and not learnt_texts:
                learnt_texts = True
                learn_from_texts(model, spelling, optimizers, args.seed, dtype)
                start = time.monotonic() - seconds
            pages = supply.take(step, stage)
            rng = random.Random(f"{args.seed} {step}")
            losses = losses_of(model, heads, spelling, pages, rng, stage.answers, dtype)
            rates = rate_at(progress, begin), rate_at(progress, TOWER_ALONE)
            if optimizers.step(total(losses), rates):
                for key, loss in losses.items():
                    means.add(key, loss.item())
            step += 1
            seconds = time.monotonic() - start
            if seconds - last > args.log_every:
                last = seconds
                line = f"{seconds:.0f} of {budget:.0f} s, step {step}: {means}"
                print(line, flush=True)
                print(line, file=log, flush=True)
    save(saved, model=model, heads=heads, spelling=spelling)
    export(model, template, args.folder / "embed")


def save(file: Path, **parts: nn.Module) -> None:
    """Write the state of the parts, with which a training can go on."""
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options of the trainings that find and rank.

    Args:
        description: Of which the first sentence is shown.
    """
    parser = argparse.ArgumentParser(
        description=description.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder for all output")
    parser.add_argument("--more", action="store_true", help="go on with its weights")
    parser.add_argument("--fonts", type=Path, default=Path("build/fonts"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=float, default=20, metavar="SECONDS")
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Make the folder, and PyTorch's choices those of the arguments."""
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch-tiles", type=int, default=96, help="least per step")
    args = parser.parse_args()
    prepare(args)
    train(args)


if __name__ == "__main__":
    use_tcmalloc()
    main()
