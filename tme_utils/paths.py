"""Where the repository keeps its data, figures and checkpoints: the one place that knows."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
CHECKPOINTS = ROOT / "checkpoints"
STALE = 600  # seconds after which a partial file is a killed writer's: writing takes a few


def figures_dir() -> Path:
    """Folder of the figures and of their tables: ``figures/``, or ``$TME_FIGURES`` where that is set.

    The tests set the variable, so that checking the notebooks leaves the committed figures untouched.
    """
    return Path(os.environ.get("TME_FIGURES", ROOT / "figures"))


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Have every ``OSError`` of the block say that ``path`` could not be written, and why: not all writers do."""
    try:
        yield
    except OSError as error:
        said = f"cannot write {path}: {error.strerror or error}"
        raise (OSError(error.errno, said) if error.errno else OSError(said)) from error


def check_writable(path: Path | str) -> None:
    """Raise what a read-only folder would raise, before the work whose result ``path`` is to hold."""
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place if the block succeeds, delete it if not.

    A reader of ``path`` meets the old file or the new one, never half of one, whatever interrupts the
    writer; two writers at once do not mix, the last one wins. What a killed writer of ``path`` left is deleted
    as soon as it is ten minutes old.

    Raises:
        OSError: naming ``path``, if the disk is full, the folder read-only or the like.
    """
    path = Path(path)
    prefix, suffix = f".{path.stem}-", f".partial{path.suffix}"
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{escape(prefix)}????????{escape(suffix)}"):
            with suppress(FileNotFoundError):  # another writer may finish it or delete it meanwhile
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o644)  # mkstemp makes files that only their owner can read; so may the writer
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
