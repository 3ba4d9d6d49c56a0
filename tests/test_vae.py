"""The lesson's own code: Gaussians, likelihoods, the objective, the models and their builders."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from conftest import Gaussian
from tme_utils.architectures import ARCHITECTURES, deterministic, residual_vae
from tme_utils.training import Probes, Recipe, evaluate, fit, seeded, take_snapshots
from tme_utils.vae import (
    VAE,
    Bernoulli,
    ElboTerms,
    as_int,
    bernoulli_log_prob,
    check_images,
    conv_vae,
    elbo_terms,
    gaussian_log_prob,
    kl_per_dim,
    kl_standard_normal,
    mlp_vae,
    reparameterize,
)

F64 = torch.float64
GREY = torch.linspace(0, 1, 784).reshape(1, 1, 28, 28)


@pytest.fixture
def gaussians(generator):
    """Means and log-variances of six Gaussians in three dimensions."""
    source = generator(3)
    mu, logvar = (torch.randn(6, 3, generator=source, dtype=F64) for _ in range(2))
    return mu, 2 * logvar


# --- Gaussians


def test_a_draw_is_the_mean_plus_the_standard_deviation_times_the_noise(gaussians, generator):
    mu, logvar = gaussians
    eps = torch.randn(4, 6, 3, generator=generator(), dtype=F64)
    assert_close(reparameterize(mu, logvar, eps), mu + logvar.exp().sqrt() * eps)
    drawn = reparameterize(mu, logvar, generator=generator(1))
    assert_close(drawn, reparameterize(mu, logvar, torch.randn(6, 3, generator=generator(1), dtype=F64)))
    leaves = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
    by_mu, by_logvar = torch.autograd.grad(reparameterize(*leaves, eps[0]).sum(), leaves)
    assert_close(by_mu, torch.ones_like(mu))
    assert_close(by_logvar, 0.5 * (0.5 * logvar).exp() * eps[0])


def test_density_and_kl_are_those_of_torch(gaussians, generator):
    mu, logvar = gaussians
    q, p = Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), 1.0)
    z = torch.randn(5, 6, 3, generator=generator(), dtype=F64)
    assert_close(gaussian_log_prob(z, mu, logvar), q.log_prob(z).sum(-1))
    assert_close(kl_per_dim(mu, logvar), kl_divergence(q, p))
    assert_close(kl_standard_normal(mu, logvar), kl_divergence(q, p).sum(-1))


def test_the_kl_of_a_nearly_collapsed_coordinate_is_not_drowned():
    logvar = torch.tensor([1e-4])
    assert_close(kl_per_dim(torch.zeros(1), logvar), logvar.square() / 4, rtol=1e-3, atol=0)  # ½ (e^v − 1 − v) ≈ v²/4
    assert kl_standard_normal(torch.zeros(3), torch.zeros(3)) == 0


# --- likelihoods


def test_the_bernoulli_likelihood_is_torchs_for_binary_images_and_its_expectation_for_grey_ones(generator):
    logits = 3 * torch.randn(4, 1, 28, 28, generator=generator(), dtype=F64)
    x = torch.rand(4, 1, 28, 28, generator=generator(1), dtype=F64)
    ink, paper = (TorchBernoulli(logits=logits).log_prob(torch.full_like(x, value)) for value in (1.0, 0.0))
    assert_close(bernoulli_log_prob(logits, x.round()), torch.where(x > 0.5, ink, paper).sum((1, 2, 3)))
    assert_close(bernoulli_log_prob(logits, x), (x * ink + (1 - x) * paper).sum((1, 2, 3)))


def test_even_odds_cost_784_log_2(random_images):
    assert_close(bernoulli_log_prob(torch.zeros(3, 1, 28, 28), random_images(3)), torch.full((3,), -784 * math.log(2)))


def test_pairs_are_exact_for_the_surest_logits_too(generator):
    logits = 60 * (2 * torch.rand(3, 1, 28, 28, generator=generator(), dtype=F64) - 1)
    x = torch.rand(5, 1, 28, 28, generator=generator(1), dtype=F64)
    pairs = Bernoulli().log_prob_pairs(logits, x)
    expected = torch.stack([bernoulli_log_prob(one.expand_as(x), x) for one in logits])
    assert_close(pairs, expected, rtol=0, atol=1e-9)
    assert_close(Bernoulli().mean(logits), 1 / (1 + (-logits).exp()))


# --- nothing broadcasts unasked


@pytest.mark.parametrize(
    "call",
    [
        lambda: bernoulli_log_prob(torch.zeros(5, 1, 28, 28), torch.rand(1, 1, 28, 28)),
        lambda: bernoulli_log_prob(torch.zeros(5, 784), torch.rand(5, 784)),
        lambda: reparameterize(torch.zeros(5, 2), torch.zeros(2)),
        lambda: reparameterize(torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(5, 1)),
        lambda: gaussian_log_prob(torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(5, 1)),
        lambda: gaussian_log_prob(torch.zeros(4, 1, 2), torch.zeros(5, 2), torch.zeros(5, 2)),
        lambda: kl_per_dim(torch.zeros(5, 2), torch.zeros(2)),
        lambda: mlp_vae(2, (4,)).decode(torch.zeros(5, 4)),
        lambda: mlp_vae(2, (4,)).log_likelihood(torch.rand(1, 1, 28, 28), torch.zeros(5, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_told(call):
    with pytest.raises(ValueError, match="shape"):
        call()


def test_only_a_batch_of_images_is_encoded():
    with pytest.raises(ValueError, match=r"floats \(B, 1, 28, 28\), got Tensor torch.float32 \(5, 28, 28\)"):
        mlp_vae(2, (4,)).encode(torch.rand(5, 28, 28))


# --- the objective


@pytest.mark.parametrize("size", [(4, 2), (3, 4, 2)])  # one draw for each image, several
def test_the_terms_are_those_of_the_textbook(size, build, random_images, generator):
    model, x = build().double(), random_images(4, dtype=F64)
    eps = torch.randn(size, generator=generator(), dtype=F64)
    terms = elbo_terms(model, x, eps)
    mu, logvar = model.encode(x)
    decoded = model.decode(mu + (0.5 * logvar).exp() * eps)
    recon = -TorchBernoulli(decoded.sigmoid(), validate_args=False).log_prob(x).sum((-3, -2, -1))
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
    assert_close(terms.recon, recon)
    assert_close(terms.kl, kl)
    assert_close(terms.elbo, -recon - kl)
    assert_close(terms.loss(), (recon + kl).mean())
    assert_close(terms.loss(beta=3.0), (recon + 3 * kl).mean())
    averages = {"recon": recon.mean(), "kl": kl.mean(), "neg_elbo": (recon + kl).mean()}
    assert terms.averages() == pytest.approx({name: value.item() for name, value in averages.items()})
    drawn = torch.randn(4, 2, generator=generator(), dtype=F64)
    assert_close(elbo_terms(model, x, generator=generator()), elbo_terms(model, x, drawn))


def test_averages_are_summed_in_float64():
    recon = torch.cat([torch.full((1,), 2.0**24), torch.ones(100)])
    assert ElboTerms(recon, 0 * recon).averages()["recon"] == (2.0**24 + 100) / 101


def test_another_likelihood_is_another_small_class(build, random_images, generator):
    plain = build()
    model, x = VAE(plain.encoder, plain.decoder, 2, plain.config, Gaussian(0.5)), random_images(50)
    mu, logvar = model.encode(x)
    eps = torch.randn(50, 2, generator=generator())
    expected = Normal(model.decode(mu + (0.5 * logvar).exp() * eps), 0.5).log_prob(x).sum((1, 2, 3))
    assert_close(-elbo_terms(model, x, eps).recon, expected)
    assert_close(model.reconstruct(x), model.decode(mu))
    assert_close(model.sample(50, generator()), model.decode(eps))
    assert_close(take_snapshots(model, Probes(x, x, eps))["prior"], model.decode(eps).detach())
    before = evaluate(model, x).averages()["neg_elbo"]
    fit(model, x, x, Recipe(n_epochs=3, batch_size=10), progress=False)
    assert evaluate(model, x).averages()["neg_elbo"] < before - 10


# --- models


@pytest.mark.parametrize(("build", "n"), [(mlp_vae, 652_824), (conv_vae, 837_257), (residual_vae, 1_782_785)])
def test_shapes_and_sizes_of_the_architectures(build, n, random_images, generator):
    model, x = build(), random_images(3)
    assert model.n_parameters == n
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (3, model.latent_dim)
    assert model.decode(torch.zeros(2, 3, model.latent_dim)).shape == (2, 3, 1, 28, 28)
    assert_close(model.reconstruct(x), model.decode(mu).sigmoid())
    z = torch.randn(4, model.latent_dim, generator=generator())
    assert_close(model.sample(4, generator()), model.decode(z).sigmoid())
    assert not model.sample(1).requires_grad
    mean, other = elbo_terms(model, x, torch.zeros_like(mu)), elbo_terms(model, x, torch.ones_like(mu))
    (mean.loss() + other.loss()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "weighted", "decoded"),
    # computed by the builders as they stood when the models of the report were trained
    [("mlp", -28.74265, 7.717667), ("conv", -2.76341, 0.830524), ("residual", 10.11187, 0.358520)],
)
def test_a_seed_gives_the_reports_models_before_training(name, weighted, decoded):
    with seeded(5):
        model = ARCHITECTURES[name](4).double()
    mu, _ = model.encode(torch.linspace(0, 1, 784, dtype=F64).reshape(1, 1, 28, 28))
    weights = torch.cat([p.flatten() for p in model.parameters()])
    for values, total in [(weights, weighted), (model.decode(10 * mu).flatten(), decoded)]:
        assert (values * torch.arange(len(values)).cos()).sum().item() == pytest.approx(total, abs=1e-4)


def test_the_mlp_is_the_handouts_and_its_decoder_mirrors_its_encoder():
    encoder, decoder = ([type(layer).__name__ for layer in net] for net in (mlp_vae(2).encoder, mlp_vae(2).decoder))
    assert (encoder, decoder) == (["Flatten", "Linear", "ReLU", "Linear"], ["Linear", "ReLU", "Linear", "Unflatten"])
    sizes = [layer.out_features for layer in mlp_vae(3, (30, 20)).decoder if isinstance(layer, nn.Linear)]
    assert sizes == [20, 30, 784]
    assert mlp_vae(np.int64(3), (np.int32(30),)).config == {"architecture": "mlp", "latent_dim": 3, "hidden": [30]}


def test_every_pixel_of_the_deconvolution_has_as_many_taps():
    layer = conv_vae(2).decoder[-1]
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    inner = layer(torch.ones(1, 16, 14, 14))[..., 1:-1, 1:-1]
    assert inner.unique().tolist() == [4 * 16]


def test_the_auto_encoder_has_a_point_for_a_posterior(build, random_images, generator):
    vae = build(latent_dim=3)
    model, x = deterministic(vae), random_images(4)
    assert model.config["architecture"] == "mlp_ae"
    assert_close(model.encode(x)[0], vae.encode(x)[0])
    noisy, still = (elbo_terms(model, x, eps).recon for eps in (torch.full((4, 3), 5.0), torch.zeros(4, 3)))
    assert_close(noisy, still, rtol=0, atol=0)
    assert ARCHITECTURES["conv_ae"](3).latent_dim == 3


# --- the doors


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (torch.zeros(2, 28, 28), r"float32 \(2, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "uint8"),
        (torch.zeros(0, 1, 28, 28), r"got Tensor torch.float32 \(0,"),
        (GREY + 0.5, "from 0.5 to 1.5"),
        (GREY - 0.5, "from -0.5 to 0.5"),
        (torch.full((2, 1, 28, 28), float("nan")), "nan"),
    ],
)
def test_what_is_no_batch_of_images(x, named):
    with pytest.raises(ValueError, match=named):
        check_images(x)


def test_any_integer_counts_and_nothing_else():
    assert [type(as_int("k", value)) for value in (3, np.int64(3), torch.tensor(3))] == [int] * 3
    assert as_int("k", 0, least=0) == 0
    for value in (0, -1, 2.0, "3", None):
        with pytest.raises(ValueError, match=f"k must be an integer >= 1, got {value!r}"):
            as_int("k", value)
    with pytest.raises(ValueError, match="channels"):
        conv_vae(2, (16, 0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: x.numpy(), "must be a tensor of floats .* got ndarray float32"),
        (lambda x: (255 * x).byte(), "must be a tensor of floats .* got Tensor torch.uint8"),
        (lambda x: 255 * x, r"pixels must lie in \[0, 1\], got values from"),
        (lambda x: (x - 0.13) / 0.3, r"pixels must lie in \[0, 1\], got values from -"),
        (lambda x: x.double(), "must have the same dtype"),
    ],
)
@pytest.mark.parametrize("use", [elbo_terms, evaluate, lambda model, x: fit(model, x, x, Recipe(1), progress=False)])
def test_what_users_have_instead_of_images_is_told(use, given, message, build, random_images):
    with pytest.raises(RuntimeError if "dtype" in message else ValueError, match=message):
        use(build(), given(random_images(4)))
