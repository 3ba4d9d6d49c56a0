"""Figures of the latent space: looked at through their artists, never by eye."""

from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from tme_utils import plots, plots_latent
from tme_utils.latent import prior_grid


@pytest.fixture(autouse=True)
def close():
    """Draw without a screen, and close what was drawn."""
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def plane():
    """Means (200, 2) with their labels."""
    return torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 10


def draws(fig):
    """Whether the figure can be rendered without an error."""
    fig.canvas.draw()
    return isinstance(fig, Figure)


def shown(ax):
    """The picture on an axes."""
    return np.asarray(ax.get_images()[0].get_array())


def names(labels):
    return [label.get_text() for label in labels]


def test_scatters_stand_side_by_side_with_their_axes_named(plane):
    mu, y = plane
    fig = plots_latent.scatter_row({"both": (mu, ("a", "b")), "turned": (mu.flip(1), ("b", "a"))}, y)
    assert draws(fig)
    assert [ax.get_title() for ax in fig.axes] == ["both", "turned"]
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in fig.axes] == [("a", "b"), ("b", "a")]
    np.testing.assert_allclose(np.asarray(fig.axes[1].collections[0].get_offsets()), mu.flip(1).numpy(), rtol=1e-6)


def test_overlaps_are_written_in_percent_row_by_row():
    matrix = 0.9 * torch.eye(10)
    matrix[4, 9], matrix[0, 1] = 0.1, 0.004
    fig = plots_latent.overlap_matrices({"plane": matrix})
    assert draws(fig)
    written = {text.get_position(): text.get_text() for text in fig.axes[0].texts}
    assert written.pop((9, 4)) == "10"  # the neighbours to the right, the class downwards
    assert written == {(i, i): "90" for i in range(10)}


def check_holes(draw, images):
    """The lower left corner is empty, the rest is as dense as the prior."""
    log_ratio = torch.zeros(8, 8)
    log_ratio[:2, :2] = -5.0
    fig = draw(log_ratio, images)
    assert draws(fig)
    left, right, _ = fig.axes
    assert left.get_images()[0].origin == "lower"
    assert shown(left)[0, 0] < np.log10(0.1) < shown(left)[-1, -1]
    np.testing.assert_allclose(shown(right), plots.tile(images.flip(0).reshape(-1, 1, 28, 28), 4))
    corners = {patch.get_xy() for patch in right.patches}
    assert corners == {(0, 3 * 29)}  # pixels of the picture run downwards


def test_holes_are_framed_where_they_are(random_images):
    images = random_images(16).reshape(4, 4, 1, 28, 28)
    check_holes(lambda ratio, grid: plots_latent.holes(ratio, grid, 0.1), images)


@pytest.mark.parametrize(
    "buggy",
    [
        pytest.param(lambda r, g: plots_latent.holes(r.flip(0), g, 0.1), id="upside down"),
        pytest.param(lambda r, g: plots_latent.holes(r.flip(1), g, 0.1), id="mirrored"),
        pytest.param(lambda r, g: plots_latent.holes(-r, g, 0.1), id="crowds for holes"),
        pytest.param(lambda r, g: plots_latent.holes(r, g.transpose(0, 1), 0.1), id="turned grid"),
    ],
)
def test_the_check_of_the_holes_rejects(buggy, random_images):
    with pytest.raises(AssertionError):
        check_holes(buggy, random_images(16).reshape(4, 4, 1, 28, 28))


def test_the_map_of_holes_has_its_ticks_at_the_quantiles_of_the_grid(random_images):
    fig = plots_latent.holes(torch.full((8, 8), -torch.inf), random_images(16).reshape(4, 4, 1, 28, 28), 0.1)
    assert draws(fig)  # also where q(z) is zero
    ax = fig.axes[0]
    assert names(ax.get_xticklabels()) == names(ax.get_yticklabels()) == ["−2", "−1", "0", "1", "2"]
    z1 = prior_grid(8, torch.float64)[0, 5, 0].item()
    assert NormalDist().cdf(z1) == pytest.approx(5.5 / 8)  # the centre of the sixth of eight cells
    np.testing.assert_allclose(ax.get_xticks(), [NormalDist().cdf(z) for z in (-2, -1, 0, 1, 2)])


@pytest.mark.parametrize("shape", [(8, 9), (6, 6), (8,)])
def test_a_map_that_does_not_fit_the_images_is_named(shape, random_images):
    with pytest.raises(ValueError, match="m a multiple of 4, got"):
        plots_latent.holes(torch.zeros(shape), random_images(16).reshape(4, 4, 1, 28, 28), 0.1)


@pytest.mark.parametrize(
    ("n_values", "expected"), [(3, ["−1", "0", "1"]), (9, ["−1", "−0.5", "0", "0.5", "1"])], ids=["all", "every second"]
)
def test_strips_have_a_row_for_each_line_and_a_column_for_each_value(n_values, expected, random_images):
    first, second = random_images(4 * n_values).reshape(2, 2, n_values, 1, 28, 28)
    values = np.linspace(-1, 1, n_values).tolist()
    fig = plots_latent.strips({"a": first, "b": second}, ["row 1", "row 2"], values, "value")
    assert draws(fig)
    left, right = fig.axes
    np.testing.assert_allclose(shown(right), plots.tile(second.reshape(-1, 1, 28, 28), n_values))
    assert names(left.get_yticklabels()) == ["row 1", "row 2"]
    assert names(right.get_yticklabels()) == []
    assert names(left.get_xticklabels()) == expected
    assert [ax.get_xlabel() for ax in fig.axes] == ["value", "value"]


