r"""Constructions in latent space: grids, traversals, paths, neighbours, the aggregated posterior.

And a ruler for decoded digits, with what a code explains of its measurements.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tme_utils.vae import as_int, gaussian_log_prob, must_end_in, one_shape

BLOCK = 250_000  # numbers at once: 2 MB in float64, which stay in the cache and need no new pages
N_SIDE = 28
NEGLIGIBLE = -60.0  # log of a share of the largest term: sixty thousand such terms change no digit of a float64
SMALL_ANGLE = 1e-4  # radians; below it the arc and its chord differ by less than 1e-9 of their length


def prior_grid(n: int, dtype: torch.dtype | None = None) -> Float[Tensor, "n n 2"]:
    """An n by n grid of 2-D codes at equal steps of the prior's probability.

    Each coordinate takes the quantiles (i + 1/2) / n of N(0, 1), so that every cell of the grid holds the same
    prior mass, and an average over the grid is the midpoint rule for an average over the prior. The first index
    runs over z_2, the second over z_1: ``grid[i, j] = (quantile j, quantile i)``.

    Source: Kingma and Welling (2013), figure 4.
    """
    n = as_int("n", n)
    quantiles = torch.special.ndtri((torch.arange(n, dtype=dtype or torch.get_default_dtype()) + 0.5) / n)
    z2, z1 = torch.meshgrid(quantiles, quantiles, indexing="ij")
    return torch.stack([z1, z2], dim=-1)


def traversals(z: Float[Tensor, "n d"], dims: Int[Tensor, "k"], values: Float[Tensor, "v"]) -> Float[Tensor, "n k v d"]:
    """Copies of each code in which one coordinate at a time takes each of the values, the others unchanged.

    ``dims`` are the coordinates to replace; ``values`` are in standard deviations of the prior.
    """
    codes = z[:, None, None].repeat(1, len(dims), len(values), 1)
    for i, dim in enumerate(dims.tolist()):
        if not 0 <= dim < z.shape[1]:
            raise ValueError(f"dims must lie in 0 to {z.shape[1] - 1}, got {dims.tolist()}")
        codes[:, i, :, dim] = values
    return codes


def lerp(start: Float[Tensor, "*b d"], end: Float[Tensor, "*b d"], t: Float[Tensor, "t"]) -> Float[Tensor, "t *b d"]:
    r"""Straight path :math:`(1 - t)\, z_0 + t\, z_1` from codes at t = 0 to codes at t = 1."""
    one_shape("start and end", start, end)
    t = t.reshape(-1, *[1] * start.dim())
    return (1 - t) * start + t * end


def slerp(start: Float[Tensor, "*b d"], end: Float[Tensor, "*b d"], t: Float[Tensor, "t"]) -> Float[Tensor, "t *b d"]:
    r"""Spherical path: the direction turns at constant speed, the norm changes linearly.

    With :math:`\Omega` the angle between both codes and :math:`\hat z = z / \lVert z \rVert`,

    .. math:: z(t) = \big((1 - t) \lVert z_0 \rVert + t \lVert z_1 \rVert\big)
              \frac{\sin((1 - t)\Omega)\, \hat z_0 + \sin(t\Omega)\, \hat z_1}{\sin\Omega}.

    Shoemake's formula is for unit vectors. Applied to codes of different norms as they are, it goes astray where they
    are nearly opposite: the division by :math:`\sin\Omega` then magnifies the difference of their norms. Codes in one
    direction are joined by the straight path.

    Raises:
        ValueError: if a code is zero, or two codes point in opposite directions, where no arc is the shortest.

    Source: Shoemake (1985); White (2016) for latent codes.
    """
    one_shape("start and end", start, end)
    norms = torch.stack([start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)])
    if not (norms > 0).all():
        raise ValueError("a code of norm 0 has no direction: slerp needs codes that are not zero")
    first, last = start / norms[0], end / norms[1]
    # Not the arc cosine: near 0 and near pi it turns a rounding error into an angle of its square root.
    omega = 2 * torch.atan2((first - last).norm(dim=-1, keepdim=True), (first + last).norm(dim=-1, keepdim=True))
    if (math.pi - omega < SMALL_ANGLE).any():
        raise ValueError("slerp is undefined between codes in opposite directions")
    s = t.reshape(-1, *[1] * start.dim())
    arc = (torch.sin((1 - s) * omega) * first + torch.sin(s * omega) * last) / torch.sin(omega)
    return lerp(norms[0], norms[1], t) * torch.where(omega < SMALL_ANGLE, lerp(first, last, t), arc)


def nearest(z: Float[Tensor, "m d"], known: Float[Tensor, "n d"], k: int) -> Int[Tensor, "m k"]:
    """Indices of the k known codes nearest to each code, the nearest first.

    A code that is itself among the known ones comes first in its own row.
    """
    if not 1 <= k <= len(known):
        raise ValueError(f"k must lie between 1 and the {len(known)} known codes, got {k}")
    parts = [
        torch.cdist(block, known, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False).indices
        for block in z.split(max(1, BLOCK // len(known)))
    ]
    return torch.cat(parts)


def aggregated_log_prob(
    z: Float[Tensor, "*b d"], mu: Float[Tensor, "n d"], logvar: Float[Tensor, "n d"]
) -> Float[Tensor, "*b"]:
    r"""Log-density of the aggregated posterior :math:`q(z) = \frac1N \sum_n N(z; \mu_n, \mathrm{diag}(\sigma_n^2))`.

    Source: Hoffman and Johnson (2016); Makhzani et al. (2015) for the name.
    """
    must_end_in("z", z.shape, mu.shape[1:])
    one_shape("mu and logvar", mu, logvar)
    # log N(z; mu, sigma²) is linear in (1, z, z²): one matrix product for all codes and Gaussians. In float64, because
    # a narrow Gaussian makes a small difference of large terms.
    mean, log_variance, points = mu.double(), logvar.double(), z.reshape(-1, z.shape[-1]).double()
    precision = torch.exp(-log_variance)
    constant = -0.5 * (math.log(2 * math.pi) + log_variance + mean.square() * precision).sum(dim=1, keepdim=True)
    coefficients = torch.cat([constant, mean * precision, -0.5 * precision], dim=1).T
    terms = torch.cat([torch.ones_like(points[:, :1]), points, points.square()], dim=1)
    parts = []
    for part in terms.split(max(1, BLOCK // len(mu))):
        log_probs = part @ coefficients
        top = log_probs.amax(dim=1, keepdim=True)
        # What is left out changes nothing, and exp takes ten times as long where its result is denormal.
        shares = (log_probs - top).clamp_(min=NEGLIGIBLE).exp_()
        parts.append(top[:, 0] + shares.sum(dim=1).log())
    return (torch.cat(parts).reshape(z.shape[:-1]) - math.log(len(mu))).to(z)


def log_ratio_to_prior(
    z: Float[Tensor, "*b d"], mu: Float[Tensor, "n d"], logvar: Float[Tensor, "n d"]
) -> Float[Tensor, "*b"]:
    """How dense the encoded images are beside the prior: log q(z) - log p(z), with the aggregated posterior q(z)."""
    return aggregated_log_prob(z, mu, logvar) - gaussian_log_prob(z, torch.zeros_like(z), torch.zeros_like(z))


class Shape(NamedTuple):
    """What can be measured on a digit; each (...), one number for each image.

    Attributes:
        ink: sum of the pixels.
        thickness: of the stroke, in pixels: twice the ink over the length of its outline.
        slant: lean of the digit to the right, in degrees from upright.
        width: extent across once the slant is undone, in pixels.
        height: extent from bottom to top, in pixels.
        loops: regions of paper that ink encloses: none in a 1, one in a 0, two in an 8.
    """

    ink: Tensor
    thickness: Tensor
    slant: Tensor
    width: Tensor
    height: Tensor
    loops: Tensor


def measure_shape(images: Float[Tensor, "*b 1 28 28"]) -> Shape:
    r"""Measure ink, stroke thickness, slant, width, height and loops of digits, without any skeleton.

    A stroke of thickness w and length L has the area wL and an outline of about 2L, so w is twice the area over
    the outline; the outline of a grey image is its total variation :math:`\sum |\nabla x|`, which a soft edge
    leaves unchanged. With :math:`C` the covariance of the ink's positions, u to the right and v upwards, the slant
    is :math:`\arctan(C_{uv} / C_{vv})`, the shear that deslanting undoes. An even bar of length L has variance
    :math:`L^2 / 12`: the extents are :math:`\sqrt{12}` standard deviations, that of the width after the slant is
    undone.
    """
    must_end_in("images", images.shape, (1, N_SIDE, N_SIDE))
    x = images[..., 0, :, :]
    ink = x.sum(dim=(-2, -1))
    if not (ink > 0).all():
        raise ValueError("an image without ink has no shape")
    axis = torch.arange(N_SIDE).to(x)
    u, v = axis.expand(N_SIDE, N_SIDE), axis.flip(0)[:, None].expand(N_SIDE, N_SIDE)

    def mean(values: Tensor) -> Tensor:
        return (x * values).sum(dim=(-2, -1)) / ink

    c_uu = mean(u * u) - mean(u).square()
    c_uv = mean(u * v) - mean(u) * mean(v)
    c_vv = (mean(v * v) - mean(v).square()).clamp(min=1 / 12)  # a single row of pixels is one pixel high
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    across, down = padded.diff(dim=-1), padded.diff(dim=-2)
    # Both differences at the corner between four pixels: the same for an image and its mirror image.
    across, down = (across[..., 1:, :] + across[..., :-1, :]) / 2, (down[..., 1:] + down[..., :-1]) / 2
    outline = torch.sqrt(across.square() + down.square()).sum(dim=(-2, -1))
    return Shape(
        ink=ink,
        thickness=2 * ink / outline,
        slant=torch.rad2deg(torch.atan2(c_uv, c_vv)),
        width=torch.sqrt(12 * (c_uu - c_uv.square() / c_vv).clamp(min=1 / 12)),
        height=torch.sqrt(12 * c_vv),
        loops=_count_loops(x),
    )


def _count_loops(x: Float[Tensor, "*b 28 28"]) -> Float[Tensor, "*b"]:
    """How many regions of paper are shut in, where ink is what is darker than half of the darkest pixel.

    Paper is joined along sides, ink at corners too. Paper that can be reached from the border is flooded. The regions
    left are counted by their Euler number, from the squares of two by two pixels; an island of ink within a region
    would cost it its count.

    Source: Gray (1971), for the Euler number.
    """
    paper = F.pad(x <= x.amax(dim=(-2, -1), keepdim=True) / 2, (1, 1, 1, 1), value=True)
    flooded = F.pad(torch.zeros_like(x, dtype=torch.bool), (1, 1, 1, 1), value=True)
    while True:
        wetter = flooded.clone()
        wetter[..., 1:, :] |= flooded[..., :-1, :]
        wetter[..., :-1, :] |= flooded[..., 1:, :]
        wetter[..., 1:] |= flooded[..., :-1]
        wetter[..., :-1] |= flooded[..., 1:]
        wetter &= paper
        if torch.equal(wetter, flooded):
            break
        flooded = wetter
    shut = paper & ~flooded
    corners = [shut[..., i : i + 29, j : j + 29] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]
    n = torch.stack(corners).sum(dim=0)
    diagonal = (n == 2) & (corners[0] == corners[3])

    def count(squares: Bool[Tensor, "*b 29 29"]) -> Tensor:
        return squares.sum(dim=(-2, -1))

    return ((count(n == 1) - count(n == 3) + 2 * count(diagonal)) / 4).to(x)


class Measured(NamedTuple):
    """Codes z (N, d) of images, what was measured on the images (N, F), and their labels y (N,)."""

    z: Tensor
    values: Tensor
    y: Tensor


def shares_explained(known: Measured, test: Measured, k: int = 20) -> dict[str, Float[Tensor, "f"]]:
    r"""How much of each measurement the codes explain: shares R² of its variance over the test images.

    A rule is fitted to the known images and predicts the measurements of the test images from their codes:
    :math:`R^2 = 1 - \sum (v - \hat v)^2 / \sum (v - \bar v)^2`, at most 1, and below 0 where the mean would be better.

    Returns:
        ``z1``, ``z2``, ...: a line in this coordinate; ``linear``: a plane over all of them; ``place``: the mean of
        the ``k`` nearest known codes, which stands for any smooth function. The last two with "in class" behind: a
        rule for each class, and the variance about the mean of the class.
    """
    whole = known._replace(y=torch.zeros_like(known.y)), test._replace(y=torch.zeros_like(test.y))
    shares = {}
    for i in range(known.z.shape[1]):
        one, other = (part._replace(z=part.z[:, i : i + 1]) for part in whole)
        shares[f"z{i + 1}"] = _share_explained(one, other)
    for suffix, (one, other) in {"": whole, " in class": (known, test)}.items():
        shares |= {f"linear{suffix}": _share_explained(one, other), f"place{suffix}": _share_explained(one, other, k)}
    return shares


def _share_explained(known: Measured, test: Measured, k: int | None = None) -> Float[Tensor, "f"]:
    """R² of a rule for each class: the mean of the k nearest, or without k an affine function by least squares."""
    predicted, means = torch.empty_like(test.values), torch.empty_like(test.values)
    for label in test.y.unique():
        here, there = test.y == label, known.y == label
        z, values = known.z[there], known.values[there]
        if k is None:
            fitted = torch.linalg.lstsq(F.pad(z, (0, 1), value=1.0), values).solution
            predicted[here] = F.pad(test.z[here], (0, 1), value=1.0) @ fitted
        else:
            predicted[here] = values[nearest(test.z[here], z, k)].mean(dim=1)
        means[here] = test.values[here].mean(dim=0)
    return 1 - (test.values - predicted).square().sum(dim=0) / (test.values - means).square().sum(dim=0)
