"""The explorer in a real browser: the front end against torch, the page from a file, and notebook 05 in JupyterLab."""

import itertools
import re
import shutil
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from benchmarks.browser import PIXELS, jupyter_lab, run_all
from benchmarks.explorer import MODELS, differences
from conftest import opened
from tme_utils import paths
from tme_utils.checkpoints import shipped_model
from tme_utils.explorer import LatentExplorer
from tme_utils.training import seeded
from tme_utils.vae import IMAGE_SHAPE, VAE

N_IMAGES = 500
SEVEN = [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)]


@pytest.fixture(scope="module")
def vaes():
    """The shipped MLP and the shipped convolutional VAE."""
    return {architecture: shipped_model(name)[0].requires_grad_(False) for architecture, name in MODELS.items()}


def grey(page, name="large"):
    """What a digit's canvas shows: 784 grey levels, 255 for paper."""
    return torch.tensor(page.locator(f".tme-explorer .{name}").evaluate(PIXELS))


def assert_shows(page, model, z, name="large", within=1):
    """The canvas shows what torch decodes from z, within so many grey levels."""
    probs = model.decode(torch.tensor(z, dtype=torch.float32)).sigmoid().flatten()
    assert (grey(page, name) - (255 - (255 * probs).round())).abs().max() <= within


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


def of_other_convolutions(*options):
    """A VAE of kernels, strides and paddings that the package does not use, and of SiLU."""
    with seeded(0):
        down, up = nn.Conv2d(1, 2, *options), nn.ConvTranspose2d(3, 2, *options)
        encoder = nn.Sequential(down, nn.SiLU(), nn.Flatten(), nn.LazyLinear(4))
        first, last = (
            [nn.Linear(2, 126), nn.Unflatten(1, (3, 7, 6))],
            [nn.LazyLinear(784), nn.Unflatten(1, IMAGE_SHAPE)],
        )
        vae = VAE(encoder, nn.Sequential(*first, up, nn.Flatten(), *last), 2, {})
        vae.reconstruct(torch.zeros(1, *IMAGE_SHAPE))  # gives the lazy layers their sizes
    return vae


@pytest.mark.parametrize("layers", ["mlp", "conv", ((3, 3), 1, 1), ((5, 2), 3, 0), ((2, 4), 1, 1), ((3, 3), 3, 4)])
def test_browser_and_torch_agree(layers, browser, vaes, mnist_test, generator):
    model, within = (vaes[layers], 1) if layers in vaes else (of_other_convolutions(*layers), 0.25)
    z, x = torch.randn(200, 2, generator=generator()), mnist_test.x[:200]
    with opened(browser) as page, torch.no_grad():
        grey_levels, in_mu = differences(page, model, z, x)
        assert 255 * model.decode(z).sigmoid().std(0).max() > 10 * within  # there is something to get wrong
        assert model.encode(x)[0].std() > 10 * 1e-3
    assert grey_levels <= within
    assert in_mu <= 1e-3


@pytest.fixture(scope="module")
def files(vaes, mnist_test, tmp_path_factory):
    """The page of each model."""
    folder, shown = tmp_path_factory.mktemp("pages"), (mnist_test.x[:N_IMAGES], mnist_test.y[:N_IMAGES])
    return {name: LatentExplorer(model, *shown).to_html(folder / f"{name}.html") for name, model in vaes.items()}


@contextmanager
def page_of(file, browser, **options):
    """A page opened by ``file://``; it may ask for nothing but itself."""
    with opened(browser, offline=True, **options) as page:
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        page.locator(".tme-explorer").wait_for()
        yield page
        assert requests == [file.as_uri()]


@pytest.fixture
def page(browser, files):
    """The MLP's page."""
    with page_of(files["mlp"], browser, has_touch=True) as page:
        yield page


def point(page, value="valueAsNumber"):
    """(z1, z2) as the page's own sliders have it."""
    return tuple(page.locator(f"input[name={name}]").evaluate(f"input => +input.{value}") for name in ("z1", "z2"))


