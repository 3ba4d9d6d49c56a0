"""Trained models side by side: seeds, latent dimensions, rates and distortions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from tme_utils.plots.shared import COLOURS, Labels, draw_tiles, log2_axis, note, panel_axes

# A light and a dark colour, told apart without hue; the colour of any other architecture lies between the two.
ARCHITECTURE_COLOURS = {"mlp": "#56b4e9", "conv": "#7a3b8f"}


def _look(architecture: str) -> tuple[str, str]:
    """Colour and marker."""
    return ARCHITECTURE_COLOURS.get(architecture, "#d55e00"), {"mlp": "o", "conv": "s"}.get(architecture, "D")


def bound_by_samples(table: pd.DataFrame, published: Mapping[str, float]) -> Figure:
    """The bound −IW_K (``iw_nll``) against its number of samples K, a line for each seed, beside published numbers."""
    fig, ax = plt.subplots(figsize=(7.5, 4))
    for seed, rows in table.sort_values("iw_samples").groupby("seed"):
        n_samples, nll = rows["iw_samples"].to_numpy(), rows["iw_nll"].to_numpy()
        ax.plot(n_samples, nll, "o-", color=ARCHITECTURE_COLOURS["conv"], markersize=5, alpha=0.8)
        note(ax, f"seed {seed}: {nll[-1]:.2f}", (n_samples[-1], nll[-1]), (0, -9), ha="center", va="top")
    for name, value in published.items():
        ax.axhline(value, color=COLOURS["reference"], linestyle="--", linewidth=1.2)
        note(ax, name, (1, value), (0, 3), xycoords=ax.get_yaxis_transform(), ha="right")
    ax.set(xscale="log", xlabel="importance samples $K$ for each image", ylabel=r"$-\mathrm{IW}_K$ (nats per image)")
    ax.margins(x=0.09, y=0.15)
    return fig


class Line(NamedTuple):
    """A score by latent dimension, the index of its values; a column for each seed. Style: matplotlib's, as "o-"."""

    values: pd.DataFrame
    style: str
    colour: str


Panels = Mapping[str, tuple[str, Mapping[str, Line]]]  # title -> (label of the vertical axis, name -> line)
Marks = Mapping[str, Mapping[str, float]]  # title -> name -> a value drawn across the panel


def by_dimension(panels: Panels, references: Marks | None = None, log_y: Labels = (), n_columns: int = 3) -> Figure:
    """Scores against the latent dimension: lines through the means, dots for the seeds, a band over their range."""
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    fig, axes = panel_axes(panels, (4.1 * n_columns + 0.6, 3.8 * n_rows), (n_rows, n_columns))
    handles = {}
    for ax, (title, (ylabel, lines)) in zip(axes, panels.items(), strict=True):
        for name, (values, style, colour) in lines.items():
            dims, seeds = values.index.to_numpy(), values.to_numpy(dtype=float)
            low, mean, high = (of(seeds, axis=1) for of in (np.nanmin, np.nanmean, np.nanmax))
            ax.fill_between(dims, low, high, color=colour, alpha=0.25, linewidth=0)
            if seeds.shape[1] > 1:
                ax.plot(dims, seeds, ".", color=colour, markersize=4)
            (handles[name],) = ax.plot(dims, mean, style, color=colour, markersize=6, fillstyle="none")
        log2_axis(ax, sorted({d for line in lines.values() for d in line.values.index}), "latent dimension $d$")
        ax.set(ylabel=ylabel, yscale="log" if title in log_y else "linear")
        for name, value in (references or {}).get(title, {}).items():
            ax.axhline(value, color=COLOURS["reference"], linestyle=":", linewidth=1.2)
            note(ax, name, (0.01, value), (0, 3), xycoords=ax.get_yaxis_transform(), fontsize=10)
    fig.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1, 0.55), fontsize=11)
    return fig


def sorted_divergences(panels: Mapping[str, Float[Any, "seeds latent_dim"]], threshold: float) -> Figure:
    """KL of each coordinate, sorted for each seed, in nats: dots at the mean of the seeds, bars over their range."""
    fig, axes = panel_axes(panels, (4.6 * len(panels), 3.6), sharey=True)
    for ax, (name, divergences) in zip(axes, panels.items(), strict=True):
        values, (colour, marker) = np.asarray(divergences, dtype=float), _look(name)
        rank = np.arange(1, values.shape[1] + 1)
        ax.vlines(rank, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.5, linewidth=3)
        ax.plot(rank, values.mean(axis=0), marker, color=colour, markersize=4)
        ax.axhline(threshold, color=COLOURS["reference"], linestyle="--", linewidth=1.2)
        note(ax, f"{threshold:g} nats", (rank[-1], threshold), (0, 3), ha="right")
        above = " or ".join(map(str, np.unique((values > threshold).sum(axis=1))))
        ax.set(title=f"{name}: {above} above", xlabel="coordinate, by its KL", yscale="log")
    axes[0].set_ylabel("KL (nats per image)")
    return fig


def picture_grids(panels: Mapping[str, Mapping[str, Float[Any, "n 28 28"]]]) -> Figure:
    """Grids of images side by side: title -> label of the row -> images; every panel has the same rows."""
    rows, *others = (list(grid) for grid in panels.values())
    if any(other != rows for other in others):
        raise ValueError(f"every panel must have the same rows, got {[rows, *others]}")
    columns = [len(grid[rows[0]]) for grid in panels.values()]
    size = (0.9 + 0.45 * (sum(columns) + len(columns)), 0.6 + 0.46 * len(rows))
    fig, axes = panel_axes(panels, size, width_ratios=columns)
    for ax, grid in zip(axes, panels.values(), strict=True):
        images = np.stack([np.asarray(images) for images in grid.values()])
        draw_tiles(ax, images[:, :, None], rows if ax is axes[0] else ())
    return fig


def rate_distortion(curves: Mapping[str, tuple[pd.DataFrame, str, str]], sums: Sequence[float]) -> Figure:
    """Models in the plane of rate and distortion, in nats, and lines where their sum, the −ELBO, has these values.

    A curve is (rows with ``label``, ``rate`` and ``distortion``; format; colour). The rows of one label are its seeds.
    """
    fig, ax = plt.subplots(figsize=(7.2, 5.2))
    for name, (rows, style, colour) in curves.items():
        means = rows.groupby("label", sort=False)[["rate", "distortion"]].mean()
        ax.plot(means["rate"], means["distortion"], style, color=colour, label=name, markersize=6)
        ax.plot(rows["rate"], rows["distortion"], ".", color=colour, markersize=3)
        # Curves meet: a dashed one has its labels on the other side.
        shift, side = ((10, -19), "right") if "--" in style else ((6, 5), "left")
        box, last = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}, np.full(2, np.inf)
        for label, place in zip(means.index, means.to_numpy(), strict=True):
            if np.abs(place - last).max() > 2:  # nats; nearer ones would be written over each other
                note(ax, str(label), place, shift, ha=side, color=colour, fontsize=10, bbox=box)
                last = place
    ax.margins(y=0.12)
    limits = ax.axis()
    rate = np.array(limits[:2])
    for value in sums:
        ax.plot(rate, value - rate, color=COLOURS["reference"], linestyle=":", linewidth=1)
        end = (rate[1], value - rate[1])  # the names stand beside the axes, where no model is
        note(ax, f"−ELBO = {value:g}", end, (5, 0), va="center", annotation_clip=False, fontsize=10)
    ax.axis(limits)
    ax.set(xlabel="rate: KL (nats per image)", ylabel="distortion: recon (nats per image)")
    ax.legend(fontsize=11)
    return fig
