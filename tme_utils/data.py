"""MNIST, and other sets of its kind, as in-memory tensors: training, validation and test; one batch for display."""

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from tme_utils import paths
from tme_utils.vae import as_int, check_images

SPLITS = ("train", "validation", "train+validation", "test")
TRAINING_IMAGES = f"{MNIST.resources[0][0]} md5 {MNIST.resources[0][1]}"  # names the 60,000 without reading them


class Images(NamedTuple):
    """Images in [0, 1] and their labels."""

    x: Float[Tensor, "n 1 28 28"]
    y: Int64[Tensor, "n"]


def load_mnist(split: str, root: Path | str = paths.DATA) -> Images:
    """Load one split of MNIST by :func:`load_images`, once the archives in ``root/MNIST/raw`` have been verified.

    Raises:
        ValueError: for an unknown split, or an archive that is damaged.
        FileNotFoundError: for a missing archive.
    """
    raw = Path(root).expanduser() / "MNIST" / "raw"
    for name, md5 in MNIST.resources:
        mend = f"in a clone, restore it with `git checkout -- data/MNIST/raw/{name}`"
        if not (raw / name).is_file():
            raise FileNotFoundError(f"{raw / name} is missing; {mend}")
        if not check_integrity(str(raw / name), md5):
            raise ValueError(f"{raw / name} is damaged (its md5 sum is not {md5}); {mend}; of another set: load_images")
    return load_images(split, raw)


def load_images(split: str, folder: Path | str) -> Images:
    """Load one split of a set in MNIST's format and under its four names, packed (``.gz``) or not.

    The splits are "train" (the first five sixths of the training file, of MNIST 50,000 images), "validation" (the rest
    of it), "train+validation" (all of it, for final fits) and "test". Labels stay as they are.

    Raises:
        ValueError: for an unknown split, or files that are damaged or hold anything but images of 28 by 28 pixels.
        FileNotFoundError: for a missing file.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(map(repr, SPLITS))}")
    stem = Path(folder).expanduser() / ("t10k" if split == "test" else "train")
    x, y = _read(read_image_file, f"{stem}-images-idx3-ubyte"), _read(read_label_file, f"{stem}-labels-idx1-ubyte")
    if len(y) == 0 or x.shape != (len(y), 28, 28):
        raise ValueError(f"{stem}-* must hold images (n, 28, 28) and n labels, got {(*x.shape,)} and {(*y.shape,)}")
    cut = len(y) * 5 // 6
    part = {"train": slice(cut), "validation": slice(cut, None)}.get(split, slice(None))
    return Images(x=x[part].unsqueeze(1).float() / 255, y=y[part])


def _read(read: Callable[[str], Tensor], name: str) -> Tensor:
    """Read one of the four files by torchvision, unpacked into a temporary folder: its own may be read-only."""
    path, packed = Path(name), Path(f"{name}.gz")
    if not packed.is_file() and not path.is_file():
        raise FileNotFoundError(f"neither {packed} nor {path.name} is there")
    try:
        with tempfile.TemporaryDirectory() as folder:
            if packed.is_file():
                path = Path(folder) / path.name
                with gzip.open(packed) as archive, path.open("wb") as file:
                    shutil.copyfileobj(archive, file)
            return read(str(path))
    except (OSError, EOFError, zlib.error, ValueError, IndexError, RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"{packed} is damaged, or not in MNIST's format: {error}") from error


def display_batch(images: Images, per_class: int = 2) -> Images:
    """The fixed images that every figure shows: the first ``per_class`` of each class, of MNIST 0, 0, 1, 1, ..."""
    per_class = as_int("per_class", per_class)
    chosen = {label: (images.y == label).nonzero().flatten()[:per_class] for label in images.y.unique().tolist()}
    if short := [label for label, index in chosen.items() if len(index) < per_class]:
        raise ValueError(f"the classes {short} have fewer images than per_class = {per_class}")
    index = torch.cat([*chosen.values()])
    return Images(images.x[index], images.y[index])


def binarise(x: Float[Tensor, "b 1 28 28"], generator: torch.Generator) -> Float[Tensor, "b 1 28 28"]:
    """Dynamic binarisation: every pixel becomes 1 with probability x, else 0; a new call draws new images.

    Source: Salakhutdinov and Murray (2008); Burda et al. (2015) draw anew at every epoch.
    """
    check_images(x)
    return torch.bernoulli(x, generator=generator)
