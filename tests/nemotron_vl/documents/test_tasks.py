"""Ready questions: those of this package, and copies that users have changed."""

import re
import tomllib

import pytest

from nemotron_vl.documents.tasks import SHIPPED, read_task


@pytest.mark.parametrize("name", ["text", "markdown", "table", "fields"])
def test_each_task_has_a_question(name):
    task = read_task(name)
    assert task.question.strip()
    assert (task.schema is not None) == (name == "fields")


def test_no_other_task_is_shipped():
    assert set(tomllib.loads(SHIPPED.read_text())) == {
        *("text", "markdown", "table", "fields")
    }


def test_a_copy_can_be_changed(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(
        '[total]\nquestion = "Total?"\nsystem = "Be brief."\nmax_tokens = 9'
    )
    assert read_task("total", file) == ("Total?", "Be brief.", None, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = ", "own.toml is not TOML"),
        ("[b]", "own.toml has no task 'a'. It has: b."),
        ("[a]", "task a: it has no question"),
        ('[a]\nquestion = " "', "task a: it has no question"),
        ("[a]\nquestion = 1", "task a: question cannot be 1"),
        ('[a]\nquestion = "?"\nother = 1', "task a: other cannot be 1"),
        ('[a]\nquestion = "?"\nmax_tokens = 0', "max_tokens must be at least 1"),
        (
            '[a]\nquestion = "?"\n[a.schema]\ntype = "x"',
            "schema of task a in .* is not a",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    file = tmp_path / "own.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.sub(r"\.(?!\*)", r"\.", message)):
        read_task("a", file)
