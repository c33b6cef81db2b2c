"""Servers of the models that find and rank pages give the reference's values.

The tokenizers of these checkpoints have a template of a chat, which must not be used,
and no template is passed.
"""

import contextlib
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from nemotron_vl.server import serving
from nemotron_vl.verify.reference_retrieval import RetrievalReference
from support.chat import ONE_WORKER, data_url, saved
from support.noise import noise
from support.served import sums_at
from support.servers import forked_servers

OPTIONS = [
    "--served-model-name=tiny",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=1024",
    "--trust-remote-code",
    ONE_WORKER,
]
# A URL that does not answer then delays no other request.
MORE_RENDERERS = ["--renderer-num-workers=4", "--mm-processor-cache-gb=0"]
# The Python files that the checkpoints' `auto_map` name.
CODE = ("configuration", "modeling", "processing", "llama_bidirectional_model")
IMAGES = [noise(64, 64), noise(300, 200)]
TEXT = "The total is 4711."
# The published code removes the first placeholder; others are text.
LITERAL = "an <image> and an <image>"
QUESTION = "What is the total?"


def image_part(image) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(saved(image, "PNG"))}}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def post(url: str, path: str, **body) -> httpx.Response:
    return httpx.post(f"{url}{path}", json={"model": "tiny", **body}, timeout=120)


@contextlib.contextmanager
def serving_baited(checkpoint: Path, folder: Path, *options: str) -> Iterator[str]:
    """Serve a checkpoint with Python files, none of which may be imported."""
    model = shutil.copytree(checkpoint, folder / "model")
    canary = folder / "canary.txt"
    for name in CODE:
        (model / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')")
    with (
        forked_servers(),
        serving(model, *OPTIONS, *options, log=folder / "log.txt") as url,
    ):
        yield url
    assert not canary.exists()


@pytest.fixture(scope="module")
def embed_url(embed_checkpoint, tmp_path_factory):
    with serving_baited(embed_checkpoint, tmp_path_factory.mktemp("embed")) as url:
        yield url


@pytest.fixture(scope="module")
def embedder(embed_checkpoint):
    return RetrievalReference(embed_checkpoint)


def close(found: list[float], reference, prompt: str, images=()) -> bool:
    expected = torch.nn.functional.normalize(reference.pooled(prompt, images), dim=0)
    return torch.allclose(torch.tensor(found), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("role", "parts", "prompt", "images"),
    [
        ("query", QUESTION, f"query: {QUESTION}", []),
        ("query", [text_part(QUESTION)], f"query: {QUESTION}", []),
        ("document", TEXT, f"passage: {TEXT}", []),
        ("document", [image_part(IMAGES[1])], "passage: <image> ", IMAGES[1:]),
        (
            "document",
            [image_part(IMAGES[0]), text_part(TEXT)],
            f"passage: <image> {TEXT}",
            IMAGES[:1],
        ),
        (
            "document",
            [text_part(TEXT), *map(image_part, IMAGES)],
            f"passage: <image> <image> {TEXT}",
            IMAGES,
        ),
    ],
)
def test_chats_have_the_published_prefix(
    embed_url, embedder, role, parts, prompt, images
):
    messages = [{"role": role, "content": parts}]
    answer = post(embed_url, "/v1/embeddings", messages=messages)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["data"]
    assert close(found["embedding"], embedder, prompt, images)


def test_inputs_are_embedded_as_they_are(embed_url, embedder):
    answer = post(embed_url, "/v1/embeddings", input=[f"query: {QUESTION}", TEXT])
    first, second = answer.json()["data"]
    assert close(first["embedding"], embedder, f"query: {QUESTION}")
    assert close(second["embedding"], embedder, TEXT)


@pytest.mark.parametrize(
    ("kind", "prefix"), [("search_query", "query"), ("search_document", "passage")]
)
def test_an_input_type_has_its_prefix(embed_url, embedder, kind, prefix):
    body = dict(input_type=kind, embedding_types=["float"])
    answer = post(embed_url, "/v2/embed", texts=[TEXT], **body)
    (found,) = answer.json()["embeddings"]["float"]
    assert close(found, embedder, f"{prefix}: {TEXT}")
    content = [
        {"type": "image_url", "image_url": {"url": data_url(saved(IMAGES[0], "PNG"))}}
    ]
    answer = post(embed_url, "/v2/embed", inputs=[{"content": content}], **body)
    (found,) = answer.json()["embeddings"]["float"]
    assert close(found, embedder, f"{prefix}: <image> ", IMAGES[:1])


PAGE = [image_part(IMAGES[1]), text_part(TEXT)]


def test_scores_compare_a_question_with_passages(embed_url, embedder):
    """Each with its prefix."""
    question = embedder.pooled(f"query: {QUESTION}", [])
    pages = torch.stack(
        [
            embedder.pooled(f"passage: {TEXT}", []),
            embedder.pooled(f"passage: <image> {TEXT}", IMAGES[1:]),
            embedder.pooled(f"passage: {LITERAL}", []),
        ]
    )
    expected = torch.cosine_similarity(question[None], pages)
    documents = [TEXT, {"content": PAGE}, LITERAL]
    answer = post(embed_url, "/score", data_1=QUESTION, data_2=documents)
    assert answer.status_code == 200, answer.text
    found = torch.tensor([one["score"] for one in answer.json()["data"]])
    assert torch.allclose(found, expected, atol=1e-5)
    answer = post(embed_url, "/rerank", query=QUESTION, documents=documents)
    best = answer.json()["results"][0]
    assert best["index"] == expected.argmax()


def counters(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    values = (line.rsplit(" ", 1) for line in lines if line.startswith("vllm:mm_"))
    return {name: float(value) for name, value in values}


def test_tokens_and_refusals_are_counted(embed_url):
    bad = {"type": "image_url", "image_url": {"url": data_url(b"no image")}}
    messages = [{"role": "document", "content": [image_part(IMAGES[0]), bad]}]
    post(embed_url, "/v1/embeddings", messages=messages)
    before = counters(embed_url)
    post(embed_url, "/v1/embeddings", messages=messages)
    post(embed_url, "/v1/embeddings", input="word " * 2000)
    post(embed_url, "/score", data_1=QUESTION, data_2=[{"content": PAGE}])
    grown = {k: v - before.get(k, 0) for k, v in counters(embed_url).items()}
    tokens = 'vllm:mm_prompt_tokens_total{modality="image"}'
    refused = 'vllm:mm_requests_refused_total{cause="%s"}'
    assert grown[tokens] == 7 * 4
    assert (grown[refused % "unreadable"], grown[refused % "too_long"]) == (1, 1)


QUERY = {"role": "query", "content": QUESTION}
EMPTY_PARTS = [text_part(" "), text_part(""), {"type": "input_text", "text": ""}]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/embeddings", {"messages": [QUERY] * 2}, "has 2 messages of the role"),
        *(
            (
                "/v1/embeddings",
                {"messages": [{"role": role, "content": content}]},
                f"message of the role {role} is empty",
            )
            for role, content in [
                ("query", ""),
                ("document", []),
                ("document", EMPTY_PARTS),
            ]
        ),
        ("/score", {"data_1": " ", "data_2": [TEXT]}, "The question is empty"),
    ],
)
def test_each_embedding_is_of_one_text_or_page(embed_url, path, body, message):
    answer = post(embed_url, path, **body)
    assert answer.status_code == 400, answer.text
    assert message in answer.text


