"""From a configuration to its row of results, and from many to one resumable table.

``python -m tme_utils.study 03_match`` fills ``figures/03_match.csv``; ``--help`` lists the tables. What a table
already holds is not computed again, and a trained model waits in ``checkpoints/study/`` (not committed) for the
case that the work is stopped between its training and its scores. ``04_study`` writes the pictures of its models
too, into ``figures/04_images.npz``.
"""

import argparse
import csv
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tme_utils import models, paths
from tme_utils.checkpoints import load_or_train
from tme_utils.data import Images, binarise, display_batch, load_mnist
from tme_utils.gaussian import kl_per_dim, reparameterize
from tme_utils.generation import DigitClassifier, divergence_from_prior, features, frechet_distance, recognised
from tme_utils.latent import traversals
from tme_utils.metrics import active_units, importance_weighted_log_likelihood, posterior_parameters
from tme_utils.shipped import shipped_classifier
from tme_utils.training import BATCH_SIZE, BETAS, MAX_LR, WARM_UP, History, best_device, evaluate, on_device


def _autoencoder(name: str, latent_dim: int) -> models.VAE:
    return models.deterministic(models.ARCHITECTURES[name](latent_dim))


AUTOENCODERS = {f"{name}_ae": partial(_autoencoder, name) for name in models.ARCHITECTURES}
BUILDERS: dict[str, Callable[[int], models.VAE]] = models.ARCHITECTURES | AUTOENCODERS
TRAINED_ON = ("grey", "binarised")
N_GENERATED = 10_000  # images for each Fréchet distance, as many as there are test images


