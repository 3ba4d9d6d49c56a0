"""Recipe, fit, evaluate: what is learnt, what is seen on the way, and what stops it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tme_utils import training
from tme_utils.training import Recipe, check_band, evaluate, fit, seeded, take_snapshots
from tme_utils.vae import elbo_terms

SHORT = Recipe(n_epochs=2, batch_size=16)


# --- the recipe


def test_equal_requests_are_equal_recipes():
    same = Recipe(n_epochs=np.int64(5), beta=1, max_lr=np.float64(0.004), batch_size=np.int32(128))
    assert same == Recipe(n_epochs=5)
    assert (type(same.n_epochs), type(same.beta), type(same.max_lr)) == (int, float, float)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_epochs": -1},
        {"n_epochs": 2.0},
        {"batch_size": 0},
        {"max_lr": 0.0},
        {"max_lr": math.inf},
        {"beta": -1.0},
        {"beta": math.nan},
        {"beta": math.inf},
        {"warm_up": 1.0},
        {"warm_up": -0.1},
    ],
)
def test_a_recipe_refuses_what_cannot_be_done(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    recipe = Recipe(max_lr=2.0)
    rates = [recipe.learning_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == max(rates) == 2.0
    assert rates[55] == pytest.approx(2 * 45 / 90)
    assert rates[99] == pytest.approx(2 / 90)
    assert recipe.learning_rate(0, 1) == 2.0
    assert [recipe.learning_rate(step, 2) for step in (0, 1)] == [2.0, 2.0]


# --- training


def test_fit_is_the_plain_loop(build, random_images, generator):
    x, recipe = random_images(40), Recipe(n_epochs=3, batch_size=16, max_lr=1e-2, beta=0.5, betas=(0.8, 0.9))
    model, plain = build(), build()
    history = fit(model, x, x, recipe, seed=3, progress=False)
    optimizer, source, step = torch.optim.Adam(plain.parameters(), betas=(0.8, 0.9)), generator(3), 0
    for _ in range(3):
        for index in torch.randperm(40, generator=source).split(16):
            optimizer.param_groups[0]["lr"] = recipe.learning_rate(step, 9)
            optimizer.zero_grad()
            terms = elbo_terms(plain, x[index], generator=source)
            (terms.recon + 0.5 * terms.kl).mean().backward()
            optimizer.step()
            step += 1
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [row["epoch"] for row in history.rows] == [0, 1, 2, 3]


def test_it_learns_and_repeats_itself(build, mnist_train, mnist_test, weights):
    x = mnist_train.x[:500]
    results = []
    for seed in (0, 0, 1):
        model = build()
        history = fit(model, x, mnist_test.x[:200], Recipe(n_epochs=4, batch_size=32), seed=seed, progress=False)
        results.append((weights(model), history.rows))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
    first, last = results[0][1][0], results[0][1][-1]
    assert last["train_neg_elbo"] < first["train_neg_elbo"] - 250
    assert last["held_out_neg_elbo"] < first["held_out_neg_elbo"] - 250
    for row in results[0][1]:
        assert row["train_neg_elbo"] == pytest.approx(row["train_recon"] + row["train_kl"])
    assert [row["seconds"] for row in results[0][1]] == sorted(row["seconds"] for row in results[0][1])


def test_binarised_images_are_drawn_anew_in_each_step(build, monkeypatch):
    x, seen = torch.full((32, 1, 28, 28), 0.5), []
    monkeypatch.setattr(training, "elbo_terms", lambda m, x, **k: seen.append(x) or elbo_terms(m, x, **k))
    fit(build(), x, x[:1], Recipe(n_epochs=2, batch_size=32, binarised=True), progress=False)
    steps = [images for images in seen if len(images) == 32 and images.unique().tolist() == [0, 1]]
    assert len(steps) == 2
    assert not torch.equal(*steps)
    assert all(abs(images.mean() - 0.5) < 0.02 for images in steps)


def test_curves_use_the_first_10_000_images_with_the_same_noise(build, random_images, monkeypatch):
    monkeypatch.setattr(training, "N_CURVE", 7)
    x, held_out, model = random_images(20), random_images(15, 1), build()
    history = fit(model, x, held_out, SHORT, seed=4, progress=False)
    for name, images in [("train", x), ("held_out", held_out)]:
        averages = evaluate(model, images[:7], seed=4).averages()
        assert {term: history.rows[-1][f"{name}_{term}"] for term in averages} == pytest.approx(averages)


def test_snapshots_show_the_same_probes_at_every_epoch(build, random_images, probes):
    model, x, epochs = build(), random_images(20), []
    start = take_snapshots(model, probes)
    history = fit(model, x, x, SHORT, probes=probes, on_epoch=lambda h: epochs.append(len(h.rows)), progress=False)
    assert epochs == [1, 2, 3]
    assert history.probes is probes
    assert {name: tuple(frames.shape[:2]) for name, frames in history.snapshots.items()} == {
        "train": (3, 3),
        "held_out": (3, 4),
        "prior": (3, 5),
    }
    for name, end in take_snapshots(model, probes).items():
        assert torch.equal(history.snapshots[name][0], start[name])
        assert torch.equal(history.snapshots[name][-1], end)
    assert torch.equal(take_snapshots(model, probes)["prior"], model.decode(probes.z).sigmoid().detach())


def test_without_probes_there_are_rows_only(build, random_images):
    x, seen = random_images(20), []
    history = fit(build(), x, x, SHORT, on_epoch=seen.append, progress=False)
    assert (history.snapshots, history.probes, len(seen)) == ({}, None, 3)


def test_no_epoch_only_looks(build, random_images, weights):
    model, x = build(), random_images(20)
    before = weights(model)
    assert len(fit(model, x, x, Recipe(n_epochs=0), progress=False).rows) == 1
    assert torch.equal(before, weights(model))


@pytest.mark.parametrize("drops", [True, False])
def test_moments_of_weights_without_gradient_do_not_become_denormal(drops):
    parameter = nn.Parameter(torch.full((4,), 0.1))
    optimizer = torch.optim.Adam([parameter], betas=Recipe().betas)
    denormals = 0
    for step in range(1200):
        parameter.grad = torch.full((4,), 1e-3 if step == 0 else 0.0)
        optimizer.step()
        moment = optimizer.state[parameter]["exp_avg"]
        denormals += int(((moment != 0) & (moment.abs() < 1.2e-38)).sum())
        if drops and (step + 1) % 100 == 0:
            before = parameter.clone()
            training._drop_tiny_moments(optimizer)
            optimizer.step()
            assert torch.equal(before, parameter) or step < 200  # what is dropped changes no weight
    assert (denormals == 0) == drops


def test_fit_drops_tiny_moments_now_and_then(build, random_images, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "_drop_tiny_moments", calls.append)
    fit(build(), random_images(50), random_images(1), Recipe(n_epochs=5, batch_size=1), progress=False)
    assert len(calls) == 2


def test_tiny_moments_are_dropped_and_others_kept():
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state[parameter]
    state["exp_avg"][:] = torch.tensor([1e-38, -1e-31, -1e-29])
    state["exp_avg_sq"][:] = torch.tensor([0.0, 1e-40, 1e-29])
    training._drop_tiny_moments(optimizer)
    assert state["exp_avg"].tolist() == pytest.approx([0, 0, -1e-29], rel=1e-6, abs=0)
    assert state["exp_avg_sq"].tolist() == pytest.approx([0, 0, 1e-29], rel=1e-6, abs=0)


# --- what stops it


def test_ctrl_c_keeps_whole_epochs_and_says_so(build, random_images, at_call, ctrl_c, probes, capsys):
    model, x = build(), random_images(32)
    at_call(model.encoder, 3, ctrl_c)  # the first step of the second epoch
    history = fit(model, x, x, Recipe(n_epochs=5, batch_size=16), probes=probes, progress=False)
    assert history.interrupted
    assert [row["epoch"] for row in history.rows] == [0, 1]
    assert {len(frames) for frames in history.snapshots.values()} == {2}
    assert "stopped by Ctrl-C after 1 of 5 epochs" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_its_step(build, random_images, at_call):
    model, x = build(), random_images(32)

    def spoil():
        with torch.no_grad():
            model.decoder[-2].bias[0] = math.nan

    at_call(model.encoder, 4, spoil)
    with pytest.raises(FloatingPointError, match=r"epoch 2, step 2 of 2: the loss is nan; .* max_lr than 0.004"):
        fit(model, x, x, Recipe(batch_size=16), progress=False)
    with pytest.raises(FloatingPointError, match=r"before the first step.*initial weights"):
        fit(model, x, x, Recipe(batch_size=16), progress=False)


def test_bad_images_are_told_before_anything_else(build, random_images):
    good, bad = random_images(4), 255 * random_images(4)
    for train, held_out in [(bad, good), (good, bad), (good[:0], good)]:
        with pytest.raises(ValueError, match=r"pixels must lie|at least one"):
            fit(build(), train, held_out, SHORT, progress=False)
    with pytest.raises(ValueError, match="pixels must lie"):
        evaluate(build(), bad)


# --- evaluation, seeds, devices, bands


def test_evaluation_depends_on_the_seed_and_not_on_the_batches(build, random_images, generator):
    model, x = build(), random_images(23)
    terms = evaluate(model, x, seed=5)
    eps = torch.randn(23, 2, generator=generator(5))
    torch.testing.assert_close(terms.recon, elbo_terms(model, x, eps).recon)
    torch.testing.assert_close(terms.kl, elbo_terms(model, x, eps).kl)
    for batch_size in (1, 7, np.int64(23)):
        torch.testing.assert_close(evaluate(model, x, seed=5, batch_size=batch_size).recon, terms.recon)
    assert not torch.equal(evaluate(model, x, seed=6).recon, terms.recon)
    assert not terms.recon.requires_grad


def test_evaluation_and_snapshots_leave_mode_and_generator_as_they_were(build, random_images, probes):
    model = build()
    state = torch.get_rng_state()
    for training_mode in (True, False):
        model.train(training_mode)
        evaluate(model, random_images(3))
        take_snapshots(model, probes)
        fit(model, random_images(3), random_images(3), Recipe(n_epochs=1), progress=False)
        assert model.training is training_mode
    assert torch.equal(state, torch.get_rng_state())


def test_layers_that_differ_in_training_are_evaluated_without_it(build, random_images):
    model = build()
    model.encoder.append(nn.Dropout(0.9))
    model.train()
    assert torch.equal(evaluate(model, random_images(8)).kl, evaluate(model, random_images(8)).kl)
    modes = []
    model.encoder[-1].register_forward_pre_hook(lambda layer, _: modes.append(layer.training))
    fit(model, random_images(8), random_images(8), Recipe(n_epochs=1), progress=False)
    assert modes == [False, False, True, False, False]


def test_seeding_gives_the_generator_back_and_leaves_accelerators_alone(monkeypatch):
    def untouchable(*_):
        raise AssertionError("an accelerator's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", untouchable)
    monkeypatch.setattr(torch, "manual_seed", untouchable)
    state = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(3)
    with pytest.raises(ZeroDivisionError), seeded(3):
        assert torch.equal(torch.rand(3), first)
        raise ZeroDivisionError
    assert torch.equal(state, torch.get_rng_state())


def test_float64_stays_off_an_accelerator_without_it(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    assert training.best_device(torch.float64).type == "cpu"
    assert training.best_device().type == "mps"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert training.best_device().type == "cpu"


def test_a_model_is_lent_and_comes_back_whatever_happens(build):
    model = build()
    with pytest.raises(ZeroDivisionError), training.on_device(model, torch.device("meta")):
        assert next(model.parameters()).is_meta
        model.to_empty(device="cpu")
        raise ZeroDivisionError
    assert next(model.parameters()).device.type == "cpu"


def test_a_band_prints_itself_and_holds(capsys):
    check_band("test −ELBO", 103.4, 103.8, 1.0)
    assert capsys.readouterr().out == "test −ELBO: within 103.8 ± 1.0\n"
    for value in (104.9, 102.7, math.nan):
        with pytest.raises(AssertionError, match=r"not test −ELBO: within 103.8 ± 1.0, got"):
            check_band("test −ELBO", value, 103.8, 1.0)