def test_effects_are_written_with_their_sign_and_small_ones_left_out():
    mean, spread = torch.tensor([[0.81, -0.32], [0.04, 0.0]]), torch.tensor([[0.1, 0.2], [0.0, 0.04]])
    fig = plots_latent.effect_maps(mean, spread, ["z1", "z2"], ["slant", "width"])
    assert draws(fig)
    left, right = fig.axes[:2]
    assert [text.get_text() for text in left.texts] == ["0.8", "−0.3"]
    assert [text.get_text() for text in right.texts] == ["0.1", "0.2"]
    assert {image.get_clim() for ax in (left, right) for image in ax.get_images()} == {(-1, 1)}


def test_norms_are_drawn_as_their_mean_over_the_pairs():
    t = torch.linspace(0, 1, 5)
    norms = torch.rand(30, 5, generator=torch.Generator().manual_seed(0))
    fig = plots_latent.norms_along({"2-D": ({"straight": norms, "spherical": norms + 1}, (0.2, 1.2, 2.7))}, t)
    assert draws(fig)
    (ax,) = fig.axes
    curves = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(curves["straight"], norms.mean(0), rtol=1e-6)
    np.testing.assert_allclose(curves["spherical"], norms.mean(0) + 1, rtol=1e-6)
    assert any(set(np.ravel(line.get_ydata())) == {1.2} for line in ax.get_lines())


def test_values_are_drawn_with_their_errors():
    t, values, errors = torch.linspace(0, 1, 5), torch.arange(5.0), torch.full((5,), 0.5)
    fig = plots_latent.values_along({"title": ("nats", {"straight": (values, errors)})}, t)
    assert draws(fig)
    (ax,) = fig.axes
    line, _, (bars,) = ax.containers[0]
    np.testing.assert_allclose(line.get_ydata(), values)
    spans = np.array([segment[:, 1] for segment in bars.get_segments()], dtype=float)
    np.testing.assert_allclose(spans, np.stack([values - 0.5, values + 0.5], axis=1))
    assert (ax.get_title(), ax.get_ylabel()) == ("title", "nats")


def test_paths_differ_in_colour_line_and_marker():
    for key in ("color", "linestyle", "marker"):
        assert len({style[key] for style in plots_latent.PATHS.values()}) == len(plots_latent.PATHS)


def test_walks_bear_letters_and_their_images_stand_in_order(plane, random_images):
    paths = {"there": torch.tensor([[-1.0, 0], [0, 0.2], [1, 0]]), "up": torch.tensor([[0.0, -1], [0, 0], [0.1, 1]])}
    images = {"there": random_images(4, 1), "up": random_images(4, 2)}
    fig = plots_latent.walks(*plane, paths, images)
    assert draws(fig)
    left, right = fig.axes
    np.testing.assert_allclose(shown(right), plots.tile(torch.cat([images["there"], images["up"]]), 4))
    assert names(right.get_yticklabels()) == ["A  there", "B  up"]
    lines = [line.get_xydata() for line in left.get_lines() if len(line.get_xydata()) == 3]
    for line, path in zip(lines, paths.values(), strict=True):
        np.testing.assert_allclose(line, path)
    letters = [text for text in left.texts if text.get_color() == "white"]
    assert names(letters) == ["A", "B"]
    for letter, path in zip(letters, paths.values(), strict=True):
        assert min(np.linalg.norm(path.numpy() - letter.get_position(), axis=1)) < 1e-6


@pytest.mark.parametrize(("n", "said"), [(1, "one walk, from"), (2, "2 walks, from"), (5, "five walks, from")])
def test_the_title_counts_the_walks(plane, random_images, n, said):
    paths = {str(i): torch.tensor([[-1.0, i / 5], [1, i / 5]]) for i in range(n)}
    fig = plots_latent.walks(*plane, paths, {name: random_images(2) for name in paths})
    assert fig.axes[0].get_title().startswith(said)


def test_walks_show_no_name_outside_the_plane_that_they_show(plane, random_images):
    fig = plots_latent.walks(*plane, {"short": torch.tensor([[-0.5, 0.0], [0.5, 0.0]])}, {"short": random_images(2)})
    left = fig.axes[0]
    limit = left.get_xlim()[1]
    assert any(not text.get_visible() for text in left.texts)
    for text in left.texts:
        assert text.get_visible() == (max(map(abs, text.get_position())) < limit)


def test_the_poster_marks_the_point_and_shows_its_image(plane, random_images):
    fig = plots_latent.poster(*plane, torch.tensor([0.5, -1.25]), random_images(1)[0])
    assert draws(fig)
    left, right = fig.axes
    ring = left.get_lines()[-1]
    assert np.ravel(ring.get_xydata()).tolist() == [0.5, -1.25]
    assert to_rgba(ring.get_markeredgecolor()) == (0, 0, 0, 1)
    assert right.get_title() == "decoded at (0.50, −1.25)"
    np.testing.assert_allclose(shown(right), plots.tile(random_images(1), 1))


def test_a_drawing_leaves_the_style_of_others_alone(plane):
    before = dict(plt.rcParams)
    plots_latent.scatter_row({"plane": (plane[0], ("a", "b"))}, plane[1])
    assert dict(plt.rcParams) == before
