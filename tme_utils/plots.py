"""Drawing only: arrays in, figures out. One style, one palette, one orientation for the whole report."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from tme_utils import paths

# One colour for one thing, from seaborn's colour-blind-safe palette.
COLOURS = {"train": "#0173b2", "test": "#de8f05", "recon": "#029e73", "kl": "#d55e00", "reference": "0.35"}
STYLE: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "figure.constrained_layout.use": True,
}


def _array(images: Any) -> npt.NDArray[np.floating]:
    """Images (..., 1, 28, 28) as an array (..., 28, 28)."""
    array = np.asarray(images, dtype=float)
    if array.shape[-3:] != (1, 28, 28):
        raise ValueError(f"images must end in (1, 28, 28), got {array.shape}")
    return array[..., 0, :, :]


def tile(images: Any, n_columns: int) -> npt.NDArray[np.floating]:
    """Lay images (N, 1, 28, 28) out row by row as one picture with a pixel of white between them."""
    array = _array(images)
    if n_columns < 1 or array.ndim != 3:
        raise ValueError(f"need images (N, 1, 28, 28) and n_columns >= 1, got {array.shape} and {n_columns}")
    n_rows = -(-len(array) // n_columns)
    canvas = np.ones((n_rows * 29 + 1, n_columns * 29 + 1))
    for i, image in enumerate(array):
        row, column = divmod(i, n_columns)
        # Digits are drawn dark on light, like ink: the canvas is 1 where paper shows.
        canvas[row * 29 + 1 : row * 29 + 29, column * 29 + 1 : column * 29 + 29] = 1 - image
    return canvas


def draw_tiles(ax: Axes, images: Any, n_columns: int, row_labels: Sequence[str] = (), title: str = "") -> None:
    """Draw images (N, 1, 28, 28) on ``ax``, in rows of n_columns, ink on paper, each row labelled on its left."""
    ax.imshow(tile(images, n_columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([15 + 29 * i for i in range(len(row_labels))], row_labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)


def image_rows(rows: Mapping[str, Any], title: str = "", column_labels: Sequence[str] = ()) -> Figure:
    """One labelled row of images (N, 1, 28, 28) for each entry, such as originals above reconstructions.

    Args:
        rows: label -> images, as many in each row.
        title: above the rows.
        column_labels: below the columns, if given.
    """
    stacks = [np.asarray(images) for images in rows.values()]
    n_columns = len(stacks[0])
    if any(len(stack) != n_columns for stack in stacks):
        raise ValueError(f"every row must hold as many images, got {[len(stack) for stack in stacks]}")
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(1.6 + 0.48 * n_columns, 0.5 + 0.48 * len(rows)))
        draw_tiles(ax, np.concatenate(stacks), n_columns, list(rows), title)
        ax.set_xticks([15 + 29 * i for i in range(len(column_labels))], column_labels)
    return fig


def film_strips(strips: Mapping[str, tuple[Any, Any]], epochs: Sequence[int]) -> Figure:
    """Snapshots through training, side by side: each row one digit, its original first, then one column an epoch.

    Args:
        strips: title -> (originals, frames): images (n, 1, 28, 28), or None where there is no original, as for
            draws of the prior; and pixel probabilities (n_epochs + 1, n, 1, 28, 28), from epoch 0 on.
        epochs: the epochs to show.
    """
    with plt.rc_context(STYLE):
        columns = [len(epochs) + (originals is not None) for originals, _ in strips.values()]
        n_rows = max(len(frames[0]) for _, frames in strips.values())
        fig, axes = plt.subplots(
            1,
            len(strips),
            figsize=(0.5 * (sum(columns) + len(columns)), 0.8 + 0.5 * n_rows),
            width_ratios=columns,
            squeeze=False,
        )
        for ax, (title, (originals, frames)) in zip(axes[0], strips.items(), strict=True):
            _draw_film_strip(ax, originals, frames, epochs, title)
    return fig


def _draw_film_strip(ax: Axes, originals: Any, frames: Any, epochs: Sequence[int], title: str) -> None:
    columns = [np.asarray(frames[epoch]) for epoch in epochs]
    labels = [str(epoch) for epoch in epochs]
    if originals is not None:
        columns.insert(0, np.asarray(originals))
        labels.insert(0, "x")
    images = np.stack(columns, axis=1)  # (n, columns, 1, 28, 28)
    draw_tiles(ax, images.reshape(-1, 1, 28, 28), len(columns), title=title)
    ax.set_xticks([15 + 29 * i for i in range(len(labels))], labels)
    ax.set_xlabel("epoch")


def training_curves(rows: Sequence[Mapping[str, float]], floor: float, baseline: float) -> Figure:
    """recon, KL and −ELBO by epoch, for training and test images, with what the numbers can be measured against.

    Args:
        rows: the history's rows.
        floor: entropy floor of recon, in nats: no model can show less.
        baseline: recon of the constant model that shows the mean image, in nats.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("the history must hold at least one row, got none: was the training stopped?")
    epochs = [row["epoch"] for row in rows]
    later = [row for row in rows if row["epoch"] >= 1] or list(rows)
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 3, figsize=(12, 3.8))
        for ax, (term, name) in zip(
            axes, [("recon", "recon"), ("kl", "KL"), ("neg_elbo", "−ELBO = recon + KL")], strict=True
        ):
            for split, label, style in [("train", "train", "-"), ("held_out", "test", "--")]:
                values = [row[f"{split}_{term}"] for row in rows]
                ax.plot(epochs, values, style, color=COLOURS[label], marker="o", markersize=4, label=label)
            ax.set(xlabel="epoch", ylabel="nats per image", title=name)
            ax.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylim(floor - 12, baseline + 25)
        for value, text, shift in [(floor, "entropy floor", 5), (baseline, "mean image", -15)]:
            axes[0].axhline(value, color=COLOURS["reference"], linestyle=":", linewidth=1.5)
            label, place = f"{text} {value:.1f}", (epochs[-1], value)
            axes[0].annotate(label, place, (0, shift), textcoords="offset points", ha="right", fontsize=11)
        values = [row[f"{split}_neg_elbo"] for row in later for split in ("train", "held_out")]
        margin = 0.06 * (max(values) - min(values)) + 0.1
        axes[2].set_ylim(min(values) - margin, max(values) + margin)
        for ax, term in [(axes[0], "recon"), (axes[2], "neg_elbo")]:
            first = rows[0][f"held_out_{term}"]
            if first > ax.get_ylim()[1]:
                above = f"epoch {epochs[0]}: {first:.0f}, above the axis"
                ax.annotate(above, (0.99, 1.0), xycoords="axes fraction", ha="right", va="top", fontsize=11)
        axes[1].legend(loc="lower right")
    return fig


