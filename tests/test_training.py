import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal
from torch.testing import assert_close

from tme_utils import training
from tme_utils.elbo import ElboTerms, bernoulli_log_prob, elbo_terms
from tme_utils.training import Probes, best_device, evaluate, fit, learning_rate, seeded

# --- seeds


def draw_slowly(seed):
    with seeded(seed):
        first = torch.randn(3)
        time.sleep(0.01)  # another thread may run
        return torch.cat([first, torch.randn(3)])


def test_threads_that_seed_at_once_draw_what_they_draw_alone():
    alone = [draw_slowly(seed) for seed in range(8)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw_slowly, range(8)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seeded_block_may_hold_another():
    with seeded(1):
        first = torch.randn(3)
        draw_slowly(2)
        second = torch.randn(3)
    assert torch.equal(torch.cat([first, second]), draw_slowly(1))


# --- evaluate


@pytest.fixture
def curved(build):
    """A model whose decoder is steep, so that a drawn code and the posterior's mean give different numbers."""
    model = build().double()
    for layer in (0, 2):
        model.decoder[layer].weight.data *= 4
    return model


def check_estimates_the_elbo(evaluate, model, x):
    """recon against 1,000 draws of torch.distributions, within five standard errors of the difference."""
    with torch.no_grad():
        mu, logvar = model.encode(x)
        torch.manual_seed(0)
        z = Normal(mu, (0.5 * logvar).exp()).sample((1000,))
        draws = -Bernoulli(logits=model.decode(z), validate_args=False).log_prob(x).sum((-3, -2, -1)).mean(1)
    estimates = torch.stack([evaluate(model, x, seed).recon.mean() for seed in range(100)])
    standard_error = (draws.var() / 1000 + estimates.var() / 100).sqrt().item()
    assert_close(estimates.mean(), draws.mean(), rtol=0, atol=5 * standard_error)


def test_evaluate_estimates_the_elbo_without_bias(curved, random_images):
    x = random_images(6, dtype=torch.float64)
    check_estimates_the_elbo(lambda model, x, seed: evaluate(model, x, seed=seed), curved, x)


def test_the_check_of_the_estimate_rejects_the_posterior_mean(curved, random_images):
    x = random_images(6, dtype=torch.float64)

    @torch.no_grad()
    def buggy(model, x, seed):
        return elbo_terms(model, x, eps=torch.zeros(len(x), 2, dtype=x.dtype))

    assert not torch.allclose(buggy(curved, x, 0).recon, evaluate(curved, x).recon)
    with pytest.raises(AssertionError):
        check_estimates_the_elbo(buggy, curved, x)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16, 50, 51])
@pytest.mark.parametrize("latent_dim", [2, 3])
def test_the_batch_size_changes_nothing(build, random_images, batch_size, latent_dim):
    model, x = build(latent_dim=latent_dim).double(), random_images(50, dtype=torch.float64)
    whole, parts = evaluate(model, x), evaluate(model, x, batch_size=batch_size)
    assert_close(parts.recon, whole.recon)
    assert_close(parts.kl, whole.kl)


def check_average(average, terms):
    assert average == pytest.approx((terms.recon.sum() + terms.kl.sum()).item() / len(terms.recon), rel=1e-6)


def test_the_average_is_the_sum_over_the_images_by_their_number(build, random_images):
    x = torch.cat([torch.zeros(6, 1, 28, 28), random_images(1)])
    terms = evaluate(build(), x, batch_size=4)
    check_average(terms.averages()["neg_elbo"], terms)


