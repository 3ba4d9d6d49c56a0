r"""How good a model is: log p(x) by importance sampling in any dimension, by quadrature in two; active units.

Every likelihood is a log-likelihood log p(x) in nats per image: negative for binary images, and larger is better.
Results are computed in the type of x and on its device, where the model must be too.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tme_utils.vae import VAE, as_int, bernoulli_log_prob, check_images, gaussian_log_prob, reparameterize

MAX_DECODED = 256  # images decoded at once: 0.8 MB of logits in float32, which stay in the cache
ORDER = 3  # points of a square along each axis: ReLU decoders have kinks, which more points would not follow
MAX_LEVELS = 12  # of splitting a square in four: the smallest are 4096 times narrower than the first
MAX_SQUARES = 5_000  # split at one level; beyond that the work stops, and the error estimate says what is left


class Quadrature(NamedTuple):
    """An integral's log and an estimate of its absolute error, in nats."""

    log_likelihood: Float[Tensor, "n"]
    error: Float[Tensor, "n"]


def log_importance_weights(
    model: VAE, x: Float[Tensor, "b 1 28 28"], eps: Float[Tensor, "k b d"]
) -> Float[Tensor, "k b"]:
    r"""Log-weights :math:`\log w_k = \log p(x|z_k) + \log p(z_k) - \log q(z_k|x)` of the codes drawn with eps.

    The codes are :math:`z_k = \mu + \sigma \odot \epsilon_k`; K * B images are decoded at once. The mean of the
    log-weights over k estimates the ELBO, the log-mean-exp of K of them the bound :math:`IW_K`.

    Source: Burda et al. (2015), eq. 8.
    """
    mu, logvar = model.encode(x)
    z = reparameterize(mu, logvar, eps)
    return model.log_likelihood(x, z) + model.prior.log_prob(z) - gaussian_log_prob(z, mu, logvar)


