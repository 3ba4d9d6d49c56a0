"""The explorer in a real browser: the front end against torch, the page from a file, and a notebook in JupyterLab."""

import itertools
import re
import shutil

import pytest
import torch
from torch import nn

from benchmarks.browser import PIXELS, jupyter_lab, run_all, write_notebook
from benchmarks.explorer import CELL, MODELS, differences, in_browser
from conftest import opened
from tme_utils import paths
from tme_utils.checkpoints import shipped_model
from tme_utils.explorer import LatentExplorer
from tme_utils.training import seeded
from tme_utils.vae import IMAGE_SHAPE, VAE

N_IMAGES = 500
KEYS = {"down": "ArrowDown", "left": "ArrowLeft", "right": "ArrowRight", "up": "ArrowUp"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the saved models and of the notebooks that show them."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def vaes():
    """The shipped MLP and the shipped convolutional VAE."""
    return {architecture: shipped_model(name)[0] for architecture, name in MODELS.items()}


def grey(page, name="large"):
    """What a digit's canvas shows: 784 grey levels, 255 for paper."""
    return torch.tensor(page.locator(f".tme-explorer .{name}").evaluate(PIXELS))


@torch.no_grad()
def expected(model, z1, z2):
    """The grey levels of torch's decoder."""
    return 255 - (255 * model.decode(torch.tensor([z1, z2])).sigmoid()).round().flatten()


def assert_shows(page, model, z1, z2, name="large"):
    assert (grey(page, name) - expected(model, z1, z2)).abs().max() <= 1


def mouse_path(page, selector, *places):
    """Draw or drag by the mouse through places in [0, 1], y downwards."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=10)
    page.mouse.up()


# --- parity


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_browser_and_torch_agree(architecture, browser, vaes, mnist_test, generator):
    model = vaes[architecture]
    z, x = torch.randn(200, 2, generator=generator()), mnist_test.x[:200]
    mu, _ = model.encode(x)
    assert mu.std() > 0.3
    assert model.decode(z).sigmoid().std(0).max() > 0.1  # there is something to get wrong
    with opened(browser) as page:
        grey_levels, in_mu = differences(page, model, z, x)
    assert grey_levels <= 1
    assert in_mu <= 1e-3


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 3), 1, 1), ((5, 2), 3, 0), ((2, 4), 1, 1), ((3, 3), 3, 4)]
)
def test_convolutions_of_other_sizes_and_silu_agree_too(kernel, stride, padding, browser, random_images, generator):
    with seeded(0):
        encoder = nn.Sequential(nn.Conv2d(1, 2, kernel, stride, padding), nn.SiLU(), nn.Flatten(), nn.LazyLinear(4))
        encoder(random_images(1))
        spread = nn.ConvTranspose2d(3, 2, kernel, stride, padding)
        size = spread(torch.zeros(1, 3, 7, 6)).numel()
        decoder = nn.Sequential(
            nn.Linear(2, 126),
            nn.Unflatten(1, (3, 7, 6)),
            spread,
            nn.Flatten(),
            nn.Linear(size, 784),
            nn.Unflatten(1, IMAGE_SHAPE),
        )
    model = VAE(encoder, decoder, 2, {})
    z, x = torch.randn(5, 2, generator=generator()), random_images(5)
    with opened(browser) as page, torch.no_grad():
        probs, mu, std = in_browser(page, model, z, x)
        torch.testing.assert_close(probs, model.decode(z).sigmoid().flatten(1), atol=1e-3, rtol=0)
        torch.testing.assert_close(mu, model.encode(x)[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(std, (0.5 * model.encode(x)[1]).exp(), atol=1e-3, rtol=0)


# --- the page, from a file and without a network


@pytest.fixture(scope="module")
def files(vaes, mnist_test, tmp_path_factory):
    """The page of each model."""
    folder = tmp_path_factory.mktemp("pages")
    x, y = mnist_test.x[:N_IMAGES], mnist_test.y[:N_IMAGES]
    return {name: LatentExplorer(model, x, y).to_html(folder / f"{name}.html") for name, model in vaes.items()}


@pytest.fixture
def page(browser, files):
    """The MLP's page, opened by ``file://``; it may ask for nothing but itself."""
    with opened(browser, offline=True, has_touch=True) as page:
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(files["mlp"].as_uri())
        page.locator(".tme-explorer").wait_for()
        yield page
        assert requests == [files["mlp"].as_uri()]


@pytest.fixture(scope="module")
def limit(vaes, mnist_test):
    """Half the width of the MLP's plane."""
    return LatentExplorer(vaes["mlp"], mnist_test.x[:N_IMAGES], mnist_test.y[:N_IMAGES]).z1.max


def point(page):
    """(z1, z2) as the page's own sliders have it."""
    return tuple(page.locator(f"input[name={name}]").evaluate("input => input.valueAsNumber") for name in ("z1", "z2"))


def marker(page):
    """(z1, z2) of the ring on the plane."""
    z1, minus_z2 = (
        page.locator(".point").get_attribute("transform").removeprefix("translate(").removesuffix(")").split()
    )
    return float(z1), -float(minus_z2)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_a_slider_of_the_page_changes_the_pixels_to_torchs(architecture, browser, files, vaes):
    with opened(browser, offline=True) as page:
        page.goto(files[architecture].as_uri())
        page.locator("input[name=z1]").wait_for()
        assert_shows(page, vaes[architecture], 0.0, 0.0)
        before = grey(page)
        page.locator("input[name=z1]").fill("1.25")
        page.locator("input[name=z2]").fill("-0.7")
        assert not torch.equal(before, grey(page))
        assert_shows(page, vaes[architecture], 1.25, -0.7)
        assert marker(page) == (1.25, -0.7)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_no_name_on_the_plane_covers_another(architecture, browser, files):
    boxes = "all => all.map(e => e.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"
    with opened(browser, offline=True) as page:
        page.goto(files[architecture].as_uri())
        page.locator("input[name=z1]").wait_for()
        notes = page.locator(".pad text.note").evaluate_all(boxes)  # the axes' and the circles'
        names = page.locator(".pad circle.name").evaluate_all(boxes)
        texts = page.locator(".pad text.note").all_text_contents()
    assert len(names) == 10
    circles = [box for box, text in zip(notes, texts, strict=True) if "%" in text]
    assert len(circles) == 3
    for circle, other in itertools.product(circles, names + [box for box in notes if box not in circles]):
        left, top, right, bottom = *map(max, circle[:2], other[:2]), *map(min, circle[2:], other[2:])
        assert left >= right or top >= bottom, (circle, other)


def test_the_plane_is_clicked_and_dragged_z1_to_the_right_and_z2_up(page, vaes, limit):
    mouse_path(page, ".pad", (0.75, 0.75))
    z1, z2 = point(page)
    assert z1 == pytest.approx(limit / 2, abs=0.03)
    assert z2 == pytest.approx(-limit / 2, abs=0.03)
    assert_shows(page, vaes["mlp"], z1, z2)
    mouse_path(page, ".pad", (0.4, 0.4), (0.6, 0.3))
    z1, z2 = point(page)
    assert (z1, z2) == pytest.approx((0.2 * limit, 0.4 * limit), abs=0.03)
    assert marker(page) == pytest.approx((z1, z2))
    assert_shows(page, vaes["mlp"], z1, z2)


def test_a_drag_that_leaves_the_plane_stays_at_its_edge(page, limit):
    mouse_path(page, ".pad", (0.9, 0.5), (1.2, 0.5))
    assert point(page) == pytest.approx((limit, 0), abs=0.03)


def test_a_movement_without_a_button_moves_nothing(page):
    page.locator(".pad").hover(position={"x": 30, "y": 30})
    assert point(page) == (0, 0)


def test_the_plane_is_touched(page, limit):
    box = page.locator(".pad").bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    assert point(page) == pytest.approx((-limit / 2, 0), abs=0.03)


def test_the_keyboard_alone_moves_the_point(page, vaes, limit):
    for _ in range(3):  # past both sliders
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "pad"
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert point(page) == pytest.approx((-0.3, -0.1), abs=1e-9)
    assert_shows(page, vaes["mlp"], -0.3, -0.1)
    for _ in range(20):
        page.keyboard.press("Shift+ArrowUp")
    assert point(page)[1] == pytest.approx(limit)
    page.keyboard.press("Home")
    assert point(page) == (0, 0)


def test_the_keyboard_alone_reaches_everything(page):
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.name || e.className)(document.activeElement)"))
    assert reached[:3] == ["z1", "z2", "pad"]
    assert reached[3].endswith("-show")
    assert reached[4:6] == ["sketch", "clear"]  # "draw again" is disabled


