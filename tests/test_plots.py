"""Drawings are looked at through their artists and their files, never by eye; each is rendered, without a warning."""

import io
import itertools
from statistics import NormalDist
from types import SimpleNamespace

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Ellipse
from PIL import Image

from tme_utils import plots
from tme_utils.plots import latent, live, shared, theory
from tme_utils.training import History


@pytest.fixture(autouse=True)
def figures(monkeypatch, tmp_path):
    """Draw in the report's style without a screen, save to a folder of this test's own, and close what was drawn."""
    plt.switch_backend("agg")
    monkeypatch.setenv("TME_FIGURES", str(tmp_path / "figures"))
    with plt.rc_context():
        plots.use_style()
        yield tmp_path / "figures"
    plt.close("all")


@pytest.fixture
def rows():
    terms = [f"{split}_{term}" for split in ("train", "held_out") for term in ("recon", "kl", "neg_elbo")]
    return [{"epoch": e} | dict.fromkeys(terms, 100.0 + e) for e in range(3)]


@pytest.fixture
def grid(random_images):
    """Make a grid of grey images of noise."""
    return lambda n_rows, n_columns, seed=0: random_images(n_rows * n_columns, seed).unflatten(0, (n_rows, n_columns))


@pytest.fixture
def snapshots(grid):
    """Snapshots of three epochs: 3 training images, 4 test images and 5 draws of the prior."""
    return {name: grid(3, n, seed=n) for name, n in [("train", 3), ("held_out", 4), ("prior", 5)]}


@pytest.fixture
def plane(generator):
    return torch.randn(200, 2, generator=generator()), torch.arange(200) % 10


def drawn(fig, *texts):
    """Check that a figure, really rendered, says these texts, and return its axes."""
    fig.canvas.draw()
    assert {*texts} <= {text.get_text() for text in fig.findobj(plt.Text)}
    return fig.axes


def names(texts):
    return [text.get_text() for text in texts]


def shows(ax, grid, rows=None, columns=None):
    """Check the picture on an axes against a grid of images, upright, and what is written amid its tiles."""
    np.testing.assert_allclose(np.asarray(ax.get_images()[0].get_array()), plots.tile(grid))
    for axis, labels in [(ax.yaxis, rows), (ax.xaxis, columns)]:
        assert labels is None or names(axis.get_ticklabels()) == labels
        assert list(axis.get_ticklocs()) == [15 + 29 * i for i in range(len(axis.get_ticklabels()))]


def points(ax, marker):
    """Where the axes has its lines and dots of a marker."""
    return [line.get_xydata().tolist() for line in ax.get_lines() if line.get_marker() == marker]


def test_whatever_style_a_machine_has_set_the_files_are_the_same(rows, figures):
    plots.save_figure(plots.training_curves(rows, 45.5, 205.8), "before")
    plt.style.use("dark_background")
    plt.rcParams.update({"font.size": 30, "xtick.direction": "in", "savefig.dpi": 30})
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    plots.use_style()
    assert (torch.zeros(1).dtype, torch.zeros(1).device.type) == (torch.float32, "cpu")
    plots.save_figure(plots.training_curves(rows, 45.5, 205.8), "after")
    assert (figures / "after.png").read_bytes() == (figures / "before.png").read_bytes()
    assert plt.get_backend() == "agg"


@pytest.mark.parametrize("kernel", [False, True], ids=["script", "notebook"])
def test_figures_are_sharp_and_shown_in_a_notebook_whatever_backend_a_variable_names(monkeypatch, kernel):
    formats = []
    shell = SimpleNamespace(kernel=None, run_line_magic=lambda *args: formats.append(args)) if kernel else None
    expected = [("matplotlib", "inline"), "retina"] if kernel else []
    monkeypatch.setattr(shared, "get_ipython", lambda: shell)
    monkeypatch.setattr("matplotlib_inline.backend_inline.set_matplotlib_formats", formats.append)
    plots.use_style()
    assert (formats, plt.figure().dpi) == (expected, 75)