def progress_panel(rows: Sequence[Mapping[str, float]], snapshots: Mapping[str, Any], probes: Any) -> Figure:
    """The panel that a notebook shows while it trains: the −ELBO so far, and the snapshots of the last epoch.

    Args:
        rows: the history's rows so far.
        snapshots: the history's snapshots so far.
        probes: what was fixed in advance: images ``train`` and ``held_out`` (n, 1, 28, 28).
    """
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(12, 3.4), width_ratios=[1, 2.2])
        shown = [row for row in rows if row["epoch"] >= 1] or list(rows)
        for split, label, style in [("train", "train", "-"), ("held_out", "test", "--")]:
            values = [row[f"{split}_neg_elbo"] for row in shown]
            left.plot([row["epoch"] for row in shown], values, style, marker="o", color=COLOURS[label], label=label)
        left.set(xlabel="epoch", ylabel="nats per image", title=f"−ELBO: test {shown[-1]['held_out_neg_elbo']:.1f}")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.legend()
        labels = ["train x", "rebuilt", "test x", "rebuilt", "generated"]
        last = {name: images[-1] for name, images in snapshots.items()}
        stacks = [probes.train, last["train"], probes.held_out, last["held_out"], last["prior"]]
        n_columns = min(len(images) for images in stacks)
        images = np.concatenate([np.asarray(images[:n_columns]) for images in stacks])
        draw_tiles(right, images, n_columns, labels, f"epoch {rows[-1]['epoch']}")
    return fig


