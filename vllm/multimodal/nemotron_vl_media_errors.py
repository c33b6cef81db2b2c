# SPDX-License-Identifier: Apache-2.0
"""Errors in the loading of images and videos: which are the client's.

An image that cannot be read is the client's error, but vLLM's loader reports some of
them as internal errors of the server.
"""

import contextlib
import errno
import re
import textwrap
from collections.abc import Iterator
from types import TracebackType

import aiohttp
import requests
from PIL import Image
from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.logger import init_logger

logger = init_logger("vllm.renderers.nemotron_vl")

# Types of errors whose messages help the client. They may quote the file, so their
# length is limited.
_LONGEST = 300
_HELPFUL = (
    OSError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    Image.DecompressionBombError,
)
# Scheme and host are groups; a user with a password, the path and the query are not.
_URL = re.compile(r"(https?://)(?:[^/?#\s'\"]*@)?([^/?#\s'\"]*)[^\s'\"]*")
_NETWORK = (aiohttp.ClientError, requests.RequestException, TimeoutError)
# The server lacks memory, open files or threads.
_SHORTAGES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
# Words of Python (the first at shutdown), PyTorch and Pillow
_SHORTAGE = re.compile(
    "cannot schedule new futures|can't start new thread|"
    ".*DefaultCPUAllocator: can't allocate memory|out of memory"
)


@contextlib.contextmanager
def media_errors_are_the_clients(
    servers_errors: tuple[type[Exception], ...],
) -> Iterator[None]:
    """Turn errors in the loading of media into errors with status 400.

    Args:
        servers_errors: Types of errors that are not the client's.

    Raises:
        VLLMValidationError: Says whether it is an image or a video, and what is wrong.
    """
    try:
        yield
    except VLLMError:
        raise
    except Exception as error:
        media = _loaded_media(error.__traceback__)
        if media is None or _is_the_servers(error, servers_errors):
            raise  # the client may send it again later
        said = _without_urls(repr(error))
        logger.info("The %s of a request could not be loaded: %s", media, said)
        if isinstance(error, _NETWORK):
            # Details would reveal the server's network to the client.
            text = f"The {media} could not be fetched from its URL."
        else:
            reason = "the data are damaged"
            if isinstance(error, _HELPFUL):
                reason = getattr(error, "strerror", None) or str(error)
            reason = textwrap.shorten(reason, _LONGEST)
            text = f"The {media} cannot be read: {reason}"
        raise VLLMValidationError(text, parameter=f"{media}_url") from error


def _is_the_servers(
    error: BaseException | None, servers_errors: tuple[type[Exception], ...]
) -> bool:
    while error is not None:
        if (
            isinstance(error, servers_errors)
            or getattr(error, "errno", None) in _SHORTAGES
            # Other types may quote what the client or its host wrote.
            or (type(error) in (RuntimeError, OSError) and _SHORTAGE.match(str(error)))
        ):
            return True
        error = error.__cause__ or error.__context__  # vLLM's loader wraps some
    return False


def _without_urls(text: str) -> str:
    """Keep only the host of each URL: paths and queries may hold secrets."""
    return textwrap.shorten(_URL.sub(r"\1\2/...", text), _LONGEST)


def _loaded_media(traceback: TracebackType | None) -> str | None:
    """What vLLM was loading, ``image`` or ``video``; ``None`` if it was not loading.

    An error of vLLM's loader does not say so, but it has come through functions of the
    loader, and those for videos have the word in their names.
    """
    media = None
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.startswith("vllm.multimodal.media."):
            place = module + traceback.tb_frame.f_code.co_name  # say, fetch_video_async
            media = "video" if "video" in place else media or "image"
        traceback = traceback.tb_next
    return media