GRID, PLANE = np.zeros((4, 4, 1, 28, 28)), np.zeros((9, 2))
REFUSED = {
    r"need a grid of images .* got \(4, 1, 28, 28\)": lambda: plots.draw_manifold(plt.gca(), GRID[0]),
    r"need a grid of images .* got \(4, 4, 28, 28\)": lambda: plots.tile(GRID[:, :, 0]),
    r"need a grid of images .* got \(4, 4, 1, 28, 27\)": lambda: plots.tile(GRID[..., :27]),
    r"arrays must have the same shape": lambda: plots.image_rows({"x": GRID[0], "y": GRID[0, 1:]}),
    r"must have the same shape": lambda: plots.film_strips({"": (GRID[0, 1:], GRID)}, [0]),
    r"history must hold at least one row, got none": lambda: plots.training_curves([], 45.5, 205.8),
    r"need mu \(N, 2\) .* got \(9, 1\)": lambda: plots.latent_scatter(plt.gca(), PLANE[:, :1], np.zeros(9)),
    r"integers from 0 on, got .* float64": lambda: plots.latent_scatter(plt.gca(), PLANE, 1.0 * np.arange(9)),
    r"N labels, .* \(8,\)": lambda: plots.latent_scatter(plt.gca(), PLANE, np.zeros(8)),
    r"at least one frame": lambda: plots.save_gif([], "none"),
    r"the same rows, got": lambda: plots.picture_grids({"a": {"2": GRID[0, :, 0]}, "b": {"3": GRID[0, :, 0]}}),
    r"m a multiple of 4, got \(8, 9\)": lambda: plots.holes(np.zeros((8, 9)), GRID, 0.1),
    r"m a multiple of 4, got \(6, 6\)": lambda: plots.holes(np.zeros((6, 6)), GRID, 0.1),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_drawn_is_named(said, figures):
    with pytest.raises(ValueError, match=said):
        REFUSED[said]()
    assert not figures.exists()


def test_ink_is_dark_on_light_paper_and_images_stand_row_by_row(grid):
    images = grid(2, 3)
    images[0, 1] = 0
    images[0, 1, 0, 0, 3] = 1  # a pixel of ink
    canvas = plots.tile(images)
    assert canvas.shape == (2 * 29 + 1, 3 * 29 + 1)
    assert np.argwhere(canvas[:30, 29:59] == 0).tolist() == [[1, 4]]
    np.testing.assert_allclose(canvas[30:58, 59:87], 1 - images[1, 2, 0].numpy())
    assert (canvas[::29] == 1).all()
    assert (canvas[:, ::29] == 1).all()


def test_labelled_pictures_stand_row_by_row_and_the_manifold_has_z2_upwards(grid):
    x, rebuilt = images = grid(2, 3)
    (ax,) = drawn(plots.image_rows({"x": x, "rebuilt": rebuilt}, "Digits", list("abc")), "Digits")
    shows(ax, images, ["x", "rebuilt"], ["a", "b", "c"])

    frames, originals = grid(4, 2), grid(1, 2, seed=1)[0]
    fig = plots.film_strips({"train": (originals, frames), "prior": (None, frames)}, epochs=[0, 3])
    left, right = drawn(fig, "epoch", "train", "prior")
    shows(left, torch.stack([originals, frames[0], frames[3]], 1), [], ["x", "0", "3"])
    shows(right, torch.stack([frames[0], frames[3]], 1), [], ["0", "3"])

    test, train = grid(2, 3), grid(2, 2, seed=1)
    panels = {name: {"a": images[0, :, 0], "b": images[1, :, 0]} for name, images in [("test", test), ("train", train)]}
    left, right = drawn(plots.picture_grids(panels), "test", "train")
    shows(left, test, ["a", "b"], [])
    shows(right, train, [], [])

    for n, labels in [(3, ["−1", "0", "1"]), (9, ["−1", "", "−0.5", "", "0", "", "0.5", "", "1"])]:
        fig = plots.strips({"a": grid(2, n), "b": grid(2, n, seed=1)}, ["c", "d"], np.linspace(-1, 1, n), "value")
        left, right = drawn(fig, "a", "b", "value")
        shows(left, grid(2, n), ["c", "d"], labels)
        shows(right, grid(2, n, seed=1), [], labels)

    ax = plt.figure().add_subplot()
    plots.draw_manifold(ax, images, "Manifold")
    drawn(ax.figure, "Manifold", "$z_1$, in quantiles of the prior →", "$z_2$, in quantiles of the prior →")
    shows(ax, images.flip(0), [], [])


@pytest.mark.parametrize(("first", "above"), [(543.0, ["epoch 0: 543, above the axis"]), (99.0, [])])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_training_curves_show_both_sets_with_floor_and_baseline_and_say_what_lies_above(rows, n_rows, first, above):
    rows[0] |= {"held_out_recon": first, "held_out_neg_elbo": first}
    fig = plots.training_curves(rows[:n_rows], floor=45.53, baseline=205.80)
    axes = drawn(fig, "entropy floor 45.5", "mean image 205.8", "nats per image")
    assert [ax.get_title() for ax in axes] == ["recon", "KL", "−ELBO = recon + KL"]
    for ax, start in zip(axes, (first, 100.0, first), strict=True):
        curves = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()[:2]}
        assert curves == {"train": [100.0, 101.0, 102.0][:n_rows], "test": [start, 101.0, 102.0][:n_rows]}
    assert {line.get_ydata()[0] for line in axes[0].get_lines()[2:]} == {45.53, 205.80}
    said = [[text for text in names(ax.texts) if "above" in text] for ax in (axes[0], axes[2])]
    assert said == [above, above if n_rows > 1 else []]  # the axis of the sum makes room for a row that stands alone


