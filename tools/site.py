"""Write the report as a static site that asks no network for anything: ``python -m tools.site [folder]``.

nbconvert turns the README and the executed notebooks into HTML, with formulas as MathML, which needs no script. This
module makes a page of each, and copies the files that the pages link to. The pages open from a disk, or from any
address of a web server.
"""

import argparse
import io
import re
import shutil
import tempfile
import unicodedata
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import jinja2
import nbformat
from bs4 import BeautifulSoup, Tag
from fontTools import subset
from jupyterlab_pygments import JupyterStyle
from math_core import LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from tme_utils import paths

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
EXPLORER = Path("figures/05_explorer.html")
FRAME = '<iframe src="{}" title="The latent explorer" loading="lazy" allow="fullscreen"></iframe>'
# Where the explorer stands on a page of its own, not in one of the lesson's.
BACK = """<nav aria-label="Lesson"><a href="../index.html">To the lesson</a></nav>
<script>if (window.top !== window) document.currentScript.previousElementSibling.remove();</script>"""
MARK = '<meta name="generator" content="tools.site">'
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
ITALIC = [0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)]  # mathematical italic, Latin and Greek


class Renderer(IPythonRenderer):
    """nbconvert's Markdown, with formulas as MathML; a formula that cannot be converted raises a LatexError."""

    _mathml = LatexToMathML()

    def inline_math(self, body: str) -> str:
        """A formula within a sentence."""
        return self._mathml.convert_with_local_state(body, displaystyle=False)

    def block_math(self, body: str) -> str:
        """A formula on a line of its own."""
        formula = self._mathml.convert_with_local_state(body, displaystyle=True)
        return f'<span class="formula">{formula}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        """A formula that an environment such as ``align`` begins and ends."""
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def build(target: Path, root: Path = paths.ROOT) -> list[Path]:
    """Write the site to ``target``, whole or not at all, and return its pages.

    Args:
        target: a folder that is new, empty or a site, which is replaced.
        root: the repository: README.md, notebooks/, figures/.

    Raises:
        FileExistsError: if ``target`` holds something else than a site.
        FileNotFoundError: if a page links to a file that is not in the repository.
    """
    index = target / "index.html"
    is_site = index.is_file() and MARK in index.read_text(encoding="utf-8")
    if target.exists() and any(target.iterdir()) and not is_site:
        raise FileExistsError(f"{target} is not empty, and no site that may be replaced")
    root = root.resolve()
    sources = [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]
    files = {source: "index.html" if source.suffix == ".md" else f"{source.stem}.html" for source in sources}
    bodies = {files[source]: _body(source) for source in sources}
    if (root / EXPLORER).is_file():
        _let_the_film_live(bodies["index.html"])
    needed = set().union(*(_localise(bodies[file], source, files, root) for source, file in files.items()))
    titles = {file: _text(body.h1) for file, body in bodies.items()}
    template = jinja2.Template((HERE / "site.html.j2").read_text(encoding="utf-8"), autoescape=True)
    style = (HERE / "site.css").read_text(encoding="utf-8") + _math_font(bodies.values())
    style += HtmlFormatter(style=JupyterStyle).get_style_defs(".highlight")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", suffix=".partial.", dir=target.parent) as temporary:
        (new := Path(temporary) / "new").mkdir()
        for source in needed:
            copy = new / source.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        if (explorer := new / EXPLORER).is_file():
            page = explorer.read_text(encoding="utf-8")
            explorer.write_text(page.replace("<main>", f"{BACK}\n<main>", 1), encoding="utf-8")
        (new / "style.css").write_text(style, encoding="utf-8")
        for file, body in bodies.items():
            first = body.select_one("main p, p")
            about = _plain(first) if first else titles[file]
            values = {"titles": titles, "contents": _contents(body), "body": str(body), "about": about, "mark": MARK}
            html = template.render(file=file, **values)
            (new / file).write_text(html, encoding="utf-8")
        target.rename(Path(temporary) / "old")
        new.rename(target)
    return [target / file for file in titles]


def _text(heading: Tag | None) -> str:
    return heading.get_text().removesuffix("¶") if heading else "untitled"


def _body(source: Path) -> BeautifulSoup:
    """A notebook in HTML; a Markdown file is a notebook of one cell."""
    if source.suffix == ".ipynb":
        notebook = nbformat.read(source, as_version=4)
    else:
        cell = nbformat.v4.new_markdown_cell(source.read_text(encoding="utf-8"), id="readme")
        notebook = nbformat.v4.new_notebook(cells=[cell])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _without_kernel(cell)
    cells = HTMLExporter(template_name="lab", template_file="base.html.j2")
    cells.exclude_input_prompt = cells.exclude_output_prompt = True
    cells.register_filter("markdown2html", lambda text: MarkdownWithMath(renderer=Renderer(escape=False)).render(text))
    body = BeautifulSoup(cells.from_notebook_node(notebook)[0], "html.parser")
    for image in body.select(".jp-OutputArea img"):
        image["alt"] = _reading(image)
    for code in body.select("pre"):
        code["tabindex"] = "0"  # who has no mouse must reach what scrolls
    for head in body.select("th"):
        if not head.get_text(strip=True):
            head.name = "td"
    for number, table in enumerate(body.select("table"), 1):
        for text in table.find_all(string=re.compile(" ± ")):
            text.replace_with(text.replace(" ± ", "\u00a0±\u00a0"))  # a number and its spread stay on one line
        heads = [_text(head) for head in table.select("thead tr:first-child > *")]
        if len(heads) > 8:
            table["class"] = "wide"  # on a narrow screen each row is a list, and each cell names its column
            for row in table.select("tbody tr"):
                for column, cell in zip(heads, row.select("th, td"), strict=False):
                    cell["data-head"] = column
        name = f"Table {number}: {_text(table.find_previous(['h1', 'h2', 'h3']))}"
        table.wrap(
            body.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "region", "aria-label": name})
        )
    for film in body.select("img[src$='.gif']"):
        film.wrap(body.new_tag("span", attrs={"class": "film"}))
    return body


