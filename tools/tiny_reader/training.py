"""The training: stages, losses and optimisers.

First the tower alone learns which character is where, in images of one tile and then of
several. Then everything learns to answer, first about images of one tile. Heads for the
labels of patches are dropped at the end.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nemotron_vl.verify.reference import RadioTower, Reference

from .batches import Drawer, Example, Stage
from .forward import Decoder, connect, encode
from .strings import CHARACTERS
from .views import CELLS, IGNORED, MOST_BEFORE, Views

LINES = 3
GROUPS = 3  # of examples of similar length, which are padded together
WEIGHTS = {"answer": 1.0, "cell": 1.0, "before": 0.3, "line": 0.1}

# Shares of the time at which the stages end: the tower alone, questions about one tile,
# questions about more and more tiles.
TOWER_ALONE, ONE_TILE, FEW_TILES = 0.3, 0.48, 0.75

# Steps and learning rate with which heads learn from a trained tower.
HEADS_STEPS, HEADS_RATE = 80, 5e-3


class Heads(nn.Module):
    """Predict the labels of patches from the tower's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [CELLS * (len(CHARACTERS) + 1), MOST_BEFORE, LINES]
        self.patch = nn.Linear(width, sum(self.sizes))


def stage_at(progress: float) -> Stage:
    """What is drawn after a share of the time."""
    if progress < TOWER_ALONE:
        share = progress / TOWER_ALONE
        tiles, effort = min(0.5, max(0.0, 2 * share - 0.5)), min(1.0, 0.2 + 2 * share)
        return Stage(False, tiles, effort)
    if progress < ONE_TILE:
        return Stage(True, 0.0, 1.0)
    tiles = 1 + min(1.0, (progress - ONE_TILE) / (FEW_TILES - ONE_TILE))
    return Stage(True, tiles, 1.0)


def learning_rate(progress: float, alone: bool, start: float = 0.0) -> float:
    """Share of the full learning rate: warm-up, plateau, and linear descent.

    Args:
        progress: Share of the time that is over.
        alone: For the parts that the tower's stage leaves out.
        start: Share of the time at which the warm-up begins.
    """
    if alone:
        start = max(start, TOWER_ALONE)
    warm = min(1.0, (progress - start) / 0.01 + 0.02)
    left = min(1.0, (1 - progress) / (1 - ONE_TILE - 0.05))
    return max(0.0, warm * left)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    known = targets != IGNORED
    if not known.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[known].float(), targets[known])


