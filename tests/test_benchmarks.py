"""The own logic of the benchmarks and of the tables' commands, without what they measure."""

import csv
import shutil
import sys
from dataclasses import replace

import nbformat
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks import browser, training
from benchmarks.explorer import CELL, MODELS
from tables import ladder, literature, recipe
from tme_utils import paths
from tme_utils.architectures import VAES
from tme_utils.data import Images
from tme_utils.study import allowed_cores, read_rows, result_row
from tme_utils.training import History, Recipe, fit
from tme_utils.vae import ElboTerms

IMAGES, SEARCHED = "03_literature_images", "03_literature_search"
SEARCH, SPEED = (paths.ROOT / "figures" / f"{name}.csv" for name in ("02_recipe", "speed_training"))


@pytest.fixture
def fits(monkeypatch, random_images):
    """Trainings that cost nothing: the models that ``fit`` was given, and the history that it returns."""
    models, history = [], History(rows=[{"seconds": 1.0}])
    terms = ElboTerms(torch.tensor([100.0]), torch.tensor([4.5]))
    for module in (recipe, training):
        monkeypatch.setattr(module, "fit", lambda model, *_, **__: models.append(model) or history)
        monkeypatch.setattr(module, "load_mnist", lambda _: Images(random_images(2), torch.zeros(2)))
    monkeypatch.setattr(recipe, "evaluate", lambda *_: terms)
    monkeypatch.setattr(sys, "argv", ["recipe"])
    return models, history


