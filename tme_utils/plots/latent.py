"""Figures of the latent space: scatters, overlaps, maps, holes, traversals, paths."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, Rectangle

from tme_utils.plots.shared import CENTRED, COLOURS, PITCH, Labels, draw_manifold, draw_tiles, number, panel_axes

Codes = Float[Any, "n 2"]  # in the plane
Classes = Int[Any, " n"]  # from 0 on
Images = Float[Any, "n 1 28 28"]
# One colour, line and marker for one path: told apart without colour too.
PATHS: Any = {
    "straight": {"color": "#0173b2", "linestyle": "-", "marker": "o", "markersize": 5},
    "spherical": {"color": "#de8f05", "linestyle": "--", "marker": "s", "markersize": 5},
    "cross-fade": {"color": "#d55e00", "linestyle": ":", "marker": "^", "markersize": 5},
}


def latent_scatter(
    ax: Axes,
    mu: Codes,
    y: Classes,
    axis_names: Labels = ("$z_1$", "$z_2$"),
    class_names: Labels = (),
    places: Mapping[int, Sequence[float]] | None = None,
) -> None:
    """Draw means coloured by their labels; circles hold shares of the prior.

    Each class is named at its median, or small at its own place if ``places`` are given; ``class_names`` stand for the
    labels 0, 1, 2, ..., if given.
    """
    mu, y = np.asarray(mu), np.asarray(y)
    if mu.ndim != 2 or mu.shape[1] != 2 or len(mu) != len(y) or y.dtype.kind not in "iu" or (y < 0).any():
        raise ValueError(f"need mu (N, 2) and N labels, integers from 0 on, got {mu.shape} and {y.dtype} {y.shape}")
    palette = sns.color_palette(*(("colorblind", 10) if y.max() < 10 else ("husl", int(y.max()) + 1)))
    limit = max(4.0, float(np.abs(mu).max()) * 1.02)
    # Drawn in one call, in the file's order, so that no class is painted over all the others.
    ax.scatter(mu[:, 0], mu[:, 1], c=np.array(palette)[y], s=4, alpha=0.5, linewidths=0, rasterized=True)
    labels = np.unique(y)
    if places is None:
        medians = np.array([np.median(mu[y == label], axis=0) for label in labels])
        stretch, distance = (np.array([5.0, 1.0]), 0.12) if class_names else (1.0, 0.15)  # words are wider than high
        centres = _apart(medians / stretch, distance * limit) * stretch
    else:
        centres = np.array([places[label] for label in labels.tolist()])
    size, alpha = (14, 0.9) if places is None and not class_names else (10, 0.625)
    shape = "round,pad=0.2" if class_names else "circle,pad=0.2"
    for label, (z1, z2) in zip(labels, centres.tolist(), strict=True):
        box = {"facecolor": palette[label], "edgecolor": "black", "boxstyle": shape, "alpha": alpha}
        name = class_names[label] if class_names else str(label)
        ax.text(z1, z2, name, fontsize=size, fontweight="bold", zorder=5, bbox=box, **CENTRED)
    masses = np.array([0.5, 0.95, 0.999])
    radii = np.sqrt(-2 * np.log(1 - masses))  # within which the 2-D standard normal has these masses
    # The circles' names stand on one ray, the one that keeps farthest from the classes' names.
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None] * radii[:, None]
    distance = np.linalg.norm(rays[:, :, None] - centres, axis=-1).min(axis=(1, 2))
    box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.1", "alpha": 0.8}
    for mass, radius, (z1, z2) in zip(masses, radii, rays[distance.argmax()].tolist(), strict=True):
        ax.add_patch(Circle((0, 0), radius, fill=False, color=COLOURS["reference"], linestyle="--", linewidth=1.2))
        ax.text(z1, z2, f"{100 * mass:g} %", fontsize=10, zorder=4.5, bbox=box, **CENTRED)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=axis_names[0], ylabel=axis_names[1])


def _apart(points: Codes, distance: float) -> Codes:
    """Push points that are closer than ``distance`` away from one another, so that their names stay legible."""
    if np.ptp(points, axis=0).max() < 1e-3:  # of a collapsed model: no direction to push in
        angle = np.linspace(0, 2 * np.pi, len(points), endpoint=False)
        points = points + 1e-2 * distance * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for _ in range(200):
        gap = points[:, None] - points
        length = np.linalg.norm(gap, axis=-1, keepdims=True)
        points = points + np.where(length < distance, 0.1 * gap / np.maximum(length, 1e-9), 0).sum(axis=1)
    return points


def scatter_row(panels: Mapping[str, tuple[Codes, Sequence[str]]], y: Classes) -> Figure:
    """Side by side, the same images at two coordinates of several codes: title -> (codes, names of the axes)."""
    fig, axes = panel_axes(panels, (6 * len(panels), 6))
    for ax, (z, axis_names) in zip(axes, panels.values(), strict=True):
        latent_scatter(ax, z, y, axis_names)
    return fig


def _heatmap(ax: Axes, values: Any, spec: str, least: float, dark: float, **options: Any) -> AxesImage:
    """Colour a matrix; its entries of at least ``least`` are written in, white where they are above ``dark``."""
    for (i, j), value in np.ndenumerate(values):
        if abs(value) >= least:
            ax.text(j, i, number(value, spec), color="white" if abs(value) > dark else "black", **CENTRED)
    ax.tick_params(length=0)
    ax.set_frame_on(False)
    return ax.imshow(values, **options)


def overlap_matrices(matrices: Mapping[str, Float[Any, "label label_of_neighbour"]]) -> Figure:
    """Side by side, who the neighbours of each class are, in percent of its row; those below 0.5 % are left blank."""
    fig, axes = panel_axes(matrices, (5.8 * len(matrices), 5.6), sharey=True)
    for ax, matrix in zip(axes, matrices.values(), strict=True):
        _heatmap(ax, 100 * np.asarray(matrix), ".0f", least=0.5, dark=50, cmap="Blues", vmin=0, vmax=100)
        ax.set(xlabel="label of the neighbours", xticks=range(len(matrix)), yticks=range(len(matrix)))
    axes[0].set_ylabel("class")
    return fig


def holes(log_ratio: Float[Any, "m m"], images: Float[Any, "n n 1 28 28"], threshold: float) -> Figure:
    """Where the prior has mass but no image was encoded, q(z) / p(z) < threshold, beside what is decoded there.

    ``log_ratio`` is log q(z) - log p(z); both grids are of equal prior mass, with z_2 first, and m a multiple of n.
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
    frame: Any = {"facecolor": (COLOURS["kl"], 0.18), "edgecolor": COLOURS["kl"], "linewidth": 1}
    for i, j in np.argwhere((ratio < level).reshape(n, step, n, step).mean(axis=(1, 3)) >= 0.5):
        right.add_patch(Rectangle((j * PITCH, (n - 1 - i) * PITCH), PITCH, PITCH, **frame))
    return fig


