"""MNIST as in-memory tensors: training, validation and test images, and one fixed batch for display."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity

from tme_utils import paths

N_TRAIN = 50_000  # of the training file's 60,000 images; the last 10,000 are the validation split
SPLITS = {
    "train": (True, slice(0, N_TRAIN)),
    "validation": (True, slice(N_TRAIN, None)),
    "train+validation": (True, slice(None)),
    "test": (False, slice(None)),
}


class Images(NamedTuple):
    """Images x, float32 (N, 1, 28, 28) in [0, 1], and their labels y, int64 (N,)."""

    x: Tensor
    y: Tensor


def load_mnist(split: str, root: Path | str = paths.DATA) -> Images:
    """Load one split of MNIST from the archives in ``root/MNIST/raw``; nothing is downloaded.

    torchvision verifies the archives and unpacks them, into a temporary folder that goes away afterwards: an
    interrupted run leaves nothing behind, and ``root`` may be read-only.

    Args:
        split: "train" (the first 50,000 images of the training file), "validation" (its last 10,000),
            "train+validation" (all 60,000, for final fits) or "test" (10,000).
        root: folder that holds ``MNIST/raw``.

    Returns:
        ``Images(x, y)``.

    Raises:
        ValueError: for an unknown split, or an archive that is damaged.
        FileNotFoundError: for a missing archive.
        OSError: if there is no room to unpack the archives; it names the folder.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(map(repr, SPLITS))}")
    archives = Path(root) / "MNIST" / "raw"
    for name, md5 in MNIST.resources:
        _check_archive(archives / name, md5)
    is_train, part = SPLITS[split]
    with paths.naming(tempfile.gettempdir()), tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, _ in MNIST.resources:
            shutil.copyfile(archives / name, raw / name)
        dataset = MNIST(folder, train=is_train, download=True)  # finds the archives there: no request is made
    return Images(x=dataset.data[part].unsqueeze(1).float() / 255, y=dataset.targets[part])


def _check_archive(path: Path, md5: str) -> None:
    restore = f"restore it with `git checkout -- data/MNIST/raw/{path.name}`, or copy the original there"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {restore}")
    if not check_integrity(str(path), md5):
        raise ValueError(f"{path} is damaged (its md5 sum is not {md5}); {restore}")


def display_batch(images: Images, per_class: int = 2) -> Images:
    """The fixed digits that every figure shows: the first ``per_class`` images of each class, in class order.

    Args:
        images: one split.
        per_class: number of images of each class.

    Returns:
        ``Images`` of 10 * per_class digits: 0, 0, 1, 1, ... for two per class.

    Raises:
        ValueError: if ``per_class`` is not positive, or a class has fewer images.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    chosen = []
    for label in range(10):
        index = (images.y == label).nonzero().flatten()
        if len(index) < per_class:
            raise ValueError(f"class {label} has {len(index)} images, fewer than per_class = {per_class}")
        chosen.append(index[:per_class])
    index = torch.cat(chosen)
    return Images(images.x[index], images.y[index])


def binarise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Dynamic binarisation: every pixel becomes 1 with probability x, else 0.

    Args:
        x: grey images in [0, 1], floating-point, any shape.
        generator: source of the draws; a new call draws new images.

    Returns:
        Images of zeros and ones, of the shape and type of x.

    Raises:
        ValueError: if x is not floating-point, or a pixel lies outside [0, 1].

    Source: Salakhutdinov and Murray (2008); Burda et al. (2015) draw anew at every epoch.
    """
    if not x.is_floating_point():
        raise ValueError(f"x must be floating-point images in [0, 1], got {x.dtype}")
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):  # written so that NaN fails too
        raise ValueError(f"pixels must lie in [0, 1], got values from {x.min():.4g} to {x.max():.4g}")
    return torch.bernoulli(x, generator=generator)
