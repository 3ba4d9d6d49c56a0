"""One VAE, composed of an encoder and a decoder, and the builders of its architectures."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tme_utils.gaussian import reparameterize

IMAGE_SHAPE = (1, 28, 28)
N_PIXELS = 784


class VAE(nn.Module):
    """A VAE with a diagonal-Gaussian posterior, a standard normal prior and one Bernoulli per pixel.

    Args:
        encoder: maps images (B, 1, 28, 28) to (B, 2 * latent_dim), mu and logvar side by side.
        decoder: maps codes (B, latent_dim) to logits (B, 1, 28, 28).
        latent_dim: number of latent coordinates.
        config: what the builder was asked for; it identifies the architecture in checkpoints and tables.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, config: dict[str, Any]) -> None:
        """Compose the two networks."""
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.config = config

    @property
    def n_parameters(self) -> int:
        """Number of trained scalars."""
        return sum(parameter.numel() for parameter in self.parameters())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of q(z|x): (mu, logvar), each (B, latent_dim), from images (B, 1, 28, 28)."""
        if x.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"x must have shape (B, 1, 28, 28), got {tuple(x.shape)}")
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Logits of p(x|z), (..., 1, 28, 28), from codes (..., latent_dim)."""
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must end in latent_dim = {self.latent_dim}, got {tuple(z.shape)}")
        logits: Tensor = self.decoder(z.reshape(-1, self.latent_dim))
        return logits.reshape(*z.shape[:-1], *IMAGE_SHAPE)

    def forward(
        self, x: Tensor, eps: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass through a drawn z: (logits, mu, logvar), from images (B, 1, 28, 28)."""
        mu, logvar = self.encode(x)
        return self.decode(reparameterize(mu, logvar, eps, generator)), mu, logvar

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixel probabilities decoded from the posterior's mean, (B, 1, 28, 28); deterministic."""
        mu, _ = self.encode(x)
        return self.decode(mu).sigmoid()

    @torch.no_grad()
    def sample(self, n_images: int, generator: torch.Generator | None = None) -> Tensor:
        """Pixel probabilities (n_images, 1, 28, 28) decoded from n_images draws of the prior N(0, I)."""
        parameter = next(self.parameters())
        device = generator.device if generator is not None else parameter.device
        z = torch.randn(n_images, self.latent_dim, generator=generator, device=device, dtype=parameter.dtype)
        return self.decode(z.to(parameter.device)).sigmoid()


def _check_sizes(**sizes: int | Sequence[int]) -> None:
    """Refuse what is no size. Beside ``channels``, ``hidden`` is the one dense layer; alone, a sequence of layers."""
    one, two, some = "a positive integer", "two positive integers", "a sequence of positive integers"
    accepted = {"latent_dim": one, "channels": two, "hidden": one if "channels" in sizes else some}
    for name, size in sizes.items():
        values = size if isinstance(size, Sequence) else [size]
        is_accepted = (values is size) == (accepted[name] != one) and (accepted[name] != two or len(values) == 2)
        if not is_accepted or any(type(value) is not int or value < 1 for value in values):
            raise ValueError(f"{name} must be {accepted[name]}, got {size!r}")


def mlp_vae(latent_dim: int = 20, hidden: Sequence[int] = (400,)) -> VAE:
    """The multi-layer perceptron VAE: linear -> ReLU -> linear, both ways.

    The decoder ends in logits; the sigmoid of the last step is applied where a probability is shown, because
    the likelihood is more exact from the logits.

    Args:
        latent_dim: number of latent coordinates.
        hidden: sizes of the encoder's hidden layers, from the image inwards; the decoder mirrors them.

    Raises:
        ValueError: if a size is not a positive integer.
    """
    _check_sizes(latent_dim=latent_dim, hidden=hidden)
    down = [N_PIXELS, *hidden]
    encoder: list[nn.Module] = [nn.Flatten()]  # (B, 1, 28, 28) -> (B, 784)
    for n_in, n_out in pairwise(down):
        encoder += [nn.Linear(n_in, n_out), nn.ReLU()]
    encoder.append(nn.Linear(down[-1], 2 * latent_dim))  # mu and logvar side by side

    up = [latent_dim, *reversed(hidden)]
    decoder: list[nn.Module] = []
    for n_in, n_out in pairwise(up):
        decoder += [nn.Linear(n_in, n_out), nn.ReLU()]
    decoder += [nn.Linear(up[-1], N_PIXELS), nn.Unflatten(1, IMAGE_SHAPE)]

    config = {"architecture": "mlp", "latent_dim": latent_dim, "hidden": list(hidden)}
    return VAE(nn.Sequential(*encoder), nn.Sequential(*decoder), latent_dim, config)


def conv_vae(latent_dim: int = 20, channels: tuple[int, int] = (16, 32), hidden: int = 256) -> VAE:
    """The convolutional VAE: strided convolutions down, a dense layer, transposed convolutions up.

    Kernels are 4 by 4 with stride 2 and padding 1: each halves or doubles the side exactly, and every output
    pixel of a transposed convolution is covered by the same number of kernel taps, which avoids checkerboards.

    Args:
        latent_dim: number of latent coordinates.
        channels: channels at 14 by 14 and at 7 by 7.
        hidden: size of the dense layer between the feature maps and the code.

    Raises:
        ValueError: if a size is not a positive integer.
    """
    _check_sizes(latent_dim=latent_dim, channels=channels, hidden=hidden)
    c1, c2 = channels
    encoder = nn.Sequential(
        nn.Conv2d(1, c1, 4, stride=2, padding=1),  # 28 -> 14
        nn.ReLU(),
        nn.Conv2d(c1, c2, 4, stride=2, padding=1),  # 14 -> 7
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(c2 * 7 * 7, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 2 * latent_dim),  # mu and logvar side by side
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, hidden),
        nn.ReLU(),
        nn.Linear(hidden, c2 * 7 * 7),
        nn.ReLU(),
        nn.Unflatten(1, (c2, 7, 7)),
        nn.ConvTranspose2d(c2, c1, 4, stride=2, padding=1),  # 7 -> 14
        nn.ReLU(),
        nn.ConvTranspose2d(c1, 1, 4, stride=2, padding=1),  # 14 -> 28
    )
    config = {"architecture": "conv", "latent_dim": latent_dim, "channels": list(channels), "hidden": hidden}
    return VAE(encoder, decoder, latent_dim, config)


