"""The search for the training recipe, on the validation split: ``python -m benchmarks.recipe``.

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

BUILDERS = VAES | {"mlp_2d": SHIPPED["mlp_2d"][0]}
# (max_lr, beta2) and seeds. The fast model decides beta2 and shows the spread; the others compare learning rates, each
# until its best has a worse neighbour on both sides.
SETTINGS = {
    "mlp": [(2e-3, 0.95), (4e-3, 0.95), (8e-3, 0.95), (4e-3, 0.999), (16e-3, 0.95)],
    "mlp_wide": [(4e-3, 0.95), (8e-3, 0.95), (16e-3, 0.95)],
    "mlp_deep": [(1e-3, 0.95), (2e-3, 0.95), (4e-3, 0.95), (8e-3, 0.95)],
    "conv": [(2e-3, 0.95), (4e-3, 0.95), (8e-3, 0.95)],
    "mlp_2d": [(1e-3, 0.95), (2e-3, 0.95), (4e-3, 0.95)],
}
SEEDS = {"mlp": [0, 1]}  # 0 for the others
N_EPOCHS = 10
KEY = ["architecture", "max_lr", "beta2", "seed", "n_epochs"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Search the training recipe on the validation split.")
    parser.add_argument(
        "architectures", nargs="*", default=list(SETTINGS), help=f"some of {', '.join(SETTINGS)}; all by default"
    )
    architectures = parser.parse_args().architectures
    if unknown := set(architectures) - set(SETTINGS):
        parser.error(f"unknown architecture {', '.join(unknown)}; accepted: {', '.join(SETTINGS)}")

    table = paths.figures_dir() / "02_recipe.csv"
    rows = []  # as text, so that writing them again changes no digit
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {tuple(row[name] for name in KEY) for row in rows}
    x_train, x_validation = load_mnist("train").x, load_mnist("validation").x
    for architecture in architectures:
        for seed, (max_lr, beta2) in itertools.product(SEEDS.get(architecture, [0]), SETTINGS[architecture]):
            setting = (architecture, str(max_lr), str(beta2), str(seed), str(N_EPOCHS))
            if setting in done:
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
