"""Drawings of trained models side by side: seeds, latent dimensions, rates and distortions, spectra."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tme_utils.plots import COLOURS, STYLE, draw_tiles

# A light and a dark colour, told apart without hue; another marker for each.
ARCHITECTURES = {"mlp": "#56b4e9", "conv": "#7a3b8f"}
MARKERS = {"mlp": "o", "conv": "s"}
OTHER = "#d55e00", "D"  # colour, of a lightness between the two, and marker of any other architecture
BESIDE: Any = {"textcoords": "offset points", "fontsize": 10}
RIGHT: Any = {"xycoords": "axes fraction", "ha": "right", "fontsize": 10}


def seed_dots(table: pd.DataFrame, scores: Mapping[str, str], live: Mapping[str, Any] | None = None) -> Figure:
    """One dot for each trained model, a bar at the mean of its seeds: a row of panels for each latent dimension.

    Args:
        table: rows of results, with ``architecture``, ``latent_dim`` and the scores.
        scores: column -> title, a panel each; all in nats per image.
        live: one more row, drawn as a star to the right of the others of its model.
    """
    if table.empty:
        raise ValueError("the table must hold at least one row, got none")
    dims = sorted(table["latent_dim"].unique(), reverse=True)
    found = list(dict.fromkeys(table["architecture"]))
    architectures = [name for name in ARCHITECTURES if name in found]
    architectures += [name for name in found if name not in ARCHITECTURES]
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            len(dims), len(scores), figsize=(2.6 * len(scores), 2.7 * len(dims)), squeeze=False, sharex=True
        )
        for dim, row in zip(dims, axes, strict=True):
            for (score, title), ax in zip(scores.items(), row, strict=True):
                for i, name in enumerate(architectures):
                    values = table.query("latent_dim == @dim and architecture == @name")[score].to_numpy()
                    if len(values) == 0:
                        continue
                    shift = np.linspace(-0.12, 0.12, len(values))
                    colour, marker = _look(name)
                    ax.plot([i - 0.3, i + 0.3], [values.mean()] * 2, color=colour)
                    ax.plot(i + shift, values, marker, color=colour, markeredgecolor="white")
                    ax.annotate(f"{values.mean():.1f}", (i + 0.33, values.mean()), fontsize=10, va="center")
                    place = (live.get("architecture"), live.get("latent_dim")) if live and score in live else None
                    if live and place == (name, dim):
                        ax.plot([i + 0.22], [live[score]], "*", color="black", markersize=11, zorder=3)
                ax.set_xticks(range(len(architectures)), architectures)
                ax.set_xlim(-0.5, len(architectures) - 0.25)
                ax.margins(y=0.2)
                ax.set_title(title if dim == dims[0] else "")
            row[0].set_ylabel(f"$d$ = {dim}\nnats per image")
    return fig


def _look(architecture: str) -> tuple[str, str]:
    """Colour and marker."""
    return ARCHITECTURES.get(architecture, OTHER[0]), MARKERS.get(architecture, OTHER[1])


def spectra(images: Mapping[str, Any]) -> Figure:
    """Power of sets of images (N, 1, 28, 28) against the frequency across or down the image, a line for each set."""
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(7.5, 3.8))
        styles = itertools.cycle(["-", "--", ":", "-."])
        colours = {"test images": "black"} | ARCHITECTURES
        for (name, stack), style in zip(images.items(), styles, strict=False):
            power = axis_power(stack)[1:]  # the constant says how much ink, not how it is spread
            frequency = np.arange(1, len(power) + 1) / 28
            ax.plot(frequency, 10 * np.log10(power + 1e-12), style, color=colours.get(name, OTHER[0]), label=name)
        ax.set(xlabel="frequency (cycles per pixel)", ylabel="power (dB)")
        ax.legend(fontsize=11)
    return fig


def axis_power(images: Any) -> Any:
    """Mean power of images (N, 1, 28, 28) at the frequencies 0, 1/28, ..., 14/28 cycles per pixel, (15,).

    The squared modulus of the discrete Fourier transform, averaged over the images, over the four lowest
    frequencies of the other axis, and over both axes.
    """
    array = np.asarray(images, dtype=float)
    if array.ndim != 4 or array.shape[1:] != (1, 28, 28) or len(array) == 0:
        raise ValueError(f"need images (N, 1, 28, 28), got {array.shape}")
    power = (np.abs(np.fft.fft2(array[:, 0])) ** 2).mean(axis=0)
    return (power[:15, :4].mean(axis=1) + power[:4, :15].mean(axis=0)) / 2


def difference_histogram(difference: Any, names: Sequence[str]) -> Figure:
    """How many images one model describes better than the other, and by how much.

    Args:
        difference: recon of the first model minus recon of the second, (N,), in nats.
        names: of the two models.
    """
    values = np.asarray(difference, dtype=float)
    limit = float(np.ceil(np.quantile(np.abs(values), 0.999)))
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(7.5, 3.4))
        edges = np.linspace(-limit, limit, 81).tolist()
        for sign, name in [(-1, names[0]), (1, names[1])]:
            part = values[np.sign(values) == sign]
            share = f"{100 * len(part) / len(values):.0f} % of the images"
            colour = ARCHITECTURES.get(name, "0.5")
            ax.hist(part.clip(-limit, limit), edges, color=colour, label=f"{name} better:\n{share}")
        ax.axvline(0, color=COLOURS["reference"], linewidth=1)
        ax.set(xlabel=f"recon of {names[0]} − recon of {names[1]} (nats)", ylabel="test images", xlim=(-limit, limit))
        ax.annotate("one in a thousand lies beyond,\ncounted in the last bars", (0.99, 0.4), **RIGHT)
        ax.legend(fontsize=11, loc="upper left")
    return fig


def bound_by_samples(table: pd.DataFrame, published: Mapping[str, float]) -> Figure:
    """The bound −IW_K against its number of samples K, a line for each seed, beside published numbers.

    Args:
        table: rows with ``seed``, ``iw_samples``, ``iw_nll`` and ``iw_nll_se``.
        published: name -> nats per image, drawn as horizontal lines.
    """
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(7.5, 4))
        for seed, rows in table.sort_values("iw_samples").groupby("seed"):
            ax.plot(rows["iw_samples"], rows["iw_nll"], "o-", color=ARCHITECTURES["conv"], markersize=5, alpha=0.8)
            last = rows.iloc[-1]
            text, place = f"seed {seed}: {last['iw_nll']:.2f}", (last["iw_samples"], last["iw_nll"])
            ax.annotate(text, place, (0, -9), textcoords="offset points", ha="center", va="top")
        for name, value in published.items():
            ax.axhline(value, color=COLOURS["reference"], linestyle="--", linewidth=1.2)
            ax.annotate(
                name, (1, value), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
            )
        ax.set(
            xscale="log", xlabel="importance samples $K$ for each image", ylabel=r"$-\mathrm{IW}_K$ (nats per image)"
        )
        ax.margins(x=0.09, y=0.15)
    return fig


class Line(NamedTuple):
    """A score against the latent dimension.

    Attributes:
        values: a row for each latent dimension, its index; a column for each seed.
        style: of matplotlib, such as "o-".
        colour: of line and spread.
    """

    values: pd.DataFrame
    style: str
    colour: str


def by_dimension(
    panels: Mapping[str, tuple[str, Mapping[str, Line]]],
    references: Mapping[str, Mapping[str, float]] | None = None,
    log_y: Sequence[str] = (),
    n_columns: int = 3,
) -> Figure:
    """Scores against the latent dimension: lines through the means, dots for the seeds, a band over their range.

    Args:
        panels: title -> (label of the vertical axis, name -> line). Names are listed once, beside the last panel.
        references: title -> name -> a value drawn across the panel.
        log_y: titles of panels with a logarithmic axis.
        n_columns: most panels in a row.
    """
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(n_rows, n_columns, figsize=(4.1 * n_columns + 0.6, 3.8 * n_rows), squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.axis("off")
        handles: dict[str, Any] = {}
        for ax, (title, (ylabel, lines)) in zip(axes.flat, panels.items(), strict=False):
            for name, line in lines.items():
                handles.setdefault(name, _draw_line(ax, line))
            dims = sorted({d for line in lines.values() for d in line.values.index})
            ax.set_xscale("log", base=2)
            ax.set_xticks(dims, [str(d) for d in dims], rotation=0)
            ax.minorticks_off()
            if title in log_y:
                ax.set_yscale("log")
            ax.set(title=title, xlabel="latent dimension $d$", ylabel=ylabel)
            for name, value in (references or {}).get(title, {}).items():
                ax.axhline(value, color=COLOURS["reference"], linestyle=":", linewidth=1.2)
                ax.annotate(name, (0.01, value), (0, 3), xycoords=ax.get_yaxis_transform(), **BESIDE)
        fig.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1, 0.55), fontsize=11)
    return fig


def _draw_line(ax: Axes, line: Line) -> Any:
    dims, seeds = line.values.index.to_numpy(), line.values.to_numpy(dtype=float)
    ax.fill_between(
        dims, np.nanmin(seeds, axis=1), np.nanmax(seeds, axis=1), color=line.colour, alpha=0.25, linewidth=0
    )
    if seeds.shape[1] > 1:
        ax.plot(np.repeat(dims, seeds.shape[1]), seeds.ravel(), ".", color=line.colour, markersize=4)
    return ax.plot(dims, np.nanmean(seeds, axis=1), line.style, color=line.colour, markersize=6, fillstyle="none")[0]


def sorted_divergences(panels: Mapping[str, Any], threshold: float) -> Figure:
    """KL divergence of each latent coordinate, largest first: a dot at the mean of the seeds, a bar over their range.

    Args:
        panels: architecture -> divergences in nats, sorted for each seed, (n_seeds, latent_dim).
        threshold: nats, marked by a line; the title counts the coordinates above it, over the seeds.
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), sharey=True, squeeze=False)
        for ax, (name, divergences) in zip(axes[0], panels.items(), strict=True):
            values = np.asarray(divergences, dtype=float)
            rank, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
            colour, marker = _look(name)
            ax.vlines(rank, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.5, linewidth=3)
            ax.plot(rank, mean, marker, color=colour, markersize=4)
            ax.axhline(threshold, color=COLOURS["reference"], linestyle="--", linewidth=1.2)
            ax.annotate(
                f"{threshold:g} nats", (values.shape[1], threshold), (0, 3), textcoords="offset points", ha="right"
            )
            above = sorted({int(count) for count in (values > threshold).sum(axis=1)})
            ax.set(title=f"{name}: {' or '.join(map(str, above))} above", xlabel="coordinate, by its KL", yscale="log")
        axes[0, 0].set_ylabel("KL (nats per image)")
    return fig


