import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tme_utils import plots_study


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def match():
    """Two architectures, two latent dimensions, three seeds; the score is 100 for every mlp, 90 to 92 for conv."""
    rows = [
        {"architecture": name, "latent_dim": dim, "seed": seed, "score": 100.0 if name == "mlp" else 90.0 + seed}
        for name in ("conv", "mlp")
        for dim in (2, 20)
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


def texts(ax):
    return {text.get_text() for text in ax.findobj(plt.Text)}


def test_every_seed_is_a_dot_beside_the_mean_of_its_model(match):
    fig = plots_study.seed_dots(match, {"score": "a title"})
    fig.canvas.draw()
    above, below = fig.axes
    assert above.get_title() == "a title"
    assert [ax.get_ylabel().splitlines() for ax in fig.axes] == [
        ["$d$ = 20", "nats per image"],
        ["$d$ = 2", "nats per image"],
    ]
    dots = [sorted(line.get_ydata()) for line in below.lines if line.get_marker() in ("o", "s")]
    assert dots == [[100.0] * 3, [90.0, 91.0, 92.0]]
    assert {"100.0", "91.0", "mlp", "conv"} <= texts(below)
    assert above.get_xlim() == below.get_xlim()


def test_the_live_model_is_a_star_beside_the_seeds_of_its_model_only(match):
    live = {"architecture": "conv", "latent_dim": 20, "score": 89.5}
    fig = plots_study.seed_dots(match, {"score": "a title"}, live)
    stars = [(ax, line.get_xydata().tolist()) for ax in fig.axes for line in ax.lines if line.get_marker() == "*"]
    ((ax, ((x, y),)),) = stars
    assert (ax, y) == (fig.axes[0], 89.5)
    seeds = next(line for line in ax.lines if line.get_marker() == "s").get_xdata()
    assert max(seeds) + 0.05 < x < 1.3  # hides none of them, and is still theirs


def test_another_architecture_stands_beside_the_known_in_a_colour_of_its_own(match):
    others = match.query("architecture == 'mlp'").assign(architecture="flow", score=80.0)
    fig = plots_study.seed_dots(pd.concat([others, match]), {"score": "a title"})
    fig.canvas.draw()
    ax = fig.axes[-1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["mlp", "conv", "flow"]
    dots = {line.get_marker(): line for line in ax.lines if line.get_marker() in ("o", "s", "D")}
    assert len({line.get_color() for line in dots.values()}) == 3
    assert list(dots["D"].get_ydata()) == [80.0] * 3


def test_a_table_without_rows_is_refused(match):
    with pytest.raises(ValueError, match="at least one row, got none"):
        plots_study.seed_dots(match[:0], {"score": "a title"})


def test_power_of_a_constant_and_of_stripes_is_where_it_belongs():
    rows = np.indices((28, 28))[0]
    power = plots_study.axis_power(np.ones((2, 1, 28, 28)))
    assert power[0] == pytest.approx(784**2 / 4)  # one of the four frequencies averaged over
    assert power[1:] == pytest.approx(0, abs=1e-12)
    for period, place in [(2, 14), (7, 4)]:
        wave = np.cos(2 * np.pi * rows / period)
        power = plots_study.axis_power(np.broadcast_to(wave, (3, 1, 28, 28)))
        assert power.argmax() == place


def test_both_axes_count_alike(random_images):
    x = random_images(3).numpy()
    turned = np.swapaxes(x, 2, 3)
    np.testing.assert_allclose(plots_study.axis_power(x), plots_study.axis_power(turned))


def test_power_is_a_mean_over_images_not_the_power_of_the_mean():
    images = np.stack([np.ones((1, 28, 28)), -np.ones((1, 28, 28))])
    assert plots_study.axis_power(images)[0] == pytest.approx(784**2 / 4)


@pytest.mark.parametrize("shape", [(28, 28), (0, 1, 28, 28), (3, 28, 28), (3, 1, 14, 28)])
def test_spectra_of_something_else_are_refused(shape):
    with pytest.raises(ValueError, match=r"need images \(N, 1, 28, 28\), got"):
        plots_study.axis_power(np.ones(shape))


def test_spectra_are_lines_named_after_their_sets_up_to_half_a_cycle_per_pixel(random_images):
    fig = plots_study.spectra({"test images": random_images(2), "conv, untrained": random_images(2, 1)})
    fig.canvas.draw()
    assert {"test images", "conv, untrained", "power (dB)"} <= texts(fig.axes[0])
    for line, seed in zip(fig.axes[0].lines, (0, 1), strict=True):
        assert line.get_xdata()[-1] == 0.5
        expected = 10 * np.log10(plots_study.axis_power(random_images(2, seed))[1:])
        np.testing.assert_allclose(line.get_ydata(), expected)


def test_the_histogram_counts_every_image_on_its_side():
    fig = plots_study.difference_histogram([-3.0, 1.0, 2.0, 5.0], ["mlp", "conv"])
    heights = [[patch.get_height() for patch in container] for container in fig.axes[0].containers]
    assert [sum(bars) for bars in heights] == [1, 3]
    assert {"mlp better:\n25 % of the images", "conv better:\n75 % of the images"} <= texts(fig.axes[0])


def test_a_bound_is_one_line_for_each_seed_beside_what_others_published():
    rows = [
        {"seed": seed, "iw_samples": k, "iw_nll": 90 - np.log10(k) - seed, "iw_nll_se": 0.2}
        for seed in range(2)
        for k in (100, 1, 10)
    ]
    fig = plots_study.bound_by_samples(pd.DataFrame(rows), {"others": 86.5})
    ax = fig.axes[0]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_xdata()) for line in lines] == [[1, 10, 100]] * 2
    assert ax.get_xscale() == "log"
    assert {"others", "seed 0: 88.00", "seed 1: 87.00"} <= texts(ax)


