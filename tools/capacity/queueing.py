# SPDX-License-Identifier: Apache-2.0
"""Waiting times of queues with random arrivals. Imports nothing but Python.

M/D/1 is one server that takes the same time for each page. M/M/c is c servers (or
places) that take exponentially distributed times.
"""

import math
from functools import lru_cache

_BEYOND = 1e-11  # probability of longer queues, which are left out
_LONGEST = 5000


def wait_quantile(utilisation: float, share: float = 0.99) -> float:
    """The waiting time that ``share`` of the pages stay within, in M/D/1.

    One server takes each page in the order of arrival, for the same time; arrivals
    are a Poisson process.

    Args:
        utilisation: Share of the time that the server is busy, at most 0.99.
        share: Such as 0.99 for p99.

    Returns:
        In units of the time that the server takes for a page; 0 if that many pages
        do not wait.

    Raises:
        ValueError: The utilisation is out of range.
    """
    if not 0 <= utilisation <= 0.99:
        raise ValueError(f"A utilisation of {utilisation} is not from 0 to 0.99.")
    if wait_share(0, utilisation) >= share:
        return 0.0
    low, high = 0.0, 1.0
    while wait_share(high, utilisation) < share:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if wait_share(middle, utilisation) < share else (low, middle)
        )
    return high


def place_quantile(places: int, load: float, share: float = 0.99) -> float:
    """The waiting time that ``share`` of the requests stay within, in M/M/c.

    Erlang's formula: a request waits with his probability C, and then for an
    exponentially distributed time.

    Args:
        places: How many requests are served at once.
        load: Places that are taken on average.
        share: Such as 0.99 for p99.

    Returns:
        In units of the mean time that a request keeps its place.

    Raises:
        ValueError: The load is not below the number of places.
    """
    if not 0 <= load < places:
        raise ValueError(f"A load of {load} does not fit into {places} places.")
    blocked = 1.0  # Erlang's B
    for number in range(1, places + 1):
        blocked = load * blocked / (number + load * blocked)
    waits = blocked / (1 - load / places * (1 - blocked))
    if waits <= 1 - share:
        return 0.0
    return math.log(waits / (1 - share)) / (places - load)


def wait_share(wait: float, utilisation: float) -> float:
    """Share of the pages that wait at most ``wait`` times a page's time, in M/D/1.

    G. J. Franx, A simple solution for the M/D/c waiting time distribution, Operations
    Research Letters 29 (2001), for one server. All its terms are positive, so nothing
    cancels.
    """
    at_most = _queue_lengths(utilisation)
    whole = math.floor(wait) + 1
    mean = utilisation * (whole - wait)
    total, term = 0.0, math.exp(-mean)
    for arrivals in range(whole):
        # At most so many pages in the system, one of which is served.
        place = min(whole - arrivals, len(at_most) - 1)
        total += at_most[place] * term
        term *= mean / (arrivals + 1)
    return total


@lru_cache
def _queue_lengths(utilisation: float) -> list[float]:
    """Probabilities of at most 0, 1, ... pages in the system.

    The chain at departures crosses each length upwards as often as downwards (the same
    probabilities hold at any time).
    """
    none = term = math.exp(-utilisation)
    more = [1 - none]  # probabilities of more than n arrivals while a page is served
    chances = [1 - utilisation]
    at_most = [1 - utilisation]
    while 1 - at_most[-1] > _BEYOND and len(chances) < _LONGEST:
        length = len(chances)
        upwards = chances[0] * more[length - 1]
        upwards += sum(chances[i] * more[length - i] for i in range(1, length))
        chances.append(upwards / none)
        at_most.append(min(1.0, at_most[-1] + chances[-1]))
        term *= utilisation / length
        more.append(max(0.0, more[-1] - term))
    return at_most
