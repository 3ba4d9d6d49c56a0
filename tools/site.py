"""Write the report as a static site that asks no network for anything: ``python -m tools.site [folder]``.

nbconvert turns the README and the executed notebooks into HTML. This module makes a page of each, and copies the files
that the pages link to, and MathJax. The pages open from a disk, or from any address of a web server.
"""

import argparse
import base64
import io
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import jinja2
import nbformat
from bs4 import BeautifulSoup, Tag
from jupyterlab_pygments import JupyterStyle
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from PIL import Image, ImageChops, ImageStat
from pygments.formatters import HtmlFormatter

from tme_utils import paths

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
SAVES = re.compile(r'\b(save_figure|save_gif|to_html)\(.*?"((?:\d\d|[A-Z])_[\w.]+)"')  # names as figures bear them
SAME_PICTURE = 12  # grey levels of a thumbnail: layouts differ a little with the resolution, other figures more
MATHJAX = {"es5/tex-svg-full.js": "mathjax/tex-svg-full.js", "LICENSE": "mathjax/LICENSE"}


def build(target: Path, root: Path = paths.ROOT) -> list[Path]:
    """Write the site to ``target``, whole or not at all, and return its pages.

    Args:
        target: a folder that is new, empty or a site, which is replaced.
        root: the repository: README.md, notebooks/, figures/.

    Raises:
        FileExistsError: if ``target`` holds something else than a site.
        FileNotFoundError: if a page links to a file that is not in the repository.
    """
    if target.exists() and any(target.iterdir()) and not (target / MATHJAX["LICENSE"]).is_file():
        raise FileExistsError(f"{target} is not empty, and no site that may be replaced")
    root = root.resolve()
    sources = [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]
    files = {source: "index.html" if source.suffix == ".md" else f"{source.stem}.html" for source in sources}
    bodies = {files[source]: _body(source, root / "figures") for source in sources}
    needed = set().union(*(_localise(bodies[file], source, files, root) for source, file in files.items()))
    titles = {file: _text(body.h1) for file, body in bodies.items()}
    template = jinja2.Template((HERE / "site.html.j2").read_text(encoding="utf-8"), autoescape=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", suffix=".partial.", dir=target.parent) as temporary:
        new = Path(temporary) / "new"
        for source in needed:
            _copy(source, new / source.relative_to(root))
        for name, copy in MATHJAX.items():
            with resources.as_file(resources.files("mathjax") / "static" / "mathjax" / name) as source:
                _copy(source, new / copy)
        style = (HERE / "site.css").read_text(encoding="utf-8")
        style += HtmlFormatter(style=JupyterStyle).get_style_defs(".highlight")
        (new / "style.css").write_text(style, encoding="utf-8")
        for file, body in bodies.items():
            html = template.render(file=file, titles=titles, contents=_contents(body), body=str(body))
            (new / file).write_text(html, encoding="utf-8")
        if target.exists():
            target.rename(Path(temporary) / "old")
        new.rename(target)
    return [target / file for file in titles]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _text(heading: Tag | None) -> str:
    return heading.get_text().removesuffix("¶") if heading else "untitled"


def _body(source: Path, figures: Path) -> BeautifulSoup:
    """A notebook in HTML; a Markdown file is a notebook of one cell."""
    if source.suffix == ".ipynb":
        notebook = nbformat.read(source, as_version=4)
    else:
        cell = nbformat.v4.new_markdown_cell(source.read_text(encoding="utf-8"), id="readme")
        notebook = nbformat.v4.new_notebook(cells=[cell])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = list(_without_kernel(cell, figures))
    cells = HTMLExporter(template_name="lab", template_file="base.html.j2")
    cells.exclude_input_prompt = cells.exclude_output_prompt = True
    body = BeautifulSoup(cells.from_notebook_node(notebook)[0], "html.parser")
    for table in body.select("table"):
        for text in table.find_all(string=re.compile(" ± ")):
            text.replace_with(text.replace(" ± ", "\u00a0±\u00a0"))  # a number and its spread stay on one line
        table.wrap(body.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    return body


def _without_kernel(cell: NotebookNode, figures: Path) -> Iterator[NotebookNode]:
    """A code cell's outputs: for previews the figures saved, which are sharper; for widgets what can stand for them."""
    saved = SAVES.findall(cell.source)
    files = [path for verb, name in saved if verb == "save_figure" and (path := figures / f"{name}.png").is_file()]
    all_saved = len(files) == sum("image/png" in output.get("data", {}) for output in cell.outputs)
    live = False
    for output in cell.outputs:
        is_widget = output.get("data", {}).pop(WIDGET, None) is not None
        live |= is_widget
        if "image/png" in output.get("data", {}):
            yield _html(_picture(output.data["image/png"], files, math.inf if all_saved else SAME_PICTURE))
        elif not is_widget:
            yield output
    if live:
        yield _html('<p class="note">In a running notebook, a live widget stands here.</p>')
    for verb, name in saved:
        if verb == "save_gif":
            yield _html(f'<img src="../figures/{name}.gif" alt="Film of what the figures show, epoch after epoch">')
        elif verb == "to_html":
            yield _html(f'<iframe src="../figures/{name}" title="The latent explorer" loading="lazy"></iframe>')


def _html(html: str) -> NotebookNode:
    output: NotebookNode = nbformat.v4.new_output("display_data", {"text/html": html})
    return output


def _picture(png: str, files: list[Path], limit: float) -> str:
    """An image: the file that looks most like the base64-encoded output, or the output if all differ by the limit."""
    preview = Image.open(io.BytesIO(base64.b64decode(png)))
    size = f'width="{preview.width}" height="{preview.height}"'

    def difference(file: Path) -> float:
        with Image.open(file) as figure:
            thumbnails = [im.convert("L").resize((48, 48), Image.Resampling.BOX) for im in (preview, figure)]
        return ImageStat.Stat(ImageChops.difference(*thumbnails)).mean[0]

    file = min(files, key=difference, default=None)
    if file and difference(file) < limit:
        link = f"../figures/{quote(file.name)}"
        return f'<a href="{link}"><img src="{link}" {size} alt="Figure {file.stem}, read in the text below"></a>'
    return f'<img src="data:image/png;base64,{png}" {size} alt="Figure, read in the text below">'


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
        if path not in files:
            needed.add(path)
        tag[name] = url._replace(path=quote(files.get(path, path.relative_to(root).as_posix()))).geturl()
    return needed


def _contents(body: BeautifulSoup) -> list[tuple[str, str, str]]:
    """(h2 or h3, id, text) of the sections, once each heading has a plain id of its own."""
    seen: Counter[str] = Counter()
    contents = []
    for heading in body.select(".jp-MarkdownCell [id]:has(> .anchor-link)"):
        text = _text(heading)
        seen[text] += 1
        name = unquote(str(heading["id"])) + (f"-{seen[text]}" if seen[text] > 1 else "")
        heading["id"] = name
        heading.select(".anchor-link")[-1]["href"] = f"#{quote(name)}"
        if heading.name in ("h2", "h3"):
            contents.append((heading.name, name, text))
    return contents


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the report as a static site that needs no network.")
    parser.add_argument("folder", nargs="?", type=Path, default=paths.ROOT / "site", help="site/ by default")
    folder = parser.parse_args().folder
    print(f"{len(build(folder))} pages; open {folder / 'index.html'}")
