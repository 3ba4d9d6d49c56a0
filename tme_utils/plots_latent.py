"""Figures of the latent space: scatters, overlaps, holes, traversals, paths, walks. Arrays in, figures out."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from string import ascii_uppercase
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from tme_utils.plots import COLOURS, STYLE, draw_manifold, draw_tiles, latent_scatter

# One colour, line and marker for one path: told apart without colour too.
PATHS: Any = {
    "straight": {"color": "#0173b2", "linestyle": "-", "marker": "o"},
    "spherical": {"color": "#de8f05", "linestyle": "--", "marker": "s"},
    "cross-fade": {"color": "#d55e00", "linestyle": ":", "marker": "^"},
}
HOLE = "#d55e00"
IMAGE = 29  # pixels from one tile to the next


def scatter_row(panels: Mapping[str, tuple[Any, Sequence[str]]], y: Any) -> Figure:
    """Side by side, the same images at two coordinates of several codes, coloured by label.

    Args:
        panels: title -> (codes (N, 2), names of the two axes).
        y: labels 0 to 9, (N,).
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 6), squeeze=False)
        for ax, (title, (z, axis_names)) in zip(axes[0], panels.items(), strict=True):
            latent_scatter(ax, z, y, axis_names)
            ax.set_title(title)
    return fig


