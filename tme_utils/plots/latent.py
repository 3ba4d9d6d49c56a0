"""Figures of the latent space: scatters, overlaps, holes, traversals, paths, walks."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from string import ascii_uppercase
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from tme_utils.plots.shared import (
    CENTRED,
    COLOURS,
    PITCH,
    bare,
    draw_manifold,
    draw_tiles,
    latent_scatter,
    note,
    number,
    panel_axes,
)

# One colour, line and marker for one path: told apart without colour too.
PATHS: Any = {
    "straight": {"color": "#0173b2", "linestyle": "-", "marker": "o", "markersize": 5},
    "spherical": {"color": "#de8f05", "linestyle": "--", "marker": "s", "markersize": 5},
    "cross-fade": {"color": "#d55e00", "linestyle": ":", "marker": "^", "markersize": 5},
}
HOLE = "#d55e00"


def scatter_row(panels: Mapping[str, tuple[Any, Sequence[str]]], y: Any) -> Figure:
    """Side by side, the same images at two coordinates of several codes: title -> (codes (N, 2), names of the axes)."""
    fig, axes = panel_axes(panels, (6 * len(panels), 6))
    for ax, (z, axis_names) in zip(axes, panels.values(), strict=True):
        latent_scatter(ax, z, y, axis_names)
    return fig


def _heatmap(ax: Axes, values: Any, spec: str, least: float, dark: float, **options: Any) -> AxesImage:
    """Colour a matrix; its entries of at least ``least`` are written in, white where they are above ``dark``."""
    for (i, j), value in np.ndenumerate(values):
        if abs(value) >= least:
            ax.text(j, i, number(value, spec), color="white" if abs(value) > dark else "black", **CENTRED)
    bare(ax)
    return ax.imshow(values, **options)


def overlap_matrices(matrices: Mapping[str, Any]) -> Figure:
    """Side by side, who the neighbours of each class are, in percent; shares below 0.5 % are left blank.

    A row of a matrix (10, 10) is a class and sums to 1; a column is the label of its neighbours.
    """
    fig, axes = panel_axes(matrices, (5.8 * len(matrices), 5.6), sharey=True)
    for ax, matrix in zip(axes, matrices.values(), strict=True):
        _heatmap(ax, 100 * np.asarray(matrix), ".0f", least=0.5, dark=50, cmap="Blues", vmin=0, vmax=100)
        ax.set(xlabel="label of the neighbours", xticks=range(10), yticks=range(10))
    axes[0].set_ylabel("class")
    return fig


def holes(log_ratio: Any, images: Any, threshold: float) -> Figure:
    """Where the prior has mass but no image was encoded, beside what is decoded there; both axes are quantiles.

    ``log_ratio`` (m, m) is log q(z) - log p(z) on a grid of equal prior mass, ``images`` (n, n, 1, 28, 28) are decoded
    on a coarser one, m a multiple of n; first index z_2. A point with q(z) / p(z) below the threshold lies in a hole.
    """
    ratio, n = np.asarray(log_ratio) / np.log(10), len(images)
    if ratio.ndim != 2 or ratio.shape[0] != ratio.shape[1] or len(ratio) % n:
        raise ValueError(f"log_ratio must be (m, m) with m a multiple of {n}, got {ratio.shape}")
    step, level = len(ratio) // n, np.log10(threshold)
    fig, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2))
    shown = np.maximum(ratio, -9)  # an empty place may be farther away than exp can tell
    picture = left.imshow(shown, cmap="PuOr_r", vmin=-2, vmax=2, origin="lower", extent=(0, 1, 0, 1))
    centres = (np.arange(len(ratio)) + 0.5) / len(ratio)
    left.contour(centres, centres, shown, [level], colors="black", linewidths=1, linestyles="solid")
    at = [-2, -1, 0, 1, 2]
    for axis, name in [(left.xaxis, "$z_1$"), (left.yaxis, "$z_2$")]:
        axis.set_ticks([NormalDist().cdf(z) for z in at], labels=[number(z) for z in at])
        axis.set_label_text(f"{name}, in quantiles of the prior")
    left.set_title("density of the encoded images over the prior's")
    bar = fig.colorbar(picture, ax=left, shrink=0.8, extend="both", label="q(z) / p(z)")
    bar.set_ticks(at, labels=["1/100", "1/10", "1", "10", "100"])
    draw_manifold(right, images, f"decoded; framed: mostly hole, q(z) < {threshold:g} p(z)")
    mostly = (ratio < level).reshape(n, step, n, step).mean(axis=(1, 3)) >= 0.5
    for i, j in np.argwhere(mostly):
        corner = (j * PITCH, (n - 1 - i) * PITCH)
        right.add_patch(Rectangle(corner, PITCH, PITCH, facecolor=HOLE, alpha=0.18, edgecolor="none"))
        right.add_patch(Rectangle(corner, PITCH, PITCH, fill=False, edgecolor=HOLE, linewidth=1))
    return fig


def strips(panels: Mapping[str, Any], row_labels: Sequence[str], values: Sequence[float], xlabel: str) -> Figure:
    """Side by side, rows of images (D, V, 1, 28, 28) decoded along lines of the latent space, at V values each."""
    fig, axes = panel_axes(panels, (0.55 * len(panels) * (len(values) + 1) + 1.2, 1 + 0.5 * len(row_labels)))
    columns = [number(value) if len(values) <= 7 or i % 2 == 0 else "" for i, value in enumerate(values)]
    for ax, images in zip(axes, panels.values(), strict=True):
        stack, labels = np.asarray(images).reshape(-1, 1, 28, 28), row_labels if ax is axes[0] else ()
        draw_tiles(ax, stack, len(values), labels, column_labels=columns)
        ax.set_xlabel(xlabel)
    return fig


def effect_maps(mean: Any, spread: Any, row_labels: Sequence[str], column_labels: Sequence[str]) -> Figure:
    """What each of D coordinates does to each of F measurements: mean and spread (D, F) over base digits.

    Of the change per unit of the coordinate, in standard deviations of the measurement.
    """
    titles = ["mean effect of one unit", "spread of the effect over the digits"]
    fig, axes = panel_axes(titles, (12, 1.6 + 0.36 * len(row_labels)), sharey=True)
    colours: Any = {"cmap": "PuOr_r", "vmin": -1, "vmax": 1, "aspect": "auto"}
    for ax, values in zip(axes, (mean, spread), strict=True):
        picture = _heatmap(ax, np.asarray(values), ".1f", least=0.05, dark=0.7, **colours)
        ax.set_xticks(range(len(column_labels)), column_labels)
        ax.set_yticks(range(len(row_labels)), row_labels)
    fig.colorbar(picture, ax=axes, label="standard deviations of the measurement", shrink=0.8, extend="both")
    return fig


def norms_along(panels: Mapping[str, tuple[Mapping[str, Any], tuple[float, float, float]]], t: Any) -> Figure:
    """Norms (n_pairs, T) of the codes along paths, at positions t (T,): their mean and a band of their middle 80 %.

    Beside a panel's norms, by path, stand the quantiles 2.5 %, 50 % and 97.5 % of the norm of the prior's draws.
    """
    fig, axes = panel_axes(panels, (5.6 * len(panels), 3.9))
    for ax, (curves, (low, median, high)) in zip(axes, panels.values(), strict=True):
        ax.axhspan(low, high, color="0.92", zorder=0)
        ax.axhline(median, color=COLOURS["reference"], linewidth=1.2)
        note(ax, "prior: median, 95 %", (0.02, high), (0, -14), fontsize=11)
        for name, norms in curves.items():
            band = np.quantile(np.asarray(norms), [0.1, 0.9], axis=0)
            ax.fill_between(np.asarray(t), *band, color=PATHS[name]["color"], alpha=0.2)
            ax.plot(t, np.asarray(norms).mean(axis=0), label=name, **PATHS[name])
        ax.set(xlabel="position $t$", ylim=(0, None))
    axes[0].set_ylabel("norm of the code")
    axes[-1].legend(loc="lower right")
    return fig


def values_along(panels: Mapping[str, tuple[str, Mapping[str, tuple[Any, Any]]]], t: Any) -> Figure:
    """Quantities along paths: title -> (label of the vertical axis, path -> (values, standard errors)), all (T,)."""
    fig, axes = panel_axes(panels, (5.6 * len(panels), 3.9))
    for ax, (ylabel, curves) in zip(axes, panels.values(), strict=True):
        for name, (values, errors) in curves.items():
            position, height, error = (np.asarray(array) for array in (t, values, errors))
            ax.errorbar(position, height, error, label=name, capsize=2, **PATHS[name])
        ax.set(xlabel="position $t$", ylabel=ylabel)
    axes[-1].legend()
    return fig


def walks(mu: Any, y: Any, paths: Mapping[str, Any], images: Mapping[str, Any]) -> Figure:
    """Walks through the plane, named A, B and so on: on the left the paths, on the right what is decoded along them.

    A walk has codes (T, 2) and decoded images (V, 1, 28, 28), as many for every walk; behind them stand the posterior
    means (N, 2) of images with their labels (N,).
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(15, 5.6), width_ratios=[1, 1.6])
    latent_scatter(left, mu, y)
    left.collections[0].set_alpha(0.25)
    lines = [np.asarray(path, dtype=float) for path in paths.values()]
    limit = 1.15 * max(float(np.abs(points).max()) for points in lines)
    count = {1: "one walk", 5: "five walks"}.get(len(lines), f"{len(lines)} walks")
    left.set(xlim=(-limit, limit), ylim=(-limit, limit), title=f"{count}, from ○ to ●")
    for text in left.texts:
        text.set_visible(max(map(abs, text.get_position())) < limit)
    taken = [text.get_position() for text in left.texts] + [tuple(points[end]) for points in lines for end in (0, -1)]
    outline = [withStroke(linewidth=5, foreground="white")]
    box = {"facecolor": "black", "edgecolor": "white", "boxstyle": "square,pad=0.2"}
    for letter, points in zip(ascii_uppercase, lines, strict=False):
        left.plot(*points.T, color="black", linewidth=2, zorder=4, path_effects=outline)
        left.plot(*points[0], "o", color="black", markerfacecolor="white", markersize=7, zorder=5)
        left.plot(*points[-1], "o", color="black", markersize=7, zorder=5)
        # The letter stands where the path is farthest from other names.
        distance = np.linalg.norm(points[:, None] - np.array(taken), axis=-1).min(axis=1)
        taken.append(tuple(points[distance.argmax()]))
        left.text(*taken[-1], letter, zorder=6, color="white", fontsize=12, fontweight="bold", bbox=box, **CENTRED)
    stack = np.concatenate([np.asarray(images[name]) for name in paths])
    labels = [f"{letter}  {name}" for letter, name in zip(ascii_uppercase, paths, strict=False)]
    draw_tiles(right, stack, len(stack) // len(paths), labels, "what is decoded on the way")
    return fig


def poster(mu: Any, y: Any, z: Any, image: Any) -> Figure:
    """A still of the explorer: the plane with the point z (2,) chosen, and the digit (1, 28, 28) decoded there."""
    z1, z2 = np.asarray(z).tolist()
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 5.4), width_ratios=[1.1, 1])
    latent_scatter(left, mu, y)
    left.axvline(z1, color="black", linewidth=1)
    left.axhline(z2, color="black", linewidth=1)
    left.plot(z1, z2, "o", color="black", markerfacecolor="white", markersize=13, markeredgewidth=3, zorder=9)
    left.set_title("choose a point of the plane")
    draw_tiles(right, np.asarray(image)[None], 1, title=f"decoded at ({number(z1, '.2f')}, {number(z2, '.2f')})")
    return fig
