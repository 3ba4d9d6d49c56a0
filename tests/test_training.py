"""Recipe, fit, evaluate: what is learnt, what is seen on the way, and what stops it."""

import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tme_utils import training
from tme_utils.metrics import importance_weighted_log_likelihood
from tme_utils.training import Recipe, check_band, evaluate, fit, seeded, take_snapshots
from tme_utils.vae import elbo_terms

SHORT = Recipe(n_epochs=2, batch_size=16)


# --- the recipe


def test_equal_requests_are_equal_recipes():
    same = Recipe(n_epochs=np.int64(5), beta=1, max_lr=np.float64(0.004), batch_size=np.int32(128))
    assert {same} == {Recipe(n_epochs=5)}  # which can be a key
    assert Recipe() == Recipe(10, 4e-3, 1.0, False, 128, (0.9, 0.95), 0.1)  # the report's
    assert (type(same.n_epochs), type(same.beta), type(same.max_lr)) == (int, float, float)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(("n_epochs", (-1, 2.0)), ("batch_size", (0,)), ("max_lr", (0.0, math.inf, math.nan))),
        *(("beta", (-1.0, math.nan, math.inf)), ("warm_up", (1.0, -0.1))),
    ],
)
def test_a_recipe_refuses_what_cannot_be_done(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            Recipe(**{name: value})
    assert Recipe(n_epochs=0, beta=0, warm_up=0).warm_up == 0


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    recipe = Recipe(max_lr=2.0)
    rates = [recipe.learning_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == max(rates) == 2.0
    assert rates[55] == pytest.approx(2 * 45 / 90)
    assert rates[99] == pytest.approx(2 / 90)
    assert recipe.learning_rate(0, 1) == 2.0
    assert [recipe.learning_rate(step, 2) for step in (0, 1)] == [2.0, 2.0]
    slow = Recipe(max_lr=1.0, warm_up=0.5)
    assert [slow.learning_rate(step, 8) for step in range(9)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


# --- training


def test_fit_is_the_plain_loop_and_watching_changes_nothing(build, random_images, generator, probes, monkeypatch):
    monkeypatch.setattr(training, "best_device", lambda *_: torch.device("cpu"))
    x, recipe = random_images(40), Recipe(3, max_lr=1e-2, beta=0.5, binarised=True, batch_size=16, betas=(0.8, 0.9))
    model, plain = build(), build()
    history = fit(model, x, x[:9], recipe, seed=3, probes=probes, progress=False)
    optimizer, source, step = torch.optim.Adam(plain.parameters(), betas=(0.8, 0.9)), generator(3), 0
    for _ in range(3):
        for index in torch.randperm(40, generator=source).split(16):
            optimizer.param_groups[0]["lr"] = recipe.learning_rate(step, 9)
            optimizer.zero_grad()
            terms = elbo_terms(plain, torch.bernoulli(x[index], generator=source), generator=source)
            (terms.recon + 0.5 * terms.kl).mean().backward()
            optimizer.step()
            step += 1
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ([row["epoch"] for row in history.rows], history.interrupted) == ([0, 1, 2, 3], False)


def test_it_learns_and_repeats_itself(build, mnist_train, mnist_test, weights):
    x = mnist_train.x[:500]
    results = []
    for seed in ({}, {"seed": 0}, {"seed": 1}):
        model = build()
        history = fit(model, x, mnist_test.x[:200], Recipe(n_epochs=4, batch_size=32), **seed, progress=False)
        results.append((weights(model), history.rows))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
    first, last = results[0][1][0], results[0][1][-1]
    assert last["train_neg_elbo"] < first["train_neg_elbo"] - 250
    assert last["held_out_neg_elbo"] < first["held_out_neg_elbo"] - 250
    for row in results[0][1]:
        assert row["train_neg_elbo"] == pytest.approx(row["train_recon"] + row["train_kl"])


def test_curves_use_the_first_10_000_images_with_the_same_noise(build, random_images, monkeypatch):
    assert training.N_CURVE == 10_000
    monkeypatch.setattr(training, "N_CURVE", 7)
    x, held_out, model = random_images(20), random_images(15, 1), build()
    history = fit(model, x, held_out, SHORT, seed=4, progress=False)
    for name, images in [("train", x), ("held_out", held_out)]:
        averages = evaluate(model, images[:7], seed=4).averages()
        assert {term: history.rows[-1][f"{name}_{term}"] for term in averages} == pytest.approx(averages)


def test_snapshots_show_the_same_probes_at_every_epoch(build, random_images, probes, monkeypatch):
    monkeypatch.setattr(training, "best_device", lambda *_: torch.device("cpu"))
    model, x, epochs = build(), random_images(20), []
    start = take_snapshots(model, probes)
    history = fit(model, x, x, SHORT, probes=probes, on_epoch=lambda h: epochs.append(len(h.rows)), progress=False)
    assert epochs == [1, 2, 3]
    assert history.probes is probes
    shapes = {name: (*frames.shape[:2],) for name, frames in history.snapshots.items()}
    assert shapes == {"train": (3, 3), "held_out": (3, 4), "prior": (3, 5)}
    for name, end in take_snapshots(model, probes).items():
        assert torch.equal(history.snapshots[name][0], start[name])
        assert torch.equal(history.snapshots[name][-1], end)
    assert torch.equal(take_snapshots(model, probes)["prior"], model.decode(probes.z).sigmoid().detach())


def test_without_probes_there_are_rows_only(build, random_images, monkeypatch):
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    x, seen = random_images(20), []
    history = fit(build(), x, x, SHORT, on_epoch=seen.append, progress=False)
    assert (history.snapshots, history.probes, len(seen)) == ({}, None, 3)
    assert [row["seconds"] for row in history.rows] == [0, 1, 2]  # evaluations are not counted


def test_a_bar_is_drawn_only_if_asked(build, random_images, capsys):
    fit(build(), random_images(4), random_images(4), SHORT, progress=False)
    assert capsys.readouterr() == ("", "")
    fit(build(), random_images(4), random_images(4), SHORT)
    assert "2/2" in (said := capsys.readouterr().err)
    assert "nats" in said


def test_no_epoch_only_looks(build, random_images, weights):
    model, x = build(), random_images(20)
    before = weights(model)
    assert len(fit(model, x, x, Recipe(n_epochs=0), progress=False).rows) == 1
    assert torch.equal(before, weights(model))


def test_moments_that_shrink_for_ever_are_dropped_which_changes_no_weight(
    build, random_images, generator, weights, monkeypatch
):
    monkeypatch.setattr(training, "best_device", lambda *_: torch.device("cpu"))
    x, drop, results = random_images(400), training._drop_tiny_moments, []
    x[torch.randperm(400, generator=generator())[5:], :, 0] = 0  # ink in the uppermost row only in the first five steps
    for action in (drop, lambda _: None):
        model, calls = build(hidden=(2,)), []
        monkeypatch.setattr(training, "_drop_tiny_moments", lambda o, a=action, c=calls: c.append(o) or a(o))
        fit(model, x, x[:1], Recipe(n_epochs=1, batch_size=1, betas=(0.75, 0.75)), progress=False)
        assert len(calls) == 4
        moments = [state[name] for state in calls[0].state.values() for name in ("exp_avg", "exp_avg_sq")]
        n_denormals = sum(((m != 0) & (m.abs() < 1.2e-38)).sum().item() for m in moments)
        results.append((n_denormals, weights(model)))
    assert results[0][0] == 0 < results[1][0]
    assert torch.equal(results[0][1], results[1][1])


# --- what stops it


# The second epoch's first step, or the looking at epochs 0 and 1, which decodes five times at each.
@pytest.mark.parametrize(
    ("training", "nth", "n_rows"), [(True, 3, 2), (False, 1, 0), *((False, n, 1) for n in range(6, 11))]
)
def test_ctrl_c_keeps_whole_epochs_and_says_so(
    training, nth, n_rows, build, random_images, probes, at_call, ctrl_c, capsys
):
    model, x = build(), random_images(32)
    at_call(model.decoder, nth, ctrl_c, training)
    history = fit(model, x, x, SHORT, probes=probes, progress=False)
    assert (history.interrupted, [row["epoch"] for row in history.rows]) == (True, list(range(n_rows)))
    assert {len(frames) for frames in history.snapshots.values()} == ({n_rows} if n_rows else set())
    assert f"stopped by Ctrl-C after {max(0, n_rows - 1)} of 2 epochs" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_its_epoch(build, random_images, at_call):
    model, x = build(), random_images(32)
    at_call(model.encoder, 3, lambda: model.decoder[-2].bias.data.fill_(math.nan))
    with pytest.raises(FloatingPointError, match=r"after epoch 2 is nan; .* max_lr than 0.004"):
        fit(model, x, x, Recipe(batch_size=16), progress=False)
    with pytest.raises(FloatingPointError, match=r"after epoch 0 is nan; other initial weights"):
        fit(model, x, x, Recipe(batch_size=16), progress=False)
    with pytest.raises(FloatingPointError, match="after epoch 1"):  # the last step broke it
        fit(build(), x, x, Recipe(n_epochs=1, max_lr=1e30), progress=False)


def test_bad_images_are_told_before_anything_else(build, random_images, monkeypatch):
    monkeypatch.setattr(training, "N_CURVE", 2)  # beyond those that are evaluated too
    good = random_images(4)
    bad = torch.cat([good, 255 * good])
    for train, held_out in [(bad, good), (good, bad), (good[:0], good)]:
        with pytest.raises(ValueError, match=r"pixels must lie|must be a tensor of floats"):
            fit(build(), train, held_out, SHORT, progress=False)
    with pytest.raises(ValueError, match="pixels must lie"):
        evaluate(build(), bad)


# --- evaluation, seeds, devices, bands


def test_evaluation_depends_on_the_seed_and_not_on_the_batches(build, random_images, generator, monkeypatch):
    model, x = build().double(), random_images(23, dtype=torch.float64)
    terms = evaluate(model, x, seed=5)
    eps = torch.randn(23, 2, generator=generator(5), dtype=torch.float64)
    torch.testing.assert_close(terms.recon, elbo_terms(model, x, eps).recon)
    torch.testing.assert_close(terms.kl, elbo_terms(model, x, eps).kl)
    for at_once in (1, 7, 23):
        monkeypatch.setattr(training, "N_AT_ONCE", at_once)
        torch.testing.assert_close(evaluate(model, x, seed=5).recon, terms.recon)
    assert not torch.equal(evaluate(model, x, seed=6).recon, terms.recon)
    assert torch.equal(evaluate(model, x, seed=0).recon, evaluate(model, x).recon)
    assert not terms.recon.requires_grad


def test_only_steps_are_in_training_mode_and_mode_and_generator_are_left_as_they_were(build, random_images, probes):
    model, x, modes = build(), random_images(3), []
    model.encoder.register_forward_pre_hook(lambda network, _: modes.append(network.training))
    state = torch.get_rng_state()
    for mode in (True, False):
        model.train(mode)
        evaluate(model, x)
        take_snapshots(model, probes)
        fit(model, x, x, Recipe(n_epochs=1), progress=False)
        assert model.training is mode
    assert torch.equal(state, torch.get_rng_state())
    # One call of the encoder to evaluate, two for the snapshots; in ``fit`` two, the only step, and two again.
    assert modes == 2 * [False, False, False, False, False, True, False, False]


def test_seeding_gives_the_generator_back_and_leaves_accelerators_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)  # a call would fail
    monkeypatch.setattr(torch, "manual_seed", None)
    state = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(3)
    with pytest.raises(ZeroDivisionError), seeded(3):
        raise ZeroDivisionError(torch.rand(3))
    assert torch.equal(state, torch.get_rng_state())
    with seeded(3):
        assert torch.equal(torch.rand(3), first)


def draw_slowly(seed):
    with seeded(seed):
        first = torch.randn(3)
        time.sleep(0.01)  # another thread may run
        return torch.cat([first, torch.randn(3)])


def test_threads_that_seed_at_once_draw_what_they_draw_alone():
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw_slowly, range(4)))
    assert all(torch.equal(drawn, draw_slowly(seed)) for seed, drawn in enumerate(together))
    assert not torch.equal(*together[:2])
    with seeded(0):  # a block may hold another
        assert torch.equal(torch.cat([torch.randn(3), 0 * draw_slowly(1)[:0], torch.randn(3)]), together[0])


