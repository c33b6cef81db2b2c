"""The arithmetic of ``RetrievalReference``, written for speed of training.

Results are the reference's up to rounding, see tests/tools/test_tiny_finder.py.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from nemotron_vl.verify.reference_retrieval import RetrievalReference
from tiny_reader.forward import Decoder, attend, connect, layer_norm, linear

Prompt = tuple[str, int | None]  # a text with <image>, and which page that is


def encode(
    model: RetrievalReference, pixels: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Pixels (n, 3, side, side) uint8 to features (n, patches, width)."""
    tower = model.siglip
    scaled = (pixels.float() / 255 - 0.5) / 0.5
    patches = F.unfold(scaled, model.patch_size, stride=model.patch_size)
    embedding = tower.embeddings.patch_embedding
    x = F.linear(
        patches.transpose(1, 2).to(dtype),
        embedding.weight.flatten(1).to(dtype),
        embedding.bias.to(dtype),
    )
    x = x + tower.embeddings.position_embedding.weight.to(dtype)
    for layer in tower.encoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normed = layer_norm(x, layer.layer_norm1)
        q, k, v = (
            linear(normed, part)
            .unflatten(-1, (attention.num_heads, -1))
            .transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        x = x + linear(attend(q, k, v), attention.out_proj)
        hidden = linear(layer_norm(x, layer.layer_norm2), mlp.fc1)
        x = x + linear(F.gelu(hidden, approximate="tanh"), mlp.fc2)
    return layer_norm(x, tower.post_layernorm)


class Pooler:
    """The final states of prompts and their means, of one step.

    Args:
        model: Whose weights are converted once.
        features: Of all tiles, (tiles, patches, width).
        tiles: Number of tiles of each page.
        dtype: Of the arithmetic.
    """

    def __init__(
        self,
        model: RetrievalReference,
        features: torch.Tensor,
        tiles: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self.model, self.dtype, self.tiles = model, dtype, tiles
        self.pages = connect(model, features).split([*tiles])
        self.decoder = Decoder(model.llama, dtype)
        self.table = model.llama.embed_tokens.weight.to(dtype)
        self.context = model.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")

    def __call__(self, prompts: Sequence[Prompt], per_group: int = 32) -> torch.Tensor:
        """Means (prompts, width) in float32, in the order of the prompts."""
        return torch.stack([state.mean(0) for state in self.states(prompts, per_group)])

    def states(
        self, prompts: Sequence[Prompt], per_group: int = 32
    ) -> list[torch.Tensor]:
        """States (tokens, width) in float32 of each prompt."""
        ids = [self._tokens(*prompt) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        found: list[torch.Tensor] = [torch.empty(0)] * len(ids)
        for start in range(0, len(order), per_group):
            group = order[start : start + per_group]
            states = self._group(
                [ids[n] for n in group], [prompts[n][1] for n in group]
            )
            for number, state in zip(group, states, strict=True):
                found[number] = state[: len(ids[number])]
        return found

    def place(self, span: tuple[str, str], page: int | None) -> slice:
        """Tokens of a text of digits and marks, after the text before it."""
        start = len(self._tokens(span[0], page))
        return slice(start, start + len(span[1]))

    def _tokens(self, text: str, page: int | None) -> torch.Tensor:
        if page is not None:
            text = self.model.expand(text, [self.tiles[page]])
        return torch.tensor(self.model.tokenizer.encode(text))

    def _group(self, ids: list[torch.Tensor], pages: list[int | None]) -> torch.Tensor:
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
        known = padded >= 0
        inputs = F.embedding(padded.clamp(min=0), self.table)
        images = [self.pages[page].flatten(0, 1) for page in pages if page is not None]
        if images:
            place = (padded == self.context)[..., None]
            inputs = inputs.masked_scatter(place, torch.cat(images))
        mask = torch.zeros_like(known, dtype=self.dtype).masked_fill(~known, -1e4)
        return self.decoder(inputs, mask[:, None, None]).float()
