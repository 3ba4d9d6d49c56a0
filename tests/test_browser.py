"""The explorer in a real browser: the front end against torch, the page from a file, and notebook 05 in JupyterLab."""

import io
import itertools
import math
import re
import zlib
from base64 import b64encode
from contextlib import closing, contextmanager

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.browser import PIXELS, jupyter_lab, run_all, write_notebook
from benchmarks.explorer import MODELS, differences
from conftest import opened
from tme_utils import paths
from tme_utils.checkpoints import shipped_model
from tme_utils.explorer import LatentExplorer, find_hearts, front_end_script, pack_networks
from tme_utils.metrics import active_units, exact_log_likelihood_2d, gaussian_elbo_2d
from tme_utils.training import seeded
from tme_utils.vae import IMAGE_SHAPE, VAE, kl_per_dim

N_IMAGES = 500
SEVEN = [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)]


@pytest.fixture(scope="module")
def vaes():
    """The shipped MLP and the shipped convolutional VAE."""
    return {architecture: shipped_model(name)[0].requires_grad_(False) for architecture, name in MODELS.items()}


def settled(page):
    """The page, once what has changed is drawn: at most one frame later."""
    page.evaluate("() => new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)))")
    return page


def grey(page, name="large"):
    """What a digit's canvas shows: 784 grey levels, 255 for paper."""
    return torch.tensor(settled(page).locator(f".tme-explorer .{name}").first.evaluate(PIXELS))


def assert_shows(page, model, z, name="large", within=1):
    """The canvas shows what torch decodes from z, within so many grey levels."""
    probs = model.decode(torch.as_tensor(z, dtype=torch.float32)).sigmoid().flatten()
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
    model, within = (vaes[layers], 0.5) if layers in vaes else (of_other_convolutions(*layers), 0.25)
    z, x = torch.randn(200, 2, generator=generator()), mnist_test.x[:200]
    with opened(browser) as page, torch.no_grad():
        grey_levels, in_mu, in_nats = differences(page, model, z, x)
        assert 255 * model.decode(z).sigmoid().std(0).max() > 10 * within  # there is something to get wrong
        assert model.encode(x)[0].std() > 10 * 1e-3
    assert grey_levels <= within
    assert in_mu <= 1e-3
    assert in_nats <= 0.05


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


def to_plane(page, u, v):
    """A place in the plane's drawing as (z1, z2), read off the circle that holds half of the prior."""
    circle = page.locator(".pad circle.prior").first
    u0, v0, r = (float(circle.get_attribute(name)) for name in ("cx", "cy", "r"))
    unit = r / math.sqrt(2 * math.log(2))
    return (float(u) - u0) / unit, (v0 - float(v)) / unit


def marker(page):
    """(z1, z2) of the ring on the plane."""
    place = settled(page).locator(".pad .point").get_attribute("transform")
    return to_plane(page, *place[len("translate(") : -1].split())


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
        assert marker(page) == pytest.approx(z)
        assert page.locator(".near span").all_text_contents() == [str(int(y[i])) for i in nearest]
        for canvas, i in zip(page.locator(".near canvas").all(), nearest, strict=True):
            assert torch.equal(torch.tensor(canvas.evaluate(PIXELS)), (255 - (255 * x[i]).round()).flatten())


def test_classes_of_other_names_bear_them_throughout(browser, vaes, mnist_test, tmp_path):
    names = [f"class {letter}" for letter in "ABCDEFGHI"] + ["ankle boot"]
    x, y = mnist_test.x[:N_IMAGES], mnist_test.y[:N_IMAGES]
    file = LatentExplorer(vaes["mlp"], x, y, class_names=names).to_html(tmp_path / "named.html")
    with page_of(file, browser) as page:
        assert set(page.locator(".near span").all_text_contents()) <= set(names)
        assert page.locator(".ready span").all_text_contents() == names
        assert set(page.locator(".pad text.name").all_text_contents()) == set(names)
        spoken = [button.get_attribute("aria-label") for button in page.locator(".ready").all()]
        assert spoken[0].startswith("test image of a class A")
        assert "of an ankle boot" in spoken[9]
        walks = re.findall("from (class .|ankle boot) to (class .|ankle boot)", page.locator(".walks").inner_text())
        assert len(walks) == 2


BOXES = "all => all.map(e => e.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"