@pytest.mark.parametrize(("n_rows", "curve"), [(1, [100.0]), (3, [101.0, 102.0])], ids=["before training", "later"])
def test_the_progress_panel_shows_the_last_epoch(rows, snapshots, probes, n_rows, curve):
    so_far = {name: frames[:n_rows] for name, frames in snapshots.items()}
    fig = plots.progress_panel(rows[:n_rows], so_far, probes)
    left, right = drawn(fig, f"−ELBO: test {curve[-1]}", f"epoch {n_rows - 1}")
    train, held_out, prior = (frames[-1, :3] for frames in so_far.values())
    labels = ["train x", "rebuilt", "test x", "rebuilt", "generated"]
    shows(right, torch.stack([probes.train, train, probes.held_out[:3], held_out, prior]), labels, [])
    assert [list(line.get_ydata()) for line in left.get_lines()] == [curve] * 2


@pytest.fixture
def train(monkeypatch, rows, snapshots, probes):
    """Show a panel a training as ``fit`` does: its film, and what was displayed with the text stored at that moment."""
    displayed = []
    monkeypatch.setattr(live, "display", lambda widget: displayed.append((widget, repr(widget))))

    def train(panel, n_epochs=2, probes=probes):
        for n in range(1, n_epochs + 2):
            so_far = {name: frames[:n] for name, frames in snapshots.items()} if probes else {}
            panel(History(rows[:n], so_far, probes=probes))
        return panel.frames, displayed

    return train


@pytest.mark.parametrize(("options", "width"), [({}, 1200), ({"probes": None}, 500)], ids=["probes", "no probes"])
def test_a_live_panel_is_redrawn_at_every_epoch_and_each_training_has_a_film_of_its_own(train, options, width):
    panel = live.LivePanel()
    (first, _), (second, displayed) = train(panel, **options), train(panel, n_epochs=1, **options)
    assert (len(set(first)), len(set(second))) == (3, 2)
    found = [Image.open(io.BytesIO(frame)) for frame in first]
    assert {(image.format, image.size) for image in found} == {("PNG", (width, 340))}  # a film has one size
    assert not plt.get_fignums()
    assert [type(widget) for widget, _ in displayed] == [ipywidgets.Image] * 2
    assert [widget.value for widget, _ in displayed] == [first[-1], second[-1]]
    (widget, text), (_, other_text) = displayed
    assert text == other_text  # the notebook stores no picture and no number
    assert "PNG" in repr(widget)  # as the text would if it were displayed any later
    assert not any(found in text.replace("100%", "") for found in ["PNG", " at 0x", *"0123456789"])


