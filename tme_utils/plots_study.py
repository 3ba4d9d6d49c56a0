"""Drawings of trained models side by side: seeds, spectra, bounds by number of samples."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tme_utils.plots import COLOURS, STYLE

# A light and a dark colour, told apart without hue; another marker for each.
ARCHITECTURES = {"mlp": "#56b4e9", "conv": "#7a3b8f"}
MARKERS = {"mlp": "o", "conv": "s"}
RIGHT: Any = {"xycoords": "axes fraction", "ha": "right", "fontsize": 10}


def seed_dots(table: pd.DataFrame, scores: Mapping[str, str], live: Mapping[str, Any] | None = None) -> Figure:
    """One dot for each trained model, a bar at the mean of its seeds: a row of panels for each latent dimension.

    Args:
        table: rows of results, with ``architecture``, ``latent_dim`` and the scores.
        scores: column -> title, a panel each; all in nats per image.
        live: one more row, drawn as a star in its place.
    """
    dims = sorted(table["latent_dim"].unique(), reverse=True)
    architectures = [name for name in ARCHITECTURES if name in set(table["architecture"])]
    if not architectures:
        raise ValueError(f"no architecture among {', '.join(ARCHITECTURES)} in {sorted(set(table['architecture']))}")
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
                    ax.plot([i - 0.3, i + 0.3], [values.mean()] * 2, color=ARCHITECTURES[name])
                    ax.plot(i + shift, values, MARKERS[name], color=ARCHITECTURES[name], markeredgecolor="white")
                    ax.annotate(f"{values.mean():.1f}", (i + 0.33, values.mean()), fontsize=10, va="center")
                    place = (live.get("architecture"), live.get("latent_dim")) if live and score in live else None
                    if live and place == (name, dim):
                        ax.plot([i], [live[score]], "*", color="black", markersize=11, zorder=3)
                ax.set_xticks(range(len(architectures)), architectures)
                ax.set_xlim(-0.5, len(architectures) - 0.25)
                ax.margins(y=0.2)
                ax.set_title(title if dim == dims[0] else "")
            row[0].set_ylabel(f"$d$ = {dim}\nnats per image")
    return fig


def spectra(images: Mapping[str, Any]) -> Figure:
    """Power of sets of images (N, 1, 28, 28) against the frequency across or down the image, a line for each set."""
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(7.5, 3.8))
        styles = itertools.cycle(["-", "--", ":", "-."])
        colours = {"test images": "black"} | ARCHITECTURES
        for (name, stack), style in zip(images.items(), styles, strict=False):
            power = axis_power(stack)[1:]  # the constant says how much ink, not how it is spread
            frequency = np.arange(1, len(power) + 1) / 28
            ax.plot(frequency, 10 * np.log10(power + 1e-12), style, color=colours.get(name, "#d55e00"), label=name)
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
    """Importance-weighted −log p against the number of samples, a line for each seed, beside published numbers.

    Args:
        table: rows with ``seed``, ``iw_samples``, ``iw_nll`` and ``iw_nll_se``.
        published: name -> nats per image, drawn as horizontal lines.
    """
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(7.5, 4))
        for _, rows in table.sort_values("iw_samples").groupby("seed"):
            ax.plot(rows["iw_samples"], rows["iw_nll"], "o-", color=ARCHITECTURES["conv"], markersize=5, alpha=0.8)
        last = table.sort_values("iw_samples").iloc[-1]
        ax.annotate(f"{last['iw_nll']:.2f}", (last["iw_samples"], last["iw_nll"]), (0, -16), textcoords="offset points")
        for name, value in published.items():
            ax.axhline(value, color=COLOURS["reference"], linestyle="--", linewidth=1.2)
            ax.annotate(
                name, (1, value), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
            )
        ax.set(xscale="log", xlabel="importance samples $K$ for each image", ylabel="−log p (nats per image)")
        ax.margins(y=0.12)
    return fig
