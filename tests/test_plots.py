"""Drawing: figures are looked at through their artists and their files, never by eye."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tme_utils import plots
from tme_utils.training import Probes


@pytest.fixture(autouse=True)
def figures(monkeypatch, tmp_path):
    """Draw without a screen, write to a folder of this test's own, and close what was drawn."""
    plt.switch_backend("agg")
    monkeypatch.setenv("TME_FIGURES", str(tmp_path / "figures"))
    yield tmp_path / "figures"
    plt.close("all")


@pytest.fixture
def rows():
    """History rows of three epochs."""
    return [
        {"epoch": e, "seconds": e}
        | {f"{s}_{t}": 100.0 + e for s in ("train", "held_out") for t in ("recon", "kl", "neg_elbo")}
        for e in range(3)
    ]


@pytest.fixture
def two_digits():
    """One blank image and one with ink at its top-left corner alone."""
    images = torch.zeros(2, 1, 28, 28)
    images[1, 0, 0, 0] = 1
    return images


def shown(ax):
    """The picture on an axes."""
    (image,) = ax.get_images()
    return np.asarray(image.get_array())


def draws(fig):
    """Whether the figure can be rendered without an error."""
    fig.canvas.draw()
    return isinstance(fig, Figure)


# --- tiles


def check_ink_on_paper(tile, two_digits):
    canvas = tile(two_digits, 2)
    assert canvas.shape == (30, 59)
    assert canvas[1, 30] == 0  # the pixel of ink, at the top left of the second image
    canvas[1, 30] = 1
    assert (canvas == 1).all()


def test_ink_is_dark_on_light_paper_and_rows_run_downwards(two_digits):
    check_ink_on_paper(plots.tile, two_digits)


@pytest.mark.parametrize(
    "buggy",
    [
        pytest.param(lambda images, n: 1 - plots.tile(images, n), id="light on dark"),
        pytest.param(lambda images, n: plots.tile(images, n)[::-1], id="upside down"),
        pytest.param(lambda images, n: plots.tile(images.flip(0), n), id="in another order"),
        pytest.param(lambda images, n: plots.tile(images.transpose(-1, -2).flip(-1), n), id="turned"),
    ],
)
def test_the_check_of_the_orientation_rejects(buggy, two_digits):
    with pytest.raises(AssertionError):
        check_ink_on_paper(buggy, two_digits)


def test_images_fill_row_by_row_and_leave_paper_where_none_is(random_images):
    images = random_images(5)
    canvas = plots.tile(images, 3)
    assert canvas.shape == (2 * 29 + 1, 3 * 29 + 1)
    np.testing.assert_allclose(canvas[30:58, 30:58], 1 - images[4, 0].numpy())
    assert (canvas[30:58, 59:87] == 1).all()
    assert (canvas[[0, 29, 58]] == 1).all()


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 784), (5, 3, 28, 28), (2, 5, 1, 28, 28), (1, 28, 28)])
def test_tile_names_images_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match="got"):
        plots.tile(np.zeros(shape), 5)


def test_tile_names_a_wrong_number_of_columns(random_images):
    with pytest.raises(ValueError, match=r"n_columns >= 1, got .* and 0"):
        plots.tile(random_images(2), 0)


# --- figures


def test_image_rows_draws_one_labelled_row_for_each_entry(random_images):
    first, second = random_images(4, 1), random_images(4, 2)
    fig = plots.image_rows({"x": first, "rebuilt": second}, title="Digits")
    assert draws(fig)
    (ax,) = fig.axes
    np.testing.assert_allclose(shown(ax), plots.tile(torch.cat([first, second]), 4))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "rebuilt"]
    assert ax.get_title() == "Digits"


def test_image_rows_of_two_lengths_are_refused(random_images):
    with pytest.raises(ValueError, match="as many images"):
        plots.image_rows({"x": random_images(5), "rebuilt": random_images(4)})


@pytest.mark.parametrize("with_originals", [True, False])
def test_a_film_strip_has_a_row_for_each_digit_and_a_column_for_each_epoch(random_images, with_originals):
    originals = random_images(2, 1) if with_originals else None
    frames = random_images(8, 2).reshape(4, 2, 1, 28, 28)
    fig = plots.film_strips({"Strip": (originals, frames)}, epochs=[0, 3])
    assert draws(fig)
    (ax,) = fig.axes
    columns = [*([originals] if with_originals else []), frames[0], frames[3]]
    expected = plots.tile(torch.stack(columns, 1).reshape(-1, 1, 28, 28), len(columns))
    np.testing.assert_allclose(shown(ax), expected)
    assert [label.get_text() for label in ax.get_xticklabels()] == [*(["x"] if with_originals else []), "0", "3"]


def test_a_film_strip_of_other_digits_than_its_originals_is_refused(random_images):
    with pytest.raises(ValueError, match="shape"):
        plots.film_strips({"": (random_images(3), random_images(8).reshape(4, 2, 1, 28, 28))}, epochs=[0])


