"""Who gains by convolutions, digit by digit: ``python -m tables.match``.

The convolutional models of the table ``03_match`` at twenty dimensions against the perceptrons of the same seed, on all
test images. Rows go to ``figures/03_match_by_class.csv``; those already there are not computed again. Models come
from ``checkpoints/study/``, or are trained again.
"""

import argparse
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tables.study import TABLES
from tme_utils import paths
from tme_utils.data import load_mnist
from tme_utils.study import Configuration, fill
from tme_utils.training import evaluate

N_DRAWS = 5  # of z for each image


@cache
def neg_elbo(configuration: Configuration) -> Tensor:
    """The negative ELBO of every grey test image, averaged over the draws."""
    model, _ = configuration.trained()
    scores = [-evaluate(model, load_mnist("test").x, seed=draw).elbo.double() for draw in range(N_DRAWS)]
    return torch.stack(scores).mean(dim=0)


def row(perceptron: Configuration, conv: Configuration, digit: int) -> dict[str, Any]:
    """How much better the convolutional model describes the images of a digit, in nats, and how many of them."""
    gain = (neg_elbo(perceptron) - neg_elbo(conv))[load_mnist("test").y == digit]
    found = {"architecture": perceptron.architecture, "max_lr": perceptron.recipe.max_lr, "seed": perceptron.seed}
    found |= {"digit": digit, "n_images": len(gain), "gain": round(gain.mean().item(), 3)}
    found["gain_se"] = round(gain.std().item() / len(gain) ** 0.5, 3)
    return found | {"share_better": round((gain > 0).double().mean().item(), 4)}


def main() -> None:
    argparse.ArgumentParser(description="Gains by digit into 03_match_by_class.csv.").parse_args()
    models = [configuration for configuration in TABLES["03_match"] if configuration.latent_dim == 20]
    conv = {configuration.seed: configuration for configuration in models if configuration.architecture == "conv"}
    jobs = {
        f"{replace(other, iw_samples=0).key}_{digit}": partial(row, other, conv[other.seed], digit)
        for other in models
        if other.architecture != "conv"
        for digit in range(10)
    }
    fill(paths.figures_dir() / "03_match_by_class.csv", jobs)


if __name__ == "__main__":
    main()
