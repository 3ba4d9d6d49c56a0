"""The static site: the report's files, then every page in a real browser; and a small report, built and broken."""

import base64
import io
import re
from contextlib import closing, contextmanager
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from benchmarks.browser import PIXELS
from conftest import opened
from tme_utils import paths
from tools.site import WIDGET, build

SOURCES = {"index.html": paths.ROOT / "README.md"}
SOURCES |= {f"{path.stem}.html": path for path in sorted((paths.ROOT / "notebooks").glob("*.ipynb"))}
EXPLORER = "figures/05_explorer.html"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The report's site, far from the repository."""
    return build(tmp_path_factory.mktemp("elsewhere") / "site")[0].parent


def prose(page):
    """The Markdown without its code."""
    text = SOURCES[page].read_text(encoding="utf-8")
    if page != "index.html":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"(?ms)^```.*?^```|(`+).*?\1", "", text)


def test_links_lead_to_every_page_section_and_file_and_nothing_is_loaded_from_elsewhere(site):
    assert {path.name for path in site.glob("*.html")} == set(SOURCES)
    soups = {page: BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser") for page in SOURCES}
    ids = {page: [tag["id"] for tag in soup.select("[id]")] for page, soup in soups.items()}
    for page, soup in soups.items():
        assert len(set(ids[page])) == len(ids[page])
        assert [a["href"] for a in soup.select("nav ol:not(ol ol) > li > a")] == list(SOURCES)
        links = [set(re.findall(r"\w+", a.text)) for a in soup.select("nav li li a")]
        headings = re.findall(r"(?m)^###? (.+)$", prose(page))
        assert len(links) == len(headings)
        for heading, words in zip(headings, links, strict=True):
            assert set(re.findall(r"\w+", re.sub(r"\$[^$]*\$", "", heading))) <= words
        regions = [tag.get("aria-label") for tag in soup.select("[role=region]")]
        assert len(set(regions)) == len(regions) == len(soup.select("table"))
        assert not soup.select(".scroll:not([tabindex]), pre:not([tabindex]), th:empty, main ~ h1")
        for tag in soup.select("[href], [src]"):
            url = urlsplit(tag.get("href") or tag["src"])
            target = unquote(url.path) or page
            assert not url.scheme or url.scheme == "data" or tag.name == "a", tag
            assert url.scheme or (site / target).is_file(), tag
            assert url.scheme or not url.fragment or unquote(url.fragment) in ids[target], tag
    assert not re.search(r"url\((?!data:)|@import", (site / "style.css").read_text(encoding="utf-8"))
    frames = [(page, frame["src"]) for page, soup in soups.items() for frame in soup.select("iframe")]
    assert frames == [(page, EXPLORER) for page in ("index.html", "05_latent_exploration.html")]
    explorer = BeautifulSoup((site / EXPLORER).read_text(encoding="utf-8"), "html.parser")
    assert explorer.select_one("body > nav > a")["href"] == "../index.html"


def test_the_front_page_opens_with_the_explorer_and_where_to_start_before_it_says_how_to_install(site):
    soup = BeautifulSoup((site / "index.html").read_text(encoding="utf-8"), "html.parser")
    order = soup.select("main h1, main h1 ~ p:first-of-type, main iframe, main strong, main table, main .highlight")
    names = [tag.name for tag in order]
    assert names[:5] == ["h1", "p", "iframe", "strong", "table"]
    assert names.index("table") < names.index("div")
    assert "01_theory_and_kl.html" in [link["href"] for link in soup.select_one("main strong").parent.select("a")]
    assert not soup.select("img[src$='05_explorer.gif']")  # the explorer itself stands in its place
    assert len(soup.select_one("meta[name=description]")["content"]) > 50
    assert soup.select_one("body > a")["href"] == f"#{soup.select_one('main')['id']}"


@pytest.fixture
def opened_page(browser, site):
    """Open a page by ``file://`` at a width; in the end nobody may have asked for anything else."""
    with opened(browser, offline=True) as page:
        urls = []
        page.on("request", lambda request: urls.append(request.url))

        def open_page(name, width=1300):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(f"{site.as_uri()}/{name}")
            page.evaluate("document.fonts.ready")
            return page

        yield open_page
        assert [url for url in urls if not url.startswith((f"{site.as_uri()}/", "data:", "blob:"))] == [] != urls


@contextmanager
def without_javascript(browser, site, name, **options):
    """A page of the site where scripts are switched off."""
    with opened(browser, offline=True, java_script_enabled=False, **options) as page:
        page.goto(f"{site.as_uri()}/{name}")
        yield page


@pytest.mark.parametrize("name", SOURCES)
def test_without_javascript_every_formula_of_a_page_is_drawn(name, browser, site):
    formulas = re.findall(r"(?s)\$\$.+?\$\$|(?<!\\)\$[^$]+\$", prose(name))
    with without_javascript(browser, site, name) as page:
        sizes = page.locator("main math").evaluate_all(
            "all => all.map((formula) => [formula.clientWidth, formula.clientHeight])"
        )
        assert len(sizes) == len(formulas) > 0
        assert np.min(sizes) > 3
        assert page.locator(".formula > math[display=block]").count() == sum(text.startswith("$$") for text in formulas)
        texts = page.locator("main").evaluate(
            "main => { main.querySelectorAll('pre, code').forEach((code) => code.remove()); return main.textContent; }"
        )
        assert not re.search(r"\$|\\[a-zA-Z]", texts)


def test_the_font_of_the_formulas_holds_all_their_signs_and_their_braces_grow(opened_page, site):
    packed = re.search(r"font/woff;base64,([^)]+)", (site / "style.css").read_text(encoding="utf-8"))[1]
    font = TTFont(io.BytesIO(base64.b64decode(packed)))
    pages = [BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser") for name in SOURCES]
    formulas = [formula for page in pages for formula in page.select("math")]
    signs = {ord(sign) for formula in formulas for sign in formula.get_text()}
    italic = [letter.get_text() for formula in formulas for letter in formula.select("mi:not([mathvariant])")]
    latin = {ord(letter) - ord("a") + 0x1D44E for letter in italic if re.fullmatch("[a-z]", letter)} - {0x1D455}
    assert len(latin) > 10
    assert signs | latin <= set(font.getBestCmap()) | {0x2061, 0xFE00, ord("\n")}  # what is not seen
    assert "MATH" in font
    page = opened_page("01_theory_and_kl.html")
    assert page.evaluate("[...document.fonts].map((font) => font.family + font.status)") == ["Formulasloaded"]
    for braced in page.locator("munder:has(> mo:text('⏟'))").all():
        braced.scroll_into_view_if_needed()
        (box, brace) = (one.bounding_box() for one in (braced, braced.locator("> mo")))
        picture = page.screenshot(clip=brace | {"x": box["x"], "width": box["width"]})
        ink = np.asarray(Image.open(io.BytesIO(picture)).convert("L")) < 160
        assert ink.any(0).mean() > 0.9  # from end to end


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1300)])
@pytest.mark.parametrize("name", ["index.html", "02_mlp_vae.html", EXPLORER])
def test_axe_finds_no_fault(name, scheme, width, browser, site):
    with opened(browser, offline=True, color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{site.as_uri()}/{name}")
        page.locator("main .tme-explorer, main .film button, main iframe").first.wait_for()
        page.evaluate("document.fonts.ready")
        options = {"iframes": False, "preload": False, "resultTypes": ["violations"]}  # it shall load nothing
        found = Axe().run(page, options=options).response
    faults = [(fault["id"], node["html"]) for fault in found["violations"] for node in fault["nodes"]]
    unread = ("empty-table-header", "<th><math><mi>d</mi></math></th>")  # axe reads no MathML
    assert [fault for fault in faults if fault != unread] == []
    assert len(found["passes"]) > 20


def test_without_javascript_or_in_an_old_browser_a_sentence_and_the_poster_stand_for_the_explorer(browser, site):
    def assert_stands(page):
        assert "it needs JavaScript and a browser not older than" in page.locator("main p").text_content()
        assert page.locator("main img").bounding_box()["height"] > 200
        assert page.locator(".tme-explorer").count() == 0

    with without_javascript(browser, site, EXPLORER) as page:
        assert_stands(page)
        assert page.get_by_role("link", name="To the lesson").is_visible()
    with without_javascript(browser, site, "index.html") as page:
        page.locator("iframe").scroll_into_view_if_needed()
        assert_stands(page.frame_locator("iframe"))
        assert page.locator("nav li").first.is_visible()
    for missing in ("delete Array.prototype.toSorted", "delete window.DecompressionStream"):
        with closing(browser.new_context()) as context:  # what it complains of is meant
            context.add_init_script(missing)
            page = context.new_page()
            with page.expect_event("pageerror"):
                page.goto(f"{site.as_uri()}/{EXPLORER}")
            assert_stands(page)


@pytest.mark.parametrize("name", SOURCES)
def test_a_page_shows_its_images_and_fits_a_telephone(name, opened_page):
    page = opened_page(name, width=400)
    page.locator("img").evaluate_all("all => Promise.all(all.map((image) => image.decode()))")
    alts = page.locator("img").evaluate_all("all => all.map((image) => image.alt)")
    assert all(len(alt) > 25 for alt in alts)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert not page.locator("nav li").first.is_visible()
    page.locator("nav summary").click()
    assert page.locator("nav li").first.is_visible()


def test_a_link_of_the_contents_leads_to_its_section(opened_page):
    page = opened_page("01_theory_and_kl.html")
    section = page.locator("nav li.h2 a").last
    section.click()
    page.reload()
    assert 0 <= page.locator("h2", has_text=section.text_content()).bounding_box()["y"] < 800


@pytest.mark.parametrize("width", [400, 1000, 1300, 1920])
def test_the_table_of_results_fits(width, opened_page):
    page = opened_page("index.html", width)
    table = page.locator(".scroll:has(.wide)")
    assert table.count() == 1
    assert table.evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    last = table.locator("tbody tr").first.locator("td").last
    assert last.is_visible()
    assert last.evaluate("e => e.getBoundingClientRect().right") <= width
    assert last.get_attribute("data-head").startswith("binarised −log p")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_a_film_can_be_stopped_and_rests_for_whoever_wants_less_motion(motion, opened_page):
    page = opened_page("02_mlp_vae.html")
    page.emulate_media(reduced_motion=motion)
    page.reload()
    film = page.locator(".film")
    plays = motion != "reduce"
    for _ in range(2):
        film.get_by_role("button", name="Stop the film" if plays else "Play the film").wait_for()
        assert film.locator("img").is_visible() == plays != film.locator("canvas").is_visible()
        film.locator("button").click()
        plays = not plays


@pytest.mark.parametrize("width", [400, 1300])
def test_the_explorer_is_alive_and_has_room(width, opened_page):
    page = opened_page("index.html", width)
    page.locator("iframe").scroll_into_view_if_needed()
    frame = page.frame_locator("iframe")
    digit = frame.locator(".tme-explorer .large")
    digit.wait_for()
    before = digit.evaluate(PIXELS)
    frame.locator("input[name=z1]").fill("1.25")
    assert max(abs(a - b) for a, b in zip(before, digit.evaluate(PIXELS), strict=True)) > 50
    content = frame.locator("body").evaluate("body => body.getBoundingClientRect().bottom")
    assert content <= page.locator("iframe").bounding_box()["height"] < content + 150


@pytest.mark.parametrize(("scheme", "paper"), [("light", 255), ("dark", 24)])
def test_text_is_legible_in_both_themes(scheme, paper, opened_page):
    page = opened_page("01_theory_and_kl.html")
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor === 'rgb({paper}, {paper}, {paper})'")
    for selector in ("body", "main a", "nav li li a", ".highlight .k", ".highlight .c1", ".highlight .s2"):
        colour = page.locator(selector).first.evaluate("element => getComputedStyle(element).color")
        assert abs(sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3 - paper) > 100, selector


@pytest.fixture
def report(tmp_path):
    """A repository of a README and a notebook, with a figure, a widget, and a widget that has a picture."""
    root = tmp_path / "report"
    (root / "notebooks").mkdir(parents=True)
    (root / "LICENSE").write_text("free")
    (root / "README.md").write_text("# All\n\n[a](notebooks/01_one.ipynb#Why), [b](LICENSE), [c](https://d.org)")
    widget = {WIDGET: {"model_id": "1"}, "text/plain": "FloatSlider(value=0.5)"}
    shown = {"image/png": "iVBORw=="}, widget, widget | {"image/png": "aVBORw=="}
    outputs = [new_output("display_data", data, metadata={"image/png": {"width": 100}}) for data in shown]
    text = "# One\n\n## Why\n\n### The test\n\n## How\n\n### The test\n\n[back](../README.md)"
    reading = "**Reading.** It falls to\n$\\log 2$. It is small. And more.\n\n## Last"
    last = "**Symptom.** None.\n\n## More\n\n**Reading.** Of something else."
    cells = [new_markdown_cell(text), new_code_cell("x", outputs=outputs), new_markdown_cell(reading)]
    notebook = new_notebook(cells=[*cells, new_code_cell("x", outputs=outputs[:1]), new_markdown_cell(last)])
    nbformat.write(notebook, root / "notebooks" / "01_one.ipynb")
    return root


def test_links_are_turned_headings_have_ids_of_their_own_and_widgets_become_pictures(report, tmp_path):
    index, one = (BeautifulSoup(page.read_text(), "html.parser") for page in build(tmp_path / "site", report))
    assert [a["href"] for a in index.select("main p a")] == ["01_one.html#Why", "LICENSE", "https://d.org"]
    assert one.select_one("main p a")["href"] == "index.html"
    sections = ("Why", "The-test", "How", "The-test-2", "Last", "More")
    assert [a["href"] for a in one.select("nav li li a")] == [f"#{name}" for name in sections]
    assert [image["src"][-8:] for image in one.select("img[width='100']")] == ["iVBORw==", "aVBORw==", "iVBORw=="]
    alts = [*["Figure: The test. It falls to log 2. It is small."] * 2, "Figure: Last. Symptom. None."]
    assert [image["alt"] for image in one.select("img")] == alts
    assert len(one.select(".note")) == 1
    assert not re.search("FloatSlider|jupyter-widgets|model_id", str(one))


@pytest.mark.parametrize("link", ["figures/none.png", "../8.png", "notebooks"])
def test_a_site_is_replaced_whole_or_left_alone(link, report, tmp_path):
    target = build(tmp_path / "site", report)[0].parent
    (report / "notebooks" / "01_one.ipynb").rename(report / "notebooks" / "02_two.ipynb")
    (report / "README.md").write_text(f"# New\n\n[there]({link})")
    (tmp_path / "8.png").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=re.escape(f"README.md links to {link}")):
        build(target, report)
    assert "All" in (target / "index.html").read_text()
    assert sorted(tmp_path.iterdir()) == before
    (report / "README.md").write_text("# New")
    assert build(target, report) == [target / "index.html", target / "02_two.html"]
    assert {path.name for path in target.iterdir()} == {"index.html", "02_two.html", "style.css"}
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_of_something_else_is_left_alone(report):
    with pytest.raises(FileExistsError, match="report is not empty"):
        build(report, report)
    assert (report / "LICENSE").read_text() == "free"
