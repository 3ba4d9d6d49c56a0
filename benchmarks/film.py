"""The README's animated picture of the explorer's page: ``python -m benchmarks.film``.

A headless Chromium opens ``figures/05_explorer.html``, walks once around the latent plane and draws a digit; the
frames become ``figures/05_explorer.gif``.
"""

import argparse
import io
import math

from PIL import Image
from playwright.sync_api import Page

from benchmarks.browser import open_browser
from tme_utils import paths

WIDTH, HEIGHT = 1280, 820  # of the window, in pixels
N_STEPS = 40  # around the plane
STROKE = [(0.3, 0.25), (0.5, 0.15), (0.7, 0.3), (0.6, 0.5), (0.3, 0.85), (0.75, 0.85)]  # a 2, in shares of the canvas


def shoot(page: Page) -> Image.Image:
    image = Image.open(io.BytesIO(page.screenshot()))
    return image.convert("RGB").resize((WIDTH * 5 // 8, HEIGHT * 5 // 8), Image.Resampling.LANCZOS)


def walk(page: Page) -> list[Image.Image]:
    box = page.locator(".tme-explorer .pad").bounding_box()
    if box is None:
        raise RuntimeError("the page shows no plane")
    frames = []
    for i in range(N_STEPS + 1):
        angle = 2 * math.pi * i / N_STEPS
        x = box["x"] + box["width"] * (0.5 + 0.22 * math.cos(angle))
        y = box["y"] + box["height"] * (0.5 - 0.22 * math.sin(angle))
        page.mouse.move(x, y)
        if i == 0:
            page.mouse.down()
        page.wait_for_timeout(40)
        frames.append(shoot(page))
    page.mouse.up()
    return frames


def draw(page: Page) -> list[Image.Image]:
    box = page.locator(".tme-explorer .sketch").bounding_box()
    if box is None:
        raise RuntimeError("the page shows no canvas to draw on")
    frames = []
    for i, (across, down) in enumerate(STROKE):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=8)
        if i == 0:
            page.mouse.down()
        page.wait_for_timeout(80)
        frames.append(shoot(page))
    page.mouse.up()
    page.wait_for_timeout(150)
    return [*frames, *[shoot(page)] * 12]


def main() -> None:
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto((paths.ROOT / "figures" / "05_explorer.html").as_uri())
        page.locator(".tme-explorer .large").wait_for()
        page.wait_for_timeout(500)
        shots = walk(page) + draw(page)
    palette = shots[-1].quantize(256, Image.Quantize.MAXCOVERAGE)  # one for all: a dot keeps its colour
    frames = [shot.quantize(palette=palette, dither=Image.Dither.NONE) for shot in shots]
    path = paths.figures_dir() / "05_explorer.gif"
    with paths.atomic_write(path) as partial:
        frames[0].save(partial, save_all=True, append_images=frames[1:], duration=90, loop=0, optimize=True)
    print(f"{path.name}: {len(frames)} frames, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    argparse.ArgumentParser(description="Film the explorer's page for README.md.").parse_args()
    main()
