r"""Constructions in latent space: grids, traversals, paths, neighbours, the aggregated posterior; shapes of digits."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tme_utils.vae import as_int, gaussian_log_prob, must_end_in, one_shape

BLOCK = 4_000_000  # numbers at once: 32 MB in float64, and few enough blocks for two threads to share
N_SIDE = 28
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
    points = z.reshape(-1, 1, z.shape[-1]).expand(-1, len(mu), -1)
    parts = [gaussian_log_prob(p, mu, logvar).logsumexp(dim=1) for p in points.split(max(1, BLOCK // mu.numel()))]
    return torch.cat(parts).reshape(z.shape[:-1]) - math.log(len(mu))


class Shape(NamedTuple):
    """What can be measured on a digit; each (...), one number for each image.

    Attributes:
        ink: sum of the pixels.
        thickness: of the stroke, in pixels: twice the ink over the length of its outline.
        slant: lean of the digit to the right, in degrees from upright.
        width: extent across once the slant is undone, in pixels.
        height: extent from bottom to top, in pixels.
    """

    ink: Tensor
    thickness: Tensor
    slant: Tensor
    width: Tensor
    height: Tensor


def measure_shape(images: Float[Tensor, "*b 1 28 28"]) -> Shape:
    r"""Measure ink, stroke thickness, slant, width and height of digits, from moments and outline alone.

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
    )
