"""From configurations to rows, from rows to a table: any executor, several writers, and the command line."""

import os
import platform
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from tables import study as tables
from tme_utils import data, generation, paths, study
from tme_utils.checkpoints import load_or_train
from tme_utils.priors import Sharper
from tme_utils.study import Configuration, fill, result_row, run
from tme_utils.training import Recipe, fit, seeded
from tme_utils.vae import kl_per_dim, mlp_vae

TINY = Configuration("mlp", 3, recipe=Recipe(n_epochs=1), iw_samples=7)
# Jobs that cost nothing and that any process can unpickle. One key looks like a number.
JOBS = {key: partial(dict, latent_dim=i, value=0.1 * i) for i, key in enumerate(["a", "7e4001661448", "c", "d", "e"])}

# --- configurations


@pytest.mark.parametrize(
    ("field", "value"),
    [("architecture", "gan"), ("latent_dim", 2.0), ("seed", -1), ("iw_samples", -5), ("architecture", "mlp_ae")],
)
def test_what_cannot_be_is_named(field, value):
    with pytest.raises(ValueError, match=rf"{value} has no KL term|{field} must be .*{value}"):
        replace(TINY, **{field: value})


def test_every_field_and_the_layers_change_the_key_which_leaves_the_noise_alone(monkeypatch):
    others = {"architecture": "conv", "latent_dim": 4, "seed": 1, "recipe": Recipe(n_epochs=2), "iw_samples": 8}
    others |= {"objective": Sharper()}
    assert others.keys() == {field.name for field in fields(Configuration)}
    one, other = Configuration("mlp", 20), Configuration("mlp", np.int64(20), np.int32(0), iw_samples=np.int8(0))
    assert (one, one.key) == (other, other.key)  # integers of any type are integers
    torch.manual_seed(0)
    keys = {TINY.key, *(replace(TINY, **{name: value}).key for name, value in others.items())}
    monkeypatch.setitem(study.ARCHITECTURES, "mlp", partial(mlp_vae, hidden=(401,)))
    assert len(keys | {TINY.key}) == 8
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", study.ARCHITECTURES)
def test_a_row_names_its_architecture_as_its_configuration_does(name):
    assert study.ARCHITECTURES[name](4).config["architecture"] == name


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_committed_table_holds_every_row_asked_of_several_seeds(name):
    known, seeds = set(pd.read_csv(paths.ROOT / "figures" / f"{name}.csv", dtype={"digest": str})["digest"]), {}
    assert not [configuration for configuration in tables.TABLES[name] if configuration.key not in known]
    for configuration in tables.TABLES[name]:
        seeds.setdefault(replace(configuration, seed=0, iw_samples=0), set()).add(configuration.seed)
    assert min(map(len, seeds.values())) >= (2 if name == "03_literature" else 3)


# --- a row

COLUMNS = [
    *("architecture", "latent_dim", "beta", "max_lr", "trained_on", "n_epochs", "seed", "n_parameters", "seconds"),
    *("threads", "device", "torch", "train_recon", "train_kl", "train_neg_elbo", "test_recon", "test_kl"),
    *("test_neg_elbo", "test_neg_elbo_se", "test_squared_error", "active_units", "kl_per_dim", "binarised_neg_elbo"),
    *("iw_nll", "iw_nll_se", "iw_samples", "iw_images"),
]


