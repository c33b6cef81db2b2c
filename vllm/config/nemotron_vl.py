# SPDX-License-Identifier: Apache-2.0
"""Settings of the vision encoder and of the reading of images, from vLLM's
``additional_config``."""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from vllm.config import VllmConfig
from vllm.platforms import current_platform

KEY = "nemotron_vl"

# Formats of Pillow that can be read besides those that always are
MoreFormats = Literal[
    "AVIF", "ICNS", "ICO", "JPEG2000", "PCX", "PPM", "PSD", "QOI", "SGI", "TGA"
]


def _whole(least: int, default: int | None) -> Any:
    return Field(default, ge=least, description=f"a whole number of at least {least}")


class _Settings:
    """A part of ``--additional-config '{"nemotron_vl": {...}}'``."""

    @classmethod
    def from_vllm_config(cls, vllm_config: VllmConfig) -> Self:
        """Read these settings of an engine.

        Raises:
            ValueError: A setting is unknown, of a wrong type or out of range.
        """
        fields = _fields(cls)
        given = _given(vllm_config)
        try:
            return cls(**{name: given[name] for name in given.keys() & fields.keys()})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise ValueError(
                f"additional_config: {KEY}.{name} must be "
                f"{fields[name].description}, but is {first['input']!r}."
            ) from None


_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class EncoderConfig(_Settings):
    """Settings of the vision encoder, which workers have.

    Args:
        tile_cache_mb: Megabytes (10^6 bytes) in each worker for embeddings of
            tiles of earlier requests; 0 switches the cache off.
        max_encoder_tiles: Largest number of tiles that go through the tower at
            once. It bounds the memory of the activations. The default is 16, on
            CPUs 1: the activations of one tile fit into a CPU's cache.

    Raises:
        pydantic.ValidationError: A setting is unknown, of a wrong type or out of
            range. `from_vllm_config` makes it a message for users.
    """

    tile_cache_mb: int = _whole(0, default=0)
    max_encoder_tiles: int | None = _whole(1, default=None)

    def __post_init__(self) -> None:
        if self.max_encoder_tiles is None:
            most = 1 if current_platform.is_cpu() else 16
            object.__setattr__(self, "max_encoder_tiles", most)


@dataclass(frozen=True, config=_STRICT)
class ImageConfig(_Settings):
    """Settings of the reading of images, which API servers do.

    Args:
        more_image_formats: Formats that are read besides PNG, JPEG, WebP, GIF, TIFF
            and BMP: any of AVIF, ICNS, ICO, JPEG2000, PCX, PPM, PSD, QOI, SGI and TGA.
        image_threads: Most threads that resample one image and compute its digests,
            in each API server. The default is the server's share of the machine, at
            most 8: the cores that it may run on, by affinity and control group, over
            the number of API servers.
        trusted_uuids: Whether the ``uuid`` of an image or a video is the key of
            vLLM's caches as it stands, for all clients alike. By default it is a name
            among the requests with the same ``cache_salt``. Set it only where nobody
            but your router sends requests.

    Raises:
        pydantic.ValidationError: As of `EncoderConfig`.
    """

    image_threads: int | None = _whole(1, default=None)
    more_image_formats: Sequence[MoreFormats] = Field(
        default=(), description=f"a list of {', '.join(get_args(MoreFormats))}"
    )
    trusted_uuids: bool = Field(default=False, description="true or false")


def check_settings(vllm_config: VllmConfig) -> None:
    """Read all settings of an engine.

    Raises:
        ValueError: A setting is unknown, of a wrong type or out of range.
    """
    for part in (EncoderConfig, ImageConfig):
        part.from_vllm_config(vllm_config)


def _fields(part: type) -> dict[str, FieldInfo]:
    return part.__pydantic_fields__  # type: ignore[attr-defined]


def _given(vllm_config: VllmConfig) -> dict[str, Any]:
    """What a user has set, with known names."""
    additional = vllm_config.additional_config
    given = additional.get(KEY, {}) if isinstance(additional, dict) else {}
    known = [*_fields(EncoderConfig), *_fields(ImageConfig)]
    if not isinstance(given, dict):
        raise ValueError(
            f"additional_config: {KEY} must be an object, but is {given!r}."
        )
    if unknown := given.keys() - known:
        raise ValueError(
            f"additional_config: unknown {KEY} settings {sorted(unknown)}; "
            f"known are {known}."
        )
    return given