def test_every_control_and_picture_has_a_name_and_a_role(page):
    tree = page.locator(".tme-explorer").aria_snapshot()
    for named in [
        'slider "z₁',
        'slider "z₂',
        'application "Latent plane, z1 to the right, z2 up"',
        'img "Decoded digit"',
        'group "Show"',
        'radio "pixel probabilities" [checked]',
        'radio "Bernoulli sample"',
        'button "draw again" [disabled]',
        'application "Draw a digit"',
        'button "clear"',
        'img "Its reconstruction"',
    ]:
        assert named in tree, tree
    assert tree.count('img "test image of a ') == 8
    page.locator(".pad").press("ArrowRight")
    page.locator(".spoken").get_by_text("z1 0.10, z2 0.00; nearest test images:").wait_for()


def test_samples_are_drawn_from_the_pixel_probabilities(page, vaes):
    page.locator("input[name=z1]").fill("0.5")
    page.get_by_label("Bernoulli sample").check()
    first = grey(page)
    assert set(first.tolist()) == {0, 255}
    with torch.no_grad():
        probs = vaes["mlp"].decode(torch.tensor([0.5, 0.0])).sigmoid().flatten()
    samples = []
    for _ in range(20):
        page.get_by_role("button", name="draw again").click()
        samples.append(1 - grey(page) / 255)
    assert len({tuple(sample.tolist()) for sample in samples}) == 20
    ink = torch.stack(samples).mean(0).sum()
    assert abs(ink - probs.sum()) < 5 * (probs * (1 - probs)).sum().div(20).sqrt()
    # The same draw follows the point: nothing flickers where the probabilities do not change.
    shown = grey(page)
    page.locator(".pad").press("ArrowRight")
    page.locator(".pad").press("ArrowLeft")
    assert torch.equal(shown, grey(page))
    page.get_by_label("pixel probabilities").check()
    assert_shows(page, vaes["mlp"], 0.5, 0.0)


