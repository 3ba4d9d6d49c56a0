import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from tme_utils import checkpoints, models, paths, training
from tme_utils.checkpoints import load_checkpoint, load_or_train, save_checkpoint
from tme_utils.training import Probes

# --- checkpoints


def test_a_checkpoint_gives_back_weights_rows_and_snapshots(trained, build, tmp_path, random_images, weights):
    model, history, settings = trained
    save_checkpoint(tmp_path / "model.safetensors", model, settings, history)
    other = build(seed=1)
    loaded = load_checkpoint(tmp_path / "model.safetensors", other, settings)
    assert torch.equal(weights(other), weights(model))
    assert torch.equal(other.reconstruct(random_images(3)), model.reconstruct(random_images(3)))
    assert loaded.rows == history.rows
    assert not loaded.interrupted
    assert loaded.snapshots.keys() == history.snapshots.keys()
    for name, frames in loaded.snapshots.items():
        assert_close(frames, history.snapshots[name], rtol=0, atol=0.5 / 255 + 1e-6)


def test_a_checkpoint_without_snapshots(trained, build, tmp_path):
    model, _, settings = trained
    save_checkpoint(tmp_path / "model.safetensors", model, settings, training.History())
    assert load_checkpoint(tmp_path / "model.safetensors", build(1), settings) == training.History()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"extra": 1}, {"latent_dim": 3}])
def test_other_settings_are_refused_and_the_weights_stay(trained, build, tmp_path, changed, weights):
    model, history, settings = trained
    save_checkpoint(tmp_path / "model.safetensors", model, settings, history)
    other = build(seed=1)
    with pytest.raises(ValueError, match=r"model.safetensors holds \{.*\}, not \{"):
        load_checkpoint(tmp_path / "model.safetensors", other, settings | changed)
    assert torch.equal(weights(other), weights(build(seed=1)))


def test_a_model_of_another_size_is_refused(trained, build, tmp_path):
    model, history, settings = trained
    save_checkpoint(tmp_path / "model.safetensors", model, settings, history)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_checkpoint(tmp_path / "model.safetensors", build(hidden=(17,)), settings)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="last byte missing"),
        pytest.param(lambda content: content[: len(content) // 2], id="cut in half"),
        pytest.param(lambda content: content[:4], id="four bytes"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: bytes(range(256)) * 20, id="something else"),
        pytest.param(lambda content: content[:8] + b"\xff" * 50 + content[58:], id="header overwritten"),
    ],
)
def test_a_damaged_file_is_named_with_the_way_back(trained, build, tmp_path, damage):
    model, history, settings = trained
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, settings, history)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file .*delete it"):
        load_checkpoint(path, build(), settings)


