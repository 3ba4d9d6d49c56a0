"""Speed of ``fit``, in one run: ``python -m benchmarks.training``.

Median seconds for one epoch over 60,000 images, batch 128, of each architecture asked, by

(a) a plain loop over ``DataLoader(MNIST(transform=ToTensor()))``, with the same model, loss and optimiser;
(b) ``fit`` (training alone; the evaluation after each epoch is timed apart);
(c) the bare matrix products and convolutions of the same shapes, forwards and backwards, and the optimiser's
    update, with nothing around them.

The three alternate, so that a slow moment of the machine falls on all of them. The medians, and the ratios with their
range over the rounds, go to ``figures/speed_training.csv``, where the rows of architectures not asked stay.
"""

import argparse
import csv
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from tme_utils import paths
from tme_utils.architectures import VAES
from tme_utils.data import load_mnist
from tme_utils.study import allowed_cores, save_table
from tme_utils.training import Recipe, fit, seeded
from tme_utils.vae import VAE, elbo_terms

RECIPE = Recipe(n_epochs=1)
N_STEPS = -(-60_000 // RECIPE.batch_size)
DEFAULT = ("mlp", "conv")


def new_model(architecture: str) -> VAE:
    with seeded(0):
        return VAES[architecture]()


def new_optimizer(model: VAE) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, betas=RECIPE.betas, fused=True)


def plain_epoch(architecture: str, loader: DataLoader) -> float:
    model = new_model(architecture)
    optimizer = new_optimizer(model)
    start = time.perf_counter()
    for x, _ in loader:
        loss = elbo_terms(model, x).loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def fit_epoch(architecture: str, x_train: torch.Tensor) -> tuple[float, float]:
    start = time.perf_counter()
    history = fit(new_model(architecture), x_train, x_train[:10_000], RECIPE, progress=False)
    whole = time.perf_counter() - start
    if history.interrupted:
        raise KeyboardInterrupt
    seconds = history.rows[-1]["seconds"]
    return seconds, (whole - seconds) / 2  # two evaluations of 20,000 images: at epoch 0 and after epoch 1


def linear_work(layer: nn.Linear, h_in: torch.Tensor, h_out: torch.Tensor, is_first: bool) -> Callable[[], None]:
    """The products of a linear layer: output, gradient of the weight, gradient of the input."""
    weight = layer.weight.detach()
    out, grad, grad_in = torch.empty_like(h_out), torch.empty_like(weight), torch.empty_like(h_in)

    def work() -> None:
        torch.mm(h_in, weight.t(), out=out)
        torch.mm(h_out.t(), h_in, out=grad)
        if not is_first:  # the images themselves need no gradient
            torch.mm(h_out, weight, out=grad_in)

    return work


def convolution_work(layer: Any, h_in: torch.Tensor, h_out: torch.Tensor, is_first: bool) -> Callable[[], None]:
    """The same of a convolution, transposed or not."""
    weight, transposed = layer.weight.detach(), isinstance(layer, nn.ConvTranspose2d)
    shape = (layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups)

    def work() -> None:
        torch.convolution(h_in, weight, None, *shape)
        torch.ops.aten.convolution_backward(h_out, h_in, weight, None, *shape, (not is_first, True, False))

    return work


def bare_epoch(architecture: str) -> float:
    model = new_model(architecture)
    optimizer = new_optimizer(model)
    works: list[Callable[[], None]] = []

    def record(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        make = linear_work if isinstance(layer, nn.Linear) else convolution_work
        works.append(make(layer, torch.randn_like(inputs[0]), torch.randn_like(output), is_first=not works))

    hooks = [
        layer.register_forward_hook(record)
        for layer in model.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    ]
    with torch.no_grad():
        elbo_terms(model, torch.rand(RECIPE.batch_size, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-6
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(N_STEPS):
            for work in works:
                work()
            optimizer.step()
    return time.perf_counter() - start


RATIOS = {"plain_over_fit": ("plain", "fit"), "fit_over_bare": ("fit", "bare")}


def summary(times: dict[str, list[float]]) -> dict[str, float]:
    """Median seconds of each way, then median, least and largest of the rounds' ratios; number of rounds."""
    row: dict[str, float] = {f"{name}_seconds": round(statistics.median(values), 3) for name, values in times.items()}
    for ratio, (slow, fast) in RATIOS.items():
        ratios = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
        for name, value in [("", statistics.median(ratios)), ("_least", min(ratios)), ("_most", max(ratios))]:
            row[ratio + name] = round(value, 3)
    return row | {"rounds": len(times["fit"])}


def machine() -> dict[str, Any]:
    """What the seconds depend on."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else [platform.processor()]
    return {
        "processor": names[0] if names else "unknown",
        "cores": allowed_cores(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def beside_others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows and those of the other architectures in the table, all as text, so that no digit of them changes."""
    table, known = paths.figures_dir() / "speed_training.csv", []
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            known = list(csv.DictReader(file))
    merged = {row["architecture"]: {name: str(value) for name, value in row.items()} for row in [*known, *rows]}
    return list(merged.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one epoch: plain DataLoader loop, fit, bare operations.")
    accepted = ", ".join(VAES)
    parser.add_argument(
        "architectures", nargs="*", default=DEFAULT, help=f"some of {accepted}; {' and '.join(DEFAULT)} by default"
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := set(arguments.architectures) - set(VAES):
        parser.error(f"unknown architecture {', '.join(unknown)}; accepted: {accepted}")

    x_train = load_mnist("train+validation").x
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(paths.DATA / "MNIST", Path(folder) / "MNIST")
        dataset = MNIST(folder, train=True, download=True, transform=ToTensor())
    loader = DataLoader(dataset, batch_size=RECIPE.batch_size, shuffle=True)

    print(f"{arguments.rounds} rounds, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = []
    for architecture in arguments.architectures:
        times: dict[str, list[float]] = {"plain": [], "fit": [], "bare": [], "evaluation": []}
        for _ in range(arguments.rounds):
            times["plain"].append(plain_epoch(architecture, loader))
            seconds, evaluation = fit_epoch(architecture, x_train)
            times["fit"].append(seconds)
            times["evaluation"].append(evaluation)
            times["bare"].append(bare_epoch(architecture))
        rows.append({"architecture": architecture} | summary(times) | machine())
        print(f"{architecture}, seconds per epoch:")
        for name, values in times.items():
            print(f"  {name:10} median {statistics.median(values):5.2f}   from {min(values):.2f} to {max(values):.2f}")
        for ratio in RATIOS:
            print(f"  {ratio.replace('_over_', ' / ')}: median of the rounds' ratios {rows[-1][ratio]:.2f}")
    print(save_table(beside_others(rows), "speed_training"))


if __name__ == "__main__":
    main()
