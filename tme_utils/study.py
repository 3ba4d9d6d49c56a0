"""From a trained model to its row of results: the same columns for every model of the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tme_utils import paths
from tme_utils.data import binarise
from tme_utils.models import VAE
from tme_utils.training import History, best_device, evaluate


def result_row(
    model: VAE,
    history: History,
    x_train: Tensor,
    x_test: Tensor,
    *,
    seed: int,
    beta: float = 1.0,
    trained_on: str = "grey",
) -> dict[str, Any]:
    """Score a trained model on all its training and test images.

    Args:
        model: as :func:`tme_utils.training.fit` left it.
        history: what ``fit`` returned.
        x_train: all training images, (N, 1, 28, 28), in [0, 1].
        x_test: all test images, (N, 1, 28, 28), in [0, 1].
        seed: the seed of the training; the noise of the scores and the binarisation start from it too.
        beta: weight of the KL term in training; the scores are −ELBOs, with weight 1, whatever it was.
        trained_on: "grey" or "binarised".

    Returns:
        One row: what was trained (``architecture``, ``latent_dim``, ``beta``, ``trained_on``, ``n_epochs``,
        ``seed``, ``n_parameters``), how (``seconds`` of training, ``device``, ``torch``), and in nats per image
        ``recon``, ``kl`` and ``neg_elbo`` of grey images, each as ``train_`` and ``test_``;
        ``test_neg_elbo_se``, its standard error over the test images; ``binarised_neg_elbo``, over the test
        images binarised once.

    Raises:
        ValueError: for another ``trained_on``, or images outside [0, 1].
    """
    if trained_on not in ("grey", "binarised"):
        raise ValueError(f"trained_on must be 'grey' or 'binarised', got {trained_on!r}")
    row = {name: model.config[name] for name in ("architecture", "latent_dim")}
    row |= {"beta": beta, "trained_on": trained_on, "n_epochs": len(history.rows) - 1, "seed": seed}
    row |= {"n_parameters": model.n_parameters, "seconds": round(history.rows[-1]["seconds"], 1)}
    row |= {"device": str(best_device()), "torch": torch.__version__}
    for split, x in [("train", x_train), ("test", x_test)]:
        terms = evaluate(model, x, seed=seed)
        row |= {f"{split}_{term}": round(value, 4) for term, value in terms.averages().items()}
    row["test_neg_elbo_se"] = round(terms.elbo.std().item() / len(x_test) ** 0.5, 4)
    x_binarised = binarise(x_test, torch.Generator().manual_seed(seed))
    row["binarised_neg_elbo"] = round(evaluate(model, x_binarised, seed=seed).averages()["neg_elbo"], 4)
    return row


def save_table(rows: Sequence[dict[str, Any]], name: str) -> Path:
    """Write rows as ``figures/<name>.csv``, moved into place when complete, and return the path."""
    path = paths.figures_dir() / f"{name}.csv"
    with paths.atomic_write(path) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    return path
