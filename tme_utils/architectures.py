"""The report's other architectures, and the name of each: what a table's column ``architecture`` may say."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tme_utils.priors import Flow
from tme_utils.vae import VAE, conv_vae, mlp_vae


class Residual(nn.Module):
    """Adds to the feature maps what two convolutions make of them."""

    def __init__(self, channels: int) -> None:
        """Keep the number of channels, and the size of the maps."""
        super().__init__()
        self.change = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The maps and their change, (B, channels, h, w)."""
        # One order in memory: where that of an activation and of its gradient differ, each pass is slow.
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.add(x, self.change(x))


def residual_vae(latent_dim: int = 32, channels: tuple[int, int] = (32, 64), hidden: int = 256) -> VAE:
    """A stronger convolutional VAE: SiLU instead of ReLU, and a residual block at 7 by 7 in each network.

    SiLU, a * sigmoid(a), is smooth where ReLU has a corner and passes a gradient where ReLU passes none.

    Source: Elfwing et al. (2017) for SiLU; He et al. (2016) for residual blocks.
    """
    vae = conv_vae(latent_dim, channels, hidden, activation=nn.SiLU, blocks=[Residual])
    vae.config["architecture"] = "residual"
    return vae.to(memory_format=torch.channels_last)  # the same numbers, in the order that its convolutions like best


def flow_vae(latent_dim: int = 32) -> VAE:
    """The same networks under a prior that is learnt with them, instead of N(0, I)."""
    vae = residual_vae(latent_dim)
    vae.prior = Flow(latent_dim)
    vae.config["architecture"] = "residual_flow"
    return vae


def wide_mlp_vae(latent_dim: int = 20) -> VAE:
    """The multi-layer perceptron with, at d = 20, as many parameters as ``conv_vae``, within 0.03 %."""
    vae = mlp_vae(latent_dim, (513,))
    vae.config["architecture"] = "mlp_wide"
    return vae


def deep_mlp_vae(latent_dim: int = 20) -> VAE:
    """The multi-layer perceptron with as many layers as ``conv_vae``, of the widths of the shipped ``mlp_2d``."""
    vae = mlp_vae(latent_dim, (512, 512, 256))
    vae.config["architecture"] = "mlp_deep"
    return vae


class _Point(nn.Module):
    """Replaces the encoder's log-variances: q(z|x) shrinks to the point mu."""

    LOGVAR = -60.0  # a standard deviation of 1e-13: adding such noise to a float32 mean changes nothing

    def forward(self, parameters: Tensor) -> Tensor:
        mu, logvar = parameters.chunk(2, dim=1)
        return torch.cat([mu, torch.full_like(logvar, self.LOGVAR)], dim=1)


def deterministic(vae: VAE) -> VAE:
    """The auto-encoder of the same two networks: z = mu, no noise. To be trained with ``beta = 0``.

    Its recon compares with a VAE's. It is no model of x: nothing ties its codes to the prior, and its KL only tells
    which width stands for a point. The half of the encoder's last layer that would give log-variances stays unused.
    """
    config = vae.config | {"architecture": f"{vae.config['architecture']}_ae"}
    return VAE(nn.Sequential(vae.encoder, _Point()), vae.decoder, vae.latent_dim, config)


def _autoencoder(build: Callable[..., VAE], latent_dim: int) -> VAE:
    return deterministic(build(latent_dim))


VAES: dict[str, Callable[..., VAE]] = {
    "mlp": mlp_vae,
    "mlp_wide": wide_mlp_vae,
    "mlp_deep": deep_mlp_vae,
    "conv": conv_vae,
    "residual": residual_vae,
}
AUTOENCODERS = {f"{name}_ae": partial(_autoencoder, build) for name, build in VAES.items()}
ARCHITECTURES = VAES | {"residual_flow": flow_vae} | AUTOENCODERS