@pytest.mark.parametrize(
    "buggy",
    [
        pytest.param(lambda batches: sum(b.loss() for b in batches) / len(batches), id="mean of batch means"),
        pytest.param(lambda batches: batches[0].loss() / len(batches), id="returned inside the loop"),
        pytest.param(lambda batches: sum((b.recon + b.kl).sum() for b in batches), id="sum"),
    ],
)
def test_the_check_of_the_average_rejects(buggy):
    source = torch.Generator().manual_seed(0)
    terms = ElboTerms(100 * torch.rand(7, generator=source), torch.rand(7, generator=source))
    batches = [ElboTerms(terms.recon[:4], terms.kl[:4]), ElboTerms(terms.recon[4:], terms.kl[4:])]
    with pytest.raises(AssertionError):
        check_average(buggy(batches).item(), terms)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_evaluate_refuses_batches_of_no_image_or_of_half_an_image(build, random_images, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be an integer >= 1, got {batch_size}"):
        evaluate(build(), random_images(5), batch_size=batch_size)


def test_evaluate_gives_detached_terms_on_the_cpu_and_leaves_the_model_as_it_was(build, random_images, weights):
    model, x = build().train(), random_images(5)
    before, state = weights(model), torch.get_rng_state()
    terms = evaluate(model, x)
    for term in terms:
        assert (term.shape, term.device.type, term.requires_grad) == ((5,), "cpu", False)
    assert model.training
    assert torch.equal(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_of_evaluate_is_that_of_its_noise(build, random_images):
    model, x = build(), random_images(5)
    assert torch.equal(evaluate(model, x, seed=1).recon, evaluate(model, x, seed=1).recon)
    assert not torch.equal(evaluate(model, x, seed=1).recon, evaluate(model, x, seed=2).recon)


def test_evaluate_that_fails_leaves_the_model_as_it_was(build, random_images, at_call, ctrl_c):
    model = build().train()
    at_call(model.decoder, 1, ctrl_c, training=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, random_images(5))
    assert model.training


def test_an_accelerator_without_float64_leaves_that_to_the_cpu(build, random_images, monkeypatch):
    model, other, x = build().double(), build().double(), random_images(5, dtype=torch.float64)
    expected = evaluate(model, x).averages()["recon"]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    assert best_device() == torch.device("mps")
    assert best_device(torch.float64) == torch.device("cpu")
    assert evaluate(model, x).averages()["recon"] == expected
    assert fit(other, x, x, 0, progress=False).rows[0]["train_recon"] == expected


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(0, 1, 28, 28), "holds no image"),
        (torch.full((2, 1, 28, 28), 255.0), r"must lie in \[0, 1\]"),
        (torch.zeros(2, 784), r"must be float images"),
    ],
)
def test_evaluate_names_bad_images(build, x, said):
    with pytest.raises(ValueError, match=said):
        evaluate(build(), x)


# --- the learning rate


@given(st.integers(1, 5000), st.data())
def test_the_learning_rate_stays_within_its_bounds(n_steps, data):
    step = data.draw(st.integers(0, n_steps - 1))
    assert 0 < learning_rate(step, n_steps, 0.5) <= 0.5


def test_the_learning_rate_rises_over_the_first_tenth_and_falls_to_zero():
    rates = [learning_rate(step, 100, max_lr=1.0) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:] == pytest.approx([1 - i / 90 for i in range(91)])
    assert max(rates) == 1.0
    assert rates[100] == 0.0


def test_fit_follows_the_schedule_over_all_its_steps(build, random_images, monkeypatch):
    asked = []
    monkeypatch.setattr(
        training, "learning_rate", lambda *arguments: asked.append(arguments) or learning_rate(*arguments)
    )
    fit(build(), random_images(25), random_images(5), 3, batch_size=10, max_lr=1e-3, progress=False)
    assert asked == [(step, 9, 1e-3) for step in range(9)]


# --- fit: what it sees and what it learns


def training_batches(model, *arguments, **options):
    """Run ``fit`` and return what the encoder was given in training."""
    batches = []
    model.encoder.register_forward_pre_hook(
        lambda _, inputs: batches.append(inputs[0].cpu()) if torch.is_grad_enabled() else None
    )
    fit(model, *arguments, progress=False, **options)
    return batches


def test_every_image_is_seen_once_an_epoch_in_a_new_order(build):
    x = (torch.arange(25.0) / 25).reshape(25, 1, 1, 1).expand(25, 1, 28, 28)
    batches = training_batches(build(), x, x[:2], 2, batch_size=10)
    assert [len(batch) for batch in batches] == [10, 10, 5] * 2
    first, second = (torch.cat(batches[i : i + 3])[:, 0, 0, 0] for i in (0, 3))
    assert torch.equal(first.sort().values, x[:, 0, 0, 0])
    assert torch.equal(second.sort().values, x[:, 0, 0, 0])
    assert not torch.equal(first, second)


def test_binarised_training_sees_new_zeros_and_ones_at_every_epoch(build):
    x = torch.full((1, 1, 28, 28), 0.5)
    first, second = training_batches(build(), x, x, 2, binarised=True)
    assert set(first.unique().tolist()) == set(second.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)


def check_minimises_what_evaluate_measures(loss_of_step, measured):
    """Both are one-draw estimates of one number, over 500 images: they agree to half a percent, not to a factor."""
    assert loss_of_step == pytest.approx(measured, rel=5e-3)


