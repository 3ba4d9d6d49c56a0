"""Faults that the other files do not bring about: each ends in a clear message or goes on, and nothing half stays."""

import io
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from jupyter_client.manager import KernelManager
from PIL import Image

from tme_utils import checkpoints, data, paths, plots, study
from tme_utils.checkpoints import load_checkpoint, load_or_train, save_checkpoint
from tme_utils.explorer import LatentExplorer
from tme_utils.training import History

resource = pytest.importorskip("resource", reason="a limited file size and other users exist on Unix only")

NOBODY = 65534  # on Linux; any user but root serves
PATIENCE = 300  # seconds, for other processes on a busy machine
RECORD = {"epoch": 0, "seconds": 1.5, "train_neg_elbo": 543.25}


@contextmanager
def as_nobody():
    """Root may write to read-only folders: if the tests run as root, be an ordinary user meanwhile."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def public():
    """A folder in which every user may look round, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="tme-faults-"))
    folder.chmod(0o755)
    try:
        with as_nobody():
            os.listdir(folder)
    except OSError as error:
        pytest.skip(f"cannot try this as an ordinary user: {error}")
    yield folder
    for inside in [folder, *folder.rglob("*")]:
        if inside.is_dir():
            inside.chmod(0o755)
    shutil.rmtree(folder)


@contextmanager
def room_for(n_bytes):
    """Let no file grow beyond ``n_bytes``: what is written up to there stays half written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


FULL = "File too large"  # what the system says to it; of a full disk it says "No space left on device"


def listing(folder):
    """Every file under the folder with its content, every folder with None."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def copy_of_the_archives(folder):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, _ in data.MNIST.resources:
        shutil.copy(paths.DATA / "MNIST" / "raw" / name, raw)
    return raw


# --- the images


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(struct.pack(">4i", 2051, 10_000, 28, 28) + bytes(28 * 28 * 5000), id="cut in half"),
        pytest.param(struct.pack(">4i", 2051, 10_000, 28, 28) + bytes(28 * 28 * 10_000), id="whole but black"),
    ],
)
def test_unpacked_files_beside_the_archives_are_never_read(tmp_path, mnist_test, content):
    raw = copy_of_the_archives(tmp_path)
    for name, _ in data.MNIST.resources:
        (raw / name.removesuffix(".gz")).write_bytes(content)
    x, y = data.load_mnist("test", tmp_path)
    assert torch.equal(x, mnist_test.x)
    assert torch.equal(y, mnist_test.y)


def test_read_only_data_are_loaded_by_one_who_cannot_write_there(public, mnist_test):
    raw = copy_of_the_archives(public)
    for folder in (raw, raw.parent, public):
        folder.chmod(0o555)
    before = listing(public)
    with as_nobody():
        for folder in (raw, raw.parent, public):
            with pytest.raises(PermissionError):
                (folder / "something").touch()
        x, _ = data.load_mnist("test", public)
    assert torch.equal(x, mnist_test.x)
    assert listing(public) == before


def test_no_room_to_unpack_the_images_is_told_with_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with room_for(20_000_000), pytest.raises(OSError, match=rf"cannot write {re.escape(str(tmp_path))}: {FULL}"):
        data.load_mnist("test")  # its training images need 47 MB
    assert list(tmp_path.iterdir()) == []


# --- checkpoints that are damaged, or something else


def test_a_flipped_bit_anywhere_in_the_text_of_a_checkpoint_is_noticed(build, tmp_path):
    path, model = tmp_path / "model.safetensors", build(hidden=(1,))
    save_checkpoint(path, model, {"seed": 0}, History(rows=[RECORD]))
    assert load_checkpoint(path, model, {"seed": 0}).rows == [RECORD]
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    assert RECORD.keys() <= set(re.findall(r"\w+", content[8:end].decode()))
    for i in range(end):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*{re.escape(checkpoints.MEND)}"):
            load_checkpoint(path, model, {"seed": 0})


