"""The tables of the README, and how they get there."""

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from benchmarks import readme, training
from tme_utils import paths

TEXT = "above\n<!-- results: by code -->\n\nold\n\n<!-- end of results -->\nbelow\n"


@pytest.fixture
def results():
    """Two seeds of one model; the first is scored with 10 samples too."""
    row = {"architecture": "conv", "latent_dim": 20, "trained_on": "grey", "n_epochs": 10, "max_lr": 0.008}
    row |= {"n_parameters": 12345, "objective": None}
    row |= {"test_recon": 70.0, "test_kl": 25.0, "test_neg_elbo": 95.0, "binarised_neg_elbo": 93.0, "seconds": 60.0}
    rows = [row | {"seed": 0, "iw_samples": 10, "iw_nll": 92.0}, row | {"seed": 0, "iw_samples": 100, "iw_nll": 90.0}]
    return pd.DataFrame(
        [*rows, row | {"seed": 1, "iw_samples": 100, "iw_nll": 91.0, "test_recon": 72.0, "seconds": 50.4}]
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


def test_a_model_is_a_line_with_mean_and_spread_and_a_published_number_stands_under_its_measure(results, published):
    sharper = results.iloc[[1]].assign(objective="Sharper()")
    tighter = results.iloc[[0]].assign(iw_samples=5000, iw_nll=89.5)
    heads, rule, line, other, *others = cells(readme.results_table(pd.concat([results, sharper, tighter]), published))
    assert heads == readme.HEADS
    assert set(rule) == {"---"}
    assert line[:7] == ["conv, rate 0.008", "20", "grey", "10", "12,345", "50", "2"]
    assert line[7:] == ["71.0 ± 1.41", "25.0 ± 0.00", "95.0 ± 0.00", "93.0 ± 0.00", "89.5 (5,000); 90.5 ± 0.71 (100)"]
    assert (other[0], other[6], other[-1]) == ("conv, rate 0.008 (appendix B)", "1", "90.0 (100)")
    settings = ["*a paper: MLP*", "50", "dynamically binarised", "3280", "", "", ""]
    assert others[0] == [*settings, "", "", "", "", "86.76 (5,000)"]
    assert others[1] == [*settings[:2], "grey", *settings[3:], "", "", "105.6 to 105.9", "", ""]
    assert others[2] == [*settings[:3], "", *settings[4:], "", "", "", "119.5", ""]


def test_the_ratios_of_training_are_those_of_each_round():
    row = training.summary({"plain": [8.0, 9.0, 20.0], "fit": [4.0, 3.0, 5.0], "bare": [2.0, 2.0, 2.5]})
    heads, _, line = cells(readme.training_table(pd.DataFrame([row | {"architecture": "mlp"}])))
    assert heads[1:4] == ["plain loop (s)", "fit (s)", "bare operations (s)"]
    assert line == ["mlp", "9.0", "4.0", "2.0", "3.00 (2.00 to 4.00)", "2.00 (1.50 to 2.00)", "3"]


def test_a_number_of_the_prose_comes_from_its_table_or_from_its_notebook(results, monkeypatch, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "notebooks").mkdir()
    results.assign(beta=1.0).to_csv(tmp_path / "figures" / "01_x.csv")
    outputs = [new_output("stream", text="gap: 3.25 nats\ngap ≈ −4.5, within −4 ± 1\nshare ≈ −0.062, within 0 ± 1\n")]
    notebook = new_notebook(cells=[new_code_cell("", outputs=outputs)])
    nbformat.write(notebook, tmp_path / "notebooks" / "02_y.ipynb")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for source, number in {
        "01_x: conv 20 iw_nll": "90.5",
        "01_x: conv 20 iw_nll ±": "0.7",
        "01_x: conv 20 n_parameters": "12,345",
        "02_y: share": "−0.062",
    }.items():
        text = "It is <!--n {}-->{}<!--/n--> nats."
        assert readme.with_numbers(text.format(source, "7")) == text.format(source, number)
    for what in ("gap", "loss"):  # two numbers, and none
        with pytest.raises(ValueError, match=f"02_y must print one number behind '{what}'"):
            readme.of_notebook("02_y", what)


def test_both_ways_to_the_same_result_have_a_line():
    row = {"plain_epochs": 10, "plain_seconds": 61.26, "plain_neg_elbo": 105.7, "fit_epochs": 4, "fit_seconds": 12.5}
    row |= {"fit_neg_elbo": 105.44, "ratio": 4.9, "ratio_least": 4.5, "ratio_most": 5.3, "rounds": 3}
    _, _, *lines = cells(readme.same_result_table(pd.DataFrame([row])))
    assert lines == [
        ["plain loop", "10", "61.3", "105.7", "4.9 (4.5 to 5.3)", "3"],
        ["`fit`", "4", "12.5", "105.4", "1", "3"],
    ]


@pytest.mark.parametrize("text", ["no mark", TEXT + TEXT, "<!-- end of results -->\n<!-- results -->\n"])
def test_a_table_is_replaced_between_its_marks_which_must_be_there(text):
    assert readme.replaced(TEXT, "results", "| new |") == TEXT.replace("old", "| new |")
    with pytest.raises(ValueError, match="must hold one line '<!-- results"):
        readme.replaced(text, "results", "| new |")


def test_the_tables_of_the_readme_are_those_of_the_committed_tables(monkeypatch, tmp_path):
    before = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    for folder in ("figures", "notebooks"):
        (tmp_path / folder).symlink_to(paths.ROOT / folder)
    (tmp_path / "README.md").write_text(before, encoding="utf-8")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    readme.main()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == before
