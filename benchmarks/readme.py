"""Write the README's results table from the committed tables: ``python -m benchmarks.readme``."""

import re

import pandas as pd

from tme_utils import paths

START, END = "<!-- results", "<!-- end of results -->"
COLUMNS = {
    "architecture": "model",
    "latent_dim": "latent dimension",
    "n_epochs": "epochs",
    "n_parameters": "parameters",
    "train_neg_elbo": "train −ELBO",
    "test_recon": "test recon",
    "test_kl": "test KL",
    "test_neg_elbo": "test −ELBO",
}
FORMATS = {"n_parameters": "{:,}"} | dict.fromkeys(
    ["train_neg_elbo", "test_recon", "test_kl", "test_neg_elbo"], "{:.1f}"
)


def results_table(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---" * len(COLUMNS) + "|"]
    for _, row in table.iterrows():
        cells = [FORMATS.get(name, "{}").format(row[name]) for name in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_results(readme: str, table: pd.DataFrame) -> str:
    """The README's text with its results table replaced."""
    pattern = re.compile(rf"({re.escape(START)}[^\n]*\n).*?({re.escape(END)})", re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"the README must hold one line starting with {START!r} and one line {END!r} after it")
    return pattern.sub(lambda match: f"{match[1]}\n{results_table(table)}\n\n{match[2]}", readme)


def main() -> None:
    path = paths.ROOT / "README.md"
    text = with_results(path.read_text(encoding="utf-8"), pd.read_csv(paths.ROOT / "figures" / "02_results.csv"))
    with paths.atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
