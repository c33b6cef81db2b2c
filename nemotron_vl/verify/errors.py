# SPDX-License-Identifier: Apache-2.0
"""How far a tensor is from what is expected."""

import torch


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, divided by the norm of what is expected.

    Another shape counts as an error of one.
    """
    if found.shape != expected.shape:
        return 1.0
    found, expected = found.cpu().double(), expected.cpu().double()
    difference = torch.linalg.vector_norm(found - expected)
    return (difference / torch.linalg.vector_norm(expected).clamp_min(1e-30)).item()