def test_film_strips_stand_side_by_side(random_images):
    frames = random_images(8).reshape(4, 2, 1, 28, 28)
    fig = plots.film_strips({"train": (random_images(2), frames), "prior": (None, frames)}, epochs=[0, 1])
    assert draws(fig)
    assert [ax.get_title() for ax in fig.axes] == ["train", "prior"]
    assert [shown(ax).shape for ax in fig.axes] == [(59, 88), (59, 59)]


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_training_curves_show_both_sets_with_floor_and_baseline(rows, n_rows):
    fig = plots.training_curves(rows[:n_rows], floor=45.53, baseline=205.80)
    assert draws(fig)
    assert len(fig.axes) == 3
    for ax in fig.axes:
        train, held_out = ax.get_lines()[:2]
        assert list(train.get_ydata()) == list(held_out.get_ydata()) == [100.0, 101.0, 102.0][:n_rows]
        assert "nats per image" in ax.get_ylabel()
    constants = {line.get_ydata()[0] for line in fig.axes[0].get_lines()[2:]}
    assert constants == {45.53, 205.80}
    texts = " ".join(text.get_text() for text in fig.axes[0].texts)
    assert "entropy floor 45.5" in texts
    assert "mean image 205.8" in texts


def test_training_curves_say_what_lies_above_the_axis_and_only_that(rows):
    for first, expected in [(543.0, ["epoch 0: 543, above the axis"]), (99.0, [])]:
        changed = [rows[0] | {"held_out_recon": first, "held_out_neg_elbo": first}, *rows[1:]]
        fig = plots.training_curves(changed, floor=45.53, baseline=205.80)
        for ax in (fig.axes[0], fig.axes[2]):
            assert [text.get_text() for text in ax.texts if "above" in text.get_text()] == expected


def test_training_curves_of_no_row_are_refused():
    with pytest.raises(ValueError, match="the history must hold at least one row, got none"):
        plots.training_curves([], 45.53, 205.80)


def test_the_progress_panel_shows_the_last_epoch(rows, random_images):
    probes = Probes(random_images(3, 1), random_images(4, 2), torch.zeros(5, 2))
    snapshots = {
        name: random_images(3 * n, n).reshape(3, n, 1, 28, 28)
        for name, n in [("train", 3), ("held_out", 4), ("prior", 5)]
    }
    fig = plots.progress_panel(rows, snapshots, probes)
    assert draws(fig)
    left, right = fig.axes
    assert "102.0" in left.get_title()
    assert right.get_title() == "epoch 2"
    picture = shown(right)
    assert picture.shape == (5 * 29 + 1, 3 * 29 + 1)
    np.testing.assert_allclose(picture[30:58, 1:29], 1 - snapshots["train"][-1, 0, 0].numpy())
    np.testing.assert_allclose(picture[117:145, 1:29], 1 - snapshots["prior"][-1, 0, 0].numpy())


def test_the_progress_panel_can_be_drawn_before_any_training(rows, random_images):
    probes = Probes(random_images(3), random_images(3), torch.zeros(3, 2))
    snapshots = {name: random_images(3).unsqueeze(0) for name in ("train", "held_out", "prior")}
    assert draws(plots.progress_panel(rows[:1], snapshots, probes))


def test_the_scatter_draws_every_point_in_file_order_and_names_the_classes():
    mu = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    fig, ax = plt.subplots()
    plots.latent_scatter(ax, mu, torch.arange(200) % 10)
    assert draws(fig)
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_offsets()), mu.numpy(), rtol=1e-6)
    assert {str(label) for label in range(10)} <= {text.get_text() for text in ax.texts}
    assert ax.get_xlim() == ax.get_ylim()


def test_the_circles_hold_the_mass_that_they_name():
    _, ax = plt.subplots()
    plots.latent_scatter(ax, torch.randn(200, 2), torch.arange(200) % 10)
    radii = [circle.get_radius() for circle in ax.patches]
    draws_of_prior = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0)).norm(dim=1)
    for radius, mass in zip(radii, [0.5, 0.95, 0.999], strict=True):
        margin = 5 * (mass * (1 - mass) / 100_000) ** 0.5
        assert (draws_of_prior < radius).float().mean().item() == pytest.approx(mass, abs=margin)


def test_the_circles_are_named_on_them_and_beside_the_classes():
    fig, ax = plt.subplots(figsize=(6, 6))
    around = torch.linspace(0.75, 1.75, 5) * torch.pi  # the classes stand on the inner circle, at the lower left
    mu = 1.2 * torch.stack([around.cos(), around.sin()], dim=1)
    plots.latent_scatter(ax, mu, torch.arange(5))
    assert draws(fig)
    classes, circles = ([text for text in ax.texts if ("%" in text.get_text()) == is_mass] for is_mass in (False, True))
    assert [text.get_text() for text in circles] == ["50 %", "95 %", "99.9 %"]
    for text, circle in zip(circles, ax.patches, strict=True):
        assert np.hypot(*text.get_position()) == pytest.approx(circle.get_radius())
        assert not any(text.get_window_extent().overlaps(name.get_window_extent()) for name in classes)