def assert_apart(page, least):
    """At least so many names and numbers stand on the plane, and none covers another."""
    boxes = page.locator(".pad text").evaluate_all(BOXES)
    assert len(boxes) >= least
    for a, b in itertools.combinations(boxes, 2):
        left, top, right, bottom = *map(max, a[:2], b[:2]), *map(min, a[2:], b[2:])
        assert left >= right or top >= bottom, (a, b)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_names_stand_at_the_hearts_or_lead_there_and_cover_nothing(architecture, browser, files, vaes, mnist_test):
    mu = vaes[architecture].encode(mnist_test.x[:N_IMAGES])[0]
    hearts = find_hearts(mu, mnist_test.y[:N_IMAGES])
    with page_of(files[architecture], browser) as page:
        names = page.locator(".pad text.name").evaluate_all(
            "all => all.map(e => [e.textContent, +e.getAttribute('x'), +e.getAttribute('y')])"
        )
        leads = page.locator(".pad .leader").evaluate_all(
            "all => all.map(e => ['x1', 'y1', 'x2', 'y2'].map(n => +e.getAttribute(n)))"
        )
        assert [name for name, *_ in names] == list("0123456789")
        ends = {(x1, y1): (x2, y2) for x1, y1, x2, y2 in leads}
        for name, *place in names:
            assert to_plane(page, *ends.get(tuple(place), place)) == pytest.approx(hearts[int(name)], abs=1e-3)
        for size in (1300, 400, 1920):
            page.set_viewport_size({"width": size, "height": 900})
            assert_apart(page, 15)
        page.locator(".pad").focus()
        for _ in range(6):
            page.keyboard.press("+")
            assert_apart(page, 3)


def test_no_name_covers_another_however_the_codes_lie(browser, vaes, mnist_test, tmp_path):
    x = mnist_test.x[:1].expand(40, -1, -1, -1)  # all at one place
    file = LatentExplorer(vaes["mlp"], x, torch.arange(40) % 10).to_html(tmp_path / "one.html")
    with page_of(file, browser) as page:
        assert_apart(page, 15)
        assert page.locator(".pad .leader").count() == 9


def test_the_posteriors_ellipse_can_be_seen_and_the_plane_enlarged(page, vaes, mnist_test):
    page.locator(".ready").nth(4).click()
    i = mnist_test.y.tolist().index(4)
    std = (0.5 * vaes["mlp"].encode(mnist_test.x[i : i + 1])[1][0]).exp()

    def box(where):
        return settled(page).locator(f"{where} .posterior").bounding_box()

    small, large = box(".pad"), box(".inset")
    side = page.locator(".inset").bounding_box()["width"]
    assert max(large["width"], large["height"]) > side / 3
    assert large["width"] / large["height"] == pytest.approx(float(std[0] / std[1]), rel=0.15)
    order = page.locator(".pad .moving > *").evaluate_all("all => all.map(e => e.getAttribute('class'))")
    assert order.index("posterior") > order.index("point")
    for selector, times in [(".enlarge", 8), (".reduce", 1)]:
        for _ in range(3):
            page.locator(selector).click()
        assert box(".pad")["width"] == pytest.approx(times * small["width"], rel=0.15)
    before = mouse_wheel(page)
    assert box(".pad")["width"] == pytest.approx(small["width"], rel=0.15)  # the page scrolled past
    page.locator(".pad").focus()
    mouse_wheel(page)
    assert box(".pad")["width"] > 2 * small["width"], before
    centre = [float(page.locator(".inset .posterior").get_attribute(name)) for name in ("cx", "cy")]
    assert centre == pytest.approx((240, 240), abs=1e-3)  # in the middle of the inset


def mouse_wheel(page):
    """Turn the wheel over the plane, away from the hand."""
    page.locator(".pad").hover()
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(300)


