import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Ellipse

from tme_utils import plots_theory


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def drawn(fig):
    """Texts of the figure, after it has really been drawn."""
    fig.canvas.draw()
    return [text.get_text() for text in fig.findobj(plt.Text) if text.get_text()]


def test_schema_names_the_parts_and_the_two_terms():
    image = np.zeros((28, 28))
    texts = " ".join(drawn(plots_theory.vae_schema(image, image, image)))
    for part in ["encoder", "decoder", r"\mu", r"\log\,\sigma^2", r"\sigma \odot \epsilon", "recon", "KL"]:
        assert part in texts


@pytest.mark.parametrize("mass", [0.5, 0.95])
def test_region_levels_hold_the_mass_of_a_gaussian(mass):
    axis = np.linspace(-6, 6, 601)
    squares = axis[:, None] ** 2 + axis**2
    (level,) = plots_theory.region_levels(np.exp(-squares / 2), [mass])
    assert level == pytest.approx(1 - mass, abs=2e-3)  # exp(-r²/2) at the radius that holds the mass


def test_posterior_ellipses_hold_half_and_95_percent():
    axis = np.linspace(-5, 5, 101)
    z = np.stack(np.meshgrid(axis, axis), axis=-1)[None].repeat(2, axis=0)  # z_1 along the last grid axis
    std = np.array([[1.0, 0.5], [0.7, 0.7]])
    density = np.stack([np.exp(-0.5 * ((grid / s) ** 2).sum(-1)) for grid, s in zip(z, std, strict=True)])
    fig = plots_theory.posteriors(z, density, np.zeros((2, 2)), std, np.zeros((2, 1, 28, 28)), [0.1, 0.25])
    texts = drawn(fig)
    assert "gap 0.10 nats" in texts
    assert "gap 0.25 nats" in texts
    inner, outer = (p for p in fig.axes[0].patches if isinstance(p, Ellipse))
    for ellipse, mass in [(inner, 0.5), (outer, 0.95)]:
        radius = np.sqrt(-2 * np.log(1 - mass))
        assert (ellipse.width, ellipse.height) == pytest.approx((2 * radius * 1.0, 2 * radius * 0.5))


def test_posterior_panels_show_a_mode_far_from_the_encoder():
    axis = np.linspace(-5, 5, 101)
    z = np.stack(np.meshgrid(axis, axis), axis=-1)[None]
    density = np.exp(-50 * ((z - 3) ** 2).sum(-1))
    fig = plots_theory.posteriors(
        z, density, np.full((1, 2), -2.0), np.full((1, 2), 0.1), np.zeros((1, 1, 28, 28)), [9.0]
    )
    for low, high in [fig.axes[0].get_xlim(), fig.axes[0].get_ylim()]:
        assert low < -2.2
        assert high > 3.2


def test_bounds_start_at_the_elbo_and_show_what_is_missing():
    values = np.array([[-102.0, -101.0, -100.5, -100.25, -100.1], [-60.0, -55.0, -52.0, -51.0, -49.9]])
    fig = plots_theory.bounds([1, 2, 4, 8, 16], values, [-100.0, -50.0], shown=0)
    texts = drawn(fig)
    assert "exact log p(x) = −100.00" in texts
    assert "ELBO = −102.00" in texts
    assert {"2.00", "10.00"} <= set(texts)
    lines = fig.axes[1].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), [2, 1, 0.5, 0.25, 0.1])
    assert np.isnan(lines[1].get_ydata()[-1])  # noise above the exact value has no place on a log axis


def test_kl_shape_is_drawn_from_its_arrays():
    axis = np.linspace(-3, 3, 11)
    fig = plots_theory.kl_shape(axis, axis**2 / 2, axis, np.exp(axis) - axis - 1)
    np.testing.assert_allclose(fig.axes[0].get_lines()[0].get_ydata(), axis**2 / 2)
    assert "KL of one coordinate, nats" in drawn(fig)


def test_monte_carlo_line_has_the_slope_given():
    fig = plots_theory.monte_carlo_error([100, 10_000], [0.1, 0.01], slope=-0.5, intercept=0.0)
    np.testing.assert_allclose(fig.axes[0].get_lines()[0].get_ydata(), [0.1, 0.01])
    assert "fitted line, slope −0.50" in drawn(fig)


def test_gradient_estimators_keep_their_names():
    rng = np.random.default_rng(0)
    draws = {"reparametrisation": rng.normal(1, 1, 500), "score function": rng.normal(1, 9, 500)}
    fig = plots_theory.gradient_estimators(draws, 1.0, [1, 2], {"reparametrisation": [1, 1], "score function": [9, 9]})
    assert {*draws, "exact gradient, 1"} <= set(drawn(fig))


def test_price_marks_the_crossing():
    betas = np.logspace(0, 3, 20)
    fig = plots_theory.price_of_information(betas, 130 + 7 * betas, 205.8, crossing=10.83, n_pixels=784)
    texts = " ".join(drawn(fig))
    assert "β = 10.8" in texts
    assert "β = 784" in texts