@pytest.mark.parametrize("history", ['[{"epoch": 0}]', '[{"epoch": 0'])
def test_a_checkpoint_of_earlier_days_whose_digest_leaves_out_the_history(build, tmp_path, history, weights):
    path, model = tmp_path / "model.safetensors", build()
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    metadata = {"settings": "{}", "history": history, "sha256": checkpoints._digest(tensors)}
    checkpoints.safetensors.torch.save_file(tensors, path, metadata=metadata)
    other = build(seed=1)
    if history.endswith("]"):
        assert load_checkpoint(path, other, {}).rows == [{"epoch": 0}]
        assert torch.equal(weights(other), weights(model))
    else:
        with pytest.raises(ValueError, match=r"is not a whole safetensors file .*delete it"):
            load_checkpoint(path, other, {})


@pytest.fixture
def load(build, random_images, tmp_path):
    """Call ``load_or_train`` with small settings, some of them changed."""

    def load(**changed):
        arguments = {"build": build, "x_train": random_images(40), "x_held_out": random_images(9), "n_epochs": 4}
        return load_or_train(**arguments | {"folder": tmp_path / "checkpoints", "progress": False} | changed)

    return load


class Payload:
    """What a malicious pickle may hold: unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(torch.save, id="torch"),
        pytest.param(lambda o, path: torch.save(o, path, _use_new_zipfile_serialization=False), id="torch, old format"),
        pytest.param(lambda o, path: path.write_bytes(pickle.dumps(o)), id="pickle"),
    ],
)
def test_a_pickle_in_the_place_of_a_checkpoint_is_neither_run_nor_replaced(load, n_trainings, tmp_path, write):
    load()
    (path,) = (tmp_path / "checkpoints").iterdir()
    write({"weights": Payload(tmp_path / "it ran")}, path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path.name} is not a whole safetensors file .*delete it to train again"):
        load()
    assert not (tmp_path / "it ran").exists()
    assert listing(path.parent) == {path: content}
    assert len(n_trainings) == 1
    path.unlink()  # the way back that the message tells
    load()
    assert len(n_trainings) == 2


# --- a full disk, a read-only folder


@pytest.fixture
def figures(monkeypatch, tmp_path):
    monkeypatch.setenv("TME_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def write_checkpoint(folder, build, images):
    save_checkpoint(folder / "model.safetensors", build(), {}, History())


def write_figure(folder, build, images):
    plt.switch_backend("agg")
    figure = plt.figure(figsize=(4, 4))
    figure.gca().imshow(images[0, 0].numpy())
    try:
        plots.save_figure(figure, "digits")
    finally:
        plt.close(figure)


def write_gif(folder, build, images):
    frames = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray((255 * image[0]).to(torch.uint8).numpy()).save(buffer, format="PNG")
        frames.append(buffer.getvalue())
    plots.save_gif(frames, "film")


def write_table(folder, build, images):
    study.save_table([RECORD] * 1000, "table")


def write_page(folder, build, images):
    LatentExplorer(build(), images, torch.arange(20) % 10).to_html(folder / "explorer.html")


WRITERS = {
    "model.safetensors": write_checkpoint,
    "digits.png": write_figure,
    "film.gif": write_gif,
    "table.csv": write_table,
    "explorer.html": write_page,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_with_the_file_and_leaves_what_was_there(figures, name, build, random_images):
    WRITERS[name](figures, build, random_images(20))
    before = listing(figures)
    assert len(before.pop(figures / name)) > 4096
    assert before == {}
    (figures / name).write_bytes(b"old")
    for n_bytes in (0, 4096):
        with (
            room_for(n_bytes),
            pytest.raises(OSError, match=f"cannot write {re.escape(str(figures / name))}: .*{FULL}"),
        ):
            WRITERS[name](figures, build, random_images(20))
        assert listing(figures) == {figures / name: b"old"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_folder_is_told_with_the_file(monkeypatch, public, name, build, random_images):
    monkeypatch.setenv("TME_FIGURES", str(public))
    WRITERS[name](public, build, random_images(20))  # read what the writers read, as the one who may
    (public / name).unlink()
    public.chmod(0o555)
    said = f"cannot write {re.escape(str(public / name))}: Permission denied"
    with as_nobody(), pytest.raises(PermissionError, match=said):
        WRITERS[name](public, build, random_images(20))
    assert listing(public) == {}


def test_after_a_full_disk_the_model_is_trained_again_and_saved(load, n_trainings, tmp_path):
    with room_for(4096), pytest.raises(OSError, match=rf"cannot write .*mlp_z2_\w+\.safetensors: .*{FULL}"):
        load()
    assert listing(tmp_path / "checkpoints") == {}
    load()
    load()
    assert len(n_trainings) == 2


def test_a_read_only_folder_of_checkpoints_is_told_before_the_training(load, n_trainings, public, weights):
    model, _ = load(folder=public)
    public.chmod(0o555)
    before = listing(public)
    with as_nobody():
        loaded, _ = load(folder=public)
        with pytest.raises(PermissionError, match=r"cannot write .*mlp_z2_\w+\.safetensors: Permission denied"):
            load(folder=public, seed=1)
    assert torch.equal(weights(loaded), weights(model))
    assert len(n_trainings) == 1
    assert listing(public) == before


# --- stopped: Ctrl-C, a killed process, a restarted kernel


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_is_told_and_the_next_training_begins_anew(load, tmp_path, capsys, weights):
    whole, _ = load(folder=tmp_path / "undisturbed")
    assert capsys.readouterr() == ("", "")

    def on_epoch(history):
        if len(history.rows) == 3:
            signal.raise_signal(signal.SIGINT)

    _, history = load(on_epoch=on_epoch)
    assert history.interrupted
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first == "stopped by Ctrl-C after 2 of 4 epochs: the model is half trained"
    assert re.fullmatch(r".*mlp_z2_\w+\.safetensors is not written: only a whole training is saved", second)
    again, history = load()
    assert len(history.rows) == 5
    assert torch.equal(weights(again), weights(whole))


# A process that trains as the fixture `load` does. At a given moment it says so and waits: to be killed, or to go on.
TRAIN = """
import os, sys, torch
from pathlib import Path
from tme_utils import checkpoints, models