def latent_scatter(ax: Axes, mu: Any, y: Any, axis_names: Sequence[str] = ("$z_1$", "$z_2$")) -> None:
    """Draw posterior means (N, 2) coloured by label, each class named at its median, with the prior's circles.

    Args:
        ax: where to draw.
        mu: posterior means, (N, 2).
        y: labels 0 to 9, (N,).
        axis_names: labels of the two axes.
    """
    mu, y = np.asarray(mu), np.asarray(y)
    if mu.ndim != 2 or mu.shape[1] != 2 or len(mu) != len(y):
        raise ValueError(f"need mu (N, 2) and N labels, got {mu.shape} and {y.shape}")
    palette = sns.color_palette("colorblind", 10)
    limit = max(4.0, float(np.abs(mu).max()) * 1.02)
    # Drawn in one call, in the file's order, so that no class is painted over all the others.
    ax.scatter(mu[:, 0], mu[:, 1], c=np.array(palette)[y], s=4, alpha=0.5, linewidths=0, rasterized=True)
    labels = np.unique(y)
    centres = _apart([np.median(mu[y == label], axis=0) for label in labels], 0.15 * limit)
    for label, centre in zip(labels, centres, strict=True):
        text = ax.text(
            centre[0], centre[1], str(label), fontsize=14, fontweight="bold", ha="center", va="center", zorder=5
        )
        text.set_bbox({"facecolor": palette[label], "edgecolor": "black", "boxstyle": "circle,pad=0.2", "alpha": 0.9})
    masses = np.array([0.5, 0.95, 0.999])
    radii = np.sqrt(-2 * np.log(1 - masses))  # within which the 2-D standard normal has these masses
    # The circles' names stand on one ray, the one that keeps farthest from the classes' names.
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places = rays[:, None] * radii[:, None]
    distance = np.linalg.norm(places[:, :, None] - centres, axis=-1).min(axis=(1, 2))
    for mass, radius, place in zip(masses, radii, places[distance.argmax()], strict=True):
        ax.add_patch(Circle((0, 0), radius, fill=False, color=COLOURS["reference"], linestyle="--", linewidth=1.2))
        text = ax.text(place[0], place[1], f"{100 * mass:g} %", fontsize=10, ha="center", va="center", zorder=4.5)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.1", "alpha": 0.8})
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=axis_names[0], ylabel=axis_names[1])


def _apart(centres: Sequence[npt.ArrayLike], distance: float) -> npt.NDArray[np.floating]:
    """Push points (n, 2) that are closer than ``distance`` away from one another, so that their names stay legible."""
    points = np.array(centres, dtype=float)
    for _ in range(200):
        gap = points[:, None] - points
        length = np.linalg.norm(gap, axis=-1, keepdims=True)
        points = points + np.where(length < distance, 0.1 * gap / np.maximum(length, 1e-9), 0).sum(axis=1)
    return points


def draw_manifold(ax: Axes, images: Any, title: str = "") -> None:
    """Draw decoded grid images (n, n, 1, 28, 28) as one picture; the first index is z_2, upwards as in a plot."""
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[2:] != (1, 28, 28):
        raise ValueError(f"need a grid of images (n, n, 1, 28, 28), got {images.shape}")
    draw_tiles(ax, images[::-1].reshape(-1, 1, 28, 28), images.shape[1], title=title)
    ax.set(xlabel="$z_1$, in quantiles of the prior →", ylabel="$z_2$, in quantiles of the prior →")


def save_figure(fig: Figure, name: str) -> Path:
    """Save as ``figures/<name>.png``, moved into place when complete, and return the path."""
    path = paths.figures_dir() / f"{name}.png"
    with paths.atomic_write(path) as partial, plt.rc_context(STYLE):
        fig.savefig(partial, metadata={"Software": None})  # no version stamp: equal pixels, equal file
    return path


def to_png(fig: Figure) -> bytes:
    """The figure as PNG bytes; the figure is closed."""
    buffer = io.BytesIO()
    with plt.rc_context(STYLE | {"savefig.bbox": None}):  # not cropped: the frames of a film have one size
        fig.savefig(buffer, format="png", dpi=100)
    plt.close(fig)
    return buffer.getvalue()


def save_gif(frames: Sequence[bytes], name: str, seconds: float = 0.6) -> Path:
    """Save PNG frames as ``figures/<name>.gif``, each shown ``seconds``, the last one for two more.

    Args:
        frames: PNG images of one size, such as those of :func:`to_png`.
        name: file name without its suffix.
        seconds: duration of a frame.
    """
    if not frames:
        raise ValueError("a GIF needs at least one frame")
    images = [Image.open(io.BytesIO(frame)).convert("RGB").quantize(64) for frame in frames]
    durations = [int(1000 * seconds)] * (len(images) - 1) + [int(1000 * seconds) + 2000]
    path = paths.figures_dir() / f"{name}.gif"
    with paths.atomic_write(path) as partial:
        images[0].save(partial, save_all=True, append_images=images[1:], duration=durations, loop=0)
    return path