def test_the_nearest_test_images_are_shown_with_their_labels(page, vaes, mnist_test):
    page.locator("input[name=z1]").fill("1")
    page.locator("input[name=z2]").fill("0.5")
    x, y = mnist_test.x[:N_IMAGES], mnist_test.y[:N_IMAGES]
    with torch.no_grad():
        distance = (vaes["mlp"].encode(x)[0] - torch.tensor([1.0, 0.5])).norm(dim=1)
    nearest = distance.argsort()[:8]
    assert page.locator("figure:has(.near) figcaption").all_text_contents() == [str(int(y[i])) for i in nearest]
    for k, i in enumerate(nearest):
        pixels = torch.tensor(page.locator(".near").nth(k).evaluate(PIXELS))
        assert torch.equal(pixels, (255 - (255 * x[i]).round()).flatten())


# --- drawing


def as_encoded(page):
    """The drawing as the encoder gets it, in [0, 1], (1, 1, 28, 28)."""
    return (1 - grey(page, "seen") / 255).reshape(1, 1, 28, 28)


def extent(image):
    """Height and width of the ink."""
    ink = image[0, 0] > 0.1
    return [int(lines.nonzero().max() - lines.nonzero().min()) + 1 for lines in (ink.any(1), ink.any(0))]


def centre(image):
    """Centre of mass, row and column."""
    places = torch.arange(28.0)
    mass = image.sum()
    return [float((image[0, 0].sum(axis) * places).sum() / mass) for axis in (1, 0)]


