import csv
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tme_utils import checkpoints, data, models, paths, study
from tme_utils.checkpoints import load_or_train
from tme_utils.data import Images
from tme_utils.gaussian import kl_per_dim
from tme_utils.generation import DigitClassifier, divergence_from_prior, features, frechet_distance, recognised
from tme_utils.metrics import importance_weighted_log_likelihood
from tme_utils.study import Configuration, result_row, run, run_study
from tme_utils.training import evaluate, fit

TINY = Configuration("mlp", 3, n_epochs=1, iw_samples=7)
PATIENCE = 300  # seconds, for other processes on a busy machine
GRID = [Configuration("mlp", latent_dim, seed, n_epochs=1) for seed in range(2) for latent_dim in (1, 2, 3)]


def row_of(configuration):
    """A row that costs nothing: what an executor of other processes can find by name."""
    return {"digest": configuration.digest, "latent_dim": configuration.latent_dim, "value": 0.1 * configuration.seed}


def logged_row(configuration):
    """The same, slowly, leaving a line for each call in the file that the environment names."""
    with open(os.environ["CALLS"], "a") as file:
        file.write(configuration.digest + "\n")
    time.sleep(0.05)
    return row_of(configuration)


def endless_row(configuration):
    """A training that lasts: it leaves a line, then it sleeps."""
    with open(os.environ["CALLS"], "a") as file:
        file.write(configuration.digest + "\n")
    time.sleep(PATIENCE / 10)
    return row_of(configuration)


