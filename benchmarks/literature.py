"""The images behind a number of notebook 03: ``python -m benchmarks.literature``.

Writes the score of each test image behind the row of ``03_literature`` of seed 0 with 100 samples to
``figures/03_literature_images.csv``, in the images' order.
"""

import argparse

import torch

from tme_utils.checkpoints import SEED, shipped_model
from tme_utils.data import binarise, load_mnist
from tme_utils.metrics import importance_weighted_log_likelihood
from tme_utils.study import save_table


def main() -> None:
    model, _ = shipped_model("residual_32d")
    pixels, draws = (torch.Generator().manual_seed(SEED) for _ in range(2))  # those of the study's row
    log_lik = importance_weighted_log_likelihood(model, binarise(load_mnist("test").x, pixels), 100, draws)
    save_table([{"iw_nll": round(-value, 4)} for value in log_lik.tolist()], "03_literature_images")


if __name__ == "__main__":
    argparse.ArgumentParser(description="Score each test image of a row of 03_literature.").parse_args()
    main()