SEVEN = [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)]


@pytest.mark.parametrize("size", [1.0, 0.3], ids=["large", "small"])
def test_a_drawing_becomes_an_image_like_mnists(size, page, mnist_test):
    mouse_path(page, ".sketch", *((0.05 + size * x, 0.6 * (1 - size) + size * y) for x, y in SEVEN))
    image = as_encoded(page)
    assert max(extent(image)) in (19, 20, 21)  # 20 by 20, wherever the pixels' edges fall
    of_mnist = [centre(x[None]) for x in mnist_test.x[:200]]
    usual = torch.tensor(of_mnist).mean(0).tolist()
    assert centre(image) == pytest.approx(usual, abs=0.3)
    sevens = mnist_test.x[mnist_test.y == 7].sum((1, 2, 3))
    assert sevens.quantile(0.05) < image.sum() < sevens.quantile(0.95)


def test_a_drawn_line_is_as_thick_as_the_test_ones(page, mnist_test):
    mouse_path(page, ".sketch", (0.5, 0.2), (0.5, 0.8))
    ones = mnist_test.x[mnist_test.y == 1].sum((1, 2, 3))
    ink = as_encoded(page).sum()
    assert ones.quantile(0.25) < ink < ones.quantile(0.75)


def test_the_encoder_places_the_drawing_on_the_plane(page, vaes):
    assert page.locator(".posterior").get_attribute("visibility") == "hidden"
    mouse_path(page, ".sketch", *SEVEN)
    model, image = vaes["mlp"], as_encoded(page)
    with torch.no_grad():
        mu, logvar = (value[0] for value in model.encode(image))
    assert page.locator(".posterior").get_attribute("visibility") == "visible"
    ellipse = [float(page.locator(".posterior").get_attribute(name)) for name in ("cx", "cy", "rx", "ry")]
    assert ellipse[:2] == pytest.approx([float(mu[0]), -float(mu[1])], abs=1e-3)
    assert ellipse[2:] == pytest.approx((2 * (0.5 * logvar).exp()).tolist(), abs=1e-3)
    assert marker(page) == pytest.approx(mu.tolist(), abs=1e-3)
    for name in ("large", "rebuilt"):
        assert (grey(page, name) - expected(model, *mu.tolist())).abs().max() <= 2  # 1e-3 in z is worth one more
    text = page.locator(".posterior-text").text_content()
    assert f"mean ({mu[0]:.2f}, {mu[1]:.2f})".replace("-", "−") in text
    page.get_by_role("button", name="clear").click()
    assert page.locator(".posterior").get_attribute("visibility") == "hidden"
    assert as_encoded(page).sum() == 0
    assert grey(page, "rebuilt").min() == 255


def test_a_digit_is_drawn_and_cleared_by_the_keyboard_alone(page):
    page.locator(".sketch").focus()
    for direction in ["up"] * 6 + ["pen"] + ["down"] * 12 + ["pen"] + ["right"] * 5:
        page.keyboard.press(KEYS.get(direction, "Space"))
    image = as_encoded(page)
    assert extent(image)[0] in (19, 20, 21)
    assert extent(image)[1] <= 5  # the pen was up on its way to the right
    page.keyboard.press("Delete")
    assert as_encoded(page).sum() == 0


def test_a_click_leaves_a_dot(page):
    mouse_path(page, ".sketch", (0.5, 0.5))
    assert extent(as_encoded(page)) in ([3, 3], [4, 4])


