"""The project around the package: versions, licences of the data, style, imports, commands."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torchvision.datasets import MNIST

from tme_utils import paths

CODE = {  # source by name of module
    ".".join(path.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf-8")
    for folder in ("tme_utils", "tables", "tools", "benchmarks", "tests")
    for path in sorted((paths.ROOT / folder).rglob("*.py"))
}
COMMANDS = [name for name, code in CODE.items() if '\nif __name__ == "__main__":' in code]
PYTHON_OF_PINS = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux", "extra": ""}


def read(name):
    return (paths.ROOT / name).read_text(encoding="utf-8")


def run(*command, **options):
    """Run a command of this environment, and return it with all that it printed."""
    command = [shutil.which(command[0], path=os.path.dirname(sys.executable)), *command[1:]]
    options = {"cwd": paths.ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.run(command, check=False, **options)


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load(read("environment.yml"))["dependencies"]


@pytest.fixture(scope="module")
def pins(environment):
    """Exact versions by name; the package itself is installed in editable mode."""
    (lines,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)] == ["-e ."]
    pins = dict(line.split("==") for line in lines if line != "-e .")
    assert len(pins) == len(lines) - 1
    return {canonicalize_name(name): version for name, version in pins.items()}


def test_the_ranges_of_the_package_admit_the_exact_versions(environment, pins):
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    assert all(line.count("==") == 1 for line in extras.pop("practical"))  # not here: in an environment of its own
    ranges = [project["dependencies"], *extras.values()]
    for requirement in (Requirement(line) for lines in ranges for line in lines):
        if requirement.marker is None or requirement.marker.evaluate(PYTHON_OF_PINS):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    (python,) = [entry.removeprefix("python=") for entry in environment if str(entry).startswith("python=")]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python)
    assert "pip" in environment


def test_all_that_is_imported_and_all_that_this_needs_has_an_exact_version(pins):
    nodes = [node for code in CODE.values() for node in ast.walk(ast.parse(code))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    providers = metadata.packages_distributions()
    tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"conftest"}
    needed = {canonicalize_name(distribution) for name in tops for distribution in providers.get(name, [])}
    for requirement in (Requirement(text) for name in pins for text in metadata.requires(name) or ()):
        if requirement.marker is None or requirement.marker.evaluate(PYTHON_OF_PINS):
            needed.add(canonicalize_name(requirement.name))
    missing = needed - set(pins) - {"tme-utils", "setuptools"}  # setuptools builds the package
    assert not [name for name in missing if not re.match("nvidia-|cuda-|triton", name)]  # torch pins its accelerators


@pytest.mark.parametrize(
    "command", ["ruff check .", "ruff format --check .", "mypy", "lint-imports --no-cache", "oxlint tme_utils"]
)
def test_the_linters_find_nothing(command):
    result = run(*command.split())
    assert result.returncode == 0, result.stdout


IMPORT_ALL = """
import importlib, sys, torch, matplotlib
def state():
    style = {key: value for key, value in matplotlib.rcParams.items() if not key.startswith("backend")}
    return torch.get_rng_state().tolist(), torch.get_num_threads(), style
before = state()
for module in sys.argv[1:]:
    importlib.import_module(module)
assert state() == before
"""


def test_importing_everything_prints_seeds_and_writes_nothing(tmp_path):
    modules = [name for name in CODE if name.startswith("tme_utils")]
    result = run("python", "-c", IMPORT_ALL, *modules, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_that_is_asked_for_help_gives_it_and_does_nothing(module, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__")
    assert capsys.readouterr().out.startswith("usage:")
    assert list(tmp_path.iterdir()) == []


def test_what_commands_print_fits_every_console():
    for module in COMMANDS:
        nodes = [node for node in ast.walk(ast.parse(CODE[module])) if isinstance(node, ast.Call)]
        calls = [ast.unparse(node) for node in nodes if getattr(node.func, "id", "") == "print"]
        assert [call for call in calls if not call.isascii()] == []  # cp1252 has no minus sign


def test_a_copy_of_a_notebook_does_not_stop_make(tmp_path):
    shutil.copy(paths.ROOT / "Makefile", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in ("environment.yml", "pyproject.toml", "notebooks/01_theory_and_kl.ipynb"):
        (tmp_path / name).touch()
    for copy in ("01_theory_and_kl copy", "01_theory_and_kl-Copy1", "a#b"):
        (tmp_path / "notebooks" / f"{copy}.ipynb").touch()
    asked = subprocess.run(
        ["make", "-n", "--no-print-directory", "report"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r'"(\S+): begins"', asked)) >= {"01_theory_and_kl", "02_mlp_vae"}
    assert not re.search("[Cc]opy|a#b", asked)


def test_the_readme_says_what_make_does():
    readme, makefile = read("README.md"), read("Makefile")
    assert re.findall(r"--Exec\S+", readme) == re.findall(r"--Exec\S+", makefile) != []
    for command in ("sed -n 's/^      - //p' environment.yml", "pytest --nbval\n", "lab --LabApp.default_url=/lab"):
        assert command in readme
        assert command in makefile
    targets = re.search(r"^\.PHONY: ([\w ]+)", makefile, re.MULTILINE)[1].split()
    assert set(targets) <= set(re.findall(r"^make (\w+)", readme, re.MULTILINE))


def test_the_archives_of_the_data_are_committed_with_their_md5_sums_and_licence():
    text = (paths.DATA / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"`(\S+\.gz)` \| `([0-9a-f]{32})`", text)) == dict(MNIST.resources)
    assert re.search("CC BY|Creative Commons", text)
    assert {name for name, _ in MNIST.resources} <= {path.name for path in (paths.DATA / "MNIST" / "raw").iterdir()}
    assert "data/MNIST/raw/*-ubyte" in read(".gitignore").split()