# --- the latent dimension


@pytest.fixture
def by_seed():
    """A score of three latent dimensions and two seeds; one seed lacks the largest."""
    return pd.DataFrame({0: [140.0, 100.0, 98.0], 1: [144.0, 102.0, np.nan]}, index=[2, 10, 64])


def test_a_line_passes_through_the_means_and_its_band_covers_the_seeds(by_seed):
    line = plots_study.Line(by_seed, "o-", "black")
    fig = plots_study.by_dimension({"recon": ("nats", {"mlp": line})}, {"recon": {"floor": 45.5}})
    (ax,) = fig.axes
    drawn = {tuple(found.get_ydata()) for found in ax.lines}
    assert (142.0, 101.0, 98.0) in drawn
    assert any(sorted(y for y in ys if y == y) == [98.0, 100.0, 102.0, 140.0, 144.0] for ys in drawn)
    (band,) = ax.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(2, 140), (2, 144), (10, 100), (10, 102), (64, 98)} <= corners
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "10", "64"]
    assert "floor" in texts(ax)
    assert 45.5 in {y for found in ax.lines for y in found.get_ydata()}


def test_a_name_is_listed_once_for_all_panels_and_an_axis_may_be_logarithmic(by_seed):
    line = plots_study.Line(by_seed, "o-", "black")
    panels = {"a": ("nats", {"mlp": line}), "b": ("bits", {"mlp": line, "conv": line})}
    fig = plots_study.by_dimension(panels, log_y=["b"])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["mlp", "conv"]
    assert [ax.get_yscale() for ax in fig.axes] == ["linear", "log"]
    assert [(ax.get_title(), ax.get_ylabel()) for ax in fig.axes] == [("a", "nats"), ("b", "bits")]


def test_panels_fill_rows_and_what_is_left_is_empty(by_seed):
    line = plots_study.Line(by_seed, "o-", "black")
    fig = plots_study.by_dimension({name: ("nats", {"mlp": line}) for name in "abc"}, n_columns=2)
    assert [ax.get_title() for ax in fig.axes] == ["a", "b", "c", ""]
    assert [ax.axison for ax in fig.axes] == [True, True, True, False]
    assert fig.axes[2].get_position().y1 < fig.axes[0].get_position().y0


def test_divergences_stand_at_their_mean_with_the_range_of_the_seeds():
    values = np.array([[2.0, 1.0, 0.001], [3.0, 1.2, 0.003]])
    fig = plots_study.sorted_divergences({"conv": values, "mlp": values * [[1.0], [0.9]]}, threshold=1.05)
    conv, mlp = fig.axes
    dots = next(line for line in conv.lines if line.get_marker() == "s")
    np.testing.assert_allclose(dots.get_xydata(), [[1, 2.5], [2, 1.1], [3, 0.002]])
    ranges = conv.collections[0].get_segments()
    np.testing.assert_allclose(ranges[2], [[3, 0.001], [3, 0.003]])
    assert conv.get_title() == "conv: 1 or 2 above"
    assert mlp.get_title() == "mlp: 1 or 2 above"
    assert "1.05 nats" in texts(conv)
    assert any(list(line.get_ydata()) == [1.05, 1.05] for line in conv.lines)


def test_divergences_of_another_architecture_are_drawn_too():
    fig = plots_study.sorted_divergences({"residual": np.array([[2.0, 1.0]])}, threshold=0.1)
    assert "D" in {line.get_marker() for line in fig.axes[0].lines}


def test_grids_share_their_rows_and_show_every_image():
    panels = {"test": {"2": np.full((3, 28, 28), 0.25), "20": np.full((3, 28, 28), 0.75)}}
    panels["train"] = {"2": np.zeros((2, 28, 28)), "20": np.ones((2, 28, 28))}
    fig = plots_study.picture_grids(panels)
    left, right = fig.axes
    assert (left.get_title(), right.get_title()) == ("test", "train")
    assert [label.get_text() for label in left.get_yticklabels()] == ["2", "20"]
    assert [label.get_text() for label in right.get_yticklabels()] == []
    picture = left.images[0].get_array()
    assert picture[10, 10] == 0.75  # ink on paper: 0.25 of ink leaves 0.75 of light
    assert picture[40, 40] == 0.25
    with pytest.raises(ValueError, match="the same rows"):
        plots_study.picture_grids({"test": panels["test"], "train": {"3": np.zeros((2, 28, 28))}})


def test_models_stand_at_their_rate_and_distortion_and_a_sum_is_a_falling_line():
    rows = pd.DataFrame(
        {"label": ["1", "1", "4", "5"], "rate": [24.0, 26.0, 12.0, 11.0], "distortion": [77.0, 79.0, 95.0, 96.5]}
    )
    fig = plots_study.rate_distortion({"mlp": (rows, "o-", "black")}, [103])
    (ax,) = fig.axes
    means = next(line for line in ax.lines if line.get_label() == "mlp")
    np.testing.assert_allclose(means.get_xydata(), [[25, 78], [12, 95], [11, 96.5]])
    dots = next(line for line in ax.lines if line.get_marker() == ".")
    np.testing.assert_allclose(dots.get_xydata(), rows[["rate", "distortion"]])
    falling = next(line for line in ax.lines if line.get_linestyle() == ":")
    np.testing.assert_allclose(falling.get_xydata().sum(axis=1), 103)
    assert {"1", "4", "−ELBO = 103"} <= texts(ax)
    assert "5" not in texts(ax)  # too near to 4
