"""The models of the tables 03_match, 03_literature and 04_study: ``python -m tables.study 03_match``.

``04_study`` writes the pictures of its models too, into ``figures/04_images.npz``.
"""

import argparse
import itertools
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tme_utils import paths
from tme_utils.data import display_batch
from tme_utils.latent import traversals
from tme_utils.metrics import posterior_parameters
from tme_utils.study import Configuration, allowed_cores, fill, images, read_rows, run
from tme_utils.training import Recipe
from tme_utils.vae import kl_per_dim

LATENT_DIMS = (1, 2, 3, 5, 10, 20, 32, 64)
OTHER_BETAS = (0.25, 0.5, 2.0, 4.0)  # beside 1, at 20 dimensions
DRAWS = 10  # codes of the prior that every model decodes: the first coordinates of the same draws
AXIS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # values given to one coordinate, in standard deviations of the prior
RESIDUAL = Recipe(n_epochs=30, binarised=True)
# Each perceptron's best rate on the validation split (figures/02_recipe.csv); conv's is the default.
BEST_RATES = [("mlp", 20, 8e-3), ("mlp_wide", 20, 8e-3), ("mlp_deep", 20, 1e-3), ("mlp_deep", 2, 2e-3)]

# Seeds vary slowest: a study cut short has every model once.
TABLES: dict[str, list[Configuration]] = {
    "03_match": [
        *(
            Configuration(architecture, latent_dim, seed, iw_samples=100)
            for seed, latent_dim, architecture in itertools.product(range(3), (20, 2), ("mlp", "conv"))
        ),
        *(
            Configuration(name, d, seed, Recipe(max_lr=max_lr), iw_samples=100)
            for seed, (name, d, max_lr) in itertools.product(range(3), BEST_RATES)
        ),
    ],
    "03_literature": [
        Configuration("residual", 32, seed, RESIDUAL, iw_samples)
        for iw_samples, seed in [*itertools.product((1, 10, 100), range(2)), (500, 0), (5000, 0)]
    ],
    # The models to compare, then the MLP with other β for the rate-distortion plane, then the auto-encoders.
    "04_study": [
        *(
            Configuration(name, d, seed, iw_samples=100)
            for seed, name, d in itertools.product(range(3), ("mlp", "conv"), LATENT_DIMS)
        ),
        *(Configuration("mlp", 20, seed, Recipe(beta=beta)) for seed, beta in itertools.product(range(3), OTHER_BETAS)),
        *(
            Configuration(name, d, seed, Recipe(beta=0))
            for seed, name, d in itertools.product(range(3), ("mlp_ae", "conv_ae"), LATENT_DIMS)
        ),
    ],
}


def pictures(configuration: Configuration) -> dict[str, Any]:
    """What the model of a configuration draws, as 8-bit images (..., 28, 28), for figures.

    By name, ``<architecture>_<latent_dim>_train`` and ``_test``, ten display digits rebuilt through ``mu``, ``_prior``,
    the same ten draws decoded, and ``_axes``, three test digits rebuilt as one coordinate takes the values ``AXIS``:
    that of the largest and that of the smallest KL divergence (3, 2, 7, 28, 28).
    """
    (train, test), (model, _) = images(), configuration.trained()
    order = kl_per_dim(*posterior_parameters(model, test.x)).mean(dim=0).argsort(descending=True)
    draws = torch.randn(max(LATENT_DIMS), DRAWS, generator=torch.Generator().manual_seed(0)).T
    codes = {n: posterior_parameters(model, display_batch(s, 1).x)[0] for n, s in [("train", train), ("test", test)]}
    codes["prior"] = draws[:, : configuration.latent_dim]
    codes["axes"] = traversals(codes["test"][[2, 4, 7]], order[[0, -1]], torch.tensor(AXIS))
    with torch.no_grad():
        probs = {name: model.likelihood.mean(model.decode(z)).squeeze(-3) for name, z in codes.items()}
    stem = f"{configuration.architecture}_{configuration.latent_dim}"
    return {f"{stem}_{name}": (255 * p).round().to(torch.uint8).numpy() for name, p in probs.items()}


def save_pictures(
    path: Path | str,
    configurations: Sequence[Configuration],
    executor: Executor | None = None,
    *,
    progress: bool = True,
) -> None:
    """Write the pictures of these models, and the ``axis``, to one file, moved into place when complete."""
    results = executor.map(pictures, configurations) if executor else map(pictures, configurations)
    arrays = [
        each for found in tqdm(results, "pictures", len(configurations), disable=not progress) for each in found.items()
    ]
    with paths.atomic_write(path) as partial_file, partial_file.open("wb") as file:
        np.savez_compressed(file, axis=AXIS, **dict(arrays))


def _begin_worker(n_threads: int) -> None:
    """Set up a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker; else it would begin the next model
    torch.set_num_threads(n_threads)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fill a table of the report with what it lacks.")
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--workers", type=int, default=1, help="processes, which share the cores; 1 by default")
    arguments = parser.parse_args()
    path = paths.figures_dir() / f"{arguments.table}.csv"
    study = arguments.table == "04_study"  # whose models are to generate, too
    jobs = {c.key: partial(run, c, generation=study) for c in TABLES[arguments.table]}
    # The pictures are those of the models of seed 0 and β = 1; older ones are of other models than the rows to come.
    shown = [c for c in TABLES["04_study"] if c.seed == 0 and c.recipe.beta == 1]
    archive = path.with_name("04_images.npz")
    if study and not {c.key for c in shown} <= read_rows(path).keys():
        archive.unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in whatever state they are
    n_threads = max(1, allowed_cores() // arguments.workers)
    with ProcessPoolExecutor(arguments.workers, context, _begin_worker, (n_threads,)) as executor:
        fill(path, jobs, executor)
        if study and not archive.exists():
            save_pictures(archive, shown, executor)


if __name__ == "__main__":
    main()