def test_mouse_and_finger_move_the_point_z1_to_the_right_and_z2_up(page, vaes):
    limit, _ = point(page, "max")
    page.locator(".pad").hover(position={"x": 30, "y": 30})
    assert point(page) == (0, 0)  # no button was pressed
    for places, expected in [
        ([(0.75, 0.85)], (0.5, -0.7)),
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


def test_two_fingers_enlarge_the_plane_and_leave_the_point(page):
    before, radius = point(page), page.locator(".pad circle.prior").first
    small = float(radius.get_attribute("r"))
    page.locator(".pad").evaluate(
        """(pad) => {
          const send = (type, pointerId, clientX) => {
            const finger = { pointerId, clientX, clientY: 300, pointerType: "touch", isPrimary: false };
            pad.dispatchEvent(new PointerEvent(type, finger));
          };
          for (const [id, x] of [[7, 200], [8, 250]]) send("pointerdown", id, x);
          send("pointermove", 8, 350);
          for (const id of [7, 8]) send("pointerup", id, 350);
          send("pointermove", 8, 900);
        }"""
    )
    assert float(radius.get_attribute("r")) == pytest.approx(3 * small)
    assert point(page) == before


def test_a_second_finger_changes_nothing(page):
    before = marker(page)
    for name, extra in [("pad", 0.2), ("sketch", 0.3)]:
        sent = page.locator(f".{name}").evaluate(
            """(element, share) => {
              const box = element.getBoundingClientRect();
              const place = { clientX: box.x + share * box.width, clientY: box.y + share * box.height };
              const finger = { ...place, pointerId: 9, isPrimary: false };
              return element.dispatchEvent(new PointerEvent("pointerdown", finger));
            }""",
            extra,
        )
        assert sent
    assert marker(page) == before
    ink = page.locator(".sketch").evaluate("c => c.getContext('2d').getImageData(0, 0, 280, 280).data.some(Boolean)")
    assert not ink


def test_the_keyboard_alone_reaches_everything_and_moves_the_point(page, vaes):
    reached = []
    for _ in range(34):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.name || e.className || e.textContent)(document.activeElement)"))
    walks = [name for name in reached if name.startswith("▶")]
    assert len(walks) == 3
    first = ["noise", "output", "again", "z1", "z2", "pad", "enlarge", "reduce", "screen", *walks]
    assert reached == [*first, *["thumbnail near"] * 8, *["thumbnail ready"] * 10, "sketch", "clear", *reached[32:]]
    page.locator(".pad").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert point(page) == pytest.approx((-0.3, -0.1), abs=1e-9)
    assert_shows(page, vaes["mlp"], (-0.3, -0.1))
    for _ in range(20):
        page.keyboard.press("Shift+ArrowUp")
    assert marker(page)[1] == pytest.approx(point(page, "max")[1])
    page.keyboard.press("Home")
    settled(page)
    assert point(page) == (0, 0)


def test_every_control_has_a_name_and_room_and_a_walk_is_announced_once(page):
    tree = page.locator(".tme-explorer").aria_snapshot()
    for named in [
        *('slider "z₁', 'slider "z₂', 'application "Latent plane, z1 to the right, z2 up"', 'img "Decoded digit"'),
        *('button "draw z"', 'button "draw pixels"', 'button "enlarge the plane"', 'group "Walks"', 'button "clear"'),
        *('application "Draw a digit"', 'img "The image x: test image of', 'columnheader "cost less"'),
    ]:
        assert named in tree, tree
    assert tree.count("send it through the model") == 18
    assert tree.count('button "test image of an 8') == tree.count(" 8: send") > 0
    sizes = page.locator(".tme-explorer :is(button, input)").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
    )
    assert min(sizes) >= 24
    page.evaluate(
        """() => {
          window.heard = [];
          const live = document.querySelectorAll("[aria-live], output, [role=status], [role=alert]");
          const observer = new MutationObserver(() => window.heard.push(document.querySelector(".spoken").textContent));
          for (const e of live) observer.observe(e, { childList: true, characterData: true, subtree: true });
        }"""
    )
    page.wait_for_timeout(600)
    page.evaluate("window.heard.length = 0")
    for _ in range(20):
        page.locator(".pad").press("ArrowRight")
    page.locator(".spoken").get_by_text("z1 2.00, z2 0.00; recon").wait_for()
    assert page.evaluate("window.heard.length") == 1


