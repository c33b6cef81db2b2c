#!/usr/bin/env python3
"""Train the tiny checkpoint that ranks pages of drawn numbers.

    tools/fonts.sh build/fonts
    python tools/train_ranker.py build/finder

Starts from the weights of the embedded checkpoint that embeds, and writes
``build/finder/rerank``. The tower stays as it is, so each page is drawn and encoded
once. The language model learns to compare first from texts, which are short, then from
texts and pages.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from torch import nn

from nemotron_vl.checkpoints.embedded import tiny_finder
from nemotron_vl.verify.reference_retrieval import RetrievalReference
from tiny_finder.comparing import SCALE, Comparing, ranking_losses
from tiny_finder.forward import Pooler, encode
from tiny_finder.pages import PageDrawer, page_lines
from tiny_finder.weights import Optimizers
from tiny_reader.batches import Stage
from tiny_reader.forward import fastest_dtype
from tiny_reader.supply import Supply
from tiny_reader.training import Heads, Means
from train_finder import WIDTH, make_parser, make_template, prepare, save
from train_tiny import export, use_tcmalloc

# Passages of a step: texts alone at first, then texts and pages.
TEXTS, WITH_PAGES = 24, (12, 10)
# Share of the time with texts alone.
TEXTS_ALONE = 0.2
# Share of the time from which the learning rate falls.
FALL = 0.6


class Shown:
    """Pages whose features are known."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.features: list[torch.Tensor] = []  # (tiles, patches, width)

    def draw(self, model: RetrievalReference, args: argparse.Namespace) -> None:
        """Draw and encode ``args.pages`` pages."""
        dtype = fastest_dtype()
        drawer = PageDrawer(args.fonts, model.tile_size, 96)
        stage = Stage(answers=True, tiles=1.0, effort=0.7)
        step, seed = 0, args.seed + 1  # others than the finder's
        with Supply(drawer, seed, args.threads) as supply:
            while len(self.lines) < args.pages:
                pages = supply.take(step, stage)
                step += 1
                pixels = torch.cat([page.views.pixels for page in pages])
                with torch.no_grad():
                    features = encode(model, pixels, dtype).half()
                tiles = [len(page.views.pixels) for page in pages]
                self.features += features.split(tiles)
                self.lines += [page.lines for page in pages]

    def pooler(
        self, model: RetrievalReference, chosen: list[int], dtype: torch.dtype
    ) -> Pooler:
        side = model.tile_size // model.patch_size
        features = [self.features[n] for n in chosen]
        if not features:
            features = [torch.zeros(1, side**2, WIDTH)]
        tiles = [len(page) for page in features]
        return Pooler(model, torch.cat(features).to(dtype), tiles, dtype)


def rate_at(progress: float) -> float:
    """Share of the full learning rate: warm-up, plateau, linear descent."""
    return max(0.0, min(1.0, progress / 0.01 + 0.02, (1 - progress) / (1 - FALL)))


def train(args: argparse.Namespace) -> None:
    dtype = fastest_dtype()
    template = args.folder / "rerank_untrained"
    make_template(template, ranks=True, seed=args.seed)
    model = RetrievalReference(template).train().requires_grad_(True)
    assert model.score_head is not None
    nn.init.zeros_(model.score_head.weight)
    comparing = Comparing(model.llama.config.hidden_size)
    saved = args.folder / "rerank.pt"
    if args.more:
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        comparing.load_state_dict(state["comparing"])
    else:
        embedding = RetrievalReference(Path(tiny_finder()))
        model.load_state_dict(embedding.state_dict(), strict=False)
    optimizers = Optimizers(model, Heads(WIDTH), comparing, args.learning_rate)
    shown, means = Shown(), Means()
    rng = random.Random(f"ranker {args.seed}")
    alone = 0.0 if args.more else TEXTS_ALONE
    step, seconds, last, budget = 0, 0.0, 0.0, 60 * args.minutes
    start = time.monotonic()
    while seconds < budget:
        progress = seconds / budget
        texts, count = (TEXTS, 0) if progress < alone else WITH_PAGES
        if count and not shown.lines:
            shown.draw(model, args)
            print(f"{len(shown.lines)} pages are drawn and encoded", flush=True)
            start = time.monotonic() - seconds
        chosen = rng.sample(range(len(shown.lines)), count)
        passages = [(shown.lines[n], place) for place, n in enumerate(chosen)]
        passages += [(page_lines(rng), None) for _ in range(texts)]
        pooler = shown.pooler(model, chosen, dtype)
        losses = ranking_losses(model, comparing, pooler, passages, rng)
        total = losses["rank"] + 2 * losses.get("same", 0.0)
        optimizers.step(total, (0.0, rate_at(progress)))
        for key, loss in losses.items():
            means.add(key, loss.item())
        step += 1
        seconds = time.monotonic() - start
        if seconds - last > args.log_every:
            last = seconds
            print(f"{seconds:.0f} of {budget:.0f} s, step {step}: {means}", flush=True)
    save(saved, model=model, comparing=comparing)
    model.score_head.weight.data *= SCALE
    export(model, template, args.folder / "rerank")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--pages", type=int, default=5000)
    args = parser.parse_args()
    prepare(args)
    train(args)


if __name__ == "__main__":
    use_tcmalloc()
    main()
