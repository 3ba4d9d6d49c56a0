"""Training and evaluation: one recipe for every model of the report.

The recipe: Adam with betas (0.9, 0.95), batches of 128 images, a learning rate that rises linearly to
``max_lr`` over the first tenth of the steps and then falls linearly to zero. It was chosen on the validation
split by ``python -m benchmarks.recipe``, whose table is ``figures/02_recipe.csv``.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tme_utils.elbo import ElboTerms, check_images, elbo_terms

BATCH_SIZE = 128
MAX_LR = 4e-3
BETAS = (0.9, 0.95)
WARM_UP = 0.1  # share of the steps
N_CURVE = 10_000  # images of each set that are evaluated after every epoch, for the curves

_SEEDING = threading.RLock()


class Probes(NamedTuple):
    """What the snapshots show after every epoch: fixed images, and fixed draws of the prior.

    ``train`` and ``held_out`` are images (n, 1, 28, 28); ``z`` holds draws of the prior, (m, latent_dim).
    """

    train: Tensor
    held_out: Tensor
    z: Tensor


@dataclass
class History:
    """What :func:`fit` saw, from epoch 0 (before any training) on.

    Attributes:
        rows: a dict for each epoch, with ``epoch``, ``seconds`` (of training so far) and ``train_recon``,
            ``train_kl``, ``train_neg_elbo``, ``held_out_recon``, ``held_out_kl``, ``held_out_neg_elbo`` in
            nats per image, each over the first 10,000 images of its set, with the same noise at every epoch.
        snapshots: pixel probabilities by epoch, (n_epochs + 1, n, 1, 28, 28), of ``train`` and ``held_out``
            (reconstructions) and ``prior`` (images decoded from the same draws); empty without probes.
        interrupted: whether the training was stopped before its last epoch.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    snapshots: dict[str, Tensor] = field(default_factory=dict)
    interrupted: bool = False


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator for the block, and give it back its state afterwards.

    That generator is one for all threads, and a module's initial weights come from no other: one thread at a time
    enters.
    """
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def best_device(dtype: torch.dtype = torch.float32) -> torch.device:
    """The accelerator if there is one that computes in ``dtype``, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or (accelerator.type == "mps" and dtype == torch.float64):  # Apple's has no float64
        return torch.device("cpu")
    return accelerator


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Lend the model to ``device`` and bring it back, whatever happens."""
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


@torch.no_grad()
def evaluate(model: Any, x: Tensor, *, seed: int = 0, batch_size: int = 1000) -> ElboTerms:
    """Both terms of the negative ELBO for every image, z drawn from q(z|x), not replaced by its mean.

    The average over the set is ``evaluate(model, x).averages()``: the sum over the images divided by their
    number, whatever the batch size.

    Args:
        model: a VAE.
        x: images, (N, 1, 28, 28), in [0, 1].
        seed: of the noise; the same seed gives the same noise on every device.
        batch_size: images at once; it changes neither the noise nor the result.

    Returns:
        ``ElboTerms(recon, kl)``, each (N,), on the CPU, in nats per image.

    Raises:
        ValueError: if x is empty, or not made of images in [0, 1], or batch_size is not an integer >= 1.
    """
    check_images(x)
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be an integer >= 1, got {batch_size}")
    if len(x) == 0:
        raise ValueError("x holds no image to evaluate")
    device = best_device(x.dtype)
    # All the noise in one call: torch fills tensors in blocks of 16 numbers, so draws by batch depend on its size.
    noise = torch.randn(len(x), model.latent_dim, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    parts = []
    was_training = model.training
    model.eval()
    try:
        with on_device(model, device):
            for batch, eps in zip(x.split(batch_size), noise.split(batch_size), strict=True):
                parts.append(elbo_terms(model, batch.to(device), eps=eps.to(device)))
    finally:
        model.train(was_training)
    return ElboTerms(recon=torch.cat([p.recon for p in parts]).cpu(), kl=torch.cat([p.kl for p in parts]).cpu())


@torch.no_grad()
def take_snapshots(model: Any, probes: Probes) -> dict[str, Tensor]:
    """What the model makes of the probes: pixel probabilities (n, 1, 28, 28) by name, on the CPU.

    Returns:
        ``train`` and ``held_out``, the reconstructions, and ``prior``, what the draws decode to.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        return {
            "train": model.reconstruct(probes.train.to(device)).cpu(),
            "held_out": model.reconstruct(probes.held_out.to(device)).cpu(),
            "prior": model.decode(probes.z.to(device)).sigmoid().cpu(),
        }
    finally:
        model.train(was_training)