class _Residual(nn.Module):
    """Adds to the feature maps what two convolutions make of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.change(x)
        return x + change


def residual_vae(latent_dim: int = 32, channels: tuple[int, int] = (32, 64), hidden: int = 256) -> VAE:
    """A stronger convolutional VAE: SiLU instead of ReLU, and a residual block at 7 by 7 in each network.

    SiLU, a * sigmoid(a), is smooth where ReLU has a corner and passes a gradient where ReLU passes none.

    Args:
        latent_dim: number of latent coordinates.
        channels: channels at 14 by 14 and at 7 by 7.
        hidden: size of the dense layer between the feature maps and the code.

    Raises:
        ValueError: if a size is not a positive integer.

    Source: Elfwing et al. (2017) for SiLU; He et al. (2016) for residual blocks.
    """
    _check_sizes(latent_dim=latent_dim, channels=channels, hidden=hidden)
    c1, c2 = channels
    encoder = nn.Sequential(
        nn.Conv2d(1, c1, 4, stride=2, padding=1),  # 28 -> 14
        nn.SiLU(),
        nn.Conv2d(c1, c2, 4, stride=2, padding=1),  # 14 -> 7
        _Residual(c2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(c2 * 7 * 7, hidden),
        nn.SiLU(),
        nn.Linear(hidden, 2 * latent_dim),  # mu and logvar side by side
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, hidden),
        nn.SiLU(),
        nn.Linear(hidden, c2 * 7 * 7),
        nn.Unflatten(1, (c2, 7, 7)),
        _Residual(c2),
        nn.SiLU(),
        nn.ConvTranspose2d(c2, c1, 4, stride=2, padding=1),  # 7 -> 14
        nn.SiLU(),
        nn.ConvTranspose2d(c1, 1, 4, stride=2, padding=1),  # 14 -> 28
    )
    config = {"architecture": "residual", "latent_dim": latent_dim, "channels": list(channels), "hidden": hidden}
    vae = VAE(encoder, decoder, latent_dim, config)
    return vae.to(memory_format=torch.channels_last)  # the same numbers, in the order that its convolutions like best


ARCHITECTURES: dict[str, Callable[..., VAE]] = {"mlp": mlp_vae, "conv": conv_vae, "residual": residual_vae}

LOGVAR_OF_A_POINT = -60.0  # a standard deviation of 1e-13: adding such noise to a float32 mean changes nothing


class _PointPosterior(nn.Module):
    """Replaces the encoder's log-variances: q(z|x) shrinks to the point mu."""

    def forward(self, parameters: Tensor) -> Tensor:
        mu, logvar = parameters.chunk(2, dim=1)
        return torch.cat([mu, torch.full_like(logvar, LOGVAR_OF_A_POINT)], dim=1)


def deterministic(vae: VAE) -> VAE:
    """The auto-encoder of the same architecture: z = mu, no noise. To be trained with ``beta = 0``.

    Its recon compares with a VAE's. Its KL says nothing: a point is infinitely far from the prior, and what is
    computed depends on the width that stands for a point. It is no model of x: nothing ties its codes to the prior.

    Args:
        vae: a model of this module; its encoder and decoder are used, not copied. The half of the encoder's last
            layer that would give log-variances stays unused.
    """
    config = vae.config | {"architecture": f"{vae.config['architecture']}_ae"}
    return VAE(nn.Sequential(vae.encoder, _PointPosterior()), vae.decoder, vae.latent_dim, config)
