"""Checkpoints: what was saved comes back or is refused, each model asked for has its own file, and some ship."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

from tme_utils import checkpoints, data, paths
from tme_utils.checkpoints import SHIPPED, checkpoint_path, load_checkpoint, load_or_train, save_checkpoint
from tme_utils.training import History, Recipe, evaluate, fit, seeded
from tme_utils.vae import Bernoulli, conv_vae, mlp_vae

RECIPE = Recipe(n_epochs=1)
SMALL = partial(mlp_vae, 2, (16,))
MEND = re.escape(checkpoints.MEND)

# --- files


def test_a_checkpoint_gives_back_weights_rows_and_snapshots_to_what_is_the_same_model(
    build, random_images, probes, tmp_path, weights
):
    path, model, other, recipe = tmp_path / "model.safetensors", build(), build(seed=1), Recipe(n_epochs=2)
    history = fit(model, random_images(60), random_images(20, 1), recipe, probes=probes, progress=False)
    settings = checkpoints.settings_of(model, recipe, 0)
    save_checkpoint(path, model, settings, history)
    loaded = load_checkpoint(path, other, settings)
    assert torch.equal(weights(other), weights(model))
    assert loaded.rows == history.rows
    assert loaded.snapshots.keys() == history.snapshots.keys()
    for name, frames in loaded.snapshots.items():
        assert_close(frames, history.snapshots[name], rtol=0, atol=0.5 / 255 + 1e-6)
    with pytest.raises(ValueError, match=rf'model.safetensors holds \{{.*"seed": 0.*, not \{{.*"seed": 1.*{MEND}'):
        load_checkpoint(path, other, settings | {"seed": 1})


def test_damage_anywhere_is_noticed_and_a_pickle_is_never_run(build, tmp_path, weights):
    path, model, other = tmp_path / "model.safetensors", build(hidden=(1,)), build(1, hidden=(1,))
    save_checkpoint(path, model, {"seed": 0}, History(rows=[{"epoch": 0, "train_neg_elbo": 543.25}]))
    whole, before = path.read_bytes(), weights(other)
    text = range(8 + int.from_bytes(whole[:8], "little"))  # the header, in which settings and history are
    assert b"543.25" in whole[: len(text)]
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in [*text, len(whole) - 3]]
    makes_a_folder = f"cos\nmkdir\n(S'{tmp_path / 'it ran'}'\ntR.".encode()
    foreign = safetensors.torch.save({"weight": torch.zeros(3)})
    for content in [whole[:0], whole[:4], whole[:2000], whole[:-1], makes_a_folder, foreign, *flipped]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*{MEND}"):
            load_checkpoint(path, other, {"seed": 0})
    assert torch.equal(weights(other), before)
    assert list(tmp_path.iterdir()) == [path]


# --- load or train


@pytest.fixture
def load(random_images, tmp_path):
    """Call ``load_or_train`` with small settings, some of them changed."""
    small = {"build": SMALL, "recipe": RECIPE, "images": (random_images(40), random_images(9, 1)), "progress": False}
    return lambda **changed: load_or_train(**small | {"folder": tmp_path} | changed)


def test_the_first_call_trains_as_asked_and_the_next_loads_also_if_it_ships(
    load, n_trainings, tmp_path, probes, random_images, weights, monkeypatch
):
    recipe = Recipe(n_epochs=2, beta=2, binarised=True)
    torch.manual_seed(5)
    first, history = load(recipe=recipe, seed=3, probes=lambda: probes)
    second, again = load(recipe=recipe, seed=3, probes=pytest.fail)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    load(recipe=recipe, seed=3, folder=tmp_path / "study")
    # The caller's noise goes on as if nothing had been.
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert len(n_trainings) == 1
    assert torch.equal(weights(first), weights(second))
    assert history.rows == again.rows
    assert again.snapshots["prior"].shape == (3, 5, 1, 28, 28)
    (path,) = tmp_path.glob("*.safetensors")
    assert re.fullmatch(r"mlp_z2_[0-9a-f]{12}\.safetensors", path.name)
    with seeded(3):
        by_hand = SMALL()
    fit(by_hand, random_images(40), random_images(9, 1), recipe, seed=3, progress=False)
    assert torch.equal(weights(by_hand), weights(first))


def with_likelihood(likelihood):
    model = SMALL()
    model.likelihood = likelihood()
    return model


OTHER_RECIPE = {"n_epochs": 2, "max_lr": 1e-3, "beta": 2, "binarised": True}
OTHER_RECIPE |= {"batch_size": 10, "betas": (0.5, 0.9), "warm_up": 0.5}
OTHERS = [
    *({"recipe": replace(RECIPE, **{name: value})} for name, value in OTHER_RECIPE.items()),
    {"seed": 1},
    *({"images": (torch.zeros(n, 1, 28, 28), torch.zeros(9, 1, 28, 28))} for n in (40, 41)),
    *({"build": partial(mlp_vae, *sizes)} for sizes in [(3, (16,)), (2, (17,)), (2, (16, 16))]),
    {"build": partial(conv_vae, 2, (2, 2), 4)},
    {"build": partial(with_likelihood, type("Other", (Bernoulli,), {}))},
    {"build": lambda: torch.compile(SMALL(), backend="eager")},  # the names of its weights differ
]


def test_every_changed_setting_trains_a_model_of_its_own(load, n_trainings, tmp_path, weights):
    assert OTHER_RECIPE.keys() == {field.name for field in fields(Recipe)}
    for n, changed in enumerate([{}, *OTHERS], start=1):
        first, again = (load(**changed)[0] for _ in range(2))
        assert torch.equal(weights(first), weights(again)), changed
        assert len(n_trainings) == len(list(tmp_path.glob("*.safetensors"))) == n, changed
    load()
    assert len(n_trainings) == n


def test_tied_weights_in_bfloat16_are_trained_saved_and_loaded(load, n_trainings, random_images, weights):
    def tied():
        model = mlp_vae(2, (16, 16))
        model.decoder[2].weight = model.encoder[3].weight
        return model.bfloat16()

    images = random_images(40).bfloat16(), random_images(9, 1).bfloat16()
    first, again = (load(build=tied, images=images)[0] for _ in range(2))
    assert len(n_trainings) == 1
    assert torch.equal(weights(first), weights(again))
    assert again.decoder[2].weight is again.encoder[3].weight
    assert again.decoder[2].weight.dtype == torch.bfloat16


def test_two_who_ask_for_one_model_train_it_once(load, n_trainings, monkeypatch, weights):
    both = threading.Barrier(2)

    def meet(*arguments):
        both.wait()  # from here on each looks for the file, and neither finds it
        return checkpoint_path(*arguments)

    monkeypatch.setattr(checkpoints, "checkpoint_path", meet)
    with ThreadPoolExecutor(2) as pool:
        models = [model for model, _ in pool.map(lambda _: load(), range(2))]
    assert len(n_trainings) == 1
    assert torch.equal(*map(weights, models))


# --- the models that ship


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_loaded_without_the_images(name, monkeypatch, mnist_test):
    monkeypatch.setattr(data, "load_mnist", None)  # a call would fail
    monkeypatch.setattr(checkpoints, "fit", None)
    model, history = checkpoints.shipped_model(name)
    recipe = SHIPPED[name].recipe
    assert [row["epoch"] for row in history.rows] == list(range(recipe.n_epochs + 1))
    measured = evaluate(model, mnist_test.x, seed=checkpoints.SEED).averages()["neg_elbo"]
    assert measured == pytest.approx(history.rows[-1]["held_out_neg_elbo"], rel=1e-3)
    shape = (recipe.n_epochs + 1, 20, 1, 28, 28)
    assert {frames.shape for frames in history.snapshots.values()} == (set() if recipe.binarised else {shape})
    if not recipe.binarised:
        z = torch.randn(20, model.latent_dim, generator=torch.Generator().manual_seed(checkpoints.SEED))
        assert_close(history.snapshots["prior"][-1], model.decode(z).sigmoid().detach(), rtol=0, atol=3 / 255)


def test_an_unknown_name_is_named_beside_the_known():
    with pytest.raises(ValueError, match="unknown model 'mlp_3d'; the shipped models are mlp_2d, conv_2d"):
        checkpoints.shipped_model("mlp_3d")