@torch.no_grad()
def slow_row(model, x_train, x_test, seed, iw_samples):
    """The scores by their definitions, image by image, and the KL divergence of each coordinate."""
    prior, row = Normal(torch.zeros(2), torch.ones(2)), {}
    sources = {name: torch.Generator().manual_seed(seed) for name in ("pixels", "train", "binarised", "test", "iw")}

    def look(image, eps):
        mu, logvar = model.encode(image[None])
        q = Normal(mu[0], torch.exp(logvar[0] / 2))
        z = q.mean + q.stddev * eps
        log_lik = Bernoulli(logits=model.decode(z), validate_args=False).log_prob(image).sum(dim=(1, 2, 3))
        return q, log_lik, log_lik + (prior.log_prob(z) - q.log_prob(z)).sum(dim=1)

    binarised = torch.bernoulli(x_test, generator=sources["pixels"])
    for split, x in {"train": x_train, "binarised": binarised, "test": x_test}.items():
        noise = torch.randn(len(x), 1, 2, generator=sources[split])
        qs, log_lik, _ = zip(*map(look, x, noise), strict=True)
        recon, kl = -torch.cat(log_lik), torch.stack([kl_divergence(q, prior) for q in qs])
        neg_elbo = recon + kl.sum(dim=1)
        row |= {f"{split}_recon": recon.mean(), f"{split}_kl": kl.sum() / len(x), f"{split}_neg_elbo": neg_elbo.mean()}
    mu = torch.stack([q.mean for q in qs])
    row["test_neg_elbo_se"] = neg_elbo.std() / len(x) ** 0.5
    row["test_squared_error"] = (model.decode(mu).sigmoid() - x).square().sum() / len(x)
    row["active_units"] = (mu.var(dim=0) > 0.01).sum()
    log_w = [look(image, torch.randn(iw_samples, 2, generator=sources["iw"]))[2] for image in binarised]
    bounds = torch.stack(log_w).double().exp().mean(dim=1).log()
    row |= {"iw_nll": -bounds.mean(), "iw_nll_se": bounds.std() / len(x) ** 0.5}
    return {name: value.item() for name, value in row.items()}, sorted(kl.mean(dim=0).tolist(), reverse=True)


def test_the_row_says_what_was_trained_and_each_score_equals_its_definition(build, random_images):
    model, x_train, x_test = build(), random_images(12), random_images(10, 1)
    recipe = Recipe(n_epochs=2, max_lr=1e-3, beta=0.5, binarised=True)
    history = fit(model, x_train, x_test, recipe, progress=False)
    row = result_row(model, history, x_train, x_test, recipe, seed=4, iw_samples=9)
    assert list(row) == COLUMNS
    n_parameters = 784 * 16 + 16 + 16 * 4 + 4 + 2 * 16 + 16 + 16 * 784 + 784
    assert [row[name] for name in COLUMNS[:8]] == ["mlp", 2, 0.5, 1e-3, "binarised", 2, 4, n_parameters]
    assert [row[name] for name in COLUMNS[-2:]] == [9, 10]
    expected, kl = slow_row(model, x_train, x_test, 4, 9)
    assert expected.keys() - row.keys() == {"binarised_recon", "binarised_kl"}
    for name in expected.keys() & row.keys():
        assert row[name] == pytest.approx(expected[name], abs=3e-4), name
    assert [float(value) for value in row["kl_per_dim"].split()] == pytest.approx(kl, abs=1e-4)


@pytest.fixture
def small_images(monkeypatch, tmp_path, random_images):
    """A study over 200 random images, an untrained classifier, and checkpoints in a temporary folder."""
    train, test = (data.Images(random_images(200, seed), torch.arange(200) % 10) for seed in (1, 2))
    with seeded(9):
        classifier = generation.DigitClassifier()
    for module in (study, tables):
        monkeypatch.setattr(module, "images", lambda: (train, test))
    monkeypatch.setattr(data, "load_mnist", lambda split: test if split == "test" else train)
    monkeypatch.setattr(generation, "shipped_classifier", lambda: classifier)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")
    return train, test


