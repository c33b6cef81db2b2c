"""A file that cannot be read is named, with what to do."""

import io
import sys
import zipfile

import pytest

from nemotron_vl.images.files import open_image
from nemotron_vl.images.kinds import is_heic, is_video
from support.clips import encoded, noise


def zipped(*names: str, content: str = "", compression=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def opendocument(kind: str) -> bytes:
    mime = f"application/vnd.oasis.opendocument.{kind}"
    return zipped("mimetype", content=mime, compression=zipfile.ZIP_STORED)


OFFICE = ("[Content_Types].xml", "_rels/.rels")
FILES = {
    "empty": (b"", "The file is empty. Copy"),
    "HTML": (b"\n <!DOCTYPE html><title>404</title>", "It is an HTML page, perhaps"),
    "Word": (zipped(*OFFICE, "word/document.xml"), "It is a Word document. Save it"),
    "large Word": (
        zipped(*OFFICE, *(f"docProps/{n}" for n in range(300)), "word/document.xml"),
        "It is a Word document.",
    ),
    "Excel": (zipped(*OFFICE, "xl/workbook.xml"), "It is an Excel workbook."),
    "slides": (zipped(*OFFICE, "ppt/slides/1.xml"), "It is a PowerPoint presentation."),
    "ODF": (opendocument("text"), "It is an OpenDocument file."),
    "old Word": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99),
        "It is an old Office",
    ),
    "RTF": (b"{\\rtf1 a}", "It is an RTF document. Save it"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0", "It is a PostScript file. Save it"),
    "ZIP": (zipped("invoice.pdf"), "It is a ZIP archive. Unpack it"),
    "empty ZIP": (zipped(), "It is a ZIP archive. Unpack it"),
    "text": ("Größe\n".encode() * 2000, "It is a text file."),
    "wide text": ("Größe\n".encode("utf-16"), "It is a text file."),
    "cut letter": (b"a" * 4095 + "ö".encode(), "It is a text file."),
    "video": (encoded(noise(3)), "It is a video."),
    "noise": (bytes(range(256)), "It is not an image of a known format."),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_image_is_named(tmp_path, name):
    data, sentence = FILES[name]
    file = tmp_path / "page.png"
    file.write_bytes(data)
    with pytest.raises(OSError, match="^" + sentence), open_image(file):
        pass


def brands(*names: str) -> bytes:
    body = b"ftyp" + names[0].encode() + bytes(4) + "".join(names).encode()
    return (len(body) + 4).to_bytes(4) + body


@pytest.mark.parametrize(
    ("names", "heic", "video"),
    [
        (("heic", "mif1"), True, False),
        (("mif1", "heic"), True, False),
        (("avif", "mif1"), False, False),
        (("mif1", "avif"), False, False),
        (("isom", "avc1"), False, True),
        (("qt  ",), False, True),
    ],
)
def test_images_in_the_container_of_videos(names, heic, video):
    head = brands(*names) + bytes(100)
    assert (is_heic(head), is_video(head)) == (heic, video)


def test_the_package_for_heic_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    file = tmp_path / "photo.heic"
    file.write_bytes(brands("heic", "mif1") + bytes(100))
    with pytest.raises(OSError, match="pip install pillow-heif"), open_image(file):
        pass
