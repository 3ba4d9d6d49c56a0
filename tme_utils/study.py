"""From a configuration to its row of results, and from many to one resumable table.

What a table already holds is not computed again, and a trained model waits in ``checkpoints/study/`` (not committed)
for the case that the work is stopped between its training and its scores.
"""

import csv
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tme_utils import paths
from tme_utils.architectures import ARCHITECTURES, AUTOENCODERS
from tme_utils.checkpoints import digest, load_or_train, settings_of
from tme_utils.data import Images, binarise, load_mnist
from tme_utils.generation import generation_scores
from tme_utils.metrics import active_units, importance_weighted_log_likelihood, posterior_parameters
from tme_utils.training import History, Objective, Recipe, best_device, evaluate, on_device, seeded
from tme_utils.vae import VAE, as_int, kl_per_dim

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

Job = Callable[[], dict[str, Any]]


def fill(
    table: Path | str, jobs: Mapping[str, Job], executor: Executor | None = None, *, progress: bool = True
) -> pd.DataFrame:
    """Compute the rows that the table lacks, each written as soon as it is known, and return those of the jobs.

    Stopped at any moment and started again, no finished row is lost and none is repeated: the table is replaced as a
    whole at each row. Rows of other keys stay as they are, also those that another process adds meanwhile.
    The keys stand in the table's column ``digest``. Any executor of ``concurrent.futures`` may do the jobs, such as a
    pool of processes, to which they must be picklable, or ``dask.distributed.Client(...).get_executor()``; without one
    they are done here.

    Raises:
        ExceptionGroup: at the end, if some jobs failed; the others' rows are in the table.
        ValueError: if the table exists but is not one of this function's.
    """
    table = Path(table)
    done = read_rows(table)
    missing = {key: job for key, job in jobs.items() if key not in done}
    errors = []
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="row", disable=not progress) as bar:
        for key, result in _results(missing, executor):
            try:
                row = result()
            except Exception as error:
                errors.append(error)
                continue
            _add_row(table, {"digest": key} | row)
            bar.update()
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(missing)} rows failed", errors)
    if not jobs:
        return pd.DataFrame(columns=["digest"])
    frame = pd.read_csv(table, dtype={"digest": str})  # some look like the number 7e4001661448
    return frame.set_index("digest", drop=False).loc[list(jobs)].reset_index(drop=True)


def _results(jobs: Mapping[str, Job], executor: Executor | None) -> Iterator[tuple[str, Job]]:
    """Keys, and functions that give their row or raise, in the order in which rows become known."""
    if executor is None:
        yield from jobs.items()
        return
    futures = {executor.submit(job): key for key, job in jobs.items()}
    try:
        yield from ((futures[future], future.result) for future in as_completed(futures))
    finally:
        for future in futures:  # after Ctrl-C, what has not begun need not begin
            future.cancel()


def read_rows(table: Path) -> dict[str, dict[str, str]]:
    """The table's rows by digest, as text, so that writing them again changes no digit."""
    if not table.exists():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(not row.get("digest") or None in row or None in row.values() for row in rows):
        raise ValueError(f"{table} has no whole column ``digest``, or is damaged; restore it or move it away")
    return {row["digest"]: row for row in rows}


