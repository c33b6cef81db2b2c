"""Which mutants are counted, with which tests, and what the page says."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from mutants import choice, page

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def graph():
    return choice.import_graph(ROOT)


def test_a_module_has_the_tests_that_import_it_or_have_its_name(graph):
    documents = "tests/nemotron_vl/documents"
    found, *_ = choice.tests_of("nemotron_vl/documents/records.py", graph)
    assert f"{documents}/test_records.py" in found
    assert f"{documents}/test_pages.py" not in found
    tower = "vllm/model_executor/models/nemotron_vl_tower.py"
    assert (
        "tests/vllm/models/multimodal/test_nemotron_vl_conditioner.py"
        in choice.tests_of(tower, graph)[0]
    )


def test_imports_of_all_kinds_are_seen(tmp_path):
    files = {
        "vllm/a.py": "",
        "vllm/b/c.py": "from ..a import name",
        "vllm/b/d.py": "from . import c",
        "tests/test_e.py": "import vllm_nemotron_vl.b.d\nimport vllm.a",
        "nemotron_vl/f.py": "PLACE = '--name=vllm_nemotron_vl.b.c.f'",
        "vllm/b/g.py": "SCRIPT = 'c.py'",
        "tests/test_c_kinds.py": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = choice.import_graph(tmp_path)
    assert found == {
        "vllm/a.py": set(),
        "vllm/b/c.py": {"vllm/a.py"},
        "vllm/b/d.py": {"vllm/b/c.py"},
        "tests/test_e.py": {"vllm/b/d.py"},
        "nemotron_vl/f.py": {"vllm/b/c.py"},
        "vllm/b/g.py": {"vllm/b/c.py"},
        "tests/test_c_kinds.py": set(),
    }
    named, far = ["tests/test_c_kinds.py"], ["tests/test_e.py"]
    assert choice.tests_of("vllm/b/d.py", found) == [far]
    assert choice.tests_of("vllm/b/c.py", found) == [named, far]
    assert choice.tests_of("vllm/a.py", found) == [named, far]
    assert choice.tests_of("nemotron_vl/f.py", found) == []


def test_each_module_of_the_core_has_tests(graph):
    for part in choice.PARTS:
        named = choice.modules(ROOT, part)
        assert len(named) > 20
        without = [m for m in named if not choice.tests_of(m, graph)]
        assert [m for m in without if Path(m).name != "__init__.py"] == []


def test_annotations_of_types_are_found():
    source = "a: int | None = 1 | 2\ndef f(b: str | int, *c) -> int | str: ...\n"
    lines = source.splitlines()
    found = [lines[row - 1][a:z] for (row, a), (_, z) in choice.annotations(source)]
    assert sorted(found) == ["int | None", "int | str", "str | int"]


def test_the_seed_orders_places_and_chooses_one_mutant_of_each():
    mutants = [(place, (place, n)) for place in range(50) for n in range(place + 1)]
    found = list(choice.shuffled(mutants, 1))
    assert found == list(choice.shuffled(reversed(mutants), 1))
    assert found != list(choice.shuffled(mutants, 2))
    assert sorted(place for place, _ in found) == list(range(50))
    firsts = [next(choice.shuffled(mutants[:3], seed)) for seed in range(200)]
    counts = Counter(firsts)
    assert 60 < counts[0, (0, 0)] < 140  # a place of one mutant or of two
    assert min(counts[1, (1, 0)], counts[1, (1, 1)]) > 20


DIFF = """--- mutation diff ---
--- a/{0}
+++ b/{0}
@@ -1,2 +1,2 @@
 def f(a, b):
-    return a < b
+    return a <= {1}
"""


def test_the_page_counts_and_gives_reasons():
    module = "nemotron_vl/documents/records.py"
    other = "vllm/plugins/nemotron_vl.py"
    outcomes = [
        *((module, "b", "killed", "FAILED a"), (module, "c", "killed", "timeout")),
        *((module, "d", "survived", "1 passed"), (module, "e", "survived", "")),
        *((module, "f", "survived", ""), (other, "g", None, None)),
    ]
    results = [
        (
            SimpleNamespace(mutations=[SimpleNamespace(module_path=Path(name))]),
            SimpleNamespace(
                diff=DIFF.format(name, change),
                test_outcome=outcome,
                output=output,
                worker_outcome="normal" if outcome else "no-test",
            ),
        )
        for name, change, outcome, output in outcomes
    ]
    name = f"{module}: return a < b -> return a <= {{}}"
    known = {
        "equivalent": {name.format("e"): "always larger"},
        "alive": {name.format("f"): "a message"},
    }
    settings = {"seed": 3, "sample": 6, "modules": None, "commit": "0123456789ab"}
    seconds = {"tests/slow.py": None, "tests/fast.py": 1.0}
    found = page.report(choice.PARTS, settings, results, 4, seconds, known)
    assert "Commit 0123456789, seed 3" in found and "; 4 have not been tried" in found
    assert "| documents | 5 | 1 | 1 | 2 | 1 | 0 | 50% |" in found
    assert "| vllm | 1 | 0 | 0 | 0 | 0 | 1 | 0% |" in found
    change = f"- `{module}`: ``return a < b -> return a <= {{}}``: {{}}"
    for line in (
        ("d", "not looked at yet"),
        ("e", "always larger"),
        ("f", "a message"),
    ):
        assert change.format(*line) in found
    assert f"- `{other}`" in found and "- `tests/slow.py`" in found
    assert "fast" not in found
