"""Learnt priors and the sharper objective, against autograd, quadrature and the plain estimators."""

import math

import numpy as np
import pytest
import torch

from tme_utils.metrics import importance_weighted_log_likelihood
from tme_utils.priors import Flow, FullGaussian, Sharper, fit_prior
from tme_utils.vae import ElboTerms, StandardNormal, elbo_terms, gaussian_log_prob, mlp_vae, reparameterize

F64 = torch.float64


def noise(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=F64)


def moved(latent_dim=4, n_couplings=3):
    """A flow that is no longer the identity."""
    flow = Flow(latent_dim, n_couplings, hidden=16).double()
    for i, parameter in enumerate(flow.parameters()):
        parameter.data = 0.25 * noise(*parameter.shape, seed=i)
    return flow


def full_gaussian():
    return FullGaussian(noise(500, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.3]], dtype=F64) + 1)


CODES = torch.zeros(20, 4)
REFUSED = {
    r"n_samples must be an integer >= 1, got 0": lambda: Sharper(n_samples=0),
    r"shift must be an integer >= 0, got 0.5": lambda: Sharper(shift=0.5),
    r"in \[0, 1\], got Sharper\(.*share=1.5": lambda: Sharper(share=1.5),
    r"in \[0, 1\], got Sharper\(.*warm_up=nan": lambda: Sharper(warm_up=math.nan),
    r"warp >= 0, .*warp=-0.1": lambda: Sharper(warp=-0.1),
    r"latent_dim must be even, got 3": lambda: Flow(3),
    r"hidden must be an integer >= 1, got 0": lambda: Flow(2, hidden=0),
    r"n_couplings must be an integer >= 1, got 0": lambda: Flow(2, n_couplings=0),
    r"more codes than each has coordinates, \(n, d\), got \(2, 2\)": lambda: FullGaussian(torch.eye(2)),
    r"prior must be a module .* got StandardNormal": lambda: fit_prior(StandardNormal(), CODES, CODES, 1, seed=0),
    r"batch_size must be .* got 0": lambda: fit_prior(Flow(4), CODES, CODES, 1, seed=0, batch_size=0),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_named_at_the_door(said):
    with pytest.raises(ValueError, match=said):
        REFUSED[said]()


def test_numbers_of_any_type_ask_for_one_objective():
    assert repr(Sharper(n_samples=np.int64(5), share=1, warp=np.float32(0.5))) == repr(Sharper(share=1.0, warp=0.5))


def small_vae(prior=None):
    torch.manual_seed(0)
    model = mlp_vae(4, (16,)).double()
    model.prior = prior or StandardNormal()
    return model


X = torch.bernoulli(torch.rand((6, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=F64))


def test_a_new_flow_is_the_standard_normal():
    z = noise(5, 7, 6)
    assert torch.allclose(Flow(6).double().log_prob(z), StandardNormal().log_prob(z), atol=1e-12)


def test_a_flow_is_undone():
    flow, z = moved(), noise(5, 7, 4)
    u, log_det = flow.to_normal(z)
    assert (u - z).abs().max() > 0.1
    assert log_det.abs().max() > 0.1
    assert torch.allclose(flow.from_normal(u), z, atol=1e-10)


def test_the_log_determinant_is_that_of_autograds_jacobian():
    flow = moved()
    for z in noise(5, 4):
        jacobian = torch.autograd.functional.jacobian(lambda point: flow.to_normal(point)[0], z)
        assert torch.allclose(flow.to_normal(z)[1], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-10)


@pytest.mark.parametrize("prior", [moved(2), full_gaussian()], ids=["flow", "gaussian"])
def test_a_density_integrates_to_one_and_its_draws_have_its_moments(prior):
    axis = torch.linspace(-12, 12, 601, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = prior.log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
        draws = prior.sample(40_000, grid[0], torch.Generator().manual_seed(0))
    assert abs(mass.sum() - 1) < 1e-3
    mean = mass @ grid
    spread = (mass @ grid.square() - mean.square()).sqrt()
    assert ((draws.mean(dim=0) - mean).abs() < 5 * spread / math.sqrt(len(draws))).all()
    assert torch.allclose(draws.std(dim=0), spread, rtol=0.05)


def test_a_gaussian_prior_is_the_best_of_its_kind_for_its_codes():
    z = noise(400, 3) @ noise(3, 3, seed=1)
    best = FullGaussian(z).log_prob(z).mean()
    for i in range(3):
        other = FullGaussian(z + 0.1 * noise(400, 3, seed=2 + i))
        assert other.log_prob(z).mean() < best
    assert torch.allclose(FullGaussian(z).log_prob(z), gaussian_of(z).log_prob(z))


def gaussian_of(z):
    return torch.distributions.MultivariateNormal(z.mean(dim=0), z.T.cov())


def test_the_kl_of_a_learnt_prior_is_unbiased():
    mu, logvar = noise(3, 4), noise(3, 4, seed=1) - 1
    z = reparameterize(mu, logvar, noise(20_000, 3, 4, seed=2))
    estimates = Flow(4, hidden=8).double().kl(mu, logvar, z)  # of N(0, I), whose closed form is known
    exact = StandardNormal().kl(mu, logvar, z)
    assert ((estimates.mean(dim=0) - exact).abs() < 5 * estimates.std(dim=0) / math.sqrt(len(z))).all()


def test_a_model_uses_its_prior_throughout():
    flow = moved()
    model, eps = small_vae(flow), noise(6, 4)
    mu, logvar = model.encode(X)
    z = reparameterize(mu, logvar, eps)
    expected = ElboTerms(-model.log_likelihood(X, z), gaussian_log_prob(z, mu, logvar) - flow.log_prob(z))
    assert torch.equal(elbo_terms(model, X, eps).elbo, expected.elbo)
    one = importance_weighted_log_likelihood(model, X, 1, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    eps = torch.cat([torch.randn((1, 4), generator=generator, dtype=F64) for _ in X])
    assert torch.allclose(one, elbo_terms(model, X, eps).elbo)
    sample = model.sample(3, torch.Generator().manual_seed(1))
    u = torch.randn((3, 4), generator=torch.Generator().manual_seed(1), dtype=F64)
    assert torch.equal(sample, model.decode(flow.from_normal(u)).sigmoid())
    assert any(name.startswith("prior.") for name in model.state_dict())


def test_a_fitted_prior_comes_near_to_the_codes_own_density():
    """Codes of one wide Gaussian, which a flow can match: it gains their divergence from N(0, I)."""
    mu, logvar = 1 + 0.1 * noise(2_000, 2), torch.full((2_000, 2), math.log(0.25), dtype=F64)
    flow = Flow(2, 4, 32).double()
    assert fit_prior(flow, mu, logvar, 12, seed=0, batch_size=50) > 0
    z = reparameterize(mu, logvar, noise(2_000, 2, seed=3))
    with torch.no_grad():
        gain = (flow.log_prob(z) - StandardNormal().log_prob(z)).mean()
        most = (gaussian_of(z).log_prob(z) - StandardNormal().log_prob(z)).mean()
    assert most > 1
    assert abs(gain - most) < 0.02


def gradients(model, objective, n_draws):
    """Means and standard errors of the gradients of all weights, over draws of the noise."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(n_draws):
        model.zero_grad()
        objective.loss(model, X, generator, 1.0).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    found = torch.stack(found)
    return found.mean(dim=0), found.std(dim=0) / math.sqrt(n_draws)


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("prior", [None, moved()], ids=["normal", "flow"])
def test_the_sharper_objective_has_the_same_value_and_mean_gradient(prior, n_samples):
    model, n_draws = small_vae(prior), 400
    sharp = Sharper(n_samples, share=1.0)
    plain = Sharper(n_samples, share=1.0, sticking=False)
    values = [o.loss(model, X, torch.Generator().manual_seed(5), 1.0).item() for o in (sharp, plain)]
    assert values[0] == pytest.approx(values[1])
    (mean, error), (other, other_error) = (gradients(model, o, n_draws) for o in (sharp, plain))
    z_score = (mean - other) / (error.square() + other_error.square()).sqrt().clamp(min=1e-12)
    # Weights share their draws, so that their deviations come together: the root mean square tells.
    assert z_score.square().mean().sqrt() < 2


def test_at_the_true_posterior_one_draw_gives_no_noise():
    """A decoder that ignores z has the posterior N(0, I): there the gradient of q's parameters is exactly zero."""
    model = small_vae()
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.3") or name.startswith("decoder.0.weight"):
            parameter.data.zero_()
    generator = torch.Generator().manual_seed(0)
    Sharper().loss(model, X, generator, 0.0).backward()
    assert model.encoder[3].bias.grad.abs().max() < 1e-12
    Sharper(sticking=False).loss(model, X, generator, 0.0).backward()
    assert model.encoder[3].bias.grad.abs().max() > 1e-3


def test_the_bound_tightens_in_the_last_share_and_the_kl_warms_up():
    model = small_vae()

    def value(done, **options):
        return Sharper(50, **options).loss(model, X, torch.Generator().manual_seed(0), done).item()

    assert value(0.79, share=0.2) == value(0.0, share=0.2) > value(0.81, share=0.2)
    assert value(0.0, warm_up=0.5) < value(0.25, warm_up=0.5) < value(0.5, warm_up=0.5) == value(0.99)


def test_moved_images_keep_their_strokes_and_in_the_end_stay():
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    blob = torch.exp(-((rows - 11.5).square() + (columns - 18.5).square()) / 8).expand(500, 1, 28, 28)

    def centres(done, **options):
        x = Sharper(**options).augment(blob, torch.Generator().manual_seed(0), done)
        assert x.shape == blob.shape
        assert x.min() >= 0
        assert x.max() <= 1
        ink = x.sum(dim=(1, 2, 3))
        return torch.stack([(x[:, 0] * place).sum(dim=(1, 2)) / ink for place in (rows, columns)], dim=1)

    assert torch.allclose(centres(0.0), centres(0.7, warp=0.2, shift=2))
    shifts = (centres(0.0) - centres(0.0, shift=1)).round(decimals=2)
    assert sorted(set(map(tuple, shifts.tolist()))) == [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
    # The blob lies at (-2, 5) from the centre (13.5, 13.5): entries of deviation 0.1 move it by 0.1 of its distance.
    spread = centres(0.0, warp=0.1).std(dim=0)
    assert ((spread - 0.1 * 29**0.5).abs() < 0.1).all()