@torch.no_grad()
def posterior_parameters(
    model: VAE, x: Float[Tensor, "n 1 28 28"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Parameters (mu, logvar) of q(z|x) for a whole set of images."""
    check_images(x)
    parts = [model.encode(batch) for batch in x.split(MAX_DECODED)]
    return torch.cat([mu for mu, _ in parts]), torch.cat([logvar for _, logvar in parts])


def recon_scale(x_train: Float[Tensor, "n 1 28 28"], x_test: Float[Tensor, "m 1 28 28"]) -> tuple[float, float]:
    """Two numbers to read the recon of grey test images by, in nats: the least there is, and the mean image's.

    The floor is the entropy of the test images' pixels as coins. The baseline is a model that shows the mean of the
    training images whatever the image; its probabilities are kept from 0 and 1 by 1e-6.
    """
    x, mean_image = x_test.double(), x_train.double().mean(dim=0).clamp(1e-6, 1 - 1e-6)
    floor = (torch.special.entr(x) + torch.special.entr(1 - x)).sum(dim=(1, 2, 3))
    baseline = -bernoulli_log_prob(torch.logit(mean_image).expand_as(x), x)
    return floor.mean().item(), baseline.mean().item()


def active_units(mu: Float[Tensor, "n d"], threshold: float = 0.01) -> Bool[Tensor, "d"]:
    """Which latent coordinates follow the image: the means of q(z|x) vary over images by more than the threshold.

    That is a variance, in the prior's units. Source: Burda et al. (2015), section 5.2.
    """
    if mu.dim() != 2 or len(mu) < 2:
        raise ValueError(f"mu must be (N, latent_dim) with N >= 2, got {(*mu.shape,)}")
    return mu.var(dim=0) > threshold


@torch.no_grad()
def importance_weighted_log_likelihood(
    model: VAE, x: Float[Tensor, "n 1 28 28"], n_samples: int, generator: torch.Generator
) -> Float[Tensor, "n"]:
    r"""Estimate log p(x) by :math:`\log \frac1K \sum_{k=1}^K w_k`, with K = ``n_samples`` draws of q(z|x) per image.

    Its expectation :math:`IW_K` lies between the ELBO (K = 1) and log p(x), and rises with K. The sum runs over
    blocks of draws as a log-sum-exp, so memory does not grow with the number of images or of draws, except for the
    noise of one image. Every image takes its own draws in turn from the generator, on whichever device that lives.

    Source: Burda et al. (2015), eq. 8 and 9.
    """
    check_images(x)
    n_samples = as_int("n_samples", n_samples)
    results = []
    for batch in x.split(max(1, MAX_DECODED // n_samples)):
        # One call for each image: the noise must not depend on how images and draws are cut into blocks.
        size, there = (n_samples, model.latent_dim), generator.device
        draws = [torch.randn(size, generator=generator, device=there, dtype=x.dtype) for _ in batch]
        eps = torch.stack(draws, dim=1).to(x.device)  # (n_samples, B, latent_dim)
        total = torch.full_like(batch[:, 0, 0, 0], -math.inf)  # log of the sum so far, (B,)
        for block in eps.split(MAX_DECODED):
            log_w = log_importance_weights(model, batch, block)
            total = torch.logaddexp(total, log_w.logsumexp(dim=0))
        results.append(total - math.log(n_samples))
    return torch.cat(results)


def log_joint(model: VAE, x: Float[Tensor, "n 1 28 28"], z: Float[Tensor, "m d"]) -> Float[Tensor, "m n"]:
    """Log-density log p(x, z) = log p(x|z) + log p(z) of every image at every code; M images are decoded at once."""
    return model.likelihood.log_prob_pairs(model.decode(z), x) + model.prior.log_prob(z)[:, None]


class _Squares:
    """Log-integrals of p(x, z) over squares of the plane, by Gauss and Legendre's rule in each."""

    def __init__(self, model: VAE, x: Tensor) -> None:
        nodes, weights = (torch.from_numpy(a).to(x) for a in np.polynomial.legendre.leggauss(ORDER))
        self.nodes = torch.cartesian_prod(nodes, nodes)  # (ORDER², 2), in [-1, 1]²
        self.log_weights = torch.cartesian_prod(weights, weights).log().sum(dim=1)
        self.model, self.x = model, x

    def integrate(self, centres: Tensor, half: float) -> Tensor:
        """Log-integrals (M, N) over the M squares of these centres (M, 2) and half a side, for the N images."""
        parts = []
        for block in centres.split(MAX_DECODED // len(self.nodes)):
            z = block[:, None] + half * self.nodes
            values = log_joint(self.model, self.x, z.reshape(-1, 2)).reshape(*z.shape[:2], -1)
            parts.append((values + self.log_weights[:, None]).logsumexp(dim=1) + 2 * math.log(half))
        return torch.cat(parts)


@torch.no_grad()
def exact_log_likelihood_2d(
    model: VAE,
    x: Float[Tensor, "n 1 28 28"],
    *,
    half_width: float = 6.0,
    n_squares: int = 24,
    tolerance: float = 1e-4,
) -> Quadrature:
    r"""Compute :math:`\log p(x) = \log \int p(x|z)\, p(z)\, dz` for a 2-D latent space by adaptive quadrature.

    The square [-half_width, half_width]² is cut into ``n_squares``² squares. A square is split in four, and its
    quarters again, as long as splitting changes p(x) of any image by more than the share ``tolerance`` (and no
    more than 5,000 squares do); its neighbours are split with it. The encoder is not used: the result is
    independent of q(z|x).

    The error estimate adds up the changes at the last split of every square, which are the errors of coarser
    squares than those used and so cautious, and the mass of the squares along the border, which is more than
    lies beyond it where the decoder changes little. On MNIST the default tolerance leaves errors below 1e-4 nats, some
    30 times less than the estimate.

    Raises:
        ValueError: if x and the model are not in float64 (``model.double()``).
    """
    check_images(x)
    n_squares = as_int("n_squares", n_squares)
    if x.dtype != torch.float64:
        raise ValueError(f"x must be float64, as must the model, got {x.dtype}")
    if not (0 < half_width < math.inf and 0 < tolerance < 1):
        raise ValueError(f"need a finite half_width > 0 and a tolerance in (0, 1), got {half_width} and {tolerance}")
    squares = _Squares(model, x)
    half = half_width / n_squares
    axis = (2 * torch.arange(n_squares).to(x) + 1) * half - half_width
    centres = torch.cartesian_prod(axis, axis)
    whole = squares.integrate(centres, half)
    border = whole[centres.abs().amax(dim=1) > half_width - 1.5 * half].logsumexp(dim=0)
    corners = torch.cartesian_prod(axis.new_tensor([-1, 1]), axis.new_tensor([-1, 1]))

    done = torch.full_like(border, -math.inf)  # log of the mass in squares that need no further split
    error = torch.zeros_like(border)
    for level in range(MAX_LEVELS):
        half /= 2
        quarters = centres[:, None] + half * corners
        parts = squares.integrate(quarters.reshape(-1, 2), half).reshape(len(centres), 4, len(x))
        refined = parts.logsumexp(dim=1)
        total = torch.logaddexp(done, refined.logsumexp(dim=0))
        change = (torch.exp(refined - total) - torch.exp(whole - total)).abs()
        split = change.amax(dim=1) > tolerance
        if level + 1 == MAX_LEVELS or split.sum() > MAX_SQUARES:
            split[:] = False
        # The neighbours too (half is a quarter of a side by now): a peak just beyond an edge may hide between nodes.
        changed = centres[split]
        split = torch.cat([(torch.cdist(c, changed, p=math.inf) < 5 * half).any(dim=1) for c in centres.split(1024)])
        done = torch.logaddexp(done, refined[~split].logsumexp(dim=0))
        error += change[~split].sum(dim=0)
        if not split.any():
            break
        centres, whole = quarters[split].reshape(-1, 2), parts[split].reshape(-1, len(x))
    return Quadrature(log_likelihood=done, error=error + torch.exp(border - done))


class Gaussian2D(NamedTuple):
    """A Gaussian over the plane for each image, and its ELBO in nats."""

    mu: Float[Tensor, "n 2"]
    covariance: Float[Tensor, "n 2 2"]
    elbo: Float[Tensor, "n"]


def _log_joint_at(model: VAE, x: Float[Tensor, "n 1 28 28"], z: Float[Tensor, "k n d"]) -> Float[Tensor, "k n"]:
    """Log p(x, z) of each image at its own K codes, in blocks of images."""
    size = max(1, MAX_DECODED // len(z))
    blocks = zip(x.split(size), z.split(size, dim=1), strict=True)
    return torch.cat([model.log_likelihood(x, z) + model.prior.log_prob(z) for x, z in blocks], dim=1)


def _standard_nodes(n_nodes: int, like: Tensor) -> tuple[Float[Tensor, "k 2"], Float[Tensor, "k"]]:
    """K = n_nodes² codes and weights that average over N(0, I) in the plane, by Gauss and Hermite's rule."""
    nodes, weights = (torch.from_numpy(a).to(like) for a in np.polynomial.hermite_e.hermegauss(n_nodes))
    return torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten() / weights.sum() ** 2


def _entropy(root: Float[Tensor, "n 2 2"]) -> Float[Tensor, "n"]:
    """Of Gaussians in the plane, from the Cholesky factors of their covariances."""
    return root.diagonal(dim1=1, dim2=2).log().sum(dim=1) + math.log(2 * math.pi) + 1


@torch.no_grad()
def gaussian_elbo_2d(
    model: VAE,
    x: Float[Tensor, "n 1 28 28"],
    mu: Float[Tensor, "n 2"],
    covariance: Float[Tensor, "n 2 2"],
    *,
    n_nodes: int = 15,
) -> Float[Tensor, "n"]:
    r"""Compute :math:`E_q[\log p(x, z) - \log q(z)]` for any Gaussian q in the plane, by n_nodes² codes each."""
    u, weights = _standard_nodes(as_int("n_nodes", n_nodes), x)
    root = torch.linalg.cholesky(covariance)
    values = _log_joint_at(model, x, mu + torch.einsum("nij,kj->kni", root, u))
    return weights @ values + _entropy(root)


@torch.no_grad()
def best_gaussian_2d(
    model: VAE,
    x: Float[Tensor, "n 1 28 28"],
    mu: Float[Tensor, "n 2"],
    *,
    diagonal: bool,
    std: float = 0.05,
    n_steps: int = 12,
) -> Gaussian2D:
    r"""Find the Gaussian q of highest ELBO for each image, with a diagonal or a full covariance; 2-D latent spaces.

    At the optimum :math:`E_q[\nabla \log p(x, z)] = 0` and :math:`\Sigma^{-1} = -E_q[\nabla^2 \log p(x, z)]` (of which
    a diagonal q keeps the diagonal). Each step moves mean and precision most of the way towards what the present q
    gives for them; with :math:`z = \mu + L u` both expectations are moments of u and log p(x, z), so that no
    derivative of the decoder is needed. The search climbs from N(mu, std² I) and returns the best q met: a decoder
    may have better ones elsewhere in the plane.

    Source: Opper and Archambeau (2009), *The variational Gaussian approximation revisited*.
    """
    check_images(x)
    n_steps = as_int("n_steps", n_steps)
    if mu.shape != (len(x), 2) or model.latent_dim != 2:
        raise ValueError(f"mu must be {(len(x), 2)} and the latent space a plane, got {(*mu.shape,)}")
    share = 0.6  # of the way that one step takes
    u, weights = _standard_nodes(7, x)
    identity = torch.eye(2).to(x)
    covariance = (std**2 * identity).expand(len(x), 2, 2)
    best = Gaussian2D(mu.clone(), covariance.clone(), torch.full_like(mu[:, 0], -math.inf))
    for _ in range(n_steps):
        root = torch.linalg.cholesky(covariance)
        values = _log_joint_at(model, x, mu + torch.einsum("nij,kj->kni", root, u))
        elbo = weights @ values + _entropy(root)
        better = elbo > best.elbo
        best.mu[better], best.covariance[better], best.elbo[better] = mu[better], covariance[better], elbo[better]
        values = weights[:, None] * (values - weights @ values)
        slope = values.T @ u
        curvature = -torch.einsum("kn,kij->nij", values, u[:, :, None] * u[:, None] - identity)
        # Where log p(x, z) is not concave the curvature has no inverse: there it counts as flat.
        size, direction = torch.linalg.eigh(curvature)
        curvature = direction @ torch.diag_embed(size.clamp(min=0)) @ direction.mT
        precision = (1 - share) * identity + share * curvature  # of the next q, seen from this one
        step = share * torch.linalg.solve(precision, slope)
        step = step * (3 / step.norm(dim=1, keepdim=True).clamp(min=3))  # three standard deviations at most
        if diagonal:
            precision = torch.diag_embed(precision.diagonal(dim1=1, dim2=2))
        mu = mu + torch.einsum("nij,nj->ni", root, step)
        covariance = root @ torch.linalg.inv(precision) @ root.mT
    return best._replace(elbo=gaussian_elbo_2d(model, x, best.mu, best.covariance))
