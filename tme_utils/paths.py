"""Where the repository keeps its data, figures and checkpoints, and how it writes a file whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

# A clone, around this file or, where the package was installed by a copy, around the working directory; else this one.
_HERE, _CWD = Path(__file__).resolve().parents[1], Path.cwd()
ROOT = next((path for path in (_HERE, _CWD, *_CWD.parents) if (path / "data" / "MNIST").is_dir()), _CWD)
DATA = ROOT / "data"
CHECKPOINTS = ROOT / "checkpoints"


def figures_dir() -> Path:
    """Folder of the figures and of their tables: ``figures/``, or ``$TME_FIGURES`` where that is set.

    The tests set the variable, so that checking the notebooks leaves the committed figures untouched.
    """
    return Path(os.environ.get("TME_FIGURES", ROOT / "figures")).expanduser()


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place if the block succeeds, delete it if not.

    A reader of ``path`` meets the old file or the new one, never half of one, whatever interrupts the writer; of two
    writers at once the last one wins. A killed one leaves its temporary file, ``.<name>-<digits>.partial<suffix>``.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}-{uuid4().hex[:8]}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