def test_a_walk_plays_from_its_start_to_its_end_and_a_hand_ends_it(page):
    page.clock.install()
    button = page.locator(".walks button").first
    start, end = map(int, re.findall(r"\d", button.text_content()))
    names = dict(
        page.locator(".pad text.name").evaluate_all(
            "all => all.map(e => [e.textContent, [+e.getAttribute('x'), +e.getAttribute('y')]])"
        )
    )
    button.click()
    page.clock.run_for(100)
    assert page.evaluate("document.querySelector('.walks button').getAttribute('aria-pressed')") == "true"
    page.clock.run_for(8000)
    assert button.get_attribute("aria-pressed") == "false"
    u, v = page.locator(".pad .point").get_attribute("transform")[len("translate(") : -1].split()
    assert math.dist((float(u), float(v)), names[str(end)]) < math.dist((float(u), float(v)), names[str(start)])
    button.click()
    page.clock.run_for(1000)
    page.locator(".pad").press("Home")
    page.clock.run_for(1000)
    assert button.get_attribute("aria-pressed") == "false"
    assert point(page) == (0, 0)


def numbers(page):
    """KL of both coordinates, recon and the negative ELBO as shown; mu, std, z and eps."""
    shown = settled(page).locator("tbody:first-of-type td:nth-child(2)").all_text_contents()
    text = page.locator(".numbers").text_content().replace("−", "-")
    pairs = [tuple(map(float, found)) for found in re.findall(r"\((-?[\d.]+), (-?[\d.]+)\)", text)]
    return [None if value == "–" else float(value.replace("−", "-")) for value in shown], pairs


def test_the_loss_of_a_chosen_image_is_torchs_and_noise_is_drawn_anew(page, vaes, mnist_test):
    model, y = vaes["mlp"], mnist_test.y[:N_IMAGES]
    x = mnist_test.x[[y.tolist().index(5)]]
    page.locator(".ready").nth(5).click()
    assert torch.equal(grey(page, "seen"), (255 - (255 * x).round()).flatten())
    assert "a 5" in page.locator("figcaption .name").text_content()
    mu, logvar = model.encode(x)
    draws, recons = [], []
    for _ in range(30):
        page.get_by_role("button", name="draw z").click()
        shown, (mean, std, _, eps) = numbers(page)
        draws.append(eps)
        z = mu + (0.5 * logvar).exp() * torch.tensor(eps)
        recons.append(float(shown[2]) + float(model.log_likelihood(x, z)))
        assert shown[:2] == pytest.approx(kl_per_dim(mu, logvar)[0].tolist(), abs=0.05)
        assert shown[3] is None or shown[3] == pytest.approx(sum(shown[:3]), abs=0.03)
    assert (mean, std) == (
        pytest.approx(mu[0].tolist(), abs=6e-3),
        pytest.approx((0.5 * logvar[0]).exp().tolist(), abs=6e-4),
    )
    assert max(map(abs, recons)) < 0.6  # eps is shown to hundredths
    draws = torch.tensor(draws)
    assert len(draws.unique(dim=0)) == 30
    assert draws.mean(0).abs().max() < 4 / 30**0.5
    assert 0.5 < draws.std(0).min() < draws.std(0).max() < 1.6


QUADRATURE = """async ({ source, networks, weights, x }) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const bytes = Uint8Array.from(atob(weights), (character) => character.charCodeAt(0));
  const loaded = await module.loadNetworks(networks, new DataView(bytes.buffer));
  const finish = (work) => {
    for (;;) {
      const { done, value } = work.next();
      if (done) return value;
    }
  };
  const first = finish(module.firstSquares(loaded, 4.5));
  return x.map((pixels) => {
    const image = Float32Array.from(pixels);
    const q = module.encode(loaded, image);
    return [module.logLikelihood(loaded, first, image, q), module.averageElbo(loaded, image, q)].map(finish);
  });
}"""


@torch.no_grad()
def test_log_p_and_the_averaged_elbo_are_those_of_torchs_quadrature(browser, vaes, mnist_test):
    networks, weights = pack_networks(vaes["mlp"])
    arguments = {
        "source": front_end_script(),
        "networks": networks,
        "weights": b64encode(zlib.compress(weights)).decode(),
        "x": mnist_test.x[:20].flatten(1).tolist(),
    }
    with opened(browser) as page:
        found = torch.tensor(page.evaluate(QUADRATURE, arguments))
    model, x = shipped_model("mlp_2d")[0].double(), mnist_test.x[:20].double()
    mu, logvar = model.encode(x)
    log_p = exact_log_likelihood_2d(model, x, tolerance=1e-3).log_likelihood
    off = torch.stack([found[:, 0] - log_p, found[:, 1] - gaussian_elbo_2d(model, x, mu, logvar.exp().diag_embed())])
    assert log_p.std() > 10  # there is something to get wrong
    assert off.abs().max() < 0.1, off
    assert off.abs().median(dim=1).values.max() < 0.05


