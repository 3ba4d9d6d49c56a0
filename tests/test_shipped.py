import json

import pytest
import safetensors
import torch

from tme_utils import checkpoints, data, paths, shipped
from tme_utils.checkpoints import checkpoint_name
from tme_utils.training import History, evaluate

RECORD = {"held_out_neg_elbo": 100.0}


@pytest.fixture
def mnist_in_memory(monkeypatch, mnist_train, mnist_test):
    """Hand the tests' own copies to ``shipped``, and make a training an error."""
    monkeypatch.setattr(
        shipped.data, "load_mnist", lambda split: {"train+validation": mnist_train, "test": mnist_test}[split]
    )

    def refuse(*_, **__):
        raise AssertionError("no committed checkpoint has what is asked: it would be trained")

    monkeypatch.setattr(checkpoints, "fit", refuse)


@pytest.mark.parametrize("name", ["mlp_3d", "", "MLP_2D"])
def test_an_unknown_name_is_named_beside_the_known(name):
    with pytest.raises(ValueError, match=f"unknown model {name!r}; the shipped models are mlp_2d"):
        shipped.shipped_model(name)


def test_ctrl_c_in_one_training_is_not_the_turn_of_the_next(monkeypatch):
    asked = []
    monkeypatch.setattr(shipped, "shipped_classifier", lambda: None)
    monkeypatch.setattr(
        shipped, "shipped_model", lambda name: asked.append(name) or (None, History(rows=[RECORD], interrupted=True))
    )
    with pytest.raises(KeyboardInterrupt):
        shipped.main()
    assert asked == ["mlp_2d"]


@pytest.mark.parametrize("name", shipped.RECIPES)
def test_a_shipped_model_is_loaded_with_the_history_of_its_training(name, mnist_in_memory, mnist_test):
    model, history = shipped.shipped_model(name)
    assert [row["epoch"] for row in history.rows] == list(range(shipped.RECIPES[name].n_epochs + 1))
    expected = {(shipped.RECIPES[name].n_epochs + 1, 20, 1, 28, 28)} if shipped.RECIPES[name].snapshots else set()
    assert {frames.shape for frames in history.snapshots.values()} == expected
    measured = evaluate(model, mnist_test.x, seed=shipped.SEED).averages()["neg_elbo"]
    assert measured == pytest.approx(history.rows[-1]["held_out_neg_elbo"], rel=1e-3)


@pytest.mark.parametrize("name", [name for name, recipe in shipped.RECIPES.items() if recipe.snapshots])
def test_the_last_snapshot_is_what_the_shipped_model_decodes(name, mnist_in_memory):
    model, history = shipped.shipped_model(name)
    z = torch.randn(20, model.latent_dim, generator=torch.Generator().manual_seed(shipped.SEED))
    decoded = model.decode(z).sigmoid().detach()
    torch.testing.assert_close(history.snapshots["prior"][-1], decoded, rtol=0, atol=3 / 255)


def test_committed_checkpoints_are_small_and_named_after_their_settings():
    committed = sorted(set(paths.CHECKPOINTS.glob("[!.]*_z*.safetensors")))
    assert len(committed) >= len(shipped.RECIPES)
    for path in committed:
        with safetensors.safe_open(path, framework="pt") as file:
            settings = json.loads(file.metadata()["settings"])
        assert path.name == checkpoint_name(settings)
        assert settings["n_images"] == 60_000
        assert path.stat().st_size < 20e6


@pytest.fixture
def no_classifier_in_memory():
    shipped.shipped_classifier.cache_clear()
    yield
    shipped.shipped_classifier.cache_clear()


def test_the_shipped_classifier_knows_the_test_images(no_classifier_in_memory, monkeypatch, mnist_test):
    def refuse(*_, **__):
        raise AssertionError("no committed checkpoint: it would be trained")

    monkeypatch.setattr(shipped, "fit_classifier", refuse)
    classifier = shipped.shipped_classifier()
    with torch.no_grad():
        correct = (classifier(mnist_test.x).argmax(dim=1) == mnist_test.y).double().mean()
    assert 0.985 < correct < 0.995
    assert shipped.shipped_classifier() is classifier


def test_a_missing_classifier_is_trained_saved_and_loaded_again(
    no_classifier_in_memory, monkeypatch, tmp_path, random_images, weights
):
    images = data.Images(random_images(64), torch.arange(64) % 10)
    monkeypatch.setattr(shipped.data, "load_mnist", lambda split: images)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    trained = shipped.shipped_classifier()
    shipped.shipped_classifier.cache_clear()
    monkeypatch.setattr(shipped, "fit_classifier", None)  # a second training would fail
    again = shipped.shipped_classifier()
    assert again is not trained
    torch.testing.assert_close(weights(again), weights(trained), rtol=0, atol=0)
