import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from tme_utils import metrics, models
from tme_utils.elbo import bernoulli_log_prob, elbo_terms
from tme_utils.gaussian import kl_standard_normal
from tme_utils.metrics import active_units, posterior_parameters

VARIANCE = 0.05  # of the noise on every pixel of the linear-Gaussian model


def gaussian_pixels(mean, x):
    return -0.5 * ((x - mean).square() / VARIANCE + math.log(2 * math.pi * VARIANCE)).sum(dim=(-3, -2, -1))


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(Wz + b, VARIANCE * I): log p(x) and p(z|x) are closed forms.

    The columns of W are orthogonal, so that p(z|x) is diagonal and can be the encoder's answer. ``shift`` and
    ``widen`` make that answer wrong.
    """

    def __init__(self, latent_dim=2, shift=0.0, widen=1.0):
        generator = torch.Generator().manual_seed(7)
        columns = torch.linalg.qr(torch.randn(784, latent_dim, generator=generator, dtype=torch.float64)).Q
        self.w = columns * torch.linspace(0.5, 1.5, latent_dim, dtype=torch.float64)
        self.b = 0.3 * torch.rand(784, generator=generator, dtype=torch.float64)
        self.shift, self.widen = shift, widen

    def encode(self, x):
        precision = 1 + self.w.square().sum(0) / VARIANCE
        mu = (x.flatten(1) - self.b) @ self.w / VARIANCE / precision
        return mu + self.shift, -precision.log().expand_as(mu) + 2 * math.log(self.widen)

    def decode(self, z):
        return (z @ self.w.T + self.b).unflatten(-1, (1, 28, 28))

    def log_likelihood(self, x):
        covariance = self.w @ self.w.T + VARIANCE * torch.eye(784, dtype=torch.float64)
        return MultivariateNormal(self.b, covariance).log_prob(x.flatten(1))


@pytest.fixture
def x():
    return torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def vae():
    torch.manual_seed(3)
    return models.mlp_vae(latent_dim=2, hidden=(8,)).double()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def estimate(model, x, n_samples, log_prob=gaussian_pixels, **options):
    return metrics.importance_weighted_log_likelihood(model, x, n_samples, generator(), log_prob, **options)


# Importance weighting


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_weights_are_constant_when_q_is_the_posterior(x, latent_dim):
    model = LinearGaussian(latent_dim)
    torch.testing.assert_close(estimate(model, x, n_samples=1), model.log_likelihood(x), atol=1e-9, rtol=0)


def test_importance_sampling_finds_the_closed_form_with_a_wrong_q(x):
    model = LinearGaussian(shift=0.1, widen=1.5)
    gap = model.log_likelihood(x) - estimate(model, x, n_samples=20_000)
    assert gap.abs().max() < 0.03
    elbo = model.log_likelihood(x) - estimate(model, x, n_samples=1)
    assert elbo.abs().max() > 0.1  # so that the closeness above is the samples' work


def test_mean_log_weight_is_the_elbo(x):
    model = LinearGaussian(shift=0.1, widen=1.3)
    eps = torch.randn(4000, len(x), 2, generator=generator(), dtype=torch.float64)
    log_w = metrics.log_importance_weights(model, x, eps, gaussian_pixels)
    assert log_w.shape == (4000, 7)
    mu, logvar = model.encode(x)
    recon = torch.stack([elbo_terms(model, x, e, log_prob=gaussian_pixels).recon for e in eps]).mean(0)
    torch.testing.assert_close(log_w.mean(0), -recon - kl_standard_normal(mu, logvar), atol=0.1, rtol=0)


def test_bounds_rise_with_k_towards_the_likelihood(x):
    model = LinearGaussian(shift=0.2, widen=1.3)
    eps = torch.randn(4096, len(x), 2, generator=generator(), dtype=torch.float64)
    log_w = metrics.log_importance_weights(model, x, eps, gaussian_pixels)
    bounds = [log_w.mean()]
    for k in (4, 64, 4096):
        bounds.append((log_w.unflatten(0, (-1, k)).logsumexp(1) - math.log(k)).mean())
    exact = model.log_likelihood(x).mean()
    assert bounds[0] < bounds[1] < bounds[2] < bounds[3] < exact + 0.02
    assert exact - bounds[3] < 0.02 < exact - bounds[1]


def test_the_best_sample_weighs_most(x):
    # A softmax of losses instead of log-likelihoods would let the worst sample decide.
    model = LinearGaussian(shift=0.2, widen=2.0)
    eps = torch.randn(50, len(x), 2, generator=generator(), dtype=torch.float64)
    log_w = metrics.log_importance_weights(model, x, eps, gaussian_pixels)
    combined = log_w.logsumexp(0) - math.log(50)
    assert (combined > log_w.mean(0)).all()
    assert (log_w.amax(0) - math.log(50) <= combined).all()


def test_result_is_a_log_likelihood_not_a_loss(vae, x):
    binary = (x > 0.5).double()
    result = metrics.importance_weighted_log_likelihood(vae, binary, 50, generator())
    assert result.shape == (7,)
    assert (result < 0).all()
    assert (result > -784 * 2).all()


@pytest.mark.parametrize("n_samples", [1, 3, 50])
def test_as_many_draws_as_asked_whatever_the_batch(x, n_samples):
    class Counting(LinearGaussian):
        n_decoded = 0

        def decode(self, z):
            self.n_decoded += z.shape[:-1].numel()
            return super().decode(z)

    model = Counting()
    estimate(model, x, n_samples)
    assert model.n_decoded == n_samples * len(x)


@pytest.mark.parametrize("max_decoded", [1, 2, 5, 10, 33, 10_000])
def test_blocks_change_nothing_but_memory(x, max_decoded):
    class Bounded(LinearGaussian):
        def decode(self, z):
            assert z.shape[:-1].numel() <= max_decoded
            return super().decode(z)

    whole = estimate(LinearGaussian(shift=0.1), x, n_samples=10)
    cut = estimate(Bounded(shift=0.1), x, n_samples=10, max_decoded=max_decoded)
    torch.testing.assert_close(cut, whole, atol=1e-10, rtol=0)


def test_an_image_keeps_its_result_among_others(x):
    model = LinearGaussian(shift=0.1)
    torch.testing.assert_close(estimate(model, x[:1], 10), estimate(model, x, 10)[:1], atol=1e-10, rtol=0)


def test_noise_comes_from_the_generator_alone(vae, x):
    first = metrics.importance_weighted_log_likelihood(vae, x, 5, generator(1))
    torch.rand(1)
    assert torch.equal(first, metrics.importance_weighted_log_likelihood(vae, x, 5, generator(1)))
    assert not torch.equal(first, metrics.importance_weighted_log_likelihood(vae, x, 5, generator(2)))


def test_float32_agrees_with_float64(vae, x):
    exact = metrics.importance_weighted_log_likelihood(vae, x, 20_000, generator())
    single = metrics.importance_weighted_log_likelihood(vae.float(), x.float(), 20_000, generator())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, atol=0.1, rtol=0)  # each type has its own noise


def test_extreme_weights_do_not_underflow(x):
    model = LinearGaussian(shift=20.0)  # log-weights of some -10,000 nats: exp would be 0, its log -inf
    assert estimate(model, x, 5).isfinite().all()


@pytest.mark.parametrize("n_samples", [0, -1, 2.5, True])
def test_bad_counts_are_named(vae, x, n_samples):
    with pytest.raises(ValueError, match=f"n_samples must be a positive integer, got {n_samples}"):
        metrics.importance_weighted_log_likelihood(vae, x, n_samples, generator())


def test_bad_images_are_named(vae, x):
    with pytest.raises(ValueError, match="no image"):
        metrics.importance_weighted_log_likelihood(vae, x[:0], 5, generator())
    with pytest.raises(ValueError, match="pixels must lie in"):
        metrics.importance_weighted_log_likelihood(vae, 255 * x, 5, generator())
    with pytest.raises(ValueError, match="B, 1, 28, 28"):
        metrics.exact_log_likelihood_2d(vae, x.flatten(1))
    with pytest.raises(ValueError, match="eps must end in the shape of mu"):
        metrics.log_importance_weights(vae, x, torch.zeros(5, 3, 2, dtype=torch.float64))


# Quadrature


def test_quadrature_equals_the_closed_form(x):
    model, x = LinearGaussian(), x[:2]
    exact = metrics.exact_log_likelihood_2d(model, x, gaussian_pixels)
    difference = (exact.log_likelihood - model.log_likelihood(x)).abs()
    assert difference.max() < 1e-4
    assert (difference <= exact.error).all()


def test_error_estimate_covers_the_error_and_shrinks(x):
    model, x = LinearGaussian(), x[:2]
    errors = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        result = metrics.exact_log_likelihood_2d(model, x, gaussian_pixels, tolerance=tolerance)
        assert ((result.log_likelihood - model.log_likelihood(x)).abs() <= result.error + 1e-12).all()
        errors.append(result.error.max())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_mass_outside_the_square_shows_in_the_error(x):
    model, x = LinearGaussian(), x[:2]
    result = metrics.exact_log_likelihood_2d(model, x, gaussian_pixels, half_width=0.5)
    difference = (result.log_likelihood - model.log_likelihood(x)).abs()
    assert difference.max() > 0.1
    assert result.error[difference.argmax()] > 0.1


def test_quadrature_agrees_with_importance_sampling_on_a_vae(vae, x):
    exact = metrics.exact_log_likelihood_2d(vae, x)
    assert exact.error.max() < 5e-3
    estimates = metrics.importance_weighted_log_likelihood(vae, x, 20_000, generator())
    assert (estimates - exact.log_likelihood).abs().max() < 0.1


def test_matrix_product_equals_the_general_path(vae, x):
    fast = metrics.exact_log_likelihood_2d(vae, x, n_squares=8, tolerance=1e-2)
    general = metrics.exact_log_likelihood_2d(
        vae, x, lambda logits, x: bernoulli_log_prob(logits, x), n_squares=8, tolerance=1e-2
    )
    torch.testing.assert_close(fast, general, atol=1e-9, rtol=0)


def test_a_narrow_posterior_is_found():
    class Ridge(nn.Module):
        """A decoder whose pixels switch at one line: the posterior is far narrower there than the first squares."""

        def encode(self, x):
            return torch.zeros(len(x), 2).to(x), torch.zeros(len(x), 2).to(x)

        def decode(self, z):
            return (20 * (z[..., :1] - 0.0613) * torch.ones(784).to(z)).unflatten(-1, (1, 28, 28))

    x = torch.full((1, 1, 28, 28), 0.5, dtype=torch.float64)
    result = metrics.exact_log_likelihood_2d(Ridge(), x, tolerance=1e-5)
    z1 = torch.linspace(-0.1, 0.2, 300_001, dtype=torch.float64)
    logits = 20 * (z1 - 0.0613)
    log_lik = 784 * (0.5 * logits - nn.functional.softplus(logits))
    expected = torch.trapezoid(torch.exp(log_lik + 600 - z1**2 / 2) / math.sqrt(2 * math.pi), z1).log() - 600
    assert abs(result.log_likelihood.item() - expected.item()) < min(5e-4, result.error.item())


def test_the_tail_of_a_peak_beyond_the_edge_of_a_square_is_not_lost():
    peak, std = torch.tensor([0.5 + 0.02, 0.1]).double(), 0.01  # two deviations beyond an edge of the first squares

    class Peak:
        def decode(self, z):
            return nn.functional.pad(z, (0, 782)).unflatten(-1, (1, 28, 28))

    def log_prob(parameters, x):
        return -0.5 * ((parameters.flatten(-3)[..., :2] - peak) / std).square().sum(-1).expand(-1, len(x))

    result = metrics.exact_log_likelihood_2d(Peak(), torch.zeros(1, 1, 28, 28).double(), log_prob)
    evidence = torch.distributions.Normal(0.0, math.sqrt(1 + std**2)).log_prob(peak).sum()
    expected = evidence + 2 * math.log(std * math.sqrt(2 * math.pi))
    assert abs(result.log_likelihood.item() - expected.item()) < 1e-4


def test_the_work_is_bounded_and_the_error_says_what_is_left(vae, x, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_SQUARES", 3)
    rough = metrics.exact_log_likelihood_2d(vae, x, n_squares=4, tolerance=1e-12)
    monkeypatch.undo()
    exact = metrics.exact_log_likelihood_2d(vae, x)
    assert rough.error.max() > 1e-4
    assert ((rough.log_likelihood - exact.log_likelihood).abs() <= rough.error + exact.error).all()


@pytest.mark.parametrize("max_decoded", [1, 10, 100])
def test_quadrature_blocks_change_nothing(vae, x, max_decoded):
    options = {"n_squares": 4, "half_width": 3.0, "tolerance": 1e-1}
    whole = metrics.exact_log_likelihood_2d(vae, x, **options)
    cut = metrics.exact_log_likelihood_2d(vae, x, **options, max_decoded=max_decoded)
    torch.testing.assert_close(cut, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_squares": 0}, "n_squares must be a positive integer, got 0"),
        ({"half_width": 0.0}, "half_width > 0"),
        ({"half_width": math.inf}, "half_width > 0"),
        ({"tolerance": 0.0}, "tolerance in"),
        ({"tolerance": 1.0}, "tolerance in"),
        ({"max_decoded": 0}, "max_decoded must be a positive integer"),
    ],
)
def test_bad_settings_are_named(vae, x, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.exact_log_likelihood_2d(vae, x, **options)


def test_quadrature_wants_float64_and_two_dimensions(vae, x):
    with pytest.raises(ValueError, match=r"must be float64.*got torch.float32"):
        metrics.exact_log_likelihood_2d(vae.float(), x.float())
    with pytest.raises(ValueError, match="latent_dim = 3"):
        metrics.exact_log_likelihood_2d(models.mlp_vae(latent_dim=3, hidden=(4,)).double(), x)


# --- posteriors of a whole set


def test_posterior_parameters_are_those_of_encode_whatever_the_batch_size(build, random_images):
    model, x = build(latent_dim=3), random_images(25)
    expected = model.encode(x)
    for batch_size in (1, 7, 25, 1000):
        for found, value in zip(posterior_parameters(model, x, batch_size=batch_size), expected, strict=True):
            assert not found.requires_grad
            assert_close(found, value)


def test_posterior_parameters_of_no_image_are_refused(build, random_images):
    with pytest.raises(ValueError, match="no image"):
        posterior_parameters(build(), random_images(1)[:0])


def test_a_unit_is_active_where_its_mean_varies_more_than_the_threshold(generator):
    spread = torch.tensor([0.0, 0.05, 0.2, 1.0])
    mu = torch.randn(5000, 4, generator=generator()) * spread + 3
    assert active_units(mu).tolist() == [False, False, True, True]
    assert active_units(mu, threshold=0.5).tolist() == [False, False, False, True]
    assert active_units(mu, threshold=0.001).tolist() == [False, True, True, True]


def test_the_variance_is_that_of_a_sample():
    assert active_units(torch.tensor([[0.0], [0.2]]), threshold=0.0199).tolist() == [True]
    assert active_units(torch.tensor([[0.0], [0.2]]), threshold=0.0201).tolist() == [False]


@pytest.mark.parametrize("shape", [(3,), (1, 4), (0, 2), (2, 3, 4)])
def test_means_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=rf"mu must be \(N, latent_dim\) with N >= 2, got \({shape[0]}"):
        active_units(torch.zeros(shape))
