"""Uses of vLLM that the source of this package does not show by names or types.

Dotted names of
- attributes, fields and operators that are read from objects of unknown type;
- modules that keep tensors under a given name in their state dict;
- functions and classes whose behaviour this package relies on without calling them.
"""

_ENGINE = "vllm.v1.engine"
_INTERNVL = "vllm.model_executor.models.internvl"
_INTERN_VIT = "vllm.model_executor.models.intern_vit"
_GRAPHS = "vllm.v1.worker.encoder_cudagraph"
_RADIO = "vllm.model_executor.models.radio"
_QUANTISATION = "vllm.model_executor.layers.quantization"
_ATTENTION = "vllm.model_executor.layers.attention.mm_encoder_attention"

# Attributes, grouped by the file of this package that reads them.
ATTRIBUTES = {
    "nemotron_vl/commands/diagnosis.py": [
        "vllm._custom_ops.cpu_attention_with_kv_cache",
        "vllm.model_executor.models.registry._LazyRegisteredModel.module_name",
        "vllm.platforms.interface.Platform.device_name",
    ],
    "nemotron_vl/verify/comparison.py": [
        "vllm.config.model.ModelConfig.logprobs_mode",
        "vllm.config.parallel.ParallelConfig.worker_extension_cls",
    ],
    "nemotron_vl/verify/worker.py": [
        "vllm.v1.worker.gpu.mm.encoder_runner.EncoderRunner.cudagraph_manager",
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner.model_state",
        "vllm.v1.worker.gpu.model_states.interface.ModelState.encoder_runner",
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner.encoder_cudagraph_manager",
        "vllm.v1.worker.worker_base.WorkerBase.get_model",
    ],
    "vllm/entrypoints/serve/middleware/exit_status.py": [
        f"{_ENGINE}.async_llm.AsyncLLM.engine_core",
        f"{_ENGINE}.core_client.MPClient.resources",
        f"{_ENGINE}.core_client.BackgroundResources.engine_manager",
        f"{_ENGINE}.core_client.BackgroundResources.engine_dead",
        f"{_ENGINE}.utils.CoreEngineProcManager.manager_stopped",
        f"{_ENGINE}.utils.CoreEngineProcManager.failed_proc_name",
    ],
    "vllm/config/nemotron_vl_video.py": [
        "vllm.config.multimodal.MultiModalConfig.video_pruning_rate",
    ],
    "vllm/config/nemotron_vl_cpu.py": ["vllm._custom_ops.cpu_gemm_wna16"],
    "vllm/model_executor/models/nemotron_vl_base.py": [
        f"{_INTERNVL}.InternVLImagePixelInputs.num_patches",
        f"{_INTERNVL}.InternVLImagePixelInputs.pixel_values_flat",
    ],
    "vllm/model_executor/models/nemotron_vl_graphs.py": [
        f"{_GRAPHS}_defs.EncoderCudaGraphConfig.modalities",
        f"{_GRAPHS}_defs.EncoderCudaGraphCaptureInputs.values",
        f"{_GRAPHS}_defs.EncoderItemSpec.path_output_tokens",
    ],
    "vllm/model_executor/models/nemotron_vl_precision.py": [
        f"{_QUANTISATION}.base_config.QuantizationConfig.online_quantization_config",
    ],
    "vllm/model_executor/models/nemotron_vl_names.py": [
        f"{_QUANTISATION}.compressed_tensors.compressed_tensors"
        ".CompressedTensorsConfig.ignore",
        f"{_QUANTISATION}.compressed_tensors.compressed_tensors"
        ".CompressedTensorsConfig.target_scheme_map",
        f"{_QUANTISATION}.fp8.Fp8Config.ignored_layers",
        f"{_QUANTISATION}.modelopt.ModelOptQuantConfigBase.exclude_modules",
        f"{_QUANTISATION}.auto_awq.AutoAWQConfig.modules_to_not_convert",
    ],
    "vllm/renderers/nemotron_vl_video.py": ["vllm.inputs.TokensPrompt.media_io_kwargs"],
    "vllm/renderers/nemotron_vl.py": [
        "vllm.inputs.TokensPrompt.multi_modal_data",
        "vllm.inputs.TokensPrompt.prompt_token_ids",
        "vllm.tokenizers.protocol.TokenizerLike.get_vocab",
    ],
}

# Tensors of the checkpoint that are loaded into vLLM's modules under these names.
STATE = {
    f"{_RADIO}.ViTPatchGenerator": ["pos_embed"],
    f"{_RADIO}.ClsToken": ["token"],
}

# Functions, and classes with all methods, whose behaviour this package relies on.
BEHAVIOUR = [
    # Sets ``app.state.engine_client``, which the middleware reads.
    "vllm.entrypoints.launchers.api_server.app_state.init_app_state",
    # Embeddings of a request pass it; it shares out images, not tiles.
    f"{_GRAPHS}.EncoderCudaGraphManager._execute_local",
    f"{_GRAPHS}.EncoderCudaGraphManager._dp_shard",
    f"{_GRAPHS}_defs.EncoderItemSpec.get_path_output_tokens",
    "vllm.lora.utils.parse_fine_tuned_lora_name",
    # Its name tells files from what a trainer sends.
    "vllm.model_executor.model_loader.default_loader.DefaultModelLoader"
    ".get_all_weights",
    "vllm.multimodal.image.convert_image_mode",
    "vllm.multimodal.hasher.MultiModalHasher.serialize_item",
    "vllm.multimodal.media.connector.MediaConnector.fetch_video",
    "vllm.multimodal.media.connector.MediaConnector.fetch_video_async",
    "vllm.multimodal.media.connector.merge_media_io_kwargs",
    "vllm.multimodal.media.image.ImageMediaIO",
    "vllm.multimodal.media.video.VideoMediaIO",
    "vllm.multimodal.processing.inputs.ProcessorInputs.get_mm_hashes",
    "vllm.transformers_utils.processors.internvl.calculate_internvl_targets",
    # Caches that must know the adapter of an image.
    "vllm.v1.core.kv_cache_utils._gen_lora_extra_hash_keys",
    "vllm.v1.engine.input_processor.InputProcessor._get_mm_identifier",
    "vllm.transformers_utils.processors.internvl.get_internvl_target_ratios",
    f"{_ATTENTION}.MMEncoderAttention",
    "vllm.v1.attention.ops.vit_attn_wrappers.flashinfer_wrapper",
    f"{_INTERN_VIT}.InternMLP",
    f"{_INTERN_VIT}.InternParallelAttention",
    f"{_RADIO}.ClsToken",
    f"{_RADIO}.RadioInternVisionModel",
    f"{_RADIO}.ViTPatchGenerator",
    f"{_RADIO}.ViTPatchLinear",
]