def overlap_matrices(matrices: Mapping[str, Any]) -> Figure:
    """Side by side, who the neighbours of each class are, in percent; shares below 0.5 % are left blank.

    Args:
        matrices: title -> shares (10, 10): row the class, column the label of its neighbours; rows sum to 1.
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, len(matrices), figsize=(5.8 * len(matrices), 5.6), squeeze=False, sharey=True)
        for ax, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
            shares = 100 * np.asarray(matrix)
            ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.5:
                    ax.text(j, i, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else "black")
            ax.set(title=title, xlabel="label of the neighbours", xticks=range(10), yticks=range(10))
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        axes[0, 0].set_ylabel("class")
    return fig


def holes(log_ratio: Any, images: Any, threshold: float) -> Figure:
    """Where the prior has mass but no image was encoded, beside what is decoded there; both axes are quantiles.

    Args:
        log_ratio: log q(z) - log p(z) on a grid of equal prior mass, (m, m), first index z_2.
        images: the decoded grid, (n, n, 1, 28, 28), first index z_2; m is a multiple of n.
        threshold: q(z) / p(z) below which a point lies in a hole.
    """
    ratio, n = np.asarray(log_ratio) / np.log(10), len(images)
    if ratio.ndim != 2 or ratio.shape[0] != ratio.shape[1] or len(ratio) % n:
        raise ValueError(f"log_ratio must be (m, m) with m a multiple of {n}, got {ratio.shape}")
    step = len(ratio) // n
    is_hole = ratio < np.log10(threshold)
    mostly = is_hole.reshape(n, step, n, step).mean(axis=(1, 3)) >= 0.5
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2))
        shown = np.maximum(ratio, -9)  # an empty place may be farther away than exp can tell
        picture = left.imshow(shown, cmap="PuOr_r", vmin=-2, vmax=2, origin="lower", extent=(0, 1, 0, 1))
        centres = (np.arange(len(ratio)) + 0.5) / len(ratio)
        edge = {"colors": "black", "linewidths": 1, "linestyles": "solid"}
        left.contour(centres, centres, shown, levels=[np.log10(threshold)], **edge)
        at = [-2, -1, 0, 1, 2]
        places = [NormalDist().cdf(value) for value in at]
        left.set_xticks(places, [_number(value) for value in at])
        left.set_yticks(places, [_number(value) for value in at])
        left.set(xlabel="$z_1$, in quantiles of the prior", ylabel="$z_2$, in quantiles of the prior")
        left.set_title("density of the encoded images over the prior's")
        bar = fig.colorbar(picture, ax=left, shrink=0.8, extend="both", ticks=at)
        bar.ax.set_yticklabels(["1/100", "1/10", "1", "10", "100"])
        bar.set_label("q(z) / p(z)")
        draw_manifold(right, images, f"decoded; framed: mostly hole, q(z) < {threshold:g} p(z)")
        for i, j in np.argwhere(mostly):
            corner = (j * IMAGE, (n - 1 - i) * IMAGE)
            right.add_patch(Rectangle(corner, IMAGE, IMAGE, facecolor=HOLE, alpha=0.18, edgecolor="none"))
            right.add_patch(Rectangle(corner, IMAGE, IMAGE, fill=False, edgecolor=HOLE, linewidth=1))
    return fig


def strips(panels: Mapping[str, Any], row_labels: Sequence[str], values: Sequence[float], xlabel: str) -> Figure:
    """Side by side, rows of images decoded along lines of the latent space, a column for each position.

    Args:
        panels: title -> images (D, V, 1, 28, 28).
        row_labels: names of the D rows, the same in every panel.
        values: the V positions.
        xlabel: what they are.
    """
    with plt.rc_context(STYLE):
        size = (0.55 * len(panels) * (len(values) + 1) + 1.2, 1 + 0.5 * len(row_labels))
        fig, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
        for ax, (title, images) in zip(axes[0], panels.items(), strict=True):
            labels = row_labels if ax is axes[0, 0] else ()
            draw_tiles(ax, np.asarray(images).reshape(-1, 1, 28, 28), len(values), labels, title)
            every = 1 if len(values) <= 7 else 2
            places = [15 + IMAGE * i for i in range(len(values))]
            ax.set_xticks(places[::every], [_number(value) for value in values[::every]])
            ax.set_xlabel(xlabel)
    return fig


def effect_maps(mean: Any, spread: Any, row_labels: Sequence[str], column_labels: Sequence[str]) -> Figure:
    """What each coordinate does to each measurement, on average over base digits, and how much that differs.

    Args:
        mean: change of each measurement per unit of each coordinate, (D, F), in standard deviations of the former.
        spread: standard deviation of that change over the base digits, (D, F).
        row_labels: names of the D coordinates.
        column_labels: names of the F measurements.
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 2, figsize=(12, 1.6 + 0.36 * len(row_labels)), sharey=True)
        for ax, values, title in [
            (axes[0], np.asarray(mean), "mean effect of one unit"),
            (axes[1], np.asarray(spread), "spread of the effect over the digits"),
        ]:
            picture = ax.imshow(values, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
            for (i, j), value in np.ndenumerate(values):
                if abs(value) >= 0.05:
                    colour = "white" if abs(value) > 0.7 else "black"
                    ax.text(j, i, f"{value:.1f}".replace("-", "−"), ha="center", va="center", color=colour)
            ax.set_xticks(range(len(column_labels)), column_labels)
            ax.set_yticks(range(len(row_labels)), row_labels)
            ax.set_title(title)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        fig.colorbar(picture, ax=axes, label="standard deviations of the measurement", shrink=0.8, extend="both")
    return fig


def norms_along(panels: Mapping[str, tuple[Mapping[str, Any], tuple[float, float, float]]], t: Any) -> Figure:
    """Norm of the codes along paths, against the norms of the prior's draws.

    Args:
        panels: title -> (path name -> norms (n_pairs, T), quantiles 2.5 %, 50 % and 97.5 % of the prior's norm). Mean
            over the pairs as a line, the middle 80 % of them as a band.
        t: positions along the paths, (T,).
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 3.9), squeeze=False)
        for ax, (title, (curves, (low, median, high))) in zip(axes[0], panels.items(), strict=True):
            ax.axhspan(low, high, color="0.92", zorder=0)
            ax.axhline(median, color=COLOURS["reference"], linewidth=1.2)
            ax.annotate("prior: median, 95 %", (0.02, high), (0, -14), textcoords="offset points", fontsize=11)
            for name, norms in curves.items():
                norms = np.asarray(norms)
                ax.fill_between(
                    np.asarray(t), *np.quantile(norms, [0.1, 0.9], axis=0), color=PATHS[name]["color"], alpha=0.2
                )
                ax.plot(np.asarray(t), norms.mean(axis=0), label=name, markersize=5, **PATHS[name])
            ax.set(title=title, xlabel="position $t$", ylim=(0, None))
        axes[0, 0].set_ylabel("norm of the code")
        axes[0, -1].legend(loc="lower right")
    return fig


def values_along(panels: Mapping[str, tuple[str, Mapping[str, tuple[Any, Any]]]], t: Any) -> Figure:
    """Quantities along paths, with error bars of one standard error.

    Args:
        panels: title -> (name of the vertical axis, path name -> (values (T,), standard errors (T,))).
        t: positions along the paths, (T,).
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 3.9), squeeze=False)
        for ax, (title, (ylabel, curves)) in zip(axes[0], panels.items(), strict=True):
            for name, (values, errors) in curves.items():
                ax.errorbar(
                    np.asarray(t),
                    np.asarray(values),
                    np.asarray(errors),
                    label=name,
                    markersize=5,
                    capsize=2,
                    **PATHS[name],
                )
            ax.set(title=title, xlabel="position $t$", ylabel=ylabel)
        axes[0, -1].legend()
    return fig


