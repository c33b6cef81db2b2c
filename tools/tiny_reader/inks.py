"""Papers and inks of the training images: plain, gradients, photographs, noise."""

import random
from pathlib import Path

import cv2
import numpy as np

# Photographs that come with scikit-image; cairo_painter.py uses others.
PHOTOGRAPHS = ("astronaut", "chelsea", "rocket", "motorcycle_left", "grass", "ihc")

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def load_photographs(names: tuple[str, ...] = PHOTOGRAPHS) -> list[np.ndarray]:
    """Images ``(height, width, 3)`` uint8, RGB."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = []
    for name in names:
        (file,) = folder.glob(f"{name}.*")
        found.append(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB))
    return found


def _colour(rng: random.Random, level: float, tint: float) -> np.ndarray:
    """A colour of about this luminance."""
    colour = np.array([rng.uniform(-tint, tint) for _ in range(3)], np.float32)
    return np.clip(colour + (level - colour @ _LUMA), 0, 255)


def _gradient(
    rng: random.Random, shape: tuple[int, int], start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Colours ``(height, width, 3)`` from ``start`` to ``end`` in any direction."""
    down, across = (np.linspace(0, 1, side, dtype=np.float32) for side in shape)
    slope = rng.random()
    if rng.random() < 0.5:
        across = across[::-1]
    share = slope * across[None, :] + (1 - slope) * down[:, None]
    return start + share[..., None] * (end - start)


def _photograph(
    rng: random.Random, shape: tuple[int, int], photographs: list[np.ndarray]
) -> np.ndarray:
    photo = rng.choice(photographs)
    height, width = shape
    ratio = width / height
    most = min(photo.shape[0], photo.shape[1] / ratio)
    part = rng.uniform(0.2, 1.0) * most
    rows, columns = max(2, int(part)), max(2, int(part * ratio))
    top = rng.randint(0, photo.shape[0] - rows)
    left = rng.randint(0, max(0, photo.shape[1] - columns))
    cut = photo[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    cut = cv2.resize(np.ascontiguousarray(cut), (width, height))
    return cut[..., [*rng.sample(range(3), 3)]].astype(np.float32)


def _clouds(rng: random.Random, shape: tuple[int, int]) -> np.ndarray:
    """Smooth random colours, like an unsharp background."""
    seed = np.random.default_rng(rng.getrandbits(32))
    side = rng.randint(2, 9)
    small = seed.integers(0, 256, (side, side, 3)).astype(np.float32)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)


def paint(
    rng: random.Random,
    mask: np.ndarray,
    em: float,
    photographs: list[np.ndarray],
    effort: float,
) -> np.ndarray:
    """Paint ink on paper, then blur, add noise and compress.

    Args:
        rng: Source of every choice.
        mask: Ink ``(height, width)`` uint8.
        em: Font size in pixels, which bounds the blur.
        photographs: For backgrounds.
        effort: How much is varied, from 0 to 1.

    Returns:
        ``(height, width, 3)`` uint8, RGB.
    """
    shape = mask.shape
    least = 130 - 80 * effort * rng.random() ** 2  # contrast of paper and ink
    tint = rng.choice((0, 10, 60, 200)) * effort
    if rng.random() < 0.4:  # as most people draw
        paper, ink = rng.uniform(225, 255), rng.uniform(0, 60)
    else:
        paper = rng.uniform(0, 255)
        choices = [level for level in (paper - least, paper + least) if 0 < level < 255]
        if not choices:
            paper = rng.choice((rng.uniform(least, 255), rng.uniform(0, 255 - least)))
            choices = [paper - least if paper >= least else paper + least]
        edge = rng.choice(choices)
        ink = rng.uniform(0, edge) if edge < paper else rng.uniform(edge, 255)
    kind = rng.random() / max(effort, 1e-6)
    inks = _colour(rng, ink, tint)
    background: np.ndarray
    if kind < 0.16:
        background = (
            _photograph(rng, shape, photographs) if kind < 0.11 else _clouds(rng, shape)
        )
        # A light photograph behind dark ink or the reverse, at least ``least`` apart.
        most = 255 - least - 0.4 * min(ink, 255 - ink)
        depth = rng.uniform(0.25, 1.0) * most / 255
        background = background * depth
        if ink < 128:
            background += 255 - 255 * depth
            inks = inks * 0.4
        else:
            inks = 255 - (255 - inks) * 0.4
    elif kind < 0.36:
        other = np.clip(paper + rng.uniform(-50, 50), 0, 255)
        if abs(other - ink) < least * 0.8:
            other = paper
        background = _gradient(
            rng, shape, _colour(rng, paper, tint), _colour(rng, other, tint)
        )
    else:
        background = np.broadcast_to(_colour(rng, paper, tint), (*shape, 3))
    if rng.random() < 0.12 * effort:
        end = _colour(rng, np.clip(ink + rng.uniform(-40, 40), 0, 255), tint)
        inks = _gradient(rng, shape, inks, end)
    alpha = mask.astype(np.float32)[..., None] / 255
    pixels = np.ascontiguousarray(background + alpha * (inks - background))
    if rng.random() < 0.12 * effort:
        _lines(rng, pixels, inks)
    if rng.random() < 0.25 * effort:
        sigma = max(0.2, min(1.8, 0.05 * em)) * rng.uniform(0.3, 1.0)
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
    if rng.random() < 0.3 * effort:
        noise = np.random.default_rng(rng.getrandbits(32))
        pixels = pixels + rng.uniform(1, 14) * noise.standard_normal(
            (*shape, rng.choice((1, 3))), np.float32
        )
    result = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.35 * effort:
        quality = [cv2.IMWRITE_JPEG_QUALITY, rng.randint(40, 95)]
        result = cv2.imdecode(cv2.imencode(".jpg", result, quality)[1], 1)
    return result


def _lines(rng: random.Random, pixels: np.ndarray, inks: np.ndarray) -> None:
    """Draw a frame, or rules, in the middle between paper and ink."""
    height, width = pixels.shape[:2]
    colour = (pixels[0, 0] + inks.reshape(-1, 3)[0]) / 2
    thick = rng.randint(1, 2)
    if rng.random() < 0.5:
        inset = rng.randint(0, max(1, min(height, width) // 25))
        corner = (width - 1 - inset, height - 1 - inset)
        cv2.rectangle(pixels, (inset, inset), corner, colour.tolist(), thick)
    else:
        for y in rng.choice(((0.02, 0.98), (0.97,), (0.03,))):
            pixels[int(y * height) :][:thick] = colour
