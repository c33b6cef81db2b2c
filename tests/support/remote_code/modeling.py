"""Stand-in for the model in the checkpoint's repository, up to the connector."""

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from .configuration import Llama_Nemotron_Nano_VL_Config

# Of the four patches of a token: rows of rows, or columns of columns.
ORDER = (0, 1, 3, 2, 4, 5)


class Llama_Nemotron_Nano_VL(PreTrainedModel):
    config_class = Llama_Nemotron_Nano_VL_Config

    def __init__(self, config):
        super().__init__(config)
        llm = AutoModelForCausalLM.from_config(
            config.llm_config, torch_dtype=torch.bfloat16
        )
        self.language_model = llm
        self.vision_model = AutoModel.from_config(
            config.vision_config, trust_remote_code=True
        )
        merged, width = config.vit_hidden_size * 4, config.projector_hidden_size
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(merged),
            nn.Linear(merged, width),
            nn.GELU(),
            nn.Linear(width, config.llm_config.hidden_size),
        ).to(llm.config.torch_dtype)

    def extract_feature(self, pixel_values):
        features = self.vision_model(pixel_values).features.to(torch.bfloat16)
        count, patches, width = features.shape
        half = int(patches**0.5) // 2
        squares = features.view(count, half, 2, half, 2, width).permute(ORDER)
        return self.mlp1(squares.reshape(count, half * half, 4 * width))