@contextmanager
def _flush_denormals() -> Iterator[None]:
    """Treat numbers below 1e-38 as zero meanwhile.

    Adam's moments of weights that get no gradient, such as those of border pixels, shrink towards zero for ever,
    and processors compute with such tiny numbers so slowly that the fifth epoch takes half as long again as the first.
    """
    was_flushing = (torch.full((1,), 1e-38) / 100).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)


def learning_rate(step: int, n_steps: int, max_lr: float = MAX_LR) -> float:
    """Learning rate of a step: linear from 0 to ``max_lr`` over the warm-up, then linear to 0 at ``n_steps``."""
    warm_up = max(1.0, WARM_UP * n_steps)
    return max_lr * min((step + 1) / warm_up, (n_steps - step) / max(1.0, n_steps - warm_up))


def fit(
    model: Any,
    x_train: Tensor,
    x_held_out: Tensor,
    n_epochs: int,
    *,
    beta: float = 1.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    max_lr: float = MAX_LR,
    betas: tuple[float, float] = BETAS,
    binarised: bool = False,
    probes: Probes | None = None,
    on_epoch: Callable[[History], None] | None = None,
    progress: bool = True,
) -> History:
    """Train the model in place by the recipe of this module, on the accelerator if there is one.

    Ctrl-C stops it early, which a line on stderr tells: the model keeps what it has learnt and the history ends with
    the last whole epoch.

    Args:
        model: a VAE; it comes back to the device it was on.
        x_train: training images, (N, 1, 28, 28), in [0, 1].
        x_held_out: images for the second curve; they decide nothing.
        n_epochs: passes over the training images; the learning rate reaches zero at the last step.
        beta: weight of the KL term; 1 is the ELBO.
        seed: of the order of the images, the noise and the binarisation; the initial weights are the caller's.
        batch_size: images in a step; the last batch of an epoch may be smaller.
        max_lr: highest learning rate.
        betas: Adam's decay rates of the two moments.
        binarised: train on images binarised anew at every epoch instead of grey levels.
        probes: what to take snapshots of, at epoch 0 and after every epoch.
        on_epoch: called with the history so far, at epoch 0 and after every epoch.
        progress: show a progress bar.

    Returns:
        The history of the training.

    Raises:
        ValueError: for images outside [0, 1] or of another shape, no image, or a setting out of its range.
        FloatingPointError: as soon as the loss is not finite, naming the epoch and the step.
    """
    check_images(x_train)
    check_images(x_held_out)
    for name, value, is_accepted, accepted in [
        ("x_train", len(x_train), len(x_train) > 0, "hold at least one image"),
        ("x_held_out", len(x_held_out), len(x_held_out) > 0, "hold at least one image"),
        ("n_epochs", n_epochs, type(n_epochs) is int and n_epochs >= 0, "be an integer >= 0"),
        ("batch_size", batch_size, type(batch_size) is int and batch_size >= 1, "be an integer >= 1"),
        ("max_lr", max_lr, 0 < max_lr < math.inf, "be a finite number > 0"),
        ("beta", beta, 0 <= beta < math.inf, "be a finite number >= 0"),
    ]:
        if not is_accepted:
            raise ValueError(f"{name} must {accepted}, got {value}")

    device = best_device(x_train.dtype)
    generator = torch.Generator(device).manual_seed(seed)
    steps_per_epoch = -(-len(x_train) // batch_size)
    history = History()
    step, seconds = 0, 0.0
    n_steps = n_epochs * steps_per_epoch
    model.train()
    bar = tqdm(total=n_steps, unit="step", mininterval=0.5, disable=not progress)
    with bar, on_device(model, device), _flush_denormals():
        x_train_there = x_train.to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=max_lr, betas=betas, fused=True)
        try:
            for epoch in range(n_epochs + 1):  # epoch 0 only looks
                start = time.perf_counter()
                if epoch > 0:
                    order = torch.randperm(len(x_train), generator=generator, device=device)
                    for index in order.split(batch_size):
                        optimizer.param_groups[0]["lr"] = learning_rate(step, n_steps, max_lr)
                        x = x_train_there.index_select(0, index)  # faster than x[index]
                        if binarised:
                            x = torch.bernoulli(x, generator=generator)
                        loss = elbo_terms(model, x, generator=generator).loss(beta)
                        _check_finite(loss.item(), step, steps_per_epoch, max_lr)
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        step += 1
                        bar.update()
                    seconds += time.perf_counter() - start
                _record(history, model, epoch, seconds, x_train, x_held_out, probes, seed)
                # What the last step broke, no later step would meet.
                _check_finite(history.rows[-1]["train_neg_elbo"], step - 1, steps_per_epoch, max_lr)
                bar.set_description(f"held-out −ELBO {history.rows[-1]['held_out_neg_elbo']:.1f} nats", refresh=False)
                if on_epoch is not None:
                    on_epoch(history)
        except KeyboardInterrupt:
            history.interrupted = True
    if history.interrupted:
        n_whole = max(0, len(history.rows) - 1)
        print(f"stopped by Ctrl-C after {n_whole} of {n_epochs} epochs: the model is half trained", file=sys.stderr)
    return history


