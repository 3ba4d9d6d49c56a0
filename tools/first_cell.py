"""Write the first code cell of every notebook, and the README's buttons: ``python -m tools.first_cell``.

The address that both lead to stands in pyproject.toml alone, under ``[project.urls]``, as ``Repository``. Without one
the cell says so, and there are no buttons. A notebook is not executed for it: the cell prints nothing in a clone.
"""

import argparse
import re
from urllib.parse import urlsplit

import nbformat
import tomllib

from tme_utils import paths

CELL_ID = "first-cell"
CELL = """\
# In a clone nothing happens here. Opened alone, this notebook lacks the lesson's package, data and trained models:
# FETCH = True fetches and installs them beside it, and leaves what is installed as it is.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

FETCH, REPOSITORY = False, "{address}"
if importlib.util.find_spec("tme_utils") is None:
    if not (FETCH and REPOSITORY):
        source = REPOSITORY or "where this notebook comes from"
        raise ModuleNotFoundError(f"tme_utils is missing: set FETCH = True, or get the repository from {{source}}")
    pip = [sys.executable, "-m", "pip"]
    if not Path("lesson").is_dir():
        subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "lesson"], check=True)
    Path("installed.txt").write_bytes(subprocess.run([*pip, "freeze"], stdout=subprocess.PIPE, check=True).stdout)
    subprocess.run([*pip, "install", "--quiet", "--constraint", "installed.txt", "./lesson"], check=True)
if Path("lesson/notebooks").is_dir():
    os.chdir("lesson/notebooks")"""
BUTTONS = re.compile(r"(?<=<!-- buttons -->\n)(.*\n)*?(?=<!-- end of buttons -->)")


def address() -> str:
    """The address in pyproject.toml, empty as long as nobody has filled it in."""
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project.get("urls", {}).get("Repository", ""))


def buttons(url: str) -> str:
    """A line of Markdown that opens the notebooks in Colab and Binder, which know the repositories of GitHub."""
    place = urlsplit(url).path.strip("/").removesuffix(".git")
    if urlsplit(url).netloc != "github.com":
        return ""
    colab, binder = f"https://colab.research.google.com/github/{place}", f"https://mybinder.org/v2/gh/{place}/HEAD"
    return f"Without installing anything: [open in Colab]({colab}) or [in Binder]({binder}?labpath=notebooks).\n"


def with_first_cell(notebook: nbformat.NotebookNode, url: str) -> nbformat.NotebookNode:
    """The notebook with the cell of this address behind its title, and its cells counted from 1."""
    cells = [cell for cell in notebook.cells if cell.id != CELL_ID]
    cell = nbformat.v4.new_code_cell(CELL.format(address=url), id=CELL_ID)
    notebook.cells = [cells[0], cell, *cells[1:]]
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    return notebook


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description="Write the notebooks' first cell and the README's buttons.").parse_args()
    for path in sorted((paths.ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(with_first_cell(nbformat.read(path, as_version=4), address()), path)
    readme = paths.ROOT / "README.md"
    readme.write_text(BUTTONS.sub(buttons(address()), readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
