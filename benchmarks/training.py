"""Speed of ``fit``, in one run: ``python -m benchmarks.training``.

Median seconds for one epoch over 60,000 images, batch 128, of each architecture asked, by

(a) a plain loop over ``DataLoader(MNIST(transform=ToTensor()))``, with the same model, loss and optimiser;
(b) ``fit`` (training alone; the evaluation after each epoch is timed apart);
(c) the bare matrix products and convolutions of the same shapes, forwards and backwards, and the optimiser's
    update, with nothing around them.

The three alternate, so that a slow moment of the machine falls on all of them. The medians, and the ratios with their
range over the rounds, go to ``figures/speed_training.csv``, where the rows of architectures not asked stay.

Then what a user feels, to ``figures/speed_same_result.csv``: seconds of training until the test −ELBO is at most 105.9
nats, where the script of pytorch/examples ends after ten epochs, for its network with its constant learning rate in the
plain loop, and with the recipe of the report in ``fit``. Both alternate too, each round with a seed of its own.
"""

import argparse
import csv
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
from tme_utils.study import allowed_cores, processor, save_table
from tme_utils.training import Recipe, evaluate, fit, seeded
from tme_utils.vae import VAE, elbo_terms

RECIPE = Recipe(n_epochs=1)
SAME_RESULT = 105.9  # nats
PLAIN_LR = 1e-3
MAX_EPOCHS = 20
N_STEPS = -(-60_000 // RECIPE.batch_size)
DEFAULT = ("mlp", "conv")


def new_model(architecture: str, seed: int = 0) -> VAE:
    with seeded(seed):
        return VAES[architecture]()


def new_optimizer(model: VAE) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=PLAIN_LR, fused=True)


def plain_epoch(model: VAE, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
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


def plain_to_the_result(x_test: torch.Tensor, loader: DataLoader, seed: int) -> dict[str, float]:
    """Epochs and seconds that the plain loop needs, and the test −ELBO that it reaches."""
    model, seconds = new_model("mlp", seed), 0.0
    optimizer = new_optimizer(model)
    for epoch in range(1, MAX_EPOCHS + 1):
        seconds += plain_epoch(model, optimizer, loader)
        neg_elbo = evaluate(model, x_test, seed=seed).averages()["neg_elbo"]
        if neg_elbo <= SAME_RESULT:
            return {"epochs": epoch, "seconds": seconds, "neg_elbo": neg_elbo}
    raise RuntimeError(f"the plain loop is at {neg_elbo:.2f} nats after {MAX_EPOCHS} epochs")


def fit_to_the_result(x_train: torch.Tensor, x_test: torch.Tensor, seed: int) -> dict[str, float]:
    """The same of ``fit``. Its learning rate ends at zero, so each number of epochs is a training of its own."""
    for n_epochs in range(3, MAX_EPOCHS + 1):
        model = new_model("mlp", seed)
        history = fit(model, x_train, x_test[:1], Recipe(n_epochs=n_epochs), seed=seed, progress=False)
        neg_elbo = evaluate(model, x_test, seed=seed).averages()["neg_elbo"]
        if neg_elbo <= SAME_RESULT:
            return {"epochs": n_epochs, "seconds": history.rows[-1]["seconds"], "neg_elbo": neg_elbo}
    raise RuntimeError(f"fit is at {neg_elbo:.2f} nats after {MAX_EPOCHS} epochs")


def same_result(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
    """One row: medians over the rounds of (plain, fit), and the range of their ratios of seconds."""
    row = {
        f"{way}_{name}": round(statistics.median(result[name] for result in results), 2)
        for way, results in zip(("plain", "fit"), zip(*rounds, strict=True), strict=True)
        for name in results[0]
    }
    ratios = [plain["seconds"] / fitted["seconds"] for plain, fitted in rounds]
    ends = {"ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}
    return row | {name: round(value, 2) for name, value in ends.items()} | {"rounds": len(rounds)}


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
    return {
        "processor": processor(),
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
    parser.add_argument("--rounds", type=int, default=5, help="5 by default")
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
            model = new_model(architecture)
            times["plain"].append(plain_epoch(model, new_optimizer(model), loader))
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
    x_test = load_mnist("test").x
    rounds = [
        (plain_to_the_result(x_test, loader, seed), fit_to_the_result(x_train, x_test, seed))
        for seed in range(arguments.rounds)
    ]
    print(save_table([same_result(rounds) | machine()], "speed_same_result"))


if __name__ == "__main__":
    main()
