"""The static site: its files, then every page in a real browser; and a small report, built and broken."""

import base64
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from PIL import Image, ImageDraw

from benchmarks.browser import PIXELS
from conftest import opened
from tme_utils import paths
from tools.site import SAVES, WIDGET, build

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
SOURCES = {"index.html": paths.ROOT / "README.md", **{f"{path.stem}.html": path for path in NOTEBOOKS}}
READY = "() => window.MathJax?.startup?.promise && MathJax.startup.promise.then(() => true)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The report's site, far from the repository."""
    folder = tmp_path_factory.mktemp("elsewhere") / "site"
    build(folder)
    return folder


@pytest.fixture(scope="module")
def soups(site):
    return {page: BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser") for page in SOURCES}


def cells_of(page, cell_type):
    if page == "index.html":
        markdown = SOURCES[page].read_text(encoding="utf-8")
        return [nbformat.v4.new_markdown_cell(markdown)] if cell_type == "markdown" else []
    return [cell for cell in nbformat.read(SOURCES[page], as_version=4).cells if cell.cell_type == cell_type]


def prose(page):
    """The Markdown without its code."""
    text = "\n\n".join(cell.source for cell in cells_of(page, "markdown"))
    return re.sub(r"(`+).*?\1", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.DOTALL)


def formulas(page):
    return re.findall(r"\$\$.+?\$\$|(?<!\\)\$[^$]+\$", prose(page), flags=re.DOTALL)


def links(soup):
    return [urlsplit(tag.get("href") or tag.get("src")) for tag in soup.select("[href], [src]")]


# --- its files


def test_every_notebook_has_a_page_and_every_page_leads_to_all(site, soups):
    assert {path.name for path in site.glob("*.html")} == set(SOURCES)
    for page, soup in soups.items():
        assert {url.path for url in map(urlsplit, (a["href"] for a in soup.select("nav a"))) if url.path} == set(
            SOURCES
        )
        assert [a["href"] for a in soup.select("nav a[aria-current]")] == [page]


@pytest.mark.parametrize("page", SOURCES)
def test_what_a_page_loads_lies_beside_it(page, soups, site):
    loaded = soups[page].select("[src], link[href]")
    assert loaded
    for tag in loaded:
        url = urlsplit(tag.get("src") or tag["href"])
        assert url.scheme == "data" or (not url.scheme and not url.netloc and (site / unquote(url.path)).is_file()), tag
    assert not re.search(r"url\(|@import", (site / "style.css").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", SOURCES)
def test_links_lead_to_files_and_to_sections(page, soups, site):
    ids = {name: [tag["id"] for tag in soup.select("[id]")] for name, soup in soups.items()}
    assert len(set(ids[page])) == len(ids[page])
    for url in links(soups[page]):
        if not url.scheme:
            target = unquote(url.path) or page
            assert (site / target).is_file(), url
            assert not url.fragment or unquote(url.fragment) in ids[target], url


@pytest.mark.parametrize("page", SOURCES)
def test_the_contents_name_every_section(page, soups):
    headings = re.findall(r"^##(?:#)? (.+)$", prose(page), re.MULTILINE)
    entries = [a.get_text() for a in soups[page].select("nav li li a")]
    assert len(entries) == len(headings) > 0
    for entry, heading in zip(entries, headings, strict=True):
        assert set(re.findall(r"\w+", re.sub(r"\$[^$]*\$", "", heading))) <= set(re.findall(r"\w+", entry))


@pytest.mark.parametrize("page", list(SOURCES)[1:])
def test_each_figure_is_shown_once_with_the_pixels_of_its_file(page, soups, site):
    saved = [
        name for cell in cells_of(page, "code") for verb, name in SAVES.findall(cell.source) if verb == "save_figure"
    ]
    images = soups[page].select(".jp-OutputArea a > img")
    assert sorted(Path(image["src"]).stem for image in images) == sorted(saved)
    assert len(soups[page].select(".jp-OutputArea img[width]")) == len(images)
    for image in images:
        with Image.open(site / image["src"]) as file:
            assert file.width > 1.4 * int(image["width"])
        assert image["alt"]


def test_no_widget_is_left_but_the_explorer(soups):
    for page, soup in soups.items():
        widgets = [out for cell in cells_of(page, "code") for out in cell.outputs if WIDGET in out.get("data", {})]
        assert bool(soup.select(".note")) == bool(widgets)
        assert not soup.select('script[type^="application/"], .jupyter-widgets')
        assert not re.search(r"\w+\(value=|\?step/s", " ".join(out.get_text() for out in soup.select(".jp-OutputArea")))
    assert [page for page, soup in soups.items() if soup.select("iframe")] == ["05_latent_exploration.html"]


# --- in a browser, from files


@pytest.fixture
def opened_page(browser, site):
    """Open a page by ``file://`` at a width; in the end nobody may have asked for anything else."""
    with opened(browser, offline=True) as page:
        requests = []
        page.on("request", lambda request: requests.append(request.url))

        def open_page(name, width=1300):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(f"{site.as_uri()}/{name}")
            page.wait_for_function(READY)
            return page

        yield open_page
        assert requests
        assert [url for url in requests if not url.startswith((f"{site.as_uri()}/", "data:", "blob:"))] == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_page_shows_its_formulas_and_its_images(name, opened_page):
    page = opened_page(name)
    assert page.locator("main mjx-container").count() == len(formulas(name))
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    sizes = page.locator("mjx-container > svg").evaluate_all(
        "all => all.map((svg) => svg.getBoundingClientRect().width)"
    )
    assert all(width > 3 for width in sizes)
    text = page.evaluate(
        """() => {
            const copy = document.body.cloneNode(true);
            copy.querySelectorAll("pre, code, script").forEach((element) => element.remove());
            return copy.textContent;
        }"""
    )
    assert not re.search(r"\$\$|\\[a-zA-Z]{2,}|\$[^$\n]{1,80}\$", text)
    images = page.locator("img").evaluate_all(
        """(all) => Promise.all(all.map((image) => image.decode().catch(() => {}).then(() => image.naturalWidth)))"""
    )
    assert all(width > 0 for width in images)


@pytest.mark.parametrize("name", SOURCES)
def test_a_page_fits_a_telephone(name, opened_page):
    page = opened_page(name, width=400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    contents = page.locator("nav li").first
    assert not contents.is_visible()
    page.locator("nav summary").click()
    assert contents.is_visible()


def test_a_link_of_the_contents_leads_to_its_section(opened_page):
    page = opened_page("index.html")
    page.locator('nav a[href^="01_"]').click()
    page.wait_for_url("**/01_*.html")
    page.wait_for_function(READY)
    section = page.locator("nav li.h2 a").last
    title = section.text_content()
    section.click()
    assert page.locator("h2", has_text=title).bounding_box()["y"] == pytest.approx(0, abs=800)
    page.reload()  # the formulas above the section take their room after the browser has scrolled
    page.wait_for_function(READY)
    assert 0 <= page.locator("h2", has_text=title).bounding_box()["y"] < 800


@pytest.mark.parametrize("width", [400, 1300])
def test_the_explorer_is_alive_and_has_room(width, opened_page):
    page = opened_page("05_latent_exploration.html", width)
    page.locator("iframe").scroll_into_view_if_needed()
    frame = page.frame_locator("iframe")
    digit = frame.locator(".tme-explorer .large")
    digit.wait_for()
    before = digit.evaluate(PIXELS)
    frame.locator("input[name=z1]").fill("1.25")
    after = digit.evaluate(PIXELS)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 50
    content = frame.locator("body").evaluate("body => body.getBoundingClientRect().bottom")
    assert content <= page.locator("iframe").bounding_box()["height"] < content + 150


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_themes(scheme, opened_page):
    page = opened_page("01_theory_and_kl.html")
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(
        "colour => getComputedStyle(document.body).backgroundColor === colour",
        arg={"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 24)"}[scheme],
    )
    colours = page.evaluate(
        """() => ["body", "main a", "nav li li a", ".highlight .k", ".highlight .c1", ".highlight .s2"].map(
            (selector) => getComputedStyle(document.querySelector(selector)).color)"""
    )
    paper = 1.0 if scheme == "light" else 0.1
    for colour in colours:
        ink = sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / (3 * 255)
        assert abs(ink - paper) > 0.4, colours


# --- a small report


def png(path, size, text):
    image = Image.new("L", size, 255)
    ImageDraw.Draw(image).text((5, 5), text, font_size=size[1] // 2)
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return path


def png_output(path):
    return nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(path.read_bytes()).decode()})


@pytest.fixture
def report(tmp_path):
    """A repository of a README and a notebook, which saves one of the two figures that it shows."""
    root = tmp_path / "report"
    (root / "notebooks").mkdir(parents=True)
    (root / "LICENSE").write_text("free")
    (root / "README.md").write_text(
        "# The report\n\n[read](notebooks/01_one.ipynb#Why), [licence](LICENSE), [far](https://example.org)\n"
    )
    png(root / "figures" / "01_one.png", (300, 150), "8")
    shown = [
        png_output(png(tmp_path / "8.png", (200, 100), "8")),
        png_output(png(tmp_path / "W.png", (200, 100), "WWW")),
    ]
    code = nbformat.v4.new_code_cell('plots.save_figure(figs["a"], "01_one")', outputs=shown, execution_count=1)
    text = "# One\n\n## Why\n\n### The test\n\n## How\n\n### The test\n\n[back](../README.md)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), code])
    nbformat.write(notebook, root / "notebooks" / "01_one.ipynb")
    return root


def test_links_are_turned_and_repeated_headings_have_ids_of_their_own(report, tmp_path):
    index, one = (BeautifulSoup(page.read_text(), "html.parser") for page in build(tmp_path / "site", report))
    assert [a["href"] for a in index.select("main p a")] == ["01_one.html#Why", "LICENSE", "https://example.org"]
    assert one.select_one("main p a")["href"] == "index.html"
    assert [a["href"] for a in one.select("nav li li a")] == ["#Why", "#The-test", "#How", "#The-test-2"]
    assert [h["id"] for h in one.select("h3")] == ["The-test", "The-test-2"]


def test_only_the_figure_that_was_saved_is_replaced(report, tmp_path):
    _, one = build(tmp_path / "site", report)
    saved, other = BeautifulSoup(one.read_text(), "html.parser").select(".jp-OutputArea img")
    assert saved["src"] == "figures/01_one.png"
    assert other["src"].startswith("data:image/png;base64,")


def test_a_new_site_replaces_the_old_one_whole(report, tmp_path):
    target = tmp_path / "site"
    build(target, report)
    (report / "notebooks" / "01_one.ipynb").rename(report / "notebooks" / "02_two.ipynb")
    (report / "README.md").write_text("# The report")
    assert build(target, report) == [target / "index.html", target / "02_two.html"]
    assert not (target / "01_one.html").exists()
    assert not (target / "LICENSE").exists()


@pytest.mark.parametrize("link", ["figures/none.png", "notebooks/none.ipynb", "../8.png", "figures"])
def test_a_link_that_leads_nowhere_is_named_and_leaves_the_old_site(link, report, tmp_path):
    target = tmp_path / "site"
    build(target, report)
    before = sorted(tmp_path.iterdir())
    (report / "README.md").write_text(f"# New\n\n[there]({link})")
    with pytest.raises(FileNotFoundError, match=re.escape(f"README.md links to {link}")):
        build(target, report)
    assert "The report" in (target / "index.html").read_text()
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_of_something_else_is_left_alone(report, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis"):
        build(tmp_path / "thesis", report)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
