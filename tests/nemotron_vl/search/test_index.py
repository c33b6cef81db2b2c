"""What an index reads and compacts, so that a run costs what is new."""

from nemotron_vl.main import main
from nemotron_vl.search import index as indexing
from nemotron_vl.search.index import Index
from nemotron_vl.search.store import Store
from support.fake_server import fake_server
from support.search import SearchServer, index, write_folder


def test_a_long_run_is_compacted(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "BATCH", 2)
    monkeypatch.setattr(indexing, "_BATCHES", 3)
    compacted = []
    monkeypatch.setattr(Store, "compact", lambda self: compacted.append(len(self)))
    with Index(str(tmp_path / "index"), {}) as records:
        records.settle("m", [1.0] * 8)
        for page in range(1, 16):
            records.append({"file": "a.pdf", "page": page, "vector": [1.0] * 8})
    assert compacted == [6, 12, 15]
    with Index(str(tmp_path / "index"), {}):
        pass
    assert len(compacted) == 3


def test_vectors_are_read_only_for_new_copies(tmp_path, monkeypatch):
    folder, place = tmp_path / "folder", tmp_path / "index"
    write_folder(folder)
    read = []
    records = Store.records
    monkeypatch.setattr(
        Store, "records", lambda self, files: read.extend(files) or records(self, files)
    )
    with fake_server(SearchServer) as server:
        assert main(index(server, folder, place)) == 0
        assert len(read) == 1
        assert main(index(server, folder, place)) == 0
        assert len(read) == 1
        (folder / "z.png").write_bytes((folder / "photos/black.png").read_bytes())
        assert main(index(server, folder, place)) == 0
    assert len(read) == 2 and read[1].endswith("black.png")


def test_a_copy_needs_all_records_of_its_state(tmp_path):
    source = {"bytes": 1, "modified": 0.0, "sha256": "a"}
    with Index(str(tmp_path / "index"), {}) as records:
        records.settle("m", [1.0] * 8)
        for file, page in (("a", 1), ("a", 2), ("b", 1)):
            row = {"file": file, "page": page, "vector": [1.0] * 8}
            records.append(row | {"source": source})
        assert records.equals("a", "b") and not records.equals("b", "a")
        assert not records.equals("c", "a")
        changed = {"file": "c", "page": 1, "vector": [1.0] * 8}
        records.append(changed | {"source": {**source, "sha256": "c"}})
        assert not records.equals("c", "b")
