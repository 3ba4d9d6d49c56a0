"""MNIST in memory, the display digits, binarisation."""

import shutil

import pytest
import torch
from torchvision.datasets import MNIST

from tme_utils import paths
from tme_utils.data import Images, binarise, display_batch, load_mnist


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


def test_an_unknown_split_is_told_with_the_known_ones():
    with pytest.raises(ValueError, match="'valid'; the splits are 'train', 'validation'"):
        load_mnist("valid")


def test_the_display_digits_are_the_first_of_each_class(mnist_test):
    shown = display_batch(mnist_test)
    assert shown.y.tolist() == [label for label in range(10) for _ in range(2)]
    for label in range(10):
        assert torch.equal(shown.x[2 * label : 2 * label + 2], mnist_test.x[mnist_test.y == label][:2])
    few = Images(mnist_test.x[:20], mnist_test.y[:20])
    with pytest.raises(ValueError, match=r"the classes \[.*8.*\] have fewer images than per_class = 2"):
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
