# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint, compared with what was published.

vLLM and the reference read the same files. Their agreement proves the code; only a
digest that somebody else published proves the files.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.embedded import embedded_digests, is_embedded, tiny_checkpoint
from ..checkpoints.files import is_quantised_checkpoint, read_json
from ..checkpoints.published_files import KNOWN_FILES, is_known, sha256
from ..regular_files import open_regular, read_text

_PATTERNS = ("*.json", "*.jinja", "*.safetensors")
_SHA256 = re.compile("[0-9a-f]{64}")
_GIT = re.compile("[0-9a-f]{40}")  # SHA-1 of git, for the hub's small files
_PAGE = "docs/provenance.md"


class Published(NamedTuple):
    """The digest of a file, and where it comes from."""

    digest: str
    source: str


def compare_files(checkpoint: Path, published: str | None = None) -> dict[str, Any]:
    """Compare each file that vLLM reads with its published digest.

    A file's digest comes from the hub's list if a name is given, from the list of this
    package if the folder is a copy of the embedded checkpoint, else from the hub's
    cache: it names large files by their SHA-256 and small ones by git's SHA-1. A file
    that none of them knows may be one of `KNOWN_FILES`.

    Args:
        checkpoint: Folder.
        published: Name on the hub, ``owner/name`` or ``owner/name@revision``, whose
            list of files is asked for.

    Returns:
        Data for JSON: ``same``, names of files; ``sources`` of their digests;
        ``differ``, objects with ``file``, ``digest`` (``None`` if it is missing),
        ``published`` and ``source``; ``not_compared``, objects with ``file`` and
        ``reason``.

    Raises:
        OSError: The hub cannot be reached, or has no such name.
    """
    known: Mapping[str, Published] = {}
    if published is not None:
        known = _of_the_hub(published)
        if not known:
            raise OSError(f"The hub lists no files of a checkpoint for {published}.")
    elif _is_copy_of_the_embedded(checkpoint):
        listed = "the list of this package"
        known = {n: Published(d, listed) for n, d in embedded_digests().items()}
    found: dict[str, list] = {
        name: [] for name in ("same", "sources", "differ", "not_compared")
    }
    files = [*_files(checkpoint)]
    required = {**_shards(checkpoint), **known}
    for name in sorted(required.keys() - {file.name for file in files}):
        found["differ"].append(_difference(name, None, required[name]))
    sources = set()
    for file in files:
        expected = known.get(file.name)
        if not known:
            expected = _of_the_cache(file) or _of_docs(file)
        if expected is None:
            reason = "it is not among the published files"
            if not known:
                reason = "no published digest of it is on this machine"
                if file.name in KNOWN_FILES:
                    reason += f", and it is not the one of {_PAGE}"
            found["not_compared"].append({"file": file.name, "reason": reason})
            continue
        digest = _digest(file, expected.digest)
        if digest == expected.digest:
            found["same"].append(file.name)
            sources.add(expected.source)
        else:
            found["differ"].append(_difference(file.name, digest, expected))
    return found | {"sources": sorted(sources)}


def _shards(checkpoint: Path) -> dict[str, Published]:
    """The files that the index of the weights names, if there is one."""
    index = checkpoint / "model.safetensors.index.json"
    if not index.exists():
        return {}
    files = read_json(str(checkpoint), index.name).get("weight_map", {}).values()
    return dict.fromkeys(files, Published("a shard", index.name))


def _difference(file: str, digest: str | None, expected: Published) -> dict[str, Any]:
    found = {"file": file, "digest": digest, "published": expected.digest}
    return {**found, "source": expected.source}


def _is_copy_of_the_embedded(checkpoint: Path) -> bool:
    """By its configuration and tokenizer, or by its weights if one of them differs."""
    if is_quantised_checkpoint(checkpoint):
        return False
    if is_embedded(checkpoint, exact=True):
        return True
    weights = checkpoint / "model.safetensors"
    own = Path(tiny_checkpoint(), weights.name)
    # The size first: the one file of another checkpoint may have gigabytes.
    if not weights.is_file() or weights.stat().st_size != own.stat().st_size:
        return False
    digest = embedded_digests()[weights.name]
    return _digest(weights, digest) == digest


def _files(checkpoint: Path) -> Iterator[Path]:
    for pattern in _PATTERNS:
        yield from sorted(checkpoint.glob(pattern))


def _of_the_cache(file: Path) -> Published | None:
    """The name of the blob that a file of the hub's cache links to, or what
    ``hf download --local-dir`` noted beside it."""
    blob = file.resolve()
    if file.is_symlink() and blob.parent.name == "blobs" and _is_digest(blob.name):
        repository = blob.parents[1].name.removeprefix("models--").replace("--", "/")
        return Published(blob.name, f"the hub's cache of {repository}")
    note = file.parent / ".cache/huggingface/download" / f"{file.name}.metadata"
    if note.is_file():
        _, etag, *_ = [*read_text(note).split(), "", ""]
        if _is_digest(etag):
            return Published(etag, "the record of its download")
    return None


def _of_docs(file: Path) -> Published | None:
    """A file that is not the known one may be of another revision or model."""
    return Published(KNOWN_FILES[file.name], _PAGE) if is_known(file) else None


def _is_digest(text: str) -> bool:
    return bool(_SHA256.fullmatch(text) or _GIT.fullmatch(text))


def _of_the_hub(name: str) -> dict[str, Published]:
    from huggingface_hub import HfApi

    repository, _, revision = name.partition("@")
    try:
        info = HfApi().model_info(
            repository, revision=revision or None, files_metadata=True
        )
    except Exception as error:  # its types depend on the hub's client
        raise OSError(f"The hub does not list the files of {name}: {error}") from error
    source = f"the hub, {repository} at {info.sha}"
    return {
        file.rfilename: Published(digest, source)
        for file in info.siblings or []
        if (digest := file.lfs.sha256 if file.lfs else file.blob_id)
        and "/" not in file.rfilename
        and any(fnmatch(file.rfilename, pattern) for pattern in _PATTERNS)
    }


def _digest(file: Path, expected: str) -> str:
    """The digest of a file, of the kind of the expected one."""
    if _SHA256.fullmatch(expected):
        return sha256(file)
    with open_regular(file) as opened:
        size = file.stat().st_size
        started = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        return hashlib.file_digest(opened, lambda: started).hexdigest()