def strips(panels: Mapping[str, Any], row_labels: Sequence[str], values: Sequence[float], xlabel: str) -> Figure:
    """Side by side, grids of images (rows, values, 1, 28, 28) decoded along lines of the latent space, a row each."""
    fig, axes = panel_axes(panels, (0.55 * len(panels) * (len(values) + 1) + 1.2, 1 + 0.5 * len(row_labels)))
    columns = [number(value) if len(values) <= 7 or i % 2 == 0 else "" for i, value in enumerate(values)]
    for ax, images in zip(axes, panels.values(), strict=True):
        draw_tiles(ax, images, row_labels if ax is axes[0] else (), columns)
        ax.set_xlabel(xlabel)
    return fig


def effect_maps(mean: Any, spread: Any, row_labels: Sequence[str], column_labels: Sequence[str]) -> Figure:
    """What each coordinate (row) does to each measurement (column), per unit and in its standard deviations."""
    titles = ["mean effect of one unit", "spread of the effect over the digits"]
    fig, axes = panel_axes(titles, (12, 1.6 + 0.36 * len(row_labels)), sharey=True)
    colours: Any = {"cmap": "PuOr_r", "vmin": -1, "vmax": 1, "aspect": "auto"}
    for ax, values in zip(axes, (mean, spread), strict=True):
        picture = _heatmap(ax, np.asarray(values), ".1f", least=0.05, dark=0.7, **colours)
        ax.set_xticks(range(len(column_labels)), column_labels)
        ax.set_yticks(range(len(row_labels)), row_labels)
    fig.colorbar(picture, ax=axes, label="standard deviations of the measurement", shrink=0.8, extend="both")
    return fig


