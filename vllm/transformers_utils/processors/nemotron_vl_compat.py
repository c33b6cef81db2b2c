# SPDX-License-Identifier: Apache-2.0
"""Names of picture processing that moved between the vLLM releases served."""

try:
    from vllm.transformers_utils.processors.internvl import (  # type: ignore
        InternVLChatImageProcessor,
        InternVLChatProcessor,
    )
except ImportError:  # vLLM < 0.33: without "Chat" in their names
    from vllm.transformers_utils.processors.internvl import (
        InternVLImageProcessor as InternVLChatImageProcessor,
    )
    from vllm.transformers_utils.processors.internvl import (
        InternVLProcessor as InternVLChatProcessor,
    )

try:
    from vllm.multimodal.image import open_image
except ImportError:  # vLLM < 0.32: its loader opens whatever Pillow opens
    from PIL.Image import open as open_image

__all__ = ["InternVLChatImageProcessor", "InternVLChatProcessor", "open_image"]