@pytest.fixture
def figures(monkeypatch, tmp_path):
    """A folder of figures that does not exist yet."""
    monkeypatch.setenv("TME_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def test_the_committed_search_is_complete(fits, figures):
    figures.mkdir()
    shutil.copy(SEARCH, figures)
    recipe.main()
    assert fits[0] == []
    assert (figures / SEARCH.name).read_bytes() == SEARCH.read_bytes()


def test_a_search_makes_folder_and_table_once_for_each_number_of_epochs(fits, figures, monkeypatch):
    committed = SEARCH.read_text().splitlines()
    for n_searches in (1, 1, 2):
        monkeypatch.setattr(recipe, "N_EPOCHS", 9 + n_searches)
        recipe.main()
        lines = (figures / SEARCH.name).read_text().splitlines()
        assert len(lines) - 1 == len(fits[0]) == n_searches * (len(committed) - 1)
        assert lines[:2] == [committed[0], "mlp,0.002,0.95,0,10,104.500,104.500"]


def test_the_best_learning_rates_of_the_match_lie_inside_their_grids():
    tried = {}
    for row in csv.DictReader(SEARCH.read_text().splitlines()):
        if row["beta2"] == "0.95":
            scores = tried.setdefault(row["architecture"], {}).setdefault(float(row["max_lr"]), [])
            scores.append(float(row["validation_neg_elbo"]))
    for architecture in tried:
        means = {rate: sum(scores) / len(scores) for rate, scores in tried[architecture].items()}
        assert min(means) < min(means, key=means.get) < max(means)


def test_ctrl_c_leaves_no_number_of_a_model_half_trained(fits, figures, random_images):
    fits[1].interrupted = True
    with pytest.raises(KeyboardInterrupt):
        recipe.main()
    assert not figures.exists()
    with pytest.raises(KeyboardInterrupt):
        training.fit_epoch("mlp", random_images(2))


@pytest.mark.usefixtures("figures")
def test_the_images_behind_a_row_have_its_coin_tosses_and_its_draws(build, random_images, monkeypatch):
    model, x, searched = build().eval(), random_images(5), []
    monkeypatch.setattr(literature, "shipped_model", lambda _: (model, None))
    monkeypatch.setattr(literature, "load_mnist", lambda _: Images(x, torch.zeros(5)))
    monkeypatch.setattr(literature, "fill", lambda table, jobs: searched.append((table.name, *jobs)))
    monkeypatch.setattr(sys, "argv", ["literature"])
    literature.main()
    assert searched == [(f"{SEARCHED}.csv", *literature.LADDER)]
    row = result_row(model, History(rows=[{"seconds": 1.0}]), x, x, Recipe(), seed=0, iw_samples=100)
    scores = [float(line) for line in (paths.figures_dir() / f"{IMAGES}.csv").read_text().splitlines()[1:]]
    assert sum(scores) / len(scores) == pytest.approx(row["iw_nll"], abs=2e-4)
    assert len(set(scores)) == 5


@pytest.mark.parametrize("table", ["B_headline", "B_ladder", "B_priors"])
def test_the_tables_of_appendix_b_are_complete(table):
    assert read_rows(paths.ROOT / "figures" / f"{table}.csv").keys() == ladder.jobs(table).keys()


def test_averaged_weights_are_the_average_of_those_after_each_step(build, random_images, weights):
    x, recipe, after = random_images(200), Recipe(n_epochs=1), []  # two steps
    plain, averaged = build(), build()
    hook = register_optimizer_step_post_hook(lambda *_: after.append(weights(plain).clone()))
    fit(plain, x, x[:1], recipe, progress=False)
    hook.remove()
    with ladder.averaging(averaged):
        fit(averaged, x, x[:1], recipe, progress=False)
    first, second = after
    assert torch.allclose(weights(averaged), first.lerp(second, 0.005), atol=1e-7)
    assert not torch.allclose(weights(averaged), second, atol=1e-4)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
def test_muon_moves_a_matrix_alike_in_all_directions_and_leaves_the_rest_to_adam(build, random_images):
    x, model, before = random_images(100), build(), build().state_dict()  # one step
    with ladder.muon(model):
        fit(model, x, x[:1], Recipe(n_epochs=1), progress=False)
    moved = {name: value - before[name] for name, value in model.state_dict().items()}
    for step in moved.values():
        if step.dim() == 2:
            sizes = torch.linalg.svdvals(step)
            assert sizes.max() < 2 * sizes.median()
        else:
            assert torch.allclose(step.abs().max(), torch.tensor(Recipe().max_lr), rtol=1e-2)


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_a_rung_trains_on_one_split_and_is_scored_on_the_other(rung, random_images, monkeypatch):
    if rung == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("PyTorch has Muon from 2.9 on")
    splits = []
    x = {"train": random_images(4), "validation": random_images(3, seed=1)}
    monkeypatch.setattr(ladder, "load_mnist", lambda split: splits.append(split) or Images(x[split], torch.zeros(3)))
    monkeypatch.setitem(ladder.RUNGS, rung, replace(ladder.RUNGS[rung], n_epochs=1))
    monkeypatch.setattr(ladder, "seconds_of_conv_epoch", lambda: 2.0)
    row = ladder.row(rung, seed=3)
    assert set(splits) == {"train", "validation"}
    assert (row["rung"], row["seed"], row["iw_images"]) == (rung, 3, 3)
    assert 300 < row["validation_neg_elbo"] < 700  # coin tosses, by a model that has seen four images


@pytest.mark.parametrize("architecture", VAES)
def test_every_architecture_has_its_bare_operations(architecture, monkeypatch):
    monkeypatch.setattr(training, "N_STEPS", 1)
    assert training.bare_epoch(architecture) > 0


@pytest.mark.usefixtures("fits")
def test_measuring_one_architecture_leaves_the_rows_of_the_others_and_names_the_machine(figures, monkeypatch):
    figures.mkdir()
    shutil.copy(SPEED, figures)
    monkeypatch.setattr(training, "MNIST", lambda *_, **__: [0])
    monkeypatch.setattr(training, "SAME_RESULT", torch.inf)
    for name, seconds in [("plain_epoch", 2.0), ("fit_epoch", (1.0, 0.1)), ("bare_epoch", 0.5)]:
        monkeypatch.setattr(training, name, lambda *_, seconds=seconds: seconds)
    for architecture in ("residual", "mlp"):
        monkeypatch.setattr(sys, "argv", ["training", architecture, "--rounds", "1"])
        training.main()
    assert (figures / "speed_same_result.csv").read_text().count("\n") == 2
    before, after = (
        {row["architecture"]: row for row in csv.DictReader(path.read_text().splitlines())}
        for path in (SPEED, figures / SPEED.name)
    )
    assert list(after) == ["mlp", "conv", "residual"]
    assert after["conv"].items() >= before["conv"].items()
    measured = {"plain_seconds": "2.0", "fit_seconds": "1.0", "bare_seconds": "0.5", "evaluation_seconds": "0.1"}
    for name in ("mlp", "residual"):
        assert after[name].items() >= (measured | {"cores": str(allowed_cores())}).items()
        assert after[name]["processor"]


def test_each_way_trains_until_the_result_is_reached_and_only_the_last_training_of_fit_counts(monkeypatch):
    losses = iter([106.0, 105.75, 106.0, 105.5])
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: ElboTerms(torch.zeros(1), torch.tensor([next(losses)])))
    monkeypatch.setattr(training, "plain_epoch", lambda *_: 20.0)
    monkeypatch.setattr(training, "fit", lambda *a, **_: History(rows=[{"seconds": 2.0 * a[3].n_epochs}]))
    x = torch.zeros(2, 1, 28, 28)
    rounds = [(training.plain_to_the_result(x, [], 0), training.fit_to_the_result(x, x, 0))]
    assert rounds == [
        (
            {"epochs": 2, "seconds": 40.0, "neg_elbo": 105.75},
            {"epochs": 4, "seconds": 8.0, "neg_elbo": 105.5},
        )
    ]
    rounds.append((rounds[0][0], rounds[0][1] | {"seconds": 4.0}))
    row = training.same_result(rounds)
    assert [row[name] for name in ("plain_seconds", "fit_seconds", "fit_epochs")] == [40, 6, 4]
    assert [row[name] for name in ("ratio", "ratio_least", "ratio_most", "rounds")] == [7.5, 5, 10, 2]


@pytest.mark.parametrize(("architecture", "name"), MODELS.items())
def test_the_notebook_to_measure_shows_the_shipped_models_explorer(architecture, name, tmp_path):
    browser.write_notebook(tmp_path / "one.ipynb", CELL.format(name=name, n=3))
    (cell,) = nbformat.read(tmp_path / "one.ipynb", as_version=4).cells
    *lines, shown = cell.source.strip().splitlines()
    exec("\n".join(lines), scope := {})
    assert repr(eval(shown, scope)) == f"LatentExplorer({architecture}, 3 images)"
