"""Constructions in latent space."""

import torch
from torch import Tensor


def prior_grid(n: int) -> Tensor:
    """An n by n grid of 2-D codes at equal steps of the prior's probability, (n, n, 2).

    Each coordinate takes the quantiles (i + 1/2) / n of N(0, 1), so that every cell of the grid holds the same
    prior mass. The first index runs over z_2, the second over z_1: ``grid[i, j] = (quantile j, quantile i)``.

    Raises:
        ValueError: if n is not positive.

    Source: Kingma and Welling (2013), figure 4.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    quantiles = torch.special.ndtri((torch.arange(n) + 0.5) / n)
    z2, z1 = torch.meshgrid(quantiles, quantiles, indexing="ij")
    return torch.stack([z1, z2], dim=-1)
