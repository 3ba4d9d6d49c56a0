"""Training and evaluation: one recipe for every model of the report.

The default :class:`Recipe` was chosen on the validation split by ``python -m tables.recipe``, whose table is
``figures/02_recipe.csv``.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tme_utils.vae import VAE, ElboTerms, as_int, check_images, elbo_terms

N_CURVE = 10_000  # images of each set that are evaluated after every epoch, for the curves
N_AT_ONCE = 256  # images that an evaluation holds on the device: of more, convolutions in float64 leave the cache
TINY = 1e-30  # what Adam's moments are set to zero below: an update by them changes no float32 weight
_SEEDING = threading.RLock()


class Objective:
    """What a training may minimise instead of the negative ELBO; ``done`` is the share of its steps that are over."""

    def augment(self, x: Float[Tensor, "b 1 28 28"], generator: torch.Generator, done: float) -> Tensor:
        """Other images in place of a batch, before they are binarised."""
        return x

    def loss(self, model: VAE, x: Float[Tensor, "b 1 28 28"], generator: torch.Generator, done: float) -> Tensor:
        """The loss of a batch, whose gradient is followed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: Adam, and a learning rate that rises linearly and then falls linearly to zero."""

    n_epochs: int = 10
    max_lr: float = 4e-3
    beta: float = 1.0  # weight of the KL term; 1 is the ELBO
    binarised: bool = False  # train on images binarised anew at every epoch instead of grey levels
    batch_size: int = 128  # the last batch of an epoch may be smaller
    betas: tuple[float, float] = (0.9, 0.95)  # Adam's decay rates of the two moments
    warm_up: float = 0.1  # share of the steps over which the learning rate rises

    def __post_init__(self) -> None:
        """Check the numbers, and give each its one type: 1 and 1.0 ask for one model."""
        for name, least in [("n_epochs", 0), ("batch_size", 1)]:
            object.__setattr__(self, name, as_int(name, getattr(self, name), least))  # as the dataclass is frozen
        for name in ("max_lr", "beta", "warm_up"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not (0 < self.max_lr < math.inf and 0 <= self.beta < math.inf and 0 <= self.warm_up < 1):
            raise ValueError(f"need finite max_lr > 0 and beta >= 0, and warm_up in [0, 1), got {self}")

    def learning_rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step: linear from 0 to ``max_lr`` over the warm-up, then linear to 0 at ``n_steps``."""
        warm_up = max(1.0, self.warm_up * n_steps)
        return self.max_lr * min((step + 1) / warm_up, (n_steps - step) / max(1.0, n_steps - warm_up))


class Probes(NamedTuple):
    """What the snapshots show after every epoch: fixed images, and fixed draws of the prior."""

    train: Float[Tensor, "n 1 28 28"]
    held_out: Float[Tensor, "n 1 28 28"]
    z: Float[Tensor, "m d"]


@dataclass
class History:
    """What :func:`fit` saw, from epoch 0 (before any training) on.

    A row has ``epoch``, ``seconds`` (of training so far) and, in nats per image over the first 10,000 images of each
    set with the same noise at every epoch, ``train_recon``, ``train_kl``, ``train_neg_elbo`` and the same with
    ``held_out_``. Snapshots are pixel probabilities by epoch, (n_epochs + 1, n, 1, 28, 28): ``train`` and ``held_out``,
    reconstructions of the probes, and ``prior``, what their draws decode to.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    snapshots: dict[str, Tensor] = field(default_factory=dict)
    interrupted: bool = False
    probes: Probes | None = None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator for the block, and give it back its state afterwards.

    That generator is one for all threads, and a module's initial weights come from no other: one thread at a time
    enters.
    """
    with _SEEDING:
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        try:
            yield
        finally:
            torch.default_generator.set_state(state)


def best_device(dtype: torch.dtype = torch.float32) -> torch.device:
    """The accelerator if there is one that computes in ``dtype``, else the CPU; or what ``$TME_DEVICE`` names."""
    if asked := os.environ.get("TME_DEVICE"):
        return torch.device(asked)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or (accelerator.type == "mps" and dtype == torch.float64):  # Apple's has no float64
        return torch.device("cpu")
    return accelerator


@contextmanager
def on_device(model: nn.Module, device: torch.device, training: bool = False) -> Iterator[None]:
    """Lend the model to ``device``, in evaluation or training mode, and bring it back as it was, whatever happens."""
    home, was_training = next(model.parameters()).device, model.training
    try:
        model.to(device).train(training)
        yield
    finally:
        model.to(home).train(was_training)