folder, moment = Path(sys.argv[1]), sys.argv[2]

def meet(*_, **__):
    print("there", flush=True)
    sys.stdin.readline()

def images(n):
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))

real = checkpoints.safetensors.torch.save_file

def save_in_two_steps(tensors, partial, **options):
    real(tensors, partial, **options)
    os.truncate(partial, partial.stat().st_size // 2)
    meet()
    real(tensors, partial, **options)

if moment == "saving":
    checkpoints.safetensors.torch.save_file = save_in_two_steps
on_epoch = (lambda history: meet() if len(history.rows) == 2 else None) if moment == "training" else None
build = lambda: models.mlp_vae(2, (16,))
model, history = checkpoints.load_or_train(
    build, images(40), images(9), 4, folder=folder, on_epoch=on_epoch, progress=False
)
print(len(history.rows), checkpoints._digest(model.state_dict()))
"""


@contextmanager
def processes(folder, moments):
    """Processes that train in the folder, each of them waiting at its moment."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(folder), moment],
            cwd=paths.ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for moment in moments
    ]
    try:
        for process in started:
            said = process.stdout.readline()
            assert said == "there\n", process.communicate()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_process_killed_while_it_saves_leaves_nothing_that_is_taken_for_a_checkpoint(
    load, n_trainings, tmp_path, weights
):
    folder = tmp_path / "checkpoints"
    with processes(folder, ["saving"]) as (process,):
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    (left,) = folder.iterdir()  # half a file; git ignores it, see test_paths
    assert left.match(".*.partial.safetensors")
    os.utime(left, times=(time.time() - 3600,) * 2)
    model, history = load()
    assert len(n_trainings) == 1
    assert len(history.rows) == 5
    (path,) = folder.iterdir()  # an hour later the half file is gone
    assert path != left
    assert torch.equal(weights(load()[0]), weights(model))
    assert len(n_trainings) == 1


