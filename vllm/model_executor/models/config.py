# SPDX-License-Identifier: Apache-2.0
"""vLLM's hook that checks and completes the configuration of this model."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from vllm import envs
from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from ...config.nemotron_vl import check_settings
from ...config.nemotron_vl_cpu import INT4_KERNEL, has_amx, int4_advice, slow_dtype
from ...config.nemotron_vl_names import (
    IMAGES_ONLY,
    MODEL_TYPE,
    TOKENIZER_MODE,
    VIDEO_TOKENIZER_MODE,
)
from ...config.nemotron_vl_options import (
    check_adapters,
    check_encoder_alone,
    check_encoder_attention,
    encoder_graphs,
    graph_tiles,
    has_encoder,
)
from ...transformers_utils.configs.nemotron_vl_checks import (
    PS_VERSION_ASSUMED,
    check_servable,
)

logger = init_logger("vllm.model_executor.models.config")


def has_int4_kernel() -> bool:
    """Whether vLLM's CPU build on this machine can run GPTQ and AWQ checkpoints."""
    current_platform.import_kernels()
    return hasattr(torch.ops._C, INT4_KERNEL)


def _check_kernel(model_config: ModelConfig) -> None:
    if not current_platform.is_cpu():
        return
    scheme = _int4_scheme(model_config)
    if scheme and not has_int4_kernel():
        raise ValueError(
            f"vLLM's build for this CPU has no kernel for {scheme} ({INT4_KERNEL}). "
            f"{int4_advice()}"
        )
    is_float32 = model_config.dtype == torch.float32
    if is_float32 and has_amx() and _has_int8_products(model_config):
        raise ValueError(
            "On CPUs with AMX, vLLM's kernel for INT8 weights and activations takes "
            "bfloat16 and float16, not float32. Serve it with --dtype bfloat16."
        )


def _int4_scheme(model_config: ModelConfig) -> str | None:
    """The quantisation scheme, if CPUs need `INT4_KERNEL` for it."""
    method = model_config.quantization or ""
    for name in ("gptq", "awq"):
        if name in method:
            return name.upper()
    for weights, activations in _compressed_tensors(model_config):
        if _integers(weights) == 4 and not activations:
            return "4-bit compressed-tensors"
    return None


def _has_int8_products(model_config: ModelConfig) -> bool:
    return any(
        _integers(weights) == _integers(activations) == 8
        and activations.get("symmetric", True)
        for weights, activations in _compressed_tensors(model_config)
    )


def _compressed_tensors(model_config: ModelConfig) -> Iterator[tuple[dict, dict]]:
    """What each group of layers says of its weights and of its activations."""
    if model_config.quantization != "compressed-tensors":
        return
    for config in (model_config.hf_config, model_config.hf_text_config):
        quantisation = getattr(config, "quantization_config", None) or {}
        for group in (quantisation.get("config_groups") or {}).values():
            yield group.get("weights") or {}, group.get("input_activations") or {}


def _integers(kind: dict) -> int | None:
    """The number of bits, of integers only."""
    return kind.get("num_bits") if kind.get("type", "int") == "int" else None


def prepare(model_config: ModelConfig, model_type: str) -> None:
    """Check what vLLM decides by the architecture alone.

    Args:
        model_config: The configuration.
        model_type: What ``config.json`` must have with this architecture.

    Raises:
        ValueError: ``config.json`` has another one, or an option replaces our code.
    """
    found = model_config.hf_config.model_type
    if found != model_type:
        raise ValueError(
            f"config.json: model_type = {found!r} is not supported with the "
            f"architecture {model_config.architecture}; supported: {model_type!r}."
        )
    # AutoProcessor, which vLLM asks for a chat template, runs the checkpoint's code
    # where processor_config.json has a `processor_class`.
    model_config.trust_remote_code = False
    if envs.VLLM_USE_RUST_FRONTEND:
        raise ValueError(
            "VLLM_USE_RUST_FRONTEND replaces the API server in Python, so this model's "
            "tiles and checks of requests are not used. Unset it."
        )


def _check_model(model_config: ModelConfig) -> None:
    prepare(model_config, MODEL_TYPE)
    check_servable(model_config.hf_config, model_config.hf_image_processor_config)
    if "ps_version" not in vars(model_config.hf_config):
        logger.warning_once(PS_VERSION_ASSUMED)


def select_renderer(model_config: ModelConfig, renderer: str) -> None:
    """Use a renderer of ours, which vLLM knows by a tokenizer mode."""
    if model_config.tokenizer_mode in ("auto", "hf"):
        model_config.tokenizer_mode = renderer


def _checkpoint_settings(model_config: ModelConfig) -> dict[str, Any]:
    from ...transformers_utils.processors.nemotron_vl_tiling import image_settings

    files = model_config.hf_image_processor_config or {}, vars(model_config.hf_config)
    return image_settings(*files)


def _image_settings(
    model_config: ModelConfig, checkpoint_settings: Callable[[ModelConfig], dict]
) -> dict[str, Any]:
    """How an engine cuts images: as its options say, then as the checkpoint does."""
    from ...transformers_utils.processors.nemotron_vl_tiling import image_settings

    given = model_config.get_multimodal_config().mm_processor_kwargs or {}
    return image_settings(given, checkpoint_settings(model_config))


