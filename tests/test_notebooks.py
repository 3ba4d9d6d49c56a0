"""The form of the notebooks: all that must not stand in one, each shown by a notebook in which it does."""

import ast
import copy
import importlib.util
import re
import subprocess
from collections import Counter
from itertools import groupby
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns

from tme_utils import paths
from tools import first_cell

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
N_IGNORED = {"02_mlp_vae.ipynb": 1, "03_conv_vae.ipynb": 1}  # trainings, with a live panel and a progress bar
IGNORED = re.compile(r"nbval-(?:ignore-output|skip|raises-exception)|raises-exception|#\s*(?:NBVAL|PYTEST_VALIDATE)_\w")
MAX_LINES = 25
MAX_WORDS = 200  # of prose in a cell
MAX_WORDS_IN_ALL = {"B_learnt_prior.ipynb": 1_800}, 14_000  # in this appendix, and in the rest of the report
MAX_BYTES = 5_000_000

NEVER_IN_CODE = (
    r"(?m)^\s*!.*|^\s*%{1,2}(?:pip|conda|bash|sh|script|sx|system)\b.*"
    r"|\b(?:wget|curl|urlopen|urlretrieve|pip install)\b|\bdownload\s*=\s*True|\bsys\.path\b"
)
NEVER_IN_OUTPUT = r" at 0x[0-9a-f]+"
NEVER_AT_ALL = r"(?<![\w.:/>-])/(?:home|root|tmp|work|Users|usr|mnt)(?:/\S*|\b(?![\w-]))|\b[A-Z]:\\\\?Users\\\S*"


def cells_of(notebook, cell_type="code"):
    return [cell for cell in notebook.cells if cell.cell_type == cell_type]


def nodes(cell):
    """All of the syntax tree of a code cell, its magics left out."""
    return list(ast.walk(ast.parse(re.sub(r"(?m)^\s*[%!].*$", "pass", cell.source))))


def form(notebook):
    """What is wrong with the cells and the metadata."""
    kinds = [cell.cell_type for cell in notebook.cells]
    counts = [cell.execution_count for cell in cells_of(notebook)]
    titles = re.findall(r"(?m)^# .*", "\n".join(cell.source for cell in cells_of(notebook, "markdown")))
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}"
    if "widgets" in notebook.metadata:
        yield "widget state"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "kernel"
    if not notebook.cells[0].source.startswith("# ") or len(titles) != 1:
        yield f"titles {titles}"
    n_own = kinds.count("code") - any(cell.id == first_cell.CELL_ID for cell in notebook.cells)
    if kinds.count("markdown") <= n_own:
        yield "more code than prose"
    if any(kind == "code" and len(list(run)) > 2 for kind, run in groupby(kinds)):
        yield "more than two code cells in a row"
    for cell in notebook.cells:
        if not cell.source.strip():
            yield "empty cell"
        if cell.cell_type == "code" and len(cell.source.splitlines()) > MAX_LINES:
            yield f"long cell: {cell.source[:60]}"
        if cell.cell_type == "markdown" and len(cell.source.split()) > MAX_WORDS:
            yield f"many words: {cell.source[:60]}"
        if set(cell.metadata) - {"tags"}:
            yield f"cell metadata {set(cell.metadata)}"


def content(notebook):
    """What must not be written or shown."""
    outputs = [output for cell in cells_of(notebook) for output in cell.outputs]
    for output in outputs:
        if output.output_type == "error" or output.get("name") == "stderr":
            yield f"output {output.get('ename', 'stderr')}"
    shown = [output.get("text", "") for output in outputs]
    shown += [text for out in outputs for kind, text in out.get("data", {}).items() if kind.startswith("text/")]
    yield from (f"no band: {line}" for text in shown for line in text.splitlines() if re.search(r"≈(?!.*within)", line))
    code = [cell.source for cell in cells_of(notebook)]
    prose = [cell.source for cell in cells_of(notebook, "markdown")]
    for pattern, texts in {NEVER_IN_CODE: code, NEVER_IN_OUTPUT: shown, NEVER_AT_ALL: code + prose + shown}.items():
        yield from (f"never: {found}" for text in texts for found in re.findall(pattern, text))
    for call in [node for cell in cells_of(notebook) for node in nodes(cell) if isinstance(node, ast.Call)]:
        if getattr(call.func, "id", "") == "print":  # an outcome is computed, not written
            values = [*call.args, *(node.value for node in ast.walk(call) if isinstance(node, ast.FormattedValue))]
            constants = [str(value.value) for value in values if isinstance(value, ast.Constant)]
            yield from (f"prints a literal: {text}" for text in constants if re.search(r"\b(True|False)\b", text))