def test_log_p_and_the_gap_of_a_chosen_image_appear_while_the_hand_rests(page, vaes):
    def shown():
        return page.locator(":is(.neg_log_p, .gap) td:nth-child(2)").all_text_contents()

    page.locator(".ready").nth(1).click()
    assert shown() == ["…", "…"]
    page.wait_for_function("!document.querySelector('.gap td').textContent.includes('…')")
    x = as_encoded(page)
    neg_log_p, gap = map(float, shown())
    model = shipped_model("mlp_2d")[0].double().requires_grad_(False)
    mu, logvar = model.encode(x.double())
    assert neg_log_p == pytest.approx(-float(exact_log_likelihood_2d(model, x.double(), tolerance=1e-3)[0]), abs=0.1)
    elbo = float(gaussian_elbo_2d(model, x.double(), mu, logvar.exp().diag_embed()))
    assert neg_log_p + gap == pytest.approx(-elbo, abs=0.05)
    assert gap > 0


def test_a_point_that_the_posterior_does_not_draw_has_no_elbo(page, vaes, mnist_test):
    page.locator(".ready").nth(0).click()
    before, _ = numbers(page)
    page.locator(".pad").press("Home")
    page.locator("input[name=z1]").fill("3")
    after, _ = numbers(page)
    assert before[3] is not None
    assert after[3] is None
    assert "draws no such z" in page.locator(".numbers").text_content()
    x = mnist_test.x[[mnist_test.y.tolist().index(0)]]
    expected = -vaes["mlp"].log_likelihood(x, torch.tensor([point(page)], dtype=torch.float32))
    assert after[2] == pytest.approx(float(expected), rel=2e-3)
    assert after[:2] == before[:2]


def test_a_dot_that_is_clicked_and_a_neighbour_go_through_the_model_and_the_heat_shows_the_cost(page, vaes, mnist_test):
    x, model = mnist_test.x[:N_IMAGES], vaes["mlp"]
    mu = model.encode(x)[0]
    i = int(mu.norm(dim=1).argmax())  # no other dot lies near
    limit, _ = point(page, "max")
    mouse_path(page, ".pad", tuple(0.5 + 0.5 * share / limit for share in (float(mu[i, 0]), -float(mu[i, 1]))))
    assert torch.equal(grey(page, "seen"), (255 - (255 * x[i]).round()).flatten())
    page.locator(".near").last.click()  # not i, which is among the first wherever noise led
    assert not torch.equal(grey(page, "seen"), (255 - (255 * x[i]).round()).flatten())
    x = 1 - grey(page, "seen") / 255
    heat = page.locator(".heat")
    assert not heat.is_visible()
    page.locator(".output").focus()
    assert heat.is_visible()
    settled(page)
    green = torch.tensor(heat.evaluate(PIXELS.replace("i % 4 == 0", "i % 4 == 1")))
    probs = (1 - grey(page) / 255).clamp(0.02, 0.98)
    costs = -(x * probs.log() + (1 - x) * (1 - probs).log())
    assert torch.corrcoef(torch.stack([green.float(), costs.clamp(max=3)]))[0, 1] < -0.98


def test_the_film_shows_each_epochs_dots_and_digits_and_a_hand_ends_it(browser, vaes, mnist_test, tmp_path):
    with np.load(paths.ROOT / "figures" / "05_epochs.npz") as file:
        film = dict(file)
    image = Image.open(io.BytesIO(film["picture"].tobytes()))
    n_epochs = len(film["neg_elbo"])
    assert image.size == (420, 504 * n_epochs)
    explorer = LatentExplorer(vaes["mlp"], mnist_test.x[:2000], mnist_test.y[:2000], film=film)
    with page_of(explorer.to_html(tmp_path / "film.html"), browser) as page:
        page.locator(".film summary").click()
        slider, canvas = page.locator("input[name=epoch]"), page.locator(".film canvas")
        shown, strips = [], []
        for epoch in (0, 1, n_epochs - 1):
            slider.fill(str(epoch))
            assert page.locator(".film .value").text_content() == f"{epoch}: −ELBO {film['neg_elbo'][epoch]:.1f}"
            strips.append(torch.tensor(canvas.evaluate(PIXELS.replace("0, 0, 28, 28", "0, 0, 280, 84"))))
            top = 504 * epoch + 420
            expected = np.asarray(image.convert("L").crop((0, top, 280, top + 84))).astype(int)
            assert (strips[-1] - torch.tensor(expected).flatten()).abs().max() <= 4
            shown.append(page.locator(".pad canvas").evaluate("c => c.toDataURL()"))
        assert len(set(shown)) == 3
        assert page.locator(".pad text.name").first.is_hidden()
        rebuilt, originals = strips[-1].float().reshape(3, 28, 10, 28)[1:]
        assert torch.corrcoef(torch.stack([rebuilt.flatten(), originals.flatten()]))[0, 1] > 0.7
        mouse_path(page, ".pad", (0.5, 0.5))
        assert page.locator(".film").get_attribute("open") is None
        page.locator(".pad text.name").first.wait_for()  # the film hears of its end a moment later


