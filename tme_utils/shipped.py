"""The trained models that ship in ``checkpoints/``: what they are, and the command that makes them.

A classifier of digits is among them, so that every study measures with the same one.
``python -m tme_utils.shipped`` trains those whose checkpoint is missing, on all 60,000 training images, by the
recipe of :mod:`tme_utils.training`; three hidden layers take half its learning rate (``figures/02_recipe.csv``).
"""

import argparse
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch

from tme_utils import data, models, paths
from tme_utils.checkpoints import load_checkpoint, load_or_train, save_checkpoint
from tme_utils.generation import DigitClassifier, fit_classifier
from tme_utils.training import History, Probes, seeded

SEED = 0
CLASSIFIER_EPOCHS = 4


class Recipe(NamedTuple):
    """What a shipped model is, and how it is trained."""

    build: Callable[[], models.VAE]
    n_epochs: int
    max_lr: float
    binarised: bool = False
    snapshots: bool = True


RECIPES = {
    # Two dimensions leave the decoder all the work: three hidden layers each way instead of the handout's one.
    "mlp_2d": Recipe(partial(models.mlp_vae, latent_dim=2, hidden=(512, 512, 256)), 30, 2e-3),
    "conv_2d": Recipe(partial(models.conv_vae, latent_dim=2), 30, 4e-3),
    "conv_20d": Recipe(partial(models.conv_vae, latent_dim=20), 10, 4e-3),
    # Seed 0 of the table 03_literature: equal settings, one checkpoint.
    "residual_32d": Recipe(models.residual_vae, 30, 4e-3, binarised=True, snapshots=False),
}


def shipped_model(name: str, *, progress: bool = True) -> tuple[models.VAE, History]:
    """Load a shipped model, or train it if its checkpoint is missing.

    Args:
        name: one of ``RECIPES``.
        progress: show a progress bar while it is trained.

    Returns:
        (model, history); the history has snapshots of the display digits where the recipe says so.

    Raises:
        ValueError: for an unknown name, or a damaged checkpoint.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown model {name!r}; the shipped models are {', '.join(RECIPES)}")
    train, test = data.load_mnist("train+validation"), data.load_mnist("test")
    recipe = RECIPES[name]
    with torch.device("meta"):  # no weight is drawn
        latent_dim = recipe.build().latent_dim
    probes = Probes(
        train=data.display_batch(train).x,
        held_out=data.display_batch(test).x,
        z=torch.randn(20, latent_dim, generator=torch.Generator().manual_seed(SEED)),
    )
    return load_or_train(
        recipe.build,
        train.x,
        test.x,
        recipe.n_epochs,
        seed=SEED,
        max_lr=recipe.max_lr,
        binarised=recipe.binarised,
        probes=probes if recipe.snapshots else None,
        progress=progress,
    )


@cache
def shipped_classifier() -> DigitClassifier:
    """Load the classifier in whose features generated images are compared, or train it if its checkpoint is missing.

    Raises:
        ValueError: if the checkpoint is damaged or holds something else.
    """
    with seeded(SEED):
        classifier = DigitClassifier()
    settings = classifier.config | {"n_epochs": CLASSIFIER_EPOCHS, "seed": SEED}
    path = paths.CHECKPOINTS / "classifier.safetensors"
    if path.exists():
        load_checkpoint(path, classifier, settings)
    else:
        train = data.load_mnist("train+validation")
        fit_classifier(classifier, train.x, train.y, CLASSIFIER_EPOCHS, seed=SEED)
        save_checkpoint(path, classifier, settings, History(rows=[]))
    return classifier


def main() -> None:
    """Train what is missing.

    Raises:
        KeyboardInterrupt: if a training was stopped, which is not another model's turn.
    """
    shipped_classifier()
    for name in RECIPES:
        _, history = shipped_model(name)
        if history.interrupted:
            raise KeyboardInterrupt
        print(f"{name}: test −ELBO {history.rows[-1]['held_out_neg_elbo']:.2f} nats per image")


if __name__ == "__main__":
    argparse.ArgumentParser(description="Train the shipped models whose checkpoint is missing.").parse_args()
    main()
