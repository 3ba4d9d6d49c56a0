"""A headless Chromium and a JupyterLab to drive: what the browser test and the explorer's benchmark share."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "chrome",  # on Windows
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The large digit's grey levels, row by row.
PIXELS = (
    """canvas => Array.from(canvas.getContext("2d").getImageData(0, 0, 28, 28).data).filter((_, i) => i % 4 == 0)"""
)


def find_browser() -> str | None:
    """Path of the system's Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless browser with a new profile, closed at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def write_notebook(path: Path, *cells: str) -> None:
    """Write a notebook of these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@contextlib.contextmanager
def jupyter_lab(folder: Path, theme: str = "JupyterLab Light") -> Iterator[str]:
    """Serve ``folder`` by a JupyterLab with settings of its own; yields its address, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        settings = {"notification": {"fetchNews": "false", "checkForUpdates": False}, "themes": {"theme": theme}}
        for name, values in settings.items():
            path = Path(home) / "settings" / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        own = {name: f"{home}/{name}" for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
        own |= {"JUPYTERLAB_SETTINGS_DIR": f"{home}/settings", "JUPYTERLAB_WORKSPACES_DIR": f"{home}/workspaces"}
        # Inside a test the server would take itself for one under test.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        command = f"-m jupyterlab --no-browser --allow-root --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0"
        with (Path(home) / "log").open("w+") as log:
            server = subprocess.Popen(
                [sys.executable, *command.split(), "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"],
                env=inherited | own,
                stdout=log,
                stderr=log,
            )
            try:
                address = f"http://127.0.0.1:{port}"
                _wait_for(f"{address}/api/status", server)
                yield address
            except TimeoutError as error:
                raise TimeoutError(Path(log.name).read_text()[-2000:]) from error
            finally:
                server.terminate()  # shuts its kernels down
                try:
                    server.wait(30)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()


def _wait_for(address: str, server: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise TimeoutError(f"no answer from {address}")


def run_all(page: Page, address: str, notebook: str, where: str = "lab/tree") -> Locator:
    """Open a notebook, run all its cells, and return the first explorer that it shows.

    Raises:
        RuntimeError: if a cell raises an error.
    """
    page.goto(f"{address}/{where}/{notebook}?reset")
    idle = page.get_by_text("| Idle") if where.startswith("lab") else page.locator(".jp-NotebookKernelStatus-fade")
    idle.wait_for(timeout=120_000)  # before its kernel is there, a notebook runs nothing
    explorer, ran = (
        page.locator(".tme-explorer").first,
        page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]")),
    )
    for _ in range(3):  # a kernel that has just begun may lose the command
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        with contextlib.suppress(PlaywrightTimeout):
            ran.first.wait_for(timeout=60_000)
            break
    explorer.wait_for(timeout=300_000)  # a whole notebook may stand above it
    explorer.scroll_into_view_if_needed()
    return explorer