def _add_row(table: Path, row: dict[str, Any]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{table}.lock"):  # of two processes, none overwrites what the other has just added
        rows = read_rows(table) | {row["digest"]: row}
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        with paths.atomic_write(table) as partial_table, partial_table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


def save_table(rows: Sequence[dict[str, Any]], name: str) -> Path:
    """Write rows as ``figures/<name>.csv``, moved into place when complete, and return the path."""
    path = paths.figures_dir() / f"{name}.csv"
    with paths.atomic_write(path) as partial_table:
        pd.DataFrame(rows).to_csv(partial_table, index=False)
    return path


@dataclass(frozen=True)
class Configuration:
    """All that a row of results follows from, but for the machine.

    ``seed`` is that of the initial weights, the training, the scores' noise and the binarisation of the test images;
    ``iw_samples`` are draws for each test image of the importance-weighted log-likelihood, 0 to leave it out. An
    auto-encoder has neither KL term nor likelihood: its ``recipe.beta`` and ``iw_samples`` are 0. ``objective`` is as
    for :func:`tme_utils.training.fit`.
    """

    architecture: str
    latent_dim: int
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    iw_samples: int = 0
    objective: Objective | None = None

    def __post_init__(self) -> None:
        """Check every field, and make plain integers of integers of any type."""
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        for name, least in [("latent_dim", 1), ("seed", 0), ("iw_samples", 0)]:
            object.__setattr__(self, name, as_int(name, getattr(self, name), least))  # as the dataclass is frozen
        if self.architecture in AUTOENCODERS and (self.recipe.beta, self.iw_samples) != (0, 0):
            raise ValueError(f"{self.architecture} has no KL term and no likelihood: beta and iw_samples must be 0")

    def build(self) -> VAE:
        """The untrained model; its weights come from torch's global generator."""
        return ARCHITECTURES[self.architecture](self.latent_dim)

    @property
    def key(self) -> str:
        """What its row is known by: the digest of its model's checkpoint, and the number of importance samples."""
        with seeded(self.seed):
            model = self.build()
        return f"{digest(settings_of(model, self.recipe, self.seed, objective=self.objective))}_iw{self.iw_samples}"

    def trained(self) -> tuple[VAE, History]:
        """The model, from its checkpoint or trained now; a model that ships is found in checkpoints/."""
        folder = paths.CHECKPOINTS / "study"
        return load_or_train(
            self.build, self.recipe, seed=self.seed, objective=self.objective, folder=folder, progress=False
        )


def result_row(
    model: VAE,
    history: History,
    x_train: Float[Tensor, "n 1 28 28"],
    x_test: Float[Tensor, "m 1 28 28"],
    recipe: Recipe,
    *,
    seed: int,
    iw_samples: int = 0,
) -> dict[str, Any]:
    """Score a trained model, as ``fit`` left it, on all its training and test images.

    The noise of the scores and the binarisation of the test images start from the seed of the training; every score is
    one of the ELBO, with β = 1, whatever β the model trained with.

    Returns:
        What was trained and how (``threads``, ``device`` and ``torch`` are those of this process, which trained the
        model unless its checkpoint was there); in nats per image ``recon``, ``kl`` and ``neg_elbo`` of grey images,
        each as ``train_`` and ``test_``; ``test_neg_elbo_se``, a standard error over the test images;
        ``test_squared_error``, summed over the pixels of the reconstruction through ``mu``; ``active_units``;
        ``kl_per_dim``, means over the test images, largest first, separated by spaces; ``binarised_neg_elbo``, over
        the test images binarised once, and, on the same, ``iw_nll`` with ``iw_samples`` draws for each, if any.
    """
    row = {name: model.config[name] for name in ("architecture", "latent_dim")}
    row |= {"beta": recipe.beta, "max_lr": recipe.max_lr, "trained_on": "binarised" if recipe.binarised else "grey"}
    row |= {"n_epochs": len(history.rows) - 1, "seed": seed}
    row |= {"n_parameters": model.n_parameters, "seconds": round(history.rows[-1]["seconds"], 1)}
    row |= {"threads": torch.get_num_threads(), "device": str(best_device(x_test.dtype)), "torch": torch.__version__}
    for split, x in [("train", x_train), ("test", x_test)]:
        terms = evaluate(model, x, seed=seed)
        row |= {f"{split}_{term}": round(value, 4) for term, value in terms.averages().items()}
    row["test_neg_elbo_se"] = _standard_error(terms.elbo)
    mu, logvar = posterior_parameters(model, x_test)
    rebuilt = torch.cat([model.reconstruct(part) for part in x_test.split(1000)])
    row["test_squared_error"] = round((rebuilt - x_test).square().double().sum().item() / len(x_test), 4)
    row["active_units"] = int(active_units(mu).sum())
    kl = kl_per_dim(mu, logvar).double().mean(dim=0).sort(descending=True).values
    row["kl_per_dim"] = " ".join(f"{value:.4f}" for value in kl.tolist())
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


def _standard_error(values: Tensor) -> float:
    return round(float(values.double().std()) / math.sqrt(len(values)), 4)


@cache
def images() -> tuple[Images, Images]:
    """The training and test images, loaded once in each process."""
    return load_mnist("train+validation"), load_mnist("test")


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else [platform.processor()]
    return names[0] if names and names[0] else "unknown"


def run(configuration: Configuration, generation: bool = True) -> dict[str, Any]:
    """Train and score the model of a configuration: a function of it alone, but for rounding and speed.

    The row is that of :func:`result_row`, with the :func:`tme_utils.generation.generation_scores` if asked, ``python``
    and ``processor``.
    """
    (train, test), seed = images(), configuration.seed
    model, history = configuration.trained()
    row = result_row(
        model, history, train.x, test.x, configuration.recipe, seed=seed, iw_samples=configuration.iw_samples
    )
    row |= {"objective": repr(configuration.objective)} if configuration.objective else {}
    row |= generation_scores(model, train.x, test.x, seed=seed) if generation else {}
    row |= {"python": platform.python_version(), "processor": processor()}
    if configuration.architecture in AUTOENCODERS:  # its KL would only tell which width stands for a point
        row = {name: value for name, value in row.items() if not re.search("kl|elbo", name)}
    return row


def allowed_cores() -> int:
    """Cores that this process may use: on a cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
