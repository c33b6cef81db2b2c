"""The measures of search, on a small set of the form of ViDoRe."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import evaluate_search
from support.documents import solid
from support.fake_server import fake_server
from support.search import SearchServer


@pytest.fixture
def folder(tmp_path):
    """Questions about colours; the second is not about the colour that it names."""
    images = []
    for colour in ("red", "lime", "blue", "black"):
        file = tmp_path / "page.png"
        solid(colour).save(file)
        images.append({"bytes": file.read_bytes(), "path": None})
    tables = {
        "corpus": {"corpus-id": ["../a/0", "1", "2", "3"], "image": images},
        "queries": {"query-id": ["a", "b"], "query": ["red", "blue"]},
        "qrels": {
            "query-id": ["a", "b"],
            "corpus-id": ["../a/0", "3"],
            "score": [1, 2],
        },
    }
    for name, columns in tables.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), tmp_path / "set" / name / "test-0.parquet")
    return tmp_path / "set"


@pytest.mark.parametrize("ranked", [False, True])
def test_a_set_is_measured(folder, ranked):
    with fake_server(SearchServer) as server:
        url = server.url if ranked else None
        found = evaluate_search.measure(folder, server.url, url)
        assert len(server.asked) == (4 + 8 if ranked else 4)
    # The page of the second question is the second: blue is nearer than black.
    assert found["R@1"] == 0.5 and found["R@5"] == 1
    assert 0.5 < found["nDCG@5"] < 1


def test_questions_of_a_language_are_measured(folder):
    """In a set of ViDoRe 3, whose columns have other names."""
    for name in ("corpus", "queries", "qrels"):
        (file,) = (folder / name).iterdir()
        table = pq.read_table(file)
        if name == "queries":
            table = table.append_column("language", [["french", "english"]])
        names = [column.replace("-", "_") for column in table.column_names]
        pq.write_table(table.rename_columns(names), file)
    with fake_server(SearchServer) as server:
        found = {
            language: evaluate_search.measure(folder, server.url, language=language)
            for language in ("french", "english")
        }
        with pytest.raises(ValueError, match="has no questions in german"):
            evaluate_search.measure(folder, server.url, language="german")
    assert (found["french"]["R@1"], found["english"]["R@1"]) == (1, 0)


def test_measuring_needs_a_server(folder):
    command = [sys.executable, evaluate_search.__file__, "measure", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "measure needs --url of a server." in done.stderr


@pytest.mark.parametrize("alike", [1, 3])
def test_a_drawn_set_has_a_page_for_each_question(tmp_path, alike):
    evaluate_search.draw_set(tmp_path, 3, alike)
    queries = [*evaluate_search.rows(tmp_path, "queries")]
    first, *others = {row["query"]: None for row in queries}
    assert len(others) == 2
    same = [sum(map(str.__eq__, first, other)) for other in others]
    assert (min(same) >= len(first) - 2) == (alike > 1)
    for row in evaluate_search.rows(tmp_path, "corpus"):
        assert row["image"]["bytes"].startswith(b"\x89PNG")
    assert len([*evaluate_search.rows(tmp_path, "qrels")]) == 3
    with pytest.raises(FileNotFoundError, match="has no Parquet files"):
        [*evaluate_search.rows(tmp_path, "nothing")]