def test_float64_stays_off_an_accelerator_without_it(monkeypatch):
    monkeypatch.delenv("TME_DEVICE", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert training.best_device(torch.float64).type == "cpu"
    assert training.best_device().type == "mps"
    monkeypatch.setenv("TME_DEVICE", "cpu")  # asked for: a GPU may be too old, or somebody else's
    assert training.best_device().type == "cpu"
    monkeypatch.delenv("TME_DEVICE")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert training.best_device().type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_trains_and_scores_as_the_cpu_does(build, random_images, generator, monkeypatch):
    x, scores = random_images(64), {}
    for device in ("cuda", "cpu"):
        monkeypatch.setenv("TME_DEVICE", device)
        model = build()
        row = fit(model, x, x, SHORT, progress=False).rows[-1]
        here = torch.device(device)
        with training.on_device(model, here):
            bound = importance_weighted_log_likelihood(model, x.to(here), 4, generator())
        scores[device] = [row["train_neg_elbo"], -bound.mean().item()]
    assert scores["cuda"] == pytest.approx(scores["cpu"], rel=0.05)  # another order of images, and other noise


def test_a_model_is_lent_and_comes_back_whatever_happens(build, monkeypatch):
    model, devices = build(), []
    monkeypatch.setattr(model, "to", lambda device: devices.append(device.type) or model)
    with pytest.raises(ZeroDivisionError), training.on_device(model, torch.device("meta")):
        raise ZeroDivisionError
    assert devices == ["meta", "cpu"]


def test_a_band_prints_its_number_and_holds(capsys):
    check_band("test −ELBO", 103.4, 103.8, 1.0)
    check_band("share", -0.0623, -0.07, 0.05)
    assert capsys.readouterr().out == (
        "test −ELBO ≈ 103.40, within 103.8 ± 1.0\nshare ≈ −0.062, within -0.07 ± 0.05\n".replace("-", "−")
    )
    for value in (104.9, 102.7, math.nan):
        with pytest.raises(AssertionError, match=r"test −ELBO not within 103.8 ± 1.0, got"):
            check_band("test −ELBO", value, 103.8, 1.0)
