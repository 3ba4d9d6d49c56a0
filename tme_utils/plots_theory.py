"""Figures of the theory: the schema of the VAE, the posteriors, the bounds, the estimators. Arrays in, figures out."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from tme_utils.plots import COLOURS, STYLE

REGIONS = (0.5, 0.95)  # masses of the regions that are drawn for a density in the plane
GREYS = ("0.82", "0.55")  # of those regions, from the larger to the smaller
CORNERS = np.array([[-1, -1], [1, 1]])  # of a square around the origin
ENCODER, DECODER = COLOURS["train"], COLOURS["recon"]


def vae_schema(x: Any, probs: Any, x_hat: Any) -> Figure:
    """Draw the VAE from left to right, its two loss terms below the parts that they tie together.

    Args:
        x: the image, (28, 28), in [0, 1].
        probs: the decoder's pixel probabilities for it, (28, 28).
        x_hat: an image drawn from these probabilities, (28, 28).
    """
    with plt.rc_context(STYLE | {"font.size": 17}):
        fig, ax = plt.subplots(figsize=(13, 4.75))
        ax.set(xlim=(0, 26), ylim=(-1.4, 8.1), aspect="equal")
        ax.axis("off")
        y = 4.2  # height of the main line
        _picture(ax, x, (1.6, y), "image $x$")
        _network(ax, (4.3, 7.1), (1.9, 0.95), y, "encoder\n$q(z|x)$", ENCODER)
        _box(ax, (8.75, y), (2.5, 4.5), "", COLOURS["kl"])  # around what the encoder gives
        for height, name in [(y + 1.35, r"$\mu$"), (y - 1.35, r"$\log\,\sigma^2$")]:
            _box(ax, (8.75, height), (1.9, 1.2), name, ENCODER)
        _box(ax, (12.6, y), (3.3, 1.3), r"$z = \mu + \sigma \odot \epsilon$", "black")
        _box(ax, (12.6, y + 3.1), (2.9, 1.1), r"$\epsilon \sim N(0, I)$", COLOURS["reference"], dashed=True)
        _network(ax, (15.7, 18.5), (0.95, 1.9), y, "decoder\n$p(x|z)$", DECODER)
        _picture(ax, probs, (21.0, y), "$p(x_i = 1\\,|\\,z)$")
        _picture(ax, x_hat, (24.5, y), r"one draw $\hat{x}$")
        for start, end in [
            ((2.95, y), (4.3, y)),
            ((7.1, y + 0.5), (7.8, y + 1.2)),
            ((7.1, y - 0.5), (7.8, y - 1.2)),
            ((9.7, y + 1.2), (10.95, y + 0.35)),
            ((9.7, y - 1.2), (10.95, y - 0.35)),
            ((12.6, y + 2.55), (12.6, y + 0.65)),
            ((14.25, y), (15.7, y)),
            ((18.5, y), (19.65, y)),
            ((22.35, y), (23.15, y)),
        ]:
            ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, linewidth=1.8, color="0.25"))
        kl = r"$\mathrm{KL} = KL(\,q(z|x)\,\Vert\,N(0, I)\,)$"
        recon = r"$\mathrm{recon} = -E_{q(z|x)}[\,\log p(x|z)\,]$"
        ax.text(8.75, y - 2.85, kl, ha="center", va="center", color=COLOURS["kl"])
        ax.plot([1.6, 1.6, 21.0, 21.0], [y - 1.5, 0, 0, y - 1.5], color=DECODER, linewidth=2.2)
        ax.text(11.3, -0.75, recon, ha="center", va="center", color=DECODER)
        ax.text(16.6, 0.95, r"$\mathrm{loss} = \mathrm{recon} + \mathrm{KL}$", ha="center", va="center")
    return fig


def _picture(ax: Axes, image: Any, centre: tuple[float, float], name: str) -> None:
    (cx, cy), half = centre, 1.35
    extent = (cx - half, cx + half, cy - half, cy + half)
    ax.imshow(1 - np.asarray(image, dtype=float), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    ax.add_patch(Rectangle((cx - half, cy - half), 2 * half, 2 * half, fill=False, edgecolor="0.25", linewidth=1.5))
    ax.text(cx, cy + half + 0.3, name, ha="center", va="bottom")


def _network(
    ax: Axes, span: tuple[float, float], halves: tuple[float, float], y: float, name: str, colour: str
) -> None:
    (left, right), (first, last) = span, halves
    corners = [(left, y - first), (left, y + first), (right, y + last), (right, y - last)]
    ax.add_patch(Polygon(corners, facecolor=colour, edgecolor=colour, linewidth=2, joinstyle="round"))
    ax.text((left + right) / 2, y, name, ha="center", va="center", color="white", fontsize=16, linespacing=1.5)


def _box(
    ax: Axes, centre: tuple[float, float], size: tuple[float, float], name: str, colour: str, dashed: bool = False
) -> None:
    (cx, cy), (width, height) = centre, size
    ax.add_patch(
        FancyBboxPatch(
            (cx - width / 2, cy - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.3",
            facecolor="white",
            edgecolor=colour,
            linewidth=2.2,
            linestyle="--" if dashed else "-",
        )
    )
    ax.text(cx, cy, name, ha="center", va="center")


def region_levels(density: Any, masses: Sequence[float] = REGIONS) -> list[float]:
    """Levels of a density on a regular grid whose highest-density regions hold these shares of its mass.

    Args:
        density: values on the grid, any shape, up to a factor.
        masses: shares in (0, 1).

    Returns:
        One level for each mass.
    """
    values = np.sort(np.asarray(density, dtype=float).ravel())[::-1]
    share = np.cumsum(values) / values.sum()
    return [float(values[np.searchsorted(share, mass)]) for mass in masses]


def posteriors(z: Any, density: Any, mu: Any, std: Any, x: Any, gaps: Sequence[float]) -> Figure:
    """Draw the true posterior p(z|x) of a few images with the encoder's Gaussian q(z|x) over it.

    Both are drawn by their highest-density regions of 50 % and 95 %: filled for p, lines for q. Every panel shows
    the smallest square that holds both with a margin.

    Args:
        z: for each image a square grid of codes, (n, G, G, 2), z_1 along the last grid axis.
        density: p(z|x) there, (n, G, G).
        mu: means of q, (n, 2).
        std: standard deviations of q, (n, 2).
        x: the images, (n, 1, 28, 28).
        gaps: KL(q(z|x) || p(z|x)) of each, in nats.
    """
    z, density, mu, std, x = (np.asarray(a, dtype=float) for a in (z, density, mu, std, x))
    n_columns = -(-len(z) // 2)
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(2, n_columns, figsize=(3.9 * n_columns, 8.2), squeeze=False)
        for ax in axes.flat[len(z) :]:
            ax.axis("off")
        for i, ax in enumerate(axes.flat[: len(z)]):
            levels = [*region_levels(density[i])[::-1], float(density[i].max()) * 1.01]
            ax.contourf(z[i, ..., 0], z[i, ..., 1], density[i], levels=levels, colors=GREYS)
            for mass in REGIONS:
                size = 2 * std[i] * np.sqrt(-2 * np.log(1 - mass))
                ax.add_patch(Ellipse(mu[i], *size, fill=False, edgecolor=ENCODER, linewidth=2.2))
            ax.plot(*mu[i], "+", color=ENCODER, markersize=9, markeredgewidth=2)
            inset = ax.inset_axes((0.74, 0.74, 0.25, 0.25))
            inset.imshow(1 - x[i, 0], cmap="gray", vmin=0, vmax=1)
            inset.set(xticks=[], yticks=[])
            inset.spines[:].set(visible=True, color="0.6")
            ax.set(title=f"gap {gaps[i]:.2f} nats", xlabel="$z_1$", ylabel="$z_2$")
            both = np.concatenate([z[i][density[i] >= levels[0]], mu[i] - size / 2 * CORNERS])
            centre, half = (both.max(0) + both.min(0)) / 2, 0.8 * np.ptp(both, axis=0).max()
            ax.set(xlim=centre[0] + half * CORNERS[:, 0], ylim=centre[1] + half * CORNERS[:, 0], aspect="equal")
            ax.locator_params(nbins=4)
        fig.legend(
            handles=[
                Rectangle((0, 0), 1, 1, color=GREYS[1], label="true posterior $p(z|x)$: 50 %"),
                Rectangle((0, 0), 1, 1, color=GREYS[0], label="95 %"),
                Line2D([], [], color=ENCODER, label="encoder's $q(z|x)$: 50 % and 95 %"),
            ],
            loc="outside upper center",
            ncols=3,
        )
    return fig


def bounds(n_samples: Sequence[int], values: Any, exact: Any, shown: int) -> Figure:
    """Draw the bounds IW_K as the number K of samples grows: one image in nats, then what is missing for all.

    Args:
        n_samples: the K, from 1 (the ELBO) on, (m,).
        values: IW_K of each image, (n, m), in nats.
        exact: log p(x) of each, (n,), in nats.
        shown: index of the image on the left.
    """
    values, exact = np.asarray(values, dtype=float), np.asarray(exact, dtype=float)
    missing = exact[:, None] - values
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4))
        left.axhline(exact[shown], color=COLOURS["reference"], linestyle="--")
        left.fill_between(n_samples, values[shown], exact[shown], color=COLOURS["kl"], alpha=0.15, linewidth=0)
        left.plot(n_samples, values[shown], "o-", color=COLOURS["train"])
        height = missing[shown, 0]
        left.set_ylim(values[shown, 0] - 0.14 * height, exact[shown] + 0.16 * height)
        near: Any = {"textcoords": "offset points"}
        left.annotate(f"exact log p(x) = {exact[shown]:.2f}".replace("-", "−"), (1, exact[shown]), (0, 6), **near)
        text = f"ELBO = {values[shown, 0]:.2f}".replace("-", "−")
        left.annotate(text, (1, values[shown, 0]), (14, -6), color=COLOURS["train"], **near)
        left.annotate("$IW_K$", (n_samples[3], values[shown, 3]), (8, -16), color=COLOURS["train"], **near)
        left.set(ylabel="nats", title=f"one digit, gap {height:.2f} nats")
        shades = plt.get_cmap("Blues")(np.linspace(0.4, 1, len(exact)))
        for row, shade in zip(missing, shades, strict=True):
            right.plot(n_samples, np.where(row > 0, row, np.nan), "o-", color=shade, markersize=4)
            right.annotate(f"{row[0]:.2f}", (1, row[0]), (-7, 0), ha="right", va="center", fontsize=11, **near)
        right.set_yscale("log")
        title = f"all {len(exact)} digits: what is still missing"
        right.set(ylabel=r"$\log p(x) - IW_K$, nats", title=title, ylim=(0.05, None), xlim=(0.3, None))
        for ax in (left, right):
            ax.set_xscale("log", base=2)
            ax.set_xticks(list(n_samples)[::2], [str(k) for k in n_samples][::2])
            ax.tick_params(axis="x", which="minor", length=0)
            ax.set_xlabel("samples per image, $K$")
    return fig


def kl_shape(mu: Any, kl_of_mu: Any, logvar: Any, kl_of_logvar: Any) -> Figure:
    """Draw the KL of one coordinate, in nats, as mu moves at logvar = 0 and as logvar moves at mu = 0.

    Args:
        mu: means, (n,).
        kl_of_mu: KL there, (n,).
        logvar: log-variances, (m,).
        kl_of_logvar: KL there, (m,).
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
        axes[0].plot(mu, kl_of_mu, color=COLOURS["kl"])
        axes[0].set(xlabel=r"$\mu$   (at logvar = 0)", ylabel="KL of one coordinate, nats")
        axes[0].annotate(r"$\frac{1}{2}\mu^2$", (2.2, 2.42), (-62, 4), textcoords="offset points", fontsize=16)
        axes[1].plot(logvar, kl_of_logvar, color=COLOURS["kl"])
        axes[1].set(xlabel=r"logvar $= \log\,\sigma^2$   (at $\mu$ = 0)")
        axes[1].annotate("too sure:\na straight line", (-5.2, 2.6), ha="left", fontsize=12)
        axes[1].annotate("too vague:\nexponential", (2.2, 4.9), ha="right", fontsize=12)
        for ax in axes:
            ax.plot(0, 0, "o", color="black", markersize=8, clip_on=False, zorder=5)
            ax.set_ylim(0, 6)
        axes[0].annotate("0 at the prior", (0, 0), (0, 34), textcoords="offset points", ha="center", fontsize=12)
    return fig