def picture_grids(panels: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Grids of images side by side, with the same rows.

    Args:
        panels: title -> label of the row -> images (N, 28, 28) in [0, 1].
    """
    grids = list(panels.values())
    if any(list(grid) != list(grids[0]) for grid in grids):
        raise ValueError(f"every panel must have the same rows, got {[list(grid) for grid in grids]}")
    with plt.rc_context(STYLE):
        columns = [len(next(iter(grid.values()))) for grid in grids]
        size = (0.9 + 0.45 * (sum(columns) + len(columns)), 0.6 + 0.46 * len(grids[0]))
        fig, axes = plt.subplots(1, len(panels), figsize=size, width_ratios=columns, squeeze=False)
        for i, (ax, (title, grid)) in enumerate(zip(axes[0], panels.items(), strict=True)):
            images = np.concatenate([np.asarray(stack) for stack in grid.values()])[:, None]
            draw_tiles(ax, images, columns[i], list(grid) if i == 0 else (), title)
    return fig


def rate_distortion(curves: Mapping[str, tuple[pd.DataFrame, str, str]], sums: Sequence[float]) -> Figure:
    """Models in the plane of rate and distortion, and lines of constant sum.

    Args:
        curves: name -> (rows with ``label``, ``rate`` and ``distortion`` in nats, in the order to join them; format;
            colour). Rows of one label are seeds: a dot each, and the line passes through their mean. A label within
            2 nats of the one before is left out.
        sums: values of −ELBO, rate + distortion, to draw as lines.
    """
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(7.2, 5.2))
        for name, (rows, style, colour) in curves.items():
            means = rows.groupby("label", sort=False)[["rate", "distortion"]].mean()
            ax.plot(means["rate"], means["distortion"], style, color=colour, label=name, markersize=6)
            ax.plot(rows["rate"], rows["distortion"], ".", color=colour, markersize=3)
            # Curves meet: a dashed one has its labels on the other side.
            shift, side = ((10, -19), "right") if "--" in style else ((6, 5), "left")
            last = np.array([np.inf, np.inf])
            for label, place in zip(means.index, means.to_numpy(), strict=True):
                if np.abs(place - last).max() > 2:  # nats; nearer ones would be written over each other
                    text = ax.annotate(str(label), place, shift, ha=side, color=colour, **BESIDE)
                    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8})
                    last = place
        ax.margins(y=0.12)
        limits = ax.axis()
        for value in sums:
            rate = np.array(limits[:2])
            ax.plot(rate, value - rate, color=COLOURS["reference"], linestyle=":", linewidth=1)
            end = (limits[1], value - limits[1])  # the names stand beside the axes, where no model is
            ax.annotate(f"−ELBO = {value:g}", end, (5, 0), va="center", annotation_clip=False, **BESIDE)
        ax.axis(limits)
        ax.set(xlabel="rate: KL (nats per image)", ylabel="distortion: recon (nats per image)")
        ax.legend(fontsize=11)
    return fig