@torch.no_grad()
def evaluate(model: VAE, x: Float[Tensor, "n 1 28 28"], *, seed: int = 0) -> ElboTerms:
    """Both terms of the negative ELBO for every image, on the CPU; z is drawn from q(z|x), not replaced by its mean.

    The average over the set is ``evaluate(model, x).averages()``. The seed gives the same noise on every device.
    """
    check_images(x)
    device = best_device(x.dtype)
    # All the noise in one call: torch fills tensors in blocks of 16 numbers, so draws by batch depend on its size.
    noise = torch.randn(len(x), model.latent_dim, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    with on_device(model, device):
        parts = [
            elbo_terms(model, batch.to(device), eps=eps.to(device))
            for batch, eps in zip(x.split(N_AT_ONCE), noise.split(N_AT_ONCE), strict=True)
        ]
    return ElboTerms(*(torch.cat(terms).cpu() for terms in zip(*parts, strict=True)))


@torch.no_grad()
def take_snapshots(model: VAE, probes: Probes) -> dict[str, Tensor]:
    """Pixel probabilities, on the CPU: ``train`` and ``held_out`` rebuilt, and ``prior``, what the draws decode to."""
    device = next(model.parameters()).device
    with on_device(model, device):
        images = {name: model.reconstruct(getattr(probes, name).to(device)) for name in ("train", "held_out")}
        images["prior"] = model.likelihood.mean(model.decode(probes.z.to(device)))
    return {name: probs.cpu() for name, probs in images.items()}


def fit(
    model: VAE,
    x_train: Float[Tensor, "n 1 28 28"],
    x_held_out: Float[Tensor, "m 1 28 28"],
    recipe: Recipe = Recipe(),
    *,
    seed: int = 0,
    objective: Objective | None = None,
    probes: Probes | None = None,
    on_epoch: Callable[[History], None] | None = None,
    progress: bool = True,
) -> History:
    """Train the model in place, on the accelerator if there is one; it comes back to the device it was on.

    Initial weights are the caller's; ``seed`` is that of the order of the images, the noise and the binarisation. The
    held-out images are for the second curve and decide nothing. ``objective`` replaces the negative ELBO, and β with
    it. ``on_epoch`` gets the history so far at epoch 0 and after every epoch. Ctrl-C stops it early, which a line on
    stderr tells: the model keeps what it has learnt and the history ends with the last whole epoch.

    Raises:
        FloatingPointError: after the epoch in which the loss stopped being finite.
    """
    check_images(x_train)
    check_images(x_held_out)
    device = best_device(x_train.dtype)
    generator = torch.Generator(device).manual_seed(seed)
    steps_per_epoch = -(-len(x_train) // recipe.batch_size)
    history = History(probes=probes)
    step, seconds = 0, 0.0
    n_steps = recipe.n_epochs * steps_per_epoch
    bar = tqdm(total=n_steps, unit="step", mininterval=0.5, disable=not progress)
    with bar, on_device(model, device, training=True):
        x_there = x_train.to(device)
        optimizer = torch.optim.Adam(model.parameters(), betas=recipe.betas, fused=True)
        try:
            for epoch in range(recipe.n_epochs + 1):  # epoch 0 only looks
                start = time.perf_counter()
                if epoch > 0:
                    order = torch.randperm(len(x_train), generator=generator, device=device)
                    for index in order.split(recipe.batch_size):
                        optimizer.param_groups[0]["lr"] = recipe.learning_rate(step, n_steps)
                        x = x_there.index_select(0, index)  # faster than x[index]
                        if objective is not None:
                            x = objective.augment(x, generator, step / n_steps)
                        if recipe.binarised:
                            x = torch.bernoulli(x, generator=generator)
                        optimizer.zero_grad()
                        if objective is None:
                            loss = elbo_terms(model, x, generator=generator).loss(recipe.beta)
                        else:
                            loss = objective.loss(model, x, generator, step / n_steps)
                        loss.backward()
                        optimizer.step()
                        step += 1
                        if step % 100 == 0:
                            _drop_tiny_moments(optimizer)
                        bar.update()
                    seconds += time.perf_counter() - start
                _record(history, model, {"epoch": epoch, "seconds": seconds}, x_train, x_held_out, seed)
                if not math.isfinite(found := history.rows[-1]["train_neg_elbo"]):
                    may_help = f"a smaller max_lr than {recipe.max_lr}" if epoch else "other initial weights"
                    raise FloatingPointError(f"the −ELBO after epoch {epoch} is {found}; {may_help} may help")
                bar.set_description(f"held-out −ELBO {history.rows[-1]['held_out_neg_elbo']:.1f} nats", refresh=False)
                if on_epoch is not None:
                    on_epoch(history)
        except KeyboardInterrupt:
            history.interrupted = True
            n_whole = max(0, len(history.rows) - 1)
            said = f"stopped by Ctrl-C after {n_whole} of {recipe.n_epochs} epochs: the model is half trained"
            print(said, file=sys.stderr)
    return history


@torch.no_grad()
def _drop_tiny_moments(optimizer: torch.optim.Optimizer) -> None:
    """Set moments below ``TINY`` to zero.

    Those of weights that get no gradient, such as border pixels', shrink towards zero for ever, and processors compute
    with numbers below 1e-38 so slowly that the fifth epoch takes half as long again as the first.
    """
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].masked_fill_(state[name].abs() < TINY, 0)


def _record(
    history: History, model: VAE, row: dict[str, float], x_train: Tensor, x_held_out: Tensor, seed: int
) -> None:
    """Append the state of the model to the history."""
    for name, x in [("train", x_train), ("held_out", x_held_out)]:
        averages = evaluate(model, x[:N_CURVE], seed=seed).averages()
        row |= {f"{name}_{term}": value for term, value in averages.items()}
    if history.probes is not None:
        frames = {name: probs.unsqueeze(0) for name, probs in take_snapshots(model, history.probes).items()}
        earlier = history.snapshots
        # All names at once: a stop in the middle leaves snapshots of one length.
        history.snapshots = {name: torch.cat([earlier[name], f]) if earlier else f for name, f in frames.items()}
    history.rows.append(row)


def check_band(name: str, value: float, centre: float, margin: float) -> None:
    """Assert that a trained number lies in its band, and print both.

    The margin is wide for other seeds and machines, narrow for a broken model. The number stands behind ≈, the mark of
    what varies from machine to machine: where outputs are compared, it is replaced first (tests/sanitize.cfg).
    """
    band = f"within {centre} ± {margin}"
    if not abs(value - centre) <= margin:  # written so that NaN fails too
        raise AssertionError(f"{name} not {band}, got {value:.4f}")
    decimals = max(2, 1 - math.floor(math.log10(margin)))
    print(f"{name} ≈ {value:.{decimals}f}, {band}".replace("-", "−"))