def _math_font(bodies: Iterable[BeautifulSoup]) -> str:
    """STIX Two Math with the signs of these formulas alone, as CSS.

    Not every system has a font whose braces and sums grow, and a browser may refuse a page on a disk a font in a file.
    """
    text = "".join({sign for body in bodies for formula in body.select("math") for sign in formula.get_text()})
    text += "".join(chr(code) for code in ITALIC if unicodedata.normalize("NFKC", chr(code)) in text)
    options = subset.Options(flavor="woff", layout_features=["ssty", "dtls", "flac"], hinting=False)
    file = metadata.distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")
    with subset.load_font(str(file), options) as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(text=text)
        subsetter.subset(font)
        subset.save_font(font, packed := io.BytesIO(), options)
    url = f"data:font/woff;base64,{b64encode(packed.getvalue()).decode()}"
    return f"@font-face {{ font-family: Formulas; src: url({url}); }}\n"


def _plain(tag: Tag) -> str:
    """The text of what may hold formulas, which name a function and its argument without a space."""
    return " ".join(tag.get_text().replace("\u2061", " ").split())


def _reading(image: Tag) -> str:
    """What a figure shows: the first sentences of the reading that follows it in its section, or of the text."""
    heading = _text(image.find_previous(["h1", "h2", "h3"]))
    after = image.find_all_next([*HEADINGS, "strong", "p"])
    section = list(takewhile(lambda tag: tag.name not in HEADINGS, after))
    readings = [tag.parent or tag for tag in section if tag.name == "strong" and _text(tag).startswith("Reading")]
    texts = [tag for tag in section if tag.name == "p" and tag.get("class") != ["note"]]
    text = next(map(_plain, readings + texts), "")
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text.removeprefix("Reading").lstrip(" .:"))
    return f"Figure: {heading}. {' '.join(sentences[:2])}"


def _let_the_film_live(body: BeautifulSoup) -> None:
    """Where the README shows a film of the explorer, the page has the explorer itself."""
    film = body.select_one(f"p:has(img[src*='{EXPLORER.stem}.gif'])")
    if film is not None:
        film.replace_with(BeautifulSoup(FRAME.format(EXPLORER.as_posix()), "html.parser"))


def _without_kernel(cell: NotebookNode) -> list[NotebookNode]:
    """A code cell's outputs: for widgets what can stand for them, and the page that the explorer wrote."""
    widgets = [output for output in cell.outputs if output.get("data", {}).pop(WIDGET, None)]
    outputs = [output for output in cell.outputs if output not in widgets or "image/png" in output.data]
    html = ['<p class="note">In a running notebook, a live widget stands here.</p>'] if widgets else []
    for name in re.findall(r'to_html\(.*?"(\w+\.html)"', cell.source):
        html.append(FRAME.format(f"../figures/{name}"))
    return outputs + [nbformat.v4.new_output("display_data", {"text/html": text}) for text in html]


def _localise(body: BeautifulSoup, page: Path, files: dict[Path, str], root: Path) -> set[Path]:
    """Point the links to files of the repository at the site, and return those that must be copied."""
    needed = set()
    for tag in body.select("[href], [src]"):
        name = "href" if tag.has_attr("href") else "src"
        url = urlsplit(str(tag[name]))
        if url.scheme or url.netloc or not url.path:
            continue
        path = (page.parent / unquote(url.path)).resolve()
        if not path.is_file() or not path.is_relative_to(root):
            raise FileNotFoundError(f"{page.name} links to {tag[name]}, which is no file of the repository")
        needed.add(path)
        tag[name] = url._replace(path=quote(files.get(path, path.relative_to(root).as_posix()))).geturl()
    return needed - files.keys()


def _contents(body: BeautifulSoup) -> list[tuple[str, str, str]]:
    """(h2 or h3, id, text) of the sections, once each heading has a plain id of its own."""
    seen: Counter[str] = Counter()
    contents = []
    for heading in body.select(".jp-MarkdownCell [id]:has(> .anchor-link)"):
        text = _text(heading)
        seen[text] += 1
        heading["id"] = name = unquote(str(heading["id"])) + (f"-{seen[text]}" if seen[text] > 1 else "")
        heading.select(".anchor-link")[-1]["href"] = f"#{quote(name)}"
        if heading.name in ("h2", "h3"):
            contents.append((heading.name, name, text))
    return contents


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the report as a static site that needs no network.")
    parser.add_argument("folder", nargs="?", type=Path, default=paths.ROOT / "site", help="site/ by default")
    folder = parser.parse_args().folder
    print(f"{len(build(folder))} pages; open {folder / 'index.html'}")
