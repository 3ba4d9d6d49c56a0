"""What the drawings share: style and palette, pictures of digits, curves of a training; saving."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from tme_utils import paths

# One colour for one thing, from seaborn's colour-blind-safe palette.
COLOURS = {"train": "#0173b2", "test": "#de8f05", "recon": "#029e73", "kl": "#d55e00", "reference": "0.35"}
CENTRED: Any = {"ha": "center", "va": "center"}
PITCH = 29  # pixels from one tile to the next: 28 of image and one of paper

# Arrays, of numpy or torch, are named by what they hold; images have their pixels in [0, 1].
Images = Float[Any, "n 1 28 28"]
Grid = Float[Any, "rows columns 1 28 28"]
Labels = Sequence[str]
Rows = Sequence[Mapping[str, float]]  # of a history
Pair = tuple[float, float]


def use_style() -> None:
    """Draw, and let torch compute, as the report does from here on, whatever this machine had set before."""
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    if (shell := get_ipython()) is not None and hasattr(shell, "kernel"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        shell.run_line_magic("matplotlib", "inline")  # a variable may have named a backend that shows nothing
        set_matplotlib_formats("retina")
    plt.rcdefaults()
    plt.rc("figure", dpi=75)  # "retina" shows twice as many at the same size: those of a file, sharp on today's screens
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("savefig", dpi=150, bbox="tight")
    plt.rc("font", size=12)
    plt.rc("axes", titlesize=13)
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("legend", frameon=False)
    plt.rc("lines", linewidth=2)


def panel_axes(titles: Iterable[str], size: Pair, shape: Any = None, **options: Any) -> tuple[Figure, list[Axes]]:
    """Titled axes in a figure of ``size`` inches: in one row, or in (rows, columns) of which the last stay empty."""
    titles = list(titles)
    fig, axes = plt.subplots(*(shape or (1, len(titles))), figsize=size, squeeze=False, **options)
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(title)
    for ax in axes.flat[len(titles) :]:
        ax.axis("off")
    return fig, list(axes.flat[: len(titles)])


def number(value: float, spec: str = "g") -> str:
    """The number as text, with a minus sign instead of a hyphen."""
    return f"{value:{spec}}".replace("-", "−")


def note(ax: Axes, text: str, place: Pair, shift: Pair, **options: Any) -> None:
    """Write a text some points (1/72 inch) away from a place of the axes."""
    ax.annotate(text, place, shift, textcoords="offset points", **options)


def log2_axis(ax: Axes, values: Sequence[int], label: str) -> None:
    """Make the horizontal axis logarithmic, with a tick at each value."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, [str(value) for value in values])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(label)


def tile(grid: Grid) -> Float[np.ndarray, "height width"]:
    """Lay a grid of images out as one picture: ink on paper, with a pixel of paper around each image."""
    grid = np.asarray(grid, dtype=float)
    if grid.shape[2:] != (1, 28, 28):
        raise ValueError(f"need a grid of images (rows, columns, 1, 28, 28), got {grid.shape}")
    framed = np.pad(1 - grid[:, :, 0], [(0, 0), (0, 0), (1, 0), (1, 0)], constant_values=1)  # above and to the left
    picture = framed.swapaxes(1, 2).reshape(len(grid) * PITCH, -1)
    return np.pad(picture, (0, 1), constant_values=1)


