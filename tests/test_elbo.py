"""The objective against torch.distributions and against exact integrals; checks are shown to reject known bugs."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.testing import assert_close

from tme_utils.data import binarise
from tme_utils.elbo import ElboTerms, bernoulli_log_prob, check_images, elbo_terms
from tme_utils.gaussian import kl_per_dim, kl_standard_normal, log_prob, reparameterize


def logits_like(x, generator, scale=3.0):
    return scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)


# --- the Bernoulli log-likelihood


def check_bernoulli(log_prob, random_images, generator):
    x = random_images(5, dtype=torch.float64).round()
    logits = logits_like(x, generator(1))
    expected = Independent(Bernoulli(logits=logits), 3).log_prob(x)
    assert_close(log_prob(logits, x), expected, rtol=1e-12, atol=1e-12)


def test_log_likelihood_equals_torch_distributions(random_images, generator):
    check_bernoulli(bernoulli_log_prob, random_images, generator)


@pytest.mark.parametrize(
    "buggy",
    [
        pytest.param(lambda logits, x: -bernoulli_log_prob(logits, x), id="sign"),
        pytest.param(lambda logits, x: bernoulli_log_prob(logits, x) / 784, id="mean over the pixels"),
        pytest.param(lambda logits, x: bernoulli_log_prob(logits, x).sum(), id="sum over the batch"),
        pytest.param(lambda logits, x: bernoulli_log_prob(logits.sigmoid(), x), id="sigmoid applied twice"),
        pytest.param(lambda logits, x: -(logits.sigmoid() - x).square().sum((1, 2, 3)), id="squared error"),
    ],
)
def test_the_check_of_the_log_likelihood_rejects(buggy, random_images, generator):
    with pytest.raises(AssertionError):
        check_bernoulli(buggy, random_images, generator)


def test_grey_pixels_meet_the_same_formula(random_images, generator):
    x = random_images(5, dtype=torch.float64)
    logits = logits_like(x, generator(1))
    probs = logits.sigmoid()
    expected = (x * probs.log() + (1 - x) * (1 - probs).log()).sum((1, 2, 3))
    assert_close(bernoulli_log_prob(logits, x), expected)


def test_even_odds_cost_784_bits(random_images):
    assert_close(-bernoulli_log_prob(torch.zeros(3, 1, 28, 28), random_images(3)), torch.full((3,), 784 * math.log(2)))


def log_prob_by_way_of_probabilities(logits, x):
    probs = logits.sigmoid()
    return (x * probs.log() + (1 - x) * (1 - probs).log()).sum((-3, -2, -1))


def test_logits_of_100_stay_finite_where_probabilities_do_not():
    logits = torch.full((2, 1, 28, 28), 100.0)
    logits[1] = -100.0
    logits.requires_grad_()
    x = torch.zeros(2, 1, 28, 28)
    log_probs = bernoulli_log_prob(logits, x)
    assert_close(log_probs, torch.tensor([-78400.0, 0.0]))
    log_probs.sum().backward()
    assert_close(logits.grad, torch.stack([-torch.ones(1, 28, 28), torch.zeros(1, 28, 28)]))
    assert not log_prob_by_way_of_probabilities(logits, x).isfinite().all()


def test_one_image_under_many_decodings(random_images, generator):
    x = random_images(3)
    logits = logits_like(random_images(4 * 3).reshape(4, 3, 1, 28, 28), generator(1))
    log_probs = bernoulli_log_prob(logits, x)
    assert log_probs.shape == (4, 3)
    assert_close(log_probs[2], bernoulli_log_prob(logits[2], x))


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 784), (2, 1, 28, 27)])
def test_images_that_do_not_fit_the_logits_are_refused(shape):
    with pytest.raises(ValueError, match="do not broadcast"):
        bernoulli_log_prob(torch.zeros(2, 1, 28, 28), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 784), (2, 28, 28), (2, 3, 28, 28), (784,)])
def test_logits_that_are_no_images_are_refused(shape):
    with pytest.raises(ValueError, match=rf"logits must end in \(1, 28, 28\), got {re.escape(str(shape))}"):
        bernoulli_log_prob(torch.zeros(shape), torch.zeros(shape))


@given(st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([1.0, 10.0, 100.0]))
def test_log_likelihood_is_never_positive(batch, seed, scale):
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 1, 28, 28, generator=source)
    logits = (scale * torch.randn(x.shape, generator=source)).clamp(-100, 100)
    for images in (x, x.round()):
        log_probs = bernoulli_log_prob(logits, images)
        assert log_probs.shape == (batch,)
        assert log_probs.isfinite().all()
        assert (log_probs <= 0).all()


# --- grey levels


def check_lemma(mean_log_prob, generator, x, logits):
    """The mean over 4,000 binarisations is the grey value, within five of its exact standard errors."""
    n = 4000
    standard_error = ((logits.square() * x * (1 - x)).sum() / n).sqrt().item()
    drawn = binarise(x.expand(n, 1, 28, 28), generator(2))
    mean = bernoulli_log_prob(logits.expand_as(drawn), drawn).mean()
    assert_close(mean, mean_log_prob(logits, x), rtol=0, atol=5 * standard_error)


def test_the_grey_cross_entropy_is_the_mean_over_binarised_images(generator, random_images):
    x = random_images(1, dtype=torch.float64)
    logits = logits_like(x, generator(1))
    check_lemma(lambda logits, x: bernoulli_log_prob(logits, x).squeeze(), generator, x, logits)


def test_the_check_of_the_lemma_rejects_thresholded_pixels(generator, random_images):
    x = random_images(1, dtype=torch.float64)
    logits = logits_like(x, generator(1))
    with pytest.raises(AssertionError):
        check_lemma(lambda logits, x: bernoulli_log_prob(logits, x.round()).squeeze(), generator, x, logits)


def test_the_cross_entropy_is_linear_in_the_image(generator, random_images):
    x1, x2 = random_images(3, 1, torch.float64), random_images(3, 2, torch.float64)
    logits = logits_like(x1, generator(1))
    mixed = bernoulli_log_prob(logits, 0.3 * x1 + 0.7 * x2)
    assert_close(mixed, 0.3 * bernoulli_log_prob(logits, x1) + 0.7 * bernoulli_log_prob(logits, x2))


def test_no_decoder_beats_the_entropy_of_the_grey_levels(mnist_test):
    x = mnist_test.x.double()
    floor = -bernoulli_log_prob(torch.logit(x, eps=1e-15), x)
    entropy = -(torch.special.xlogy(x, x) + torch.special.xlogy(1 - x, 1 - x)).sum((1, 2, 3))
    assert_close(floor, entropy)
    assert_close(floor.mean().item(), 45.53, rtol=0, atol=0.005)


def test_the_mean_image_is_the_constant_baseline(mnist_train, mnist_test):
    x = mnist_test.x.double()
    mean_image = mnist_train.x.double().mean(0).clamp(1e-6, 1 - 1e-6)
    recon = -bernoulli_log_prob(torch.logit(mean_image).expand_as(x), x).mean()
    assert_close(recon.item(), 205.80, rtol=0, atol=0.01)


# --- both terms


def check_objective(loss, build, random_images, generator):
    """A loss(model, x, eps) against the same quantity put together from torch.distributions."""
    model, x = build().double(), random_images(5, dtype=torch.float64)
    eps = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    mu, logvar = model.encode(x)
    posterior = Normal(mu, (0.5 * logvar).exp())
    z = posterior.mean + posterior.stddev * eps
    recon = -Bernoulli(logits=model.decode(z), validate_args=False).log_prob(x).sum((1, 2, 3))
    kl = kl_divergence(posterior, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    assert_close(loss(model, x, eps), (recon + kl).mean())


def test_the_loss_is_the_mean_negative_elbo(build, random_images, generator):
    check_objective(lambda model, x, eps: elbo_terms(model, x, eps).loss(), build, random_images, generator)


def buggy_recon_mean_kl_sum(model, x, eps):
    """As in PyTorch-VAE: the reconstruction a mean over the pixels, the KL a sum over the coordinates."""
    mu, logvar = model.encode(x)
    logits = model.decode(reparameterize(mu, logvar, eps))
    return F.binary_cross_entropy_with_logits(logits, x) + kl_standard_normal(mu, logvar).mean()


def buggy_kl_mean(model, x, eps):
    terms = elbo_terms(model, x, eps)
    return (terms.recon + kl_per_dim(*model.encode(x)).mean(1)).mean()


def buggy_kl_sign(model, x, eps):
    terms = elbo_terms(model, x, eps)
    return (terms.recon - terms.kl).mean()


def buggy_posterior_mean(model, x, eps):
    return elbo_terms(model, x, torch.zeros_like(eps)).loss()


def buggy_batch_sum(model, x, eps):
    terms = elbo_terms(model, x, eps)
    return (terms.recon + terms.kl).sum()


@pytest.mark.parametrize(
    "buggy", [buggy_recon_mean_kl_sum, buggy_kl_mean, buggy_kl_sign, buggy_posterior_mean, buggy_batch_sum]
)
def test_the_check_of_the_loss_rejects(buggy, build, random_images, generator):
    with pytest.raises(AssertionError):
        check_objective(buggy, build, random_images, generator)


def test_terms_of_hand_made_values():
    terms = ElboTerms(recon=torch.tensor([3.0, 5.0]), kl=torch.tensor([1.0, 2.0]))
    assert torch.equal(terms.elbo, torch.tensor([-4.0, -7.0]))
    assert terms.loss().item() == 5.5
    assert terms.loss(beta=4.0).item() == 10.0
    assert terms.loss(beta=0.0).item() == 4.0
    assert terms.averages() == {"recon": 4.0, "kl": 1.5, "neg_elbo": 5.5}


def test_averages_are_accumulated_in_float64():
    recon = torch.full((100_000,), 100.1)
    recon[0] = 3e9  # float32 cannot add 100.1 to this
    expected = recon.double().mean().item()
    assert ElboTerms(recon, torch.zeros_like(recon)).averages()["recon"] == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_both_terms_are_positive_for_any_batch(build, batch, latent_dim, seed):
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 1, 28, 28, generator=source)
    terms = elbo_terms(build(seed, latent_dim), x, generator=source)
    assert terms.recon.shape == terms.kl.shape == (batch,)
    assert (terms.recon >= 0).all()
    assert (terms.kl >= 0).all()


def test_another_likelihood_can_be_given(build, random_images):
    def gaussian_log_prob(decoded, x):
        return Independent(Normal(decoded, 1.0), 3).log_prob(x)

    model, x, eps = build(), random_images(4), torch.zeros(4, 2)
    terms = elbo_terms(model, x, eps, log_prob=gaussian_log_prob)
    assert_close(terms.recon, -gaussian_log_prob(model.decode(model.encode(x)[0]), x))


def test_the_elbo_is_log_p_less_the_kl_to_the_true_posterior(build, random_images, generator):
    """log p(x) = ELBO + KL(q(z|x) || p(z|x)), every term integrated over a 1-D z."""
    model, x = build(latent_dim=1, hidden=(8,)).double(), random_images(1, dtype=torch.float64)
    model.decoder[2].weight.data *= 5  # so that the code matters
    z = torch.linspace(-9, 9, 6001, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        mu, logvar = model.encode(x)
        log_q = log_prob(z, mu.expand_as(z), logvar.expand_as(z))
        log_joint = bernoulli_log_prob(model.decode(z), x) + log_prob(z, torch.zeros_like(z), torch.zeros_like(z))
        log_p = torch.logsumexp(log_joint, 0) + math.log(0.003)
        gap = torch.trapezoid(log_q.exp() * (log_q - (log_joint - log_p)), z[:, 0])
        n = 20_000
        eps = torch.randn(n, 1, generator=generator(), dtype=torch.float64)
        elbo = elbo_terms(model, x.expand(n, 1, 28, 28), eps).elbo
    assert gap > 0.05
    assert_close(elbo.mean() + gap, log_p, rtol=0, atol=5 * elbo.std().item() / math.sqrt(n))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 784), r"\(B, 1, 28, 28\), got torch.float32 \(2, 784\)"),
        (torch.zeros(2, 3, 28, 28), r"got torch.float32 \(2, 3, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((2, 1, 28, 28), 255.0), r"must lie in \[0, 1\], got values from 255"),
        (torch.full((2, 1, 28, 28), -0.1), r"must lie in \[0, 1\], got values from -0.1"),
        (torch.full((2, 1, 28, 28), math.nan), "got values from nan"),
    ],
)
def test_what_is_not_an_image_is_named(x, said):
    with pytest.raises(ValueError, match=said):
        check_images(x)


def test_images_at_both_ends_of_the_range_are_accepted():
    assert check_images(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 28, 28)) is None
    assert check_images(torch.zeros(0, 1, 28, 28)) is None