def test_training_minimises_what_evaluate_measures(build, random_images, monkeypatch):
    losses = []

    class Spy(ElboTerms):
        def loss(self, beta=1.0):
            losses.append(super().loss(beta))
            return losses[-1]

    monkeypatch.setattr(training, "elbo_terms", lambda *a, **k: Spy(*elbo_terms(*a, **k)))
    x = random_images(500)
    history = fit(build(), x, x, 1, batch_size=500, max_lr=1e-12, progress=False)
    assert len(losses) == 1
    check_minimises_what_evaluate_measures(losses[0].item(), history.rows[0]["train_neg_elbo"])
    for factor in (500, 1 / 784, 1.02):
        with pytest.raises(AssertionError):
            check_minimises_what_evaluate_measures(factor * losses[0].item(), history.rows[0]["train_neg_elbo"])


def test_a_short_training_beats_the_mean_image(build, mnist_train, mnist_test):
    model = build(latent_dim=8, hidden=(64,))
    history = fit(model, mnist_train.x[:4000], mnist_test.x[:1000], 6, progress=False)
    held_out = [row["held_out_neg_elbo"] for row in history.rows]
    assert held_out[0] > 500
    assert held_out[-1] < held_out[1] < held_out[0]
    assert held_out[-1] < 205.8 - 20
    assert held_out[-1] == pytest.approx(evaluate(model, mnist_test.x[:1000]).averages()["neg_elbo"], rel=1e-5)


def test_beta_weighs_the_kl(build, mnist_train):
    x = mnist_train.x[:1000]
    kl = [fit(build(), x, x, 3, beta=beta, progress=False).rows[-1]["train_kl"] for beta in (0.0, 1.0, 20.0)]
    assert kl[0] > kl[1] > kl[2]


def test_two_trainings_with_one_seed_are_bit_equal(build, random_images, probes, weights):
    results = []
    for global_seed in (1, 2):  # must not matter
        torch.manual_seed(global_seed)
        model = build()
        history = fit(
            model, random_images(50), random_images(9), 2, seed=3, batch_size=16, probes=probes, progress=False
        )
        for row in history.rows:
            del row["seconds"]
        results.append((weights(model), history))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].rows == results[1][1].rows
    assert all(torch.equal(results[0][1].snapshots[name], results[1][1].snapshots[name]) for name in Probes._fields[:2])


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"beta": 2.0}, {"binarised": True}, {"batch_size": 20}, {"max_lr": 1e-3}]
)
def test_another_setting_gives_other_weights(build, random_images, changed, weights):
    first, second = build(), build()
    fit(first, random_images(50), random_images(9), 1, progress=False)
    fit(second, random_images(50), random_images(9), 1, progress=False, **changed)
    assert not torch.equal(weights(first), weights(second))


