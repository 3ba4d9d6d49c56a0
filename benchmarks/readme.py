"""Write the README's tables and the numbers in its prose from the committed tables: ``python -m benchmarks.readme``.

A number of the prose stands between ``<!--n source: what-->`` and ``<!--/n-->``. The source is a table of results, and
``what`` names architecture, latent dimension, column and, if it is the spread over seeds that is meant, ``±``, or a
format; or a notebook, and ``what`` is the text before the number in one of its outputs.
"""

import argparse
import re

import nbformat
import pandas as pd

from tme_utils import paths
from tme_utils.training import Recipe

MODEL = ["architecture", "latent_dim", "trained_on", "n_epochs", "max_lr", "n_parameters", "objective"]
SCORES = {
    "test_recon": "recon",
    "test_kl": "KL",
    "test_neg_elbo": "−ELBO",
    "binarised_neg_elbo": "binarised −ELBO",
    "iw_nll": "binarised −log p (samples)",
}
SAME = {"epochs": 0, "seconds": 1, "neg_elbo": 1}
HEADS = ["model", "$d$", "images", "epochs", "parameters", "seconds", "seeds", *SCORES.values()]


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def _mean(values: pd.Series) -> str:
    """The mean over seeds and, if there are several, their standard deviation."""
    return f"{values.mean():.1f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def results_table(table: pd.DataFrame, published: pd.DataFrame) -> str:
    """One line for each model, mean ± standard deviation over its seeds, then the published numbers.

    Args:
        table: rows of results.
        published: ``source``, ``network``, ``latent_dim``, ``test_images``, ``epochs``, ``measure``, ``nats``.
    """
    lines = []
    for model, rows in table.groupby(MODEL, sort=False, dropna=False):
        each = rows.drop_duplicates("seed")
        name, d, images, n_epochs, max_lr, n_parameters, objective = model
        name += "" if max_lr == Recipe().max_lr else f", rate {max_lr}"
        name += "" if pd.isna(objective) else " (appendix B)"
        line = [
            name,
            str(d),
            images,
            str(n_epochs),
            f"{n_parameters:,}",
            f"{each['seconds'].min():.0f}",
            str(len(each)),
        ]
        line += [_mean(each[score]) for score in SCORES if score != "iw_nll"]
        by_samples = dict(list(rows.groupby("iw_samples")["iw_nll"]))
        of_most_seeds = max(by_samples, key=lambda n_samples: (len(by_samples[n_samples]), n_samples))
        shown = sorted({max(by_samples), of_most_seeds}, reverse=True)  # the tightest bound, and that with a spread
        line.append("; ".join(f"{_mean(by_samples[n_samples])} ({n_samples:,})" for n_samples in shown))
        lines.append(line)
    for row in published.itertuples():
        epochs = "" if pd.isna(row.epochs) else f"{row.epochs:.0f}"
        scores = dict.fromkeys(SCORES, "")
        if row.measure == "−ELBO":
            scores["test_neg_elbo" if row.test_images == "grey" else "binarised_neg_elbo"] = str(row.nats)
        else:
            samples = re.search(r"IW_(\d+)", row.measure)
            scores["iw_nll"] = f"{row.nats} ({int(samples[1]):,})" if samples else str(row.nats)
        name = f"*{row.source}: {row.network}*"
        lines.append([name, str(row.latent_dim), row.test_images, epochs, "", "", "", *scores.values()])
    return markdown(HEADS, lines)


def training_table(table: pd.DataFrame) -> str:
    """Seconds for an epoch of ``fit`` beside the plain loop and the bare operations, and both ratios with their range.

    Args:
        table: what ``python -m benchmarks.training`` wrote.
    """
    heads = ["model", "plain loop (s)", "fit (s)", "bare operations (s)", "plain / fit", "fit / bare", "rounds"]
    lines = [
        [
            row.architecture,
            *(f"{seconds:.1f}" for seconds in (row.plain_seconds, row.fit_seconds, row.bare_seconds)),
            f"{row.plain_over_fit:.2f} ({row.plain_over_fit_least:.2f} to {row.plain_over_fit_most:.2f})",
            f"{row.fit_over_bare:.2f} ({row.fit_over_bare_least:.2f} to {row.fit_over_bare_most:.2f})",
            str(row.rounds),
        ]
        for row in table.itertuples()
    ]
    return markdown(heads, lines)