@dataclass(frozen=True)
class Configuration:
    """All that a row of results follows from, but for the machine.

    Attributes:
        architecture: one of ``BUILDERS``.
        latent_dim: number of latent coordinates.
        seed: of the initial weights, the training, the scores' noise and the binarisation of the test images.
        beta: weight of the KL term in training.
        trained_on: "grey" levels, or images "binarised" anew at every epoch.
        n_epochs: passes over the 60,000 training images.
        max_lr: highest learning rate.
        iw_samples: draws for each test image of the importance-weighted log-likelihood; 0 leaves it out.

    Raises:
        ValueError: for an unknown architecture or kind of image, or a number out of its range; for an auto-encoder
            with ``beta`` or ``iw_samples`` other than 0, as it has neither KL term nor likelihood.
    """

    architecture: str
    latent_dim: int
    seed: int = 0
    beta: float = 1.0
    trained_on: str = "grey"
    n_epochs: int = 10
    max_lr: float = MAX_LR
    iw_samples: int = 0

    def __post_init__(self) -> None:
        """Check every field, and make floats of ``beta`` and ``max_lr``: 1 and 1.0 ask for one model."""
        for name, accepted in [("architecture", tuple(BUILDERS)), ("trained_on", TRAINED_ON)]:
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}")
        for name, least in [("latent_dim", 1), ("seed", 0), ("n_epochs", 1), ("iw_samples", 0)]:
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {getattr(self, name)!r}")
        if not 0 <= self.beta < math.inf or not 0 < self.max_lr < math.inf:
            raise ValueError(f"need finite beta >= 0 and max_lr > 0, got {self.beta!r} and {self.max_lr!r}")
        for name in ("beta", "max_lr"):
            object.__setattr__(self, name, float(getattr(self, name)))  # as the dataclass is frozen
        if self.architecture in AUTOENCODERS and (self.beta, self.iw_samples) != (0, 0):
            raise ValueError(
                f"{self.architecture} has no KL term and no likelihood: beta and iw_samples must be 0, "
                f"got {self.beta!r} and {self.iw_samples!r}"
            )

    def build(self) -> models.VAE:
        """The untrained model; its weights come from torch's global generator."""
        return BUILDERS[self.architecture](self.latent_dim)

    @property
    def digest(self) -> str:
        """Digest of the fields, of the layers' sizes and of the training recipe: what a row is known by."""
        with torch.device("meta"):  # no weight is drawn
            sizes = self.build().config
        recipe = {"batch_size": BATCH_SIZE, "betas": BETAS, "warm_up": WARM_UP}
        text = json.dumps({"configuration": asdict(self), "sizes": sizes, "recipe": recipe}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def result_row(
    model: models.VAE,
    history: History,
    x_train: Tensor,
    x_test: Tensor,
    classifier: DigitClassifier | None = None,
    *,
    seed: int,
    beta: float = 1.0,
    trained_on: str = "grey",
    iw_samples: int = 0,
) -> dict[str, Any]:
    """Score a trained model on all its training and test images.

    Args:
        model: as :func:`tme_utils.training.fit` left it.
        history: what ``fit`` returned.
        x_train: all training images, (N, 1, 28, 28), in [0, 1].
        x_test: all test images, (N, 1, 28, 28), in [0, 1].
        classifier: the network in whose features generated and test images are compared; without it that is left out.
        seed: the seed of the training; the noise of the scores and the binarisation start from it too.
        beta: weight of the KL term in training; the scores are −ELBOs, with weight 1, whatever it was.
        trained_on: "grey" or "binarised".
        iw_samples: draws for each image of the importance-weighted log-likelihood; 0 leaves it out.

    Returns:
        One row: what was trained (``architecture``, ``latent_dim``, ``beta``, ``trained_on``, ``n_epochs``,
        ``seed``, ``n_parameters``), how (``seconds`` of training; ``threads``, ``device`` and ``torch`` of this
        process, which trained the model unless its checkpoint was there), and in nats per image ``recon``, ``kl``
        and ``neg_elbo`` of grey images, each as ``train_`` and ``test_``;
        ``test_neg_elbo_se``, its standard error over the test images; ``test_squared_error``, the squared error
        summed over the pixels of the reconstruction through ``mu``; ``active_units``; ``kl_per_dim``, the mean
        over the test images for each coordinate, largest first, separated by spaces; what :func:`generation_scores`
        measures; ``binarised_neg_elbo``, over the test images binarised once; and, on the same, ``iw_nll``, its
        standard error ``iw_nll_se``, ``iw_samples`` and ``iw_images``.

    Raises:
        ValueError: for another ``trained_on``, or images outside [0, 1].
    """
    if trained_on not in TRAINED_ON:
        raise ValueError(f"trained_on must be 'grey' or 'binarised', got {trained_on!r}")
    row = {name: model.config[name] for name in ("architecture", "latent_dim")}
    row |= {"beta": beta, "trained_on": trained_on, "n_epochs": len(history.rows) - 1, "seed": seed}
    row |= {"n_parameters": model.n_parameters, "seconds": round(history.rows[-1]["seconds"], 1)}
    row |= {"threads": torch.get_num_threads(), "device": str(best_device(x_test.dtype)), "torch": torch.__version__}
    for split, x in [("train", x_train), ("test", x_test)]:
        terms = evaluate(model, x, seed=seed)
        row |= {f"{split}_{term}": round(value, 4) for term, value in terms.averages().items()}
    row["test_neg_elbo_se"] = _standard_error(terms.elbo)
    mu, logvar = posterior_parameters(model, x_test)
    with torch.no_grad():
        rebuilt = torch.cat([model.decode(part).sigmoid() for part in mu.split(1000)])
    row["test_squared_error"] = round((rebuilt - x_test).square().double().sum().item() / len(x_test), 4)
    row["active_units"] = int(active_units(mu).sum())
    kl = kl_per_dim(mu, logvar).double().mean(dim=0).sort(descending=True).values
    row["kl_per_dim"] = " ".join(f"{value:.4f}" for value in kl.tolist())
    if classifier is not None:
        row |= generation_scores(model, x_train, x_test, classifier, seed=seed)
    x_binarised = binarise(x_test, torch.Generator().manual_seed(seed))
    row["binarised_neg_elbo"] = round(evaluate(model, x_binarised, seed=seed).averages()["neg_elbo"], 4)
    if iw_samples > 0:
        device = best_device(x_test.dtype)
        with on_device(model, device):
            log_lik = importance_weighted_log_likelihood(
                model, x_binarised.to(device), iw_samples, torch.Generator().manual_seed(seed)
            ).cpu()  # where there is float64
        row |= {"iw_nll": round(-log_lik.double().mean().item(), 4), "iw_nll_se": _standard_error(log_lik)}
        row |= {"iw_samples": iw_samples, "iw_images": len(x_test)}
    return row


@torch.no_grad()
def generation_scores(
    model: models.VAE, x_train: Tensor, x_test: Tensor, classifier: DigitClassifier, *, seed: int
) -> dict[str, float]:
    """Compare what a model makes of codes of the prior with what it makes of codes of training images.

    Args:
        model: on the CPU, like the images.
        x_train: training images, (N, 1, 28, 28); their codes, drawn from q(z|x), stand for the aggregated posterior.
        x_test: test images, (M, 1, 28, 28), to which what is decoded is compared.
        classifier: gives the features.
        seed: of all draws.

    Returns:
        ``frechet_prior`` and ``frechet_aggregated``, the Fréchet distances to the test images of up to 10,000 decoded
        images (probabilities, no pixel drawn), from both kinds of codes; ``recognised_prior`` and
        ``recognised_aggregated``, the shares of them that the classifier is sure of;
        ``divergence_from_prior`` of the codes' active coordinates, in bits.
    """
    generator = torch.Generator().manual_seed(seed)
    posteriors = [posterior_parameters(model, x) for x in (x_train, x_test)]
    codes = [reparameterize(mu, lv, torch.randn(mu.shape, generator=generator)) for mu, lv in posteriors]
    scores = {}
    reference = features(classifier, x_test)
    for name, z in [
        ("prior", torch.randn((min(N_GENERATED, len(x_train)), model.latent_dim), generator=generator)),
        ("aggregated", codes[0][:N_GENERATED]),
    ]:
        decoded = torch.cat([features(classifier, model.decode(part).sigmoid()) for part in z.split(1000)])
        scores[f"frechet_{name}"] = round(frechet_distance(decoded, reference), 3)
        scores[f"recognised_{name}"] = round(recognised(classifier, decoded), 4)
    # Where a unit is not active q(z|x) is the prior: to the network these coordinates would be noise.
    active = active_units(posteriors[1][0])
    with torch.enable_grad():
        bits = divergence_from_prior(*(z[:, active] for z in codes), seed=seed) if active.any() else 0.0
    return scores | {"divergence_from_prior": round(bits, 4)}


def _standard_error(values: Tensor) -> float:
    standard_error: float = values.double().std().item() / len(values) ** 0.5
    return round(standard_error, 4)


@cache
def _images() -> tuple[Images, Images]:
    """The training and test images, loaded once in each process."""
    return load_mnist("train+validation"), load_mnist("test")


def _trained(configuration: Configuration) -> tuple[models.VAE, History]:
    """The model of a configuration, from its checkpoint or trained now."""
    train, test = _images()
    model, history = load_or_train(
        configuration.build,
        train.x,
        test.x,
        configuration.n_epochs,
        seed=configuration.seed,
        beta=configuration.beta,
        max_lr=configuration.max_lr,
        binarised=configuration.trained_on == "binarised",
        folder=paths.CHECKPOINTS / "study",  # a model that ships is found in checkpoints/
        progress=False,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return model, history


def run(configuration: Configuration) -> dict[str, Any]:
    """Train and score the model of a configuration: a function of it alone, but for rounding and speed.

    Returns:
        The row of :func:`result_row`, ``digest``, which names the configuration, and ``python``, its version.

    Raises:
        KeyboardInterrupt: if the training was stopped: a model half trained has no row.
    """
    train, test = _images()
    model, history = _trained(configuration)
    asked = {name: getattr(configuration, name) for name in ("seed", "beta", "trained_on", "iw_samples")}
    row = result_row(model, history, train.x, test.x, shipped_classifier(), **asked)
    if configuration.architecture in AUTOENCODERS:  # its KL would only tell which width stands for a point
        row = {name: value for name, value in row.items() if not re.search("kl|elbo", name)}
    names = {"architecture": configuration.architecture, "python": platform.python_version()}
    return {"digest": configuration.digest} | row | names


def run_study(
    configurations: Iterable[Configuration],
    table: Path | str,
    executor: Executor | None = None,
    *,
    work: Callable[[Configuration], dict[str, Any]] = run,
    progress: bool = True,
) -> pd.DataFrame:
    """Compute what the table lacks, one row a configuration, each written as soon as it is known.

    The table is replaced as a whole at each row, so that it is never half written: stopped at any moment and
    started again, the study loses no finished row and repeats none. A row is known by its configuration's
    digest; rows of other configurations stay as they are, also those that another process adds meanwhile: the
    table is read again before each write. Two processes must not write at the very same moment: a row of the one
    that comes first may then be missing, and the next study computes it.

    Args:
        configurations: what is asked; repetitions count once.
        table: CSV file, made if missing.
        executor: where to compute: any executor of ``concurrent.futures``, such as a pool of processes or
            ``dask.distributed.Client(...).get_executor()``; in this process if not given.
        work: from a configuration to its row, a dict with ``digest``; picklable for executors of other processes.
        progress: show a progress bar with the time left.

    Returns:
        The rows of these configurations, in their order.

    Raises:
        ExceptionGroup: at the end, if some configurations failed; the others' rows are in the table.
        ValueError: if the table exists but is not one of this function's.
    """
    table = Path(table)
    asked = {configuration.digest: configuration for configuration in configurations}
    rows = _read_rows(table)
    missing = [configuration for digest, configuration in asked.items() if digest not in rows]
    errors = []
    with tqdm(total=len(asked), initial=len(asked) - len(missing), unit="model", disable=not progress) as bar:
        for result in itertools.chain.from_iterable(_results(part, executor, work) for part in _by_model(missing)):
            try:
                row = result()
            except Exception as error:
                errors.append(error)
                continue
            rows[row["digest"]] = {name: str(value) for name, value in row.items()}
            rows = _read_rows(table) | rows
            _write_rows(table, rows)
            bar.update()
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(missing)} configurations failed", errors)
    if not rows:
        return pd.DataFrame(columns=["digest"])
    frame = pd.read_csv(table, dtype={"digest": str}).set_index("digest", drop=False)  # some look like 7e4001661448
    return frame.loc[list(asked)].reset_index(drop=True)


def _by_model(configurations: Sequence[Configuration]) -> tuple[list[Configuration], list[Configuration]]:
    """The first configuration of each model, and those that only score it with other ``iw_samples``."""
    first: dict[Configuration, Configuration] = {}
    others = []
    for configuration in configurations:
        if first.setdefault(replace(configuration, iw_samples=0), configuration) is not configuration:
            others.append(configuration)
    return list(first.values()), others


def _results(
    configurations: Sequence[Configuration],
    executor: Executor | None,
    work: Callable[[Configuration], dict[str, Any]],
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Functions that give a row or raise, in the order in which rows become known."""
    if executor is None:
        yield from (partial(work, configuration) for configuration in configurations)
        return
    futures: list[Future[dict[str, Any]]] = [executor.submit(work, configuration) for configuration in configurations]
    try:
        yield from (future.result for future in as_completed(futures))
    finally:
        for future in futures:  # after Ctrl-C, what has not begun need not begin
            future.cancel()


def _read_rows(table: Path) -> dict[str, dict[str, str]]:
    """The table's rows by digest, as text, so that writing them again changes no digit."""
    if not table.exists():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(not row.get("digest") or None in row or None in row.values() for row in rows):
        raise ValueError(f"{table} is not a table of run_study, or is damaged; restore it or move it away")
    return {row["digest"]: row for row in rows}


def _write_rows(table: Path, rows: dict[str, dict[str, str]]) -> None:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    with paths.atomic_write(table) as partial_table, partial_table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        file.flush()
        os.fsync(file.fileno())


def save_table(rows: Sequence[dict[str, Any]], name: str) -> Path:
    """Write rows as ``figures/<name>.csv``, moved into place when complete, and return the path."""
    path = paths.figures_dir() / f"{name}.csv"
    with paths.atomic_write(path) as partial_table:
        pd.DataFrame(rows).to_csv(partial_table, index=False)
    return path


LATENT_DIMS = (1, 2, 3, 5, 10, 20, 32, 64)
OTHER_BETAS = (0.25, 0.5, 2.0, 4.0)  # beside 1, at 20 dimensions
GRID = range(3), ("mlp", "conv")
DRAWS = 10  # codes of the prior that every model decodes: the first coordinates of the same draws
AXIS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # values given to one coordinate, in standard deviations of the prior

# The tables of the report. Seeds vary slowest: a study cut short has every model once. A model scored with several
# numbers of samples is trained once: run_study lets the first of its rows train it before the others begin.
TABLES: dict[str, list[Configuration]] = {
    "03_match": [
        Configuration(architecture, latent_dim, seed, iw_samples=100)
        for seed, latent_dim, architecture in itertools.product(range(3), (20, 2), ("mlp", "conv"))
    ],
    "03_literature": [
        Configuration("residual", 32, seed, trained_on="binarised", n_epochs=30, iw_samples=iw_samples)
        for iw_samples, seed in [*itertools.product((1, 10, 100), range(2)), (500, 0), (5000, 0)]
    ],
    # The models to compare, then the MLP with other β for the rate-distortion plane, then the auto-encoders.
    "04_study": [
        *(Configuration(name, d, seed, iw_samples=100) for seed, name, d in itertools.product(*GRID, LATENT_DIMS)),
        *(Configuration("mlp", 20, seed, beta) for seed, beta in itertools.product(range(3), OTHER_BETAS)),
        *(
            Configuration(name, d, seed, beta=0.0)
            for seed, name, d in itertools.product(range(3), ("mlp_ae", "conv_ae"), LATENT_DIMS)
        ),
    ],
}


def pictures(configurations: Iterable[Configuration]) -> dict[str, Any]:
    """What the models of these configurations draw, as 8-bit images (..., 28, 28), for figures.

    Returns:
        By name, for each model, ``<architecture>_<latent_dim>_train`` and ``_test``, reconstructions through ``mu`` of
        ten display digits (10, 28, 28), ``_prior``, the same ten draws of the prior decoded, and ``_axes``: the
        reconstruction of three test digits as one coordinate takes the values ``AXIS``, for the coordinate of
        the largest and of the smallest KL divergence (3, 2, 7, 28, 28).
    """
    train, test = (display_batch(images, per_class=1).x for images in _images())
    draws = torch.randn(max(LATENT_DIMS), DRAWS, generator=torch.Generator().manual_seed(0)).T
    found = {}
    for configuration in configurations:
        model, _ = _trained(configuration)
        mu, logvar = posterior_parameters(model, _images()[1].x)
        order = kl_per_dim(mu, logvar).mean(dim=0).argsort(descending=True)
        mu_test = posterior_parameters(model, test)[0]
        codes = {
            "train": posterior_parameters(model, train)[0],
            "test": mu_test,
            "prior": draws[:, : configuration.latent_dim],
            "axes": traversals(mu_test[[2, 4, 7]], order[[0, -1]], torch.tensor(AXIS)),
        }
        for name, z in codes.items():
            with torch.no_grad():
                probs = model.decode(z.reshape(-1, z.shape[-1])).sigmoid().reshape(*z.shape[:-1], 28, 28)
            found[f"{configuration.architecture}_{configuration.latent_dim}_{name}"] = (
                (probs * 255).round().to(torch.uint8).numpy()
            )
    return found


def shown() -> list[Configuration]:
    """The study's models whose pictures are kept: those of seed 0 and β = 1."""
    return [c for c in TABLES["04_study"] if c.seed == 0 and c.beta == 1]


def save_pictures(path: Path | str) -> None:
    """Write the pictures of the models of :func:`shown` to one file, moved into place when complete."""
    arrays = pictures(shown())
    with paths.atomic_write(path) as partial_file, partial_file.open("wb") as file:
        np.savez_compressed(file, **arrays)


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
    images = path.with_name("04_images.npz") if arguments.table == "04_study" else None
    if images is not None and not {c.digest for c in shown()} <= _read_rows(path).keys():
        images.unlink(missing_ok=True)  # of other models; gone, they are drawn even if the study is stopped before
    if arguments.workers <= 1:
        run_study(TABLES[arguments.table], path)
    else:
        n_threads = max(1, (os.cpu_count() or 1) // arguments.workers)
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in whatever state they are
        with ProcessPoolExecutor(arguments.workers, context, _begin_worker, (n_threads,)) as executor:
            run_study(TABLES[arguments.table], path, executor)
    if images is not None and not images.exists():
        save_pictures(images)


if __name__ == "__main__":
    main()