def marker(page):
    """(z1, z2) of the ring on the plane."""
    z1, minus_z2 = page.locator(".point").get_attribute("transform")[len("translate(") : -1].split()
    return float(z1), -float(minus_z2)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_sliders_change_the_digit_and_the_nearest_test_images(architecture, browser, files, vaes, mnist_test):
    model, z = vaes[architecture], (1.25, -0.7)
    x, y = mnist_test.x[:N_IMAGES], mnist_test.y[:N_IMAGES]
    nearest = (model.encode(x)[0] - torch.tensor(z)).norm(dim=1).argsort()[:8]
    with page_of(files[architecture], browser) as page:
        assert_shows(page, model, (0, 0))
        page.locator("input[name=z1]").fill("1.25")
        page.locator("input[name=z2]").fill("-0.7")
        assert_shows(page, model, z)
        assert marker(page) == z
        assert page.locator("figure:has(.near) figcaption").all_text_contents() == [str(int(y[i])) for i in nearest]
        for canvas, i in zip(page.locator(".near").all(), nearest, strict=True):
            assert torch.equal(torch.tensor(canvas.evaluate(PIXELS)), (255 - (255 * x[i]).round()).flatten())


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_no_name_on_the_plane_covers_another(architecture, browser, files):
    boxes = "all => all.map(e => e.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"
    with page_of(files[architecture], browser) as page:
        notes, names = page.locator(".pad text.note"), page.locator(".pad circle.name").evaluate_all(boxes)
        of_notes = list(zip(notes.all_text_contents(), notes.evaluate_all(boxes), strict=True))
    circles = [box for text, box in of_notes if "%" in text]
    assert (len(names), len(circles)) == (10, 3)
    for circle, other in itertools.product(circles, names + [box for text, box in of_notes if "%" not in text]):
        left, top, right, bottom = *map(max, circle[:2], other[:2]), *map(min, circle[2:], other[2:])
        assert left >= right or top >= bottom, (circle, other)


def test_mouse_and_finger_move_the_point_z1_to_the_right_and_z2_up(page, vaes):
    limit, _ = point(page, "max")
    page.locator(".pad").hover(position={"x": 30, "y": 30})
    assert point(page) == (0, 0)  # no button was pressed
    for places, expected in [
        ([(0.75, 0.75)], (0.5, -0.5)),
        ([(0.4, 0.4), (0.6, 0.3)], (0.2, 0.4)),
        ([(0.9, 0.5), (1.2, 0.5)], (1, 0)),  # a drag that leaves the plane stays at its edge
    ]:
        mouse_path(page, ".pad", *places)
        assert point(page) == pytest.approx([limit * share for share in expected], abs=0.03)
        assert marker(page) == pytest.approx(point(page))
        assert_shows(page, vaes["mlp"], point(page))
    box = page.locator(".pad").bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    assert point(page) == pytest.approx((-limit / 2, 0), abs=0.03)


def test_the_keyboard_alone_reaches_everything_and_moves_the_point(page, vaes):
    reached = []
    for _ in range(6):  # "draw again" is disabled
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.name || e.className)(document.activeElement)"))
    assert [name.removeprefix("tme-explorer-1-") for name in reached] == ["z1", "z2", "pad", "show", "sketch", "clear"]
    page.locator(".pad").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert point(page) == pytest.approx((-0.3, -0.1), abs=1e-9)
    assert_shows(page, vaes["mlp"], (-0.3, -0.1))
    for _ in range(20):
        page.keyboard.press("Shift+ArrowUp")
    assert marker(page)[1] == pytest.approx(point(page, "max")[1])
    page.keyboard.press("Home")
    assert point(page) == (0, 0)