def _balanced(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean loss of the cells with a character and of those without, which are many."""
    empty = targets.masked_fill(targets > 0, IGNORED)
    marked = targets.masked_fill(targets == 0, IGNORED)
    return _cross_entropy(logits, marked) + _cross_entropy(logits, empty)


def tower_losses(
    heads: Heads, features: torch.Tensor, views: list[Views]
) -> dict[str, torch.Tensor]:
    """Losses of the patch labels, and the share of right characters."""
    x = F.linear(
        features,
        heads.patch.weight.to(features.dtype),
        heads.patch.bias.to(features.dtype),
    )
    cells, before, line = x.split(heads.sizes, -1)
    cells = cells.unflatten(-1, (CELLS, -1))
    targets = torch.cat([v.cells for v in views])
    with torch.no_grad():
        marked = targets > 0
        hits = (cells[marked].argmax(-1) == targets[marked]).float().mean()
    return {
        "cell": _balanced(cells, targets),
        "before": _cross_entropy(before, torch.cat([v.before for v in views])),
        "line": _cross_entropy(line, torch.cat([v.line for v in views])),
        "hits": hits,
    }


@dataclass
class Result:
    losses: dict[str, torch.Tensor]
    right: list[bool]  # of each example, shortest first

    def total(self) -> torch.Tensor:
        return torch.stack(
            [w * self.losses[k] for k, w in WEIGHTS.items() if k in self.losses]
        ).sum()


def tower_step(
    model: Reference, heads: Heads, views: list[Views], dtype: torch.dtype
) -> Result:
    pixels = model.condition(torch.cat([v.pixels for v in views]))
    features = encode(model.tower, pixels, dtype)
    return Result(tower_losses(heads, features, views), [])


def answer_step(
    model: Reference, heads: Heads, examples: list[Example], dtype: torch.dtype
) -> Result:
    """Losses of a batch.

    An answer is right if each of its tokens is the likeliest one after the right
    tokens before it. Greedy decoding gives the answer exactly in that case.
    """
    examples.sort(key=lambda example: len(example.ids))
    views = [v for example in examples for v in example.views]
    pixels = model.condition(torch.cat([v.pixels for v in views]))
    features = encode(model.tower, pixels, dtype)
    losses = tower_losses(heads, features, views)
    embeds = connect(model, features)
    decoder = Decoder(model.language_model.model, dtype)
    table = model.language_model.get_input_embeddings().weight.to(dtype)
    output = model.language_model.get_output_embeddings().weight.to(dtype)
    (image_id,) = model.tokenizer.encode("<image>", add_special_tokens=False)
    found, wanted, right = [], [], []
    tile = 0
    per_group = math.ceil(len(examples) / GROUPS)
    for start in range(0, len(examples), per_group):
        group = examples[start : start + per_group]
        ids = nn.utils.rnn.pad_sequence([e.ids for e in group], batch_first=True)
        labels = nn.utils.rnn.pad_sequence(
            [e.labels for e in group], batch_first=True, padding_value=IGNORED
        )
        tiles = sum(len(v.pixels) for e in group for v in e.views)
        is_image = (ids == image_id)[..., None]
        inputs = F.embedding(ids, table)
        inputs = inputs.masked_scatter(is_image, embeds[tile : tile + tiles])
        tile += tiles
        hidden = decoder(inputs)
        target = labels[:, 1:]
        learnt = target != IGNORED
        logits = F.linear(hidden[:, :-1][learnt], output).float()
        found.append(logits)
        wanted.append(target[learnt])
        wrong = torch.zeros_like(learnt)
        wrong[learnt] = logits.argmax(-1) != target[learnt]
        right += (~wrong.any(1)).tolist()
    losses["answer"] = F.cross_entropy(torch.cat(found), torch.cat(wanted))
    return Result(losses, right)


def fit_heads(
    model: Reference, heads: Heads, drawer: Drawer, seed: int, dtype: torch.dtype
) -> float:
    """Train new heads for a trained tower, which stays as it is.

    Otherwise the first gradients of the heads would undo what the tower has learnt.

    Returns:
        Share of right characters in the last batches.
    """
    optimizer = torch.optim.AdamW(heads.parameters(), HEADS_RATE)
    means = Means(memory=0.8)
    model.requires_grad_(False)
    for number in range(HEADS_STEPS):
        views = drawer.batch(f"heads {seed} {number}", Stage(False, 0.5, 1.0))
        result = tower_step(model, heads, views, dtype)
        result.total().backward()
        optimizer.step()
        optimizer.zero_grad()
        means.add("hits", result.losses["hits"].item())
    model.requires_grad_(True)
    return means.values["hits"]


def change_weights(
    optimizers: Sequence[torch.optim.Optimizer],
    parts: Sequence[Sequence[nn.Parameter]],
    loss: torch.Tensor,
    rates: tuple[float, float],
) -> bool:
    """Take a step, unless the loss or its gradient is not finite.

    Args:
        optimizers: Each has two groups of parameters.
        parts: Parameters whose gradients are clipped together.
        loss: Of the batch.
        rates: Learning rates of the two groups.

    Returns:
        Whether the weights have changed.
    """
    finite = bool(loss.isfinite())
    if finite:
        loss.backward()
        norms = [nn.utils.clip_grad_norm_(part, 1.0) for part in parts]
        finite = all(bool(norm.isfinite()) for norm in norms)
    for optimizer in optimizers:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if finite:
            optimizer.step()
        optimizer.zero_grad()
    return finite


class Optimizers:
    """Muon for the matrices of the blocks, AdamW for all else.

    Args:
        model: To train.
        heads: To train.
        rate: The full learning rate.
        start: Share of the time at which the warm-up begins.
    """

    def __init__(
        self, model: Reference, heads: Heads, rate: float, start: float = 0.0
    ) -> None:
        self.rate, self.start = rate, start
        tower = [*model.tower.blocks.parameters()]
        rest = [
            *model.mlp1.parameters(),
            *model.language_model.model.layers.parameters(),
        ]
        late = {
            id(p)
            for p in [*model.mlp1.parameters(), *model.language_model.parameters()]
        }
        matrices = [p for p in [*tower, *rest] if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [
            p for p in [*model.parameters(), *heads.parameters()] if id(p) not in chosen
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                [
                    {"params": [p for p in matrices if (id(p) in late) == is_late]}
                    for is_late in (False, True)
                ],
                weight_decay=0.05,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [
                    {"params": [p for p in others if (id(p) in late) == is_late]}
                    for is_late in (False, True)
                ],
                betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        ]
        self.parts = [
            [*model.tower.parameters(), *heads.parameters()],
            [*model.mlp1.parameters(), *model.language_model.parameters()],
        ]

    def step(self, loss: torch.Tensor, progress: float) -> bool:
        """Change the weights, unless the loss or its gradient is not finite."""
        first, second = (
            self.rate * learning_rate(progress, alone, self.start)
            for alone in (False, True)
        )
        return change_weights(self.optimizers, self.parts, loss, (first, second))

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


class Means:
    """Running means of figures by name."""

    def __init__(self, memory: float = 0.98) -> None:
        self.memory = memory
        self.values: dict[str, float] = defaultdict(float)

    def add(self, name: str, value: float) -> None:
        old = self.values.get(name, value)
        self.values[name] = self.memory * old + (1 - self.memory) * value

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in self.values.items())


def initialise(tower: RadioTower) -> None:
    """Initialise attention so that it looks at neighbouring patches.

    Position embeddings start as sines, keys close to the queries, and the output of
    attention opposes its input (Trockman and Kolter 2023, "Mimetic initialization of
    self-attention layers"). A small vision transformer then learns from far fewer
    images.
    """
    width = tower.positions.shape[-1]
    # The grid is resized to the patches of a tile; waves are as long as for those.
    tower.positions.data = wave_positions(tower.grid, width, 0.5)[None]
    for block in tower.blocks:
        queries, keys, values = block.attn.qkv.weight.data.split(width)
        look_near(queries, keys, values, block.attn.proj.weight)


def wave_positions(side: int, width: int, step: float) -> torch.Tensor:
    """Sines of places on a grid (side * side, width), ``step`` patches apart."""
    frequencies = 20.0 ** (-torch.arange(width // 4) / (width // 4)) * torch.pi / 2
    places = torch.arange(side)[:, None] * step * frequencies
    waves = torch.cat([places.sin(), places.cos()], dim=1)
    rows, columns = waves[:, None], waves[None]
    grid = [rows.expand(-1, side, -1), columns.expand(side, -1, -1)]
    return torch.cat(grid, dim=-1).flatten(0, 1)


def look_near(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: nn.Parameter
) -> None:
    """Weights of attention, each (width, width), as ``initialise`` says."""
    width = len(queries)
    keys.mul_(0.3).add_(queries, alpha=0.8)
    values.copy_(torch.linalg.qr(torch.randn(width, width))[0])
    noise = torch.randn(width, width) * width**-0.5
    out.data = 0.4 * (noise - values.T)
