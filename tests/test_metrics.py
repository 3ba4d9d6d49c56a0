"""log p(x) against closed forms, for which one more likelihood is one more small class; quadrature against sums."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, LowRankMultivariateNormal, Normal
from torch.testing import assert_close

from conftest import Gaussian
from tme_utils import metrics
from tme_utils.metrics import (
    active_units,
    best_gaussian_2d,
    exact_log_likelihood_2d,
    gaussian_elbo_2d,
    log_importance_weights,
    log_joint,
)
from tme_utils.metrics import importance_weighted_log_likelihood as estimate
from tme_utils.vae import VAE, bernoulli_log_prob

F64 = torch.float64
X = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(1), dtype=F64)
STD = 0.2  # of the noise on every pixel of the linear-Gaussian model


def linear_gaussian(latent_dim=2, shift=0.0, widen=1.0):
    """p(z) = N(0, I), p(x|z) = N(Wz + b, STD² I): log p(x) and p(z|x) are closed forms.

    Orthogonal columns of W let the encoder's answer be p(z|x); ``shift`` and ``widen`` make it wrong.
    """
    encoder, decoder = nn.Linear(784, 2 * latent_dim, dtype=F64), nn.Linear(latent_dim, 784, dtype=F64)
    generator = torch.Generator().manual_seed(7)
    b, noise = 0.3 * torch.rand(784, generator=generator), torch.randn(784, latent_dim, generator=generator)
    w = torch.linalg.qr(noise.double()).Q * torch.linspace(0.5, 1.5, latent_dim, dtype=F64)
    precision = 1 + w.square().sum(0) / STD**2
    to_mu = (w / STD**2 / precision).T
    with torch.no_grad():
        decoder.weight[:], decoder.bias[:] = w, b
        encoder.weight[:] = torch.cat([to_mu, torch.zeros_like(to_mu)])
        encoder.bias[:] = torch.cat([shift - to_mu @ b.double(), 2 * math.log(widen) - precision.log()])
    return VAE(nn.Sequential(nn.Flatten(), encoder), decoder, latent_dim, {}, Gaussian(STD)).requires_grad_(False)


def evidence(model, x):
    b, w = model.decoder.bias, model.decoder.weight
    return LowRankMultivariateNormal(b, w, STD**2 * torch.ones_like(b)).log_prob(x.flatten(1))


def decoded_by(model):
    counts = []  # of codes, of each call of the decoder from now on
    model.decoder.register_forward_hook(lambda network, args, output: counts.append(len(output)))
    return counts


@pytest.fixture
def vae(build):
    return build(3, hidden=(8,)).double()


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_every_function_reads_the_likelihood_of_the_model(generator, latent_dim):
    model = linear_gaussian(latent_dim)
    mu, logvar = model.encode(X)
    # q(z|x) is the posterior: Bayes' rule gives log p(x, z), and all importance weights are p(x).
    z = torch.randn(4, latent_dim, generator=generator(), dtype=F64)
    log_q = Normal(mu, torch.exp(logvar / 2)).log_prob(z[:, None]).sum(-1)
    assert_close(log_joint(model, X, z), evidence(model, X) + log_q, atol=1e-9, rtol=0)
    assert_close(estimate(model, X, 1, generator()), evidence(model, X), atol=1e-9, rtol=0)
    wrong = linear_gaussian(latent_dim, shift=0.1, widen=1.5)
    assert (estimate(wrong, X, 1, generator()) - evidence(model, X)).abs().max() > 0.2
    assert (estimate(wrong, X, 2000, generator()) - evidence(model, X)).abs().max() < 0.1
    far_off = linear_gaussian(latent_dim, shift=20.0)  # so far that exp would round the weights to 0
    assert -math.inf < estimate(far_off, X, 5, generator()).min() < -1000


def test_log_joint_is_exact_for_logits_far_beyond_20():
    # From there on softplus, as torch has it by default, drops up to 2e-9 a pixel.
    model = VAE(nn.Identity(), nn.Linear(1, 784, bias=False, dtype=F64), 1, {}).requires_grad_(False)
    model.decoder.weight[:, 0] = torch.linspace(-30, 30, 784)
    z = torch.tensor([[-2.0], [0.5], [1.0]], dtype=F64)
    pairs = torch.stack([bernoulli_log_prob(logits.expand_as(X), X) for logits in model.decode(z)])
    assert_close(log_joint(model, X, z), pairs + Normal(0.0, 1.0).log_prob(z), atol=1e-9, rtol=0)


@pytest.mark.parametrize("max_decoded", [1, 3, 10, 33])
def test_the_estimate_is_the_log_of_the_mean_weight_of_each_image_s_own_draws(vae, generator, monkeypatch, max_decoded):
    monkeypatch.setattr(metrics, "MAX_DECODED", max_decoded)
    noise, expected = generator(5), []
    for image in X[:, None]:
        mu, logvar = vae.encode(image)
        q = Normal(mu, torch.exp(logvar / 2))
        z = q.loc + q.scale * torch.randn(10, 2, generator=noise, dtype=F64)
        log_w = vae.log_likelihood(image, z[:, None])[:, 0] + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(1)
        expected.append(log_w.exp().mean().log())
    counts, found = decoded_by(vae), estimate(vae, X, 10, generator(5))
    assert_close(found, torch.stack(expected), atol=1e-9, rtol=0)
    assert not found.requires_grad
    assert sum(counts) == 10 * len(X)
    assert max(counts) <= max_decoded
    assert not torch.equal(found, estimate(vae, X, 10, generator(6)))
    assert estimate(vae.float(), X.float(), 10, generator(5)).dtype == torch.float32


def test_quadrature_equals_the_closed_form_and_its_error_estimate_shrinks_with_the_tolerance():
    model, x, errors = linear_gaussian(), X[:2], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        result = exact_log_likelihood_2d(model, x, tolerance=tolerance)
        difference = (result.log_likelihood - evidence(model, x)).abs()
        assert (difference <= (result.error + 1e-12).clamp(max=tolerance)).all()
        errors.append(result.error.max())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_the_narrow_peak_of_each_image_is_found_with_its_tail_beyond_the_edge_of_a_square():
    std, x = 0.01, torch.zeros(2, 1, 28, 28, dtype=F64)
    x[0, 0, 0, :2] = torch.tensor([0.5 + 2 * std, 0.1])  # two deviations beyond an edge of the first squares
    x[1, 0, 0, :2] = torch.tensor([0.9, 0.7])  # somewhere else
    model = VAE(nn.Identity(), nn.ZeroPad1d((0, 782)), 2, {}, Gaussian(std))
    pixels = Normal(0.0, torch.tensor(2 * [math.sqrt(1 + std**2)] + 782 * [std], dtype=F64))
    found = exact_log_likelihood_2d(model, x).log_likelihood
    assert_close(found, pixels.log_prob(x.flatten(1)).sum(1), atol=1e-4, rtol=0)


def mass_of_squares(model, x, n, half_width):
    """p(x, z) integrated over each of n by n squares by 3 by 3 nodes, (n, n, N)."""
    nodes, weights = 0.6**0.5 * torch.tensor([-1, 0, 1], dtype=F64), torch.tensor([5, 8, 5], dtype=F64) / 9
    axis = half_width * ((2 * torch.arange(n)[:, None] + 1 + nodes) / n - 1).flatten()
    density = log_joint(model, x, torch.cartesian_prod(axis, axis)).exp().reshape(n, 3, n, 3, -1)
    return (half_width / n) ** 2 * torch.einsum("iajbx, a, b -> ijx", density, weights, weights)


@pytest.mark.parametrize(
    ("levels", "squares", "n", "max_decoded"), [(1, 99, 8, 9), (2, 99, 16, 10), (9, 15, 8, 17), (9, 16, 16, 99)]
)
@torch.no_grad()
def test_bounds_of_work_and_memory_and_the_error_that_is_left(vae, monkeypatch, levels, squares, n, max_decoded):
    # Every square would be split for ever: what stops that are the bounds, at n by n squares.
    monkeypatch.setattr(metrics, "MAX_LEVELS", levels)
    monkeypatch.setattr(metrics, "MAX_SQUARES", squares)
    monkeypatch.setattr(metrics, "MAX_DECODED", max_decoded)
    counts = decoded_by(vae)
    result = exact_log_likelihood_2d(vae, X, half_width=3.0, n_squares=4, tolerance=1e-300)
    assert sum(counts) == 9 * sum(size**2 for size in (4, 8, 16) if size <= n)
    assert max(counts) <= max_decoded
    first, last, fine = (mass_of_squares(vae, X, size, 3.0) for size in (4, n // 2, n))
    assert_close(result.log_likelihood, fine.sum((0, 1)).log(), atol=1e-9, rtol=0)
    changes = fine.reshape(n // 2, 2, n // 2, 2, -1).sum((1, 3)) - last
    border = first.sum((0, 1)) - first[1:-1, 1:-1].sum((0, 1))
    assert_close(result.error, (changes.abs().sum((0, 1)) + border) / fine.sum((0, 1)))


def test_the_best_gaussian_of_a_tilted_posterior(generator):
    model = linear_gaussian()
    angle = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=F64)  # a turned latent space tilts the posteriors
    model.decoder.weight[:] = model.decoder.weight @ angle
    w, b = model.decoder.weight, model.decoder.bias
    precision = torch.eye(2, dtype=F64) + w.T @ w / STD**2
    mu = (X.flatten(1) - b) @ w @ torch.linalg.inv(precision) / STD**2
    start = mu + 0.3 * torch.randn(mu.shape, generator=generator(), dtype=F64)
    full = best_gaussian_2d(model, X, start, diagonal=False, n_steps=30)
    assert_close(full.mu, mu, atol=1e-6, rtol=0)
    assert_close(full.covariance, torch.linalg.inv(precision).expand(7, 2, 2), atol=1e-6, rtol=0)
    assert_close(full.elbo, evidence(model, X), atol=1e-6, rtol=0)  # nothing is left of the gap
    diagonal = best_gaussian_2d(model, X, start, diagonal=True, n_steps=30)
    assert_close(diagonal.covariance, torch.diag(1 / precision.diagonal()).expand(7, 2, 2), atol=1e-6, rtol=0)
    family = 0.5 * (precision.diagonal().log().sum() - precision.logdet())  # KL of that from the posterior
    assert family > 0.1
    assert_close(evidence(model, X) - diagonal.elbo, family.expand(7), atol=1e-6, rtol=0)


def test_the_elbo_of_a_gaussian_is_the_mean_log_weight_and_a_search_never_ends_below_its_start(vae, generator):
    mu, logvar = vae.encode(X)
    eps = torch.randn(4000, 7, 2, generator=generator(), dtype=F64)
    log_w = log_importance_weights(vae, X, eps)
    elbo = gaussian_elbo_2d(vae, X, mu, torch.diag_embed(logvar.exp()))
    assert ((elbo - log_w.mean(0)).abs() < 5 * log_w.std(0) / 4000**0.5 + 1e-6).all()
    for diagonal in (True, False):
        first, last = (best_gaussian_2d(vae, X, mu, diagonal=diagonal, std=1.0, n_steps=n).elbo for n in (1, 9))
        assert (last > first).all()
        assert (last < exact_log_likelihood_2d(vae, X).log_likelihood).all()


@pytest.mark.parametrize("max_decoded", [1, 3, 7])
def test_posterior_parameters_are_those_of_encode(vae, monkeypatch, max_decoded):
    monkeypatch.setattr(metrics, "MAX_DECODED", max_decoded)
    found = metrics.posterior_parameters(vae, X)
    assert not any(value.requires_grad for value in found)
    assert_close(found, vae.encode(X))


def test_recon_is_read_between_the_entropy_of_the_pixels_and_the_mean_image():
    x_train, x_test = torch.full((4, 1, 28, 28), 0.5), torch.zeros(2, 1, 28, 28)
    x_train[:, :, 0], x_test[0, 0, 0, :2] = 0.0, torch.tensor([0.25, 1.0])
    floor, baseline = metrics.recon_scale(x_train, x_test)
    assert floor == pytest.approx(Categorical(torch.tensor([0.25, 0.75], dtype=F64)).entropy().item() / 2)
    assert baseline == pytest.approx(756 * math.log(2) - 1.25 * math.log(1e-6) / 2, abs=1e-3)


def test_a_unit_is_active_where_its_mean_varies_more_than_the_threshold(generator):
    mu = torch.randn(5000, 4, generator=generator()) * torch.tensor([0.0, 0.05, 0.2, 1.0]) + 3
    assert active_units(mu).tolist() == [False, False, True, True]
    pair = torch.tensor([[0.0], [0.2]])  # the variance is that of a sample, 0.02
    assert [active_units(pair, threshold).item() for threshold in (0.0199, 0.0201)] == [True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: exact_log_likelihood_2d(vae, X, n_squares=0), "n_squares must be an integer >= 1, got 0"),
        (lambda vae: exact_log_likelihood_2d(vae, X, half_width=math.inf), "half_width > 0"),
        (lambda vae: exact_log_likelihood_2d(vae, X, tolerance=1.0), "tolerance in"),
        (lambda vae: exact_log_likelihood_2d(vae, X.float()), r"must be float64.*got torch.float32"),
        (lambda vae: exact_log_likelihood_2d(linear_gaussian(3), X), r"z must have a shape that ends in \(3,\)"),
        (lambda vae: metrics.posterior_parameters(vae, X[:0]), "must be a tensor of floats"),
        (lambda vae: best_gaussian_2d(vae, X, torch.zeros(6, 2), diagonal=True), r"mu must be \(7, 2\).*got \(6, 2\)"),
        (lambda vae: best_gaussian_2d(linear_gaussian(3), X, X[:, 0, 0, :2], diagonal=True), "a plane"),
        (lambda vae: active_units(torch.zeros(1, 4)), r"N >= 2, got \(1, 4\)"),
    ],
)
def test_bad_input_is_named(vae, call, message):
    with pytest.raises(ValueError, match=message):
        call(vae)
