import pandas as pd
import pytest

from benchmarks import readme, training
from tme_utils import paths

TEXT = "above\n<!-- results: by code -->\n\nold\n\n<!-- end of results -->\nbelow\n"


@pytest.fixture
def results():
    """Two seeds of one model; the first is scored with 10 samples too."""
    row = {"architecture": "conv", "latent_dim": 20, "trained_on": "grey", "n_epochs": 10, "n_parameters": 12345}
    row |= {"test_recon": 70.0, "test_kl": 25.0, "test_neg_elbo": 95.0, "binarised_neg_elbo": 93.0, "seconds": 60.0}
    return pd.DataFrame(
        [
            row | {"seed": 0, "iw_samples": 10, "iw_nll": 92.0},
            row | {"seed": 0, "iw_samples": 100, "iw_nll": 90.0},
            row | {"seed": 1, "iw_samples": 100, "iw_nll": 91.0, "test_recon": 72.0, "seconds": 50.4},
        ]
    )


@pytest.fixture
def published():
    row = {"source": "a paper", "network": "MLP", "latent_dim": 50, "epochs": 3280.0}
    return pd.DataFrame(
        [
            row | {"test_images": "dynamically binarised", "measure": "−IW_5000", "nats": "86.76"},
            row | {"test_images": "grey", "measure": "−ELBO", "nats": "105.6 to 105.9"},
            row | {"test_images": "dynamically binarised", "measure": "−ELBO", "nats": "119.5", "epochs": None},
        ]
    )


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_model_is_a_line_with_mean_and_spread_over_its_seeds(results, published):
    heads, rule, line, *_ = cells(readme.results_table(results, published))
    assert heads == readme.HEADS
    assert set(rule) == {"---"}
    assert dict(zip(heads, line, strict=True)) == {
        "model": "conv",
        "$d$": "20",
        "images": "grey",
        "epochs": "10",
        "parameters": "12,345",
        "seconds": "50",
        "seeds": "2",
        "recon": "71.0 ± 1.41",
        "KL": "25.0 ± 0.00",
        "−ELBO": "95.0 ± 0.00",
        "binarised −ELBO": "93.0 ± 0.00",
        "binarised −log p (samples)": "90.5 ± 0.71 (100)",
    }


def test_a_published_number_stands_in_the_column_of_its_measure(results, published):
    heads, _, _, *lines = cells(readme.results_table(results, published))
    filled = [
        {head: cell for head, cell in zip(heads, line, strict=True) if cell and head in readme.SCORES.values()}
        for line in lines
    ]
    assert filled == [
        {"binarised −log p (samples)": "86.76 (5,000)"},
        {"−ELBO": "105.6 to 105.9"},
        {"binarised −ELBO": "119.5"},
    ]
    assert [line[3] for line in lines] == ["3280", "3280", ""]


def test_the_training_speed_is_a_line_with_its_ratios_and_their_range():
    seconds = {"plain_seconds": 8.04, "fit_seconds": 4.0, "bare_seconds": 2.5, "evaluation_seconds": 0.5}
    ratios = {"plain_over_fit": 2.01, "plain_over_fit_least": 1.9, "plain_over_fit_most": 2.2}
    ratios |= {"fit_over_bare": 1.6, "fit_over_bare_least": 1.55, "fit_over_bare_most": 1.701}
    table = pd.DataFrame([{"architecture": "mlp"} | seconds | ratios | {"rounds": 5}])
    heads, _, line = cells(readme.training_table(table))
    assert dict(zip(heads, line, strict=True)) == {
        "model": "mlp",
        "plain loop (s)": "8.0",
        "fit (s)": "4.0",
        "bare operations (s)": "2.5",
        "plain / fit": "2.01 (1.90 to 2.20)",
        "fit / bare": "1.60 (1.55 to 1.70)",
        "rounds": "5",
    }


def test_the_ratios_of_training_are_those_of_each_round():
    row = training.summary({"plain": [8.0, 9.0, 20.0], "fit": [4.0, 3.0, 5.0], "bare": [2.0, 2.0, 2.5]})
    assert (row["plain_seconds"], row["fit_seconds"], row["bare_seconds"]) == (9, 4, 2)
    assert (row["plain_over_fit_least"], row["plain_over_fit"], row["plain_over_fit_most"]) == (2, 3, 4)
    assert (row["fit_over_bare_least"], row["fit_over_bare"], row["fit_over_bare_most"]) == (1.5, 2, 2)
    assert row["rounds"] == 3


def test_the_explorers_speed_is_a_line():
    row = {"architecture": "mlp", "step_ms": 3.71, "step_ms_95th_percentile": 8.26, "changed_frames_per_second": 56.4}
    row |= {"drawn_frames_per_second": 60.0, "grey_levels_from_torch": 0.138, "page_megabytes": 4.12}
    _, _, line = cells(readme.explorer_table(pd.DataFrame([row])))
    assert line == ["mlp", "3.7", "8.3", "56 of 60", "0.14", "4.1"]


def test_a_table_is_replaced_between_its_marks_and_nothing_else():
    text = readme.replaced(TEXT, "results", "| new |")
    assert text == "above\n<!-- results: by code -->\n\n| new |\n\n<!-- end of results -->\nbelow\n"
    assert readme.replaced(text, "results", "| new |") == text


@pytest.mark.parametrize("text", ["no mark", TEXT + TEXT, "<!-- end of results -->\n<!-- results -->\n"])
def test_a_readme_without_its_marks_is_refused(text):
    with pytest.raises(ValueError, match="must hold one line '<!-- results"):
        readme.replaced(text, "results", "| new |")


def test_the_tables_of_the_readme_are_those_of_the_committed_tables(monkeypatch, tmp_path):
    before = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "figures").symlink_to(paths.ROOT / "figures")
    (tmp_path / "README.md").write_text(before, encoding="utf-8")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    readme.main()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == before
