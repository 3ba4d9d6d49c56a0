"""MNIST as in-memory tensors: training, validation and test images, and one fixed batch for display."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity

from tme_utils import paths
from tme_utils.vae import as_int, check_images

N_TRAIN = 50_000  # of the training file's 60,000 images; the last 10,000 are the validation split
SPLITS = {
    "train": (True, slice(0, N_TRAIN)),
    "validation": (True, slice(N_TRAIN, None)),
    "train+validation": (True, slice(None)),
    "test": (False, slice(None)),
}
TRAINING_IMAGES = f"{MNIST.resources[0][0]} md5 {MNIST.resources[0][1]}"  # names the 60,000 without reading them


class Images(NamedTuple):
    """Images in [0, 1] and their labels."""

    x: Float[Tensor, "n 1 28 28"]
    y: Int64[Tensor, "n"]


def load_mnist(split: str, root: Path | str = paths.DATA) -> Images:
    """Load one split of MNIST from the archives in ``root/MNIST/raw``; nothing is downloaded.

    The splits are "train" (the first 50,000 images of the training file), "validation" (its last 10,000),
    "train+validation" (all 60,000, for final fits) and "test" (10,000). torchvision verifies the archives and unpacks
    them into a temporary folder: an interrupted run leaves nothing behind, and ``root`` may be read-only.

    Raises:
        ValueError: for an unknown split, or an archive that is damaged.
        FileNotFoundError: for a missing archive.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(map(repr, SPLITS))}")
    is_train, part = SPLITS[split]
    archives = Path(root) / "MNIST" / "raw"
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, md5 in MNIST.resources:
            archive, mend = archives / name, f"restore it with `git checkout -- data/MNIST/raw/{name}`"
            if not archive.is_file():
                raise FileNotFoundError(f"{archive} is missing; {mend}")
            if not check_integrity(str(archive), md5):
                raise ValueError(f"{archive} is damaged (its md5 sum is not {md5}); {mend}")
            shutil.copyfile(archive, raw / name)
        dataset = MNIST(folder, train=is_train, download=True)  # finds the archives there: no request is made
    return Images(x=dataset.data[part].unsqueeze(1).float() / 255, y=dataset.targets[part])


def display_batch(images: Images, per_class: int = 2) -> Images:
    """The fixed digits that every figure shows: the first ``per_class`` images of each class, 0, 0, 1, 1, ..."""
    per_class = as_int("per_class", per_class)
    chosen = [(images.y == label).nonzero().flatten()[:per_class] for label in range(10)]
    if short := [label for label, index in enumerate(chosen) if len(index) < per_class]:
        raise ValueError(f"the classes {short} have fewer images than per_class = {per_class}")
    index = torch.cat(chosen)
    return Images(images.x[index], images.y[index])


def binarise(x: Float[Tensor, "b 1 28 28"], generator: torch.Generator) -> Float[Tensor, "b 1 28 28"]:
    """Dynamic binarisation: every pixel becomes 1 with probability x, else 0; a new call draws new images.

    Source: Salakhutdinov and Murray (2008); Burda et al. (2015) draw anew at every epoch.
    """
    check_images(x)
    return torch.bernoulli(x, generator=generator)
