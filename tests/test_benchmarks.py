"""The benchmarks' own logic, without their measurements."""

import csv
import shutil
import sys

import pytest
import torch

from benchmarks import browser, recipe, training
from tme_utils import paths
from tme_utils.architectures import VAES
from tme_utils.data import Images
from tme_utils.training import History
from tme_utils.vae import ElboTerms

TABLE = paths.ROOT / "figures" / "02_recipe.csv"


@pytest.fixture
def fits(monkeypatch, random_images):
    """Trainings that cost nothing: the models that ``fit`` was given, and the history that it returns."""
    models, history = [], History(rows=[{"seconds": 1.0}])

    def fit(model, *_, **__):
        models.append(model)
        return history

    monkeypatch.setattr(recipe, "fit", fit)
    terms = ElboTerms(torch.tensor([100.0]), torch.tensor([4.5]))
    monkeypatch.setattr(recipe, "evaluate", lambda *_: terms)
    monkeypatch.setattr(recipe, "load_mnist", lambda _: Images(random_images(2), torch.zeros(2)))
    monkeypatch.setattr(sys, "argv", ["recipe"])
    return models, history


@pytest.fixture
def figures(monkeypatch, tmp_path):
    """A folder of figures that does not exist yet."""
    monkeypatch.setenv("TME_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def test_the_committed_search_is_complete(fits, figures):
    figures.mkdir()
    shutil.copy(TABLE, figures)
    recipe.main()
    assert fits[0] == []
    assert (figures / TABLE.name).read_bytes() == TABLE.read_bytes()


def test_a_search_from_nothing_makes_folder_and_table(fits, figures):
    recipe.main()
    lines = (figures / TABLE.name).read_text().splitlines()
    assert len(lines) == len(fits[0]) + 1 == len(TABLE.read_text().splitlines())
    assert lines[:2] == [TABLE.read_text().splitlines()[0], "mlp,0.002,0.95,0,10,104.500,104.500"]
    recipe.main()
    assert len(lines) == len(fits[0]) + 1


def test_another_number_of_epochs_is_another_search(fits, figures, monkeypatch):
    monkeypatch.setattr(recipe, "SETTINGS", {name: settings[:1] for name, settings in recipe.SETTINGS.items()})
    recipe.main()
    n = len(fits[0])
    monkeypatch.setattr(recipe, "N_EPOCHS", 11)
    recipe.main()
    assert len(fits[0]) == 2 * n


def test_ctrl_c_leaves_no_number_of_a_model_half_trained(fits, figures, random_images, monkeypatch):
    fits[1].interrupted = True
    with pytest.raises(KeyboardInterrupt):
        recipe.main()
    assert not figures.exists()
    monkeypatch.setattr(training, "fit", lambda *_, **__: fits[1])
    with pytest.raises(KeyboardInterrupt):
        training.fit_epoch("mlp", random_images(2))


@pytest.mark.parametrize("architecture", VAES)
def test_every_architecture_has_its_bare_operations(architecture, monkeypatch):
    monkeypatch.setattr(training, "N_STEPS", 1)
    assert training.bare_epoch(architecture) > 0


def test_measuring_one_architecture_leaves_the_rows_of_the_others(figures, monkeypatch, random_images):
    committed = paths.ROOT / "figures" / "speed_training.csv"
    figures.mkdir()
    shutil.copy(committed, figures)
    monkeypatch.setattr(training, "load_mnist", lambda _: Images(random_images(2), torch.zeros(2)))
    monkeypatch.setattr(training, "MNIST", lambda *_, **__: [0])
    for name, seconds in [("plain_epoch", 2.0), ("fit_epoch", (1.0, 0.1)), ("bare_epoch", 0.5)]:
        monkeypatch.setattr(training, name, lambda *_, seconds=seconds: seconds)
    for architecture in ("residual", "mlp"):
        monkeypatch.setattr(sys, "argv", ["training", architecture, "--rounds", "1"])
        training.main()
    before, after = (
        {row["architecture"]: row for row in csv.DictReader(path.read_text().splitlines())}
        for path in (committed, figures / committed.name)
    )
    assert list(after) == ["mlp", "conv", "residual"]
    assert after["conv"].items() >= before["conv"].items()
    for name in ("mlp", "residual"):
        assert [after[name][f"{way}_seconds"] for way in ("plain", "fit", "bare", "evaluation")] == [
            "2.0",
            "1.0",
            "0.5",
            "0.1",
        ]
        assert after[name]["processor"]


def test_a_browser_of_another_name_is_found(monkeypatch, tmp_path):
    chrome = tmp_path / "chrome"
    chrome.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.find_browser() == str(chrome)
