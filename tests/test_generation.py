import pytest
import torch

from tme_utils.generation import (
    DigitClassifier,
    divergence_from_prior,
    features,
    fit_classifier,
    frechet_distance,
    recognised,
)


def normal(n, dim, seed, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the Fréchet distance


def test_a_set_is_at_distance_zero_from_itself():
    a = normal(200, 5, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_a_shift_costs_its_square():
    a = normal(300, 4, 1)
    assert frechet_distance(a, a + torch.tensor([3.0, 0, 4.0, 0])) == pytest.approx(25, abs=1e-9)


def test_axis_aligned_spreads_cost_the_square_of_their_difference():
    # For independent axes the formula is the sum of (s_a - s_b)²: here of each axis' own standard deviation.
    a = normal(1000, 3, 2)
    a = (a - a.mean(dim=0)) @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov())).T  # covariance exactly I
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert frechet_distance(a, a * scale) == pytest.approx(((1 - scale) ** 2).sum().item(), abs=1e-9)


def test_the_distance_is_symmetric_and_does_not_depend_on_the_axes():
    a, b = normal(400, 6, 3) @ normal(6, 6, 4), normal(500, 6, 5) @ normal(6, 6, 6) + 1
    turn = torch.linalg.qr(normal(6, 6, 7)).Q
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_features_that_never_vary_are_no_obstacle():
    a, b = torch.zeros(10, 3), torch.zeros(20, 3)
    b[:, 1] = 2
    assert frechet_distance(a, b) == pytest.approx(4)


@pytest.mark.parametrize(("a", "b"), [((10, 3), (10, 4)), ((1, 3), (10, 3)), ((10, 3), (0, 3)), ((10,), (10, 3))])
def test_features_that_do_not_fit_are_named(a, b):
    with pytest.raises(ValueError, match=r"need features .*got \(" + str(a[0])):
        frechet_distance(torch.zeros(a), torch.zeros(b))


# --- how far codes are from the prior


def test_codes_of_the_prior_are_told_from_it_by_nobody():
    bits = divergence_from_prior(normal(5000, 3, 0).float(), normal(2000, 3, 1).float(), seed=0)
    assert -0.02 < bits < 0.01


def test_the_bound_comes_close_to_the_divergence_and_not_above():
    # JS between N(0, 1) and N(1.5, 0.5²) by quadrature; the network sees the first axis among two.
    t = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    p, q = (torch.distributions.Normal(m, s).log_prob(t).exp() for m, s in [(0.0, 1.0), (1.5, 0.5)])
    mean = (p + q) / 2
    js = sum(torch.trapezoid(torch.where(f > 0, f * (f / mean).log2(), 0), t).item() for f in (p, q)) / 2

    def codes(n, seed):
        z = normal(n, 2, seed)
        z[:, 0] = 1.5 + 0.5 * z[:, 0]
        return z.float()

    bits = divergence_from_prior(codes(20_000, 0), codes(20_000, 1), seed=0)
    assert js - 0.03 < bits < js + 0.015  # the standard error of 40,000 cross-entropies is about 0.003 bits


def test_codes_far_from_the_prior_give_one_bit():
    assert (
        divergence_from_prior(normal(2000, 2, 0, 8).float(), normal(500, 2, 1, 8).float(), seed=0, n_epochs=60) > 0.99
    )


def test_the_same_seed_gives_the_same_bound_and_leaves_the_global_generator():
    z, other = normal(600, 2, 0).float(), normal(300, 2, 1).float()
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    first, again = (divergence_from_prior(z, other, seed=1) for _ in range(2))
    assert first == again
    torch.testing.assert_close(torch.randn(2), expected, rtol=0, atol=0)


def test_codes_of_double_precision_give_the_same_bound():
    z, other = normal(600, 2, 0), normal(300, 2, 1)
    options = {"seed": 1, "n_epochs": 2}
    assert divergence_from_prior(z, other, **options) == divergence_from_prior(z.float(), other.float(), **options)


@pytest.mark.parametrize(("shape", "other"), [((10,), (10,)), ((10, 2), (10, 3)), ((0, 2), (5, 2)), ((5, 2), (0, 2))])
def test_codes_that_do_not_fit_are_named(shape, other):
    with pytest.raises(ValueError, match="need codes"):
        divergence_from_prior(torch.zeros(shape), torch.zeros(other), seed=0)


# --- the classifier


def test_a_classifier_learns_what_can_be_told(random_images):
    torch.manual_seed(0)
    classifier = DigitClassifier()
    x = random_images(300)
    y = torch.arange(300) % 10
    x[:, 0, 0] = torch.nn.functional.one_hot(y, 28).float()  # the first row of pixels tells the class
    before = recognised(classifier, features(classifier, x))
    fit_classifier(classifier, x, y, 30, seed=0, batch_size=20)
    assert (classifier(x).argmax(dim=1) == y).float().mean() > 0.95
    assert recognised(classifier, features(classifier, x)) > 0.8 > before


def test_features_are_the_last_hidden_layer(random_images):
    classifier, x = DigitClassifier(), random_images(7)
    found = features(classifier, x, batch_size=3)
    assert found.shape == (7, 64)
    torch.testing.assert_close(classifier.head(found), classifier(x).detach())


def test_images_are_recognised_from_the_threshold_on():
    classifier = DigitClassifier()
    torch.nn.init.zeros_(classifier.head.weight)
    with torch.no_grad():
        classifier.head.bias[:] = torch.tensor([0.55, *[0.05] * 9]).log()
    assert recognised(classifier, torch.zeros(4, 64), threshold=0.5) == 1
    assert recognised(classifier, torch.zeros(4, 64), threshold=0.6) == 0


@pytest.mark.parametrize(("n", "m"), [(0, 0), (3, 4)])
def test_inputs_and_classes_must_go_together(n, m):
    with pytest.raises(ValueError, match=f"got {m} and {n}"):
        fit_classifier(DigitClassifier(), torch.zeros(n, 1, 28, 28), torch.zeros(m, dtype=torch.int64), 1, seed=0)
