import shutil
import tempfile
import urllib.request
from pathlib import Path

import pytest
import torch
from torchvision.datasets import MNIST

from tme_utils import data, paths

ARCHIVES = [name for name, _ in MNIST.resources]


@pytest.fixture
def root(tmp_path):
    """A copy of the data that a test may damage."""
    folder = tmp_path / "data"
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for name in ARCHIVES:
        shutil.copy(paths.DATA / "MNIST" / "raw" / name, folder / "MNIST" / "raw")
    return folder


@pytest.fixture
def offline(monkeypatch):
    """Make every request of urllib, which torchvision uses, an error."""

    def refuse(*_, **__):
        raise ConnectionError("a request was made")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)


def listing(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def splits(mnist_train, mnist_test):
    return {
        "train": data.load_mnist("train"),
        "validation": data.load_mnist("validation"),
        "train+validation": mnist_train,
        "test": mnist_test,
    }


# --- the splits


@pytest.mark.parametrize(
    ("split", "n"), [("train", 50_000), ("validation", 10_000), ("train+validation", 60_000), ("test", 10_000)]
)
def test_a_split_has_its_size_type_and_range(splits, split, n):
    x, y = splits[split]
    assert x.shape == (n, 1, 28, 28)
    assert y.shape == (n,)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert (x.min(), x.max()) == (0, 1)
    assert y.unique().tolist() == list(range(10))


def test_train_and_validation_are_the_training_file_in_order(splits):
    x, y = splits["train+validation"]
    assert torch.equal(torch.cat([splits["train"].x, splits["validation"].x]), x)
    assert torch.equal(torch.cat([splits["train"].y, splits["validation"].y]), y)


def check_disjoint(first, second):
    as_bytes = [{image.numpy().tobytes() for image in x} for x in (first, second)]
    assert not as_bytes[0] & as_bytes[1]


def test_no_image_is_in_two_splits(splits):
    check_disjoint(splits["train"].x, splits["validation"].x)
    check_disjoint(splits["train+validation"].x, splits["test"].x)


def test_the_check_of_disjointness_rejects_a_set_scored_on_itself(splits):
    with pytest.raises(AssertionError):
        check_disjoint(splits["train"].x[:1000], splits["train+validation"].x[999:2000])


@pytest.mark.parametrize(("split", "is_train"), [("train+validation", True), ("test", False)])
def test_values_are_those_of_torchvision(splits, root, offline, split, is_train):
    dataset = MNIST(root, train=is_train, download=True)
    x, y = splits[split]
    assert torch.equal((x.squeeze(1) * 255).round().to(torch.uint8), dataset.data)
    assert torch.equal(x[:100].squeeze(1), dataset.data[:100] / 255)
    assert torch.equal(y, dataset.targets)


def test_loading_twice_gives_tensors_of_their_own(mnist_test):
    again = data.load_mnist("test")
    assert torch.equal(again.x, mnist_test.x)
    assert again.x.data_ptr() != mnist_test.x.data_ptr()


# --- what loading leaves alone


def test_nothing_is_requested_written_or_printed(root, offline, capfd):
    (root / "MNIST" / "raw").chmod(0o555)
    before = listing(root)
    assert len(data.load_mnist("test", root).x) == 10_000
    assert listing(root) == before
    assert capfd.readouterr() == ("", "")
    (root / "MNIST" / "raw").chmod(0o755)


def test_the_offline_fixture_sees_a_request(offline, tmp_path):
    with pytest.raises(ConnectionError, match="a request was made"):
        MNIST(tmp_path, download=True)


def test_an_interrupted_unpacking_does_not_poison_the_next_run(root, monkeypatch, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = listing(root)

    class Interrupted:
        resources = MNIST.resources

        def __init__(self, folder, **_):
            (Path(folder) / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"half of a fi")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data, "MNIST", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.load_mnist("test", root)
    assert listing(root) == before
    assert list(scratch.iterdir()) == []
    assert len(data.load_mnist("test", root).x) == 10_000


# --- what goes wrong


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_missing_archive_is_named_with_the_way_back(root, offline, name):
    (root / "MNIST" / "raw" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing; restore it with `git checkout"):
        data.load_mnist("test", root)


def test_a_missing_folder_is_named(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match="is missing; restore it"):
        data.load_mnist("test", tmp_path / "nowhere")


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:5000] + b"\x00" + b[5001:], lambda b: b""])
def test_a_damaged_archive_is_named_with_the_way_back(root, offline, damage):
    archive = root / "MNIST" / "raw" / ARCHIVES[2]
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=f"{archive.name} is damaged .*restore it with `git checkout"):
        data.load_mnist("test", root)


@pytest.mark.parametrize("split", ["training", "Test", "", None])
def test_an_unknown_split_is_named_beside_the_known(split):
    with pytest.raises(ValueError, match=f"unknown split {split!r}; the splits are 'train', 'validation'"):
        data.load_mnist(split)


# --- the display batch


def test_the_display_batch_is_two_of_each_class_in_file_order(mnist_test):
    x, y = data.display_batch(mnist_test)
    assert y.tolist() == [label for label in range(10) for _ in range(2)]
    for label in range(10):
        of_class = mnist_test.x[mnist_test.y == label]
        assert torch.equal(x[2 * label : 2 * label + 2], of_class[:2])


def test_the_display_batch_is_the_same_with_and_without_the_validation_images(splits):
    assert torch.equal(data.display_batch(splits["train"]).x, data.display_batch(splits["train+validation"]).x)


def test_the_display_batch_of_another_size(mnist_test):
    assert data.display_batch(mnist_test, per_class=3).y.tolist() == sorted(list(range(10)) * 3)


def test_too_few_images_of_a_class_are_named():
    images = data.Images(torch.zeros(19, 1, 28, 28), torch.arange(19) % 10)
    with pytest.raises(ValueError, match="class 9 has 1 images, fewer than per_class = 2"):
        data.display_batch(images)


@pytest.mark.parametrize("per_class", [0, -1])
def test_a_batch_of_nothing_is_refused(mnist_test, per_class):
    with pytest.raises(ValueError, match=f"per_class must be at least 1, got {per_class}"):
        data.display_batch(mnist_test, per_class)


# --- binarisation


def check_binarised(binarise, generator):
    """Zeros and ones whose frequency is the grey level, within five standard errors; new at every call."""
    x = torch.linspace(0, 1, 11).reshape(11, 1)
    n = 40_000
    source = generator()
    drawn = binarise(x.expand(11, n), source)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert ((drawn.mean(1) - x[:, 0]).abs() <= 5 * (x * (1 - x) / n).sqrt()[:, 0]).all()
    assert not torch.equal(drawn, binarise(x.expand(11, n), source))


def test_binarised_pixels_are_bernoulli_draws(generator):
    check_binarised(data.binarise, generator)


@pytest.mark.parametrize(
    "buggy",
    [
        pytest.param(lambda x, _: x.round(), id="threshold"),
        pytest.param(lambda x, _: torch.bernoulli(x, generator=torch.Generator().manual_seed(0)), id="static"),
        pytest.param(lambda x, source: torch.bernoulli(1 - x, generator=source), id="inverted"),
        pytest.param(lambda x, _: x, id="grey"),
    ],
)
def test_the_check_of_the_binarisation_rejects(buggy, generator):
    with pytest.raises(AssertionError):
        check_binarised(buggy, generator)


def test_binarise_keeps_shape_and_type_and_repeats_with_its_generator(random_images, generator):
    x = random_images(3, dtype=torch.float64)
    drawn = data.binarise(x, generator(1))
    assert (drawn.shape, drawn.dtype) == (x.shape, x.dtype)
    assert torch.equal(drawn, data.binarise(x, generator(1)))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.full((2, 1, 28, 28), 255.0), r"must lie in \[0, 1\], got values from 255"),
        (torch.tensor([0.5, -0.1]), "from -0.1 to 0.5"),
        (torch.tensor([0.5, float("nan")]), "got values from nan"),
        (torch.ones(2, dtype=torch.uint8), "must be floating-point images .*got torch.uint8"),
    ],
)
def test_pixels_that_are_no_probabilities_are_refused(x, said, generator):
    with pytest.raises(ValueError, match=said):
        data.binarise(x, generator())