def walks(mu: Any, y: Any, paths: Mapping[str, Any], images: Mapping[str, Any]) -> Figure:
    """Walks through the plane, named A, B and so on: on the left the paths, on the right what is decoded along them.

    Args:
        mu: posterior means of the images, (N, 2).
        y: their labels, (N,).
        paths: name -> codes along the walk, (T, 2).
        images: name -> images decoded along it, (V, 1, 28, 28), as many for every walk.
    """
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(15, 5.6), width_ratios=[1, 1.6])
        latent_scatter(left, mu, y)
        left.collections[0].set_alpha(0.25)
        limit = 1.15 * max(float(np.abs(np.asarray(path, dtype=float)).max()) for path in paths.values())
        count = {1: "one walk", 5: "five walks"}.get(len(paths), f"{len(paths)} walks")
        left.set(xlim=(-limit, limit), ylim=(-limit, limit), title=f"{count}, from ○ to ●")
        for text in left.texts:
            text.set_visible(max(map(abs, text.get_position())) < limit)
        outline = [withStroke(linewidth=5, foreground="white")]
        lines = [np.asarray(path, dtype=float) for path in paths.values()]
        taken = [text.get_position() for text in left.texts] + [tuple(line[end]) for line in lines for end in (0, -1)]
        letters = ascii_uppercase[: len(lines)]
        for letter, points in zip(letters, lines, strict=True):
            left.plot(*points.T, color="black", linewidth=2, zorder=4, path_effects=outline)
            left.plot(*points[0], "o", color="black", markerfacecolor="white", markersize=7, zorder=5)
            left.plot(*points[-1], "o", color="black", markersize=7, zorder=5)
            # The letter stands where the path is farthest from other names.
            distance = np.linalg.norm(points[:, None] - np.array(taken), axis=-1).min(axis=1)
            taken.append(tuple(points[distance.argmax()]))
            text = left.text(*taken[-1], letter, zorder=6, ha="center", va="center", color="white")
            text.set(fontsize=12, fontweight="bold")
            text.set_bbox({"facecolor": "black", "edgecolor": "white", "boxstyle": "square,pad=0.2"})
        stack = np.concatenate([np.asarray(images[name]) for name in paths])
        labels = [f"{letter}  {name}" for letter, name in zip(letters, paths, strict=True)]
        draw_tiles(right, stack, len(stack) // len(paths), labels, "what is decoded on the way")
    return fig


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def poster(mu: Any, y: Any, z: Any, image: Any) -> Figure:
    """A still of the explorer: the plane with the point chosen, and the digit decoded there.

    Args:
        mu: posterior means of the images, (N, 2).
        y: their labels, (N,).
        z: the point, (2,).
        image: pixel probabilities decoded there, (1, 28, 28).
    """
    z1, z2 = np.asarray(z).tolist()
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 5.4), width_ratios=[1.1, 1])
        latent_scatter(left, mu, y)
        for draw, value in [(left.axvline, z1), (left.axhline, z2)]:
            draw(value, color="black", linewidth=1)
        left.plot(z1, z2, "o", color="black", markerfacecolor="white", markersize=13, markeredgewidth=3, zorder=9)
        left.set_title("choose a point of the plane")
        draw_tiles(right, np.asarray(image)[None], 1, title=f"decoded at ({z1:.2f}, {z2:.2f})".replace("-", "−"))
    return fig
