"""The requests of the soak, and what the server must answer to each."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jsonschema
from PIL import Image

from drawn_text import Drawing, Question, make_question
from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.verify.reference import Reference
from support.chat import (
    SCHEMA,
    chat_request,
    image_part,
    reference_text,
    text_part,
)
from typefaces import PILLOW_FONT

TOKENS = 12
KINDS = ("read", "lines", "both", "count")

# How often each kind of request is sent.
SHARES = {
    "reading": 0.6,
    "strip": 0.05,
    "choice": 0.1,
    "schema": 0.05,
    "left": 0.1,
    "bad": 0.1,
}
# If a client leaves, vLLM's processor cache may believe that the engine has its image.
# The next request with this image then gets a 500, after which it is sent again.
GOOD_OUTCOMES = {"right", "right at the second attempt", "refused", "left", "attack"}

# A client that leaves does so before this time, in seconds.
_PATIENCE = 0.3

_LONGEST_SIDE = 1 << 17  # pixels; the server refuses longer ones


class Job(NamedTuple):
    """A request and what must come back.

    The answer is a text, or a JSON schema that it must follow. ``None`` stands for
    status 400.
    """

    kind: str  # one of `SHARES`
    request: dict
    answer: str | dict | None


def make_jobs(count: int) -> dict[str, list[Job]]:
    """Requests of each kind, with answers by the reference implementation.

    Args:
        count: Number of questions about drawn text. There are fewer of other kinds.
    """
    reference = Reference.load(Path(tiny_checkpoint()))
    rng = random.Random(6)
    questions = [
        make_question(rng, PILLOW_FONT, reference, rng.choice(KINDS))
        for _ in range(count)
    ]
    jobs = [_exact("reading", reference, question) for question in questions]
    few = max(2, count // 10)
    strips = [_exact("strip", reference, _strip(rng)) for _ in range(few)]
    choices = list(_choices(rng, jobs))
    schemas = [
        Job("schema", _constrained(job, json=SCHEMA), SCHEMA) for job in jobs[:few]
    ]
    left = [job._replace(kind="left") for job in [*jobs[:few], *strips[:few]]]
    return {
        "reading": jobs,
        "strip": strips,
        "choice": choices,
        "schema": schemas,
        "left": left,
        "bad": _bad(jobs[0]),
    }


def _exact(kind: str, reference: Reference, question: Question) -> Job:
    answer = reference_text(reference, question, tokens=TOKENS)
    return Job(kind, chat_request(question, tokens=TOKENS), answer)


def _strip(rng: random.Random) -> Question:
    """A very long, narrow image, upright or lying."""
    size = rng.randint(1, 4), rng.randint(1000, _LONGEST_SIDE)
    noise = Image.effect_noise((9, 99), 80).convert("RGB")
    image = noise.resize(size if rng.random() < 0.5 else size[::-1])
    return Question("read", [Drawing(image, [], [])], [("Read the text.", "")])


def _constrained(job: Job, **outputs: Any) -> dict:
    """The request of a job with structured outputs."""
    free = {k: v for k, v in job.request.items() if k in ("model", "messages")}
    return {
        **free,
        "max_tokens": 120,
        "temperature": 0,
        "structured_outputs": outputs,
    }


def _choices(rng: random.Random, jobs: list[Job]) -> Iterator[Job]:
    """Jobs that choose their answer among those of other jobs."""
    texts = [job.answer.partition("<|eot_id|>") for job in jobs]
    ended = {text for text, end, _ in texts if end}
    for job, (text, _, _) in zip(jobs, texts, strict=True):
        if text in ended:
            others = rng.sample(sorted(ended - {text}), min(3, len(ended) - 1))
            request = _constrained(job, choice=sorted([text, *others]))
            yield Job("choice", request, text)


def _bad(job: Job) -> list[Job]:
    good = job.request["messages"][0]["content"]
    url = good[0]["image_url"]["url"]
    contents = [
        [image_part(url[: len(url) // 2 // 4 * 4])],
        [image_part("data:image/png;base64,AAAA")],
        [image_part("file:///etc/passwd")],
        [text_part("<image>")],
        [*good, text_part("7 " * 3000)],
        [good[0]] * 3,
    ]
    return [
        Job(
            "bad", {"model": "tiny", "messages": [{"role": "user", "content": c}]}, None
        )
        for c in contents
    ]


def choose_job(rng: random.Random, jobs: dict[str, list[Job]]) -> Job:
    (kind,) = rng.choices([*SHARES], [*SHARES.values()])
    return rng.choice(jobs[kind])


def ask(connection: httpx.Client, job: Job, rng: random.Random) -> str:
    """Send a request.

    Returns:
        One of `GOOD_OUTCOMES`, or another text for a wrong or lost answer.
    """
    options: dict = {}
    if job.kind == "left":
        options["timeout"] = httpx.Timeout(120, read=rng.uniform(0.001, _PATIENCE))
    try:
        response = connection.post("/v1/chat/completions", json=job.request, **options)
        retried = response.status_code == 500
        if retried:  # once, as OpenAI's client does
            response = connection.post("/v1/chat/completions", json=job.request)
    except httpx.ReadTimeout as error:
        return "left" if job.kind == "left" else f"lost: {error!r}"
    except httpx.HTTPError as error:
        return f"lost: {error!r}"
    if job.answer is None:
        return "refused" if response.status_code == 400 else f"{response.status_code}"
    if response.status_code != 200:
        return f"lost: {job.kind}: {response.status_code} {response.text[:200]}"
    found = response.json()["choices"][0]["message"]["content"]
    if not _fits(found, job.answer):
        return f"wrong: {job.kind}"
    return "right at the second attempt" if retried else "right"


def _fits(text: str, answer: str | dict) -> bool:
    if isinstance(answer, str):
        return text == answer
    try:
        jsonschema.validate(json.loads(text), answer)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True