def _check_finite(loss: float, step: int, steps_per_epoch: int, max_lr: float) -> None:
    if not math.isfinite(loss):
        if step < 0:
            raise FloatingPointError(f"before the first step: the loss is {loss}; look at the model's initial weights")
        epoch, i = divmod(step, steps_per_epoch)
        raise FloatingPointError(
            f"epoch {epoch + 1}, step {i + 1} of {steps_per_epoch}: the loss is {loss}; "
            f"a smaller max_lr than {max_lr} may help"
        )


def _record(
    history: History,
    model: Any,
    epoch: int,
    seconds: float,
    x_train: Tensor,
    x_held_out: Tensor,
    probes: Probes | None,
    seed: int,
) -> None:
    """Append the state of the model after ``epoch`` to the history."""
    row = {"epoch": epoch, "seconds": seconds}
    for name, x in [("train", x_train), ("held_out", x_held_out)]:
        averages = evaluate(model, x[:N_CURVE], seed=seed).averages()
        row |= {f"{name}_{term}": value for term, value in averages.items()}
    if probes is not None:
        frames = {name: probs.unsqueeze(0) for name, probs in take_snapshots(model, probes).items()}
        earlier = history.snapshots
        # All names at once: a stop in the middle leaves snapshots of one length.
        history.snapshots = {name: torch.cat([earlier[name], f]) if earlier else f for name, f in frames.items()}
    history.rows.append(row)


def check_band(name: str, value: float, centre: float, margin: float) -> None:
    """Assert that a trained number lies in its band, and print the band, which is the same on every machine.

    Args:
        name: what the number is, with its unit or not.
        value: the number measured.
        centre: middle of the band.
        margin: half its width, wide for other seeds and machines, narrow for a broken model.

    Raises:
        AssertionError: if the value is outside, or is not a number.
    """
    band = f"{name}: within {centre} ± {margin}"
    if not abs(value - centre) <= margin:  # written so that NaN fails too
        raise AssertionError(f"not {band}, got {value:.4f}")
    print(band)
