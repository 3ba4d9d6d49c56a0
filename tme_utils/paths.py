"""Where the repository keeps its data, figures and checkpoints: the one place that knows."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
CHECKPOINTS = ROOT / "checkpoints"


def figures_dir() -> Path:
    """Folder of the figures and of their tables: ``figures/``, or ``$TME_FIGURES`` where that is set.

    The tests set the variable, so that checking the notebooks leaves the committed figures untouched.
    """
    return Path(os.environ.get("TME_FIGURES", ROOT / "figures"))


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place if the block succeeds, delete it if not.

    A reader of ``path`` meets the old file or the new one, never half of one, whatever interrupts the
    writer; two writers at once do not mix, the last one wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".partial{path.suffix}", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)  # mkstemp makes files that only their owner can read; so may the writer
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