def test_fit_leaves_the_global_generator_alone(build, random_images):
    before = torch.get_rng_state()
    fit(build(), random_images(20), random_images(5), 1, binarised=True, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_watching_a_training_does_not_change_it(build, random_images, probes, weights):
    watched, alone = build(), build()
    fit(watched, random_images(50), random_images(9), 2, probes=probes, on_epoch=lambda _: None, progress=False)
    fit(alone, random_images(50), random_images(30, 5), 2, progress=False)
    assert torch.equal(weights(watched), weights(alone))


def test_the_progress_bar_writes_only_if_asked(build, random_images, capsys):
    fit(build(), random_images(20), random_images(5), 1, progress=False)
    assert capsys.readouterr() == ("", "")
    fit(build(), random_images(20), random_images(5), 1)
    assert "nats" in capsys.readouterr().err


# --- fit: the history


def test_rows_and_snapshots_start_at_epoch_0(build, random_images, probes):
    seen = []
    model, x = build(), random_images(30)
    untrained = evaluate(model, x).averages()
    history = fit(
        model, x, random_images(9), 3, probes=probes, on_epoch=lambda h: seen.append(len(h.rows)), progress=False
    )
    assert seen == [1, 2, 3, 4]
    assert [row["epoch"] for row in history.rows] == [0, 1, 2, 3]
    assert set(history.rows[0]) == {"epoch", "seconds"} | {
        f"{split}_{term}" for split in ("train", "held_out") for term in ("recon", "kl", "neg_elbo")
    }
    assert {name: history.rows[0][f"train_{name}"] for name in untrained} == pytest.approx(untrained)
    assert history.rows[0]["seconds"] == 0
    assert history.rows[1]["seconds"] < history.rows[3]["seconds"]
    assert {name: frames.shape for name, frames in history.snapshots.items()} == {
        "train": (4, 3, 1, 28, 28),
        "held_out": (4, 4, 1, 28, 28),
        "prior": (4, 5, 1, 28, 28),
    }
    assert not history.interrupted


def check_snapshots(snapshots, model, probes):
    """The frames of a model that does not move: one image per probe, the same at every epoch."""
    with torch.no_grad():
        expected = {
            "train": model.reconstruct(probes.train),
            "held_out": model.reconstruct(probes.held_out),
            "prior": model.decode(probes.z).sigmoid(),
        }
    for name, images in expected.items():
        for frame in snapshots[name]:
            assert_close(frame, images, rtol=0, atol=1e-5)


@pytest.fixture
def still(build, random_images, probes):
    """A model that hardly moves in three epochs, with its snapshots."""
    model = build()
    history = fit(model, random_images(20), random_images(5), 3, max_lr=1e-12, probes=probes, progress=False)
    return model, history.snapshots


def test_snapshots_show_the_same_prior_draws_and_images_at_every_epoch(still, probes):
    check_snapshots(still[1], still[0], probes)


def test_the_check_of_the_snapshots_rejects_redrawn_noise_and_reconstructions(still, probes):
    model, snapshots = still
    redrawn = torch.stack([model.sample(5) for _ in range(4)])
    for prior in (redrawn, snapshots["held_out"]):
        with pytest.raises(AssertionError):
            check_snapshots(snapshots | {"prior": prior}, model, probes)


def test_snapshots_move_with_the_model(trained, probes):
    model, history, _ = trained
    assert_close(history.snapshots["prior"][-1], model.decode(probes.z).sigmoid().detach())
    assert not torch.allclose(history.snapshots["prior"][0], history.snapshots["prior"][-1])


def test_no_probes_no_snapshots(build, random_images):
    assert fit(build(), random_images(9), random_images(9), 1, progress=False).snapshots == {}


def test_no_epochs_only_look(build, random_images, weights):
    model = build()
    before = weights(model)
    assert len(fit(model, random_images(9), random_images(9), 0, progress=False).rows) == 1
    assert torch.equal(weights(model), before)


# --- fit: stopped or broken


def check_interrupted(history, model, n_rows):
    assert history.interrupted
    assert [row["epoch"] for row in history.rows] == list(range(n_rows))
    assert {len(frames) for frames in history.snapshots.values()} <= {n_rows}  # empty without probes
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert evaluate(model, torch.zeros(3, 1, 28, 28)).elbo.isfinite().all()


def test_ctrl_c_between_two_epochs_keeps_what_was_learnt(build, random_images, probes, weights):
    model = build()
    untrained = weights(model)

    def on_epoch(history):
        if len(history.rows) == 3:
            raise KeyboardInterrupt

    history = fit(model, random_images(30), random_images(9), 5, probes=probes, on_epoch=on_epoch, progress=False)
    check_interrupted(history, model, 3)
    assert not torch.equal(weights(model), untrained)


def test_ctrl_c_inside_a_step_keeps_what_was_learnt(build, random_images, probes, weights, at_call, ctrl_c):
    model = build()
    untrained = weights(model)
    at_call(model.encoder, 5, ctrl_c)  # the second batch of the second epoch
    history = fit(model, random_images(30), random_images(9), 5, batch_size=10, probes=probes, progress=False)
    check_interrupted(history, model, 2)
    assert not torch.equal(weights(model), untrained)


@pytest.mark.parametrize("nth", [6, 7, 8, 9, 10])  # epoch 0 decodes five times: two sets, three kinds of snapshots
def test_ctrl_c_inside_an_evaluation_leaves_rows_and_snapshots_of_one_length(
    build, random_images, probes, nth, at_call, ctrl_c
):
    model = build()
    at_call(model.decoder, nth, ctrl_c, training=False)
    history = fit(model, random_images(9), random_images(9), 2, probes=probes, progress=False)
    check_interrupted(history, model, 1)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_ctrl_c_while_snapshots_are_kept_leaves_rows_and_snapshots_of_one_length(
    build, random_images, probes, nth, monkeypatch
):
    real, calls = torch.cat, []

    def cat(tensors):
        if tensors[0].dim() == 5:  # the frames of several epochs
            calls.append(tensors)
            if len(calls) == nth:
                raise KeyboardInterrupt
        return real(tensors)

    monkeypatch.setattr(training.torch, "cat", cat)
    history = fit(build(), random_images(20), random_images(5), 3, probes=probes, progress=False)
    assert history.interrupted
    assert len(history.rows) == 1
    assert {len(frames) for frames in history.snapshots.values()} == {1}


def test_ctrl_c_before_the_first_row_gives_an_empty_history(build, random_images, at_call, ctrl_c):
    model = build()
    at_call(model.decoder, 1, ctrl_c, training=False)
    check_interrupted(fit(model, random_images(9), random_images(9), 2, progress=False), model, 0)


@pytest.mark.parametrize(("call", "said"), [(2, "epoch 1, step 2 of 3"), (6, "epoch 2, step 3 of 3")])
def test_a_loss_that_is_not_finite_is_named_with_its_epoch_and_step(build, random_images, call, said, at_call):
    model = build()
    at_call(model.encoder, call, lambda: model.encoder[1].weight.data.fill_(math.nan))
    with pytest.raises(FloatingPointError, match=f"{said}: the loss is nan"):
        fit(model, random_images(30), random_images(9), 4, batch_size=10, progress=False)


def test_a_last_step_that_breaks_the_model_is_named_too(build, random_images):
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 1 of 1: the loss is (nan|inf)"):
        fit(build(), random_images(9), random_images(9), 1, max_lr=1e30, progress=False)


def test_a_model_broken_before_the_first_step_is_named_so(build, random_images):
    model = build()
    model.encoder[1].weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="before the first step: the loss is nan"):
        fit(model, random_images(9), random_images(9), 1, progress=False)