@pytest.fixture(scope="module")
def twenty():
    """The shipped model of twenty dimensions."""
    return shipped_model("conv_20d")[0].requires_grad_(False)


def test_twenty_dimensions_have_a_slider_for_each_active_coordinate_and_decode_as_torch(
    browser, twenty, mnist_test, tmp_path
):
    x, y = mnist_test.x[:N_IMAGES], mnist_test.y[:N_IMAGES]
    mu, logvar = twenty.encode(x)
    kl = kl_per_dim(mu, logvar).mean(dim=0)
    order = [j for j in kl.argsort(descending=True).tolist() if active_units(mu)[j]]
    with page_of(LatentExplorer(twenty, x, y).to_html(tmp_path / "twenty.html"), browser) as page:
        sliders = page.locator(".sliders input")
        assert sliders.evaluate_all("all => all.map(e => e.name)") == [f"z{j + 1}" for j in order]
        assert page.locator(".nats").all_text_contents() == [f"{kl[j]:.2f} nats" for j in order]
        assert page.locator(".pad, .inset, .film, .gap").count() == 0
        first = y.tolist().index(0)
        z = mu[first].clone()  # it begins at the mean of the first 0
        assert_shows(page, twenty, z)
        for j, value in zip(order[:3], (1.5, -2.0, 0.25), strict=True):
            z[j] = value
            page.locator(f"input[name=z{j + 1}]").fill(str(value))
            assert_shows(page, twenty, z)
        recon = float(page.locator(".recon td").nth(0).text_content())
        assert recon == pytest.approx(-float(twenty.log_likelihood(x[first : first + 1], z[None])), abs=0.05)
        near = (mu - z).norm(dim=1).argsort()[:8]
        assert page.locator(".near span").all_text_contents() == [str(int(y[i])) for i in near]
        page.locator(".ready").nth(7).click()
        seven = y.tolist().index(7)
        of_x = kl_per_dim(mu, logvar)[seven].sum()
        assert float(page.locator(".kl td").nth(0).text_content()) == pytest.approx(float(of_x), abs=0.05)
        before = grey(page)
        page.get_by_role("button", name="z from the prior").click()
        assert not torch.equal(before, grey(page))
        drawn = torch.tensor(sliders.evaluate_all("all => all.map(e => e.valueAsNumber)"))
        assert 0.4 < drawn.std() < 1.8


def test_samples_are_drawn_from_the_pixel_probabilities(page, vaes):
    page.locator("input[name=z1]").fill("0.5")
    samples = []
    for _ in range(20):
        page.get_by_role("button", name="draw pixels").click()
        samples.append(1 - grey(page, "sample") / 255)
    samples, probs = torch.stack(samples), vaes["mlp"].decode(torch.tensor([0.5, 0.0])).sigmoid()
    assert set(samples.flatten().tolist()) == {0, 1}
    assert len(samples.unique(dim=0)) == 20
    assert abs(samples.mean(0).sum() - probs.sum()) < 5 * (probs * (1 - probs)).sum().div(20).sqrt()
    # The same draw follows the point: nothing flickers where the probabilities do not change.
    page.locator(".pad").press("ArrowRight")
    page.locator(".pad").press("ArrowLeft")
    assert torch.equal(samples[-1], 1 - grey(page, "sample") / 255)


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
    assert page.locator("figcaption .name").text_content() == "your drawing"