def test_scatters_draw_every_point_in_file_order_and_name_their_axes_and_the_classes_that_they_have(plane):
    panels = {"both": (plane[0], ("a", "b")), "turned": (plane[0].flip(1), ("b", "a"))}
    axes = drawn(plots.scatter_row(panels, plane[1] % 3), "both", "turned", "0", "1", "2", "50 %", "95 %", "99.9 %")
    for ax, (mu, axis_names) in zip(axes, panels.values(), strict=True):
        assert (ax.get_xlabel(), ax.get_ylabel(), len(ax.texts)) == (*axis_names, 6)
        np.testing.assert_allclose(np.asarray(ax.collections[0].get_offsets()), mu.numpy(), rtol=1e-6)
        assert len(np.unique(ax.collections[0].get_facecolors(), axis=0)) == 3
        assert ax.get_xlim() == ax.get_ylim()


@pytest.mark.parametrize("y", [np.arange(1, 27), np.arange(47, dtype="int32"), np.full(20, 3)])
@pytest.mark.parametrize("spread", [1.0, 0.0])  # of 0: a model that has collapsed
def test_classes_of_any_number_and_first_label_are_named_apart(y, spread):
    mu = spread * np.random.default_rng(0).normal(size=(len(y), 2))
    _, ax = plt.subplots(figsize=(6, 6))
    names = [f"class {label}" for label in range(47)]
    plots.latent_scatter(ax, mu, y, class_names=names)
    shown = {text.get_text(): text.get_position() for text in ax.texts if "%" not in text.get_text()}
    assert list(shown) == [names[label] for label in np.unique(y)]
    assert len({(round(z1, 2), round(z2, 2)) for z1, z2 in shown.values()}) == len(shown)
    colours = ax.collections[0].get_facecolors()
    assert len(np.unique(colours, axis=0)) == len(shown)


def test_names_as_long_as_words_cover_one_another_nowhere():
    mu = np.random.default_rng(0).normal(size=(10, 2))
    fig, ax = plt.subplots(figsize=(6, 6))
    plots.latent_scatter(ax, mu, np.arange(10), class_names=["ankle boot"] * 10)
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if "%" not in text.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_the_circles_hold_the_mass_that_they_name_beside_the_classes(generator):
    fig, ax = plt.subplots(figsize=(6, 6))
    around = torch.linspace(0.75, 1.75, 5) * torch.pi  # the classes stand on the inner circle, at the lower left
    plots.latent_scatter(ax, 1.2 * torch.stack([around.cos(), around.sin()], dim=1), torch.arange(5))
    fig.canvas.draw()
    distance = torch.randn(100_000, 2, generator=generator()).norm(dim=1)
    for text, circle, mass in zip(ax.texts[5:], ax.patches, [0.5, 0.95, 0.999], strict=True):
        margin = 5 * (mass * (1 - mass) / 100_000) ** 0.5
        assert (distance < circle.get_radius()).float().mean().item() == pytest.approx(mass, abs=margin)
        assert text.get_text() == f"{100 * mass:g} %"
        assert np.hypot(*text.get_position()) == pytest.approx(circle.get_radius())
        assert not any(text.get_window_extent().overlaps(name.get_window_extent()) for name in ax.texts[:5])


def test_a_figure_is_a_png_with_margins_and_a_gif_has_every_frame_for_its_time_and_rests_on_the_last(figures):
    greys = [0, 100, 250]
    plots.save_figure(plt.figure(figsize=(2, 1)), "curves")
    plots.save_gif([plots.to_png(plt.figure(figsize=(1, 1), facecolor=str(g / 255))) for g in greys], "film")
    assert {path.name for path in figures.iterdir()} == {"curves.png", "film.gif"}
    with Image.open(figures / "curves.png") as image:
        assert (image.format, image.size) == ("PNG", (330, 180))  # a tenth of an inch of margin, at 150 dpi
    with Image.open(figures / "film.gif") as image:
        for i, (grey, duration) in enumerate(zip(greys, [600, 600, 2600], strict=True)):
            image.seek(i)
            assert image.convert("L").getpixel((0, 0)) == pytest.approx(grey, abs=2)
            assert image.info["duration"] == duration
        assert (image.format, image.n_frames, image.info["loop"]) == ("GIF", 3, 0)


