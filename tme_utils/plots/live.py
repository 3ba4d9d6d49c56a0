"""The panel that a notebook redraws while a model trains."""

import ipywidgets
from IPython.display import display

from tme_utils.plots.shared import progress_panel, to_png
from tme_utils.training import History


class LivePanel:
    """Curve and snapshots, redrawn at each epoch: pass it to :func:`tme_utils.training.fit` as ``on_epoch``.

    It is one image widget whose bytes are replaced: the cell's stored output does not change with the numbers shown.
    """

    frames: tuple[bytes, ...] = ()  # the panels of the last training, as PNG

    def __call__(self, history: History) -> None:
        """Draw the history so far; one of a single row begins a new film in a new widget."""
        frame = to_png(progress_panel(history.rows, history.snapshots, history.probes))
        if len(history.rows) == 1 or not self.frames:
            self.frames = ()
            self._image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
            display(self._image)  # while it is still empty: the text shown without widgets holds no picture
        self.frames += (frame,)
        self._image.value = frame
