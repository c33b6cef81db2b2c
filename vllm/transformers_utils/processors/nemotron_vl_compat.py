# SPDX-License-Identifier: Apache-2.0
"""InternVL's processors under the names that every served vLLM release has."""

try:
    from vllm.transformers_utils.processors.internvl import (  # type: ignore
        InternVLChatImageProcessor,
        InternVLChatProcessor,
        InternVLChatVideoProcessor,
    )
except ImportError:  # vLLM < 0.33: without "Chat" in their names
    from vllm.transformers_utils.processors.internvl import (
        InternVLImageProcessor as InternVLChatImageProcessor,
    )
    from vllm.transformers_utils.processors.internvl import (
        InternVLProcessor as InternVLChatProcessor,
    )
    from vllm.transformers_utils.processors.internvl import (
        InternVLVideoProcessor as InternVLChatVideoProcessor,
    )

__all__ = [
    "InternVLChatImageProcessor",
    "InternVLChatProcessor",
    "InternVLChatVideoProcessor",
]