def test_schema_names_the_parts_and_the_two_terms_beside_three_pictures():
    (ax,) = drawn(plots.vae_schema(*[np.full((28, 28), ink) for ink in (0, 0.25, 1)]))
    parts = ["encoder", "decoder", r"\mu", r"\log\,\sigma^2", r"\sigma \odot \epsilon", "recon", "KL"]
    assert [part for part in parts if part not in " ".join(names(ax.texts))] == []
    assert [picture.get_array()[0, 0] for picture in ax.get_images()] == [1, 0.75, 0]


def test_posteriors_show_the_regions_of_p_and_the_ellipses_of_q_however_far_apart():
    axis = np.linspace(-6, 6, 601)
    levels = theory.region_levels(np.exp(-(axis[:, None] ** 2 + axis**2) / 2))
    assert levels == pytest.approx([0.5, 0.05], abs=2e-3)  # exp(-r²/2) at the radius that holds 50 % and 95 %
    axis = np.linspace(-5, 5, 101)
    z = np.stack(np.meshgrid(axis, axis), axis=-1)[None].repeat(3, axis=0)  # z_1 along the last grid axis
    density = np.exp(-50 * ((z - 3) ** 2).sum(-1))
    fig = plots.posteriors(z, density, np.full((3, 2), -2), [[0.1, 0.3]] * 3, np.zeros((3, 1, 28, 28)), [0.1, 0.25, 9])
    first, *others = drawn(fig, "gap 0.10 nats", "gap 0.25 nats", "gap 9.00 nats")
    assert [ax.axison for ax in (first, *others)] == [True, True, True, False]
    for ellipse, mass in zip((p for p in first.patches if isinstance(p, Ellipse)), [0.5, 0.95], strict=True):
        radius = np.sqrt(-2 * np.log(1 - mass))
        assert (ellipse.width, ellipse.height) == pytest.approx((2 * radius * 0.1, 2 * radius * 0.3))
    for low, high in [first.get_xlim(), first.get_ylim()]:
        assert low < -2.2 < 3.2 < high


def test_bounds_start_at_the_elbo_and_show_what_is_missing():
    values = np.array([[-102.0, -101.0, -100.5, -100.25, -100.1], [-60.0, -55.0, -52.0, -51.0, -49.9]])
    fig = plots.bounds([1, 2, 4, 8, 16], values, [-100.0, -50.0], shown=0)
    left, right = drawn(fig, "exact log p(x) = −100.00", "ELBO = −102.00", "2.00", "10.00", "4", "16")
    (bound,), (first, second) = (np.array(points(ax, "o"))[..., 1] for ax in (left, right))
    np.testing.assert_allclose([bound, first], [values[0], [2, 1, 0.5, 0.25, 0.1]])
    assert np.isnan(second[-1])  # noise above the exact value has no place on a log axis


def test_theory_is_drawn_from_its_arrays():
    left, right = drawn(plots.kl_shape([-3, 3], [4.5, 4.5], [-6, 0, 2], [2.5, 0, 2.2]), "KL of one coordinate, nats")
    assert points(left, "None") == [[[-3, 4.5], [3, 4.5]]]
    assert points(right, "None") == [[[-6, 2.5], [0, 0], [2, 2.2]]]

    draws = {"reparametrisation": torch.linspace(-1, 1, 500), "score function": torch.arange(500.0)}
    fig = plots.gradient_estimators(draws, 1.0, [1, 2], {"reparametrisation": [1, 1], "score function": [9, 8]})
    _, right = drawn(fig, *draws, "exact gradient, 1", "1", "2")
    assert points(right, "o") + points(right, "s") == [[[1, 1], [2, 1]], [[1, 9], [2, 8]]]