@pytest.mark.parametrize("error", [RuntimeError, FloatingPointError])
def test_another_error_is_not_swallowed(build, random_images, error):
    def on_epoch(_):
        raise error("from the callback")

    with pytest.raises(error, match="from the callback"):
        fit(build(), random_images(9), random_images(9), 1, on_epoch=on_epoch, progress=False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_epochs": -1}, "n_epochs must be an integer >= 0, got -1"),
        ({"n_epochs": 1.5}, "n_epochs must be an integer >= 0, got 1.5"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5"),
        ({"max_lr": 0.0}, "max_lr must be a finite number > 0, got 0.0"),
        ({"max_lr": math.inf}, "max_lr must be a finite number > 0, got inf"),
        ({"max_lr": math.nan}, "max_lr must be a finite number > 0, got nan"),
        ({"beta": -1.0}, "beta must be a finite number >= 0, got -1.0"),
        ({"beta": math.inf}, "beta must be a finite number >= 0, got inf"),
        ({"beta": math.nan}, "beta must be a finite number >= 0, got nan"),
        ({"x_train": torch.zeros(0, 1, 28, 28)}, "x_train must hold at least one image, got 0"),
        ({"x_held_out": torch.zeros(0, 1, 28, 28)}, "x_held_out must hold at least one image, got 0"),
        ({"x_train": torch.full((9, 1, 28, 28), 255.0)}, r"must lie in \[0, 1\], got values from 255"),
        ({"x_held_out": torch.zeros(9, 784)}, r"must be float images \(B, 1, 28, 28\), got"),
    ],
)
def test_bad_inputs_are_named_before_any_training(build, random_images, changed, said, weights):
    model = build()
    before = weights(model)
    arguments = {"x_train": random_images(9), "x_held_out": random_images(9), "n_epochs": 1} | changed
    with pytest.raises(ValueError, match=said):
        fit(model, **arguments, progress=False)
    assert torch.equal(weights(model), before)


# --- bands


def test_a_number_inside_its_band_prints_the_band_and_not_the_number(capsys):
    training.check_band("test −ELBO", 103.9, centre=103.8, margin=1.0)
    assert capsys.readouterr().out == "test −ELBO: within 103.8 ± 1.0\n"


@pytest.mark.parametrize("value", [102.7, 104.9, math.nan, math.inf])
def test_a_number_outside_its_band_is_named(value):
    with pytest.raises(AssertionError, match=f"not test −ELBO: within 103.8 ± 1.0, got {value:.4f}"):
        training.check_band("test −ELBO", value, centre=103.8, margin=1.0)


def test_evaluate_puts_together_the_parts_of_the_package(build, random_images):

    model, x = build(), random_images(5)
    mu, logvar = model.encode(x)
    eps = torch.randn(5, 2, generator=torch.Generator().manual_seed(7))
    expected = -bernoulli_log_prob(model.decode(mu + (0.5 * logvar).exp() * eps), x).detach()
    assert_close(evaluate(model, x, seed=7).recon, expected)


def test_fit_leaves_tiny_numbers_as_they_were(build, random_images):
    def is_flushing():
        return (torch.full((1,), 1e-38) / 100).item() == 0

    seen = []
    for before in (False, True):
        torch.set_flush_denormal(before)
        try:
            fit(
                build(),
                random_images(8),
                random_images(4),
                0,
                on_epoch=lambda _: seen.append(is_flushing()),
                progress=False,
            )
            assert is_flushing() == before
        finally:
            torch.set_flush_denormal(False)
    assert seen == [True, True]