def names(name, notebook):
    """What is named and is not there, and figures that do not bear the number of their notebook."""
    text = "\n".join(cell.source for cell in notebook.cells)
    for verb, figure in re.findall(r"\bsave_(figure|gif)\(.*[\"'](\w+)[\"']", text):
        file = f"{figure}.{'gif' if verb == 'gif' else 'png'}"
        if not file.startswith(f"{name.partition('_')[0]}_") or not (paths.ROOT / "figures" / file).is_file():
            yield f"figure {file}"
    for file, test in re.findall(r"\b(test_\w+\.py)::(\w+)", text):
        path = paths.ROOT / "tests" / file
        if not path.is_file() or not re.search(rf"(?m)^def {test}\(", path.read_text(encoding="utf-8")):
            yield f"test {file}::{test}"
    for link in re.findall(r"\]\(([^)\s]+)", "\n".join(cell.source for cell in cells_of(notebook, "markdown"))):
        url = urlsplit(link)
        if not url.scheme and url.path and not (paths.ROOT / "notebooks" / unquote(url.path)).is_file():
            yield f"link {link}"


def problems(name, notebook):
    n_ignored = sum(bool(IGNORED.search(f"{cell.metadata} {cell.source}")) for cell in cells_of(notebook))
    if n_ignored != N_IGNORED.get(name, 0):
        yield f"{n_ignored} ignored cells"
    yield from [*form(notebook), *content(notebook), *names(name, notebook)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_nothing_is_wrong_with_a_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert list(problems(path.name, notebook)) == []
    assert path.stat().st_size <= MAX_BYTES


def test_the_report_is_read_in_an_hour():
    cells = {path.name: cells_of(nbformat.read(path, 4), "markdown") for path in NOTEBOOKS}
    n_words = {name: sum(len(cell.source.split()) for cell in of) for name, of in cells.items()}
    appendix, rest = MAX_WORDS_IN_ALL
    for name, most in appendix.items():
        assert n_words.pop(name) <= most
    assert sum(n_words.values()) <= rest


def test_no_function_is_defined_in_two_notebooks():
    trees = [[n for cell in cells_of(nbformat.read(path, 4)) for n in nodes(cell)] for path in NOTEBOOKS]
    names = [name for tree in trees for name in {n.name for n in tree if isinstance(n, ast.FunctionDef | ast.ClassDef)}]
    assert len(NOTEBOOKS) >= 6
    assert [name for name, n_notebooks in Counter(names).items() if n_notebooks > 1] == []


KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}


def made_of(*cells, title="# Title", metadata=None):
    """A notebook of a title, these cells and enough prose, as if it had just been run."""
    cells = [new_markdown_cell(title), *cells, *(new_markdown_cell("Some prose.") for _ in cells)]
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = cell.execution_count or count
    return new_notebook(cells=cells, metadata=KERNEL | (metadata or {}))


def code(source="x = 1", **content):
    return new_code_cell(source, **content)


def shows(output_type="stream", **content):
    return made_of(code(outputs=[new_output(output_type, **content)]))


