"""Scores of passages for a question, compared with the reference."""

import base64
import io

import pytest
import torch

from nemotron_vl.verify.reference_retrieval import RetrievalReference
from support.noise import noise

QUESTION = "What is the total?"
IMAGES = [noise(64, 64), noise(300, 200)]
# What the reference is asked, for documents as `LLM.score` takes them.
AROUND = "question:What is the total? \n \n passage:"


@pytest.fixture(scope="module")
def reference(rerank_checkpoint):
    return RetrievalReference(rerank_checkpoint)


@pytest.fixture(scope="module")
def llm(make_llm, rerank_checkpoint):
    return make_llm(
        rerank_checkpoint, dtype="float32", mm_processor_kwargs=None, max_model_len=1024
    )


def document(image=None, text: str | None = None) -> dict:
    parts: list[dict] = []
    if image is not None:
        file = io.BytesIO()
        image.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    if text is not None:
        parts.append({"type": "text", "text": text})
    return {"content": parts}


CASES = [
    ("The total is 4711.", AROUND + "The total is 4711.", []),
    (document(IMAGES[0]), f"<image> {AROUND}", IMAGES[:1]),
    (document(IMAGES[1]), f"<image> {AROUND}", IMAGES[1:]),
    (document(IMAGES[1], "Invoice"), f"<image> {AROUND}Invoice", IMAGES[1:]),
]


def score(llm, documents, **params) -> torch.Tensor:
    from vllm import PoolingParams

    outputs = llm.score(
        QUESTION, documents, pooling_params=PoolingParams(**params), use_tqdm=False
    )
    return torch.tensor([output.outputs.score for output in outputs])


def test_scores_are_those_of_the_reference(llm, reference):
    """Without a template from the user: sigmoids by default, else logits."""
    documents = [case[0] for case in CASES]
    logits = torch.tensor([reference.logit(*case[1:]) for case in CASES])
    assert len({round(value, 3) for value in logits.tolist()}) == len(CASES)
    raw = score(llm, documents, use_activation=False)
    assert torch.allclose(raw, logits, atol=1e-5)
    assert torch.allclose(score(llm, documents), logits.sigmoid(), atol=1e-5)
