r"""Diagonal Gaussians: sampling by reparametrisation, log-density, KL divergence to the standard normal.

Everywhere ``mu`` and ``logvar`` have the same shape (..., d): the mean and the log-variance
:math:`\log \sigma^2` of each of the d independent coordinates. Results are in nats.
"""

import math

import torch
from torch import Tensor


def _check_same_shape(mu: Tensor, logvar: Tensor) -> None:
    if mu.shape != logvar.shape:
        raise ValueError(f"mu and logvar must have one shape, got {tuple(mu.shape)} and {tuple(logvar.shape)}")


def reparameterize(
    mu: Tensor, logvar: Tensor, eps: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw :math:`z = \mu + \sigma \odot \epsilon` with :math:`\epsilon \sim N(0, I)`.

    Args:
        mu: means, (..., d).
        logvar: log-variances, (..., d).
        eps: the noise, of a shape that broadcasts against mu without shrinking it, such as (K, ..., d) for K
            draws each; drawn here if not given.
        generator: source of the noise; on whichever device it lives, so a CPU generator gives the same noise
            everywhere.

    Returns:
        z, (..., d), or the shape of ``eps`` if that is larger. Differentiable in mu and logvar.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Kingma and Welling (2013), section 2.4; Rezende et al. (2014).
    """
    _check_same_shape(mu, logvar)
    if eps is None:
        device = generator.device if generator is not None else mu.device
        eps = torch.randn(mu.shape, generator=generator, device=device, dtype=mu.dtype).to(mu.device)
    elif eps.shape[eps.dim() - mu.dim() :] != mu.shape:
        raise ValueError(f"eps must end in the shape of mu, {tuple(mu.shape)}, got {tuple(eps.shape)}")
    std = torch.exp(0.5 * logvar)
    return mu + std * eps


def log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    r"""Log-density :math:`\log N(z; \mu, \mathrm{diag}(\sigma^2))`, summed over the d coordinates.

    Args:
        z: points, (..., d); broadcasts against mu, so that K points per Gaussian are (K, ..., d).
        mu: means, (..., d).
        logvar: log-variances, (..., d).

    Returns:
        Log-densities in nats, (...).

    Raises:
        ValueError: if mu and logvar differ in shape.
    """
    _check_same_shape(mu, logvar)
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu).square() * torch.exp(-logvar)).sum(-1)


def kl_per_dim(mu: Tensor, logvar: Tensor) -> Tensor:
    r"""KL divergence of each coordinate's Gaussian from N(0, 1).

    :math:`-\frac12 (1 + \log\sigma^2 - \mu^2 - e^{\log\sigma^2})`, zero where the coordinate is exactly the
    prior and positive elsewhere.

    Args:
        mu: means, (..., d).
        logvar: log-variances, (..., d).

    Returns:
        KL divergences in nats, (..., d).

    Raises:
        ValueError: if mu and logvar differ in shape.

    Source: Kingma and Welling (2013), appendix B.
    """
    _check_same_shape(mu, logvar)
    # expm1 is exp - 1 without the cancellation that would drown the KL of a nearly collapsed coordinate.
    return -0.5 * (logvar - mu.square() - torch.expm1(logvar))


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    r"""KL divergence :math:`KL(N(\mu, \mathrm{diag}(\sigma^2)) \,\|\, N(0, I))`: the sum of :func:`kl_per_dim`.

    Args:
        mu: means, (..., d).
        logvar: log-variances, (..., d).

    Returns:
        KL divergences in nats, (...); (B,) for a batch.
    """
    return kl_per_dim(mu, logvar).sum(-1)
