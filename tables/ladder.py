"""Appendix B's models: ``python -m tables.ladder B_ladder``, what each trick buys at equal cost, and ``B_headline``.

Every rung is ``residual_vae`` with one change, trained on the first 50,000 images, binarised anew at every epoch, for
about as long as the first rung, and scored on the 10,000 set aside, binarised once; the test images are not loaded.
The headline's recipe was settled before; its models train on all 60,000 and are scored on the test images.

Rows go to ``figures/<table>.csv``; those already there are not computed again.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tme_utils import paths
from tme_utils.architectures import flow_vae, residual_vae
from tme_utils.checkpoints import SEED, SHIPPED, digest, shipped_model
from tme_utils.data import binarise, load_mnist
from tme_utils.generation import divergence_from_prior, generation_scores, shipped_prior
from tme_utils.metrics import importance_weighted_log_likelihood, posterior_parameters
from tme_utils.priors import Flow, FullGaussian, Sharper
from tme_utils.study import Configuration, Job, fill, images, processor, run
from tme_utils.training import Recipe, evaluate, fit, seeded
from tme_utils.vae import VAE, conv_vae, reparameterize

N_IMAGES, N_SAMPLES = 2_000, 50  # of the importance-weighted scores: images, and draws for each
SEEDS = range(3)
N_STEPS = 60  # of ``conv_vae``, which tell what its epoch costs on this machine and at this hour


@dataclass(frozen=True)
class Rung:
    """One trick: what trains, for how many epochs, and towards what."""

    objective: Sharper
    n_epochs: int = 5
    build: Callable[[], VAE] = residual_vae
    around: Callable[[VAE], AbstractContextManager[object]] = nullcontext  # the training


@contextmanager
def averaging(model: VAE) -> Iterator[None]:
    """Leave the model with an exponential average of its weights, over about the last two hundred steps."""
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    hook = register_optimizer_step_post_hook(lambda *_: averaged.update_parameters(model))
    try:
        yield
    finally:
        hook.remove()
    model.load_state_dict(averaged.module.state_dict())


@contextmanager
def muon(model: VAE) -> Iterator[None]:
    """Let Muon move the matrices of linear layers, at the rate at which Adam moves all else. Source: Jordan (2024)."""
    matrices = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    def before(adam: torch.optim.Optimizer, *_: Any) -> None:
        if adam is not optimizer:
            optimizer.param_groups[0]["lr"] = adam.param_groups[0]["lr"]
            optimizer.step()
            optimizer.zero_grad()  # leaves nothing of them to Adam

    hook = register_optimizer_step_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


PLAIN = Rung(Sharper(sticking=False, low_precision=True))  # the ELBO
RUNGS = {
    "ELBO": PLAIN,
    "ELBO, three epochs": replace(PLAIN, n_epochs=3),  # beside the rungs that have time for no more
    "learnt prior": replace(PLAIN, build=flow_vae, n_epochs=4),
    "no score function": replace(PLAIN, objective=replace(PLAIN.objective, sticking=True)),
    "IW5 in the last fifth": replace(PLAIN, objective=replace(PLAIN.objective, share=0.2), n_epochs=4),
    "IW5, doubly reparametrised": replace(
        PLAIN, objective=replace(PLAIN.objective, sticking=True, share=0.2), n_epochs=4
    ),
    "shifts of 1 pixel": replace(PLAIN, objective=replace(PLAIN.objective, shift=1)),
    "KL warm-up": replace(PLAIN, objective=replace(PLAIN.objective, warm_up=0.3)),
    "half as wide again": replace(PLAIN, build=partial(residual_vae, channels=(48, 96)), n_epochs=3),
    "warped strokes": replace(PLAIN, objective=replace(PLAIN.objective, warp=0.1)),
    "averaged weights": replace(PLAIN, around=averaging),
    "Muon": replace(PLAIN, around=muon, n_epochs=3),
}
BEST = SHIPPED["flow_32d"]
HEADLINE = [  # N(0, I) for as many epochs as the residual model of 03_literature
    Configuration(name, 32, seed, replace(BEST.recipe, n_epochs=n_epochs), 100, objective)
    for seed in range(3)
    for name, n_epochs, objective in [
        ("residual_flow", BEST.recipe.n_epochs, BEST.objective),
        ("residual", 30, Sharper(share=0.15)),
    ]
]
MORE_SAMPLES = [replace(HEADLINE[i], iw_samples=n_samples) for i, n_samples in [(0, 1000), (1, 1000), (0, 5000)]]


def seconds_of_conv_epoch() -> float:
    """What 60,000 images cost ``conv_vae`` now: the unit in which processors compare."""
    x = load_mnist("train").x[: 128 * N_STEPS]
    _, *rows = fit(conv_vae(), x, x[:1], Recipe(n_epochs=8), progress=False).rows
    return statistics.median(b["seconds"] - a["seconds"] for a, b in pairwise(rows)) * 60_000 / len(x)


def scores(model: VAE, images: Tensor, seed: int, prefix: str = "") -> dict[str, Any]:
    """The −ELBO and its terms on images binarised once, and the importance-weighted score of the first of them."""
    x = binarise(images, torch.Generator().manual_seed(seed))
    terms = evaluate(model, x, seed=seed).averages()
    log_lik = importance_weighted_log_likelihood(model, x[:N_IMAGES], N_SAMPLES, torch.Generator().manual_seed(seed))
    found = {f"{prefix}{term}": round(value, 4) for term, value in terms.items()}
    found["iw_nll"] = round(-log_lik.double().mean().item(), 4)
    return found | {"iw_samples": N_SAMPLES, "iw_images": len(log_lik)}


def row(step: str, seed: int) -> dict[str, Any]:
    """Train the model of a rung, and score it on the validation split."""
    rung = RUNGS[step]
    x_train, x_validation = load_mnist("train").x, load_mnist("validation").x
    with seeded(seed):
        model = rung.build()
    unit = seconds_of_conv_epoch()
    recipe = Recipe(n_epochs=rung.n_epochs, binarised=True)
    with rung.around(model):
        history = fit(model, x_train, x_validation[:1], recipe, seed=seed, objective=rung.objective, progress=False)
    if history.interrupted:
        raise KeyboardInterrupt
    found: dict[str, Any] = {"rung": step, "seed": seed, "n_epochs": rung.n_epochs, "n_parameters": model.n_parameters}
    found |= scores(model, x_validation, seed, "validation_")
    seconds = history.rows[-1]["seconds"]
    found |= {"minutes": round(seconds / 60, 2), "conv_epochs": round(seconds / unit, 1)}
    return found | {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def headline(configuration: Configuration) -> dict[str, Any]:
    """The row of a configuration, with its cost in epochs of ``conv_vae``."""
    unit = seconds_of_conv_epoch()
    found = run(configuration, generation=False)
    return found | {"conv_epochs": round(found["seconds"] / unit, 1)}


PRIORS = ("N(0, I)", "a Gaussian, afterwards", "a flow, afterwards", "a flow, jointly")


def priors(name: str) -> dict[str, Any]:
    """What a prior does: fitted to the codes of ``residual_32d``, or learnt with the model.

    Divergences are measured where the prior is N(0, I), to which a flow, or the Gaussian's root, leads the codes.
    """
    (train, test), seconds = images(), 0.0
    model, history = shipped_model("flow_32d" if name == PRIORS[3] else "residual_32d")
    codes = [
        reparameterize(*posterior_parameters(model, x), generator=torch.Generator().manual_seed(SEED))
        for x in (train.x, test.x)
    ]
    if name == PRIORS[1]:
        start = time.perf_counter()
        model.prior = gaussian = FullGaussian(codes[0])
        seconds = time.perf_counter() - start
        codes = [torch.linalg.solve_triangular(gaussian.root, (z - gaussian.mean).T, upper=False).T for z in codes]
    if name == PRIORS[2]:
        model.prior, seconds = shipped_prior()
    if name == PRIORS[3]:
        seconds = history.rows[-1]["seconds"]
    if isinstance(model.prior, Flow):
        with torch.no_grad():
            codes = [model.prior.to_normal(z)[0] for z in codes]
    tensors = [*model.prior.parameters(), *model.prior.buffers()] if isinstance(model.prior, torch.nn.Module) else []
    found: dict[str, Any] = {"prior": name, "minutes": round(seconds / 60, 2)}
    found |= {"n_parameters": sum(tensor.numel() for tensor in tensors)}
    found |= scores(model, test.x, SEED)
    found |= generation_scores(model, train.x, test.x, seed=SEED)
    found["divergence_from_prior"] = round(divergence_from_prior(*codes, seed=SEED + 1), 4)
    return found | {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def jobs(table: str) -> dict[str, Job]:
    """The rows of a table by their keys."""
    if table == "B_headline":
        jobs: dict[str, Job] = {configuration.key: partial(headline, configuration) for configuration in HEADLINE}
        return jobs | {more.key: partial(run, more, generation=False) for more in MORE_SAMPLES}
    if table == "B_priors":
        return {digest([name, SEED]): partial(priors, name) for name in PRIORS}
    return {
        digest([step, seed, rung.n_epochs, repr(rung.objective)]): partial(row, step, seed)
        for seed in SEEDS
        for step, rung in RUNGS.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fill a table of appendix B with the rows that it lacks.")
    parser.add_argument("table", choices=["B_ladder", "B_headline", "B_priors"])
    table = parser.parse_args().table
    fill(paths.figures_dir() / f"{table}.csv", jobs(table))


if __name__ == "__main__":
    main()
