"""Priors that are learnt, and the objective that they, and tighter bounds, are trained with: appendix B.

They are modules: a model that holds one trains it with its networks, and saves it with them.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tme_utils.training import Objective
from tme_utils.vae import VAE, Generator, Prior, StandardNormal, as_int, gaussian_log_prob, must_end_in, reparameterize


class FullGaussian(Prior, nn.Module):
    """N(m, C) with the mean and covariance of given codes: the best Gaussian prior for them, in closed form."""

    def __init__(self, z: Float[Tensor, "n d"]) -> None:
        """Take the moments of the codes."""
        super().__init__()
        if z.dim() != 2 or len(z) <= z.shape[1]:
            raise ValueError(f"need more codes than each has coordinates, (n, d), got {(*z.shape,)}")
        self.mean, self.root = nn.Buffer(z.mean(dim=0)), nn.Buffer(torch.linalg.cholesky(z.T.cov()))

    def log_prob(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        """Log-density of each code."""
        normal = torch.distributions.MultivariateNormal(self.mean, scale_tril=self.root)
        return torch.as_tensor(normal.log_prob(z))

    def sample(self, n_codes: int, like: Float[Tensor, "d"], generator: Generator = None) -> Float[Tensor, "n d"]:
        """Draws of the size, type and device of ``like``."""
        return self.mean + StandardNormal().sample(n_codes, like, generator) @ self.root.T


class Flow(Prior, nn.Module):
    r"""A normalising flow: N(0, I) seen through affine couplings.

    Each coupling keeps one half of the coordinates, a, and moves the other by what a network makes of a:
    :math:`b \mapsto b \odot e^{s(a)} + t(a)`. That is undone without inverting the network, and its Jacobian is
    triangular, with log-determinant :math:`\sum s(a)`. The halves change places from one coupling to the next. At first
    the flow is the identity, and its density N(0, I).

    Source: Dinh et al. (2017), section 3.
    """

    def __init__(self, latent_dim: int, n_couplings: int = 6, hidden: int = 256) -> None:
        """Networks of two hidden layers, one for each coupling."""
        super().__init__()
        half, odd = divmod(as_int("latent_dim", latent_dim), 2)
        if odd:
            raise ValueError(f"latent_dim must be even, got {latent_dim}")
        self.latent_dim, hidden = 2 * half, as_int("hidden", hidden)
        self.networks = nn.ModuleList()
        for _ in range(as_int("n_couplings", n_couplings)):
            last = nn.Linear(hidden, 2 * half)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            layers = nn.Linear(half, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
            self.networks.append(nn.Sequential(*layers))

    def to_normal(self, z: Float[Tensor, "*b d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b"]]:
        """The points that codes come from, where the density is N(0, I), and log abs det of the Jacobian."""
        must_end_in("z", z.shape, (self.latent_dim,))
        a, b = z.chunk(2, dim=-1)
        log_det = torch.zeros_like(z[..., 0])
        for network in self.networks:
            log_scale, shift = _coupling(network, a)
            a, b = b * log_scale.exp() + shift, a
            log_det = log_det + log_scale.sum(dim=-1)
        return torch.cat([a, b], dim=-1), log_det

    def from_normal(self, u: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The inverse of :meth:`to_normal`."""
        must_end_in("u", u.shape, (self.latent_dim,))
        a, b = u.chunk(2, dim=-1)
        for network in reversed(self.networks):
            log_scale, shift = _coupling(network, b)
            a, b = b, (a - shift) * (-log_scale).exp()
        return torch.cat([a, b], dim=-1)

    def log_prob(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        """Log-density of each code."""
        u, log_det = self.to_normal(z)
        return StandardNormal().log_prob(u) + log_det

    def sample(self, n_codes: int, like: Float[Tensor, "d"], generator: Generator = None) -> Float[Tensor, "n d"]:
        """Draws of the size, type and device of ``like``."""
        return self.from_normal(StandardNormal().sample(n_codes, like, generator))


def _coupling(network: nn.Module, kept: Tensor) -> tuple[Tensor, Tensor]:
    log_scale, shift = network(kept).chunk(2, dim=-1)
    return 3 * torch.tanh(log_scale / 3), shift  # a factor of 20 at most, whatever the network says


def fit_prior(
    prior: Prior,
    mu: Float[Tensor, "n d"],
    logvar: Float[Tensor, "n d"],
    n_epochs: int,
    *,
    seed: int,
    batch_size: int = 500,
    max_lr: float = 2e-3,
) -> float:
    """Raise E[log p(z)] over codes drawn anew at every epoch from the q(z|x) of these images; return the seconds taken.

    Encoder and decoder stay as they are: the rest of the ELBO does not change.
    """
    if not isinstance(prior, nn.Module) or not list(prior.parameters()):
        raise ValueError(f"prior must be a module with parameters to learn, got {type(prior).__name__}")
    generator = torch.Generator(mu.device).manual_seed(seed)
    n_steps = as_int("n_epochs", n_epochs) * math.ceil(len(mu) / as_int("batch_size", batch_size))
    optimizer = torch.optim.Adam(prior.parameters(), max_lr, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, n_steps)
    start = time.perf_counter()
    for _ in range(n_epochs):
        for index in torch.randperm(len(mu), generator=generator, device=mu.device).split(batch_size):
            optimizer.zero_grad()
            z = reparameterize(mu[index], logvar[index], generator=generator)
            (-prior.log_prob(z).mean()).backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Sharper(Objective):
    """The ELBO with less noise and more images, and at the end a tighter bound: an objective for ``fit``.

    Gradients are *doubly reparametrised*: q(z|x) is held still inside the log-weights, so that its parameters learn
    through z alone, each draw with the square of its share. With one draw that drops the score function, whose mean is
    zero ("sticking the landing"). The last ``share`` of the steps maximises IW_K with K = ``n_samples`` draws.

    Before, during the first ``moved`` of the steps, the strokes of the images are moved: by a random linear map about
    the centre, the identity plus a matrix with entries of standard deviation ``warp``, and by up to ``shift`` pixels in
    each direction. ``warm_up`` is the share of the steps over which the weight of the KL term rises to 1. With
    ``low_precision`` the networks compute in bfloat16.

    Source: Tucker et al. (2019); Roeder et al. (2017); Burda et al. (2015).
    """

    n_samples: int = 5
    share: float = 0.0
    sticking: bool = True
    warp: float = 0.0
    shift: int = 0
    moved: float = 0.7
    warm_up: float = 0.0
    low_precision: bool = False

    def __post_init__(self) -> None:
        """Check the numbers, and give each its one type, as :class:`tme_utils.training.Recipe` does."""
        for name, least in [("n_samples", 1), ("shift", 0)]:
            object.__setattr__(self, name, as_int(name, getattr(self, name), least))
        for name in ("share", "warp", "moved", "warm_up"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not (0 <= self.warp < math.inf and all(0 <= share <= 1 for share in (self.share, self.moved, self.warm_up))):
            raise ValueError(f"need finite warp >= 0, and share, moved and warm_up in [0, 1], got {self}")

    def augment(self, x: Float[Tensor, "b 1 28 28"], generator: torch.Generator, done: float) -> Tensor:
        """The images, each moved its own way."""
        if done >= self.moved or not (self.warp or self.shift):
            return x
        options: Any = {"generator": generator, "device": x.device, "dtype": x.dtype}
        linear = torch.eye(2).to(x) + self.warp * torch.randn((len(x), 2, 2), **options)
        shift = torch.randint(-self.shift, self.shift + 1, (len(x), 2, 1), **options) / 14  # the grid's side is 2
        grid = F.affine_grid(torch.cat([linear, shift], dim=2), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)

    def loss(self, model: VAE, x: Float[Tensor, "b 1 28 28"], generator: torch.Generator, done: float) -> Tensor:
        """The negative bound, a mean over the batch in nats, whose gradient is the estimator's."""
        n_samples = self.n_samples if done >= 1 - self.share else 1
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision):
            mu, logvar = (parameter.to(x.dtype) for parameter in model.encode(x))
            eps = torch.randn((n_samples, *mu.shape), generator=generator, device=x.device, dtype=x.dtype)
            z = reparameterize(mu, logvar, eps)
            output = model.decode(z).to(x.dtype)
        beta = min(1.0, done / self.warm_up) if self.warm_up else 1.0
        still = (mu.detach(), logvar.detach()) if self.sticking else (mu, logvar)
        log_w = model.likelihood.log_prob(output, x.expand_as(output))
        log_w = log_w + beta * (model.prior.log_prob(z) - gaussian_log_prob(z, *still))
        shares = log_w.detach().softmax(dim=0)
        if self.sticking:
            z.register_hook(lambda gradient: shares.unsqueeze(-1) * gradient)
        return torch.neg((shares * log_w).sum(dim=0).mean())
