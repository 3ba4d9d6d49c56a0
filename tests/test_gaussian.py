"""Each check is also run on a version with a bug of a named system, to show that it can fail."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from tme_utils import gaussian


@st.composite
def parameters(draw, bound=30.0):
    """(mu, logvar) of any small shape in either precision, logvar reaching both ends of its range."""
    shape = draw(st.tuples(st.integers(1, 17), st.integers(1, 9)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mu = 10 * torch.randn(shape, generator=source, dtype=dtype)
    logvar = bound * (2 * torch.rand(shape, generator=source, dtype=dtype) - 1)
    logvar[0, 0] = draw(st.sampled_from([-bound, bound]))
    return mu, logvar


def example(shape=(6, 4), seed=0):
    source = torch.Generator().manual_seed(seed)
    mu = torch.randn(shape, generator=source, dtype=torch.float64)
    logvar = torch.randn(shape, generator=source, dtype=torch.float64)
    z = torch.randn(shape, generator=source, dtype=torch.float64)
    return mu, logvar, z, Independent(Normal(mu, (0.5 * logvar).exp()), 1)


# --- sampling


def check_sampler(sampler):
    """Mean, deviation and correlation of 200,000 draws, each within five standard errors."""
    n = 200_000
    mu = torch.tensor([2.0, -1.0])
    std = torch.tensor([3.0, 0.2])
    z = sampler(mu.expand(n, 2), (2 * std.log()).expand(n, 2), torch.Generator().manual_seed(0))
    assert ((z.mean(0) - mu).abs() < 5 * std / math.sqrt(n)).all()
    assert ((z.std(0) - std).abs() < 5 * std / math.sqrt(2 * n)).all()
    assert torch.corrcoef(z.T)[0, 1].abs() < 5 / math.sqrt(n)


def test_draws_have_the_right_moments():
    check_sampler(lambda mu, logvar, source: gaussian.reparameterize(mu, logvar, generator=source))


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(lambda logvar: logvar.exp(), id="eps times the variance, as in avae"),
        pytest.param(lambda logvar: logvar, id="eps times the log-variance"),
        pytest.param(lambda logvar: torch.zeros_like(logvar), id="no noise"),
        pytest.param(lambda logvar: (0.5 * logvar).exp()[..., :1], id="one scale for all coordinates"),
    ],
)
def test_the_moments_reject_a_wrong_scale(scale):
    def buggy(mu, logvar, source):
        return mu + scale(logvar) * torch.randn(mu.shape, generator=source)

    with pytest.raises(AssertionError):
        check_sampler(buggy)


def test_the_moments_reject_shared_noise():
    def buggy(mu, logvar, source):
        return mu + (0.5 * logvar).exp() * torch.randn(len(mu), 1, generator=source)

    with pytest.raises(AssertionError):
        check_sampler(buggy)


def test_given_noise_is_used_as_it_is():
    mu, logvar, eps, posterior = example()
    assert_close(gaussian.reparameterize(mu, logvar, eps), posterior.mean + posterior.stddev * eps)


def test_one_generator_state_gives_one_draw(generator):
    mu, logvar, *_ = example()
    first, again, other = (gaussian.reparameterize(mu, logvar, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_given_generator_leaves_the_global_one_alone(generator):
    mu, logvar, *_ = example()
    before = torch.get_rng_state()
    gaussian.reparameterize(mu, logvar, generator=generator())
    assert torch.equal(before, torch.get_rng_state())


def test_noise_with_leading_dimensions_gives_several_draws():
    mu, logvar, *_ = example((5, 3))
    eps = torch.zeros(7, 2, 5, 3, dtype=mu.dtype)
    assert_close(gaussian.reparameterize(mu, logvar, eps), mu.expand(7, 2, 5, 3))


def test_draws_carry_gradients_to_both_parameters():
    mu, logvar, eps, _ = example()
    mu.requires_grad_(), logvar.requires_grad_()
    gaussian.reparameterize(mu, logvar, eps).sum().backward()
    assert_close(mu.grad, torch.ones_like(mu))
    assert_close(logvar.grad, 0.5 * (0.5 * logvar.detach()).exp() * eps)


@pytest.mark.parametrize("shape", [(5, 1), (1, 3), (3,), (), (4, 3), (5, 3, 1)])
def test_noise_of_a_shape_that_would_be_broadcast_is_refused(shape):
    mu, logvar, *_ = example((5, 3))
    with pytest.raises(ValueError, match=r"shape of mu, \(5, 3\), got"):
        gaussian.reparameterize(mu, logvar, torch.zeros(shape))


@pytest.mark.parametrize("function", [gaussian.reparameterize, gaussian.kl_per_dim, gaussian.kl_standard_normal])
def test_mu_and_logvar_of_two_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 1\)"):
        function(torch.zeros(5, 3), torch.zeros(5, 1))


def test_log_prob_refuses_mu_and_logvar_of_two_shapes():
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(3,\)"):
        gaussian.log_prob(torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(3))


# --- density


def check_log_prob(log_prob):
    mu, logvar, z, posterior = example()
    assert_close(log_prob(z, mu, logvar), posterior.log_prob(z), rtol=1e-12, atol=1e-12)


def test_log_prob_equals_torch_distributions():
    check_log_prob(gaussian.log_prob)


def buggy_constant_per_element(z, mu, logvar):
    """As in the intro_dgm notebook: the constant of the whole vector, once for each of its elements."""
    terms = -0.5 * (logvar + (z - mu).square() * (-logvar).exp())
    return (terms - 0.5 * z.shape[-1] * math.log(2 * math.pi)).sum(-1)


def buggy_without_constant(z, mu, logvar):
    return -0.5 * (logvar + (z - mu).square() * (-logvar).exp()).sum(-1)


def buggy_mean(z, mu, logvar):
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu).square() * (-logvar).exp()).mean(-1)


def buggy_sign(z, mu, logvar):
    return -gaussian.log_prob(z, mu, logvar)


@pytest.mark.parametrize("buggy", [buggy_constant_per_element, buggy_without_constant, buggy_mean, buggy_sign])
def test_the_check_of_log_prob_rejects(buggy):
    with pytest.raises(AssertionError):
        check_log_prob(buggy)


def test_the_density_integrates_to_one():
    z = torch.linspace(-20, 20, 4001, dtype=torch.float64).unsqueeze(-1)
    mu, logvar = torch.tensor([1.5], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    density = gaussian.log_prob(z, mu.expand(4001, 1), logvar.expand(4001, 1)).exp()
    assert_close(torch.trapezoid(density, z[:, 0]).item(), 1.0, rtol=0, atol=1e-9)


def test_several_points_for_each_gaussian():
    mu, logvar, _, posterior = example((5, 3))
    z = torch.linspace(-2, 2, 7 * 5 * 3, dtype=torch.float64).reshape(7, 5, 3)
    assert_close(gaussian.log_prob(z, mu, logvar), posterior.log_prob(z))


# --- KL divergence


def check_kl(kl):
    mu, logvar, _, posterior = example()
    prior = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    assert_close(kl(mu, logvar), kl_divergence(posterior, prior), rtol=1e-12, atol=1e-12)


def test_kl_equals_torch_distributions():
    check_kl(gaussian.kl_standard_normal)


@pytest.mark.parametrize(
    "buggy",
    [
        pytest.param(lambda mu, logvar: -gaussian.kl_standard_normal(mu, logvar), id="wrong sign"),
        pytest.param(lambda mu, logvar: gaussian.kl_per_dim(mu, logvar).mean(-1), id="mean, not sum"),
        pytest.param(lambda mu, logvar: gaussian.kl_per_dim(mu, logvar).sum(), id="sum over the batch"),
        pytest.param(lambda mu, logvar: gaussian.kl_standard_normal(mu, 2 * logvar), id="logvar taken for log σ"),
        pytest.param(lambda mu, logvar: -0.5 * (logvar - mu**2 - logvar.exp()).sum(-1), id="the 1 forgotten"),
    ],
)
def test_the_check_of_the_kl_rejects(buggy):
    with pytest.raises(AssertionError):
        check_kl(buggy)


def test_kl_is_the_mean_of_the_log_ratio(generator):
    mu, logvar, *_ = example((4,))
    n = 100_000
    many_mu, many_logvar = mu.expand(n, 4), logvar.expand(n, 4)
    z = gaussian.reparameterize(many_mu, many_logvar, generator=generator())
    zero = torch.zeros_like(many_mu)
    log_ratio = gaussian.log_prob(z, many_mu, many_logvar) - gaussian.log_prob(z, zero, zero)
    tolerance = 5 * log_ratio.std().item() / math.sqrt(n)
    assert_close(log_ratio.mean(), gaussian.kl_standard_normal(mu, logvar), rtol=0, atol=tolerance)


def test_kl_gradients_equal_their_closed_form():
    mu, logvar, *_ = example()
    mu.requires_grad_(), logvar.requires_grad_()
    gaussian.kl_standard_normal(mu, logvar).sum().backward()
    assert_close(mu.grad, mu.detach())
    assert_close(logvar.grad, 0.5 * (logvar.detach().exp() - 1))


def test_kl_of_a_nearly_collapsed_coordinate_keeps_its_digits():
    logvar = torch.tensor([1e-3])
    expected = torch.tensor([1e-3**2 / 4 + 1e-3**3 / 12])
    assert_close(gaussian.kl_per_dim(torch.zeros(1), logvar), expected, rtol=2e-4, atol=0)
    naive = -0.5 * (1 + logvar - logvar.exp())
    assert not torch.allclose(naive, expected, rtol=2e-4, atol=0)


@given(parameters())
def test_kl_is_never_negative(mu_logvar):
    mu, logvar = mu_logvar
    per_dim = gaussian.kl_per_dim(mu, logvar)
    assert per_dim.shape == mu.shape
    assert (per_dim >= 0).all()
    assert gaussian.kl_standard_normal(mu, logvar).shape == mu.shape[:1]
    assert_close(gaussian.kl_standard_normal(mu, logvar), per_dim.sum(1))


@given(parameters(bound=1e-3))
def test_kl_is_not_negative_near_the_prior_either(mu_logvar):
    _, logvar = mu_logvar
    # One rounding of the log-variance is all that can be lost.
    assert (gaussian.kl_per_dim(torch.zeros_like(logvar), logvar) >= -1e-10).all()


@given(st.integers(1, 17), st.integers(1, 9))
def test_kl_is_exactly_zero_at_the_prior(batch, dim):
    assert torch.equal(
        gaussian.kl_standard_normal(torch.zeros(batch, dim), torch.zeros(batch, dim)), torch.zeros(batch)
    )


@given(parameters())
def test_values_and_gradients_stay_finite_at_extreme_logvar(mu_logvar):
    mu, logvar = (tensor.clone().requires_grad_() for tensor in mu_logvar)
    z = gaussian.reparameterize(mu, logvar, eps=torch.ones_like(mu))
    results = [z.sum(-1), gaussian.log_prob(z, mu, logvar), gaussian.kl_standard_normal(mu, logvar)]
    for result in results:
        assert result.isfinite().all()
    sum(result.sum() for result in results).backward()
    assert mu.grad.isfinite().all()
    assert logvar.grad.isfinite().all()
