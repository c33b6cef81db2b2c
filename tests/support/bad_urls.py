"""URLs of images that are refused, and what the message of each refusal contains."""

import base64

from nemotron_vl.images.drawn import draw_text
from support.bad_files import OTHER_KIND
from support.chat import data_url, saved

GOOD_DATA = base64.b64encode(saved(draw_text("1"), "PNG")).decode()
DATA_URLS = {
    "no comma": ("data:image/png;base64", "missing ',' separator"),
    "empty": ("data:image/png;base64,", OTHER_KIND),
    "empty scheme": ("data:", "missing ',' separator"),
    "not base64": ("data:image/png;base64,%%%%", "non-base64 digit"),
    "spaces": (
        "data:image/png;base64," + GOOD_DATA.replace("A", " ", 5),
        "non-base64 digit",
    ),
    "cut": ("data:image/png;base64," + GOOD_DATA[:-5], "non-base64 digit"),
    "no base64": ("data:image/png," + GOOD_DATA[:100], "only base64 data urls"),
    "percent": ("data:image/svg+xml;utf8,%3Csvg%3E%3C/svg%3E", "only base64 data urls"),
    "text": (data_url(b"hello", "text/plain"), OTHER_KIND),
    "audio": (data_url(b"RIFF0000WAVE", "audio/wav"), OTHER_KIND),
    "json": (data_url(b"{}", "application/json"), OTHER_KIND),
}


# Reasons, in lower case
SCHEME = "must be either a http, data or file url"
DOMAIN = "must be from one of the allowed domains: ['localhost']"
FOLDER = "must be a subpath of `--allowed-local-media-path"
NOT_FETCHED = "could not be fetched from its url"
URLS = {
    "empty": ("", "is empty"),
    "space": (" ", "failed to parse"),
    "word": ("image.png", SCHEME),
    "path": ("/etc/passwd", SCHEME),
    "ftp": ("ftp://localhost/image.png", SCHEME),
    "gopher": ("gopher://localhost/", SCHEME),
    "javascript": ("javascript:alert(1)", SCHEME),
    "blob": ("blob:https://localhost/1", SCHEME),
    "nothing after": ("http://", DOMAIN),
    "bad port": ("http://localhost:99999/image.png", "failed to parse"),
    "bad host": ("http://[::1/image.png", "not a valid host or port"),
    "control": ("http://localhost:9/\x00image.png", NOT_FETCHED),
    "private": ("http://127.0.0.1:9/image.png", DOMAIN),
    "any": ("http://0.0.0.0:9/image.png", DOMAIN),
    "IPv6": ("http://[::1]:9/image.png", DOMAIN),
    "number": ("http://2130706433:9/image.png", DOMAIN),
    "octal": ("http://0177.0.0.1:9/image.png", DOMAIN),
    "network": ("http://10.0.0.1/image.png", DOMAIN),
    "metadata": ("http://169.254.169.254/latest/meta-data/", DOMAIN),
    "other host": ("https://example.org/image.png", DOMAIN),
    "user part": ("http://localhost@127.0.0.1:9/image.png", DOMAIN),
    "backslash": ("http://127.0.0.1:9\\@localhost/image.png", DOMAIN),
    "suffix": ("http://localhost.example.org/image.png", DOMAIN),
    "long": ("http://localhost:9/" + "a" * 100_000, NOT_FETCHED),
    "closed port": ("http://localhost:9/image.png", NOT_FETCHED),
    "passwd": ("file:///etc/passwd", FOLDER),
    "host": ("file://localhost/etc/passwd", FOLDER),
    "relative": ("file://image.png", FOLDER),
    "proc": ("file:///proc/self/environ", FOLDER),
    "device": ("file:///dev/zero", FOLDER),
}
FILES = {
    "outside": ("../secret.png", FOLDER),
    "deeper outside": ("folder/../../secret.png", FOLDER),
    "encoded outside": ("%2e%2e/secret.png", FOLDER),
    "link": ("link.png", FOLDER),
    "folder": ("folder", "is a directory"),
    "missing": ("missing.png", "no such file"),
    "pipe": ("pipe.png", "not a regular file"),
    "large": ("large.png", "at most 268435456 are allowed"),
    "text": ("text.png", OTHER_KIND),
}
PAGES = {
    "404": "the url: http 404|fetch",
    "403": "from url: http 403",
    "500": "could not be fetched",
    "redirect": OTHER_KIND,
    "page": OTHER_KIND,
    "endless": "could not be fetched",
    "huge": "exceeds vllm_max_media_download_size_mb=256",
}
