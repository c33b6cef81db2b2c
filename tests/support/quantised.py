"""Entries of quantised checkpoints in config.json."""


def nvfp4_config(ignore: list[str]) -> dict:
    """ModelOpt's entry in config.json: NVFP4 in groups of 16, FP8 KV cache."""
    four = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    return {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "config_groups": {
            "group_0": {"weights": four, "input_activations": four, "targets": []}
        },
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "ignore": ignore,
    }


def fp8_config(ignore: list[str]) -> dict:
    """ModelOpt's entry in config.json: FP8."""
    eight = {"dynamic": False, "num_bits": 8, "type": "float"}
    return {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "config_groups": {
            "group_0": {"weights": eight, "input_activations": eight, "targets": []}
        },
        "ignore": ignore,
    }


def int8_config(kind: str = "int", **changes) -> dict:
    """compressed-tensors' entry in config.json: 8 bits, ``int`` or ``float``."""
    eight = {"num_bits": 8, "type": kind, "symmetric": True}
    scheme = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel"},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    scheme |= {key: changes.pop(key) for key in ("targets",) if key in changes}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "config_groups": {"group_0": scheme},
        "ignore": ["language_model.lm_head"],
        **changes,
    }


FP8 = int8_config("float", ignore=["re:vision_model.*", "re:mlp1.*", "re:.*lm_head"])
_FOUR_BITS = {"bits": 4, "group_size": 128}
AWQ = {
    **_FOUR_BITS,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
    "modules_to_not_convert": ["vision_model", "mlp1"],
}
GPTQ = {
    **_FOUR_BITS,
    "quant_method": "gptq",
    "desc_act": False,
    "sym": True,
    "lm_head": False,
}
