# SPDX-License-Identifier: Apache-2.0
"""Names of the layers of LoRA adapters, mapped to vLLM's."""

import re
from collections.abc import Iterable

from vllm.model_executor.models.utils import WeightsMapper

from .nemotron_vl_layout import LANGUAGE_MODEL, Config, checkpoint_tensors
from .nemotron_vl_names import HF_TO_VLLM

# Parts of the model, and how a layer of an adapter is named where they are missing. In
# the other part vLLM has layers whose names end so, but no module has the whole name.
_ENCODER = re.compile(r"^((?:model\.)?(?:vision_model|mlp1)\..*)\.lora_")
_LANGUAGE_ELSEWHERE = r"in another process.\1.fc1.lora_"
_LANGUAGE = re.compile(r"^((?:language_model|model|lm_head)\b.*)\.lora_")
_ENCODER_ELSEWHERE = r"in another process.\1.o_proj.lora_"


def adapter_mapper(
    config: Config,
    encoder: bool,
    encoder_is_here: bool = True,
    language_is_here: bool = True,
) -> WeightsMapper:
    """The mapper for an engine that serves LoRA adapters.

    vLLM silently leaves out layers of an adapter that the model does not have, if a
    layer elsewhere in the model has the same last name. It has no hook for a check of
    an adapter's layers, but it refuses names that end like no layer, and quotes them.
    So the new name of such a layer says why it is refused.

    With ``encoder=False``, for example, this is how names are mapped:

    - ``language_model.model.layers.0.mlp.up_proj.lora_A.weight``: unchanged
    - ``model.layers.0.mlp.up_proj.lora_A.weight``, as of an adapter that was made for
      Llama alone: ``language_model.model.layers.0.mlp.up_proj.lora_A.weight``
    - ``mlp1.1.lora_A.weight``: ``'mlp1.1' (not in the model's language part; others
      need --enable-tower-connector-lora).lora_A.weight``

    With ``encoder=True``:

    - ``vision_model.radio_model.model.blocks.0.attn.qkv.lora_A.weight``:
      ``vision_model.model.encoder.layers.0.attn.qkv.lora_A.weight``
    - ``mlp1.2.lora_A.weight``: ``'mlp1.2' (not in the model).lora_A.weight``

    Args:
        config: The composite configuration.
        encoder: Whether adapters may have layers of the tower and the connector.
        encoder_is_here: As of `renamed`.
        language_is_here: As of `renamed`.
    """
    layers = [
        name.removesuffix(".weight")
        for name in checkpoint_tensors(config)
        if encoder or name.startswith(LANGUAGE_MODEL)
    ]
    # Adapters made for a Llama without the vision parts have these names.
    layers += [
        name.removeprefix(LANGUAGE_MODEL)
        for name in layers
        if name.startswith(LANGUAGE_MODEL)
    ]
    return HF_TO_VLLM | WeightsMapper(
        orig_to_new_regex=renamed(layers, encoder, encoder_is_here, language_is_here),
        orig_to_new_prefix={
            part: LANGUAGE_MODEL + part for part in ("model.", "lm_head.")
        },
    )


def renamed(
    layers: Iterable[str],
    encoder: bool,
    encoder_is_here: bool = True,
    language_is_here: bool = True,
) -> dict[re.Pattern, str]:
    """New names for all layers but some: their adapters are refused.

    Args:
        layers: Names in the checkpoint of the layers that adapters may have.
        encoder: Whether those of the tower and the connector are among them.
        encoder_is_here: Whether this process has the tower and the connector. If not,
            it keeps an adapter's layers of them under names of no module: vLLM fails on
            adapters without any layer.
        language_is_here: The same for the language model, which engines that only
            encode do not have.
    """
    reason = "not in the model"
    if not encoder:
        reason += "'s language part; others need --enable-tower-connector-lora"
    known = "|".join(map(re.escape, layers))
    unknown = re.compile(rf"^(?!(?:{known})\.lora_)(.*)\.lora_")
    found = {unknown: rf"'\1' ({reason}).lora_"}
    if not encoder_is_here:
        found[_ENCODER] = _ENCODER_ELSEWHERE
    if not language_is_here:
        found[_LANGUAGE] = _LANGUAGE_ELSEWHERE
    return found