def test_what_is_no_image_is_refused(embed_url):
    url = data_url(b"no image")
    part = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "document", "content": [part]}]
    answer = post(embed_url, "/v1/embeddings", messages=messages)
    assert answer.status_code == 400, answer.text


@pytest.fixture(scope="module")
def rerank_url(rerank_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerank")
    with serving_baited(rerank_checkpoint, folder, *MORE_RENDERERS) as url:
        yield url


@pytest.fixture(scope="module")
def logits(rerank_checkpoint) -> torch.Tensor:
    """Of a text, an image, an image with a text, and two images."""
    reference = RetrievalReference(rerank_checkpoint)
    around = f"question:{QUESTION} \n \n passage:"
    return torch.tensor(
        [
            reference.logit(around + TEXT, []),
            reference.logit(f"<image> {around}", IMAGES[:1]),
            reference.logit(f"<image> {around}{TEXT}", IMAGES[1:]),
            reference.logit(f"<image> <image> {around}", IMAGES),
        ]
    )


DOCUMENTS = [
    TEXT,
    {"content": [image_part(IMAGES[0])]},
    {"content": [image_part(IMAGES[1]), text_part(TEXT)]},
    {"content": [*map(image_part, IMAGES)]},
]


@pytest.mark.parametrize("raw", [True, False])
def test_documents_are_ranked(rerank_url, logits, raw):
    answer = post(
        rerank_url,
        "/rerank",
        query=QUESTION,
        documents=DOCUMENTS,
        use_activation=not raw,
    )
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    expected = logits if raw else logits.sigmoid()
    assert [r["index"] for r in results] == expected.argsort(descending=True).tolist()
    found = torch.tensor([r["relevance_score"] for r in results])
    assert torch.allclose(found, expected.sort(descending=True)[0], atol=1e-5)


def test_a_literal_placeholder_stands_for_no_image(rerank_url, rerank_checkpoint):
    reference = RetrievalReference(rerank_checkpoint)
    prompt = f"question:{QUESTION} \n \n passage:{LITERAL}"
    before = counters(rerank_url)
    answer = post(
        rerank_url,
        "/score",
        data_1=QUESTION,
        data_2=[LITERAL, {"content": [text_part(LITERAL)]}, DOCUMENTS[1]],
        use_activation=False,
    )
    found = [one["score"] for one in answer.json()["data"]][:2]
    assert found == pytest.approx([reference.logit(prompt, [])] * 2, abs=1e-5)
    tokens = 'vllm:mm_prompt_tokens_total{modality="image"}'
    assert counters(rerank_url)[tokens] - before.get(tokens, 0) == 4


def test_pairs_are_scored(rerank_url, logits):
    answer = post(rerank_url, "/score", data_1=QUESTION, data_2=DOCUMENTS)
    assert answer.status_code == 200, answer.text
    found = torch.tensor([one["score"] for one in answer.json()["data"]])
    assert torch.allclose(found, logits.sigmoid(), atol=1e-5)


def test_a_dead_url_delays_nobody(rerank_url, logits):
    def scores(part: dict) -> list[float]:
        documents = [{"content": [part]}] * 2
        answer = post(rerank_url, "/score", data_1=QUESTION, data_2=documents)
        return [one["score"] for one in answer.json().get("data", [])]

    expected = [logits.sigmoid()[1].item()] * 2
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as pool:
        dead = f"http://127.0.0.1:{silent.getsockname()[1]}/page.png"
        waiting = pool.submit(scores, {"type": "image_url", "image_url": {"url": dead}})
        others = [pool.submit(scores, image_part(IMAGES[0])) for _ in range(6)]
        for other in others:
            assert other.result() == pytest.approx(expected, abs=1e-5)
        assert not waiting.done()
        silent.close()  # what waits is refused: its server need not give up
        assert waiting.result() == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": data_url(b"no image")}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    ],
)
def test_what_is_no_image_is_not_ranked(rerank_url, part):
    documents = [{"content": [part]}]
    answer = post(rerank_url, "/rerank", query=QUESTION, documents=documents)
    assert answer.status_code == 400, answer.text


