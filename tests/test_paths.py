"""Where figures go, and files that are whole or not there."""

import os
import runpy
import shutil
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tme_utils import paths
from tme_utils.checkpoints import checkpoint_path
from tme_utils.data import load_mnist
from tme_utils.paths import atomic_write


def test_the_folder_of_figures_can_be_set_and_is_not_the_committed_one_in_tests(monkeypatch, tmp_path):
    assert paths.ROOT not in Path(os.environ["TME_FIGURES"]).parents
    monkeypatch.setenv("TME_FIGURES", str(tmp_path))
    assert paths.figures_dir() == tmp_path
    monkeypatch.delenv("TME_FIGURES")
    assert paths.figures_dir() == paths.ROOT / "figures"


def test_a_copy_of_the_package_finds_the_clone_around_the_working_directory(monkeypatch, tmp_path):
    copy = tmp_path / "site-packages" / "tme_utils" / "paths.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(paths.__file__, copy)
    for folder, root in [(paths.ROOT / "notebooks", paths.ROOT), (tmp_path, tmp_path)]:
        monkeypatch.chdir(folder)
        assert runpy.run_path(str(copy))["ROOT"] == root  # never site-packages


def test_paths_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows' own name for it
    monkeypatch.setenv("TME_FIGURES", "~/figures")
    with atomic_write("~/new/table.csv") as partial:
        partial.touch()
    assert (tmp_path / "new" / "table.csv").is_file()
    assert paths.figures_dir() == tmp_path / "figures"
    assert checkpoint_path("~", {"architecture": "mlp", "latent_dim": 2}).parent == tmp_path
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "data").replace("\\", ".")):
        load_mnist("test", "~/data")


def test_a_file_is_replaced_when_the_block_is_done_and_not_before(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with atomic_write(path) as partial:
        assert partial.parent == path.parent
        assert partial.suffix == ".csv"
        partial.write_text("whole")
        assert not path.exists()
        assert any(fnmatch(partial.name, line) for line in (paths.ROOT / ".gitignore").read_text().split())
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "no space"), KeyboardInterrupt(), ValueError("other")])
def test_what_fails_in_the_block_is_passed_on_and_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail_half_way():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)) as raised:
        fail_half_way()
    assert raised.value is error
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(path, "old")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_users_umask_decides_who_may_read(umask, tmp_path):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "file") as partial:
            partial.write_text("whole")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_two_writers_do_not_mix(tmp_path):
    def write(text):
        with atomic_write(tmp_path / "file") as partial, partial.open("w") as file:
            for character in text:
                file.write(character)
                file.flush()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, ["a" * 500, "b" * 500, "c" * 500, "d" * 500]))
    assert len(set((tmp_path / "file").read_text())) == 1
    assert len((tmp_path / "file").read_text()) == 500
