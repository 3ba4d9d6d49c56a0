import io

import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from tme_utils import live
from tme_utils.training import Probes, fit


@pytest.fixture(autouse=True)
def no_screen():
    """Draw without a screen."""
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def displayed(monkeypatch):
    """What is displayed, as the text that a notebook stores for it at that moment."""
    texts = []
    monkeypatch.setattr(live, "display", lambda widget: texts.append((widget, repr(widget))))
    return texts


@pytest.fixture
def train(build, random_images, generator):
    """Train briefly with a panel and return the panel."""

    def train(seed):
        probes = Probes(
            random_images(3, seed), random_images(3, seed + 1), torch.randn(3, 2, generator=generator(seed))
        )
        panel = live.LivePanel(probes)
        fit(
            build(seed),
            random_images(20),
            random_images(9),
            2,
            seed=seed,
            probes=probes,
            on_epoch=panel,
            progress=False,
        )
        return panel

    return train


def test_the_panel_is_displayed_once_and_redrawn_at_every_epoch(train, displayed):
    panel = train(0)
    assert len(displayed) == 1
    assert len(panel.frames) == 3
    assert len(set(panel.frames)) == 3
    assert isinstance(displayed[0][0], ipywidgets.Image)
    assert displayed[0][0].value == panel.frames[-1]
    assert {Image.open(io.BytesIO(frame)).format for frame in panel.frames} == {"PNG"}


def test_the_stored_text_holds_no_picture_and_no_number_of_the_training(train, displayed):
    train(0), train(1)
    (_, first), (_, second) = displayed
    assert first == second
    assert "PNG" not in first
    assert " at 0x" not in first
    assert not any(character.isdigit() for character in first.replace("100%", ""))


def test_the_text_would_hold_the_picture_if_it_were_displayed_later(train, displayed):
    train(0)
    assert "PNG" in repr(displayed[0][0])


def test_figures_do_not_pile_up(train, displayed):
    train(0)
    assert not plt.get_fignums()


def test_it_works_without_a_notebook(train, capsys):
    assert len(train(0).frames) == 3
    assert "PNG" not in capsys.readouterr().out
