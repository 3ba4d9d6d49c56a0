"""Trained models on disk: safetensors files that say what they hold, load-or-train, and the models that ship.

``python -m tme_utils.checkpoints`` trains the shipped models whose file is missing, on all 60,000 training images.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn

from tme_utils import data, paths
from tme_utils.architectures import flow_vae, residual_vae
from tme_utils.priors import Sharper
from tme_utils.training import History, Objective, Probes, Recipe, fit, seeded
from tme_utils.vae import VAE, check_images, conv_vae, mlp_vae

MEND = "delete it to train again, or restore it with `git checkout`"
SEED = 0  # of the shipped models


def digest(settings: Any) -> str:
    """What a checkpoint and a row of results are known by: 12 hexadecimal digits of all that was asked for."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def settings_of(
    model: VAE, recipe: Recipe, seed: int, images: str = data.TRAINING_IMAGES, objective: Objective | None = None
) -> dict[str, Any]:
    """All that a trained model follows from: its layers, recipe and seed, the training images' name, the objective."""
    weights = {name: [str(value.dtype), list(value.shape)] for name, value in model.state_dict().items()}
    likelihood = type(model.likelihood).__name__
    asked = {"recipe": json.loads(json.dumps(asdict(recipe))), "seed": int(seed), "images": images}
    asked |= {"objective": repr(objective)} if objective else {}
    return model.config | asked | {"likelihood": likelihood, "weights": digest(weights)}


def checkpoint_path(folder: Path | str, settings: dict[str, Any]) -> Path:
    """File of these settings: readable in front, their digest behind."""
    name = f"{settings['architecture']}_z{settings['latent_dim']}_{digest(settings)}.safetensors"
    return Path(folder).expanduser() / name