def test_every_control_and_picture_has_a_name_and_a_role(page):
    tree = page.locator(".tme-explorer").aria_snapshot()
    for named in [
        *('slider "z₁', 'slider "z₂', 'application "Latent plane, z1 to the right, z2 up"', 'img "Decoded digit"'),
        *('group "Show"', 'radio "pixel probabilities" [checked]', 'radio "Bernoulli sample"'),
        *('button "draw again" [disabled]', 'application "Draw a digit"', 'button "clear"', 'img "Its reconstruction"'),
    ]:
        assert named in tree, tree
    assert tree.count('img "test image of a ') == 8
    page.locator(".pad").press("ArrowRight")
    page.locator(".spoken").get_by_text("z1 0.10, z2 0.00; nearest test images:").wait_for()


def test_samples_are_drawn_from_the_pixel_probabilities(page, vaes):
    page.locator("input[name=z1]").fill("0.5")
    page.get_by_label("Bernoulli sample").check()
    samples = []
    for _ in range(20):
        page.get_by_role("button", name="draw again").click()
        samples.append(1 - grey(page) / 255)
    samples, probs = torch.stack(samples), vaes["mlp"].decode(torch.tensor([0.5, 0.0])).sigmoid()
    assert set(samples.flatten().tolist()) == {0, 1}
    assert len(samples.unique(dim=0)) == 20
    assert abs(samples.mean(0).sum() - probs.sum()) < 5 * (probs * (1 - probs)).sum().div(20).sqrt()
    # The same draw follows the point: nothing flickers where the probabilities do not change.
    page.locator(".pad").press("ArrowRight")
    page.locator(".pad").press("ArrowLeft")
    assert torch.equal(samples[-1], 1 - grey(page) / 255)
    page.get_by_label("pixel probabilities").check()
    assert_shows(page, vaes["mlp"], (0.5, 0))


def as_encoded(page):
    """The drawing as the encoder gets it, in [0, 1], (1, 1, 28, 28)."""
    return (1 - grey(page, "seen") / 255).reshape(1, 1, 28, 28)


def extent(image):
    """Height and width of the ink."""
    ink = image[0, 0] > 0.1
    return [int(lines.nonzero().max() - lines.nonzero().min()) + 1 for lines in (ink.any(1), ink.any(0))]


def centre(images):
    """Centre of mass, row and column, averaged over the images."""
    shares = images[:, 0] / images.sum((2, 3))[..., None]
    return [float((shares.sum(axis) @ torch.arange(28.0)).mean()) for axis in (2, 1)]


def test_a_drawing_becomes_an_image_like_mnists(page, mnist_test):
    def ink_of_class(label, *levels):
        return mnist_test.x[mnist_test.y == label].sum((1, 2, 3)).quantile(torch.tensor(levels))

    for size in (1.0, 0.3):
        mouse_path(page, ".sketch", *((0.05 + size * x, 0.6 * (1 - size) + size * y) for x, y in SEVEN))
        assert max(extent(as_encoded(page))) in (19, 20, 21)  # 20 by 20, wherever the pixels' edges fall
        assert centre(as_encoded(page)) == pytest.approx(centre(mnist_test.x[:200]), abs=0.3)
        least, most = ink_of_class(7, 0.05, 0.95)
        assert least < as_encoded(page).sum() < most
        page.get_by_role("button", name="clear").click()
    mouse_path(page, ".sketch", (0.5, 0.2), (0.5, 0.8))  # a line is as thick as the test ones
    least, most = ink_of_class(1, 0.25, 0.75)
    assert least < as_encoded(page).sum() < most
    page.get_by_role("button", name="clear").click()
    mouse_path(page, ".sketch", (0.5, 0.5))  # a click leaves a dot
    assert extent(as_encoded(page)) in ([3, 3], [4, 4])


