"""What the drawings share: style and palette, pictures of digits, curves of a training, the plane of codes; saving."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import seaborn as sns
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.text import Text
from PIL import Image

from tme_utils import paths

# One colour for one thing, from seaborn's colour-blind-safe palette.
COLOURS = {"train": "#0173b2", "test": "#de8f05", "recon": "#029e73", "kl": "#d55e00", "reference": "0.35"}
STYLE: Any = {
    "figure.dpi": 75,  # a notebook shows twice as many, which are those of a file; see use_style
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
CENTRED: Any = {"ha": "center", "va": "center"}
PITCH = 29  # pixels from one tile to the next: 28 of image and one of paper
Rows = Sequence[Mapping[str, float]]  # of a history
Labels = Sequence[str]


def use_style() -> None:
    """Draw as the report does from here on, whatever this machine had set; the backend stays.

    A notebook then shows a figure with twice ``figure.dpi`` at the same size: sharp on today's screens.
    """
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats  # its import sets a notebook up to draw

        set_matplotlib_formats("retina")
    matplotlib.rcdefaults()
    plt.rcParams.update(STYLE)


def panel_axes(
    titles: Iterable[str], size: tuple[float, float], shape: tuple[int, int] | None = None, **options: Any
) -> tuple[Figure, list[Axes]]:
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


def note(ax: Axes, text: str, place: tuple[float, float], shift: tuple[float, float], **options: Any) -> Text:
    """Write a text some points (1/72 inch) away from a place of the axes."""
    return ax.annotate(text, place, shift, textcoords="offset points", **options)


def log2_axis(ax: Axes, values: Sequence[int], label: str) -> None:
    """Make the horizontal axis logarithmic, with a tick at each value."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, [str(value) for value in values])
    ax.xaxis.minorticks_off()
    ax.set_xlabel(label)