def same_result_table(table: pd.DataFrame) -> str:
    """How long either way takes to the same test −ELBO.

    Args:
        table: what ``python -m benchmarks.training`` wrote, one row.
    """
    heads = ["way", "epochs", "seconds", "test −ELBO", "times as long (range)", "rounds"]
    (row,) = table.itertuples()
    ratio = f"{row.ratio:.1f} ({row.ratio_least:.1f} to {row.ratio_most:.1f})"
    ways = [("plain loop", "plain", ratio, str(row.rounds)), ("`fit`", "fit", "1", str(row.rounds))]
    lines = [
        [
            way,
            *(f"{getattr(row, f'{name}_{what}'):.{digits}f}" for what, digits in SAME.items()),
            *others,
        ]
        for way, name, *others in ways
    ]
    return markdown(heads, lines)


def explorer_table(table: pd.DataFrame) -> str:
    """What a hand feels at the explorer, how exact its decoder is, and the size of its page.

    Args:
        table: what ``python -m benchmarks.explorer`` wrote.
    """
    heads = [
        "model",
        "slider step to changed pixels, median (ms)",
        "95th percentile (ms)",
        "changed frames per second, of all drawn",
        "largest difference from torch (grey levels of 255)",
        "the same of a loss (nats)",
        "page (MB)",
        "processor",
    ]
    lines = [
        [
            row.architecture,
            f"{row.step_ms:.1f}",
            f"{row.step_ms_95th_percentile:.1f}",
            f"{row.changed_frames_per_second:.0f} of {row.drawn_frames_per_second:.0f}",
            f"{row.grey_levels_from_torch:.2f}",
            f"{row.nats_from_torch:.3f}",
            f"{row.page_megabytes:.1f}",
            f"{row.processor}, {row.cores} cores",
        ]
        for row in table.itertuples()
    ]
    return markdown(heads, lines)


def of_table(name: str, what: str) -> str:
    """Mean over the seeds of a column for one architecture and latent dimension, or its standard deviation."""
    architecture, latent_dim, column, *how = what.split()
    table = pd.read_csv(paths.ROOT / "figures" / f"{name}.csv")
    rows = table[(table["architecture"] == architecture) & (table["latent_dim"] == int(latent_dim))]
    if "beta" in table and (rows["beta"] == 1).any():
        rows = rows[rows["beta"] == 1]
    values = rows[rows["iw_samples"] == rows["iw_samples"].max()][column] if "iw" in column else rows[column]
    if how == ["±"]:
        return f"{values.std():.1f}"
    default = ",.0f" if column in ("n_parameters", "seconds") else ".1f"
    return f"{values.mean():{how[0] if how else default}}"


def of_notebook(name: str, what: str) -> str:
    """The number behind a text in the outputs of a notebook."""
    cells = nbformat.read(paths.ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs]
    found = {number for text in texts for number in re.findall(rf"{re.escape(what)}[:=≈ ]*(−?\d[\d,]*\.?\d*)", text)}
    if len(found) != 1:
        raise ValueError(f"notebook {name} must print one number behind {what!r}, found {sorted(found)}")
    return found.pop()


def with_numbers(readme: str) -> str:
    """The README's text with the numbers of its prose replaced."""

    def number(match: re.Match[str]) -> str:
        source, _, what = match[2].partition(": ")
        is_notebook = (paths.ROOT / "notebooks" / f"{source}.ipynb").exists()
        return match[1] + (of_notebook if is_notebook else of_table)(source, what) + match[3]

    return re.sub(r"(<!--n (.+?)-->).*?(<!--/n-->)", number, readme)


def replaced(readme: str, name: str, table: str) -> str:
    """The README's text with the table between ``<!-- name`` and ``<!-- end of name -->`` replaced."""
    pattern = re.compile(rf"(<!-- {name}[^\n]*\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(
            f"the README must hold one line '<!-- {name} ...' and one line '<!-- end of {name} -->' after it"
        )
    return pattern.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", readme)


def main() -> None:
    path, figures = paths.ROOT / "README.md", paths.ROOT / "figures"
    ours = pd.concat([pd.read_csv(figures / f"{name}.csv") for name in ("03_match", "03_literature", "B_headline")])
    published = pd.read_csv(figures / "03_published.csv", dtype={"nats": str})
    text = replaced(path.read_text(encoding="utf-8"), "results", results_table(ours, published))
    speed = [same_result_table(pd.read_csv(figures / "speed_same_result.csv"))]
    speed += [training_table(pd.read_csv(figures / "speed_training.csv"))]
    speed += [explorer_table(pd.read_csv(figures / "speed_explorer.csv"))]
    text = with_numbers(replaced(text, "speed", "\n\n".join(speed)))
    with paths.atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description="Write the tables of README.md from the committed tables.").parse_args()
    main()