def _complete_graphs(
    vllm_config: VllmConfig, checkpoint_settings: Callable[[ModelConfig], dict]
) -> None:
    """Set the sizes of the encoder's CUDA graphs, unless the user has set them."""
    from ...transformers_utils.processors.nemotron_vl import image_seq_length
    from ...transformers_utils.processors.nemotron_vl_tiling import (
        most_tiles,
        tiles_problem,
    )

    compilation, model_config = vllm_config.compilation_config, vllm_config.model_config
    options = model_config.get_multimodal_config()
    # vLLM refuses graphs with --language-model-only itself.
    if not encoder_graphs(vllm_config) or options.language_model_only:
        return
    if not options.get_limit_per_prompt("image"):
        logger.info("No encoder graphs: they are for images, which are switched off.")
        compilation.cudagraph_mm_encoder = False
    elif not compilation.encoder_cudagraph_token_budgets:
        settings = _image_settings(model_config, checkpoint_settings)
        name = "max_dynamic_patch"
        if name in settings and (problem := tiles_problem(name, settings[name], 1)):
            raise ValueError(problem)
        tokens = image_seq_length(cast(Any, model_config.hf_config))
        context = max(1, model_config.max_model_len // tokens)
        batch = vllm_config.scheduler_config.max_num_batched_tokens // tokens
        compilation.encoder_cudagraph_token_budgets = [
            tiles * tokens
            for tiles in graph_tiles(min(most_tiles(settings), context), batch)
        ]


def check_engine(
    vllm_config: VllmConfig, checkpoint_settings: Callable[[ModelConfig], dict]
) -> None:
    """Check and complete an engine's configuration.

    Args:
        vllm_config: Changed in place.
        checkpoint_settings: How the checkpoint's files say that images are cut.

    Raises:
        ValueError: Names the setting, the missing kernel, or the size that the number
            of ranks does not divide.
    """
    # Not needed in processes that only register the model.
    from .nemotron_vl_layout import tensor_parallel_problems

    check_settings(vllm_config)
    _complete_graphs(vllm_config, checkpoint_settings)
    check_adapters(vllm_config)
    check_encoder_attention(vllm_config)
    check_encoder_alone(vllm_config)
    model_config = vllm_config.model_config
    _check_kernel(model_config)
    problems = tensor_parallel_problems(
        model_config.hf_config,
        vllm_config.parallel_config.tensor_parallel_size,
        model_config.get_multimodal_config().mm_encoder_tp_mode == "data"
        or not has_encoder(vllm_config),
    )
    if problems:
        raise ValueError(" ".join(problems))
    slow = slow_dtype(str(model_config.dtype).removeprefix("torch."))
    if slow and current_platform.is_cpu() and not model_config.quantization:
        logger.warning(slow)


class NemotronVLModelConfig(VerifyAndUpdateConfig):
    """Refuses configurations that cannot be served; selects our renderer."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """vLLM calls this after it has read the checkpoint's configuration.

        Raises:
            ValueError: Names the key of the checkpoint's configuration.
        """
        _check_model(model_config)
        select_renderer(model_config, TOKENIZER_MODE)
        limits = model_config.get_multimodal_config().limit_per_prompt
        if (videos := limits.get("video")) and videos.count:
            raise ValueError(f"limit_mm_per_prompt has videos, but {IMAGES_ONLY}")

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """vLLM calls this before it starts the engine's processes.

        Raises:
            ValueError: As of `check_engine`.
        """
        check_engine(vllm_config, _checkpoint_settings)


class NemotronVLVideoModelConfig(NemotronVLModelConfig):
    """The same for videos; completes the settings of our loader of video files."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """vLLM calls this after it has read the checkpoint's configuration.

        Raises:
            ValueError: Names the key of the checkpoint's configuration, or the
                setting of videos that is not supported.
        """
        # Only for this architecture: the other one imports no code for videos.
        from ...config.nemotron_vl_video import check_options, loader_settings
        from ...transformers_utils.processors.nemotron_vl_tiling import RESIZE_RECIPES

        _check_model(model_config)
        select_renderer(model_config, VIDEO_TOKENIZER_MODE)
        options = model_config.get_multimodal_config()
        check_options(options)
        settings = _image_settings(model_config, _checkpoint_settings)
        options.media_io_kwargs["video"] = loader_settings(
            options.media_io_kwargs.get("video", {}),
            tile_size=model_config.hf_config.force_image_size,
            resize=settings.get("resize", RESIZE_RECIPES[0]),
        )
        # Templates that read text only would lose the order of images and videos.
        options.interleave_mm_strings = True

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """See the base class; also warns if the context is too short for the frames
        of a video.

        Raises:
            ValueError: Names the setting.
        """
        NemotronVLModelConfig.verify_and_update_config(vllm_config)
        from ...config.nemotron_vl_video import FRAMES_KEY, context_problem
        from ...transformers_utils.processors.nemotron_vl import image_seq_length

        model_config = vllm_config.model_config
        options = model_config.get_multimodal_config()
        if not options.get_limit_per_prompt("video"):
            return
        too_short = context_problem(
            options.media_io_kwargs["video"][FRAMES_KEY],
            model_config.max_model_len,
            image_seq_length(cast(Any, model_config.hf_config)),
        )
        if too_short:
            logger.warning(too_short)
