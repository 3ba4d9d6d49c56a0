import os
import stat
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tme_utils import paths


def test_the_paths_are_those_of_the_repository():
    assert (paths.ROOT / "pyproject.toml").is_file()
    assert paths.ROOT / "data" == paths.DATA
    assert paths.ROOT / "checkpoints" == paths.CHECKPOINTS


def test_figures_go_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TME_FIGURES", str(tmp_path / "elsewhere"))
    assert paths.figures_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("TME_FIGURES")
    assert paths.figures_dir() == paths.ROOT / "figures"


def test_tests_and_their_kernels_write_figures_to_a_folder_that_holds_the_committed_tables():
    folder = Path(os.environ["TME_FIGURES"])
    assert folder.is_dir()
    assert paths.ROOT not in folder.parents
    for table in (paths.ROOT / "figures").glob("*.csv"):
        assert (folder / table.name).is_file()


def test_a_block_that_succeeds_moves_its_file_into_place(tmp_path):
    path = tmp_path / "new" / "figure.png"
    with paths.atomic_write(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
        assert partial.parent == path.parent
        assert partial.suffix == ".png"  # writers that look at the suffix see the right one
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "figure.png"
    if old is not None:
        path.write_text(old)

    def write_half():
        with paths.atomic_write(path) as partial:
            partial.write_text("ha")
            raise error

    with pytest.raises(error):
        write_half()
    assert (path.read_text() if path.exists() else None) == old
    assert list(tmp_path.iterdir()) == ([path] if old else [])


def test_of_two_writers_at_once_the_last_one_wins_whole(tmp_path):
    path = tmp_path / "figure.png"
    with paths.atomic_write(path) as first, paths.atomic_write(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_everyone_may_read_the_file(tmp_path):
    with paths.atomic_write(tmp_path / "figure.png") as partial:
        partial.write_text("whole")
    assert stat.S_IMODE((tmp_path / "figure.png").stat().st_mode) == 0o644


def test_git_ignores_a_partial_file_that_a_crash_left(tmp_path):
    patterns = (paths.ROOT / ".gitignore").read_text().split()
    with paths.atomic_write(tmp_path / "figure.png") as partial:
        assert any(fnmatch(partial.name, pattern) for pattern in patterns)
        partial.write_text("whole")


def test_a_path_may_be_text(tmp_path):
    with paths.atomic_write(str(tmp_path / "table.csv")) as partial:
        partial.write_text("a,b\n")
    assert (tmp_path / "table.csv").read_text() == "a,b\n"
