"""Initial weights, and their changes."""

import torch
from torch import nn

from nemotron_vl.verify.reference_retrieval import RetrievalReference
from tiny_reader.training import Heads, change_weights, look_near, wave_positions


def initialise(model: RetrievalReference) -> None:
    """As the tower of the checkpoint that reads, see `tiny_reader.training`."""
    tower = model.siglip
    width = tower.embeddings.position_embedding.weight.shape[-1]
    side = model.tile_size // model.patch_size
    waves = wave_positions(side, width, 1.0)
    tower.embeddings.position_embedding.weight.data = waves
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        look_near(
            attention.q_proj.weight.data,
            attention.k_proj.weight.data,
            attention.v_proj.weight.data,
            attention.out_proj.weight,
        )


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonal matrices (Jordan et al. 2024), in float32.

    ``torch.optim.Muon`` computes in bfloat16, which takes most of the time of a step
    on CPUs without instructions for it.
    """

    def __init__(self, params: list[dict]) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": 0.95, "weight_decay": 0.05})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                updates = []
                for parameter in parameters:
                    past = self.state[parameter].setdefault(
                        "momentum", torch.zeros_like(parameter)
                    )
                    past.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(past, group["momentum"]))
                # As large as AdamW's steps usually are.
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                steps = orthogonal(torch.stack(updates))
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(step, alpha=scale)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """About the nearest semi-orthogonal matrices of (n, rows, columns)."""
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):  # Newton-Schulz, with Muon's coefficients
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if is_tall else x


class Optimizers:
    """Muon for the matrices of the layers, AdamW for all else.

    Args:
        model: To train.
        heads: To train, of the tower.
        spelling: To train, of the embeddings.
        rate: The full learning rate.
    """

    def __init__(
        self,
        model: RetrievalReference,
        heads: Heads,
        spelling: nn.Module,
        rate: float,
    ) -> None:
        self.rate = rate
        early = [*model.siglip.parameters(), *heads.parameters()]
        late = [
            *model.mlp1.parameters(),
            *model.llama.parameters(),
            *spelling.parameters(),
        ]
        if model.score_head is not None:
            late += model.score_head.parameters()
        layers = {
            id(p)
            for part in (model.siglip.encoder, model.mlp1, model.llama.layers)
            for p in part.parameters()
            if p.ndim == 2
        }
        self.parts = early, late
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(
                [
                    {"params": [p for p in part if id(p) in layers]}
                    for part in self.parts
                ]
            ),
            torch.optim.AdamW(
                [
                    {"params": [p for p in part if id(p) not in layers]}
                    for part in self.parts
                ],
                betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        ]

    def step(self, loss: torch.Tensor, rates: tuple[float, float]) -> bool:
        """Change the weights, unless the loss or its gradient is not finite.

        Args:
            loss: Of the batch.
            rates: Shares of the full learning rate, of the tower and of the rest.
        """
        scaled = self.rate * rates[0], self.rate * rates[1]
        return change_weights(self.optimizers, self.parts, loss, scaled)
