"""Hygiene of the notebooks' JSON: every rule is also shown a small notebook that breaks it."""

import ast
import copy
import io
import json
import re
import tokenize
from collections import Counter
from itertools import groupby

import nbformat
import pytest

from tme_utils import paths

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))

# Cells whose stored output nbval does not compare, in order: one reason for each.
ALLOWED_IGNORED = {
    "02_mlp_vae.ipynb": [
        "trains the MLP, with a live panel and a progress bar",
        "trains the MLP of two latent dimensions, with a live panel and a progress bar",
    ],
    "03_conv_vae.ipynb": ["trains the convolutional VAE, with a live panel and a progress bar"],
}
IGNORE_TAGS = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception"}
IGNORE_COMMENTS = re.compile(r"#\s*(NBVAL|PYTEST_VALIDATE)_\w+", re.IGNORECASE)
MAX_LINES = 25
MAX_BYTES = 5_000_000


def cells_of(notebook, cell_type="code"):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == cell_type]


def text(lines):
    """What the format stores as one string or as a list of lines."""
    return lines if isinstance(lines, str) else "".join(lines)


def source(cell):
    return text(cell["source"])


def outputs(notebook):
    return [output for cell in cells_of(notebook) for output in cell["outputs"]]


def output_texts(notebook):
    """Every stored text of the outputs, pictures left out."""
    for output in outputs(notebook):
        yield text(output.get("text", ""))
        yield from (text(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def is_ignored(cell):
    return bool(IGNORE_TAGS & set(cell["metadata"].get("tags", []))) or bool(IGNORE_COMMENTS.search(source(cell)))


def tree(cell):
    """Syntax tree of a code cell, its magics left out."""
    return ast.parse(re.sub(r"(?m)^\s*[%!].*$", "pass", source(cell)))


def called(call):
    """Last part of the name of what a call calls."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def saved_figures(notebook):
    """File name, or None where it is not written out, for each call of save_figure and save_gif."""
    for cell in cells_of(notebook):
        for call in ast.walk(tree(cell)):
            if isinstance(call, ast.Call) and called(call) in ("save_figure", "save_gif"):
                arguments = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "name")]
                name = getattr(arguments[0], "value", None) if arguments else None
                yield f"{name}.{'png' if called(call) == 'save_figure' else 'gif'}" if name else None


# --- the rules: each yields what is wrong with a notebook of this name


def is_valid(name, notebook):
    ids = [cell.get("id") for cell in notebook["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        yield "a cell without an id of its own"
        return
    try:
        nbformat.validate(nbformat.from_dict(notebook))
    except nbformat.ValidationError as error:
        yield str(error).splitlines()[0]


def counts_run_from_1(name, notebook):
    counts = [cell["execution_count"] for cell in cells_of(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}"


def has_no_widget_state(name, notebook):
    if "widgets" in notebook["metadata"]:
        yield "widget state in the metadata"


def runs_on_python3(name, notebook):
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        yield f"kernel {notebook['metadata'].get('kernelspec')}"


def stores_no_error(name, notebook):
    for output in outputs(notebook):
        if output["output_type"] == "error":
            yield f"error {output['ename']}"


def stores_no_stderr(name, notebook):
    for output in outputs(notebook):
        if output.get("name") == "stderr":
            yield f"stderr: {text(output['text'])[:80]}"


def stores_no_times(name, notebook):
    for cell in notebook["cells"]:
        for key in {"execution", "ExecuteTime"} & set(cell["metadata"]):
            yield f"cell metadata {key}"


def ignores_only_what_is_allowed(name, notebook):
    cells = cells_of(notebook)
    n_ignored = sum(is_ignored(cell) for cell in cells)
    n_allowed = len(ALLOWED_IGNORED.get(name, []))
    if n_ignored != n_allowed:
        yield f"{n_ignored} ignored cells, {n_allowed} reasons"
    if n_ignored > len(cells) / 4:
        yield f"{n_ignored} of {len(cells)} cells ignored"


def begins_with_a_title(name, notebook):
    first = notebook["cells"][0]
    if first["cell_type"] != "markdown" or not source(first).startswith("# "):
        yield "the first cell is no title"


def has_one_title(name, notebook):
    titles = re.findall(r"(?m)^# .*", "\n".join(source(cell) for cell in cells_of(notebook, "markdown")))
    if len(titles) != 1:
        yield f"titles {titles}"


def has_more_prose_than_code(name, notebook):
    n_prose, n_code = len(cells_of(notebook, "markdown")), len(cells_of(notebook))
    if n_prose <= n_code:
        yield f"{n_prose} cells of prose, {n_code} of code"


def has_two_code_cells_in_a_row_at_most(name, notebook):
    for kind, run in groupby(cell["cell_type"] for cell in notebook["cells"]):
        if kind == "code" and len(list(run)) > 2:
            yield "more than two code cells in a row"


def has_short_cells(name, notebook):
    for cell in cells_of(notebook):
        if len(source(cell).splitlines()) > MAX_LINES:
            yield f"{len(source(cell).splitlines())} lines: {source(cell)[:60]}"


def has_no_empty_cell(name, notebook):
    if any(not source(cell).strip() for cell in notebook["cells"]):
        yield "empty cell"


def ends_no_cell_with_a_semicolon(name, notebook):
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.DEDENT, tokenize.INDENT}
    for cell in cells_of(notebook):
        tokens = tokenize.generate_tokens(io.StringIO(re.sub(r"(?m)^\s*[%!].*$", "pass", source(cell))).readline)
        meant = [token.string for token in tokens if token.type not in ignored]
        if meant and meant[-1] == ";":
            yield f"trailing semicolon: {source(cell)[-60:]}"


def has_no_star_import(name, notebook):
    for cell in cells_of(notebook):
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                yield f"star import of {node.module}"


def installs_and_downloads_nothing(name, notebook):
    for cell in cells_of(notebook):
        found = re.findall(
            r"(?m)^\s*!.*|^\s*%{1,2}(?:pip|conda|bash|sh|script|sx|system)\b.*"
            r"|\b(?:wget|curl|urlopen|urlretrieve|pip install)\b|\bdownload\s*=\s*True|\bsys\.path\b",
            source(cell),
        )
        yield from found


def names_no_absolute_path(name, notebook):
    for content in [*(source(cell) for cell in notebook["cells"]), *output_texts(notebook)]:
        yield from re.findall(r"(?<![\w.:/>-])/(?:home|root|tmp|work|Users|usr|mnt)(?:/\S*|\b(?![\w-]))", content)
        yield from re.findall(r"\b[A-Z]:\\\\?Users\\\S*", content)


def shows_no_memory_address(name, notebook):
    for content in output_texts(notebook):
        yield from re.findall(r" at 0x[0-9a-f]+", content)


def saves_figures_that_exist(name, notebook):
    for figure in saved_figures(notebook):
        if figure is None:
            yield "a figure whose name is not written out"
        elif not (paths.ROOT / "figures" / figure).is_file():
            yield f"figures/{figure} does not exist"


def names_figures_after_itself(name, notebook):
    prefix = name.partition("_")[0] + "_"
    for figure in saved_figures(notebook):
        if figure is not None and not figure.startswith(prefix):
            yield f"{figure} does not begin with {prefix}"


def names_tests_that_exist(name, notebook):
    for cell in notebook["cells"]:
        for file, test in re.findall(r"\b(test_\w+\.py)::(\w+)", source(cell)):
            path = paths.ROOT / "tests" / file
            if not path.is_file() or not re.search(rf"(?m)^def {test}\(", path.read_text(encoding="utf-8")):
                yield f"no test {file}::{test}"


RULES = [
    is_valid,
    counts_run_from_1,
    has_no_widget_state,
    runs_on_python3,
    stores_no_error,
    stores_no_stderr,
    stores_no_times,
    ignores_only_what_is_allowed,
    begins_with_a_title,
    has_one_title,
    has_more_prose_than_code,
    has_two_code_cells_in_a_row_at_most,
    has_short_cells,
    has_no_empty_cell,
    ends_no_cell_with_a_semicolon,
    has_no_star_import,
    installs_and_downloads_nothing,
    names_no_absolute_path,
    shows_no_memory_address,
    saves_figures_that_exist,
    names_figures_after_itself,
    names_tests_that_exist,
]


def is_notebook_name(name):
    """Whether this is the name of one of the five notebooks or of the appendix."""
    return re.fullmatch(r"(?:0[1-5]|A)_\w+\.ipynb", name) is not None


def defined_twice(notebooks):
    """Functions and classes that more than one notebook defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = Counter()
    for notebook in notebooks:
        nodes = [node for cell in cells_of(notebook) for node in ast.walk(tree(cell))]
        names.update({node.name for node in nodes if isinstance(node, kinds)})
    return [name for name, n_notebooks in names.items() if n_notebooks > 1]


# --- the notebooks of the report


@pytest.fixture(scope="module")
def report():
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in NOTEBOOKS}


def test_there_are_notebooks_to_check():
    assert NOTEBOOKS
    assert all(is_notebook_name(path.name) for path in NOTEBOOKS)


def test_notebooks_are_numbered_or_the_appendix():
    names = ["01_theory.ipynb", "05_latent.ipynb", "A_mistakes.ipynb"]
    wrong = [
        "06_more.ipynb",
        "A.ipynb",
        "A_.ipynb",
        "AA_more.ipynb",
        "B_more.ipynb",
        "a_mistakes.ipynb",
        "A_b.ipynb.bak",
    ]
    assert [is_notebook_name(name) for name in names + wrong] == [True] * 3 + [False] * 7


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_notebook(rule, report):
    problems = {name: list(rule(name, notebook)) for name, notebook in report.items()}
    assert not {name: found for name, found in problems.items() if found}


def test_no_function_is_defined_in_two_notebooks(report):
    assert defined_twice(report.values()) == []


def test_files_are_small():
    assert {path.name: path.stat().st_size for path in NOTEBOOKS if path.stat().st_size > MAX_BYTES} == {}


def test_reasons_are_given_for_notebooks_that_exist():
    assert set(ALLOWED_IGNORED) <= {path.name for path in NOTEBOOKS}


# --- notebooks that break a rule

MARKDOWN = {"cell_type": "markdown", "metadata": {}}
CODE = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
STREAM = {"output_type": "stream", "name": "stdout"}
METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def made_of(*cells):
    """A notebook of these cells, numbered as if it had just been run."""
    cells = [copy.deepcopy(cell) | {"id": f"cell-{i}"} for i, cell in enumerate(cells)]
    for count, cell in enumerate((cell for cell in cells if cell["cell_type"] == "code"), start=1):
        cell["execution_count"] = count
    return {"cells": cells, "metadata": copy.deepcopy(METADATA), "nbformat": 4, "nbformat_minor": 5}


def prose(words="Some prose."):
    return MARKDOWN | {"source": words}


def code(content="x = 1", **changed):
    return CODE | {"source": content} | changed


def titled(*cells):
    """A notebook with a title and prose enough for these cells."""
    return made_of(prose("# Title"), *cells, *(prose() for _ in cells))


GOOD = titled(
    code("%matplotlib inline\nfrom pathlib import Path\n# a comment;\nfor i in range(2):\n    print('a;')"),
    prose("See [a page](https://example.org/home/tmp/x) and `data/tmp`."),
    code("print('1/2')", outputs=[STREAM | {"text": ["1/2 a/tmp/b\n"]}]),
)


def with_metadata(**changed):
    notebook = titled(code())
    notebook["metadata"] |= changed
    return notebook


def with_counts(*counts):
    notebook = titled(*(code() for _ in counts))
    for cell, count in zip(cells_of(notebook), counts, strict=True):
        cell["execution_count"] = count
    return notebook


def with_output(**output):
    return titled(code(outputs=[output]))


def with_text(words):
    return with_output(output_type="stream", name="stdout", text=words)


BAD = [
    (is_valid, made_of({"cell_type": "code", "metadata": {}, "source": "no outputs"})),
    (is_valid, GOOD | {"cells": [*GOOD["cells"], GOOD["cells"][0]]}),
    (is_valid, GOOD | {"cells": [prose("No id.")]}),
    (counts_run_from_1, with_counts(1, 3)),
    (counts_run_from_1, with_counts(2, 1)),
    (counts_run_from_1, with_counts(1, None)),
    (has_no_widget_state, with_metadata(widgets={})),
    (runs_on_python3, with_metadata(kernelspec={"name": "tme", "display_name": "tme"})),
    (runs_on_python3, {"cells": [], "metadata": {}}),
    (stores_no_error, with_output(output_type="error", ename="ValueError", evalue="", traceback=[])),
    (stores_no_stderr, with_output(output_type="stream", name="stderr", text=["UserWarning"])),
    (stores_no_times, titled(code(metadata={"execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"}}))),
    (stores_no_times, titled(code(metadata={"ExecuteTime": {}}))),
    (ignores_only_what_is_allowed, titled(*(code() for _ in range(9)), code(metadata={"tags": ["nbval-skip"]}))),
    (ignores_only_what_is_allowed, titled(*(code() for _ in range(9)), code("# NBVAL_IGNORE_OUTPUT\nx = 1"))),
    (ignores_only_what_is_allowed, titled(*(code() for _ in range(9)), code(metadata={"tags": ["raises-exception"]}))),
    (begins_with_a_title, made_of(code(), prose("# Title"))),
    (begins_with_a_title, made_of(prose("## Title"), code())),
    (has_one_title, made_of(prose("# Title"), code(), prose("# Another"))),
    (has_more_prose_than_code, made_of(prose("# Title"), code(), code())),
    (has_more_prose_than_code, made_of(prose("# Title"), code())),
    (has_two_code_cells_in_a_row_at_most, titled(code(), code(), code())),
    (has_short_cells, titled(code("x = 1\n" * 26))),
    (has_no_empty_cell, titled(code("\n"))),
    (ends_no_cell_with_a_semicolon, titled(code("x = 1;"))),
    (ends_no_cell_with_a_semicolon, titled(code("x = 1 ;  # quiet\n"))),
    (has_no_star_import, titled(code("from torch import *"))),
    (installs_and_downloads_nothing, titled(code("import sys\nsys.path.append('..')"))),
    (installs_and_downloads_nothing, titled(code("%pip install torch"))),
    (installs_and_downloads_nothing, titled(code("!ls"))),
    (installs_and_downloads_nothing, titled(code("%%bash\nls"))),
    (installs_and_downloads_nothing, titled(code("MNIST('data', download=True)"))),
    (names_no_absolute_path, titled(code("open('/home/me/x')"))),
    (names_no_absolute_path, made_of(prose("# Title"), prose("It lies in `/tmp`."))),
    (names_no_absolute_path, with_text(["saved to /root/x.png\n"])),
    (names_no_absolute_path, with_output(output_type="execute_result", data={"text/plain": ["PosixPath('/work/x')"]})),
    (names_no_absolute_path, with_text("C:\\Users\\me\\x")),
    (shows_no_memory_address, with_text("<Axes object at 0x7f86ab>")),
    (saves_figures_that_exist, titled(code("plots.save_figure(fig, '99_no_such_figure')"))),
    (saves_figures_that_exist, titled(code("save_gif(frames, name='99_no_such_film')"))),
    (saves_figures_that_exist, titled(code("plots.save_figure(fig, f'02_{name}')"))),
    (names_figures_after_itself, titled(code("plots.save_figure(fig, '99_no_such_figure')"))),
    (names_figures_after_itself, titled(code("plots.save_figure(fig, '98x_figure')"))),
    (names_tests_that_exist, made_of(prose("# Title"), prose("Guarded by `test_elbo.py::test_of_nothing`."))),
    (names_tests_that_exist, titled(code("# tests/test_nothing.py::test_even_odds_cost_784_bits"))),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_notebook_breaks_no_rule(rule):
    assert list(rule("98_good.ipynb", GOOD)) == []


@pytest.mark.parametrize(("rule", "notebook"), BAD, ids=[rule.__name__ for rule, _ in BAD])
def test_a_bad_notebook_is_found_out(rule, notebook):
    assert list(rule("98_bad.ipynb", notebook))


def test_every_rule_is_shown_to_fail():
    assert {rule for rule, _ in BAD} == set(RULES)


def test_figures_bear_the_number_or_the_letter_of_their_notebook():
    notebook = titled(code("plots.save_figure(fig, 'A_collapse')"))
    assert list(names_figures_after_itself("A_mistakes.ipynb", notebook)) == []
    assert list(names_figures_after_itself("01_theory.ipynb", notebook)) == ["A_collapse.png does not begin with 01_"]


def test_a_named_test_is_looked_up_in_its_file():
    named = "See `tests/test_elbo.py::test_even_odds_cost_784_bits`, `test_elbo.py::test_even_odds` and `test_x.py`."
    assert list(names_tests_that_exist("x", titled(prose(named)))) == ["no test test_elbo.py::test_even_odds"]


def test_more_than_a_quarter_of_ignored_cells_is_too_many_even_with_reasons(monkeypatch):
    monkeypatch.setitem(ALLOWED_IGNORED, "98_bad.ipynb", ["one", "two"])
    cells = [code(metadata={"tags": ["nbval-ignore-output"]})] * 2 + [code()] * 5
    assert list(ignores_only_what_is_allowed("98_bad.ipynb", titled(*cells))) == ["2 of 7 cells ignored"]
    assert list(ignores_only_what_is_allowed("98_bad.ipynb", titled(*cells, code()))) == []


def test_a_function_in_two_notebooks_is_found():
    notebooks = [titled(code("def show(x):\n    return x")), titled(code("%matplotlib inline\ndef show(y):\n    pass"))]
    assert defined_twice(notebooks) == ["show"]
    assert defined_twice(notebooks[:1] * 1) == []
