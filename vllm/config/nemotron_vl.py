# SPDX-License-Identifier: Apache-2.0
"""Settings of the vision encoder, from vLLM's ``additional_config``."""

from dataclasses import dataclass, fields

from vllm.config import VllmConfig
from vllm.platforms import current_platform

KEY = "nemotron_vl"


@dataclass(frozen=True)
class EncoderConfig:
    """``--additional-config '{"nemotron_vl": {...}}'``.

    Args:
        tile_cache_mb: Megabytes (10^6 bytes) of each worker for embeddings of
            tiles of earlier requests; 0 switches the cache off.
        max_encoder_tiles: Most tiles that go through the tower at once, which
            bounds the memory of its activations. By default 16, on CPUs 1:
            the activations of one tile stay in the cache there (measured).

    Raises:
        ValueError: A setting is unknown, of the wrong type or out of range.
    """

    tile_cache_mb: int = 0
    max_encoder_tiles: int | None = None

    def __post_init__(self) -> None:
        if self.max_encoder_tiles is None:
            most = 1 if current_platform.is_cpu() else 16
            object.__setattr__(self, "max_encoder_tiles", most)
        for field, least in (("tile_cache_mb", 0), ("max_encoder_tiles", 1)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"additional_config: {KEY}.{field} must be a whole number of at "
                    f"least {least}, but is {value!r}."
                )

    @classmethod
    def from_vllm_config(cls, vllm_config: VllmConfig) -> "EncoderConfig":
        """Read the settings, all of which have defaults."""
        additional = vllm_config.additional_config
        given = additional.get(KEY, {}) if isinstance(additional, dict) else {}
        known = [field.name for field in fields(cls)]
        if not isinstance(given, dict):
            raise ValueError(
                f"additional_config: {KEY} must be an object, but is {given!r}."
            )
        if unknown := given.keys() - set(known):
            raise ValueError(
                f"additional_config: unknown {KEY} settings {sorted(unknown)}; "
                f"known are {known}."
            )
        return cls(**given)
