"""`nemotron-vl tiles` shows how images are cut into tiles, without an engine."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.images.tiles import draw_tiles
from nemotron_vl.main import main
from support.clips import encoded, noise
from support.documents import pdf, solid, tiff
from vllm_nemotron_vl.config.nemotron_vl_video import frame_indices
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
    NemotronVLProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import TileGrid


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (600, 400)).save(tmp_path / "photo.jpg")
    turned = Image.new("RGB", (1700, 2200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize("recipe", ["fast", "exact", "hf"])
@pytest.mark.parametrize("size", [(64, 64), (65, 64), (200, 90), (1700, 2200)])
def test_the_numbers_equal_the_processors(checkpoint, tmp_path, capsys, recipe, size):
    image = Image.new("RGB", size)
    image.save(tmp_path / "p.png")
    options = ["--model", str(checkpoint), "--max-tiles", "6", "--json"]
    assert main(["tiles", str(tmp_path / "p.png"), *options]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    cut = found["recipes"][recipe]
    settings = {"max_dynamic_patch": 6, "resize": recipe, "do_rescale": False}
    cutter = NemotronVLImageProcessor.from_pretrained(checkpoint)
    cutter = NemotronVLImageProcessor(cutter.image_size, **settings)
    assert cut["tiles"] == len(cutter(images=image)["pixel_values_flat"])
    processor = NemotronVLProcessor.from_pretrained(checkpoint)
    replacement = processor.get_image_repl(cut["tiles"])
    assert cut["prompt_tokens"] == len(replacement.full)
    grid = cutter.grid_for(*size)
    assert (cut["columns"], cut["rows"], cut["thumbnail"]) == grid
    assert cut["resized"] == [64 * grid.columns, 64 * grid.rows]


def test_the_default_settings_are_the_published_ones(folder, capsys):
    assert main(["tiles", str(folder / "photo.jpg"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["recipes"]["fast"] == {
        "columns": 3,
        "rows": 2,
        "resized": [1536, 1024],
        "thumbnail": True,
        "tiles": 7,
        "prompt_tokens": 7 * 256 + 2,
    }


def test_a_folder_is_a_table_of_images_as_displayed(folder, capsys):
    assert main(["tiles", str(folder)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["image", "pixels", "recipe"]
    assert len(rows) == 2
    assert "photo.jpg" in rows[0]
    assert "600x400" in rows[0]
    assert "2200x1700  fast, exact, hf  4x3   2048x1536  12 + thumbnail" in rows[1]


def test_a_bad_image_does_not_stop_the_others(folder, capsys):
    bad = folder / "broken.png"
    bad.write_bytes(b"\x89PNG\r\n")
    assert main(["tiles", str(folder)]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert captured.err.startswith(f"nemotron-vl: {bad}: It is not an image")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}", "-o", "out.png"], "-o draws one file, not 2."),
        (["{}/photo.jpg", "--model", "{}"], "config.json"),
        (["{}/empty"], "The folder holds no documents, images or videos."),
    ],
)
def test_wrong_use_is_explained(folder, capsys, arguments, message):
    (folder / "empty").mkdir()
    assert main(["tiles", *(a.format(folder) for a in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "257", "many"])
def test_a_wrong_number_of_tiles_is_refused(folder, capsys, number):
    with pytest.raises(SystemExit):
        main(["tiles", str(folder), "--max-tiles", number])
    assert f"'{number}' is not a number from 1 to 256" in capsys.readouterr().err


def test_the_tiles_are_drawn_where_they_are_cut(folder):
    blue = Image.new("RGB", (300, 100), "blue")
    sheet = draw_tiles(blue, TileGrid(3, 1, thumbnail=True), side=64)
    side, gap = 256, 32
    assert sheet.size == (3 * side + gap + side, side)
    row = [sheet.getpixel((x, side // 2)) for x in range(sheet.width)]
    red = [x for x in range(sheet.width) if row[x] == (255, 0, 0)]
    lefts = [0, side, 2 * side, 3 * side + gap]
    assert red == sorted([*lefts, *(left + side - 1 for left in lefts)])
    assert row[side // 2] == (0, 0, 255)
    assert row[3 * side + gap // 2] == (255, 255, 255)

    out = folder / "out.png"
    assert main(["tiles", str(folder / "turned.png"), "-o", str(out)]) == 0
    width, height = 4 * 512, 3 * 512
    assert Image.open(out).size == (width + 64 + 512, height)


def test_the_settings_of_a_single_tile(checkpoint, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        data = json.loads((checkpoint / name).read_text())
        data["dynamic_image_size"] = False
        (tmp_path / name).write_text(json.dumps(data))
    assert Tiler.from_model(str(tmp_path)).grid_for(900, 100, "fast") == (1, 1, False)


def test_a_video_shows_its_frames_and_their_tokens(checkpoint, tmp_path, capsys):
    frames = noise(100, 90, 70)
    clip = tmp_path / "clip.mkv"
    clip.write_bytes(encoded(frames))
    out = tmp_path / "frames.png"
    options = ["--model", str(checkpoint), "--frames", "5", "-o", str(out)]
    assert main(["tiles", str(clip), *options]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["video", "pixels", "frames", "taken", "tiles", "tokens"]
    taken = [0, 24, 49, 74, 99]
    expected = f"{clip} 90x70 100 {' '.join(map(str, taken))} 5 {5 * 4 + 2}"
    assert " ".join(row.split()) == expected
    # The drawing has the frames row by row, enlarged.
    with Image.open(out) as sheet:
        assert sheet.size == (3 * 256, 2 * 256)
        drawn = sheet.resize((3 * 64, 2 * 64), Image.Resampling.NEAREST)
    for number, index in enumerate(taken):
        frame = frames[index].resize((64, 64), Image.Resampling.BICUBIC)
        x, y = number % 3 * 64, number // 3 * 64
        for place in ((50, 50), (30, 55)):  # outside of the label and of the outline
            assert drawn.getpixel((x + place[0], y + place[1])) == frame.getpixel(place)


def test_videos_and_images_in_one_folder(folder, capsys):
    (folder / "clip.mkv").write_bytes(encoded(noise(40)))
    (folder / "broken.mp4").write_bytes(b"no video")
    assert main(["tiles", str(folder), "--json"]) == 1
    captured = capsys.readouterr()
    found = {row["image"]: row for row in json.loads(captured.out)}
    assert len(found) == 4
    clip = found[str(folder / "clip.mkv")]
    assert (clip["frames"], clip["tiles"]) == (40, 32)
    assert clip["prompt_tokens"] == 32 * 256 + 2
    assert "broken.mp4" in captured.err
    # As many as a processor with the published settings would take.
    assert clip["taken"] == frame_indices(40, 32)


@pytest.mark.parametrize("frames", ["0", "-1", "1025", "many"])
def test_a_wrong_number_of_frames_is_named(folder, capsys, frames):
    with pytest.raises(SystemExit):
        main(["tiles", str(folder), "--frames", frames])
    assert f"{frames!r} is not a number from 1 to 1024" in capsys.readouterr().err


@pytest.fixture
def documents(tmp_path):
    """A PDF of three pages, one of them landscape, and a TIFF of two."""
    pages = [solid("red", size) for size in ((612, 792), (792, 612), (612, 792))]
    (tmp_path / "report.pdf").write_bytes(pdf(pages))
    (tmp_path / "scan.tif").write_bytes(tiff([solid("white"), solid("lime")]))
    return tmp_path


def test_each_page_of_a_document_is_a_row(documents, capsys):
    assert main(["tiles", str(documents), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    report, scan = (str(documents / name) for name in ("report.pdf", "scan.tif"))
    assert [
        (row["image"], row["page"], row["width"], row["height"]) for row in found
    ] == [
        (report, 1, 1583, 2048),  # as `read` draws it
        (report, 2, 2048, 1583),
        (report, 3, 1583, 2048),
        (scan, 1, 60, 80),
        (scan, 2, 60, 80),
    ]
    assert main(["tiles", report, "--recipe", "fast"]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    assert rows[1].split() == [
        *(f"{report},", "page", "2", "2048x1583", "fast", "4x3", "2048x1536"),
        *("12", "+", "thumbnail", "3330"),
    ]


def test_a_page_of_a_document_is_drawn(documents, capsys):
    out, report = documents / "out.png", str(documents / "report.pdf")
    assert main(["tiles", report, "-o", str(out)]) == 2
    assert "report.pdf has several pages: choose one with --page." in (
        capsys.readouterr().err
    )
    assert not out.exists()
    assert main(["tiles", report, "--page", "2", "-o", str(out)]) == 0
    assert "report.pdf, page 2  2048x1583" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.size == (4 * 512 + 64 + 512, 3 * 512)
        assert sheet.getpixel((9, 400))[0] > 250 and sheet.getpixel((9, 400))[1] == 0
    capsys.readouterr()
    assert main(["tiles", report, "--page", "4"]) == 1
    assert capsys.readouterr().err.endswith("report.pdf: It has no page 4, but 3.\n")


def test_the_pages_of_many_documents_are_chosen(documents, capsys):
    assert main(["tiles", str(documents), "--page", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["page"] for row in found] == [2, 2]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("photo.jpg", "photo.jpg is the file that is read. Choose another name."),
        ("link.png", "link.png is the file that is read. Choose another name."),
        ("full.png", "[Errno 28] No space left on device: "),
        ("none/out.png", "[Errno 2] No such file or directory: "),
        ("out.xyz", "out.xyz must end with .png or the suffix of another image."),
    ],
)
def test_where_nothing_can_be_drawn(folder, capsys, out, message):
    photo = folder / "photo.jpg"
    before = photo.read_bytes()
    (folder / "link.png").symlink_to(photo)
    (folder / "full.png").symlink_to("/dev/full")
    assert main(["tiles", str(photo), "-o", str(folder / out)]) == 2
    error = capsys.readouterr().err
    assert message in error and out in error
    assert photo.read_bytes() == before


def test_files_are_found_as_read_finds_them(folder, capsys):
    os.mkfifo(folder / "pipe.pdf")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "photo.png").write_bytes(b"")
    Image.new("RGB", (60, 80)).save(folder / "photo.avif")
    assert main(["tiles", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [Path(row["image"]).name for row in found]
    assert names == ["photo.avif", "photo.jpg", "turned.png"]
    assert main(["tiles", str(folder / "pipe.pdf")]) == 1
    assert "pipe.pdf is not a regular file." in capsys.readouterr().err
