"""`nemotron-vl read` with a schema: answers follow it, or are errors."""

import json

import pytest

from nemotron_vl.commands import read_server
from nemotron_vl.main import main
from support.read_command import SCHEMA, arguments, records


def test_a_schema_is_enforced_and_its_data_recorded(server, folder, out, schema):
    server.answer = lambda request: '{"total": 3.5}'
    assert main(arguments(server, folder / "photo.png", out, "--schema", schema)) == 0
    (record,) = records(out)
    assert record["answer"] == {"total": 3.5}
    # The server is asked with the schema before any page is sent.
    form = {"type": "json_schema", "json_schema": SCHEMA, "max_whitespace_cnt": 1}
    for request in (*server.trials, *server.requests):
        sent = request["response_format"]
        assert sent == {"type": "structural_tag", "format": form}
    text = server.requests[0]["messages"][0]["content"][1]["text"]
    assert json.dumps(SCHEMA) in text


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_structural_tags_gets_the_schema(
    server, folder, out, schema, status
):
    def answer(request):
        if request["response_format"]["type"] == "structural_tag":
            return status, "unknown response_format"
        return '{"total": 3.5}'

    server.answer = answer
    assert main(arguments(server, folder / "photo.png", out, "--schema", schema)) == 0
    (request,) = server.requests
    sent = request["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ('{"total": "3"}', "does not follow the schema: $.total: '3' is not of type"),
        ('{"total": 1, "currency": "F"}', "does not follow the schema: $.currency"),
        ('{"total": 3', "The answer is not JSON: "),
        ('{"total": NaN}', "The answer is not JSON: expected value"),
        ('{"total": 1e999}', "Out of range float values are not JSON compliant"),
        ("[" * 100_000, "The answer is not JSON: recursion limit exceeded"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_an_error(
    server, folder, out, schema, answer, cause
):
    server.answer = lambda request: answer
    assert main(arguments(server, folder / "photo.png", out, "--schema", schema)) == 1
    (record,) = records(out)
    assert cause in record["error"]
    assert record["answer"] == answer


def test_a_number_that_may_be_cut_is_an_error(server, folder, out, schema):
    respond = server.respond

    def cut(request):
        status, body = respond(request)
        body["choices"][0]["finish_reason"] = "length"
        return status, body

    server.respond, server.answer = cut, lambda request: '{"total": 12}'
    assert main(arguments(server, folder / "photo.png", out, "--schema", schema)) == 1
    assert records(out)[0]["error"] == (
        "The answer may not be complete. It was cut after 2048 tokens."
    )


def test_a_schema_that_refers_to_nothing_is_refused(server, folder, out, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"properties": {"a": {"$ref": "#/$defs/none"}}}))
    assert main(arguments(server, folder, out, "--schema", str(file))) == 2
    file.write_text(json.dumps({"$defs": {"x": {}}, "items": {"$ref": "#/$defs/x"}}))
    assert (
        main(arguments(server, folder / "photo.png", out, "--schema", str(file))) == 1
    )
    file.write_text(json.dumps({"$id": "http://a/b", "$ref": "c"}))
    out.unlink()
    server.answer = lambda request: "[]"
    assert (
        main(arguments(server, folder / "photo.png", out, "--schema", str(file))) == 1
    )
    assert "refers to what it does not have: " in records(out)[0]["error"]


def test_a_refused_schema_stops_before_the_first_page(
    server, folder, out, schema, capsys
):
    server.answer = lambda request: (400, "The grammar is not supported.")
    assert main(arguments(server, folder, out, "--schema", schema)) == 2
    assert (
        "nemotron-vl: The server refuses requests: 400: The grammar is not supported."
        in capsys.readouterr().err
    )
    assert server.requests == [] and records(out) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ['--limit-mm-per-prompt={"image": 1}']),
        (["--max-tiles", "3"], ['--mm-processor-kwargs={"max_dynamic_patch": 3}']),
        (["--per", "document"], ['--limit-mm-per-prompt={"image": MOST}']),
        (
            ["--schema", "{schema}"],
            [
                "--structured-outputs-config="
                '{"backend": "xgrammar", "disable_any_whitespace": true}'
            ],
        ),
    ],
)
def test_the_options_of_a_server_of_its_own(
    folder, out, tiny, schema, monkeypatch, options, expected
):
    started = []

    def serving_process(model, *options, **settings):
        started.extend(options)
        raise RuntimeError("no server in this test")

    monkeypatch.setattr(read_server, "serving_process", serving_process)
    command = ["read", str(folder), "--model", str(tiny), "--out", str(out)]
    asked = ["--question", "?", *(option.format(schema=schema) for option in options)]
    own = "--serve-options=--seed 3"
    assert main([*command, *asked, own]) == 2
    (context,) = (o.partition("=")[2] for o in started if "max-model-len" in o)
    most = str(int(context) // 64)  # tokens of the smallest page
    expected = {option.replace("MOST", most) for option in expected}
    assert expected <= {*started} and started[-2:] == ["--seed", "3"]
    forbids = any("disable_any_whitespace" in option for option in started)
    assert forbids == ("--schema" in options)


def test_rules_for_merging_are_not_sent(server, folder, out, tmp_path):
    file = tmp_path / "schema.json"
    part = {"type": "number", "x-merge": "sum"}
    named = {"type": "object", "properties": {"x-merge": part}}
    file.write_text(json.dumps(named))
    server.answer = lambda request: "{}"
    assert (
        main(arguments(server, folder / "photo.png", out, "--schema", str(file))) == 0
    )
    sent = server.requests[0]["response_format"]["format"]["json_schema"]
    assert sent["properties"] == {"x-merge": {"type": "number"}}
    assert "sum" not in json.dumps(server.requests)
    assert "sum" in out.read_text()
