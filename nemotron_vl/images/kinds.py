# SPDX-License-Identifier: Apache-2.0
"""What a file is, by its first and last bytes: HEIC, or nothing that can be read."""

import codecs
import os
from typing import BinaryIO

from vllm_nemotron_vl.multimodal.nemotron_vl_containers import is_container

HEAD = 4096  # bytes that are examined
_END = 1 << 16  # bytes of a ZIP file's list of names
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_IMAGES = {b"avif", b"avis", b"mif1", b"msf1", *_HEIC}

_TO_PDF = "Save it as a PDF, and give that."
# Names in a ZIP file, and what it is then.
_ZIPPED = {
    b"word/": "a Word document",
    b"xl/": "an Excel workbook",
    b"ppt/": "a PowerPoint presentation",
    b"application/vnd.oasis.opendocument.": "an OpenDocument file",
}
_BEGINNINGS = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": (
        f"It is an old Office file, such as .doc, .xls or .ppt. {_TO_PDF}"
    ),
    b"{\\rtf": f"It is an RTF document. {_TO_PDF}",
    b"%!PS": f"It is a PostScript file. {_TO_PDF}",
}


def is_heic(head: bytes) -> bool:
    """Whether a file begins like an image of HEIF that is not AVIF."""
    brands = head[8 : int.from_bytes(head[:4])]
    return _is_heif(head) and b"avif" not in brands and b"avis" not in brands


def is_video(head: bytes) -> bool:
    """Whether a file begins like a video; AVIF and HEIC have the same container."""
    return is_container(head) and not _is_heif(head)


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _IMAGES


def complaint(file: BinaryIO) -> str:
    """What a file is that is neither a PDF nor a known image, and what to do."""
    file.seek(0)
    head = file.read(HEAD)
    if not head:
        return "The file is empty. Copy or download it again."
    if is_video(head):
        return "It is a video. Only documents and images have pages."
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
        names = head + file.read(_END)
        for name, kind in _ZIPPED.items():
            if name in names:
                return f"It is {kind}. {_TO_PDF}"
        return "It is a ZIP archive. Unpack it, and give the files in it."
    for beginning, sentence in _BEGINNINGS.items():
        if head.startswith(beginning):
            return sentence
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return (
            "It is an HTML page, perhaps the message of a failed download. Download "
            "the document again, or print the page to a PDF."
        )
    if _is_text(head):
        return "It is a text file. Print it to a PDF, or send its text in a chat."
    return "It is not an image of a known format."


def _is_text(head: bytes) -> bool:
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8")()
    try:
        text = decoder.decode(head)  # its last character may be cut
    except UnicodeDecodeError:
        return False
    return all(char >= " " or char in "\t\n\r\f" for char in text)