def monte_carlo_error(n_samples: Any, errors: Any, slope: float, intercept: float) -> Figure:
    """Draw the root mean square error of a Monte Carlo estimate by its number of draws, with the fitted line.

    Args:
        n_samples: numbers of draws, (m,).
        errors: root mean square errors, (m,), in nats.
        slope: of log10(errors) by log10(n_samples).
        intercept: of the same line.
    """
    n_samples = np.asarray(n_samples, dtype=float)
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(7, 4))
        line = 10**intercept * n_samples**slope
        ax.loglog(
            n_samples, line, color=COLOURS["reference"], label=f"fitted line, slope {slope:.2f}".replace("-", "−")
        )
        ax.loglog(n_samples, errors, "o", color=COLOURS["kl"], markersize=8, label="error of the estimates")
        ax.set(xlabel="draws of $z$", ylabel="RMS error of the KL, nats")
        ax.legend(fontsize=12)
    return fig


def gradient_estimators(
    draws: Mapping[str, Any], exact: float, dims: Sequence[int], variances: Mapping[str, Any]
) -> Figure:
    """Draw single-draw estimates of one gradient by two estimators, and their variances as the dimension grows.

    Args:
        draws: name of the estimator -> its estimates, (n,).
        exact: the gradient that both estimate.
        dims: latent dimensions.
        variances: name of the estimator -> its variance for each dimension.
    """
    colours = dict(zip(draws, (COLOURS["train"], COLOURS["kl"]), strict=True))
    markers = dict(zip(draws, ("o-", "s--"), strict=True))
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.2))
        limit = float(np.quantile(np.abs(np.concatenate([np.asarray(d) - exact for d in draws.values()])), 0.99))
        bins = np.linspace(exact - limit, exact + limit, 161)
        for name, values in draws.items():
            left.hist(np.asarray(values), bins=bins, density=True, alpha=0.6, color=colours[name], label=name)
            right.loglog(dims, variances[name], markers[name], color=colours[name], label=name)
        left.axvline(exact, color="black", linestyle=":", label=f"exact gradient, {exact:g}")
        left.set(xlabel=r"one-draw estimate of $\partial / \partial \mu_1$", ylabel="density", title="each draw")
        left.legend(fontsize=11, loc="upper left")
        right.set_xscale("log", base=2)
        right.set_xticks(list(dims), [str(d) for d in dims])
        right.minorticks_off()
        right.set(xlabel="latent dimension", ylabel="variance of one draw", title="variance, by dimension")
        right.legend(fontsize=11, loc="center right")
    return fig


