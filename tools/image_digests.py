#!/usr/bin/env python3
"""Pins container images to the digests that their tags have now.

In Dockerfiles and manifests ``image:tag`` becomes ``image:tag@sha256:...``, and a
digest that is there is refreshed. It is that of the manifest which the registry sends.

    tools/image_digests.py --hub URL docker/Dockerfile* examples/kubernetes/*.yaml

docs/docker.md says which URL that is.
"""

import argparse
import hashlib
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

_IMAGE = re.compile(
    r"^(?P<before>FROM +(?:--\S+ +)*|[ -]*image: *)(?P<name>[\w./:-]+):(?P<tag>[\w.-]+)"
    r"(?:@sha256:\w+)?(?=\s|$)",
    re.MULTILINE,
)
_KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LARGEST = 4 << 20  # bytes of an answer
_SECONDS = 30
_LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--hub", required=True, help="URL of the registry of images "
                        "that name none, such as python:3.13-slim")  # fmt: skip
    parser.add_argument("--check", action="store_true", help="write nothing; exit with "
                        "1 if a digest is missing or old")  # fmt: skip
    args = parser.parse_args()
    found: dict[tuple[str, str], str | None] = {}
    changed = False
    for file in args.files:
        text = file.read_text()
        for match in _IMAGE.finditer(text):
            image = match["name"], match["tag"]
            if image not in found:
                found[image] = _look_up(args.hub, *image)

        def pinned(match: re.Match[str]) -> str:
            digest = found[match["name"], match["tag"]]
            return f"{match[1]}{match[2]}:{match[3]}@{digest}" if digest else match[0]

        new = _IMAGE.sub(pinned, text)
        if new != text:
            changed = True
            print(f"{file}: {'is old' if args.check else 'written'}")
            if not args.check:
                file.write_text(new)
    return int(None in found.values() or (args.check and changed))


def _look_up(hub: str, name: str, tag: str) -> str | None:
    try:
        return digest_of(hub, name, tag)
    except (OSError, ValueError, KeyError) as error:
        print(f"{name}:{tag}: {error}", file=sys.stderr)
        return None


def digest_of(hub: str, name: str, tag: str) -> str:
    """The digest of the manifest that a tag names.

    Args:
        hub: URL of the registry of images whose names have no host.
        name: Name of the image, such as ``python`` or ``registry.example/team/app``.
        tag: Its tag.

    Raises:
        ValueError: The registry names another digest than the one of what it sent.
        OSError: It does not answer, or has no such image.
    """
    hub = hub.rstrip("/").removesuffix("/v1")  # as `docker info` has it
    host, slash, path = name.partition("/")
    if not slash or not (set(host) & set(".:") or host == "localhost"):
        host, path = "", name
    if host and not hub.endswith(f".{host}"):
        base = f"{'http' if _LOOPBACK.match(host) else 'https'}://{host}"
    else:  # an image of the hub, which its name may say
        base, path = hub, path if "/" in path else f"library/{path}"
    url = f"{base}/v2/{path}/manifests/{tag}"
    headers = {"Accept": ", ".join(_KINDS)}
    try:
        body, said = _get(url, headers)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        headers["Authorization"] = f"Bearer {_token(error.headers)}"
        body, said = _get(url, headers)
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    if said not in (None, digest):
        raise ValueError(f"the registry says {said}, but its manifest has {digest}")
    return digest


def _get(url: str, headers: dict[str, str]) -> tuple[bytes, str | None]:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        body = answer.read(_LARGEST + 1)
        if len(body) > _LARGEST:
            raise ValueError(f"the answer has more than {_LARGEST} bytes")
        return body, answer.headers["Docker-Content-Digest"]


def _token(headers) -> str:
    """A token for anybody, from where the registry's refusal says."""
    wanted = dict(re.findall(r'(\w+)="([^"]*)"', headers.get("WWW-Authenticate", "")))
    realm = urllib.parse.urlsplit(wanted.pop("realm"))
    if realm.scheme != "https" and not _LOOPBACK.match(realm.netloc):
        raise ValueError(f"tokens are not fetched from {realm.netloc} without TLS")
    url = realm._replace(query=urllib.parse.urlencode(wanted)).geturl()
    answer = json.loads(_get(url, {})[0])
    return answer.get("token") or answer["access_token"]


if __name__ == "__main__":
    sys.exit(main())
