"""The search for the training recipe, on the validation split: ``python -m tables.recipe``.

Models train on the first 50,000 images and are scored on the 10,000 set aside; the test images are not loaded.
Rows go to ``figures/02_recipe.csv``; those already there are not computed again.
"""

import argparse
import csv
import itertools

from tme_utils import paths
from tme_utils.architectures import VAES
from tme_utils.checkpoints import SHIPPED
from tme_utils.data import load_mnist
from tme_utils.study import save_table
from tme_utils.training import Recipe, evaluate, fit, seeded

BUILDERS = VAES | {"mlp_2d": SHIPPED["mlp_2d"].build}
# Architecture, (max_lr, beta2), seed. The fast model decides beta2 and shows the spread; the others compare learning
# rates until the best has a worse neighbour on both sides.
RUNS = [
    *itertools.product(["mlp"], [(2e-3, 0.95), (4e-3, 0.95), (8e-3, 0.95), (4e-3, 0.999)], [0, 1]),
    ("mlp", (16e-3, 0.95), 0),
    *itertools.product(["mlp_wide"], [(8e-3, 0.95), (4e-3, 0.95), (16e-3, 0.95)], [0]),
    *itertools.product(["mlp_deep"], [(5e-4, 0.95), (1e-3, 0.95), (2e-3, 0.95), (4e-3, 0.95)], [0]),
    *itertools.product(["conv"], [(2e-3, 0.95), (4e-3, 0.95), (8e-3, 0.95)], [0]),
    *itertools.product(["mlp_2d"], [(2e-3, 0.95), (4e-3, 0.95), (1e-3, 0.95)], [0]),
]
N_EPOCHS = 10
KEY = ["architecture", "max_lr", "beta2", "seed", "n_epochs"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Search the training recipe on the validation split.")
    known = list(dict.fromkeys(architecture for architecture, *_ in RUNS))
    parser.add_argument("architectures", nargs="*", default=known, help=f"some of {', '.join(known)}; all by default")
    architectures = parser.parse_args().architectures
    if unknown := set(architectures) - set(known):
        parser.error(f"unknown architecture {', '.join(unknown)}; accepted: {', '.join(known)}")

    table = paths.figures_dir() / "02_recipe.csv"
    rows = []  # as text, so that writing them again changes no digit
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {tuple(row[name] for name in KEY) for row in rows}
    x_train, x_validation = load_mnist("train").x, load_mnist("validation").x
    for architecture, (max_lr, beta2), seed in RUNS:
        setting = (architecture, str(max_lr), str(beta2), str(seed), str(N_EPOCHS))
        if architecture not in architectures or setting in done:
            continue
        with seeded(seed):
            model = BUILDERS[architecture]()
        recipe = Recipe(n_epochs=N_EPOCHS, max_lr=max_lr, betas=(0.9, beta2))
        history = fit(model, x_train, x_validation[:1], recipe, seed=seed, progress=False)
        if history.interrupted:
            raise KeyboardInterrupt
        row = dict(zip(KEY, setting, strict=True))
        for split, x in [("validation", x_validation), ("train", x_train)]:
            row[f"{split}_neg_elbo"] = f"{evaluate(model, x).averages()['neg_elbo']:.3f}"
        rows.append(row)
        save_table(rows, "02_recipe")
        print(*row.values(), sep=",", flush=True)


if __name__ == "__main__":
    main()