def test_a_bound_is_one_line_for_each_seed_beside_what_others_published():
    rows = [{"seed": seed, "iw_samples": k, "iw_nll": 90 - seed - k / 100} for seed in range(2) for k in (100, 1, 10)]
    fig = plots.bound_by_samples(pd.DataFrame(rows), {"others": 86.5})
    (ax,) = drawn(fig, "others", "seed 0: 89.00", "seed 1: 88.00")
    assert points(ax, "o") == [[[1, y + 0.99], [10, y + 0.9], [100, y]] for y in (89.0, 88.0)]
    assert (ax.get_xscale(), ax.get_lines()[-1].get_ydata()[0]) == ("log", 86.5)


def test_a_line_passes_through_the_means_and_its_band_covers_the_seeds():
    values = pd.DataFrame({0: [140.0, 100.0, 98.0], 1: [144.0, 102.0, np.nan]}, index=[2, 10, 64])
    lines = {"mlp": plots.Line(values, "s-", "black"), "conv": plots.Line(values[[0]], "o-", "red")}
    panels = {"a": ("nats", {"mlp": lines["mlp"]}), "b": ("bits", lines), "c": ("", lines)}
    fig = plots.by_dimension(panels, {"a": {"floor": 45.5}}, log_y=["b"], n_columns=2)
    first, second, third, empty = drawn(fig, "floor")
    assert names(fig.legends[0].get_texts()) == ["mlp", "conv"]
    found = [(ax.get_title(), ax.get_ylabel(), ax.get_yscale()) for ax in (first, second, third)]
    assert found == [("a", "nats", "linear"), ("b", "bits", "log"), ("c", "", "linear")]
    assert not empty.axison
    assert third.get_position().y1 < first.get_position().y0
    assert points(first, "s") == [[[2, 142], [10, 101], [64, 98]]]
    dots = sorted(y for line in points(first, ".") for _, y in line if y == y)
    assert dots == [98.0, 100.0, 102.0, 140.0, 144.0]
    corners = {tuple(corner) for corner in first.collections[0].get_paths()[0].vertices}
    assert {(2, 140), (2, 144), (10, 100), (10, 102), (64, 98)} <= corners
    assert names(first.get_xticklabels()) == ["2", "10", "64"]
    assert first.get_lines()[-1].get_ydata()[0] == 45.5


def test_divergences_stand_at_their_mean_with_the_range_of_the_seeds():
    values = np.array([[2.0, 1.0, 0.001], [3.0, 1.2, 0.003]])
    fig = plots.sorted_divergences({"conv": values, "residual": values[:1]}, threshold=1.05)
    left, right = drawn(fig, "conv: 1 or 2 above", "residual: 1 above", "1.05 nats")
    np.testing.assert_allclose(points(left, "s"), [[[1, 2.5], [2, 1.1], [3, 0.002]]])
    np.testing.assert_allclose(points(right, "D"), [[[1, 2], [2, 1], [3, 0.001]]])
    np.testing.assert_allclose(left.collections[0].get_segments()[2], [[3, 0.001], [3, 0.003]])
    assert list(left.get_lines()[-1].get_ydata()) == [1.05, 1.05]


def test_models_stand_at_their_rate_and_distortion_and_a_sum_is_a_falling_line():
    table = {"label": ["1", "1", "4", "5"], "rate": [24.0, 26.0, 12.0, 11.0], "distortion": [77.0, 79.0, 95.0, 96.5]}
    (ax,) = drawn(plots.rate_distortion({"mlp": (pd.DataFrame(table), "o-", "black")}, [103]), "mlp", "−ELBO = 103")
    assert names(ax.texts)[:-1] == ["1", "4"]  # 5 is too near to 4
    assert points(ax, "o") == [[[25, 78], [12, 95], [11, 96.5]]]
    assert points(ax, ".") == [[[24, 77], [26, 79], [12, 95], [11, 96.5]]]
    np.testing.assert_allclose(np.sum(points(ax, "None"), axis=-1), 103)


