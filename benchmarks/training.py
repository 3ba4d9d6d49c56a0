"""Speed of ``fit``, in one run: ``python -m benchmarks.training``.

Median seconds for one epoch of the MLP VAE 784-400-20 over 60,000 images, batch 128, of

(a) a plain loop over ``DataLoader(MNIST(transform=ToTensor()))``, with the same model, loss and optimiser;
(b) ``fit`` (training alone; the evaluation after each epoch is timed apart);
(c) the bare matrix products of the same shapes and the optimiser's update, with nothing around them.

The three alternate, so that a slow moment of the machine falls on all of them.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from tme_utils import paths, training
from tme_utils.data import load_mnist
from tme_utils.elbo import elbo_terms
from tme_utils.models import VAE, mlp_vae

N_STEPS = -(-60_000 // training.BATCH_SIZE)


def new_model() -> VAE:
    torch.manual_seed(0)
    return mlp_vae()


def new_optimizer(model: VAE) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, betas=training.BETAS, fused=True)


def plain_epoch(loader: DataLoader) -> float:
    model = new_model()
    optimizer = new_optimizer(model)
    start = time.perf_counter()
    for x, _ in loader:
        loss = elbo_terms(model, x).loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def fit_epoch(x_train: torch.Tensor) -> tuple[float, float]:
    start = time.perf_counter()
    history = training.fit(new_model(), x_train, x_train[:10_000], 1, progress=False)
    whole = time.perf_counter() - start
    seconds = history.rows[-1]["seconds"]
    return seconds, (whole - seconds) / 2  # two evaluations of 20,000 images: at epoch 0 and after epoch 1


def bare_epoch() -> float:
    """Each linear layer's three products: output, gradient of the weight, gradient of the input."""
    model = new_model()
    optimizer = new_optimizer(model)
    layers = []
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-6
        if parameter.dim() == 2:
            n_out, n_in = parameter.shape
            batch = training.BATCH_SIZE
            layers.append((parameter.detach(), parameter.grad, torch.randn(batch, n_in), torch.randn(batch, n_out)))
    buffers = [(torch.empty_like(h_out), torch.empty_like(w), torch.empty_like(h_in)) for w, _, h_in, h_out in layers]
    start = time.perf_counter()
    for _ in range(N_STEPS):
        for i, ((weight, _, h_in, h_out), (out, grad, grad_in)) in enumerate(zip(layers, buffers, strict=True)):
            torch.mm(h_in, weight.t(), out=out)
            torch.mm(h_out.t(), h_in, out=grad)
            if i > 0:  # the images themselves need no gradient
                torch.mm(h_out, weight, out=grad_in)
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one epoch: plain DataLoader loop, fit, bare products.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    x_train = load_mnist("train+validation").x
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(paths.DATA / "MNIST", Path(folder) / "MNIST")
        dataset = MNIST(folder, train=True, download=True, transform=ToTensor())
    loader = DataLoader(dataset, batch_size=training.BATCH_SIZE, shuffle=True)

    times: dict[str, list[float]] = {"plain": [], "fit": [], "bare": [], "evaluation": []}
    for _ in range(rounds):
        times["plain"].append(plain_epoch(loader))
        seconds, evaluation = fit_epoch(x_train)
        times["fit"].append(seconds)
        times["evaluation"].append(evaluation)
        times["bare"].append(bare_epoch())
    print(f"{rounds} rounds, {torch.get_num_threads()} threads, torch {torch.__version__}; seconds per epoch:")
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"  {name:10} median {median[name]:5.2f}   from {min(values):.2f} to {max(values):.2f}")
    for slow, fast in [("plain", "fit"), ("fit", "bare")]:
        ratios = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
        print(f"  {slow} / {fast}: median of the rounds' ratios {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