def test_run_trains_what_its_configuration_says_once_whatever_is_scored(small_images, n_trainings):
    (train, test), recipe = small_images, Recipe(n_epochs=1, beta=0.5, max_lr=1e-3, binarised=True)
    row = run(replace(TINY, seed=5, recipe=recipe))
    fewer = run(replace(TINY, seed=5, recipe=recipe, iw_samples=0))
    assert len(n_trainings) == 1
    model, history = load_or_train(partial(mlp_vae, 3), recipe, seed=5, folder=paths.CHECKPOINTS / "mine")
    expected = result_row(model, history, train.x, test.x, recipe, seed=5, iw_samples=7)
    ours = {"python": platform.python_version(), "processor": study.processor()}
    generated = generation.generation_scores(model, train.x, test.x, seed=5)
    assert row | {"seconds": 0} == expected | generated | ours | {"seconds": 0}
    assert fewer == {name: value for name, value in row.items() if not name.startswith("iw")}
    bare = run(replace(TINY, seed=5, recipe=recipe), generation=False)
    assert bare == {name: value for name, value in row.items() if name not in generated}


def test_the_row_of_an_auto_encoder_has_no_divergence_and_no_bound(small_images):
    row = run(Configuration("conv_ae", 3, recipe=Recipe(n_epochs=1, beta=0)))
    assert set(COLUMNS) - row.keys() == {n for n in COLUMNS if "kl" in n or "elbo" in n or n.startswith("iw")}
    assert row["architecture"] == "conv_ae"


def test_the_pictures_are_those_of_the_trained_models_drawn_by_the_executor(small_images, monkeypatch, tmp_path):
    (train, test), threads, real = small_images, set(), tables.pictures
    monkeypatch.setattr(tables, "pictures", lambda c: threads.add(threading.current_thread().name) or real(c))
    configurations = [replace(TINY, latent_dim=d) for d in (1, 3)]
    with ThreadPoolExecutor(1, "pool") as executor:
        tables.save_pictures(tmp_path / "images.npz", configurations, executor)
    assert threads == {"pool_0"}
    draws = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).T  # each model takes the first coordinates
    with np.load(tmp_path / "images.npz") as pictures, torch.no_grad():
        of_models = {f"mlp_{d}_{kind}" for d in (1, 3) for kind in ("train", "test", "prior", "axes")}
        assert set(pictures) == {"axis"} | of_models
        assert pictures["axis"].tolist() == [-3, -2, -1, 0, 1, 2, 3]
        for configuration in configurations:
            model, d = configuration.trained()[0], configuration.latent_dim
            mu, logvar = model.encode(test.x)
            order = kl_per_dim(mu, logvar).mean(dim=0).argsort(descending=True)
            axes = mu[[2, 4, 7], None, None].repeat(1, 2, 7, 1)
            for i, unit in enumerate([order[0], order[-1]]):
                axes[:, i, :, unit] = torch.arange(-3.0, 4)
            codes = {"train": model.encode(train.x[:10])[0], "test": mu[:10], "prior": draws[:, :d], "axes": axes}
            for name, z in codes.items():
                found, expected = pictures[f"mlp_{d}_{name}"], 255 * model.decode(z).sigmoid().squeeze(-3)
                assert found.dtype == np.uint8
                torch.testing.assert_close(torch.tensor(found).float(), expected, atol=0.51, rtol=0)


# --- a table


@pytest.fixture
def table(tmp_path):
    return tmp_path / "new" / "table.csv"


FAILS = partial(int, "no number")
POOLS = {
    "here": nullcontext,
    "threads": partial(ThreadPoolExecutor, 2),
    "processes": partial(ProcessPoolExecutor, 2, get_context("spawn")),
}