def test_an_image_as_question_is_refused(rerank_url):
    query = {"content": [image_part(IMAGES[0])]}
    answer = post(rerank_url, "/score", data_1=query, data_2=[TEXT])
    assert answer.status_code == 400, answer.text
    assert "Images belong to documents" in answer.text


def test_an_empty_question_is_refused(rerank_url):
    answer = post(rerank_url, "/rerank", query="", documents=[TEXT])
    assert answer.status_code == 400, answer.text
    assert "The question is empty" in answer.text


BESIDE = {"content": [image_part(IMAGES[0]), text_part("An <image>.")]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (BESIDE, "A text beside an image must not contain <image>"),
        ("<image><image> text", "must not begin with <image><image>"),
    ],
)
def test_a_placeholder_in_the_place_of_an_image_is_refused(
    rerank_url, document, message
):
    answer = post(rerank_url, "/rerank", query=QUESTION, documents=[document])
    assert answer.status_code == 400, answer.text
    assert message in answer.text


@pytest.mark.releases
def test_two_engines_and_two_api_servers_of_one_server(
    embed_checkpoint, embedder, tmp_path
):
    pages = [noise(64 + 8 * number, 200) for number in range(12)]

    def embed(page) -> list[float]:
        messages = [{"role": "document", "content": [image_part(page)]}]
        answer = post(url, "/v1/embeddings", messages=messages)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["embedding"]

    options = ["--data-parallel-size=2", "--api-server-count=2"]
    with serving_baited(embed_checkpoint, tmp_path, *options) as url:
        with ThreadPoolExecutor(6) as threads:
            found = [*threads.map(embed, pages)]
        tokens = sums_at(url, "vllm:prompt_tokens_total", "engine")
    assert min(tokens["0"], tokens["1"]) > 0
    for page, embedding in zip(pages, found, strict=True):
        assert close(embedding, embedder, "passage: <image> ", [page])
