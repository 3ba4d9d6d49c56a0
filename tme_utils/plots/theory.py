"""Figures of the theory: the schema of the VAE, the posteriors, the bounds, the estimators."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from tme_utils.plots.shared import CENTRED, COLOURS, log2_axis, note, number, panel_axes

Picture = Float[Any, "28 28"]
Arrays = Mapping[str, Any]  # by the name of an estimator
REGIONS = {0.5: "0.55", 0.95: "0.82"}  # mass of a region that is drawn for a density in the plane -> its grey
CORNERS = np.array([[-1, -1], [1, 1]])  # of a square around the origin
ENCODER, DECODER, KL, REFERENCE = (COLOURS[name] for name in ("train", "recon", "kl", "reference"))


def vae_schema(x: Picture, probs: Picture, x_hat: Picture) -> Figure:
    """The VAE from an image to one drawn from its ``probs``, and below, the loss terms with the parts that they tie."""
    with plt.rc_context({"font.size": 17}):
        fig, ax = plt.subplots(figsize=(13, 4.75))
        ax.set(xlim=(0, 26), ylim=(-5.6, 3.9), aspect="equal")  # the main line is at height 0
        ax.axis("off")
        pictures = [(1.6, x, "image $x$"), (21, probs, "$p(x_i = 1\\,|\\,z)$"), (24.5, x_hat, r"one draw $\hat{x}$")]
        for middle, image, name in pictures:
            extent = (middle - 1.35, middle + 1.35, -1.35, 1.35)
            ax.imshow(1 - np.asarray(image, float), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
            ax.add_patch(Rectangle((middle - 1.35, -1.35), 2.7, 2.7, fill=False, edgecolor="0.25", linewidth=1.5))
            ax.text(middle, 1.65, name, ha="center", va="bottom")
        networks = [(4.3, 1.9, 0.95, "encoder\n$q(z|x)$", ENCODER), (15.7, 0.95, 1.9, "decoder\n$p(x|z)$", DECODER)]
        for left, first, last, name, colour in networks:  # first and last: half the height at the left and at the right
            corners = [(left, -first), (left, first), (left + 2.8, last), (left + 2.8, -last)]
            ax.add_patch(Polygon(corners, color=colour, linewidth=2, joinstyle="round"))
            ax.text(left + 1.4, 0, name, color="white", fontsize=16, linespacing=1.5, **CENTRED)
        for middle, height, width, tall, name, colour, line in [
            (8.75, 0, 2.5, 4.5, "", KL, "-"),  # around what the encoder gives
            (8.75, 1.35, 1.9, 1.2, r"$\mu$", ENCODER, "-"),
            (8.75, -1.35, 1.9, 1.2, r"$\log\,\sigma^2$", ENCODER, "-"),
            (12.6, 0, 3.3, 1.3, r"$z = \mu + \sigma \odot \epsilon$", "black", "-"),
            (12.6, 3.1, 2.9, 1.1, r"$\epsilon \sim N(0, I)$", REFERENCE, "--"),
        ]:
            corner, shape = (middle - width / 2, height - tall / 2), "round,pad=0,rounding_size=0.3"
            ax.add_patch(FancyBboxPatch(corner, width, tall, shape, fc="white", ec=colour, lw=2.2, ls=line))
            ax.text(middle, height, name, **CENTRED)
        arrows: Any = [(2.95, 0, 4.3, 0), (14.25, 0, 15.7, 0), (18.5, 0, 19.65, 0), (22.35, 0, 23.15, 0)]
        arrows += [(7.1, 0.5, 7.8, 1.2), (7.1, -0.5, 7.8, -1.2), (9.7, 1.2, 10.95, 0.35), (9.7, -1.2, 10.95, -0.35)]
        for *tail, to_x, to_y in [*arrows, (12.6, 2.55, 12.6, 0.65)]:
            ax.add_patch(FancyArrowPatch(tail, (to_x, to_y), arrowstyle="-|>", mutation_scale=18, lw=1.8, color="0.25"))
        ax.text(8.75, -2.85, r"$\mathrm{KL} = KL(\,q(z|x)\,\Vert\,N(0, I)\,)$", color=KL, **CENTRED)
        ax.plot([1.6, 1.6, 21, 21], [-1.5, -4.2, -4.2, -1.5], color=DECODER, linewidth=2.2)
        ax.text(11.3, -4.95, r"$\mathrm{recon} = -E_{q(z|x)}[\,\log p(x|z)\,]$", color=DECODER, **CENTRED)
        ax.text(16.6, -3.25, r"$\mathrm{loss} = \mathrm{recon} + \mathrm{KL}$", **CENTRED)
    return fig


def region_levels(density: Float[Any, "..."]) -> list[float]:
    """Levels of a density on a regular grid, up to a factor, whose highest-density regions hold 50 % and 95 % of it."""
    values = np.sort(np.asarray(density, dtype=float).ravel())[::-1]
    share = np.cumsum(values) / values.sum()
    return [float(values[np.searchsorted(share, mass)]) for mass in REGIONS]


def posteriors(z: Any, density: Any, mu: Any, std: Any, x: Any, gaps: Sequence[float]) -> Figure:
    """The true posterior p(z|x) of images x (n, 1, 28, 28), by its density (n, G, G) on grids of codes z (n, G, G, 2).

    Over it the encoder's Gaussian q(z|x) of mu and std, (n, 2); both are drawn by their highest-density regions of
    50 % and 95 %. z_1 runs along the last grid axis; ``gaps`` are KL(q(z|x) || p(z|x)), in nats.
    """
    z, density, mu, std, x = (np.asarray(a, dtype=float) for a in (z, density, mu, std, x))
    n_columns = -(-len(z) // 2)
    fig, axes = panel_axes([f"gap {gap:.2f} nats" for gap in gaps], (3.9 * n_columns, 8.2), (2, n_columns))
    for i, ax in enumerate(axes):
        levels = [*region_levels(density[i])[::-1], float(density[i].max()) * 1.01]
        ax.contourf(z[i, ..., 0], z[i, ..., 1], density[i], levels=levels, colors=[*REGIONS.values()][::-1])
        for mass in REGIONS:
            size = 2 * std[i] * np.sqrt(-2 * np.log(1 - mass))
            ax.add_patch(Ellipse(mu[i], *size, fill=False, edgecolor=ENCODER, linewidth=2.2))
        ax.plot(*mu[i], "+", color=ENCODER, markersize=9, markeredgewidth=2)
        inset = ax.inset_axes((0.74, 0.74, 0.25, 0.25), xticks=[], yticks=[])
        inset.imshow(1 - x[i, 0], cmap="gray", vmin=0, vmax=1)
        inset.spines[:].set(visible=True, color="0.6")
        both = np.concatenate([z[i][density[i] >= levels[0]], mu[i] - size / 2 * CORNERS])
        centre, half = (both.max(0) + both.min(0)) / 2, 0.8 * np.ptp(both, axis=0).max()
        ax.axis((centre + half * CORNERS).T.ravel())
        ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
        ax.locator_params(nbins=4)
    names = ["true posterior $p(z|x)$: 50 %", "95 %"]
    handles: Any = [Rectangle((0, 0), 1, 1, color=c, label=n) for c, n in zip(REGIONS.values(), names, strict=True)]
    handles.append(Line2D([], [], color=ENCODER, label="encoder's $q(z|x)$: 50 % and 95 %"))
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    return fig


def bounds(n_samples: Sequence[int], values: Float[Any, "n m"], exact: Float[Any, " n"], shown: int) -> Figure:
    """The bounds IW_K below the exact log p(x), in nats, by their samples K from 1 (the ELBO): one image, then all."""
    values, exact = np.asarray(values, dtype=float), np.asarray(exact, dtype=float)
    missing = exact[:, None] - values
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4))
    bound, top, gap = values[shown], exact[shown], missing[shown, 0]
    left.axhline(top, color=REFERENCE, linestyle="--")
    left.fill_between(n_samples, bound, top, color=KL, alpha=0.15, linewidth=0)
    left.plot(n_samples, bound, "o-", color=ENCODER)
    note(left, f"exact log p(x) = {number(top, '.2f')}", (1, top), (0, 6))
    note(left, f"ELBO = {number(bound[0], '.2f')}", (1, bound[0]), (14, -6), color=ENCODER)
    note(left, "$IW_K$", (n_samples[3], bound[3]), (8, -16), color=ENCODER)
    left.set(ylabel="nats", title=f"one digit, gap {gap:.2f} nats", ylim=(bound[0] - 0.14 * gap, top + 0.16 * gap))
    for row, shade in zip(missing, plt.get_cmap("Blues")(np.linspace(0.4, 1, len(exact))), strict=True):
        right.plot(n_samples, np.where(row > 0, row, np.nan), "o-", color=shade, markersize=4)
        note(right, f"{row[0]:.2f}", (1, row[0]), (-7, 0), ha="right", va="center", fontsize=11)
    right.set(yscale="log", ylim=(0.05, None), xlim=(0.3, None), ylabel=r"$\log p(x) - IW_K$, nats")
    right.set_title(f"all {len(exact)} digits: what is still missing")
    for ax in (left, right):
        log2_axis(ax, n_samples[::2], "samples per image, $K$")
    return fig


def kl_shape(mu: Any, kl_of_mu: Any, logvar: Any, kl_of_logvar: Any) -> Figure:
    """The KL of one coordinate, in nats, as mu (n,) moves at logvar = 0 and as logvar (m,) moves at mu = 0."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for ax, axis, kl in [(left, mu, kl_of_mu), (right, logvar, kl_of_logvar)]:
        ax.plot(axis, kl, color=KL)
        ax.plot(0, 0, "o", color="black", markersize=8, clip_on=False, zorder=5)
    left.set(xlabel=r"$\mu$   (at logvar = 0)", ylabel="KL of one coordinate, nats", ylim=(0, 6))
    right.set_xlabel(r"logvar $= \log\,\sigma^2$   (at $\mu$ = 0)")
    note(left, r"$\frac{1}{2}\mu^2$", (2.2, 2.42), (-62, 4), fontsize=16)
    note(left, "0 at the prior", (0, 0), (0, 34), ha="center")
    right.text(-5.2, 2.6, "too sure:\na straight line")
    right.text(2.2, 4.9, "too vague:\nexponential", ha="right")
    return fig


def gradient_estimators(draws: Arrays, exact: float, dims: Sequence[int], variances: Arrays) -> Figure:
    """Single draws (n,) of two estimators of the gradient ``exact``, and their variances by latent dimension."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.2))
    limit = np.quantile(np.abs(np.concatenate([*draws.values()]) - exact), 0.99)
    shown = (exact - limit, exact + limit)
    for (name, values), colour, style in zip(draws.items(), (COLOURS["train"], KL), ("o-", "s--"), strict=True):
        left.hist(np.asarray(values), bins=160, range=shown, density=True, alpha=0.6, color=colour, label=name)
        right.loglog(dims, variances[name], style, color=colour, label=name)
    left.axvline(exact, color="black", linestyle=":", label=f"exact gradient, {exact:g}")
    left.set(xlabel=r"one-draw estimate of $\partial / \partial \mu_1$", ylabel="density", title="each draw")
    left.legend(fontsize=11, loc="upper left")
    right.set(ylabel="variance of one draw", title="variance, by dimension")
    right.minorticks_off()
    log2_axis(right, dims, "latent dimension")
    right.legend(fontsize=11, loc="center right")
    return fig
