"""MNIST in memory, the display digits, binarisation."""

import gzip
import shutil
import struct
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torchvision.datasets import MNIST

from tme_utils import paths, plots
from tme_utils.data import Images, binarise, display_batch, load_images, load_mnist
from tme_utils.explorer import LatentExplorer
from tme_utils.metrics import posterior_parameters, recon_scale
from tme_utils.training import Recipe, fit

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
CLOTHES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def test_the_splits_are_the_files_parts_in_their_order(mnist_train, mnist_test):
    train, validation = load_mnist("train"), load_mnist("validation")
    assert (len(train.x), len(validation.x), len(mnist_test.x)) == (50_000, 10_000, 10_000)
    assert torch.equal(torch.cat([train.x, validation.x]), mnist_train.x)
    assert torch.equal(torch.cat([train.y, validation.y]), mnist_train.y)
    assert mnist_train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist_test.y[:5].tolist() == [7, 2, 1, 0, 4]


def test_images_are_grey_levels_from_0_to_1(mnist_test):
    x, y = mnist_test
    assert (x.dtype, y.dtype, x.shape[1:]) == (torch.float32, torch.int64, (1, 28, 28))
    assert (x.min(), x.max()) == (0, 1)
    assert torch.equal((x * 255).round() / 255, x)
    assert ((x > 0) & (x < 1)).double().mean() == pytest.approx(0.186, abs=0.001)
    assert x[0, 0, 7:9].sum() > x[0, 0, 9:20, :8].sum()  # the bar of the first 7 is above: rows run downwards


def test_a_damaged_or_missing_archive_is_named(tmp_path):
    shutil.copytree(paths.DATA / "MNIST", tmp_path / "MNIST")
    archive = tmp_path / "MNIST" / "raw" / MNIST.resources[2][0]
    archive.write_bytes(b"half an archive")
    with pytest.raises(ValueError, match=f"{archive.name} is damaged .*git checkout"):
        load_mnist("test", tmp_path)
    archive.unlink()
    with pytest.raises(FileNotFoundError, match=f"{archive.name} is missing.*git checkout"):
        load_mnist("test", tmp_path)


def write_set(folder, images, labels, stem="train", pack=gzip.compress):
    """Write images (n, h, w) and labels in MNIST's format, packed or not."""
    for kind, array in [("images-idx3", images), ("labels-idx1", labels)]:
        head = struct.pack(f">BBBB{array.dim()}i", 0, 0, 8, array.dim(), *array.shape)
        content = head + bytes(array.flatten().int().tolist())
        (folder / f"{stem}-{kind}-ubyte{'.gz' if pack else ''}").write_bytes((pack or bytes)(content))


@pytest.mark.parametrize("pack", [gzip.compress, None])
def test_another_set_of_the_same_format_is_loaded_with_its_own_labels(pack, tmp_path, generator):
    images = torch.randint(0, 256, (52, 28, 28), generator=generator())
    labels = torch.arange(52) % 26 + 1  # those of EMNIST's letters
    write_set(tmp_path, images, labels, pack=pack)
    whole, train, validation = (load_images(split, tmp_path) for split in ("train+validation", "train", "validation"))
    assert (len(train.x), len(validation.x)) == (43, 9)
    assert torch.equal(torch.cat([train.x, validation.x]), whole.x)
    assert torch.equal((whole.x * 255).round().long(), images[:, None])
    assert torch.equal(whole.y, labels)
    assert display_batch(whole).y.tolist() == sorted(labels.tolist())
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte"):
        load_images("test", tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": torch.zeros(4, 27, 28)}, r"must hold images \(n, 28, 28\) and n labels, got \(4, 27, 28\)"),
        ({"images": torch.zeros(3, 28, 28)}, r"got \(3, 28, 28\) and \(4,\)"),
        ({"images": torch.zeros(0, 28, 28), "labels": torch.zeros(0)}, "is damaged, or not in"),
        ({"pack": lambda content: gzip.compress(content[:-1])}, "is damaged, or not in MNIST's format"),
        ({"pack": lambda content: gzip.compress(content)[:-9]}, "is damaged, or not in MNIST's format: Compressed"),
        ({"pack": lambda content: b"<html>"}, "is damaged, or not in MNIST's format: Not a gzipped file"),
        ({"pack": lambda content: gzip.compress(b"")}, "is damaged, or not in MNIST's format: "),
    ],
)
def test_files_of_another_kind_are_refused(changed, message, tmp_path):
    write_set(tmp_path, **{"images": torch.zeros(4, 28, 28), "labels": torch.zeros(4)} | changed)
    with pytest.raises(ValueError, match=message):
        load_images("train", tmp_path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Fashion-MNIST: apt-get install dataset-fashion-mnist")
def test_clothes_go_from_their_files_through_training_plots_and_explorer(build, tmp_path):
    train, test = load_images("train", FASHION), load_images("test", FASHION)
    assert (len(train.x), test.y.bincount().tolist()) == (50_000, [1000] * 10)
    model = build()
    history = fit(model, train.x[:10_000], test.x[:1_000], Recipe(n_epochs=2, batch_size=32), progress=False)
    floor, baseline = recon_scale(train.x, test.x)
    assert floor < history.rows[-1]["held_out_recon"] < baseline
    x, y = test.x[:500], test.y[:500]
    _, ax = plt.subplots()
    plots.latent_scatter(ax, posterior_parameters(model, x)[0], y, class_names=CLOTHES)
    assert {text.get_text() for text in ax.texts} >= set(CLOTHES)
    page = LatentExplorer(model, x, y, class_names=CLOTHES).to_html(tmp_path / "clothes.html").read_text("utf-8")
    assert all(f'"{name}"' in page for name in CLOTHES)


def test_an_unknown_split_is_told_with_the_known_ones():
    with pytest.raises(ValueError, match="'valid'; the splits are 'train', 'validation'"):
        load_mnist("valid")


def test_the_display_digits_are_the_first_of_each_class(mnist_test):
    shown = display_batch(mnist_test)
    assert shown.y.tolist() == [label for label in range(10) for _ in range(2)]
    for label in range(10):
        assert torch.equal(shown.x[2 * label : 2 * label + 2], mnist_test.x[mnist_test.y == label][:2])
    few = Images(mnist_test.x[:20], mnist_test.y[:20])
    with pytest.raises(ValueError, match=r"the classes \[2, 3, 6\] have fewer images than per_class = 2"):
        display_batch(few)
    with pytest.raises(ValueError, match="per_class must be an integer >= 1"):
        display_batch(few, 0)


def test_binarised_pixels_are_one_as_often_as_they_are_grey(generator):
    x = torch.linspace(0, 1, 784).reshape(1, 1, 28, 28).expand(2000, -1, -1, -1)
    drawn = binarise(x, generator())
    assert set(drawn.unique().tolist()) == {0, 1}
    assert (drawn.mean(0) - x[0]).abs().max() < 5 * 0.5 / 2000**0.5
    assert torch.equal(drawn, binarise(x, generator()))
    assert not torch.equal(drawn, binarise(x, generator(1)))
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]"):
        binarise(255 * x, generator())