@pytest.fixture(scope="module")
def classifier():
    """Untrained: its features tell images apart all the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        return DigitClassifier()


@pytest.fixture
def small_images(monkeypatch, tmp_path, random_images, classifier):
    """A study over 200 random images, whose checkpoints go to a temporary folder."""
    train, test = (Images(random_images(200, seed), torch.zeros(200, dtype=torch.int64)) for seed in (1, 2))
    monkeypatch.setattr(study, "_images", lambda: (train, test))
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(study, "shipped_classifier", lambda: classifier)
    return train, test


@pytest.fixture
def table(tmp_path):
    return tmp_path / "table.csv"


# --- configurations


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "transformer"),
        ("latent_dim", 0),
        ("latent_dim", 2.0),
        ("latent_dim", True),
        ("seed", -1),
        ("n_epochs", 0),
        ("iw_samples", -5),
        ("beta", -0.5),
        ("beta", float("nan")),
        ("beta", float("inf")),
        ("max_lr", float("inf")),
        ("max_lr", 0.0),
        ("trained_on", "colour"),
    ],
)
def test_a_field_out_of_its_range_is_named(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*{value!r}"):
        replace(TINY, **{field: value})


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "conv"},
        {"architecture": "residual"},
        {"latent_dim": 4},
        {"seed": 1},
        {"beta": 2.0},
        {"trained_on": "binarised"},
        {"n_epochs": 2},
        {"max_lr": 1e-3},
        {"iw_samples": 8},
    ],
)
def test_every_field_changes_the_digest(change):
    assert replace(TINY, **change).digest != TINY.digest


def test_an_auto_encoder_has_another_digest_than_the_vae_of_its_architecture():
    options = {"beta": 0.0, "iw_samples": 0}
    assert Configuration("mlp_ae", 3, **options).digest != Configuration("mlp", 3, **options).digest


@pytest.mark.parametrize("change", [{"beta": 1.0}, {"beta": 0.0, "iw_samples": 5}])
@pytest.mark.parametrize("architecture", study.AUTOENCODERS)
def test_an_auto_encoder_with_a_kl_term_or_a_likelihood_is_refused(architecture, change):
    with pytest.raises(ValueError, match=f"{architecture} has no KL term and no likelihood"):
        Configuration(architecture, 3, **change)


def test_equal_configurations_have_one_digest():
    assert Configuration("mlp", 3, n_epochs=1, iw_samples=7).digest == TINY.digest
    integers = replace(TINY, beta=1, max_lr=1)
    assert integers == replace(TINY, beta=1.0, max_lr=1.0)
    assert integers.digest == replace(TINY, beta=1.0, max_lr=1.0).digest


def test_the_digest_follows_the_sizes_of_the_layers_and_the_recipe(monkeypatch):
    before = TINY.digest
    monkeypatch.setitem(study.BUILDERS, "mlp", lambda latent_dim: models.mlp_vae(latent_dim, hidden=(401,)))
    other_sizes = TINY.digest
    monkeypatch.undo()
    monkeypatch.setattr(study, "BETAS", (0.9, 0.999))
    assert len({before, other_sizes, TINY.digest}) == 3


def test_a_digest_draws_no_weight():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    _ = TINY.digest
    torch.testing.assert_close(torch.randn(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", study.BUILDERS)
def test_every_architecture_builds_a_model_of_the_latent_dimension_asked(architecture, random_images):
    model = Configuration(architecture, 5, beta=0.0).build()
    mu, logvar = model.encode(random_images(2))
    assert mu.shape == logvar.shape == (2, 5)
    assert model.decode(mu).shape == (2, 1, 28, 28)


def test_the_tables_ask_for_several_seeds_of_every_model():
    for name, configurations in study.TABLES.items():
        seeds = {}
        for configuration in configurations:
            seeds.setdefault(replace(configuration, seed=0, iw_samples=0), set()).add(configuration.seed)
        assert all(len(found) >= (2 if name == "03_literature" else 3) for found in seeds.values()), name


@pytest.mark.parametrize("name", study.TABLES)
def test_the_committed_table_holds_every_row_asked(name):
    with (paths.ROOT / "figures" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        known = {row["digest"] for row in csv.DictReader(file)}
    assert not [configuration for configuration in study.TABLES[name] if configuration.digest not in known]


def test_two_workers_do_not_train_one_model_of_the_literature_at_once(table):
    trained, in_training, twice = set(), [], []
    lock = threading.Lock()

    def work(configuration):
        model = replace(configuration, iw_samples=0)
        with lock:
            must_train = model not in trained
            if must_train:
                twice.extend([model] * in_training.count(model))
                in_training.append(model)
        if must_train:
            time.sleep(0.2 if configuration.seed == 0 else 0.01)  # the other worker meets more rows meanwhile
            with lock:
                in_training.remove(model)
                trained.add(model)
        return row_of(configuration)

    configurations = study.TABLES["03_literature"]
    with ThreadPoolExecutor(2) as executor:
        frame = run_study(configurations, table, executor, work=work, progress=False)
    assert twice == []
    assert {model.seed for model in trained} == {0, 1}
    assert list(frame["digest"]) == [configuration.digest for configuration in configurations]


def test_a_builder_reaches_a_spawned_process():
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        assert executor.submit(row_of, TINY).result() == row_of(TINY)
    for build in study.BUILDERS.values():
        assert pickle.loads(pickle.dumps(build))(2).latent_dim == 2


# --- the row


def test_the_row_says_what_was_trained_and_each_score_equals_its_definition(
    build, random_images, generator, classifier
):
    model, x_train, x_test = build(), random_images(60), random_images(40, 1)
    model.config["architecture"] = "tiny"
    history = fit(model, x_train, x_test, 2, progress=False)
    options = {"seed": 4, "beta": 0.5, "trained_on": "binarised", "iw_samples": 9}
    row = result_row(model, history, x_train, x_test, classifier, **options)
    assert (row["architecture"], row["latent_dim"]) == ("tiny", 2)
    assert (row["beta"], row["trained_on"], row["n_epochs"], row["seed"]) == (0.5, "binarised", 2, 4)
    assert row["n_parameters"] == sum(p.numel() for p in model.parameters())
    for split, x in [("train", x_train), ("test", x_test)]:
        for name, value in evaluate(model, x, seed=4).averages().items():
            assert row[f"{split}_{name}"] == pytest.approx(value, abs=1e-4)
    elbo = evaluate(model, x_test, seed=4).elbo
    assert row["test_neg_elbo_se"] == pytest.approx((elbo.var() / len(elbo)).sqrt().item(), abs=1e-4)
    with torch.no_grad():
        mu, logvar = model.encode(x_test)
        error = (model.decode(mu).sigmoid() - x_test).square().sum() / len(x_test)
    assert row["test_squared_error"] == pytest.approx(error.item(), abs=1e-3)
    assert row["active_units"] == (mu.var(dim=0) > 0.01).sum()
    kl = [float(value) for value in row["kl_per_dim"].split()]
    assert kl == sorted(kl, reverse=True)
    assert sorted(kl) == pytest.approx(sorted(kl_per_dim(mu, logvar).mean(dim=0).tolist()), abs=1e-4)
    assert sum(kl) == pytest.approx(row["test_kl"], abs=1e-3)
    binarised = data.binarise(x_test, generator(4))
    assert row["binarised_neg_elbo"] == pytest.approx(
        evaluate(model, binarised, seed=4).averages()["neg_elbo"], abs=1e-4
    )
    log_lik = importance_weighted_log_likelihood(model, binarised, 9, generator(4))
    assert row["iw_nll"] == pytest.approx(-log_lik.mean().item(), abs=1e-4)
    assert row["iw_nll_se"] == pytest.approx(log_lik.std().item() / 40**0.5, abs=1e-4)
    assert (row["iw_samples"], row["iw_images"]) == (9, 40)


def test_without_draws_or_classifier_their_scores_are_left_out(build, random_images):
    model = build()
    history = fit(model, random_images(10), random_images(10), 1, progress=False)
    row = result_row(model, history, random_images(10), random_images(10), seed=0)
    assert not [name for name in row if name.startswith(("iw_", "frechet", "recognised", "divergence"))]


def test_bounds_computed_on_an_accelerator_are_averaged_on_the_cpu(build, random_images, monkeypatch):
    there = SimpleNamespace(cpu=lambda: torch.full((10,), -90.0))  # float64 may be missing there
    monkeypatch.setattr(study, "importance_weighted_log_likelihood", lambda *_: there)
    model = build()
    history = fit(model, random_images(10), random_images(10), 0, progress=False)
    assert result_row(model, history, random_images(10), random_images(10), seed=0, iw_samples=1)["iw_nll"] == 90.0


def test_an_unknown_kind_of_training_image_is_named(build, random_images):
    with pytest.raises(ValueError, match="'grey' or 'binarised', got 'sepia'"):
        result_row(build(), None, random_images(2), random_images(2), seed=0, trained_on="sepia")


def test_run_trains_the_model_that_its_configuration_says(small_images, classifier):
    train, test = small_images
    configuration = replace(TINY, seed=5, beta=0.5, trained_on="binarised", max_lr=1e-3)
    row = run(configuration)
    torch.manual_seed(5)
    model = models.mlp_vae(3)
    history = fit(model, train.x, test.x, 1, seed=5, beta=0.5, max_lr=1e-3, binarised=True, progress=False)
    options = {"seed": 5, "beta": 0.5, "trained_on": "binarised", "iw_samples": 7}
    expected = result_row(model, history, train.x, test.x, classifier, **options)
    timed = {"seconds", "digest", "python"}
    assert {k: v for k, v in row.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    assert row["digest"] == configuration.digest
    assert row["python"] == platform.python_version()


def test_a_run_repeated_gives_the_same_row(small_images):
    assert run(TINY) == run(TINY)


def test_the_row_of_an_auto_encoder_bears_its_name_and_no_divergence_or_bound(small_images):
    row = run(Configuration("conv_ae", 3, beta=0.0, n_epochs=1))
    assert row["architecture"] == "conv_ae"
    assert not [name for name in row if "kl" in name or "elbo" in name or name.startswith("iw_")]
    assert row["test_recon"] > 0
    assert row["test_squared_error"] > 0


def test_generation_is_scored_on_codes_of_the_prior_and_of_the_training_images(
    build, random_images, generator, classifier
):
    model, x_train, x_test = build(), random_images(60), random_images(40, 1)
    with torch.no_grad():
        model.encoder[-1].weight[:2] *= 50  # both coordinates follow the image
    scores = study.generation_scores(model, x_train, x_test, classifier, seed=3)
    source = generator(3)
    with torch.no_grad():
        codes = []
        for x in (x_train, x_test):
            mu, logvar = model.encode(x)
            codes.append(mu + torch.exp(logvar / 2) * torch.randn(mu.shape, generator=source))
        reference = features(classifier, x_test)
        for name, z in [("prior", torch.randn(60, 2, generator=source)), ("aggregated", codes[0])]:
            found = features(classifier, model.decode(z).sigmoid())
            assert scores[f"frechet_{name}"] == pytest.approx(frechet_distance(found, reference), rel=1e-3, abs=1e-3)
            assert scores[f"recognised_{name}"] == pytest.approx(recognised(classifier, found), abs=1e-4)
    assert scores["divergence_from_prior"] == pytest.approx(divergence_from_prior(*codes, seed=3), abs=1e-3)


def test_only_active_coordinates_are_compared_with_the_prior(build, random_images, classifier, monkeypatch):
    model = build(latent_dim=4)
    with torch.no_grad():  # mu of the second and the fourth coordinate no longer follows the image
        model.encoder[-1].weight[[1, 3]] = 0
        model.encoder[-1].weight[[0, 2]] *= 50
    sizes = []
    monkeypatch.setattr(
        study, "divergence_from_prior", lambda *codes, seed: sizes.extend(z.shape for z in codes) or 0.5
    )
    scores = study.generation_scores(model, random_images(60), random_images(40, 1), classifier, seed=3)
    assert sizes == [(60, 2), (40, 2)]
    assert scores["divergence_from_prior"] == 0.5
    with torch.no_grad():
        model.encoder[-1].weight[:4] = 0
    scores = study.generation_scores(model, random_images(60), random_images(40, 1), classifier, seed=3)
    assert scores["divergence_from_prior"] == 0
    assert len(sizes) == 2


def test_no_more_codes_are_decoded_than_there_are_test_images(build, random_images, classifier, monkeypatch):
    model, x_train, x_test = build(), random_images(60), random_images(40, 1)
    decoded = []
    real = model.decode
    monkeypatch.setattr(model, "decode", lambda z: decoded.append(len(z)) or real(z))
    monkeypatch.setattr(study, "N_GENERATED", 25)
    study.generation_scores(model, x_train, x_test, classifier, seed=3)
    assert decoded == [25, 25]


# --- the pictures


def test_the_pictures_are_those_of_the_trained_models(small_images, monkeypatch, tmp_path):
    train, test = small_images
    labelled = tuple(Images(images.x, torch.arange(200) % 10) for images in (train, test))
    monkeypatch.setattr(study, "_images", lambda: labelled)
    configurations = [Configuration("mlp", latent_dim, n_epochs=1) for latent_dim in (1, 3)]
    monkeypatch.setattr(study, "TABLES", {"04_study": [*configurations, replace(configurations[0], seed=1)]})
    study.save_pictures(tmp_path / "images.npz")
    with np.load(tmp_path / "images.npz") as pictures:
        assert set(pictures) == {f"mlp_{d}_{kind}" for d in (1, 3) for kind in ("train", "test", "prior", "axes")}
        assert {pictures[name].dtype for name in pictures} == {np.dtype("uint8")}
        model, _ = study._trained(configurations[1])
        with torch.no_grad():
            mu, logvar = model.encode(test.x)
            for name, x in [("train", train.x), ("test", test.x)]:
                # The first ten images are one of each class, in class order.
                expected = model.reconstruct(x[:10])[:, 0] * 255
                torch.testing.assert_close(torch.tensor(pictures[f"mlp_3_{name}"]).float(), expected, atol=0.51, rtol=0)
            order = kl_per_dim(mu, logvar).mean(dim=0).argsort(descending=True)
            z = mu[[2, 4, 7]].clone()
            for i, unit in enumerate([order[0], order[-1]]):
                moved = z.clone()
                moved[:, unit] = study.AXIS[-1]
                expected = model.decode(moved).sigmoid()[:, 0] * 255
                found = torch.tensor(pictures["mlp_3_axes"][:, i, -1]).float()
                torch.testing.assert_close(found, expected, atol=0.51, rtol=0)
        assert pictures["mlp_1_prior"].shape == pictures["mlp_3_prior"].shape == (study.DRAWS, 28, 28)


def test_models_of_all_sizes_decode_the_first_coordinates_of_the_same_draws(small_images, monkeypatch):
    train, test = small_images
    labelled = tuple(Images(images.x, torch.arange(200) % 10) for images in (train, test))
    monkeypatch.setattr(study, "_images", lambda: labelled)
    seen = []
    real = models.VAE.decode
    monkeypatch.setattr(models.VAE, "decode", lambda self, z: seen.append(z) or real(self, z))
    for latent_dim in (2, 5):
        study.pictures([Configuration("mlp", latent_dim, n_epochs=1)])
    by_size = {size: [z for z in seen if z.shape == (10, size)] for size in (2, 5)}
    assert any(torch.equal(a, b[:, :2]) for a in by_size[2] for b in by_size[5])


def test_a_model_trained_but_not_scored_is_not_trained_again(small_images, monkeypatch):
    first = run(TINY)

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(checkpoints, "fit", refuse)
    more = run(replace(TINY, iw_samples=20))
    assert more["test_neg_elbo"] == first["test_neg_elbo"]
    assert more["digest"] != first["digest"]


def test_a_model_that_ships_is_not_trained_again(small_images, n_trainings):
    train, test = small_images
    load_or_train(TINY.build, train.x, test.x, 1, folder=paths.CHECKPOINTS, progress=False)
    run(TINY)
    assert len(n_trainings) == 1


def test_ctrl_c_in_the_training_leaves_no_row(small_images, monkeypatch, table, ctrl_c):
    real = checkpoints.fit
    monkeypatch.setattr(checkpoints, "fit", lambda *args, **options: real(*args, **options | {"on_epoch": ctrl_c}))
    with pytest.raises(KeyboardInterrupt):
        run_study([TINY], table, progress=False)
    assert not table.exists()


# --- the table


@pytest.mark.parametrize(
    "pool",
    [
        lambda: None,
        lambda: ThreadPoolExecutor(2),
        lambda: ProcessPoolExecutor(2, get_context("spawn")),
    ],
    ids=["here", "threads", "processes"],
)
def test_every_executor_gives_the_same_rows_in_the_order_asked(pool, table):
    executor = pool()
    frame = run_study(GRID, table, executor, work=row_of, progress=False)
    if executor is not None:
        executor.shutdown()
    assert list(frame["digest"]) == [configuration.digest for configuration in GRID]
    assert list(frame["latent_dim"]) == [configuration.latent_dim for configuration in GRID]
    assert set(pd.read_csv(table)["digest"]) == set(frame["digest"])


def test_a_dask_cluster_gives_the_same_rows(table):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        workers = client.scheduler_info()["workers"]
        pids = set(client.run(os.getpid).values())
        frame = run_study(GRID, table, client.get_executor(), work=row_of, progress=False)
        more = run_study([*GRID, TINY], table, client.get_executor(), work=row_of, progress=False)
    assert len(workers) == len(pids) == 2
    assert os.getpid() not in pids
    expected = run_study(GRID, table.with_name("here.csv"), work=row_of, progress=False)
    pd.testing.assert_frame_equal(frame, expected)
    assert list(more["digest"]) == [*expected["digest"], TINY.digest]


def test_a_second_study_computes_only_what_is_new_and_keeps_the_old_rows_as_they_are(table):
    run_study(GRID[:3], table, work=row_of, progress=False)
    before = table.read_text().splitlines()
    calls = []
    frame = run_study(GRID[2:], table, work=lambda c: calls.append(c) or row_of(c), progress=False)
    assert calls == GRID[3:]
    assert list(frame["digest"]) == [configuration.digest for configuration in GRID[2:]]
    assert table.read_text().splitlines()[: len(before)] == before


def test_rows_that_another_process_adds_meanwhile_stay(table):
    def work(configuration):
        if configuration == GRID[1]:
            run_study(GRID[2:4], table, work=row_of, progress=False)
        return row_of(configuration)

    run_study(GRID[:2], table, work=work, progress=False)
    assert set(pd.read_csv(table)["digest"]) == {configuration.digest for configuration in GRID[:4]}


def test_a_digest_that_looks_like_a_number_is_none(table):
    configuration = Configuration("mlp", 1, 26)
    assert float(configuration.digest) > 0  # 7e4001661448
    frame = run_study([configuration], table, work=row_of, progress=False)
    assert list(frame["digest"]) == [configuration.digest]


def test_a_repeated_configuration_counts_once(table):
    calls = []
    frame = run_study([TINY, TINY], table, work=lambda c: calls.append(c) or row_of(c), progress=False)
    assert len(calls) == len(frame) == 1


def test_a_changed_configuration_is_never_taken_for_a_finished_one(table):
    run_study([TINY], table, work=row_of, progress=False)
    calls = []
    changed = replace(TINY, n_epochs=2)
    run_study([changed], table, work=lambda c: calls.append(c) or row_of(c), progress=False)
    assert calls == [changed]
    assert len(pd.read_csv(table)) == 2


def test_rows_may_have_columns_that_others_lack(table):
    run_study([GRID[0]], table, work=lambda c: row_of(c) | {"iw_nll": 90.5}, progress=False)
    frame = run_study(GRID[:2], table, work=row_of, progress=False)
    assert frame["iw_nll"].isna().tolist() == [False, True]


@pytest.mark.parametrize("executor", [None, "threads"])
def test_one_failure_is_told_at_the_end_and_costs_no_other_row(table, executor):
    def work(configuration):
        if configuration == GRID[1]:
            raise FloatingPointError("the loss is nan")
        return row_of(configuration)

    pool = ThreadPoolExecutor(2) if executor else None
    with pytest.raises(ExceptionGroup, match=f"1 of {len(GRID)} configurations failed") as caught:
        run_study(GRID, table, pool, work=work, progress=False)
    assert "the loss is nan" in str(caught.value.exceptions[0])
    assert len(pd.read_csv(table)) == len(GRID) - 1


@pytest.mark.parametrize("content", ["", "architecture,seed\nmlp,0\n", "digest,seed\nabc\n", "digest,seed\nabc,0,1\n"])
def test_a_file_of_something_else_is_refused_and_left_alone(table, content):
    table.write_text(content)
    if not content:
        run_study([TINY], table, work=row_of, progress=False)  # an empty file holds nothing to lose
        return
    with pytest.raises(ValueError, match=r"not a table of run_study, or is damaged"):
        run_study([TINY], table, work=row_of, progress=False)
    assert table.read_text() == content


def test_a_write_that_fails_leaves_the_old_table(table, monkeypatch):
    run_study(GRID[:2], table, work=row_of, progress=False)
    before = table.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run_study(GRID[:3], table, work=row_of, progress=False)
    assert table.read_text() == before
    assert [path.name for path in table.parent.iterdir()] == [table.name]


SCRIPT = """
from pathlib import Path
from tests.test_study import GRID, logged_row
from tme_utils.study import run_study
run_study(GRID, Path({table!r}), work=logged_row, progress=False)
"""


def test_killed_again_and_again_a_study_loses_no_row_and_repeats_none(table, tmp_path):
    calls = tmp_path / "calls"
    calls.touch()
    environment = os.environ | {"CALLS": str(calls)}
    kills = 0
    for _ in range(3 * len(GRID)):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(table=str(table))], cwd=paths.ROOT, env=environment
        )
        known = len(table.read_text().splitlines()) if table.exists() else 0
        while process.poll() is None and (len(table.read_text().splitlines()) if table.exists() else 0) < known + 2:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 2
    with table.open() as file:
        digests = [row["digest"] for row in csv.DictReader(file)]
    assert sorted(digests) == sorted(configuration.digest for configuration in GRID)
    # At each kill at most the one row being computed was lost; a finished one was never computed again.
    assert len(calls.read_text().splitlines()) <= len(GRID) + kills


# --- the command


def test_the_command_fills_the_table_of_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("TME_FIGURES", str(tmp_path))
    monkeypatch.setattr(study, "TABLES", {"09_test": GRID[:2]})
    monkeypatch.setattr(study, "run_study", partial(run_study, work=row_of, progress=False))
    for workers in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["study", "09_test", "--workers", workers])
        study.main()
        assert len(pd.read_csv(tmp_path / "09_test.csv")) == 2
        (tmp_path / "09_test.csv").unlink()


COMMAND = """
import sys
from functools import partial
from tests.test_study import GRID, endless_row
from tme_utils import study
if __name__ == "__main__":
    study.TABLES["09_test"] = GRID
    study.run_study = partial(study.run_study, work=endless_row, progress=False)
    sys.argv = ["study", "09_test", "--workers", "2"]
    study.main()
