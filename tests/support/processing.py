"""Process prompts with images, and count what must come out."""

import itertools

import torch

TILE, TOKENS = 64, 4  # pixels and tokens of a tile of the test checkpoints
# Width and height of images: of one tile, of the most, smaller and very long ones.
SIZES = [
    (1, 1),
    (32, 32),
    (64, 64),
    (65, 64),
    (50, 60),
    (128, 128),
    (1, 3000),
    (10000, 10),
    (640, 480),
    (300, 900),
    (1700, 2200),
    (1920, 1080),
]


def process(processor, prompt, images, cache=None, **kwargs):
    items = processor.info.parse_mm_data({"image": images})
    return processor(prompt, items, hf_processor_mm_kwargs=kwargs, cache=cache)


def pixels(result) -> torch.Tensor:
    """All tiles of all images in a processed prompt."""
    items = result["mm_kwargs"]["image"]
    return torch.cat([item["pixel_values_flat"].data for item in items])


def count_image_tokens(result, processor) -> int:
    placeholder = processor.info.get_tokenizer().convert_tokens_to_ids("<image>")
    return result["prompt_token_ids"].count(placeholder)


def grid_by_the_rule(width, height, tile, fewest, most) -> tuple[int, int]:
    """The tiling rule as the model card states it."""
    scores = scores_by_the_rule(width, height, tile, fewest, most)
    return max(scores, key=scores.__getitem__)


def scores_by_the_rule(
    width, height, tile, fewest, most
) -> dict[tuple[int, int], float]:
    """How good each grid is, the smallest first. The best one is taken."""
    grids = [
        (columns, rows)
        for columns, rows in itertools.product(range(1, most + 1), repeat=2)
        if fewest <= columns * rows <= most
    ]
    scores = {}
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        ratio, aspect = columns / rows, width / height
        score = min(columns * rows * tile * tile / (width * height), 0.6)
        scores[columns, rows] = score * min(ratio / aspect, aspect / ratio)
    return scores
