"""Does it come back with another seed? ``python -m tables.planes`` measures each plane: ``figures/05_planes.csv``.

The shipped two-dimensional models (seed 0), and models of the same recipes from other seeds, are trained if their
checkpoint is missing. What a row holds is what notebook 05 computes for the plane that it shows.
"""

import argparse
import math
from functools import partial
from typing import Any

import torch

from tme_utils import latent, paths, study
from tme_utils.checkpoints import SHIPPED, load_or_train
from tme_utils.data import load_mnist
from tme_utils.generation import shipped_classifier
from tme_utils.metrics import posterior_parameters
from tme_utils.training import evaluate

SEEDS = {"mlp_2d": range(2), "conv_2d": range(1)}
N_KNOWN = 20_000  # training images to which a rule for the measurements is fitted
N_PAIRS = 1_000


@torch.no_grad()
def plane(name: str, seed: int) -> dict[str, Any]:
    """Train the model, unless it is there, and measure its plane, in float64.

    Returns:
        The negative ELBO and the KL term of the test images; the share of the prior's mass in holes, by the codes of
        the test and of the training images; the shares of :func:`tme_utils.latent.shares_explained`; and in how many
        of the midpoints between two test images of different classes the classifier is sure of one class.
    """
    build, recipe, _ = SHIPPED[name]
    model, history = load_or_train(build, recipe, seed=seed, folder=paths.CHECKPOINTS / "study", progress=False)
    model.double()
    (x_known, y_known), (x, y) = load_mnist("train+validation"), load_mnist("test")
    x_known, x = x_known.double(), x.double()
    terms = evaluate(model, x, seed=0).averages()
    row: dict[str, Any] = {"model": name, "seed": seed, "neg_elbo": terms["neg_elbo"], "kl": terms["kl"]}
    codes = {"train": posterior_parameters(model, x_known), "test": posterior_parameters(model, x)}
    grid = latent.prior_grid(80, torch.float64)
    for split, posterior in codes.items():
        empty = latent.log_ratio_to_prior(grid, *posterior) < math.log(0.1)
        row[f"holes_{split}"] = empty.double().mean().item()
    known, test = (
        latent.Measured(mu, torch.stack(latent.measure_shape(images), dim=1), labels)
        for mu, images, labels in [
            (codes["train"][0][:N_KNOWN], x_known[:N_KNOWN], y_known[:N_KNOWN]),
            (codes["test"][0], x, y),
        ]
    )
    for rule, shares in latent.shares_explained(known, test).items():
        row |= {f"{field} {rule}": s for field, s in zip(latent.Shape._fields, shares.tolist(), strict=True)}
    pairs = torch.arange(N_PAIRS)[y[:N_PAIRS] != y[N_PAIRS : 2 * N_PAIRS]]
    half_way = (test.z[pairs] + test.z[pairs + N_PAIRS]) / 2
    classes = shipped_classifier().double()(model.likelihood.mean(model.decode(half_way))).softmax(dim=1)
    row["sure_half_way"] = (classes.amax(dim=1) >= 0.9).double().mean().item()
    row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
    return row | {"seconds": round(history.rows[-1]["seconds"], 1), "processor": study.processor()}


if __name__ == "__main__":
    argparse.ArgumentParser(description="Measure the planes of several seeds into 05_planes.csv.").parse_args()
    jobs = {f"{name}_{seed}": partial(plane, name, seed) for name, seeds in SEEDS.items() for seed in seeds}
    study.fill(paths.figures_dir() / "05_planes.csv", jobs)