def bare(ax: Axes) -> None:
    """Take frame and tick marks away; what is written at the ticks stays."""
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def tile(images: Any, n_columns: int) -> npt.NDArray[np.floating]:
    """Lay images (N, 1, 28, 28) in [0, 1] out row by row as one picture, ink on paper, a pixel of paper around each."""
    images = np.asarray(images, dtype=float)
    if n_columns < 1 or images.ndim != 4 or images.shape[1:] != (1, 28, 28):
        raise ValueError(f"need images (N, 1, 28, 28) and n_columns >= 1, got {images.shape} and {n_columns}")
    canvas = np.ones((-(-len(images) // n_columns) * PITCH + 1, n_columns * PITCH + 1))
    for i, image in enumerate(images[:, 0]):
        top, left = (PITCH * place + 1 for place in divmod(i, n_columns))
        canvas[top : top + 28, left : left + 28] = 1 - image
    return canvas


def draw_tiles(
    ax: Axes, images: Any, n_columns: int, row_labels: Labels = (), title: str = "", column_labels: Labels = ()
) -> None:
    """Draw images (N, 1, 28, 28) in rows of n_columns, with labels to the left of the rows and below the columns."""
    ax.imshow(tile(images, n_columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([15 + PITCH * i for i in range(len(column_labels))], column_labels)
    ax.set_yticks([15 + PITCH * i for i in range(len(row_labels))], row_labels)
    bare(ax)
    if title:
        ax.set_title(title)


def image_rows(rows: Mapping[str, Any], title: str = "", column_labels: Labels = ()) -> Figure:
    """One labelled row of images (N, 1, 28, 28) for each entry, such as originals above reconstructions."""
    n_images = [len(images) for images in rows.values()]
    if len(set(n_images)) != 1:
        raise ValueError(f"every row must hold as many images, got {n_images}")
    fig, ax = plt.subplots(figsize=(1.6 + 0.48 * n_images[0], 0.5 + 0.48 * len(rows)))
    images = np.concatenate([np.asarray(images) for images in rows.values()])
    draw_tiles(ax, images, n_images[0], list(rows), title, column_labels)
    return fig


def film_strips(strips: Mapping[str, tuple[Any, Any]], epochs: Sequence[int]) -> Figure:
    """Snapshots through training, side by side: each row one digit, its original first, then a column for each epoch.

    Originals (n, 1, 28, 28), or None as for draws of the prior; frames (n_epochs + 1, n, 1, 28, 28), from epoch 0 on.
    """
    columns = [len(epochs) + (originals is not None) for originals, _ in strips.values()]
    size = (0.5 * (sum(columns) + len(columns)), 0.8 + 0.5 * max(len(frames[0]) for _, frames in strips.values()))
    fig, axes = panel_axes(strips, size, width_ratios=columns)
    for ax, (originals, frames) in zip(axes, strips.values(), strict=True):
        shown = {} if originals is None else {"x": np.asarray(originals)}
        shown |= {str(epoch): np.asarray(frames[epoch]) for epoch in epochs}
        images = np.stack([*shown.values()], axis=1)  # (n, columns, 1, 28, 28)
        draw_tiles(ax, images.reshape(-1, 1, 28, 28), len(shown), column_labels=list(shown))
        ax.set_xlabel("epoch")
    return fig


def draw_manifold(ax: Axes, images: Any, title: str = "") -> None:
    """Draw decoded grid images (n, n, 1, 28, 28) as one picture; the first index is z_2, upwards as in a plot."""
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[2:] != (1, 28, 28):
        raise ValueError(f"need a grid of images (n, n, 1, 28, 28), got {images.shape}")
    draw_tiles(ax, images[::-1].reshape(-1, 1, 28, 28), images.shape[1], title=title)
    ax.set(xlabel="$z_1$, in quantiles of the prior →", ylabel="$z_2$, in quantiles of the prior →")


def _draw_curves(ax: Axes, rows: Rows, term: str, markersize: float) -> None:
    for split, label, style in [("train", "train", "o-"), ("held_out", "test", "o--")]:
        values = [row[f"{split}_{term}"] for row in rows]
        look: Any = {"color": COLOURS[label], "label": label, "markersize": markersize}
        ax.plot([row["epoch"] for row in rows], values, style, **look)
    ax.set(xlabel="epoch", ylabel="nats per image")
    ax.locator_params(axis="x", integer=True)


def training_curves(rows: Rows, floor: float, baseline: float) -> Figure:
    """recon, KL and −ELBO by epoch, in nats, for training and test images, with what recon can be measured against.

    No model lies below ``floor``, the entropy floor; ``baseline`` is the constant model that shows the mean image.
    """
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
        stacks = [probes.train, train, probes.held_out, held_out, prior]
        n_columns = min(map(len, stacks))
        images = np.concatenate([np.asarray(images[:n_columns]) for images in stacks])
        draw_tiles(axes[1], images, n_columns, ["train x", "rebuilt", "test x", "rebuilt", "generated"])
    return fig


def latent_scatter(ax: Axes, mu: Any, y: Any, axis_names: Sequence[str] = ("$z_1$", "$z_2$")) -> None:
    """Draw means (N, 2) coloured by labels (N,), each class named at its median; circles hold shares of the prior."""
    mu, y = np.asarray(mu), np.asarray(y)
    if mu.ndim != 2 or mu.shape[1] != 2 or len(mu) != len(y):
        raise ValueError(f"need mu (N, 2) and N labels, got {mu.shape} and {y.shape}")
    palette = sns.color_palette("colorblind", 10)
    limit = max(4.0, float(np.abs(mu).max()) * 1.02)
    # Drawn in one call, in the file's order, so that no class is painted over all the others.
    ax.scatter(mu[:, 0], mu[:, 1], c=np.array(palette)[y], s=4, alpha=0.5, linewidths=0, rasterized=True)
    labels = np.unique(y)
    centres = _apart(np.array([np.median(mu[y == label], axis=0) for label in labels]), 0.15 * limit)
    for label, (z1, z2) in zip(labels, centres.tolist(), strict=True):
        box = {"facecolor": palette[label], "edgecolor": "black", "boxstyle": "circle,pad=0.2", "alpha": 0.9}
        ax.text(z1, z2, str(label), fontsize=14, fontweight="bold", zorder=5, bbox=box, **CENTRED)
    masses = np.array([0.5, 0.95, 0.999])
    radii = np.sqrt(-2 * np.log(1 - masses))  # within which the 2-D standard normal has these masses
    # The circles' names stand on one ray, the one that keeps farthest from the classes' names.
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None] * radii[:, None]
    distance = np.linalg.norm(places[:, :, None] - centres, axis=-1).min(axis=(1, 2))
    for mass, radius, (z1, z2) in zip(masses, radii, places[distance.argmax()].tolist(), strict=True):
        ax.add_patch(Circle((0, 0), radius, fill=False, color=COLOURS["reference"], linestyle="--", linewidth=1.2))
        box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.1", "alpha": 0.8}
        ax.text(z1, z2, f"{100 * mass:g} %", fontsize=10, zorder=4.5, bbox=box, **CENTRED)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=axis_names[0], ylabel=axis_names[1])


def _apart(points: npt.NDArray[np.floating], distance: float) -> npt.NDArray[np.floating]:
    """Push points (n, 2) that are closer than ``distance`` away from one another, so that their names stay legible."""
    for _ in range(200):
        gap = points[:, None] - points
        length = np.linalg.norm(gap, axis=-1, keepdims=True)
        points = points + np.where(length < distance, 0.1 * gap / np.maximum(length, 1e-9), 0).sum(axis=1)
    return points


def save_figure(fig: Figure, name: str) -> Path:
    """Save as ``figures/<name>.png``, moved into place when complete, and return the path."""
    path = paths.figures_dir() / f"{name}.png"
    with paths.atomic_write(path) as partial:
        fig.savefig(partial, metadata={"Software": None})  # no version stamp: equal pixels, equal file
    return path


def to_png(fig: Figure) -> bytes:
    """The figure as PNG bytes; the figure is closed."""
    buffer = io.BytesIO()
    with plt.rc_context({"savefig.bbox": None}):  # not cropped: the frames of a film have one size
        fig.savefig(buffer, format="png", dpi=100)
    plt.close(fig)
    return buffer.getvalue()


def save_gif(frames: Sequence[bytes], name: str, seconds: float = 0.6) -> Path:
    """Save PNG frames of one size as ``figures/<name>.gif``, each shown ``seconds``, the last one for two more."""
    if not frames:
        raise ValueError("a GIF needs at least one frame")
    images = [Image.open(io.BytesIO(frame)).convert("RGB").quantize(64) for frame in frames]
    durations = [1000 * seconds] * (len(images) - 1) + [1000 * seconds + 2000]
    path = paths.figures_dir() / f"{name}.gif"
    with paths.atomic_write(path) as partial:
        images[0].save(partial, save_all=True, append_images=images[1:], duration=durations, loop=0)
    return path