def test_the_encoder_places_the_drawing_on_the_plane(page, vaes):
    posterior = page.locator(".posterior")
    assert posterior.get_attribute("visibility") == "hidden"
    mouse_path(page, ".sketch", *SEVEN)
    mu, logvar = (value[0] for value in vaes["mlp"].encode(as_encoded(page)))
    z1, z2 = mu.tolist()
    assert posterior.get_attribute("visibility") == "visible"
    ellipse = [float(posterior.get_attribute(name)) for name in ("cx", "cy", "rx", "ry")]
    assert ellipse == pytest.approx([z1, -z2, *(2 * (0.5 * logvar).exp()).tolist()], abs=1e-3)
    assert marker(page) == pytest.approx((z1, z2), abs=1e-3)
    for name in ("large", "rebuilt"):
        assert_shows(page, vaes["mlp"], (z1, z2), name, within=2)  # 1e-3 in z is worth one more
    assert f"mean ({z1:.2f}, {z2:.2f})".replace("-", "−") in page.locator(".posterior-text").text_content()
    page.get_by_role("button", name="clear").click()
    assert posterior.get_attribute("visibility") == "hidden"
    assert as_encoded(page).sum() == 0
    assert grey(page, "rebuilt").min() == 255


def test_a_digit_is_drawn_and_cleared_by_the_keyboard_alone(page):
    page.locator(".sketch").focus()
    for key in ["ArrowUp"] * 6 + ["Space"] + ["ArrowDown"] * 12 + ["Space"] + ["ArrowRight"] * 5:
        page.keyboard.press(key)
    height, width = extent(as_encoded(page))
    assert height in (19, 20, 21)
    assert width <= 5  # the pen was up on its way to the right
    page.keyboard.press("Delete")
    assert as_encoded(page).sum() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_themes_and_nothing_is_wider_than_a_telephone(scheme, browser, files):
    with page_of(files["mlp"], browser, color_scheme=scheme) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        styles = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"
        parts = [("body", "backgroundColor"), (".hint", "color"), (".pad text.note", "fill")]
        colours = [re.findall(r"[\d.]+", page.evaluate(styles, part))[:3] for part in parts]
    paper, *inks = (sum(map(float, colour)) / (3 * 255) for colour in colours)
    assert (paper > 0.9) == (scheme == "light")
    assert all(abs(ink - paper) > 0.6 for ink in inks)


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


def test_notebook_05_runs_in_jupyterlab_and_both_its_explorers_are_alive(browser, vaes, tmp_path):
    shutil.copy(paths.ROOT / "notebooks" / "05_latent_exploration.ipynb", tmp_path)
    with jupyter_lab(tmp_path) as address, opened(browser) as page:
        explorer = run_all(page, address, "05_latent_exploration.ipynb")
        assert explorer.locator("input[type=range]").count() == 0  # Jupyter's sliders stand above
        handles = page.locator(".noUi-handle")  # two sliders of the kernel's version, then two of the browser's
        assert handles.count() == 4

        def assert_in_step():
            """Jupyter's sliders, whose readouts have two decimals, the plane and the digit show one point."""
            readouts = page.locator(".widget-readout").all_text_contents()[-2:]
            assert [float(text.replace("−", "-")) for text in readouts] == pytest.approx(marker(page), abs=0.0051)
            assert_shows(page, vaes["mlp"], marker(page))

        assert_in_step()
        (start, _), before = marker(page), grey(page)
        drag(page, handles.nth(2), 70)
        assert marker(page)[0] > start + 0.5
        assert not torch.equal(before, grey(page))
        assert_in_step()
        mouse_path(page, ".pad", (0.5, 0.5), (0.4, 0.3))
        assert marker(page)[0] < -0.5 < 0.5 < marker(page)[1]
        assert_in_step()

        page.get_by_text("| Idle").wait_for()  # the kernel's version answers when every cell has run
        picture = page.locator("img.widget-image, .widget-image img").first
        drawn = picture.get_attribute("src")
        drag(page, handles.nth(0), 70)
        page.wait_for_function("([image, before]) => image.src !== before", arg=[picture.element_handle(), drawn])
        explorer.scroll_into_view_if_needed()
        assert_in_step()
