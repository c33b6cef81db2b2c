"""Requests about pages: their messages, their schema, and the room for pages."""

import pytest

from nemotron_vl.documents.pages import Page
from nemotron_vl.documents.requests import Question
from nemotron_vl.documents.served import Served

PAGE = Page("a.pdf", 1, b"PNG", "image/png", (1, 1))
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}}


@pytest.mark.parametrize("system", [None, "", "Be exact."])
def test_a_system_message_stands_before_the_question(system):
    question = Question("Read.", system=system, max_tokens=7)
    messages = question.chat_request([PAGE, PAGE], "m")["messages"]
    parts = [part["type"] for part in messages[-1]["content"]]
    assert parts == ["image_url", "image_url", "text"]
    before = [] if system is None else [{"role": "system", "content": system}]
    assert messages[:-1] == before
    trial = question.trial_request("m")
    assert trial["messages"] == [*before, {"role": "user", "content": "Read."}]
    assert trial["max_tokens"] == 1 and "response_format" not in trial


@pytest.mark.parametrize("structural", [False, True])
def test_a_schema_is_sent_in_the_form_that_the_server_takes(structural):
    question = Question("Read.", SCHEMA, structural=structural)
    form = question.chat_request([PAGE], "m")["response_format"]
    assert form["type"] == ("structural_tag" if structural else "json_schema")
    if structural:
        assert form["format"]["max_whitespace_cnt"] == 1
    else:
        assert form["json_schema"]["strict"] is True


@pytest.mark.parametrize(("schema", "nothing"), [(None, ""), (SCHEMA, None)])
def test_a_blank_page_has_an_empty_text_or_no_data(schema, nothing):
    assert Served("m", None, Question("Read.", schema)).nothing == nothing


def test_question_and_answer_leave_the_rest_to_pages():
    question = Question("é" * 50, system="s" * 20, max_tokens=100)
    taken = 64 + 100 + (2 * 50 + 20) // 2
    assert Served("m", 4096, question).room(1000) == 4096 - taken
    assert Served("m", None, question).room(1000) == 1000 - taken
    assert Served("m", None, question._replace(system=None)).room(1000) == 1010 - taken
