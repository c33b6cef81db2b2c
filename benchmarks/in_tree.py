"""vLLM's in-tree image processing in front of this package's model.

Benchmarks compare with it. In-tree, the settings come from the checkpoint's remote
code; here they come from this package.
"""

from vllm.model_executor.models.internvl import (
    BaseInternVLDummyInputsBuilder,
    BaseInternVLMultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.transformers_utils.processors.nemotron_vl import (
    LlamaNemotronNanoVLImageProcessor,
    LlamaNemotronNanoVLProcessor,
)

from vllm_nemotron_vl.model_executor.models.nemotron_vl import LlamaNemotronVLChatModel
from vllm_nemotron_vl.model_executor.models.nemotron_vl_processing import (
    NemotronVLDummyInputsBuilder,
    NemotronVLMultiModalProcessor,
    NemotronVLProcessingInfo,
)

SETTINGS = (
    "image_size",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "dynamic_image_size",
    "use_thumbnail",
)


class InTreeProcessingInfo(NemotronVLProcessingInfo):
    """Returns vLLM's processors instead of ours."""

    def get_hf_processor(self, **kwargs: object) -> LlamaNemotronNanoVLProcessor:
        ours = super().get_hf_processor(**kwargs)
        settings = {name: getattr(ours.image_processor, name) for name in SETTINGS}
        return LlamaNemotronNanoVLProcessor(
            LlamaNemotronNanoVLImageProcessor(**settings),
            self.get_tokenizer(),
            image_seq_length=ours.image_seq_length,
        )


def create_processor(model_config):
    """vLLM's multi-modal processor around the in-tree image processor."""
    info = InTreeProcessingInfo(
        MULTIMODAL_REGISTRY.create_processor(model_config).info.ctx
    )
    return BaseInternVLMultiModalProcessor(info, BaseInternVLDummyInputsBuilder(info))


class EitherProcessingInfo(InTreeProcessingInfo):
    """In-tree processing for requests with the setting ``in_tree``, ours for others."""

    def get_hf_processor(self, *, in_tree: bool = False, **kwargs: object):
        if in_tree:
            return super().get_hf_processor(**kwargs)
        return NemotronVLProcessingInfo.get_hf_processor(self, **kwargs)


def register() -> None:
    """Plugin for vLLM that lets each request choose its processing."""
    MULTIMODAL_REGISTRY.register_processor(
        NemotronVLMultiModalProcessor,
        info=EitherProcessingInfo,
        dummy_inputs=NemotronVLDummyInputsBuilder,
    )(LlamaNemotronVLChatModel)
