"""Discrete-event simulations behind docs/capacity.md, seeded.

`simulate_queue` is a plain queue, whose waiting times theory knows. `simulate_service`
is a service of this model: API servers that take one page at a time, and engines that
work in steps as vLLM's scheduler does (new prompts in chunks beside the tokens of
running answers). It knows nothing of the formula that the page uses for the first
token.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import simpy

from capacity.engine import Engine


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def simulate_queue(
    servers: int, rate: float, service: Callable[[], float], pages: int, seed: int
) -> list[float]:
    """Waiting times in a queue of several servers with Poisson arrivals.

    Args:
        servers: Servers that take the pages in their order.
        rate: Pages a second.
        service: Seconds of the next page.
        pages: How many pages arrive.
        seed: Seed of the arrivals.
    """
    arrivals = random.Random(seed)
    environment = simpy.Environment()
    pool = simpy.Resource(environment, servers)
    waits: list[float] = []

    def page() -> Iterator[Any]:
        arrived = environment.now
        with pool.request() as turn:
            yield turn
            waits.append(environment.now - arrived)
            yield environment.timeout(service())

    def arrive() -> Iterator[Any]:
        for _ in range(pages):
            yield environment.timeout(arrivals.expovariate(rate))
            environment.process(page())

    environment.process(arrive())
    environment.run()
    return waits


class SteppingEngine:
    """An engine that works in steps, as vLLM's scheduler does by default.

    A step computes one token of each running answer and fills the rest of
    ``budget`` tokens with prompts, in the order of arrival and in chunks. A
    prompt begins only if the memory has room for its request.

    Args:
        environment: Environment of the simulation.
        engine: Its times.
        prompt: Tokens of a prompt.
        budget: ``max_num_batched_tokens``.
        first_tokens: Gets the seconds from the arrival to the first token.
        answer: Tokens of the next answer.
    """

    def __init__(
        self,
        environment: simpy.Environment,
        engine: Engine,
        prompt: int,
        budget: int,
        first_tokens: list[float],
        answer: Callable[[], int],
    ) -> None:
        self.environment, self.engine = environment, engine
        self.prompt, self.budget = prompt, budget
        self.first_tokens, self.answer = first_tokens, answer
        self.waiting: deque[float] = deque()  # when each page reached the service
        self.left = prompt  # tokens of the first waiting prompt
        self.running: list[int] = []  # a heap of the steps in which answers end
        self.started = 0  # of those waiting, how many are in the step under way
        self.woken = environment.event()
        environment.process(self.work())

    def submit(self, started: float) -> None:
        """Take a page that reached the service at ``started``."""
        self.waiting.append(started)
        if not self.woken.triggered:
            self.woken.succeed()

    def work(self) -> Iterator[Any]:
        step = 0
        while True:
            if not self.waiting and not self.running:
                self.woken = self.environment.event()
                yield self.woken
            step += 1
            answers = len(self.running)
            room = self.engine.most_sequences - answers
            tokens, done, place = self.budget - answers, 0, 0
            computed = 0
            while tokens > 0 and place < min(room, len(self.waiting)):
                chunk = min(tokens, self.left)
                computed += chunk
                tokens -= chunk
                self.left -= chunk
                if not self.left:
                    done += 1
                    self.left = self.prompt
                place += 1
            self.started = place
            seconds = computed / self.prompt * self.engine.page
            yield self.environment.timeout(seconds + self.engine.step(answers))
            for _ in range(done):
                taken = self.environment.now - self.waiting.popleft()
                self.first_tokens.append(taken)
                heapq.heappush(self.running, step + self.answer())
            self.started = 0
            while self.running and self.running[0] <= step + 1:
                heapq.heappop(self.running)


Rule = Callable[[SteppingEngine], float]


def fewest_requests(engine: SteppingEngine) -> float:
    """The rule of vLLM 0.32 between data-parallel engines, with counts of this moment.

    It counts waiting and running requests; with more than half of the KV cache in use,
    those that wait count up to four times.
    """
    waiting = len(engine.waiting) - engine.started
    running = len(engine.running) + engine.started
    used = running / engine.engine.most_sequences
    return waiting + running + waiting * 6 * max(0.0, used - 0.5)


def fewest_prompts(engine: SteppingEngine) -> float:
    """Prompts that wait or are under way; running answers only break ties."""
    return len(engine.waiting) + len(engine.running) / 1e6


def simulate_service(
    engine: Engine,
    *,
    engines: int,
    rate: float,
    prompt: int,
    budget: int,
    api_servers: int,
    api_seconds: float,
    rule: Rule | None,
    vary: bool,
    pages: int,
    seed: int,
) -> list[float]:
    """Seconds from a page's arrival at the service to its first token.

    Args:
        engine: Each of the engines.
        engines: How many.
        rate: Pages a second, of the whole service.
        prompt: Tokens of a page's prompt.
        budget: ``max_num_batched_tokens``.
        api_servers: Each takes one page at a time. A page goes to any of them.
        api_seconds: That a page takes there.
        rule: A page goes to the engine with the lowest; if ``None``, to any.
        vary: Whether the lengths of answers are exponentially distributed, or equal.
        pages: How many pages arrive; the first tenth is left out.
        seed: Seed of the arrivals and choices.
    """
    chance = random.Random(seed)
    environment = simpy.Environment()
    first_tokens: list[float] = []
    mean = engine.answer_tokens

    def answer() -> int:
        return round(chance.expovariate(1 / mean)) if vary else mean

    pool = [
        SteppingEngine(environment, engine, prompt, budget, first_tokens, answer)
        for _ in range(engines)
    ]
    servers = [simpy.Resource(environment) for _ in range(api_servers)]

    def page() -> Iterator[Any]:
        arrived = environment.now
        with chance.choice(servers).request() as turn:
            yield turn
            yield environment.timeout(api_seconds)
        chosen = min(pool, key=rule) if rule else chance.choice(pool)
        chosen.submit(arrived)

    def arrive() -> Iterator[Any]:
        for _ in range(pages):
            yield environment.timeout(chance.expovariate(rate))
            environment.process(page())

    environment.process(arrive())
    environment.run()
    return first_tokens[pages // 10 :]
