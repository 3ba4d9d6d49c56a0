"""Write the README's results table from the committed tables: ``python -m benchmarks.readme``."""

import re

import pandas as pd

from tme_utils import paths

START, END = "<!-- results", "<!-- end of results -->"
MODEL = ["architecture", "latent_dim", "trained_on", "n_epochs", "n_parameters"]
SCORES = {
    "test_recon": "recon",
    "test_kl": "KL",
    "test_neg_elbo": "−ELBO",
    "binarised_neg_elbo": "binarised −ELBO",
    "iw_nll": "binarised −log p (samples)",
}


def results_table(table: pd.DataFrame) -> str:
    """One line for each model: mean ± standard deviation over its seeds, in nats per image of the test set."""
    heads = ["model", "$d$", "trained on", "epochs", "parameters", "seeds", *SCORES.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for model, rows in table.groupby(MODEL, sort=False):
        most = rows[rows["iw_samples"] == rows["iw_samples"].max()]  # the tightest bound says most
        cells = [*map(str, model[:-1]), f"{model[-1]:,}", str(rows["seed"].nunique())]
        for score in SCORES:
            values = (most if score == "iw_nll" else rows.drop_duplicates("seed"))[score]
            spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
            samples = f" ({most['iw_samples'].iloc[0]:,})" if score == "iw_nll" else ""
            cells.append(f"{values.mean():.1f}{spread}{samples}")
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
    tables = [pd.read_csv(paths.ROOT / "figures" / f"{name}.csv") for name in ("03_match", "03_literature")]
    text = with_results(path.read_text(encoding="utf-8"), pd.concat(tables))
    with paths.atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
