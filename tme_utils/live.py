"""The panel that a notebook redraws while a model trains."""

import ipywidgets
from IPython.display import display

from tme_utils import plots
from tme_utils.training import History, Probes


class LivePanel:
    """Curves and snapshots, redrawn at each epoch: pass it to :func:`tme_utils.training.fit` as ``on_epoch``.

    It is one image widget whose bytes are replaced, so that the cell's stored output does not change with the
    numbers it shows. ``frames`` keeps the panels drawn, as PNG bytes.

    Args:
        probes: the same as are given to ``fit``.
    """

    def __init__(self, probes: Probes) -> None:
        """Make the panel; it appears at its first drawing."""
        self.probes = probes
        self.frames: list[bytes] = []
        self._image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))

    def __call__(self, history: History) -> None:
        """Draw the history so far."""
        frame = plots.to_png(plots.progress_panel(history.rows, history.snapshots, self.probes))
        if not self.frames:
            display(self._image)  # while it is still empty: the text shown without widgets holds no picture
        self.frames.append(frame)
        self._image.value = frame
