r"""A variational auto-encoder in one file: read it from top to bottom.

An encoder gives the mean and log-variance of a Gaussian q(z|x), a decoder the parameters of p(x|z); the prior p(z) is
N(0, I). Both networks minimise the negative ELBO, recon + kl, in nats per image:
:math:`-E_{q(z|x)}[\log p(x|z)] + KL(q(z|x) \,\|\, p(z))`, summed over pixels and coordinates, never averaged over them.
Shapes stand in the annotations, b for a batch of any shape; nothing broadcasts silently.
"""

import math
import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

IMAGE_SHAPE, N_PIXELS = (1, 28, 28), 784
Generator = torch.Generator | None  # source of noise; a CPU generator gives the same noise on every device


def reparameterize(
    mu: Float[Tensor, "b d"], logvar: Float[Tensor, "b d"], eps: Tensor | None = None, generator: Generator = None
) -> Float[Tensor, "*k b d"]:
    r"""Draw :math:`z = \mu + \sigma \odot \epsilon`, differentiable in mu and logvar.

    The noise, of N(0, I), is drawn if not given; ``eps`` of shape (K, b, d) gives K draws each.
    Source: Kingma and Welling (2013), section 2.4; Rezende et al. (2014).
    """
    if eps is None:
        device = generator.device if generator is not None else mu.device
        eps = torch.randn(mu.shape, generator=generator, device=device, dtype=mu.dtype).to(mu.device)
    must_end_in("eps", eps.shape, mu.shape)
    one_shape("mu and logvar", mu, logvar)
    std = torch.exp(0.5 * logvar)
    return mu + std * eps


def gaussian_log_prob(
    z: Float[Tensor, "*k b d"], mu: Float[Tensor, "b d"], logvar: Float[Tensor, "b d"]
) -> Float[Tensor, "*k b"]:
    r"""Log-density :math:`\log N(z; \mu, \mathrm{diag}(\sigma^2))`; z may hold K points for each Gaussian."""
    must_end_in("z", z.shape, mu.shape)
    one_shape("mu and logvar", mu, logvar)
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu).square() * torch.exp(-logvar)).sum(-1)


