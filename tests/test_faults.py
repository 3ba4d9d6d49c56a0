"""Faults from outside: each ends in a clear message or goes on, and nothing half stays."""

import os
import shutil
import signal
import struct
import tempfile
import threading
import urllib.request
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tables import study as tables
from tme_utils import data, explorer, paths, plots, study
from tme_utils.checkpoints import load_or_train, save_checkpoint
from tme_utils.study import fill
from tme_utils.training import History, Recipe
from tme_utils.vae import mlp_vae

resource = pytest.importorskip("resource", reason="a limited file size and other users exist on Unix only")

PATIENCE = 300  # seconds, for other processes on a busy machine
X = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
SMALL = partial(mlp_vae, 2, (16,))


def load(folder, build=SMALL, seed=0):
    return load_or_train(build, Recipe(n_epochs=4), (X, X[:9]), seed=seed, folder=folder, progress=False)


def listing(folder):
    """Every file under the folder with its content, every folder with None; but no locks, which nobody holds."""
    found = (path for path in folder.rglob("*") if path.suffix != ".lock")
    return {path: path.read_bytes() if path.is_file() else None for path in found}


@contextmanager
def as_nobody():
    """Root may write to read-only folders: if the tests run as root, be an ordinary user meanwhile."""
    user = os.geteuid()
    with suppress(PermissionError):  # who is an ordinary user anyway
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def public():
    """A folder in which every user may look round, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def room_for(n_bytes):
    """Let no file grow beyond ``n_bytes``: what is written up to there stays half written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):  # of a disk: "No space left on device"
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- a read-only folder, a full disk


def test_read_only_images_are_loaded_whatever_lies_beside_them_and_none_is_downloaded(public, mnist_test, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    raw = public / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, _ in data.MNIST.resources:
        shutil.copy(paths.DATA / "MNIST" / "raw" / name, raw)
        (raw / name.removesuffix(".gz")).write_bytes(struct.pack(">4i", 2051, 10_000, 28, 28) + bytes(784 * 10_000))
    raw.chmod(0o555)
    before = listing(public)
    with as_nobody():
        assert torch.equal(data.load_mnist("test", public).x, mnist_test.x)
    assert listing(public) == before


def test_what_cannot_be_saved_is_told_before_the_training_and_what_is_there_is_loaded(
    public, tmp_path, monkeypatch, n_trainings, weights
):
    monkeypatch.setattr(paths, "CHECKPOINTS", public)
    model, _ = load(public / "old")
    (public / "file").touch()
    for folder in (public / "old", public):
        folder.chmod(0o555)
    before = listing(public)
    with as_nobody():
        assert torch.equal(weights(load(public / "old")[0]), weights(model))
        for folder, seed in [("old", 1), ("new", 0), ("file", 0)]:
            with pytest.raises(OSError, match=folder):
                load(public / folder, seed=seed)
    with room_for(4096):
        load(tmp_path)
    assert len(n_trainings) == 1
    assert (listing(public), listing(tmp_path)) == (before, {})


WRITERS = {
    "checkpoint": lambda folder: save_checkpoint(folder / "a.safetensors", SMALL(), {}, History()),
    "rows": lambda folder: fill(folder / "rows.csv", {uuid4().hex: partial(dict, value=0.5)}, progress=False),
    "table": lambda folder: study.save_table([{"value": 0.5}] * 1000, "table"),
    "pictures": lambda folder: tables.save_pictures(folder / "images.npz", [0], progress=False),
    "figure": lambda folder: plots.save_figure(Figure(), "figure"),
    "film": lambda folder: plots.save_gif([plots.to_png(Figure())] * 2, "film"),
    "page": lambda folder: explorer.LatentExplorer(SMALL(), X, torch.arange(40) % 10).to_html(folder / "page.html"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there(monkeypatch, tmp_path, name):
    monkeypatch.setenv("TME_FIGURES", str(tmp_path))
    monkeypatch.setattr(tables, "pictures", lambda _: {"image": np.arange(9)})
    WRITERS[name](tmp_path)
    before = listing(tmp_path)
    assert len(before) == 1
    with room_for(40):
        WRITERS[name](tmp_path)
    assert listing(tmp_path) == before


# --- stopped: Ctrl-C, a broken training, a killed process


def test_a_stopped_training_is_not_saved_and_the_next_begins_anew(tmp_path, at_call, ctrl_c, capsys, weights):
    def doomed(happens):
        model = SMALL()
        at_call(model.encoder, 3, partial(happens, model))
        return model

    def breaks(model):
        model.encoder[1].weight.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError):
        load(tmp_path / "a", partial(doomed, breaks))
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "a", partial(doomed, ctrl_c))
    assert "stopped by Ctrl-C after 2 of 4 epochs" in capsys.readouterr().err
    assert listing(tmp_path / "a") == {}
    again, history = load(tmp_path / "a")
    assert len(history.rows) == 5
    assert torch.equal(weights(again), weights(load(tmp_path / "undisturbed")[0]))


def trained_row(folder):
    return {"rows": len(load(folder)[1].rows)}


def killed_at_the_third_file(folder, jobs):
    """Fill a table until the process dies with half a checkpoint: a row and the rehearsal of saving came before."""
    moved = []

    def move(partial_file, path, replace=Path.replace):
        moved.append(path)
        if len(moved) == 3:
            os.truncate(partial_file, partial_file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(partial_file, path)

    Path.replace = move
    fill(folder / "table.csv", jobs, progress=False)


def test_after_a_kill_the_table_is_filled_further_and_no_half_checkpoint_is_loaded(tmp_path, n_trainings):
    table, jobs = tmp_path / "table.csv", {"a": partial(dict, rows=1), "b": partial(trained_row, tmp_path / "models")}
    process = get_context("spawn").Process(target=killed_at_the_third_file, args=(tmp_path, jobs))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    (left,) = listing(tmp_path / "models")
    assert left.match(".*.partial.safetensors")
    before = table.read_text()
    fill(table, jobs | {"a": pytest.fail}, progress=False)  # what was written is not computed again
    assert (before, table.read_text()) == ("digest,rows\na,1\n", "digest,rows\na,1\nb,5\n")
    load(tmp_path / "models")
    assert len(n_trainings) == 1


def test_ctrl_c_ends_a_worker_of_the_command_and_what_has_not_begun_does_not_begin(tmp_path, ctrl_c):
    with ProcessPoolExecutor(1, get_context("spawn"), tables._begin_worker, (1,)) as executor:
        assert executor.submit(torch.get_num_threads).result() == 1
        assert isinstance(executor.submit(signal.raise_signal, signal.SIGINT).exception(), BrokenProcessPool)
    released, begun = threading.Event(), []
    with ThreadPoolExecutor(1) as executor:
        jobs = {"stopped": ctrl_c, "running": partial(released.wait, PATIENCE), "waiting": lambda: begun.append(1)}
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "table.csv", jobs, executor, progress=False)
        released.set()
    assert begun == list(tmp_path.iterdir()) == []