def draw_tiles(ax: Axes, grid: Grid, row_labels: Labels = (), column_labels: Labels = ()) -> None:
    """Draw a grid of images with labels to the left of its rows and below its columns."""
    ax.imshow(tile(grid), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([15 + PITCH * i for i in range(len(column_labels))], column_labels)
    ax.set_yticks([15 + PITCH * i for i in range(len(row_labels))], row_labels)
    ax.tick_params(length=0)
    ax.set_frame_on(False)


def image_rows(rows: Mapping[str, Images], title: str = "", column_labels: Labels = ()) -> Figure:
    """One labelled row of images for each entry, such as originals above reconstructions."""
    grid = np.stack([np.asarray(images) for images in rows.values()])
    fig, (ax,) = panel_axes([title], (1.6 + 0.48 * grid.shape[1], 0.5 + 0.48 * len(rows)))
    draw_tiles(ax, grid, list(rows), column_labels)
    return fig


def film_strips(strips: Mapping[str, tuple[Images | None, Sequence[Images]]], epochs: Sequence[int]) -> Figure:
    """Snapshots from epoch 0 on, side by side: each row one digit, its original first if any, then some epochs."""
    columns = [len(epochs) + (originals is not None) for originals, _ in strips.values()]
    size = (0.5 * (sum(columns) + len(columns)), 0.8 + 0.5 * max(len(frames[0]) for _, frames in strips.values()))
    fig, axes = panel_axes(strips, size, width_ratios=columns)
    for ax, (originals, frames) in zip(axes, strips.values(), strict=True):
        shown = {} if originals is None else {"x": np.asarray(originals)}
        shown |= {str(epoch): np.asarray(frames[epoch]) for epoch in epochs}
        draw_tiles(ax, np.stack([*shown.values()], axis=1), column_labels=list(shown))
        ax.set_xlabel("epoch")
    return fig


def draw_manifold(ax: Axes, images: Grid, title: str = "") -> None:
    """Draw decoded grid images as one picture; their first index is z_2, upwards as in a plot."""
    draw_tiles(ax, np.asarray(images)[::-1])
    ax.set(title=title, xlabel="$z_1$, in quantiles of the prior →", ylabel="$z_2$, in quantiles of the prior →")


def _draw_curves(ax: Axes, rows: Rows, term: str, markersize: float) -> None:
    for split, label, style in [("train", "train", "o-"), ("held_out", "test", "o--")]:
        values = [row[f"{split}_{term}"] for row in rows]
        ax.plot([row["epoch"] for row in rows], values, style, color=COLOURS[label], label=label, markersize=markersize)
    ax.set(xlabel="epoch", ylabel="nats per image")
    ax.locator_params(axis="x", integer=True)


def training_curves(rows: Rows, floor: float, baseline: float) -> Figure:
    """recon, KL and −ELBO by epoch, in nats; recon lies between the entropy floor and that of a constant mean image."""
    if not rows:
        raise ValueError("the history must hold at least one row, got none: was the training stopped?")
    fig, axes = panel_axes(["recon", "KL", "−ELBO = recon + KL"], (12, 3.8))
    for ax, term in zip(axes, ["recon", "kl", "neg_elbo"], strict=True):
        _draw_curves(ax, rows, term, markersize=4)
    axes[0].set_ylim(floor - 12, baseline + 25)
    for value, text, shift in [(floor, "entropy floor", 5), (baseline, "mean image", -15)]:
        axes[0].axhline(value, color=COLOURS["reference"], linestyle=":", linewidth=1.5)
        note(axes[0], f"{text} {value:.1f}", (rows[-1]["epoch"], value), (0, shift), ha="right", fontsize=11)
    values = [row[f"{split}_neg_elbo"] for row in rows[1:] or rows for split in ("train", "held_out")]
    margin = 0.06 * (max(values) - min(values)) + 0.1
    axes[2].set_ylim(min(values) - margin, max(values) + margin)
    for ax, term in [(axes[0], "recon"), (axes[2], "neg_elbo")]:
        first = rows[0][f"held_out_{term}"]
        if first > ax.get_ylim()[1]:
            above = f"epoch {rows[0]['epoch']}: {first:.0f}, above the axis"
            ax.annotate(above, (0.99, 1.0), xycoords="axes fraction", ha="right", va="top", fontsize=11)
    axes[1].legend(loc="lower right")
    return fig


def progress_panel(rows: Rows, snapshots: Mapping[str, Any], probes: Any) -> Figure:
    """What a notebook shows of a history while it trains: the −ELBO and, if there are probes, the last snapshots."""
    titles = [f"−ELBO: test {rows[-1]['held_out_neg_elbo']:.1f}", f"epoch {rows[-1]['epoch']}"]
    alone = probes is None or not snapshots
    fig, axes = panel_axes(titles[:1], (5, 3.4)) if alone else panel_axes(titles, (12, 3.4), width_ratios=[1, 2.2])
    _draw_curves(axes[0], rows[1:] or rows, "neg_elbo", markersize=6)
    axes[0].legend()
    if not alone:
        train, held_out, prior = (snapshots[name][-1] for name in ("train", "held_out", "prior"))
        shown = [probes.train, train, probes.held_out, held_out, prior]
        grid = np.stack([np.asarray(images[: min(map(len, shown))]) for images in shown])
        draw_tiles(axes[1], grid, ["train x", "rebuilt", "test x", "rebuilt", "generated"])
    return fig


def save_figure(fig: Figure, name: str) -> None:
    """Save as ``figures/<name>.png``, moved into place when complete."""
    with paths.atomic_write(paths.figures_dir() / f"{name}.png") as partial:
        fig.savefig(partial, metadata={"Software": None})  # no version stamp: equal pixels, equal file


def to_png(fig: Figure) -> bytes:
    """The figure as PNG bytes; the figure is closed."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, bbox_inches=fig.bbox_inches)  # uncropped, all of one size
    plt.close(fig)
    return buffer.getvalue()


def save_gif(frames: Sequence[bytes], name: str) -> None:
    """Save PNG frames of one size as ``figures/<name>.gif``, each shown for 0.6 seconds, the last for two more."""
    if not frames:
        raise ValueError("a GIF needs at least one frame")
    images = [Image.open(io.BytesIO(frame)).convert("RGB").quantize(64) for frame in frames]
    durations = [600] * (len(images) - 1) + [2600]  # milliseconds
    with paths.atomic_write(paths.figures_dir() / f"{name}.gif") as partial:
        images[0].save(partial, save_all=True, append_images=images[1:], duration=durations, loop=0)