# --- its look


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_themes(scheme, browser, files):
    with opened(browser, offline=True, color_scheme=scheme) as page:
        page.goto(files["mlp"].as_uri())
        page.locator(".tme-explorer").wait_for()
        colours = page.evaluate(
            """() => [["body", "backgroundColor"], [".hint", "color"], [".pad text.note", "fill"]].map(
                ([selector, name]) => getComputedStyle(document.querySelector(selector))[name])"""
        )
    paper, *inks = (sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / (3 * 255) for colour in colours)
    assert (paper > 0.9) == (scheme == "light")
    assert all(abs(ink - paper) > 0.6 for ink in inks)


def test_nothing_is_wider_than_a_telephone(browser, files):
    with opened(browser, offline=True) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        page.goto(files["mlp"].as_uri())
        page.locator(".tme-explorer").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


# --- JupyterLab


@pytest.fixture(scope="module")
def lab(browser, folder):
    """A JupyterLab with a notebook for each model, and notebook 05."""
    shutil.copy(paths.ROOT / "notebooks" / "05_latent_exploration.ipynb", folder)
    for architecture, name in MODELS.items():
        write_notebook(folder / f"{architecture}.ipynb", CELL.format(name=name, n=N_IMAGES))
    with jupyter_lab(folder) as address:
        yield address


def readouts(page):
    """The values that Jupyter's sliders show, to two decimals."""
    return [float(text.replace("−", "-")) for text in page.locator(".widget-readout").all_text_contents()]


def drag(page, handle, distance):
    """Drag the handle of a slider to the right by so many pixels."""
    for _ in range(50):  # Lab lays out what comes into view, which moves the rest
        handle.evaluate("handle => handle.scrollIntoView({ block: 'center' })")
        page.wait_for_timeout(100)
        box = handle.bounding_box()
        if 200 < box["y"] < 800:
            break
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + distance, box["y"], steps=10)
    page.mouse.up()


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_in_jupyterlab_sliders_and_plane_move_each_other_and_the_pixels_are_torchs(architecture, browser, lab, vaes):
    model = vaes[architecture]
    with opened(browser) as page:
        run_all(page, lab, f"{architecture}.ipynb")
        assert page.locator(".tme-explorer input[type=range]").count() == 0  # Jupyter's sliders stand above
        assert readouts(page) == [0, 0]
        assert_shows(page, model, 0.0, 0.0)
        before = grey(page)

        drag(page, page.locator(".noUi-handle").first, 70)
        assert readouts(page)[0] > 0.5
        assert marker(page) == pytest.approx(readouts(page), abs=0.0051)
        assert not torch.equal(before, grey(page))
        assert_shows(page, model, *marker(page))

        mouse_path(page, ".pad", (0.5, 0.5), (0.4, 0.3))
        assert marker(page)[0] < -0.5
        assert marker(page)[1] > 0.5
        assert readouts(page) == pytest.approx(marker(page), abs=0.0051)
        assert_shows(page, model, *marker(page))


def test_notebook_05_runs_in_jupyterlab_and_both_its_explorers_are_alive(browser, lab, vaes):
    with opened(browser) as page:
        explorer = run_all(page, lab, "05_latent_exploration.ipynb")
        handles = page.locator(".noUi-handle")  # two sliders of the kernel's version, then two of the browser's
        assert handles.count() == 4

        start, before = marker(page), grey(page)
        drag(page, handles.nth(2), 70)
        assert marker(page)[0] > start[0] + 0.5
        assert not torch.equal(before, grey(page))
        assert_shows(page, vaes["mlp"], *marker(page))

        page.get_by_text("| Idle").wait_for()  # the kernel's version answers when every cell has run
        picture = page.locator("img.widget-image, .widget-image img").first
        drawn = picture.get_attribute("src")
        drag(page, handles.nth(0), 70)
        page.wait_for_function("([image, before]) => image.src !== before", arg=[picture.element_handle(), drawn])
        explorer.scroll_into_view_if_needed()
        assert_shows(page, vaes["mlp"], *marker(page))