def values_along(panels: Mapping[str, tuple[str, Mapping[str, tuple[Any, Any]]]], t: Any) -> Figure:
    """Quantities along paths: title -> (label of the vertical axis, path -> (values, standard errors)), all (T,)."""
    fig, axes = panel_axes(panels, (5.6 * len(panels), 3.9))
    for ax, (ylabel, curves) in zip(axes, panels.values(), strict=True):
        for name, (values, errors) in curves.items():
            ax.errorbar(np.asarray(t), np.asarray(values), np.asarray(errors), label=name, capsize=2, **PATHS[name])
        ax.set(xlabel="position $t$", ylabel=ylabel)
    axes[-1].legend()
    return fig


def poster(
    mu: Codes, y: Classes, z: Float[Any, "2"], image: Float[Any, "1 28 28"], hearts: Mapping[int, Sequence[float]]
) -> Figure:
    """A still of the explorer: the plane with the point z, classes named at their hearts, and the digit decoded."""
    z1, z2 = np.asarray(z).tolist()
    titles = ["a point of the plane", f"decoded at ({number(z1, '.2f')}, {number(z2, '.2f')})"]
    fig, (left, right) = panel_axes(titles, (10.5, 5.4), width_ratios=[1.1, 1])
    latent_scatter(left, mu, y, places=hearts)
    left.axvline(z1, color="black", linewidth=1)
    left.axhline(z2, color="black", linewidth=1)
    left.plot(z1, z2, "o", color="black", markerfacecolor="white", markersize=13, markeredgewidth=3, zorder=9)
    draw_tiles(right, np.asarray(image)[None, None])
    return fig


def plane_maps(maps: Mapping[str, tuple[Any, Sequence[float]]], classes: Any) -> Figure:
    """Lines of equal value on the plane, on a grid of equal prior mass: title -> (values (n, n), levels of the lines).

    The last panel shows which class (n, n) is seen at each place, named where it is widest. First index z_2. Colours
    run from violet at the lowest level to orange at the highest.
    """
    seen = np.asarray(classes)
    palette = np.array(sns.color_palette("colorblind", 10))
    place: Any = {"origin": "lower", "extent": (0, 1, 0, 1)}
    centres = (np.arange(len(seen)) + 0.5) / len(seen)
    fig, axes = panel_axes([*maps, "class that is seen"], (13, 8.8), (2, -(-(len(maps) + 1) // 2)))
    for ax, (values, levels) in zip(axes, maps.values(), strict=False):
        ax.imshow(np.asarray(values), cmap="PuOr_r", vmin=levels[0], vmax=levels[-1], alpha=0.5, **place)
        lines = ax.contour(centres, centres, np.asarray(values), levels, colors="black", linewidths=1)
        if len(levels) > 2:  # else the colours say it
            ax.clabel(lines, fontsize=10, fmt=number)
    axes[-1].imshow(0.4 + 0.6 * palette[seen], **place)
    for label in np.unique(seen):
        inside, outside = np.argwhere(seen == label), np.argwhere(np.pad(seen, 1, constant_values=-1) != label) - 1
        depth = [np.abs(outside - cell).max(axis=1).min() for cell in inside]
        i, j = inside[int(np.argmax(depth))]
        axes[-1].text(centres[j], centres[i], str(label), fontsize=15, fontweight="bold", **CENTRED)
    at = [-2, -1, 0, 1, 2]
    for ax in axes:
        for axis, name in [(ax.xaxis, "$z_1$"), (ax.yaxis, "$z_2$")]:
            axis.set_ticks([NormalDist().cdf(z) for z in at], labels=[number(z) for z in at])
            axis.set_label_text(name)
    return fig
