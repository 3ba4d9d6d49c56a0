"""The trail of ``residual_vae``: ``python -m tables.literature``.

First the search that led to it, on the validation split.

A ladder from ``conv_vae`` to it, each step of which keeps the changes of the steps before. Models train on the first
50,000 images, binarised anew at every epoch, and are scored on the 10,000 set aside, binarised once; the test images
are not loaded. Rows go to ``figures/03_literature_search.csv``; those already there are not computed again.

Then the score of each test image behind a row of the table ``03_literature``, that of seed 0 with 100 samples:
``figures/03_literature_images.csv``, in the images' order.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from tme_utils import paths
from tme_utils.architectures import residual_vae
from tme_utils.checkpoints import SEED, shipped_model
from tme_utils.data import binarise, load_mnist
from tme_utils.metrics import importance_weighted_log_likelihood
from tme_utils.study import fill, processor, save_table
from tme_utils.training import Recipe, evaluate, fit, seeded
from tme_utils.vae import VAE, conv_vae

RECIPE = Recipe(n_epochs=10, binarised=True)
WIDE = partial(conv_vae, channels=(32, 64))
LADDER: dict[str, Callable[[], VAE]] = {
    "conv": conv_vae,
    "twice the channels": WIDE,
    "32 dimensions": partial(WIDE, 32),
    "SiLU": partial(WIDE, 32, activation=nn.SiLU),
    "residual blocks": residual_vae,
}


def row(step: str, seed: int = 0) -> dict[str, Any]:
    """Train the model of a step, and score it on both splits."""
    x_train, x_validation = load_mnist("train").x, load_mnist("validation").x
    with seeded(seed):
        model = LADDER[step]().to(memory_format=torch.channels_last)  # the same numbers, sooner
    history = fit(model, x_train, x_validation[:1], RECIPE, seed=seed, progress=False)
    if history.interrupted:
        raise KeyboardInterrupt
    found: dict[str, Any] = {"step": step, "latent_dim": model.latent_dim, "seed": seed, "n_epochs": RECIPE.n_epochs}
    found["n_parameters"] = model.n_parameters
    for split, x in [("validation", x_validation), ("train", x_train)]:
        terms = evaluate(model, binarise(x, torch.Generator().manual_seed(seed)), seed=seed).averages()
        found[f"{split}_neg_elbo"] = round(terms["neg_elbo"], 3)
    found |= {"minutes": round(history.rows[-1]["seconds"] / 60, 1), "processor": processor()}
    return found | {"threads": torch.get_num_threads(), "torch": torch.__version__}


def image_scores() -> list[dict[str, float]]:
    """−IW_100 of every test image, by the shipped model, with the coin tosses and the draws of the study's row."""
    model, _ = shipped_model("residual_32d")
    pixels, draws = (torch.Generator().manual_seed(SEED) for _ in range(2))
    log_lik = importance_weighted_log_likelihood(model, binarise(load_mnist("test").x, pixels), 100, draws)
    return [{"iw_nll": round(-value, 4)} for value in log_lik.tolist()]


def main() -> None:
    description = "The search that led to residual_vae, and its score of each test image."
    argparse.ArgumentParser(description=description).parse_args()
    fill(paths.figures_dir() / "03_literature_search.csv", {step: partial(row, step) for step in LADDER})
    if not (paths.figures_dir() / "03_literature_images.csv").exists():
        save_table(image_scores(), "03_literature_images")


if __name__ == "__main__":
    main()