def _content_digest(tensors: dict[str, Tensor], history: str) -> str:
    """SHA-256 of the history, and of the tensors' names and bytes: the file format has no checksum of its own."""
    sha = hashlib.sha256(history.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(_bytes(tensors[name]))
    return sha.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()  # numpy knows no bfloat16


def save_checkpoint(path: Path | str, model: nn.Module, settings: dict[str, Any], history: History) -> None:
    """Write weights, settings and history to one safetensors file, moved into place when complete.

    The history's rows are stored as they are, its snapshots in 256 grey levels.

    Raises:
        OSError: if the file cannot be written; one that was there before stays as it is.
    """
    # Copies: the format refuses tensors that share memory, as tied weights do.
    tensors = {
        f"model.{name}": value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    for name, probs in history.snapshots.items():
        tensors[f"snapshots.{name}"] = (probs * 255).round().to(torch.uint8)
    rows = json.dumps(history.rows)
    metadata = {"settings": json.dumps(settings, sort_keys=True), "history": rows}
    metadata["sha256"] = _content_digest(tensors, rows)
    content = safetensors.torch.save(tensors, metadata)
    with paths.atomic_write(path) as partial_file:
        partial_file.write_bytes(content)


def load_checkpoint(path: Path | str, model: nn.Module, settings: dict[str, Any]) -> History:
    """Load weights into the model from a file of :func:`save_checkpoint`, and return the history of its training.

    A safetensors file holds tensors and text: nothing in it is executed.

    Raises:
        ValueError: if the file is damaged, was made by something else, or holds another model than ``settings`` ask.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); {MEND}") from error
    asked, saved, history = json.dumps(settings, sort_keys=True), metadata.get("settings"), metadata.get("history", "")
    if saved != asked:
        raise ValueError(f"{path} holds {saved}, not {asked}; {MEND}")
    if metadata.get("sha256") != _content_digest(tensors, history):
        raise ValueError(f"{path} is damaged: its content does not have the digest it was saved with; {MEND}")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "snapshots": {}}
    for name, tensor in tensors.items():
        part, _, name = name.partition(".")
        parts[part][name] = tensor
    model.load_state_dict(parts["model"])
    snapshots = {name: tensor.float() / 255 for name, tensor in parts["snapshots"].items()}
    return History(rows=json.loads(history), snapshots=snapshots)


def load_or_train(
    build: Callable[[], VAE],
    recipe: Recipe,
    images: tuple[Tensor, Tensor] | None = None,
    *,
    seed: int = SEED,
    objective: Objective | None = None,
    folder: Path | str = paths.CHECKPOINTS,
    probes: Callable[[], Probes] | None = None,
    progress: bool = True,
) -> tuple[VAE, History]:
    """The model that these settings define: loaded if its checkpoint exists, else trained and saved.

    The file's name ends in a digest of all that was asked for, so that a changed setting never finds the weights of
    another. Of two processes that ask for one model, the second waits for the first.

    Args:
        build: makes the untrained model; called with the seed set, so that it fixes the initial weights too.
        recipe: as for :func:`tme_utils.training.fit`.
        images: training and held-out images; MNIST's by default, read only if there is training to do.
        seed: of the initial weights and of the training.
        objective: as for :func:`tme_utils.training.fit`; known by its ``repr``, as a frozen dataclass has it.
        folder: where the checkpoint is, or will be; one that ships, in ``checkpoints/``, serves as well.
        probes: makes what the history of a training takes snapshots of.
        progress: show a progress bar.

    Raises:
        KeyboardInterrupt: if the training was stopped: a model half trained is not saved.
        OSError: if the checkpoint cannot be written, told before the training.
    """
    with seeded(seed):
        model = build()
    for x in images or ():
        check_images(x)
    named = hashlib.sha256(_bytes(images[0])).hexdigest() if images else data.TRAINING_IMAGES
    settings = settings_of(model, recipe, seed, named, objective)
    path = checkpoint_path(folder, settings)
    for known in (path, paths.CHECKPOINTS / path.name):  # no lock is needed, nor could there be one if all is read-only
        if known.exists():
            return model, load_checkpoint(known, model, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            return model, load_checkpoint(path, model, settings)
        rehearsal = path.with_suffix(".untrained")  # what cannot be written is told before the first step
        save_checkpoint(rehearsal, model, settings, History())
        rehearsal.unlink()
        x_train, x_held_out = images or (data.load_mnist("train+validation").x, data.load_mnist("test").x)
        asked = probes() if probes else None
        history = fit(
            model, x_train, x_held_out, recipe, seed=seed, objective=objective, probes=asked, progress=progress
        )
        if history.interrupted:
            raise KeyboardInterrupt
        save_checkpoint(path, model, settings, history)
    return model, history


class Shipped(NamedTuple):
    """How a trained model that ships is made."""

    build: Callable[[], VAE]
    recipe: Recipe
    objective: Objective | None = None


SHIPPED = {
    # Two dimensions leave the decoder all the work: three hidden layers each way instead of the handout's one, which
    # take half the learning rate (figures/02_recipe.csv).
    "mlp_2d": Shipped(partial(mlp_vae, latent_dim=2, hidden=(512, 512, 256)), Recipe(n_epochs=30, max_lr=2e-3)),
    "conv_2d": Shipped(partial(conv_vae, latent_dim=2), Recipe(n_epochs=30)),
    "conv_20d": Shipped(partial(conv_vae, latent_dim=20), Recipe()),
    "mlp_20d": Shipped(partial(mlp_vae, latent_dim=20), Recipe(max_lr=8e-3)),  # its own best rate, in the same table
    # Seeds 0 of the tables 03_literature and B_headline: equal settings, one checkpoint.
    "residual_32d": Shipped(residual_vae, Recipe(n_epochs=30, binarised=True)),
    "flow_32d": Shipped(flow_vae, Recipe(n_epochs=16, binarised=True), Sharper(share=0.15, low_precision=True)),
}


def shipped_model(name: str, *, progress: bool = True) -> tuple[VAE, History]:
    """Load a shipped model, or train it if its checkpoint is missing; its history has snapshots if it learns grey."""
    if name not in SHIPPED:
        raise ValueError(f"unknown model {name!r}; the shipped models are {', '.join(SHIPPED)}")
    build, recipe, objective = SHIPPED[name]

    def probes() -> Probes:
        train, test = (data.display_batch(data.load_mnist(split)).x for split in ("train+validation", "test"))
        return Probes(train, test, torch.randn(20, build().latent_dim, generator=torch.Generator().manual_seed(SEED)))

    asked = None if recipe.binarised else probes
    return load_or_train(build, recipe, objective=objective, probes=asked, progress=progress)


if __name__ == "__main__":
    argparse.ArgumentParser(description="Train the shipped models that are missing in checkpoints/.").parse_args()
    for shipped in SHIPPED:
        _, trained = shipped_model(shipped)
        print(f"{shipped}: test -ELBO {trained.rows[-1]['held_out_neg_elbo']:.2f} nats per image")