def test_overlaps_are_written_in_percent_and_effects_with_their_sign_and_small_ones_left_out():
    matrix = 0.9 * torch.eye(10)
    matrix[4, 9], matrix[0, 1] = 0.1, 0.004
    (ax,) = drawn(plots.overlap_matrices({"plane": matrix}), "class", "plane")
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(9, 4): "10"} | {(i, i): "90" for i in range(10)}  # the neighbours to the right
    mean, spread = torch.tensor([[0.81, -0.32], [0.04, 0.0]]), torch.tensor([[0.1, 0.2], [0.0, 0.04]])
    fig = plots.effect_maps(mean, spread, ["z1", "z2"], ["slant", "width"])
    left, right, _ = drawn(fig, "z1", "z2", "slant", "width")
    assert (names(left.texts), names(right.texts)) == (["0.8", "−0.3"], ["0.1", "0.2"])
    assert {ax.get_images()[0].get_clim() for ax in (left, right)} == {(-1, 1)}


def test_holes_are_framed_where_they_are(grid):
    images, log_ratio = grid(4, 4), torch.zeros(8, 8)
    log_ratio[:2, :2] = -torch.inf  # also where q(z) is zero
    fig = plots.holes(log_ratio, images, 0.1)
    left, right, _ = drawn(fig, "decoded; framed: mostly hole, q(z) < 0.1 p(z)")
    (picture,) = left.get_images()
    assert picture.origin == "lower"
    assert picture.get_array()[0, 0] < np.log10(0.1) < picture.get_array()[-1, -1]
    shows(right, images.flip(0))
    assert [patch.get_xy() for patch in right.patches] == [(0, 3 * 29)]  # pixels of the picture run downwards
    assert names(left.get_xticklabels()) == names(left.get_yticklabels()) == ["−2", "−1", "0", "1", "2"]
    np.testing.assert_allclose(left.get_xticks(), [NormalDist().cdf(z) for z in (-2, -1, 0, 1, 2)])


def test_values_are_drawn_with_their_errors():
    fig = plots.values_along({"title": ("nats", {"straight": ([1.0, 2.0], [0.5, 0.25])})}, [0, 1])
    (ax,) = drawn(fig, "title", "nats", "straight")
    line, _, (bars,) = ax.containers[0]
    assert line.get_xydata().tolist() == [[0, 1], [1, 2]]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.5, 1.5], [1.75, 2.25]]
    assert len({tuple(map(style.get, ("color", "linestyle", "marker"))) for style in latent.PATHS.values()}) == 3


def test_lines_of_equal_value_and_names_of_classes_stand_where_they_are_on_the_plane():
    z2, z1 = np.meshgrid(np.arange(4.0), np.arange(4.0), indexing="ij")
    classes = np.where(z2 < 2, 7, 3)  # the 7s below, the first index being z_2
    fig = plots.plane_maps({"across": (z1, [0.5, 1.5, 2.5]), "up": (z2, [1.5])}, classes)
    across, up, seen = drawn(fig, "across", "up", "class that is seen", "$z_1$", "$z_2$")[:3]
    (line,) = up.collections
    np.testing.assert_allclose(line.get_paths()[0].vertices[:, 1], 0.5)
    assert names(up.texts) == []  # a single line bears no number
    assert [path.vertices[0, 0] for path in across.collections[0].get_paths()] == pytest.approx([0.25, 0.5, 0.75])
    assert {text.get_text(): text.get_position()[1] < 0.5 for text in seen.texts} == {"3": False, "7": True}
    assert not np.array_equal(*seen.get_images()[0].get_array()[[0, -1], 0])


def test_the_poster_marks_the_point_and_shows_its_image(plane, grid):
    hearts = {label: [0.1 * label, -0.2] for label in range(10)}
    poster = plots.poster(*plane, torch.tensor([0.5, -1.25]), grid(1, 1)[0, 0], hearts)
    left, right = drawn(poster, "decoded at (0.50, −1.25)")
    names = {text.get_text(): text.get_position() for text in left.texts if text.get_text().isdigit()}
    assert {int(name): list(at) for name, at in names.items()} == {int(n): hearts[int(n)] for n in plane[1].unique()}
    assert points(left, "o") == [[[0.5, -1.25]]]
    across, down, _ = left.get_lines()
    assert (across.get_xdata()[0], down.get_ydata()[0]) == (0.5, -1.25)
    shows(right, grid(1, 1), [], [])
