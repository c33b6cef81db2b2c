"""Stand-in for the configuration in the checkpoint's repository."""

from transformers import LlamaConfig, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module


class Llama_Nemotron_Nano_VL_Config(PretrainedConfig):
    model_type = "Llama_Nemotron_Nano_VL"

    def __init__(self, vision_config=None, llm_config=None, **values):
        if vision_config is not None:
            # The published configuration names the second repository twice, too.
            repository, name = vision_config["auto_map"]["AutoConfig"].split("--")
            config_class = get_class_from_dynamic_module(name, repository)
            vision_config = config_class(**vision_config)
        self.vision_config = vision_config or PretrainedConfig()
        self.llm_config = LlamaConfig(**(llm_config or {}))
        super().__init__(**values)
