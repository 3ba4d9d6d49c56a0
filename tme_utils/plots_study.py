"""Drawings of trained models side by side: seeds, spectra, bounds by number of samples."""

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
                    shift = np.linspace(-0.12, 0.12, len(values))
                    ax.plot([i - 0.3, i + 0.3], [values.mean()] * 2, color=ARCHITECTURES[name])
                    ax.plot(i + shift, values, MARKERS[name], color=ARCHITECTURES[name], markeredgecolor="white")
                    ax.annotate(f"{values.mean():.1f}", (i + 0.33, values.mean()), fontsize=10, va="center")
                    if live is not None and (live["architecture"], live["latent_dim"]) == (name, dim):
                        ax.plot([i], [live[score]], "*", color="black", markersize=11, zorder=3)
                ax.set_xticks(range(len(architectures)), architectures)
                ax.set_xlim(-0.5, len(architectures) - 0.25)
                ax.margins(y=0.2)
                ax.set_title(title if dim == dims[0] else "")
            row[0].set_ylabel(f"$d$ = {dim}\nnats per image")
    return fig


def spectra(images: Mapping[str, Any]) -> Figure:
    """Mean power spectra of sets of images (N, 1, 28, 28), in decibels, on one colour scale.

    The centre is the constant, the edges are patterns that alternate from one pixel to the next.
    """
    power = {name: mean_power(stack) for name, stack in images.items()}
    top = max(float(value.max()) for value in power.values())
    decibels = {name: 10 * np.log10(np.fft.fftshift(value) / top + 1e-12) for name, value in power.items()}
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, len(images), figsize=(3.3 * len(images) + 1, 3.4), squeeze=False, sharey=True)
        for ax, (name, value) in zip(axes[0], decibels.items(), strict=True):
            picture = ax.imshow(value, cmap="viridis", vmin=-60, vmax=0, extent=(-0.5, 0.5, -0.5, 0.5))
            ax.set(title=name, xlabel="cycles per pixel, across", xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])
        axes[0, 0].set_ylabel("cycles per pixel, down")
        fig.colorbar(picture, ax=axes, label="power (dB below the largest)", shrink=0.8)
    return fig


def mean_power(images: Any) -> Any:
    """Mean squared modulus of the discrete Fourier transforms of images (N, 1, 28, 28), (28, 28)."""
    array = np.asarray(images, dtype=float)
    if array.ndim != 4 or array.shape[1:] != (1, 28, 28) or len(array) == 0:
        raise ValueError(f"need images (N, 1, 28, 28), got {array.shape}")
    return (np.abs(np.fft.fft2(array[:, 0])) ** 2).mean(axis=0)


def difference_histogram(difference: Any, names: Sequence[str]) -> Figure:
    """How many images one model describes better than the other, and by how much.

    Args:
        difference: recon of the first model minus recon of the second, (N,), in nats.
        names: of the two models.
    """
    values = np.asarray(difference, dtype=float)
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(7, 3.2))
        edges = np.linspace(np.floor(values.min()), np.ceil(values.max()), 80).tolist()
        for sign, name in [(-1, names[0]), (1, names[1])]:
            part = values[np.sign(values) == sign]
            share = f"{100 * len(part) / len(values):.0f} % of the images"
            ax.hist(part, edges, color=ARCHITECTURES.get(name, "0.5"), label=f"{name} rebuilds better: {share}")
        ax.axvline(0, color=COLOURS["reference"], linewidth=1)
        ax.set(xlabel=f"recon of {names[0]} − recon of {names[1]} (nats)", ylabel="test images")
        ax.legend(fontsize=11)
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
    return fig
