"""How well a model generates: closed forms of both distances, a classifier in miniature, the scores of a model."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.testing import assert_close

from tme_utils import data, generation, paths
from tme_utils.checkpoints import shipped_model
from tme_utils.generation import DigitClassifier, divergence_from_prior, features, frechet_distance, recognised
from tme_utils.metrics import posterior_parameters
from tme_utils.training import seeded
from tme_utils.vae import StandardNormal, mlp_vae, reparameterize

F64 = torch.float64


def normal(n, dim, seed, mean=0.0, std=1.0, dtype=torch.float32):
    return mean + std * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("scale", [[2.0], [1.0, 2.0, 0.5], [0.0, 1.0]])  # one feature, several, one that never varies
def test_shifts_and_spreads_along_the_axes_cost_their_square(scale):
    scale = torch.tensor(scale, dtype=F64)
    a = normal(1000, len(scale), 2, dtype=F64)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.atleast_2d(a.T.cov()))).T  # covariance exactly I
    assert frechet_distance(a * scale, a * scale) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a * scale + 3) == pytest.approx(((1 - scale) ** 2 + 9).sum().item(), abs=1e-9)


def test_the_distance_is_symmetric_and_does_not_depend_on_the_axes():
    a, b, turn = (normal(500, 6, seed, dtype=F64) @ normal(6, 6, seed + 1, dtype=F64) for seed in (3, 5, 7))
    turn = torch.linalg.qr(turn[:6]).Q
    expected = pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert [frechet_distance(b, a), frechet_distance(a @ turn, b @ turn)] == [expected, expected]


def test_the_bound_comes_close_to_the_divergence_and_not_above():
    # JS between N(0, 1) and N(1.5, 0.5²) by quadrature; the network sees the first axis among two.
    t = torch.linspace(-10, 10, 200_001, dtype=F64)
    p, q = (Normal(mean, std).log_prob(t).exp() for mean, std in [(0.0, 1.0), (1.5, 0.5)])
    js = sum(torch.trapezoid(torch.where(f > 0, f * (2 * f / (p + q)).log2(), 0), t).item() for f in (p, q)) / 2
    z, held_out = (normal(20_000, 2, seed, torch.tensor([1.5, 0.0]), torch.tensor([0.5, 1.0])) for seed in (0, 1))
    assert js - 0.03 < divergence_from_prior(z, held_out, seed=0) < js + 0.015  # its standard error is about 0.003 bits


def test_the_prior_itself_gives_no_bit_codes_far_away_one_and_a_network_that_has_learnt_nothing_none():
    assert -0.02 < divergence_from_prior(normal(5000, 3, 0), normal(2000, 3, 1), seed=0) < 0.01
    assert 0.99 < divergence_from_prior(normal(2000, 2, 0, 8.0), normal(500, 2, 1, 8.0), seed=0, n_epochs=60) <= 1
    assert abs(divergence_from_prior(normal(50, 2, 0), normal(500, 2, 1), seed=0, n_epochs=1)) < 0.05


def test_the_same_seed_gives_the_same_bound_in_any_type_and_leaves_the_global_generator():
    z, held_out, before = normal(600, 2, 0, 2.0), normal(300, 2, 1, 2.0), torch.get_rng_state()
    first = divergence_from_prior(z, held_out, seed=1, n_epochs=2)
    assert first == pytest.approx(0.35694, abs=5e-5)  # by the network, and its training, that the tables were made with
    assert first == divergence_from_prior(z.double(), held_out.double(), seed=1, n_epochs=2)
    assert first != divergence_from_prior(z, held_out, seed=2, n_epochs=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_classifier_learns_what_can_be_told_and_images_are_recognised_from_the_threshold_on(random_images):
    with seeded(0):
        classifier = DigitClassifier()
    x, y = random_images(1100), torch.arange(1100) % 10
    x[:, 0, 0] = nn.functional.one_hot(y, 28).float()  # the first row of pixels tells the class
    assert recognised(classifier, features(classifier, x)) == 0
    generation.fit_classifier(classifier, x, y, 8, seed=0, batch_size=20)
    found, logits = features(classifier, x), classifier(x).detach()
    assert_close(classifier.head(found), logits)
    assert (logits.argmax(dim=1) == y).double().mean() > 0.95
    assert recognised(classifier, found) > 0.8
    nn.init.zeros_(classifier.head.weight)
    classifier.head.bias.data = torch.tensor([0.55, *[0.05] * 9]).log()
    assert [recognised(classifier, found, threshold) for threshold in (0.5, 0.6)] == [1, 0]


@torch.no_grad()
def test_the_shipped_classifier_knows_the_test_images_and_is_neither_trained_nor_shared(monkeypatch, mnist_test):
    monkeypatch.setattr(generation, "fit_classifier", None)
    generation.shipped_classifier().double()
    named = generation.shipped_classifier()(mnist_test.x).argmax(dim=1)
    assert 0.985 < (named == mnist_test.y).double().mean() < 0.995


def test_a_missing_classifier_is_trained_saved_and_loaded_again(monkeypatch, tmp_path, random_images, weights):
    monkeypatch.setattr(data, "load_mnist", lambda split: data.Images(random_images(64), torch.arange(64) % 10))
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    with seeded(0):
        by_hand = DigitClassifier()
    generation.fit_classifier(by_hand, random_images(64), torch.arange(64) % 10, 4, seed=0)
    assert torch.equal(weights(generation.shipped_classifier()), weights(by_hand))
    monkeypatch.setattr(generation, "fit_classifier", None)  # a second training would fail
    assert torch.equal(weights(generation.shipped_classifier()), weights(by_hand))


def test_the_shipped_flow_gains_on_codes_of_test_images_and_is_not_fitted_again(monkeypatch, mnist_test):
    monkeypatch.setattr(generation, "fit_prior", None)
    flow, seconds = generation.shipped_prior()
    codes = posterior_parameters(shipped_model("residual_32d")[0], mnist_test.x[:1000])
    z = reparameterize(*codes, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (flow.log_prob(z) - StandardNormal().log_prob(z)).mean() > 1
    assert seconds > 0


def test_a_missing_flow_is_fitted_saved_and_loaded_again(monkeypatch, tmp_path, random_images, weights):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(generation, "shipped_model", lambda _: (mlp_vae(32, (8,)), None))
    monkeypatch.setattr(data, "load_mnist", lambda _: data.Images(random_images(9), torch.zeros(9)))
    flow, seconds = generation.shipped_prior()
    monkeypatch.setattr(generation, "fit_prior", None)
    again, same = generation.shipped_prior()
    assert torch.equal(weights(flow), weights(again))
    assert seconds == same


@torch.no_grad()
def test_scores_compare_the_prior_with_active_coordinates_of_codes(build, random_images, generator, monkeypatch):
    model, x_train, x_test, source = build(latent_dim=3), random_images(60), random_images(40, 1), generator(3)
    model.encoder[-1].weight[:2] *= 50  # these coordinates follow the image,
    model.encoder[-1].weight[2] = 0  # and this one does not
    model.likelihood.mean = torch.tanh  # whatever the likelihood shows is what is looked at
    with seeded(9):
        classifier = DigitClassifier()  # untrained: its features tell images apart all the same,
    for layer in (classifier.features[-2], classifier.head):
        layer.weight *= 16  # and now by far, and it is sure of some
    monkeypatch.setattr(generation, "shipped_classifier", lambda: classifier)
    monkeypatch.setattr(generation, "N_GENERATED", 25)
    told, real = [], generation.fit_classifier
    monkeypatch.setattr(generation, "fit_classifier", lambda *a, **k: told.extend(a[1].chunk(2)) or real(*a, **k))
    scores = generation.generation_scores(model, x_train, x_test, seed=3)
    noise, _, draws = (torch.randn(n, 3, generator=source) for n in (60, 40, 25))
    mu, logvar = model.encode(x_train)
    codes = mu + torch.exp(logvar / 2) * noise
    for name, z in {"prior": draws, "aggregated": codes[:25]}.items():
        found = features(classifier, model.decode(z).tanh())
        distance = frechet_distance(found, features(classifier, x_test))
        assert scores[f"frechet_{name}"] == round(scores[f"frechet_{name}"], 3) == pytest.approx(distance, abs=1e-3)
        assert 0 < scores[f"recognised_{name}"] == pytest.approx(recognised(classifier, found), abs=1e-4)
    seen, prior = told  # what the network is to tell apart
    assert_close(seen, codes[:, :2])
    assert not torch.isin(prior, noise).any()  # with the seed of the codes it would be the very noise of the codes
    assert 0.2 < scores["divergence_from_prior"] == round(scores["divergence_from_prior"], 4)  # the network has learnt
    model.encoder[-1].weight[:2] = 0
    assert generation.generation_scores(model, x_train, x_test, seed=3)["divergence_from_prior"] == 0


@pytest.mark.parametrize(
    ("function", "a", "b", "message"),
    [
        (frechet_distance, (10, 3), (10, 4), r"need features .*got \(10, 3\) and \(10, 4\)"),
        (frechet_distance, (10, 3), (1, 3), "N, M >= 2"),
        (partial(divergence_from_prior, seed=0), (10, 2), (10, 3), "need codes"),
        (partial(divergence_from_prior, seed=0), (5, 2), (0, 2), "need codes"),
        (partial(generation.fit_classifier, nn.Identity(), n_epochs=1, seed=0), (3, 5), (4,), "got 4 and 3"),
        (partial(generation.fit_classifier, nn.Identity(), n_epochs=1, seed=0), (0, 5), (0,), "at least one"),
    ],
)
def test_sets_that_do_not_fit_are_named(function, a, b, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(a), torch.zeros(b))
