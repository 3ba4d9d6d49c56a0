r"""The objective: the Bernoulli log-likelihood of the pixels and the two terms of the negative ELBO.

.. math:: -\mathrm{ELBO}(x) = \underbrace{-E_{q(z|x)}[\log p(x|z)]}_{recon}
          + \underbrace{KL(q(z|x) \,\|\, p(z))}_{kl}

All values are nats per image: sums over the pixels and over the latent coordinates, never means.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tme_utils.gaussian import kl_standard_normal, reparameterize

LogProb = Callable[[Tensor, Tensor], Tensor]


class LatentModel(Protocol):
    """What the objective and the metrics need of a model: (mu, logvar) from x, parameters of p(x|z) from z."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of q(z|x), each (B, latent_dim), from images (B, 1, 28, 28)."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Parameters of p(x|z), (..., 1, 28, 28), from codes (..., latent_dim)."""
        ...


class ElboTerms(NamedTuple):
    """The two terms of the negative ELBO, each (B,), in nats per image."""

    recon: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """A lower bound of log p(x) (in expectation over the noise), (B,)."""
        return -(self.recon + self.kl)

    def loss(self, beta: float = 1.0) -> Tensor:
        """Mean over the batch of recon + beta * kl, a scalar: with beta = 1, the mean negative ELBO."""
        return (self.recon + beta * self.kl).mean()

    def averages(self) -> dict[str, float]:
        """Means over the images of ``recon``, ``kl`` and ``neg_elbo``, accumulated in float64."""
        recon, kl = self.recon.double().mean().item(), self.kl.double().mean().item()
        return {"recon": recon, "kl": kl, "neg_elbo": recon + kl}


def check_images(x: Tensor) -> None:
    """Raise ``ValueError`` unless x is a batch (B, 1, 28, 28) of floats in [0, 1]."""
    if x.dim() != 4 or x.shape[1:] != (1, 28, 28) or not x.is_floating_point():
        raise ValueError(f"x must be float images (B, 1, 28, 28), got {x.dtype} {tuple(x.shape)}")
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):  # written so that NaN fails too
        raise ValueError(f"pixels must lie in [0, 1], got values from {x.min():.4g} to {x.max():.4g}")


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    r"""Log-likelihood of images under one independent Bernoulli per pixel.

    :math:`\sum_i x_i \log \pi_i + (1 - x_i) \log(1 - \pi_i)` with :math:`\pi = \mathrm{sigmoid}(logits)`,
    computed from the logits so that no probability is ever rounded to 0 or 1. For grey x in [0, 1] it is the
    expected log-likelihood of the image whose pixels are drawn as Bernoulli(x).

    Args:
        logits: (..., 1, 28, 28).
        x: images in [0, 1], of the same shape, or one that broadcasts with it.

    Returns:
        Log-probabilities in nats, (...): one for each image, summed over its pixels.

    Raises:
        ValueError: if the logits do not end in (1, 28, 28), or x does not broadcast with them.
    """
    if logits.shape[-3:] != (1, 28, 28):
        raise ValueError(f"logits must end in (1, 28, 28), got {tuple(logits.shape)}")
    if x.shape != logits.shape:
        try:
            logits, x = torch.broadcast_tensors(logits, x)
        except RuntimeError:
            raise ValueError(f"logits {tuple(logits.shape)} and x {tuple(x.shape)} do not broadcast") from None
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=(-3, -2, -1))


def elbo_terms(
    model: LatentModel,
    x: Tensor,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    log_prob: LogProb = bernoulli_log_prob,
) -> ElboTerms:
    """Estimate both terms of the negative ELBO with one reparametrised draw of z for each image.

    Args:
        model: gives (mu, logvar) of q(z|x) from x, and the parameters of p(x|z) from z.
        x: images, (B, 1, 28, 28), in [0, 1].
        eps: the noise, (B, latent_dim); drawn if not given.
        generator: source of the noise.
        log_prob: log p(x|z) from the decoder's output and x; one Bernoulli per pixel unless said otherwise.

    Returns:
        ``ElboTerms(recon, kl)``, each (B,), in nats. recon is an unbiased one-sample estimate, kl is exact.

    Source: Kingma and Welling (2013), eq. 10.
    """
    mu, logvar = model.encode(x)
    z = reparameterize(mu, logvar, eps, generator)
    return ElboTerms(recon=-log_prob(model.decode(z), x), kl=kl_standard_normal(mu, logvar))