"""


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_the_workers_too(tmp_path):
    calls = tmp_path / "calls"
    calls.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=paths.ROOT,
        env=os.environ | {"CALLS": str(calls), "TME_FIGURES": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own: the terminal sends Ctrl-C to all its processes
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while len(calls.read_text().splitlines()) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert len(calls.read_text().splitlines()) == 2, error  # no other model has begun
    assert "KeyboardInterrupt" in error
    assert not (tmp_path / "09_test.csv").exists()


def test_the_command_of_the_study_draws_the_pictures_too(monkeypatch, tmp_path):
    monkeypatch.setenv("TME_FIGURES", str(tmp_path))
    monkeypatch.setattr(study, "TABLES", {"04_study": GRID[:2]})
    monkeypatch.setattr(study, "run_study", partial(run_study, work=row_of, progress=False))
    monkeypatch.setattr(study, "pictures", lambda shown: {c.digest: np.zeros(1, np.uint8) for c in shown})
    monkeypatch.setattr(sys, "argv", ["study", "04_study"])
    study.main()
    assert len(pd.read_csv(tmp_path / "04_study.csv")) == 2
    with np.load(tmp_path / "04_images.npz") as pictures:
        assert set(pictures) == {c.digest for c in GRID[:2] if c.seed == 0}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A complete ``04_study`` in a folder of its own; the list of what its command draws from now on."""
    monkeypatch.setenv("TME_FIGURES", str(tmp_path))
    monkeypatch.setattr(study, "TABLES", {"04_study": GRID[:2]})
    monkeypatch.setattr(study, "run_study", partial(run_study, work=row_of, progress=False))
    calls = []
    monkeypatch.setattr(study, "pictures", lambda shown: calls.append(shown) or {"mlp": np.zeros(1, np.uint8)})
    monkeypatch.setattr(sys, "argv", ["study", "04_study"])
    study.main()
    calls.clear()
    return calls


def test_pictures_of_models_already_in_the_table_are_not_drawn_again(drawn, tmp_path):
    study.main()
    assert drawn == []
    (tmp_path / "04_images.npz").unlink()
    study.main()
    assert drawn == [GRID[:2]]


def test_pictures_of_a_study_that_was_stopped_are_drawn_by_the_next(drawn, monkeypatch, ctrl_c):
    monkeypatch.setattr(study, "TABLES", {"04_study": GRID[:3]})
    with monkeypatch.context() as patch:
        patch.setattr(study, "run_study", lambda *args: [run_study(*args, work=row_of, progress=False), ctrl_c()])
        with pytest.raises(KeyboardInterrupt):
            study.main()
    study.main()
    assert drawn == [GRID[:3]]


def test_pictures_are_computed_before_their_file_is_opened(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "pictures", lambda _: {"files": np.array(len(list(tmp_path.iterdir())))})
    study.save_pictures(tmp_path / "images.npz")
    with np.load(tmp_path / "images.npz") as pictures:
        assert pictures["files"] == 0