def test_the_encoder_places_the_drawing_on_the_plane(page, vaes):
    mouse_path(page, ".sketch", *SEVEN)
    model, x = vaes["mlp"], as_encoded(page)
    mu, logvar = (value[0] for value in model.encode(x))
    limit, _ = point(page, "max")
    ellipse = [float(page.locator(".pad .posterior").get_attribute(name)) for name in ("cx", "cy", "rx", "ry")]
    assert to_plane(page, *ellipse[:2]) == pytest.approx(mu.tolist(), abs=1e-3)
    assert ellipse[2:] == pytest.approx((240 / limit * 2 * (0.5 * logvar).exp()).tolist(), abs=0.05)
    shown, (mean, _, z, eps) = numbers(page)
    assert mean == pytest.approx(mu.tolist(), abs=6e-3)
    drawn = mu + (0.5 * logvar).exp() * torch.tensor(eps)
    assert z == pytest.approx(drawn.tolist(), abs=6e-3)
    assert marker(page) == pytest.approx(drawn.tolist(), abs=2e-3)
    assert shown[2] == pytest.approx(float(-model.log_likelihood(x, drawn[None])), abs=0.6)
    page.get_by_role("button", name="clear").click()
    assert not page.locator(".sketch").evaluate(
        "c => c.getContext('2d').getImageData(0, 0, 280, 280).data.some(Boolean)"
    )