def kl_per_dim(mu: Float[Tensor, "b d"], logvar: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    r"""KL of each coordinate from N(0, 1): :math:`-\frac12 (1 + \log\sigma^2 - \mu^2 - e^{\log\sigma^2})`."""
    one_shape("mu and logvar", mu, logvar)
    # Kingma and Welling (2013), appendix B; expm1 is exp - 1 without the cancellation that would drown a small KL.
    return -0.5 * (logvar - mu.square() - torch.expm1(logvar))


def kl_standard_normal(mu: Float[Tensor, "b d"], logvar: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    r"""KL divergence :math:`KL(N(\mu, \mathrm{diag}(\sigma^2)) \,\|\, N(0, I))`: the sum of :func:`kl_per_dim`."""
    return kl_per_dim(mu, logvar).sum(-1)


def bernoulli_log_prob(logits: Float[Tensor, "b 1 28 28"], x: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b"]:
    r"""Log-likelihood of images under one independent Bernoulli for each pixel.

    :math:`\sum_i x_i \log \pi_i + (1 - x_i) \log(1 - \pi_i)` with :math:`\pi = \mathrm{sigmoid}(logits)`, computed from
    the logits so that no probability is ever rounded to 0 or 1. For grey x in [0, 1] it is the expected log-likelihood
    of the image whose pixels are drawn as Bernoulli(x).
    """
    one_shape("logits and x", logits, x)
    must_end_in("x", x.shape, IMAGE_SHAPE)
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=(-3, -2, -1))


class Bernoulli:
    """p(x|z) from the decoder's output, here logits. Another likelihood is another class with these methods."""

    def log_prob(self, output: Float[Tensor, "b 1 28 28"], x: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b"]:
        """Log p(x|z) of each image under the output beside it."""
        return bernoulli_log_prob(output, x)

    def mean(self, output: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b 1 28 28"]:
        """Pixel probabilities, the picture to show."""
        return output.sigmoid()

    def log_prob_pairs(self, output: Float[Tensor, "m 1 28 28"], x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "m n"]:
        """Log p(x|z) of every image under every output: linear in x, so that a matrix product does."""
        logits = output.flatten(1)
        normalizer = F.softplus(logits, threshold=50)  # beyond torch's own threshold, 20, it would lack 2e-9 a pixel
        return logits @ x.flatten(1).T - normalizer.sum(dim=1, keepdim=True)


class Prior:
    """What p(z) must give. ``tme_utils.priors`` learns some: such a one is a module too, trained with the networks."""

    def log_prob(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        """Log-density of each code."""
        raise NotImplementedError

    def sample(self, n_codes: int, like: Float[Tensor, "d"], generator: Generator = None) -> Float[Tensor, "n d"]:
        """Draws of the size, type and device of ``like``."""
        raise NotImplementedError

    def kl(self, mu: Float[Tensor, "b d"], logvar: Float[Tensor, "b d"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        """KL(q(z|x) || p(z)) as log q(z|x) - log p(z) at one draw z: unbiased, and now and then negative."""
        return gaussian_log_prob(z, mu, logvar) - self.log_prob(z)


class StandardNormal(Prior):
    """p(z) = N(0, I), for which the KL divergence needs no draw."""

    def log_prob(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        """Log-density of each code."""
        return gaussian_log_prob(z, torch.zeros_like(z), torch.zeros_like(z))

    def sample(self, n_codes: int, like: Float[Tensor, "d"], generator: Generator = None) -> Float[Tensor, "n d"]:
        """Draws of the size, type and device of ``like``."""
        zeros = like.new_zeros(n_codes, len(like))
        return reparameterize(zeros, zeros, generator=generator)  # mean 0, log-variance 0

    def kl(self, mu: Float[Tensor, "b d"], logvar: Float[Tensor, "b d"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        """The closed form."""
        return kl_standard_normal(mu, logvar)


class VAE(nn.Module):
    """A VAE with a diagonal-Gaussian approximate posterior and, unless told otherwise, a standard normal prior.

    ``encoder`` maps images to (b, 2 * latent_dim), mu and logvar side by side; ``decoder`` maps codes (b, latent_dim)
    to what the ``likelihood`` reads. ``config`` names the architecture in checkpoints and tables.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        config: dict[str, Any],
        likelihood: Any = None,
        prior: Prior | None = None,
    ) -> None:
        """Compose the two networks."""
        super().__init__()
        self.encoder, self.decoder, self.latent_dim, self.config = encoder, decoder, latent_dim, config
        self.likelihood: Bernoulli = likelihood or Bernoulli()
        self.prior: Prior = prior or StandardNormal()

    @property
    def n_parameters(self) -> int:
        """Number of trained scalars."""
        return sum(parameter.numel() for parameter in self.parameters())

    def encode(self, x: Float[Tensor, "b 1 28 28"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Parameters (mu, logvar) of q(z|x)."""
        check_images(x)
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b 1 28 28"]:
        """Parameters of p(x|z): logits, for the Bernoulli."""
        must_end_in("z", z.shape, (self.latent_dim,))
        return torch.reshape(self.decoder(z.reshape(-1, self.latent_dim)), (*z.shape[:-1], *IMAGE_SHAPE))

    def log_likelihood(self, x: Float[Tensor, "b 1 28 28"], z: Float[Tensor, "*k b d"]) -> Float[Tensor, "*k b"]:
        """Log p(x|z) of each image at its code; z may hold K codes for each."""
        must_end_in("z, without its coordinates,", z.shape[:-1], x.shape[:-3])
        output = self.decode(z)
        return self.likelihood.log_prob(output, x.expand_as(output))

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b 1 28 28"]:
        """Pixel probabilities decoded from the mean of q(z|x); deterministic."""
        return self.likelihood.mean(self.decode(self.encode(x)[0]))

    @torch.no_grad()
    def sample(self, n_images: int, generator: Generator = None) -> Float[Tensor, "n 1 28 28"]:
        """Pixel probabilities decoded from draws of the prior."""
        like = next(self.parameters()).new_zeros(self.latent_dim)
        return self.likelihood.mean(self.decode(self.prior.sample(n_images, like, generator)))


class ElboTerms(NamedTuple):
    """The two terms of the negative ELBO, each (B,), in nats per image."""

    recon: Float[Tensor, "b"]
    kl: Float[Tensor, "b"]

    @property
    def elbo(self) -> Float[Tensor, "b"]:
        """A lower bound of log p(x) (in expectation over the noise)."""
        return -(self.recon + self.kl)

    def loss(self, beta: float = 1.0) -> Float[Tensor, ""]:
        """Mean over the batch of recon + beta * kl: with beta = 1, the mean negative ELBO."""
        return (self.recon + beta * self.kl).mean()

    def averages(self) -> dict[str, float]:
        """Means over the images of ``recon``, ``kl`` and ``neg_elbo``, accumulated in float64."""
        recon, kl = self.recon.double().mean().item(), self.kl.double().mean().item()
        return {"recon": recon, "kl": kl, "neg_elbo": recon + kl}


def elbo_terms(
    model: VAE, x: Float[Tensor, "b 1 28 28"], eps: Float[Tensor, "b d"] | None = None, generator: Generator = None
) -> ElboTerms:
    """recon, estimated by one draw of z for each image, and kl, exactly: Kingma and Welling (2013), eq. 10."""
    mu, logvar = model.encode(x)
    z = reparameterize(mu, logvar, eps, generator)
    return ElboTerms(recon=-model.log_likelihood(x, z), kl=model.prior.kl(mu, logvar, z))


def mlp_vae(latent_dim: int = 20, hidden: Sequence[int] = (400,)) -> VAE:
    """The multi-layer perceptron: linear -> ReLU -> linear, both ways.

    ``hidden`` are the encoder's hidden layers, from the image inwards; the decoder mirrors them. It ends in logits: the
    sigmoid is applied where a probability is shown.
    """
    latent_dim, hidden = as_int("latent_dim", latent_dim), [as_int("hidden", size) for size in hidden]
    encoder = nn.Sequential(nn.Flatten(), *_dense(N_PIXELS, *hidden, 2 * latent_dim))  # mu and logvar side by side
    decoder = nn.Sequential(*_dense(latent_dim, *reversed(hidden), N_PIXELS), nn.Unflatten(1, IMAGE_SHAPE))
    config = {"architecture": "mlp", "latent_dim": latent_dim, "hidden": hidden}
    return VAE(encoder, decoder, latent_dim, config)


def _dense(*sizes: int) -> list[nn.Linear | nn.ReLU]:
    """Linear layers from each size to the next, with ReLU between them."""
    return [layer for n_in, n_out in pairwise(sizes) for layer in (nn.Linear(n_in, n_out), nn.ReLU())][:-1]


def conv_vae(
    latent_dim: int = 20,
    channels: Sequence[int] = (16, 32),
    hidden: int = 256,
    activation: Any = nn.ReLU,
    blocks: Any = (),
) -> VAE:
    """Strided convolutions down, a dense layer of size ``hidden``, transposed convolutions (*déconvolutions*) up.

    ``channels`` are those at 14 by 14 and at 7 by 7, where ``blocks`` may add layers. Kernels are 4 by 4 with stride 2
    and padding 1: each halves or doubles the side exactly, and every output pixel of a transposed convolution is
    covered by the same number of kernel taps, which avoids checkerboards.
    """
    latent_dim, hidden = as_int("latent_dim", latent_dim), as_int("hidden", hidden)
    c1, c2 = channels = [as_int("channels", size) for size in channels]
    encoder = nn.Sequential(
        nn.Conv2d(1, c1, 4, stride=2, padding=1),  # 28 -> 14
        activation(),
        nn.Conv2d(c1, c2, 4, stride=2, padding=1),  # 14 -> 7
        *[block(c2) for block in blocks],
        activation(),
        nn.Flatten(),
        nn.Linear(c2 * 7 * 7, hidden),
        activation(),
        nn.Linear(hidden, 2 * latent_dim),  # mu and logvar side by side
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, hidden),
        activation(),
        nn.Linear(hidden, c2 * 7 * 7),
        nn.Unflatten(1, (c2, 7, 7)),
        *[block(c2) for block in blocks],
        activation(),
        nn.ConvTranspose2d(c2, c1, 4, stride=2, padding=1),  # 7 -> 14
        activation(),
        nn.ConvTranspose2d(c1, 1, 4, stride=2, padding=1),  # 14 -> 28
    )
    config = {"architecture": "conv", "latent_dim": latent_dim, "channels": channels, "hidden": hidden}
    return VAE(encoder, decoder, latent_dim, config)


# The doors: what the public functions of the package ask of their arguments.
def check_images(x: Float[Tensor, "b 1 28 28"]) -> None:
    """Raise ``ValueError`` unless x is a batch of at least one float image with pixels in [0, 1]."""
    if x.shape[1:] != IMAGE_SHAPE or len(x) == 0 or not (isinstance(x, Tensor) and x.is_floating_point()):
        raise ValueError(f"x must be a tensor of floats (B, 1, 28, 28), got {type(x).__name__} {x.dtype} {(*x.shape,)}")
    # Elsewhere each look waits for the device. Written so that NaN fails too.
    if x.device.type == "cpu" and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"pixels must lie in [0, 1], got values from {x.min():.4g} to {x.max():.4g}")


def as_int(name: str, value: Any, least: int = 1) -> int:
    """The value as an int, of whatever integer type it is; ``ValueError`` if it is none or below ``least``."""
    number = operator.index(value) if hasattr(value, "__index__") else least - 1
    if number < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return number


def one_shape(names: str, a: Tensor, b: Tensor) -> None:
    """Raise ``ValueError`` unless two tensors have one shape: nothing broadcasts unasked."""
    if a.shape != b.shape:
        raise ValueError(f"{names} must have one shape, got {(*a.shape,)} and {(*b.shape,)}")


def must_end_in(name: str, shape: Sequence[int], end: Sequence[int]) -> None:
    """Raise ``ValueError`` unless the shape ends in the other one: what stands before it is a batch."""
    if tuple(shape)[len(shape) - len(end) :] != tuple(end):
        raise ValueError(f"{name} must have a shape that ends in {(*end,)}, got {(*shape,)}")