def test_a_class_without_points_is_not_named():
    fig, ax = plt.subplots()
    plots.latent_scatter(ax, torch.randn(20, 2), torch.arange(20) % 2)
    assert draws(fig)
    assert {text.get_text() for text in ax.texts} & {str(label) for label in range(10)} == {"0", "1"}


@pytest.mark.parametrize(("mu", "y"), [((20, 3), 20), ((20,), 20), ((20, 2), 19)])
def test_the_scatter_names_wrong_shapes(mu, y):
    with pytest.raises(ValueError, match=r"need mu \(N, 2\) and N labels, got"):
        plots.latent_scatter(plt.subplots()[1], torch.zeros(mu), torch.zeros(y, dtype=torch.long))


def test_the_manifold_has_z2_upwards(random_images):
    images = random_images(6).reshape(3, 2, 1, 28, 28)
    fig, ax = plt.subplots()
    plots.draw_manifold(ax, images, title="Manifold")
    assert draws(fig)
    picture = shown(ax)
    assert picture.shape == (3 * 29 + 1, 2 * 29 + 1)
    np.testing.assert_allclose(picture[-29:-1, 1:29], 1 - images[0, 0, 0].numpy())
    np.testing.assert_allclose(picture[1:29, 30:58], 1 - images[2, 1, 0].numpy())


@pytest.mark.parametrize("shape", [(9, 1, 28, 28), (3, 3, 28, 28), (3, 3, 784)])
def test_the_manifold_names_images_that_are_no_grid(shape):
    with pytest.raises(ValueError, match="got"):
        plots.draw_manifold(plt.subplots()[1], torch.zeros(shape))


def test_a_drawing_leaves_the_style_of_others_alone(rows):
    before = dict(plt.rcParams)
    plots.training_curves(rows, 45.5, 205.8)
    assert dict(plt.rcParams) == before


# --- files


def file_format(content):
    with Image.open(io.BytesIO(content)) as image:
        return image.format


def test_a_figure_is_saved_as_png_in_the_folder_of_figures(figures, rows):
    path = plots.save_figure(plots.training_curves(rows, 45.5, 205.8), "02_mlp_curves")
    assert path == figures / "02_mlp_curves.png"
    assert file_format(path.read_bytes()) == "PNG"
    assert list(figures.iterdir()) == [path]


def test_equal_figures_give_equal_files(rows):
    files = [plots.save_figure(plots.training_curves(rows, 45.5, 205.8), name).read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_an_interrupted_save_leaves_the_old_figure(figures, rows, monkeypatch):
    fig = plots.training_curves(rows, 45.5, 205.8)
    path = plots.save_figure(fig, "curves")
    before = path.read_bytes()

    def disk_full(partial, **_):
        partial.write_bytes(before[:50])
        raise OSError("No space left on device")

    monkeypatch.setattr(fig, "savefig", disk_full)
    with pytest.raises(OSError, match="No space left"):
        plots.save_figure(fig, "curves")
    assert path.read_bytes() == before
    assert list(figures.iterdir()) == [path]


def test_to_png_gives_the_picture_and_closes_the_figure(rows):
    fig = plots.training_curves(rows, 45.5, 205.8)
    assert file_format(plots.to_png(fig)) == "PNG"
    assert not plt.get_fignums()


def frame(grey):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (grey, grey, grey)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_the_panels_of_one_training_have_one_size(rows, random_images):
    probes = Probes(random_images(3), random_images(3), torch.zeros(3, 2))
    snapshots = {name: random_images(3).unsqueeze(0) for name in ("train", "held_out", "prior")}
    sizes = set()
    for n in (1, 2, 3):
        with Image.open(io.BytesIO(plots.to_png(plots.progress_panel(rows[:n], snapshots, probes)))) as image:
            sizes.add(image.size)
    assert len(sizes) == 1


def durations(image):
    """Seconds for which each frame of an animated image is shown."""
    found = []
    for i in range(image.n_frames):
        image.seek(i)
        found.append(image.info["duration"] / 1000)
    return found


def test_a_gif_has_every_frame_for_its_time_and_rests_on_the_last(figures):
    path = plots.save_gif([frame(0), frame(100), frame(200), frame(250)], "02_mlp_progress", seconds=0.5)
    assert path == figures / "02_mlp_progress.gif"
    with Image.open(path) as image:
        assert image.format == "GIF"
        assert image.n_frames == 4
        assert durations(image) == [0.5, 0.5, 0.5, 2.5]
        assert image.info["loop"] == 0
        image.seek(1)
        assert image.convert("L").getpixel((0, 0)) == pytest.approx(100, abs=2)
    assert list(figures.iterdir()) == [path]


def test_a_gif_of_one_frame():
    with Image.open(plots.save_gif([frame(7)], "one")) as image:
        assert image.n_frames == 1


def test_a_gif_without_frames_is_refused(figures):
    with pytest.raises(ValueError, match="at least one frame"):
        plots.save_gif([], "none")
    assert not figures.exists()