def test_two_processes_that_both_found_no_checkpoint_leave_one(load, n_trainings, tmp_path):
    folder = tmp_path / "checkpoints"
    with processes(folder, ["training", "saving"]) as both:
        assert [".partial." in path.name for path in folder.iterdir()] == [True]
        results = [process.communicate("go on\n", timeout=PATIENCE) for process in both]
        assert [process.returncode for process in both] == [0, 0], results
    assert len(list(folder.iterdir())) == 1
    model, _ = load()
    assert len(n_trainings) == 0
    assert results == [(f"5 {checkpoints._digest(model.state_dict())}\n", "")] * 2


def test_only_what_a_killed_writer_of_the_same_file_left_is_deleted(tmp_path):
    names = {
        ".a[1]-abcdefgh.partial.csv": True,
        ".a[1]-b_d1f_hi.partial.csv": True,
        ".a[1]-abcdefgh.partial.png": False,
        ".a1-abcdefgh.partial.csv": False,
        ".a[1]-more-abcdefgh.partial.csv": False,
        "a[1]-abcdefgh.partial.csv": False,
    }
    for age, expected in [
        (paths.STALE / 2, set(names)),
        (paths.STALE * 2, {n for n, goes in names.items() if not goes}),
    ]:
        for name in names:
            (tmp_path / name).touch()
            os.utime(tmp_path / name, times=(time.time() - age,) * 2)
        with paths.atomic_write(tmp_path / "a[1].csv") as partial:
            partial.write_text("whole")
        assert {path.name for path in tmp_path.iterdir()} == expected | {"a[1].csv"}


CELL = """
import time, torch
from tme_utils import checkpoints, models

def on_epoch(history):
    if len(history.rows) == 2:
        print("training", flush=True)
    time.sleep({pause})

def images(n):
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))

def train():
    build = lambda: models.mlp_vae(2, (16,))
    return checkpoints.load_or_train(
        build, images(40), images(9), 100, folder={folder!r}, on_epoch=on_epoch, progress=False
    )

model, history = train()
print(len(history.rows), history.interrupted)
"""


class Kernel:
    """A Jupyter kernel, as a notebook sees it."""

    def __init__(self):
        self.manager = KernelManager()
        self.manager.start_kernel(cwd=str(paths.ROOT))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def read(self, until):
        """What the kernel prints, by stream, up to a line on stdout, or to the end of the cell."""
        streams = {"stdout": "", "stderr": ""}
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            content = message["content"]
            assert message["msg_type"] != "error", content
            if message["msg_type"] == "stream":
                streams[content["name"]] += content["text"]
            if until is None and content.get("execution_state") == "idle":
                if message["parent_header"].get("msg_id") == self.cell:
                    return streams
            elif until is not None and until in streams["stdout"]:
                return streams

    def run(self, code, until=None):
        self.cell = self.client.execute(code)
        return self.read(until)

    def restart(self):
        self.manager.restart_kernel(now=True)
        self.client.wait_for_ready(timeout=PATIENCE)

    def shut_down(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.shut_down()


def test_a_cell_interrupted_and_a_kernel_restarted_in_the_middle_of_a_training(kernel, tmp_path, weights):
    folder = tmp_path / "checkpoints"
    slow, quick = (CELL.format(folder=str(folder), pause=pause) for pause in (0.1, 0))

    kernel.run(slow, until="training")
    kernel.manager.interrupt_kernel()
    streams = kernel.read(until=None)
    n_rows, interrupted = streams["stdout"].split()
    assert interrupted == "True"
    assert f"stopped by Ctrl-C after {int(n_rows) - 1} of 100 epochs" in streams["stderr"]
    assert "is not written: only a whole training is saved" in streams["stderr"]
    assert listing(folder) == {}

    kernel.run(slow, until="training")
    kernel.restart()
    assert kernel.run("print('model' in globals())")["stdout"] == "False\n"
    assert listing(folder) == {}

    assert kernel.run(quick) == {"stdout": "training\n101 False\n", "stderr": ""}
    assert len(listing(folder)) == 1
    assert kernel.run(quick) == {"stdout": "101 False\n", "stderr": ""}  # loaded: no epoch passes
