"""Structured outputs, beam search, several answers, logprobs and turns, with images."""

import json
import random
from unittest import mock

import jsonschema
import pytest
import torch
from vllm import SamplingParams
from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

from drawn_text import Question, make_question
from nemotron_vl.verify.reference import Reference
from support.chat import SCHEMA, png_part, text_part
from typefaces import PILLOW_FONT
from vllm_nemotron_vl.multimodal import nemotron_vl_loading as loading


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def questions(reference) -> list[Question]:
    rng = random.Random(12)
    kinds = ["read", "read", "both", "read"]
    return [make_question(rng, PILLOW_FONT, reference, kind) for kind in kinds]


@pytest.fixture(scope="module")
def llm(make_llm, tiny):
    # The model has not learnt JSON: it would write spaces for ever.
    outputs = {"backend": "xgrammar", "disable_any_whitespace": True}
    return make_llm(tiny, dtype="float32", structured_outputs_config=outputs)


def prompt(question: Question) -> dict:
    images = {"image": question.images}
    return {"prompt": question.prompt(), "multi_modal_data": images}


def logprobs(reference: Reference, question: Question, answer: list[int]):
    """Log-probability of each token of an answer, by the reference."""
    ids, embeds = reference.embed(question.prompt(), question.images)
    shown = reference.language_model.get_input_embeddings()(torch.tensor([answer]))
    output = reference.language_model(inputs_embeds=torch.cat([embeds, shown], dim=1))
    scores = output.logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return scores[range(len(answer)), answer].tolist()


def constrained(tokens: int, **options) -> SamplingParams:
    outputs = StructuredOutputsParams(**options)
    return SamplingParams(temperature=0, max_tokens=tokens, structured_outputs=outputs)


def test_answers_follow_a_json_schema(llm, questions):
    """All in one batch with an answer that is free."""
    free = SamplingParams(temperature=0, max_tokens=8)
    prompts = [prompt(question) for question in questions]
    sampling = [free, *[constrained(120, json=SCHEMA)] * len(questions)]
    found = llm.generate([prompts[0], *prompts], sampling, use_tqdm=False)
    for output in found[1:]:
        jsonschema.validate(json.loads(output.outputs[0].text), SCHEMA)
    (alone,) = llm.generate([prompts[0]], free, use_tqdm=False)
    assert found[0].outputs[0].token_ids == alone.outputs[0].token_ids


def test_the_image_decides_between_choices(llm, questions):
    choices = [question.turns[0][1] for question in questions]
    assert len(set(choices)) == len(choices)
    sampling = constrained(40, choice=choices)
    found = llm.generate([prompt(q) for q in questions], sampling, use_tqdm=False)
    assert [output.outputs[0].text for output in found] == choices


def test_beam_search_finds_likelier_answers(llm, reference, questions):
    tokens = 6
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    beams = BeamSearchParams(beam_width=3, max_tokens=tokens, ignore_eos=True)
    found = llm.beam_search([prompt(q) for q in questions], beams)
    firsts = llm.generate([prompt(q) for q in questions], greedy, use_tqdm=False)
    best = []
    for question, output, first in zip(questions, found, firsts, strict=True):
        scores = []
        for sequence in output.sequences:
            answer = sequence.tokens[-tokens:]
            scores.append(sum(logprobs(reference, question, answer)))
            assert sequence.cum_logprob == pytest.approx(scores[-1], abs=1e-3)
        answers = {tuple(sequence.tokens) for sequence in output.sequences}
        assert len(answers) == 3
        alone = list(first.outputs[0].token_ids)
        best.append(max(scores) > sum(logprobs(reference, question, alone)) - 1e-3)
    assert any(best)  # beams may lose the greedy answer


def test_several_answers_with_logprobs(llm, reference, questions):
    sampling = SamplingParams(
        n=3, temperature=1.5, seed=5, max_tokens=8, logprobs=2, ignore_eos=True
    )
    outputs = llm.generate([prompt(q) for q in questions], sampling, use_tqdm=False)
    for question, output in zip(questions, outputs, strict=True):
        assert len(output.outputs) == 3
        for answer in output.outputs:
            tokens = list(answer.token_ids)
            expected = logprobs(reference, question, tokens)
            assert len(tokens) == len(answer.logprobs) == 8
            for token, place, value in zip(
                tokens, answer.logprobs, expected, strict=True
            ):
                assert len(place) in (2, 3)
                assert place[token].logprob == pytest.approx(value, abs=1e-3)
    assert len({tuple(a.token_ids) for o in outputs for a in o.outputs}) > 4


def test_an_image_of_an_earlier_turn_is_not_decoded(llm, questions, monkeypatch):
    opened = mock.Mock(side_effect=loading.open_checked)
    monkeypatch.setattr(loading, "open_checked", opened)
    monkeypatch.setattr(loading, "_QUICK", 9)
    parts = [png_part(questions[0].images[0]), text_part("Read the text.")]
    turns = [{"role": "user", "content": parts}]
    for count in (1, 1, 1, 2):
        if count == 2:
            llm.reset_mm_cache()
        (output,) = llm.chat(turns, SamplingParams(temperature=0), use_tqdm=False)
        answer = {"role": "assistant", "content": output.outputs[0].text}
        turns += [answer, {"role": "user", "content": "Read the text."}]
        assert opened.call_count == count
    assert turns[1]["content"] == questions[0].turns[0][1]
