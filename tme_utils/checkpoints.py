"""Trained models on disk: safetensors files that say what they hold, and load-or-train keyed by what was asked."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tme_utils import paths
from tme_utils.training import BATCH_SIZE, BETAS, MAX_LR, WARM_UP, History, Probes, fit, seeded, take_snapshots

MEND = "delete it to train again, or restore it with `git checkout`"
SAME_PICTURE = 0.02  # largest difference of a pixel: snapshots are stored in 256 grey levels, and processors differ


def _digest(tensors: dict[str, Tensor], history: str = "") -> str:
    """SHA-256 of the history, and of the tensors' names and values: the file format has no checksum of its own."""
    sha = hashlib.sha256(history.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].cpu().numpy().tobytes())
    return sha.hexdigest()


def save_checkpoint(path: Path | str, model: Any, settings: dict[str, Any], history: History) -> None:
    """Write weights, settings and history to one safetensors file, moved into place when complete.

    Args:
        path: file to write.
        model: its ``state_dict`` is stored.
        settings: JSON-serialisable; what was asked for, compared when loading.
        history: its rows are stored as they are, its snapshots in 256 grey levels.

    Raises:
        OSError: if the file cannot be written; one that was there before stays as it is.
    """
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for name, probs in history.snapshots.items():
        tensors[f"snapshots.{name}"] = (probs * 255).round().to(torch.uint8)
    rows = json.dumps(history.rows)
    metadata = {
        "settings": json.dumps(settings, sort_keys=True),
        "history": rows,
        "sha256": _digest(tensors, rows),
    }
    with paths.atomic_write(path) as partial:
        try:
            safetensors.torch.save_file(tensors, partial, metadata=metadata)
        except safetensors.SafetensorError as error:  # what the library makes of a full disk
            raise OSError(str(error)) from error


def load_checkpoint(path: Path | str, model: Any, settings: dict[str, Any]) -> History:
    """Load weights into the model from a file of :func:`save_checkpoint`.

    Args:
        path: file to read; a safetensors file holds tensors and text, so that nothing in it is executed.
        model: of the architecture that was saved.
        settings: what the caller asks for; must equal what the file was saved with.

    Returns:
        The history of its training.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, was made by something else, or holds another model.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        history = metadata.get("history", "[]")
        rows = json.loads(history)
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); {MEND}") from error
    saved = metadata.get("settings")
    if saved != json.dumps(settings, sort_keys=True):
        raise ValueError(f"{path} holds {saved}, not {json.dumps(settings, sort_keys=True)}; {MEND}")
    if metadata.get("sha256") not in (_digest(tensors, history), _digest(tensors)):  # the latter in older files
        raise ValueError(f"{path} is damaged: its content does not have the digest it was saved with; {MEND}")
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error
    snapshots = {
        name.removeprefix("snapshots."): t.float() / 255 for name, t in tensors.items() if name.startswith("snapshots.")
    }
    return History(rows=rows, snapshots=snapshots)


def _check_snapshots(path: Path, model: Any, history: History, probes: Probes) -> None:
    """Raise a ValueError unless the last snapshots are what the model makes of these probes."""
    if not history.snapshots:
        raise ValueError(f"{path} holds no snapshots, which probes ask for; {MEND}")
    for name, probs in take_snapshots(model, probes).items():
        last = history.snapshots[name][-1]
        if last.shape != probs.shape or not ((last - probs).abs() <= SAME_PICTURE).all():
            field = "z" if name == "prior" else name
            raise ValueError(f"{path} holds snapshots of something else than probes.{field}; {MEND}")


def checkpoint_name(settings: dict[str, Any]) -> str:
    """File name for these settings: readable in front, a digest of them all behind."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{settings['architecture']}_z{settings['latent_dim']}_{digest}.safetensors"


def load_or_train(
    build: Callable[[], Any],
    x_train: Tensor,
    x_held_out: Tensor,
    n_epochs: int,
    *,
    seed: int = 0,
    beta: float = 1.0,
    max_lr: float = MAX_LR,
    binarised: bool = False,
    folder: Path | str = paths.CHECKPOINTS,
    probes: Probes | None = None,
    on_epoch: Callable[[History], None] | None = None,
    progress: bool = True,
) -> tuple[Any, History]:
    """The model that these settings define: loaded if its checkpoint exists, else trained and saved.

    The file's name ends in a digest of all that was asked for (architecture, sizes, epochs, seed, the recipe and
    the training images), so a changed setting never finds the weights of another.

    Args:
        build: makes the untrained model; called with the seed set, so that it fixes the initial weights too.
        x_train: training images, as for :func:`tme_utils.training.fit`.
        x_held_out: images for the second curve, as for :func:`tme_utils.training.fit`.
        n_epochs: passes over the training images.
        seed: of the initial weights and of the training.
        beta: weight of the KL term.
        max_lr: highest learning rate.
        binarised: train on dynamically binarised images.
        folder: where the checkpoint is, or will be; one that ships, in ``checkpoints/``, serves as well.
        probes: as for :func:`tme_utils.training.fit`, like ``on_epoch`` and ``progress``: not part of what is asked,
            as they change nothing that is learnt.
        on_epoch: called after every epoch.
        progress: show a progress bar.

    Returns:
        (model, history). The history of a loaded model is that of its training, over the images that were
        ``x_held_out`` then. A training stopped by Ctrl-C is returned but not saved, and says so.

    Raises:
        ValueError: if the checkpoint is damaged, holds something else, or its snapshots are not of the ``probes``.
        OSError: if it cannot be written; that its folder is read-only is told before the training.
    """
    beta, max_lr = float(beta), float(max_lr)  # 1 and 1.0 ask for one model
    with seeded(seed):
        model = build()
    settings = model.config | {
        "n_epochs": n_epochs,
        "seed": seed,
        "beta": beta,
        "binarised": binarised,
        "n_images": len(x_train),
        "images": hashlib.sha256(x_train.cpu().numpy().tobytes()).hexdigest()[:12],
        "recipe": {"batch_size": BATCH_SIZE, "max_lr": max_lr, "betas": list(BETAS), "warm_up": WARM_UP},
    }
    path = Path(folder) / checkpoint_name(settings)
    for known in (path, paths.CHECKPOINTS / path.name):
        if known.exists():
            history = load_checkpoint(known, model, settings)
            if probes is not None:
                _check_snapshots(known, model, history, probes)
            return model, history
    paths.check_writable(path)
    history = fit(
        model,
        x_train,
        x_held_out,
        n_epochs,
        beta=beta,
        seed=seed,
        max_lr=max_lr,
        binarised=binarised,
        probes=probes,
        on_epoch=on_epoch,
        progress=progress,
    )
    if history.interrupted:
        print(f"{path} is not written: only a whole training is saved", file=sys.stderr)
    else:
        save_checkpoint(path, model, settings, history)
    return model, history
