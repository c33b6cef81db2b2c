# SPDX-License-Identifier: Apache-2.0
"""Loading of image files: vLLM fetches them, this module checks and decodes them.

vLLM's own loader gives a file to every reader of Pillow that may know it. Some of them
need minutes for a few kilobytes.
"""

import asyncio
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaIO, VideoMediaIO
from vllm.multimodal.media.image import ImageMediaIO

from .nemotron_vl import LoadedImage, check_size, damage_is_the_clients, to_rgb
from .nemotron_vl_confinement import command, environment
from .nemotron_vl_fetching import SeparateConnector
from .nemotron_vl_files import read_file
from .nemotron_vl_formats import FORMATS, Refused, check_structure, format_of
from .nemotron_vl_media_errors import media_errors_are_the_clients
from .nemotron_vl_repeats import LazyImage, Seen
from .nemotron_vl_turns import Turns

logger = init_logger("vllm.multimodal.nemotron_vl_loading")

_DECODER = Path(__file__).with_name("nemotron_vl_image_decoder.py")
# Of the wall; the process itself has three of CPU time, but may wait for a core.
_MOST_SECONDS = 30

# CPU seconds of an image that the renderer may decode, too: what the tiles of a large
# image take there. A page takes 0.01 to 0.08.
_QUICK = 0.15

# In vLLM's cache, about: 12 tiles and a thumbnail of 512 pixels have 10 MiB.
_FILES_OF_A_GIB = 100

# vLLM's name of its connector, which also reads files and data URLs, and ours for
# ``VLLM_MEDIA_CONNECTOR``
_DEFAULT, PUBLIC = "http", "nemotron_vl"

_DEFAULT_SETTINGS = {"image_mode": "RGB", "rgba_background_color": (255, 255, 255)}

# Decodes an opened file as ``image.load()`` does, or leaves it to Pillow: see
# ``png.load`` of the resampling.
Load = Callable[[Image.Image, bytes], bool]

# Bounds the fetches of the request that is read; `_turns` knows the request by it.
_places: ContextVar[asyncio.Semaphore | None] = ContextVar("_places", default=None)
# Besides vLLM's threads, which its connector uses to fetch
_turns = Turns(envs.VLLM_MEDIA_LOADING_THREAD_COUNT)


def share_threads() -> None:
    """Count the media that are read in this context as those of one request.

    The connector of a message alone could count only the media of that message.
    """
    _places.set(_new_places())


