"""`nemotron-vl read`: where documents and records are, and which are the same."""

import json
import shutil

from nemotron_vl.main import main
from support.read_command import ALL, arguments, places, records


def test_equal_files_are_asked_once(server, folder, out):
    for copy in ("a.pdf", "sub/z.pdf"):
        (folder / copy).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "report.pdf", folder / copy)
    (folder / "photo2.png").write_bytes((folder / "photo.png").read_bytes())
    assert main(arguments(server, folder, out)) == 1
    assert len(server.requests) == 6
    copies = {(r["file"], r["page"]): r for r in records(out) if "copy_of" in r}
    # The first by name is asked.
    assert len(copies) == 3 + 3 + 1
    record = copies[str(folder / "report.pdf"), 3]
    assert record["copy_of"] == str(folder / "a.pdf")
    assert record["answer"] == "1536x2048"
    modified = (folder / "report.pdf").stat().st_mtime
    assert record["source"]["modified"] == modified
    assert main(arguments(server, folder, out)) == 1
    assert len(server.requests) == 6 and len(records(out)) == 8 + 7


def test_a_folder_that_has_moved_is_the_same(server, folder, out):
    assert main(arguments(server, folder, out, "--root", str(folder))) == 1
    assert places(out) == ALL
    assert all("/" not in r["file"] for r in records(out))
    moved = folder.rename(folder.with_name("moved"))
    assert main(arguments(server, moved, out, "--root", str(moved))) == 1
    assert len(server.requests) == 6 and len(records(out)) == 8


def test_records_on_standard_output(server, folder, capfdbinary):
    assert main(arguments(server, folder, "-")) == 1
    captured = capfdbinary.readouterr()
    head, *found = [json.loads(line) for line in captured.out.splitlines()]
    assert head["settings"]["model"] == "fake"
    assert len(found) == 8
    assert b"-: records: 8, new: 8" in captured.err


def test_folders_and_records_on_another_file_system(server, folder, memory, capsys):
    for file in folder.iterdir():
        memory.pipe(f"/in/{file.name}", file.read_bytes())
    out = "memory://out/answers.jsonl"
    for _ in range(2):
        assert main(arguments(server, "memory://in", out)) == 1
    assert len(server.requests) == 6
    lines = memory.cat("/out/answers.jsonl").splitlines()
    found = [json.loads(line) for line in lines[1:]]
    assert sorted(r["file"] for r in found if r["page"] in (None, 1)) == [
        f"memory:///in/{name}"
        for name in ("broken.pdf", "locked.pdf", "photo.png", "report.pdf", "scan.tif")
    ]
    memory.pipe("/in/photo.png", memory.cat("/in/photo.png") + b"\0")
    assert main(arguments(server, "memory://in", out)) == 1
    assert "photo.png: it has changed" in capsys.readouterr().err
    assert len(server.requests) == 7
    memory.pipe("/out/answers.jsonl", b"something else\n")
    assert main(arguments(server, "memory://in", out)) == 2
    assert memory.cat("/out/answers.jsonl") == b"something else\n"