@pytest.mark.parametrize("pool", POOLS)
def test_each_row_is_computed_once_in_the_order_asked_and_a_failure_costs_no_other(pool, table):
    known = dict.fromkeys(list(JOBS)[:2], FAILS)  # what is in the table is not computed
    with POOLS[pool]() as executor:
        fill(table, {key: JOBS[key] for key in known}, executor, progress=False)
        before = table.read_bytes().splitlines()
        frame = fill(table, dict(reversed(JOBS.items())) | known, executor, progress=False)
        with pytest.raises(Exception, match="1 of 2 rows failed") as caught:
            fill(table, JOBS | {"bad": FAILS, "more": partial(dict, iw_nll=90.5)}, executor, progress=False)
    assert list(frame["digest"]) == list(reversed(JOBS))
    assert list(frame["latent_dim"]) == [4, 3, 2, 1, 0]
    assert "no number" in str(caught.value.exceptions[0])
    assert fill(table, {"more": FAILS}, progress=False)["iw_nll"].item() == 90.5  # its row was written all the same
    after = table.read_bytes().splitlines()
    assert after[: len(before)] == [before[0] + b",iw_nll", *(line + b"," for line in before[1:])]


def test_a_dask_cluster_gives_the_same_rows(table):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert os.getpid() not in client.run(os.getpid).values()
        frame = fill(table, JOBS, client.get_executor(), progress=False)
    pd.testing.assert_frame_equal(frame, fill(table.with_name("here.csv"), JOBS, progress=False))


def test_two_writers_of_one_table_lose_no_row(table, monkeypatch):
    def slowly(path, read=study.read_rows):
        rows = read(path)
        time.sleep(0.01)  # the other may write meanwhile
        return rows

    monkeypatch.setattr(study, "read_rows", slowly)
    parts = [{f"{name}{i}": partial(dict, value=i) for i in range(8)} for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        frames = list(pool.map(lambda jobs: fill(table, jobs, progress=False), parts))
    assert [list(frame["digest"]) for frame in frames] == [list(jobs) for jobs in parts]
    assert sorted(pd.read_csv(table)["digest"]) == sorted(parts[0] | parts[1])


@pytest.mark.parametrize("content", ["architecture,seed\nmlp,0\n", "digest,seed\nabc\n", "digest,seed\nabc,0,1\n"])
def test_a_file_of_something_else_is_refused_and_left_alone(table, content):
    table.parent.mkdir()
    table.write_text(content)
    with pytest.raises(ValueError, match=r"table.csv has no whole column ``digest``, or is damaged"):
        fill(table, JOBS, progress=False)
    assert table.read_text() == content


# --- the command line


def test_the_command_fills_its_table_and_draws_the_pictures_that_are_missing(monkeypatch, tmp_path, ctrl_c):
    grid = [Configuration("mlp", d, seed, Recipe(beta=beta)) for d in (1, 2) for seed in (0, 1) for beta in (1, 2)]
    drawn, pools = [], []
    monkeypatch.setenv("TME_FIGURES", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5, 6, 7}, raising=False)
    monkeypatch.setattr(sys, "argv", ["study", "04_study", "--workers", "2"])
    # Threads, which see what is patched here, instead of processes.
    monkeypatch.setattr(tables, "ProcessPoolExecutor", lambda n, *a: pools.append((n, *a[1:])) or ThreadPoolExecutor(n))
    monkeypatch.setattr(tables, "run", lambda configuration, generation: {"seed": configuration.seed + generation - 1})
    monkeypatch.setattr(tables, "pictures", lambda c: drawn.append(c) or {c.key: np.zeros(1, np.uint8)})
    monkeypatch.setattr(tables, "TABLES", {"04_study": grid[:4]})
    tables.main()
    tables.main()
    assert pools == [(2, tables._begin_worker, (3,))] * 2  # two processes of three threads, on the six cores allowed
    assert sorted(pd.read_csv(tmp_path / "04_study.csv")["seed"]) == [0, 0, 1, 1]
    assert drawn == [grid[0]]
    # Rows that are new make the pictures old, also if the command is stopped before it draws.
    monkeypatch.setattr(tables, "TABLES", {"04_study": grid})
    with monkeypatch.context() as patch:
        patch.setattr(tables, "save_pictures", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tables.main()
    tables.main()
    assert drawn[1:] == [grid[0], grid[4]]