def price_of_information(betas: Any, trained: Any, collapsed: float, crossing: float, n_pixels: int) -> Figure:
    """Draw the loss recon + beta KL of a trained model and of the constant image, by the weight beta.

    Args:
        betas: the weights, (n,).
        trained: loss of the trained model at each, (n,), in nats per image.
        collapsed: loss of the constant image, whose KL is zero.
        crossing: the beta where both are equal.
        n_pixels: the beta that a mean over the pixels stands for.
    """
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(8, 4.4))
        ax.loglog(betas, trained, color=COLOURS["train"])
        ax.axhline(collapsed, color=COLOURS["kl"], linestyle="--")
        near: Any = {"textcoords": "offset points", "fontsize": 12}
        ax.annotate("trained model: recon + β KL", (13, 2300), color=COLOURS["train"], fontsize=12)
        ax.annotate("mean image, no code: KL = 0", (30, collapsed), (0, -17), color=COLOURS["kl"], **near)
        for beta, text, side in [
            (1, "β = 1\nsum over pixels", "left"),
            (crossing, f"β = {crossing:.1f}\nas good as nothing", "left"),
            (n_pixels, f"β = {n_pixels}\nmean over pixels", "right"),
        ]:
            ax.axvline(beta, color=COLOURS["reference"], linestyle=":", linewidth=1.5)
            shift = 5 if side == "left" else -5
            ax.annotate(text, (beta, 13_000), (shift, 0), ha=side, va="center", **near)
        ax.set(xlabel="β, weight of the KL", ylabel="loss, nats per image", ylim=(80, 25_000))
    return fig