def _new_places() -> asyncio.Semaphore:
    return asyncio.Semaphore(max(1, envs.VLLM_MEDIA_LOADING_THREAD_COUNT // 2))


def check_and_load_images(
    more_formats: Sequence[str], cache_gb: float = 0, load: Load | None = None
) -> None:
    """Make vLLM's connector load images with this module, in this process.

    Args:
        more_formats: Formats besides `FORMATS`, by Pillow's names.
        cache_gb: Size of vLLM's cache of processed images, in GiB. A file that it may
            have is decoded only if it does not have it.
        load: Decodes some kinds of files faster than Pillow.
    """
    # Python keeps the text of each warning, and Pillow's name numbers of the file.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    NemotronVLConnector.more_formats = tuple(more_formats)
    NemotronVLConnector.seen = Seen(int(cache_gb * _FILES_OF_A_GIB))
    NemotronVLConnector.load = staticmethod(load) if load else None
    for name, connector in CONNECTORS.items():
        MEDIA_CONNECTOR_REGISTRY.register(name)(connector)
    if envs.VLLM_MEDIA_CONNECTOR not in (_DEFAULT, PUBLIC):
        logger.warning(
            "The connector of VLLM_MEDIA_CONNECTOR (%s) loads images. Their formats "
            "and their structure are not checked.",
            envs.VLLM_MEDIA_CONNECTOR,
        )


def open_checked(data: bytes, more_formats: Sequence[str] = ()) -> Image.Image:
    """Open an image file of a format that is read, after a check of its structure.

    Raises:
        VLLMValidationError: It is of another format, has too many parts or pixels, or
            its header is damaged. One of `more_formats` is decoded here, within 3 s of
            CPU time.
    """
    kind = format_of(data)
    if kind is None:
        if not more_formats:
            raise _unreadable(f"it is none of {', '.join(FORMATS)} by its first bytes")
        data, kind = _as_tiff(data, more_formats), "TIFF"
    try:
        check_structure(data)
        image = Image.open(BytesIO(data), formats=[kind])  # an MPO is a JPEG, too
    except MemoryError:
        raise  # the server's problem, not the image's
    except Refused as error:
        raise _unreadable(str(error)) from error
    except Exception as error:  # Pillow raises all kinds for damaged files
        said = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            said = f"it cannot be opened as {kind}"  # its text shows an address
        raise _unreadable(said) from error
    check_size(image)
    return image


def _as_tiff(data: bytes, formats: Sequence[str]) -> bytes:
    """An image of a format whose cost nothing bounds, decoded in its own process."""
    try:
        done = subprocess.run(
            command(_DECODER, envs.VLLM_MAX_IMAGE_PIXELS, *formats),
            input=data,
            capture_output=True,
            env=environment(),
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise _unreadable("decoding took too long") from error
    if not done.returncode:
        return done.stdout
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    if done.returncode < 0 or not said:
        said = f"it ended its decoder (status {done.returncode})"
    elif said.startswith("UnidentifiedImageError"):
        said = f"it cannot be opened as {', '.join((*FORMATS, *formats))}"
    raise _unreadable(said[:300])


def _unreadable(reason: str) -> VLLMValidationError:
    return VLLMValidationError(
        f"The image cannot be read: {reason}.", parameter="image"
    )


class CheckedImageIO(ImageMediaIO):
    """vLLM's reader of images, with our checks and conversion.

    Args:
        settings: vLLM's reader with the settings of the engine and of the request.
        more_formats: See `check_and_load_images`.
        seen: The files that were decoded last.
        load: See `check_and_load_images`.
    """

    def __init__(
        self,
        settings: ImageMediaIO,
        more_formats: Sequence[str],
        seen: Seen | None = None,
        load: Load | None = None,
    ) -> None:
        super().__init__(settings.image_mode, **settings.kwargs)
        self._budget = getattr(settings, "decoded_budget", None)  # vLLM >= 0.33
        self._more_formats = more_formats
        self._seen = seen or Seen()
        self._load = load
        self._settings = {
            "image_mode": self.image_mode,
            "rgba_background_color": self.rgba_background_color,
        }

    def load_bytes(self, data: bytes) -> LoadedImage:  # type: ignore[override]
        """Decode a file, or leave that to who needs the pixels if it was seen before.

        Raises:
            VLLMValidationError: See `open_checked` and `to_rgb`.
        """
        key = self._seen.key(data, self._settings)
        if (known := self._seen.get(key)) is not None:
            size, settings = known
            image: Image.Image = LazyImage(size, partial(self._decode, data))
            self._charge(image)
            return LoadedImage(image, data, settings)
        start = time.thread_time()
        with open_checked(data, self._more_formats) as opened:
            self._charge(opened)
            image, settings = self._converted(opened, data)
        took = time.thread_time() - start
        # Otherwise it always takes a thread of media, where requests take turns.
        if took < _QUICK and format_of(data) is not None:
            self._seen.remember(key, (image.size, settings))
        return LoadedImage(image, data, settings)

    def _charge(self, image: Image.Image) -> None:
        if self._budget is not None:
            self._budget.charge(4 * image.width * image.height)

    def _decode(self, data: bytes) -> Image.Image:
        with open_checked(data, self._more_formats) as image:
            return self._converted(image, data)[0]

    def _converted(
        self, image: Image.Image, data: bytes
    ) -> tuple[Image.Image, dict | None]:
        """The image as RGB, and the settings if they had a part in it.

        vLLM's cache compares images by their bytes and by these settings.
        """
        if self._load is not None:
            with damage_is_the_clients():
                self._load(image, data)
        settings, mode = self._settings, image.mode
        if settings != _DEFAULT_SETTINGS and not mode.startswith(("I", "F")):
            image.load()
            image = self._convert_image_mode(image)
        return to_rgb(image), None if mode == "RGB" else settings


class _Later(MediaIO[Callable[[], Any]]):
    """A reader that returns the work of another one, instead of doing it.

    Files are read as `read_file` does.
    """

    def __init__(self, media_io: MediaIO) -> None:
        super().__init__()
        self._media_io = media_io

    def get_max_bytes(self) -> int | None:
        return self._media_io.get_max_bytes()

    def load_bytes(self, data: bytes) -> Callable[[], Any]:
        return partial(self._media_io.load_bytes, data)

    def load_base64(self, media_type: str, data: str) -> Callable[[], Any]:
        return partial(self._media_io.load_base64, media_type, data)

    def load_file(self, filepath: Path) -> Callable[[], Any]:
        return partial(self._load_file, filepath)

    def _load_file(self, file: Path) -> Any:
        kind, most = "image", envs.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB << 20
        if isinstance(self._media_io, VideoMediaIO):
            # Only then: without videos, no code for them is imported.
            from ..config.nemotron_vl_video import MOST_BYTES

            kind, most = "video", MOST_BYTES
        try:
            data = read_file(file, most)
        except ValueError as error:
            raise VLLMValidationError(
                f"The {kind} cannot be read: {error}.", parameter=f"{kind}_url"
            ) from error
        return self._media_io.load_bytes(data)


class NemotronVLConnector(SeparateConnector):
    """It has `CheckedImageIO`, and requests take its threads in turn."""

    more_formats: Sequence[str] = ()
    seen = Seen()
    load: Load | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._places = _places.get() or _new_places()

    def fetch_image(self, *args: Any, **options: Any) -> Any:
        """As vLLM's; it loads the images of /score outside of the renderer."""
        with media_errors_are_the_clients((MemoryError,)):
            return super().fetch_image(*args, **options)

    def load_from_url(self, url: str, media_io: MediaIO, **options: Any) -> Any:
        return super().load_from_url(url, self._later(media_io), **options)()

    async def load_from_url_async(
        self, url: str, media_io: MediaIO, **options: Any
    ) -> Any:
        later = self._later(media_io)
        async with self._places:
            work = await super().load_from_url_async(url, later, **options)
        return await asyncio.wrap_future(_turns.submit(self._places, work))

    def _later(self, media_io: MediaIO) -> _Later:
        if type(media_io) is ImageMediaIO:
            media_io = CheckedImageIO(media_io, self.more_formats, self.seen, self.load)
        return _Later(media_io)


class PublicConnector(NemotronVLConnector):
    """The same; it connects to no private address by itself."""

    connects_to_private_addresses = False


CONNECTORS = {_DEFAULT: NemotronVLConnector, PUBLIC: PublicConnector}