class Payload:
    """What a malicious pickle may hold: unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_is_refused_and_never_run(build, tmp_path, weights):
    path = tmp_path / "model.safetensors"
    torch.save({"weights": Payload(tmp_path / "it ran")}, tmp_path / "model.pt")
    shutil.copy(tmp_path / "model.pt", path)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_checkpoint(path, build(), {})
    assert not (tmp_path / "it ran").exists()
    torch.load(tmp_path / "model.pt", weights_only=False)  # what would have happened
    assert (tmp_path / "it ran").exists()


def test_a_safetensors_file_of_another_program_is_refused(build, tmp_path):
    checkpoints.safetensors.torch.save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors holds None, not"):
        load_checkpoint(tmp_path / "other.safetensors", build(), {})


def test_a_missing_file_is_a_missing_file(build, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "model.safetensors", build(), {})


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_file(trained, tmp_path, monkeypatch, error):
    model, history, settings = trained
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, settings, history)
    before = path.read_bytes()

    def interrupted(_, partial, **__):
        partial.write_bytes(before[:100])
        raise error

    monkeypatch.setattr(checkpoints.safetensors.torch, "save_file", interrupted)
    with pytest.raises(type(error)):
        save_checkpoint(path, model, settings, history)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- load or train


@pytest.fixture
def load(build, random_images, tmp_path):
    """Call ``load_or_train`` with small settings, some of them changed."""

    def load(**changed):
        arguments = {"build": build, "x_train": random_images(40), "x_held_out": random_images(9), "n_epochs": 1}
        return load_or_train(**arguments | {"folder": tmp_path, "progress": False} | changed)

    return load


def test_the_first_call_trains_and_the_second_loads(load, n_trainings, tmp_path, probes, weights):
    first, first_history = load(probes=probes)
    second, second_history = load(probes=probes)
    assert len(n_trainings) == 1
    assert torch.equal(weights(first), weights(second))
    assert first_history.rows == second_history.rows
    assert second_history.snapshots["prior"].shape == (2, 5, 1, 28, 28)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("mlp_z2_")
    assert path.suffix == ".safetensors"


@pytest.mark.parametrize(
    "changed",
    [
        {"n_epochs": 2},
        {"seed": 1},
        {"beta": 2.0},
        {"binarised": True},
        {"max_lr": 1e-3},
        {"x_train": torch.zeros(41, 1, 28, 28)},
        {"x_train": torch.zeros(40, 1, 28, 28)},
        {"build": lambda: models.mlp_vae(3, (16,))},
        {"build": lambda: models.mlp_vae(2, (17,))},
        {"build": lambda: models.mlp_vae(2, (16, 16))},
        {"build": lambda: models.conv_vae(2, (2, 2), 4)},
    ],
    ids=[
        "n_epochs",
        "seed",
        "beta",
        "binarised",
        "max_lr",
        "n_images",
        "images",
        "latent_dim",
        "hidden",
        "depth",
        "architecture",
    ],
)
def test_a_changed_setting_trains_a_model_of_its_own(load, n_trainings, tmp_path, changed):
    load()
    load(**changed)
    load()
    load(**changed)
    assert len(n_trainings) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_equal_numbers_of_other_types_ask_for_one_model(load, n_trainings):
    load(beta=1.0, max_lr=1.0)
    load(beta=1, max_lr=1)
    assert len(n_trainings) == 1


def test_snapshots_that_the_checkpoint_lacks_are_no_silent_gap(load, n_trainings, probes):
    load()
    with pytest.raises(ValueError, match=r"mlp_z2_.* holds no snapshots, which probes ask for; delete it to train"):
        load(probes=probes)
    assert len(n_trainings) == 1


@pytest.mark.parametrize("field", Probes._fields)
@pytest.mark.parametrize("change", [torch.zeros_like, lambda t: t[:2]], ids=["others", "fewer"])
def test_snapshots_of_other_probes_are_refused(load, n_trainings, probes, field, change):
    load(probes=probes, n_epochs=20)
    others = probes._replace(**{field: change(getattr(probes, field))})
    with pytest.raises(ValueError, match=rf"mlp_z2_.* something else than probes\.{field}; delete it to train"):
        load(probes=others, n_epochs=20)
    assert load(probes=probes, n_epochs=20)[1].snapshots
    assert len(n_trainings) == 1


def test_a_checkpoint_that_ships_serves_other_folders_too(load, n_trainings, monkeypatch, tmp_path, weights):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    shipped, _ = load()
    again, _ = load(folder=tmp_path / "study")
    assert len(n_trainings) == 1
    assert torch.equal(weights(shipped), weights(again))
    assert not (tmp_path / "study").exists()


def test_models_built_by_threads_at_once_have_the_weights_of_their_seeds(load, weights):
    def build():
        first = models.mlp_vae(2, (16,))
        time.sleep(0.01)  # another thread may run
        return models.VAE(first.encoder, models.mlp_vae(2, (16,)).decoder, 2, first.config)

    def untrained(seed):
        return weights(load(build=build, seed=seed, n_epochs=0)[0])

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(untrained, range(4)))
    for seed, found in enumerate(together):
        torch.manual_seed(seed)
        assert torch.equal(found, weights(build()))


@pytest.mark.parametrize("constant", [("BATCH_SIZE", 10), ("BETAS", (0.9, 0.99)), ("WARM_UP", 0.5)], ids=lambda c: c[0])
def test_a_changed_recipe_trains_a_model_of_its_own(load, n_trainings, monkeypatch, constant):
    load()
    monkeypatch.setattr(checkpoints, *constant)
    load()
    assert len(n_trainings) == 2


def test_what_is_asked_is_what_is_trained(load, n_trainings, probes):
    asked = {"seed": 1, "beta": 2.0, "binarised": True, "max_lr": 1e-3, "probes": probes}
    load(**asked)
    (given,) = n_trainings
    assert {name: given.get(name) for name in asked} == asked


@pytest.mark.parametrize("setting", [{"batch_size": 10}, {"betas": (0.5, 0.9)}])
def test_a_setting_that_the_file_name_would_not_show_is_refused(load, tmp_path, setting):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        load(**setting)
    assert list(tmp_path.iterdir()) == []


def test_the_seed_fixes_the_initial_weights_whatever_the_global_generator(load, tmp_path, weights):
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        found.append(weights(load(build=lambda: models.mlp_vae(2, (16,)), folder=tmp_path / str(global_seed))[0]))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*found)


def test_an_interrupted_training_is_returned_but_not_saved(load, tmp_path, weights, ctrl_c):
    model, history = load(on_epoch=ctrl_c)
    assert history.interrupted
    assert weights(model).isfinite().all()
    assert list(tmp_path.iterdir()) == []


def test_a_broken_training_is_not_saved(load, tmp_path, build, at_call):
    def broken():
        model = build()
        at_call(model.encoder, 1, lambda: model.encoder[1].weight.data.fill_(math.nan))
        return model

    with pytest.raises(FloatingPointError):
        load(build=broken)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_an_error_and_not_a_new_training(load, n_trainings, tmp_path):
    load()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="delete it to train again"):
        load()
    assert len(n_trainings) == 1


def test_a_checkpoint_under_the_name_of_another_is_refused(load, tmp_path):
    load(seed=1)
    (other,) = tmp_path.iterdir()
    load(seed=0)
    (mine,) = set(tmp_path.iterdir()) - {other}
    other.replace(mine)
    with pytest.raises(ValueError, match=r'holds .*"seed": 1.*, not .*"seed": 0'):
        load(seed=0)


def test_a_second_call_in_the_middle_of_a_training_does_no_harm(load, tmp_path, n_trainings, weights):
    inner = []

    def on_epoch(history):
        if not inner:
            inner.append(load())

    outer = load(on_epoch=on_epoch)
    assert len(n_trainings) == 2
    assert torch.equal(weights(outer[0]), weights(inner[0][0]))
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(weights(load()[0]), weights(outer[0]))


RACE = """
import sys, torch
from tme_utils import checkpoints, models
x = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
model, history = checkpoints.load_or_train(
    lambda: models.mlp_vae(2, (16,)), x, x[:9], 3, folder=sys.argv[1], progress=False
)
print(torch.cat([p.flatten() for p in model.parameters()]).double().sum().item())
"""


def test_two_processes_at_once_leave_one_whole_file(tmp_path):
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    (path,) = tmp_path.iterdir()
    with checkpoints.safetensors.safe_open(path, framework="pt") as file:
        assert len(json.loads(file.metadata()["history"])) == 4


def test_the_name_tells_architecture_and_size():
    settings = {"architecture": "conv", "latent_dim": 20}
    name = checkpoints.checkpoint_name(settings)
    assert name.startswith("conv_z20_")
    assert name == checkpoints.checkpoint_name(dict(reversed(settings.items())))
    assert name != checkpoints.checkpoint_name(settings | {"seed": 1})


def test_a_flipped_byte_among_the_weights_is_noticed(trained, build, tmp_path):
    model, history, settings = trained
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, settings, history)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its content does not have the digest"):
        load_checkpoint(path, build(), settings)
