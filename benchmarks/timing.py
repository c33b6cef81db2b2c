"""Timing of two or more sides in turns."""

import random
import statistics
import time
from collections.abc import Callable, Iterable

Times = dict[str, list[float]]


def take_turns(calls: dict[str, Callable], rounds: int) -> Times:
    """Seconds of each call in each round, after one round to warm up."""
    times: Times = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in order(calls, number):
            start = time.perf_counter()
            calls[name]()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def order(sides: Iterable[str], number: int) -> list[str]:
    """The sides in the order of a round: no side always follows the same other one, and
    meets the caches that it leaves."""
    names = [*sides]
    return random.Random(number).sample(names, len(names))


def summarise(times: Times, baseline: str) -> dict[str, dict[str, float]]:
    """Median milliseconds of each side, and how many times faster than the side
    ``baseline`` it is: median and range of the rounds."""
    found = {}
    for side, seconds in times.items():
        ratios = [a / b for a, b in zip(times[baseline], seconds, strict=True)]
        found[side] = {
            "ms": 1000 * statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return found


def print_table(title: str, found: dict[str, dict], baseline: str) -> None:
    print(f"\n{title}")
    for name, row in found.items():
        cells = [
            f"{side} {cell['ms']:.1f}"
            + (
                f" ({cell['ratio']:.1f}x, {cell['ratio_min']:.1f}-"
                f"{cell['ratio_max']:.1f})"
            )
            * (side != baseline)
            for side, cell in row.items()
        ]
        print(f"{name:>10}  " + "  ".join(cells))
