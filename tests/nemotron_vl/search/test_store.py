"""The vectors of pages: near ones are found, and a damaged index is named."""

from pathlib import Path

import numpy as np
import pytest

from nemotron_vl.search.store import Store

DIMENSION = 32
TRIAL = [1.0, *[0.0] * (DIMENSION - 1)]
SETTINGS = {"model": "m", "dimension": DIMENSION, "trial": TRIAL}
SETTINGS |= {"trial_page": TRIAL, "root": None, "places": []}


def page(file, number, vector, **more):
    source = {"bytes": 1, "modified": 2.5, "sha256": "0"}
    return {"file": file, "page": number, "vector": vector, "source": source, **more}


def axis(number):
    return [float(number == place) for place in range(DIMENSION)]


@pytest.fixture
def store(tmp_path):
    return Store.create(str(tmp_path / "index"), SETTINGS)


def test_near_pages_are_found_in_order(store):
    store.add([page("a", 1, axis(0)), page("a", 2, axis(1)), page("it's", 1, axis(2))])
    store.add([{"file": "broken", "page": None, "error": "It is damaged."}])
    question = [3.0, 4.0, *[0.0] * 30]
    hits = store.nearest(question, 10)
    assert [(hit.file, hit.page) for hit in hits][:2] == [("a", 2), ("a", 1)]
    assert [hit.score for hit in hits] == pytest.approx([0.8, 0.6, 0], abs=1e-3)
    assert hits[0].source == {"bytes": 1, "modified": 2.5, "sha256": "0"}
    store.remove(["it's"])
    assert len(store) == 3


def test_an_index_is_opened_with_its_settings(store):
    store.add([page("a", 1, axis(0)), {"file": "b", "page": None, "error": "Away."}])
    again = Store.open(store.name)
    assert again.settings == SETTINGS
    assert [*again.states()] == [
        {"file": "a", "page": 1, "source": page("a", 1, None)["source"]},
        {"file": "b", "page": None, "error": "Away."},
    ]
    (found,) = again.records(["a"])
    assert found["vector"] == axis(0)


def test_an_approximate_index_finds_what_the_exact_search_does(store):
    chance = np.random.default_rng(0)
    vectors = chance.standard_normal((1000, DIMENSION))
    store.add([page("a", n, vector) for n, vector in enumerate(vectors, 1)])
    store.tidy(approximate_from=1001)
    assert not store._table.list_indices()
    store.tidy(approximate_from=1000)
    (index,) = store._table.list_indices()
    assert index.num_indexed_rows == 1000
    store.add([page("new", 1, axis(5))])  # is found before it is indexed
    assert store.nearest(axis(5), 1)[0].file == "new"
    store.tidy(approximate_from=1000)
    (index,) = store._table.list_indices()
    assert (index.name, index.num_indexed_rows) == ("pages_1000", 1001)
    both = 0
    for vector in vectors[::100]:
        question = vector + 0.1 * chance.standard_normal(DIMENSION)
        near, exact = (store.nearest(question, 10, exact) for exact in (False, True))
        assert near[0] == exact[0]
        both += len({hit.page for hit in near} & {hit.page for hit in exact})
    assert both >= 80  # of 100; vectors without any order are the hardest


def test_an_approximate_index_is_made_anew_when_the_pages_have_doubled(store):
    vectors = np.random.default_rng(0).standard_normal((600, DIMENSION))
    for start, name in ((0, "pages_300"), (300, "pages_600")):
        numbered = enumerate(vectors[start : start + 300], start + 1)
        store.add([page("a", number, vector) for number, vector in numbered])
        store.tidy(approximate_from=300)
        (index,) = store._table.list_indices()
        assert index.name == name
        assert store.nearest(vectors[start], 1)[0].page == start + 1


@pytest.mark.parametrize("part", ["_versions", "data"])
def test_a_damaged_index_is_named(store, part):
    store.add([page("a", 1, axis(0))])
    (folder,) = Path(store.name).rglob(part)
    for file in folder.iterdir():
        file.write_bytes(b"no index")
    with pytest.raises(ValueError, match="cannot be read as an index. It is damaged"):
        opened = Store.open(store.name)
        opened.nearest(axis(0), 1)


def test_a_damaged_index_cannot_be_changed(store):
    for number in range(3):
        store.add([page("a", number, axis(0)), page("b", number, axis(1))])
    (folder,) = Path(store.name).rglob("data")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:20])
    for change in (store.compact, lambda: store.remove(["a"])):
        with pytest.raises(ValueError, match="cannot be changed. It is damaged"):
            change()


def test_the_index_of_another_release_is_named(tmp_path):
    place = str(tmp_path / "index")
    Store.create(place, {"model": "m", "dimension": DIMENSION})
    with pytest.raises(
        ValueError, match="it does not say places, root, trial, trial_page"
    ):
        Store.open(place)


def test_vectors_that_rabitq_does_not_take_are_compared_one_by_one(tmp_path):
    store = Store.create(str(tmp_path / "index"), SETTINGS | {"dimension": 100})
    vectors = np.random.default_rng(0).standard_normal((300, 100))
    store.add([page("a", number, vector) for number, vector in enumerate(vectors, 1)])
    store.tidy(approximate_from=300)
    assert [hit.page for hit in store.nearest(vectors[6], 1)] == [7]


def test_other_files_are_no_index(tmp_path):
    assert Store.open(str(tmp_path / "none")) is None
    assert Store.open(str(tmp_path)) is None
    (tmp_path / "letter.txt").write_text("Dear reader")
    with pytest.raises(ValueError, match="the folder holds other files"):
        Store.open(str(tmp_path))
    with pytest.raises(ValueError, match=r"letter.txt is not an index, but a file"):
        Store.open(str(tmp_path / "letter.txt"))


def test_vectors_of_another_model_are_refused(store):
    store.check([2.0, 0.05, *[0.0] * (DIMENSION - 2)])
    for other in ([2.0, 0.2, *[0.0] * (DIMENSION - 2)], [0.0] * DIMENSION, [1.0]):
        with pytest.raises(ValueError, match="has pages that another model"):
            store.check(other)


def test_settings_are_changed(store):
    store.add([page("a", 1, axis(0))])
    store.set(root="/new")
    again = Store.open(store.name)
    assert again.settings == {**SETTINGS, "root": "/new"} and len(again) == 1


def test_indices_of_others_do_not_count(store):
    vectors = np.random.default_rng(0).standard_normal((300, DIMENSION))
    store.add([page("a", number, vector) for number, vector in enumerate(vectors, 1)])
    store._table.create_scalar_index("file", name="of_files")
    store.tidy(approximate_from=300)
    names = {index.name for index in store._table.list_indices()}
    assert names == {"of_files", "pages_300"}