def test_a_digit_is_drawn_and_cleared_by_the_keyboard_alone(page):
    page.locator(".sketch").focus()
    for key in ["ArrowUp"] * 6 + ["Space"] + ["ArrowDown"] * 12 + ["Space"] + ["ArrowRight"] * 5:
        page.keyboard.press(key)
    height, width = extent(as_encoded(page))
    assert height in (19, 20, 21)
    assert width <= 5  # the pen was up on its way to the right
    page.keyboard.press("Delete")
    assert not page.locator(".sketch").evaluate("c => c.getContext('2d').getImageData(0, 0, 9, 9).data.some(Boolean)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_themes_and_grows_with_the_screen(scheme, browser, files):
    with page_of(files["mlp"], browser, color_scheme=scheme) as page:
        page.set_viewport_size({"width": 1920, "height": 1080})
        styles = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"
        assert float(page.evaluate(styles, (".tme-explorer .body", "fontSize")).removesuffix("px")) >= 18
        plane = page.locator(".pad").bounding_box()
        assert plane["height"] > 700
        assert plane["y"] + plane["height"] < 1080
        parts = [("body", "backgroundColor"), (".hint", "color"), (".pad text.note", "fill")]
        colours = [re.findall(r"[\d.]+", page.evaluate(styles, part))[:3] for part in parts]
    paper, *inks = (sum(map(float, colour)) / (3 * 255) for colour in colours)
    assert (paper > 0.9) == (scheme == "light")
    assert all(abs(ink - paper) > 0.6 for ink in inks)


@pytest.mark.parametrize("width", [320, 360, 700, 900, 1100])
def test_nothing_is_cut_and_the_digit_stays_in_sight_of_the_plane(width, browser, files):
    with page_of(files["mlp"], browser) as page:
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        parts = page.locator(".tme-explorer :is(button, canvas, td, th, p:not(.spoken), span, h2)").evaluate_all(BOXES)
        assert all(left >= 0 and right <= width for left, _, right, _ in parts)
        digit, plane = (page.locator(f".tme-explorer .{name}").bounding_box() for name in ("large", "pad"))
        assert min(digit["y"], plane["y"]) >= 0
        assert max(box["y"] + box["height"] for box in (digit, plane)) <= 740


def test_many_moves_in_one_frame_are_drawn_at_once_and_then_once_more(page, vaes):
    drawn = settled(page).evaluate(
        """async () => {
          let drawn = 0;
          const digit = document.querySelector(".large").getContext("2d");
          const put = digit.putImageData.bind(digit);
          digit.putImageData = (...all) => { drawn += 1; put(...all); };
          const slider = document.querySelector("input[name=z1]");
          for (let i = 1; i <= 20; i++) {
            slider.value = i / 10;
            slider.dispatchEvent(new Event("input"));
            if (i === 1 && drawn !== 1) return "the first waits";
          }
          await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)));
          return drawn;
        }"""
    )
    assert drawn == 2
    assert_shows(page, vaes["mlp"], (2, 0))


def test_without_javascript_or_in_an_old_browser_a_sentence_and_the_poster_stand_there(
    browser, vaes, mnist_test, tmp_path
):
    poster = (paths.ROOT / "figures" / "05_explorer.png").read_bytes()
    shown = LatentExplorer(vaes["mlp"], mnist_test.x[:20], mnist_test.y[:20], poster=poster)
    file = shown.to_html(tmp_path / "page.html")
    with opened(browser, java_script_enabled=False) as page:
        page.goto(file.as_uri())
        assert "it needs JavaScript" in page.locator("main p").text_content()
        assert page.locator("main img").bounding_box()["height"] > 200
    with opened(browser) as page:
        page.goto(file.as_uri())
        page.locator(".tme-explorer").wait_for()
        assert page.locator("main > *").evaluate_all("all => all.map(e => e.tagName)") == ["H1", "DIV"]


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


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder, and the address of a JupyterLab that serves it."""
    folder = tmp_path_factory.mktemp("lab")
    with jupyter_lab(folder) as address:
        yield folder, address


def test_all_explorers_of_notebook_05_are_alive_in_jupyterlab(browser, vaes, twenty, mnist_test, lab):
    folder, address = lab
    notebook = nbformat.read(paths.ROOT / "notebooks" / "05_latent_exploration.ipynb", as_version=4)
    heads = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## ")]
    explorers = next(i for i in heads if notebook.cells[i].source.startswith("## 6. Under your hand"))
    del notebook.cells[heads[0] : explorers]  # nbval runs them all
    nbformat.write(notebook, folder / "05_latent_exploration.ipynb")
    with opened(browser) as page:
        explorer = run_all(page, address, "05_latent_exploration.ipynb")
        assert explorer.locator(".sliders input").count() == 0  # Jupyter's sliders stand above
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

        other = page.locator(".tme-explorer").nth(1)  # twenty dimensions, from the mean of the first 0
        z = twenty.encode(mnist_test.x[[mnist_test.y.tolist().index(0)]])[0][0]
        z[6] = -1.5
        other.locator("input[name=z7]").fill("-1.5")
        settled(page)
        probs, shown = twenty.decode(z).sigmoid().flatten(), torch.tensor(other.locator(".large").evaluate(PIXELS))
        assert (shown - (255 - (255 * probs).round())).abs().max() <= 1


TWO = """
import torch
from tme_utils.explorer import LatentExplorer
from tme_utils.vae import mlp_vae
explorers = [LatentExplorer(mlp_vae(2, [8]), torch.rand(20, 1, 28, 28), torch.arange(20) % 10) for _ in range(2)]
"""


@pytest.mark.parametrize("where", ["lab/tree", "notebooks"])
def test_two_explorers_in_jupyterlab_and_notebook_7_are_apart_and_keep_their_keys(where, browser, lab):
    folder, address = lab
    name = f"two_{where[:3]}.ipynb"  # each has a kernel of its own
    write_notebook(folder / name, TWO, "explorers[0]", "explorers[1]")
    # Notebook 7 complains of a schema of its own: its console is not ours.
    with closing(browser.new_page(viewport={"width": 1300, "height": 1000})) as page:
        run_all(page, address, name, where)
        page.locator(".tme-explorer").nth(1).wait_for()
        page.locator(".tme-explorer").nth(1).scroll_into_view_if_needed()
        ids = page.locator(".tme-explorer [id]").evaluate_all("all => all.map(e => e.id)")
        assert len(ids) == len(set(ids)) == 4
        n_cells = page.locator(".jp-Cell").count()
        for explorer in page.locator(".tme-explorer").all():
            pad = explorer.locator(".pad")
            before = pad.locator(".point").get_attribute("transform")
            for key in ("ArrowRight", "ArrowUp", "ArrowUp"):
                pad.press(key)
            settled(page)
            assert pad.locator(".point").get_attribute("transform") != before
            assert explorer.locator(".where").text_content().startswith("z = (0.10, 0.20)")
            for element in (pad, explorer.locator(".noise"), explorer.locator(".sketch")):
                element.focus()
                page.keyboard.type("ddaa")
                assert page.evaluate("document.activeElement.closest('.tme-explorer') !== null")
        assert page.locator(".jp-Cell").count() == n_cells
