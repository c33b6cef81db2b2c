"""The simulation of docs/capacity.md, against theory where it is known."""

import dataclasses
import math
import random
import statistics
from collections.abc import Callable

import pytest
import simpy

from capacity.engine import Engine
from capacity.queueing import place_quantile, wait_quantile
from capacity.simulation import (
    SteppingEngine,
    fewest_prompts,
    fewest_requests,
    quantile,
    simulate_queue,
    simulate_service,
)

PAGES, SEEDS = 30_000, (1, 2, 3, 4)
ENGINE = Engine(
    encode=0.05,
    prefill=0.13,
    pages_of_step=2.4,
    read=0.006,
    read_context=0.0002,
    decode=0.00004,
    answer_tokens=200,
    most_sequences=109,
)
SERVICE = {
    "prompt": 3400,
    "budget": 8192,
    "api_servers": 1,
    "api_seconds": 0.0,
    "pages": 20_000,
    "seed": 3,
}


def mean_of_seeds(
    servers: int,
    load: float,
    of_waits: Callable[[list[float]], float],
    exponential: bool = False,
) -> float:
    """A statistic of waits in a queue whose servers take 1 s for a page."""
    found = []
    for seed in SEEDS:
        times = random.Random(100 + seed)
        service = (lambda t=times: t.expovariate(1)) if exponential else (lambda: 1.0)
        waits = simulate_queue(servers, load, service, PAGES, seed)
        found.append(of_waits(waits))
    return statistics.fmean(found)


@pytest.mark.parametrize("utilisation", [0.5, 0.8])
@pytest.mark.parametrize("share", [0.9, 0.99])
def test_equal_pages_wait_as_in_m_d_1(utilisation, share):
    simulated = mean_of_seeds(1, utilisation, lambda waits: quantile(waits, share))
    assert simulated == pytest.approx(wait_quantile(utilisation, share), rel=0.05)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.6), (4, 0.6), (4, 0.7)])
def test_exponential_pages_wait_as_in_m_m_c(servers, utilisation):
    load = servers * utilisation
    simulated = mean_of_seeds(
        servers, load, lambda waits: quantile(waits, 0.99), exponential=True
    )
    assert simulated == pytest.approx(place_quantile(servers, load), rel=0.1)


def test_equal_pages_wait_half_as_long_with_several_servers():
    """M/D/c against Erlang's mean of M/M/c: about half in heavy traffic."""
    equal = mean_of_seeds(4, 3.6, statistics.fmean)
    blocked = 1.0
    for number in range(1, 5):
        blocked = 3.6 * blocked / (number + 3.6 * blocked)
    exponential = blocked / (1 - 0.9 * (1 - blocked)) / (4 - 3.6)
    assert 0.48 < equal / exponential < 0.55


def first_tokens(arrivals: list[float], engine: Engine, budget: int) -> list[float]:
    environment = simpy.Environment()
    found: list[float] = []
    one = SteppingEngine(
        environment, engine, 3400, budget, found, lambda: engine.answer_tokens
    )

    def arrive():
        for pause in arrivals:
            yield environment.timeout(pause)
            one.submit(environment.now)

    environment.process(arrive())
    environment.run()
    return found


def test_a_page_alone_takes_its_own_time():
    assert first_tokens([0], ENGINE, 8192) == [pytest.approx(ENGINE.page)]
    # In chunks, without other pages, it takes no longer.
    assert first_tokens([0], ENGINE, 1000) == [pytest.approx(ENGINE.page)]


def test_pages_share_a_step_and_the_next_waits_for_it():
    found = first_tokens([0, 0, 0], ENGINE, 2 * 3400 + 1)
    # The idle engine begins with the first alone. The other two share the next step,
    # with a token of the first answer.
    first = ENGINE.page
    both = first + 2 * ENGINE.page + ENGINE.step(1)
    assert found == [pytest.approx(time) for time in (first, both, both)]
    # With a token less, the last one ends a step later.
    *_, last = first_tokens([0, 0, 0], ENGINE, 2 * 3400)
    assert last == pytest.approx(both + ENGINE.step(2), rel=1e-3)


def test_a_page_waits_for_a_place_in_the_memory():
    engine = dataclasses.replace(ENGINE, most_sequences=1, answer_tokens=50)
    first, second = first_tokens([0, 0], engine, 8192)
    answer = (50 - 1) * engine.step(1)
    assert second == pytest.approx(first + answer + engine.page)


@pytest.mark.parametrize("utilisation", [0.5, 0.7])
@pytest.mark.parametrize("pages_of_step", [0.6, 2.4])
def test_the_formula_estimates_the_first_token(utilisation, pages_of_step):
    engine = dataclasses.replace(ENGINE, pages_of_step=pages_of_step)
    rate = utilisation * engine.most_pages
    options = SERVICE | {"budget": int(pages_of_step * 3400)}
    times = simulate_service(
        engine, engines=1, rate=rate, rule=None, vary=True, **options
    )
    simulated = quantile(times, 0.99)
    assert 0.9 * simulated < engine.first_token(rate) < 1.4 * simulated


def test_rules_between_engines_shorten_the_wait():
    rate = 8 * 0.7 * ENGINE.most_pages
    p99 = {}
    for rule in (None, fewest_requests, fewest_prompts):
        times = simulate_service(
            ENGINE, engines=8, rate=rate, rule=rule, vary=True, **SERVICE
        )
        p99[rule] = quantile(times, 0.99)
    assert p99[fewest_prompts] < p99[fewest_requests] < p99[None]


def test_the_api_servers_queue_comes_first():
    idle = dataclasses.replace(ENGINE, encode=0, prefill=0, answer_tokens=1)
    options = SERVICE | {"api_servers": 4, "api_seconds": 1.0}
    times = simulate_service(
        idle, engines=1, rate=4 * 0.7, rule=None, vary=False, **options
    )
    assert quantile(times, 0.99) == pytest.approx(1 + wait_quantile(0.7), rel=0.08)
    assert math.isclose(min(times), 1.0)