GOOD = made_of(
    code("%matplotlib inline\nfrom pathlib import Path\nprint('max < 1e-9:', x.sum(1, True) < 1, flush=True)"),
    new_markdown_cell("See [a page](https://example.org/home/tmp/x), [all](../README.md#results) and `data/tmp`."),
    code("print('1/2')", outputs=[new_output("stream", text="1/2 a/tmp/b\n")]),
)
BAD = [
    ("execution counts", made_of(code(), code(execution_count=3))),
    ("widget state", made_of(code(), metadata={"widgets": {}})),
    ("kernel", made_of(code(), metadata={"kernelspec": {"name": "tme", "display_name": "tme"}})),
    ("titles", made_of(code(), title="## Title")),
    ("titles", made_of(new_markdown_cell("# Another"))),
    ("more code than prose", new_notebook(cells=[new_markdown_cell("# Title"), code()])),
    ("more than two code cells in a row", made_of(code(), code(), code())),
    ("empty cell", made_of(code("\n"))),
    ("long cell", made_of(code("x = 1\n" * 26))),
    ("many words", made_of(new_markdown_cell("word " * 201))),
    ("cell metadata", made_of(code(metadata={"execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"}}))),
    ("output ValueError", shows("error", ename="ValueError", evalue="", traceback=[])),
    ("output stderr", shows(name="stderr", text="UserWarning")),
    ("never: sys.path", made_of(code("import sys\nsys.path.append('..')"))),
    ("never: %pip", made_of(code("%pip install torch"))),
    ("never: !ls", made_of(code("!ls"))),
    ("never: download=True", made_of(code("MNIST('data', download=True)"))),
    ("never:  at 0x7f86ab", shows(text="<Axes object at 0x7f86ab>")),
    ("never: /home/me/x", made_of(code("open('/home/me/x')"))),
    ("never: /tmp", made_of(new_markdown_cell("It lies in `/tmp`."))),
    ("never: /usr/x", shows("execute_result", data={"text/plain": "PosixPath('/usr/x')"})),
    ("never: C:\\Users", shows(text="C:\\Users\\me\\x")),
    ("no band: loss ≈ 3", shows(text="loss ≈ 3\n")),
    ("prints a literal: True", made_of(code("print('max difference < 1e-9:', True)"))),
    ("prints a literal", made_of(code("print(f'{x} is small: {True}')"))),
    ("prints a literal", made_of(code("print('both sides agree: True')"))),
    ("figure 98_none.png", made_of(code("plots.save_figure(fig, '98_none')"))),
    ("figure 01_theory_schema.png", made_of(code("plots.save_figure(figs['a'], name='01_theory_schema')"))),
    ("test test_data.py::test_x", made_of(new_markdown_cell("Guarded by `test_data.py::test_x`."))),
    ("link 07_more.ipynb", made_of(new_markdown_cell("See [more](07_more.ipynb)."))),
    ("1 ignored cells", made_of(code(metadata={"tags": ["nbval-ignore-output"]}))),
    ("1 ignored cells", made_of(code("# NBVAL_SKIP\nx = 1"))),
]


def test_only_numbers_behind_their_mark_are_replaced_before_comparing():
    file = paths.ROOT / "tests" / "sanitize.cfg"
    [(pattern, replacement)] = get_sanitize_patterns(file.read_text(encoding="ascii"))
    one, two, other = (
        re.sub(pattern, replacement, line)
        for line in ("KL ≈ 22.30, within 22 ± 1", "KL ≈ −1,021, within 22 ± 1", "KL ≈ 22.30, within 23 ± 1")
    )
    assert one == two == "KL ≈ NUMBER, within 22 ± 1" != other


def test_a_good_notebook_has_no_problem():
    assert list(problems("98_good.ipynb", GOOD)) == []


@pytest.mark.parametrize(("problem", "notebook"), BAD, ids=[problem for problem, _ in BAD])
def test_a_bad_notebook_is_found_out(problem, notebook):
    assert [found for found in problems("98_bad.ipynb", notebook) if found.startswith(problem)]


# --- the cell by which a notebook stands alone


def test_every_notebook_has_the_same_first_cell_with_the_address_of_the_project():
    for path in NOTEBOOKS:
        before = nbformat.read(path, as_version=4)
        assert first_cell.with_first_cell(copy.deepcopy(before), first_cell.address()) == before, "make it anew"
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    assert first_cell.BUTTONS.sub(first_cell.buttons(first_cell.address()), readme) == readme
    assert len(first_cell.BUTTONS.findall(readme)) == 1


def test_the_first_cell_does_nothing_in_a_clone_and_elsewhere_says_what_is_missing(monkeypatch, tmp_path):
    cell = first_cell.CELL.format(address="https://github.com/someone/lesson")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", None)  # nothing is fetched unasked
    exec(cell, {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"set FETCH = True.*from https://github.com/someone/lesson"):
        exec(cell, {})
    assert list(tmp_path.iterdir()) == []


def test_buttons_lead_to_the_projects_place_and_are_absent_without_one():
    assert "colab.research.google.com/github/a/b)" in first_cell.buttons("https://github.com/a/b.git")
    assert first_cell.buttons("") == first_cell.buttons("https://example.org/a/b") == ""
