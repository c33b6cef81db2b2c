"""vLLM's cache key of an image or video without a uuid, as anyone can compute it."""

from pathlib import Path

from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.media import MediaConnector
from vllm.multimodal.processing import ProcessorInputs, TimingContext

from support.clips import VIDEO


class ContentHash:
    """The keys of a checkpoint's server.

    Args:
        checkpoint: Its folder.
    """

    def __init__(self, checkpoint: Path | str) -> None:
        args = EngineArgs(model=str(checkpoint), hf_overrides=VIDEO)
        config = args.create_model_config()
        settings = config.get_multimodal_config().media_io_kwargs
        self._processor = MULTIMODAL_REGISTRY.create_processor(config)
        self._media = MediaConnector(media_io_kwargs=settings)

    def __call__(self, part: dict) -> str:
        """The key of the image or video of a message's part."""
        kind = part["type"]
        modality = kind.removesuffix("_url")
        load, place = {
            "image": (self._media.fetch_image, "<image>"),
            "video": (self._media.fetch_video, "<img></img>"),
        }[modality]
        info = self._processor.info
        inputs = ProcessorInputs(
            info.get_tokenizer().encode(place),
            info.parse_mm_data({modality: [load(part[kind]["url"])]}),
        )
        found = self._processor.apply(inputs, TimingContext(enabled=False))
        (name,) = found["mm_hashes"][modality]
        return name
