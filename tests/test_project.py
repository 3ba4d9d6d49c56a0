"""The project around the package: versions, licences of the data, style, and who may import whom."""

import ast
import os
import re
import runpy
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torchvision.datasets import MNIST

from tme_utils import paths

PACKAGE = paths.ROOT / "tme_utils"
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.glob("*.py"))}


# --- versions


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load((paths.ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]


@pytest.fixture(scope="module")
def pip_lines(environment):
    (with_pip,) = [entry for entry in environment if isinstance(entry, dict)]
    return with_pip["pip"]


@pytest.fixture(scope="module")
def pins(pip_lines):
    requirements = [Requirement(line) for line in pip_lines if not line.startswith("-")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.mark.parametrize(
    "name",
    ["torch", "torchvision", "matplotlib", "seaborn", "ipywidgets", "jupyter", "nbval", "numpy", "pandas", "pytest"],
)
def test_the_environment_names_every_required_package(pins, name):
    assert name in pins


def test_every_version_is_exact_and_stands_once(pip_lines, pins):
    assert len(pins) == len([line for line in pip_lines if not line.startswith("-")])
    for requirement in pins.values():
        assert re.fullmatch(r"==[\w.+]+", str(requirement.specifier)), requirement


def test_the_package_itself_is_installed_in_editable_mode(pip_lines, environment):
    assert [line for line in pip_lines if line.startswith("-")] == ["-e ."]
    assert "pip" in environment


def test_the_ranges_of_the_package_admit_the_exact_versions(project, pins):
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        pin = pins[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert requirement.specifier.contains(exact.version), (str(requirement), str(pin))


def test_the_python_of_the_environment_is_admitted(project, environment):
    (python,) = [entry for entry in environment if str(entry).startswith("python=")]
    version = python.removeprefix("python=")
    assert Requirement(f"python{project['requires-python']}").specifier.contains(version)


def imported(tree):
    """Full names of all the modules that a module may import, at its top or inside a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_everything_that_the_package_imports_has_an_exact_version(pins):
    names = {name.split(".")[0] for tree in MODULES.values() for name in imported(tree)}
    distributions = {canonicalize_name({"PIL": "pillow"}.get(name, name)) for name in names}
    assert distributions - set(sys.stdlib_module_names) - {"tme-utils"} <= set(pins)


# --- data


def test_the_readme_executes_the_notebooks_as_make_does():
    options = [
        re.findall(r"--Exec\S+", (paths.ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "Makefile")
    ]
    assert options[0] == options[1] != []


def test_the_readme_of_the_data_tells_torchvisions_md5_sums():
    text = (paths.DATA / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"`(\S+\.gz)` \| `([0-9a-f]{32})`", text)) == dict(MNIST.resources)
    assert "CC" in text or "Creative Commons" in text


def test_the_archives_are_committed_and_what_is_unpacked_is_not():
    assert {name for name, _ in MNIST.resources} <= {path.name for path in (paths.DATA / "MNIST" / "raw").iterdir()}
    assert "data/MNIST/raw/*-ubyte" in (paths.ROOT / ".gitignore").read_text().split()


# --- style


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_linters_find_nothing(command):
    result = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=paths.ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


# --- the commands


COMMANDS = [
    *("tme_utils.study", "tme_utils.shipped", "tools.site"),
    *(f"benchmarks.{name}" for name in ("explorer", "film", "readme", "recipe", "training")),
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_that_is_asked_for_help_gives_it_and_does_nothing(module, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(module, run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")
    assert list(tmp_path.iterdir()) == []


# --- who may import whom


def inside(tree):
    """Names of the package's own modules that a module imports."""
    parts = [name.split(".") for name in imported(tree)]
    return {name[1] for name in parts if name[0] == "tme_utils" and len(name) > 1}


def forbidden(modules):
    """(module, import) for each import that breaks the direction of the package, from name -> syntax tree."""
    only = {
        "torchvision": lambda module: module == "data",
        "matplotlib": lambda module: module.startswith("plots"),
        "seaborn": lambda module: module.startswith("plots"),
        "ipywidgets": lambda module: module in ("live", "explorer"),
        "anywidget": lambda module: module in ("live", "explorer"),
        "IPython": lambda module: module in ("live", "explorer"),
    }
    drawing = {name for name in modules if name.startswith("plots")}
    never = {
        "gaussian": set(modules),
        "paths": set(modules),
        "latent": set(modules) - {"gaussian"},
        "elbo": set(modules) - {"gaussian"},
        "models": set(modules) - {"gaussian"},
        "data": set(modules) - {"paths"},
        "training": set(modules) - {"gaussian", "elbo", "paths"},
        "metrics": set(modules) - {"gaussian", "elbo"},
        "explorer": set(modules) - {"latent", "models", "paths"},
        "checkpoints": set(modules) - {"training", "paths"},
        "generation": set(modules) - {"training"},
        "live": set(modules) - {"plots", "training"},
        "shipped": set(modules) - {"checkpoints", "data", "generation", "models", "paths", "training"},
        "study": drawing | {"explorer", "live"},
    } | {name: set(modules) - drawing - {"paths"} for name in drawing}
    for module, tree in modules.items():
        for name in {name.split(".")[0] for name in imported(tree)}:
            if name in only and not only[name](module):
                yield module, name
        for name in inside(tree) & never.get(module, set()):
            yield module, name


def test_imports_run_one_way():
    assert list(forbidden(MODULES)) == []


@pytest.mark.parametrize(
    ("module", "content"),
    [
        ("training", "from tme_utils import models"),
        ("training", "from tme_utils.data import load_mnist"),
        ("metrics", "import tme_utils.models"),
        ("models", "import matplotlib.pyplot as plt"),
        ("training", "def late():\n    from torchvision import datasets"),
        ("plots", "from tme_utils.models import VAE"),
        ("elbo", "from tme_utils import models"),
        ("study", "import ipywidgets"),
        ("explorer", "from tme_utils import plots"),
        ("plots", "import anywidget"),
        ("checkpoints", "from tme_utils import models"),
        ("generation", "from tme_utils.models import VAE"),
        ("live", "from tme_utils import study"),
        ("shipped", "from tme_utils.study import run"),
        ("study", "from tme_utils import plots_study"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(module, content):
    assert len(list(forbidden(MODULES | {module: ast.parse(content)}))) >= 1


def test_there_is_no_circle():
    graph = {name: inside(tree) & set(MODULES) for name, tree in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


def test_no_module_has_a_name_that_says_nothing():
    assert not set(MODULES) & {"utils", "helpers", "common", "config", "misc"}


# --- no work at import


def works_at_import(tree):
    """Top-level statements that are not a docstring, an import, a definition, a constant or the main guard."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for i, node in enumerate(tree.body):
        is_docstring = i == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
        if not (isinstance(node, allowed) or is_docstring or is_guard):
            yield ast.unparse(node)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_made_of_definitions(module):
    assert ast.get_docstring(MODULES[module])
    assert list(works_at_import(MODULES[module])) == []


@pytest.mark.parametrize("statement", ["print('hi')", "torch.manual_seed(0)", "for x in y: pass", "with f(): pass"])
def test_work_at_import_is_found(statement):
    assert list(works_at_import(ast.parse(f"'''Docstring.'''\n{statement}"))) == [ast.unparse(ast.parse(statement))]


def test_the_package_itself_is_a_docstring():
    assert [type(node) for node in MODULES["__init__"].body] == [ast.Expr]


IMPORT_ALL = """
import importlib, os, sys
import torch, matplotlib
state, backend = torch.get_rng_state(), matplotlib.rcParams._get("backend")
style = {k: v for k, v in matplotlib.rcParams.items() if not k.startswith("backend")}
for module in sys.argv[1:]:
    importlib.import_module(f"tme_utils.{module}")
assert torch.equal(state, torch.get_rng_state())
assert style == {k: v for k, v in matplotlib.rcParams.items() if not k.startswith("backend")}
assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
"""


def files_of_the_repository():
    folders = [paths.ROOT / name for name in ("tme_utils", "data", "figures", "checkpoints", "notebooks")]
    return {path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_importing_everything_prints_seeds_and_writes_nothing(tmp_path):
    before = files_of_the_repository()
    modules = [name for name in MODULES if name != "__init__"]
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *modules],
        cwd=tmp_path,
        env=os.environ | {"MPLCONFIGDIR": str(tmp_path / "mpl"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} <= {"mpl"}
    assert files_of_the_repository() == before
