"""The explorer outside a browser: what travels there, how it shows itself, its page, and what it refuses."""

import json
import re
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import seaborn as sns
import torch
from torch import nn

from tme_utils import explorer
from tme_utils.explorer import LatentExplorer, pack_networks
from tme_utils.training import seeded
from tme_utils.vae import VAE, Bernoulli, conv_vae

SCRIPT, STYLE = ((explorer.FRONT_END / name).read_text(encoding="utf-8") for name in ("explorer.js", "explorer.css"))


@pytest.fixture(scope="module")
def images(random_images):
    """Twenty images with their labels."""
    return random_images(20), torch.arange(20) % 10


@pytest.fixture(scope="module")
def conv():
    """The convolutional model of the page, with its first weights."""
    with seeded(0):
        return conv_vae(2)


def vae(*layers, latent_dim=2, likelihood=None, bias=0.0):
    """A VAE with this encoder and the smallest decoder, of this bias."""
    decoder = nn.Sequential(nn.Linear(latent_dim, 784), nn.Unflatten(1, (1, 28, 28)))
    nn.init.constant_(decoder[0].bias, bias)
    encoder = nn.Sequential(*(layers or (nn.Flatten(), nn.Linear(784, 2 * latent_dim))))
    return VAE(encoder, decoder, latent_dim, {"architecture": "test"}, likelihood)


def front_end(shown):
    """The widget that carries what the browser needs."""
    return shown.widget.children[1]


def integers(packed):
    """The 16-bit integers of packed weights, in order."""
    low, high = np.frombuffer(packed, np.uint8).reshape(2, -1).astype(np.int32)
    return (high << 8 | low).astype(np.uint16).view(np.int16).astype(float)


@pytest.mark.parametrize("name", ["mlp", "conv", "nested"])
def test_layers_travel_in_order_and_weights_within_half_a_step_of_their_scale(name, build, conv):
    nested = vae(nn.Flatten(), nn.Sequential(nn.Linear(784, 8), nn.Sequential(nn.SiLU(), nn.Linear(8, 4))))
    model = {"mlp": build(), "conv": conv, "nested": nested}[name]  # some of the last one's weights are all zero
    networks, packed = pack_networks(model)
    assert json.loads(json.dumps(networks)) == networks
    layers, values, at = [*networks["encoder"], *networks["decoder"]], integers(packed), 0
    own = [layer for layer in [*model.encoder.modules(), *model.decoder.modules()] if type(layer) is not nn.Sequential]
    assert [layer["type"] for layer in layers] == [type(layer).__name__ for layer in own]
    options = [(layer["stride"], layer["padding"]) for layer in layers if "Conv" in layer["type"]]
    assert options == ([(2, 1)] * 4 if name == "conv" else [])
    tensors = [layer[kind] for layer in layers for kind in ("weight", "bias") if kind in layer]
    for tensor, parameter in zip(tensors, model.parameters(), strict=True):
        assert tensor["shape"] == list(parameter.shape)
        expected = parameter.detach().numpy().ravel()
        assert np.abs(values[at : at + expected.size] * tensor["scale"] - expected).max() <= 0.5001 * tensor["scale"]
        assert 0 < tensor["scale"] == pytest.approx(np.abs(expected).max() / (2**15 - 1))
        at += expected.size
    assert at == len(values)


def test_images_labels_and_means_arrive_as_they_are_also_of_a_model_in_double_precision(build, images):
    model, (x, y) = build(), images
    traits = front_end(LatentExplorer(build().double(), x, y))
    pixels = np.frombuffer(zlib.decompress(traits.images), np.uint8).reshape(x.shape)
    assert np.abs(pixels / 255 - x.numpy()).max() <= 0.5001 / 255
    assert list(zlib.decompress(traits.labels)) == y.tolist()
    mu = np.frombuffer(zlib.decompress(traits.mu), "<f4").reshape(-1, 2)
    np.testing.assert_allclose(mu, model.encode(x)[0].detach().numpy(), rtol=1e-6, atol=1e-6)
    assert zlib.decompress(traits.weights) == pack_networks(model)[1]


def test_the_plane_reaches_to_4_or_to_the_farthest_image(build, images):
    assert front_end(LatentExplorer(build(), *images)).limit == 4
    far = build()
    nn.init.constant_(far.encoder[-1].bias, 7.0)
    shown = LatentExplorer(far, *images)
    farthest = far.encode(images[0])[0].abs().max()
    assert farthest * 1.019 < front_end(shown).limit < farthest * 1.02 + 0.2
    assert (shown.z1.min, shown.z2.max) == (-front_end(shown).limit, front_end(shown).limit)


@pytest.mark.parametrize("to", [tuple, np.array, torch.tensor])
def test_the_sliders_and_the_plane_begin_where_asked(to, build, images):
    shown = LatentExplorer(build(), *images, z=to((1.5, -0.5)))
    assert (shown.z1.value, shown.z2.value) == (1.5, -0.5) == (front_end(shown).z1, front_end(shown).z2)
    assert shown.z1.continuous_update
    assert shown.z1.step == explorer.STEP


def test_the_front_end_has_the_reports_colours_and_every_supported_layer():
    (block,) = re.findall(r"PALETTE = \[(.*?)\]", SCRIPT, re.DOTALL)
    assert re.findall(r'"(#\w{6})"', block) == sns.color_palette("colorblind", 10).as_hex()
    (block,) = re.findall(r"LAYERS = \{\n(.*?)\n\}", SCRIPT, re.DOTALL)
    supported = re.findall(r"[A-Z]\w+", explorer.SUPPORTED.removesuffix("Sequential"))
    assert sorted(re.findall(r"^  (\w+):", block, re.MULTILINE)) == sorted(supported)


def test_it_displays_its_widget_a_text_that_does_not_change_and_the_poster_where_none_can_run(build, images):
    png = b"\x89PNG\r\n\x1a\n and so on"
    plain, shown = LatentExplorer(build(), *images), LatentExplorer(build(), *images, poster=png)
    bundle = shown._repr_mimebundle_()
    assert bundle["text/plain"] == repr(shown) == repr(plain) == "LatentExplorer(mlp, 20 images)"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.widget.model_id
    assert b64decode(bundle["image/png"]) == png
    assert "image/png" not in plain._repr_mimebundle_()


@pytest.fixture(scope="module")
def page(conv, mnist_test, tmp_path_factory):
    """The page of the convolutional model with 2,000 test images."""
    shown = LatentExplorer(conv, mnist_test.x[:2000], mnist_test.y[:2000])
    shown.z1.value = 1.25
    path = shown.to_html(tmp_path_factory.mktemp("page") / "explorer.html", title="Digits <&> more")
    assert 1_000_000 < path.stat().st_size <= 3_000_000
    return path.read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside_itself(page):
    addresses = set(re.findall(r"https?://[^\s\"'`)]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a language, which no browser fetches
    assert not re.findall(r"\bimport\b\s*[({\"']|@import|url\(", page)
    assert re.findall(r"\b(?:src|href)\s*=\s*(\S*?)>", page, re.IGNORECASE) == ['"data:,"']


def test_the_page_holds_the_front_ends_own_source_the_title_and_the_sliders_present_values(page):
    assert SCRIPT in page
    assert STYLE in page
    assert page.count("</script>") == 1
    assert "<h1>Digits &lt;&amp;&gt; more</h1>" in page
    (traits,) = re.findall(r"^const traits = (.*);$", page, re.MULTILINE)
    assert json.loads(traits).items() >= {"z1": 1.25, "z2": 0.0, "own_sliders": True}.items()


def test_the_same_page_each_time_written_whole_or_not_at_all(build, images, tmp_path, monkeypatch):
    path = tmp_path / "explorer.html"
    assert LatentExplorer(build(), *images).to_html(str(path)) == path
    before = path.read_bytes()
    LatentExplorer(build(), *images).to_html(path)
    assert path.read_bytes() == before

    def fail(self, *_, **__):
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        LatentExplorer(build(1), *images).to_html(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def encoder(*layers):
    """What makes a model of these layers, then of a linear one, a bad argument."""
    return {"model": vae(*layers, nn.Flatten(), nn.LazyLinear(4))}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": vae(latent_dim=3)}, r"latent_dim = 2 .* got latent_dim = 3 and Bernoulli"),
        ({"model": vae(likelihood=type("Normal", (Bernoulli,), {})())}, "got latent_dim = 2 and Normal"),
        ({"model": vae(bias=float("nan"))}, r"decoder\.0\.bias holds NaN or infinite values"),
        (
            encoder(nn.Sequential(nn.Dropout())),
            r"(?s)layer encoder\.0\.0: Dropout.*explorer runs Flatten, Unflatten, Lin",
        ),
        (encoder(nn.Flatten(), nn.Linear(784, 4, bias=False)), r"unsupported layer encoder\.1: Linear"),
        (encoder(nn.Flatten(2)), r"unsupported layer encoder\.0: Flatten"),
        (encoder(nn.Unflatten(0, (1, 1))), r"unsupported layer encoder\.0: Unflatten"),
        (encoder(nn.Conv2d(1, 1, 3, dilation=2, padding=2)), r"unsupported layer encoder\.0: Conv2d"),
        (encoder(nn.Conv2d(1, 1, 3, padding="same")), r"unsupported layer encoder\.0: Conv2d"),
        (encoder(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), r"unsupported layer encoder\.0: Conv2d"),
        (encoder(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, groups=2)), r"unsupported layer encoder\.1: Conv2d"),
        (encoder(nn.Conv2d(1, 1, 1, stride=(1, 2))), r"unsupported layer encoder\.0: Conv2d"),
        (encoder(nn.ConvTranspose2d(1, 1, 2, 2, output_padding=1)), r"unsupported layer encoder\.0: ConvTranspose2d"),
        ({"x": torch.full((20, 1, 28, 28), 255.0)}, r"pixels must lie in \[0, 1\]"),
        ({"y": torch.arange(19) % 10}, r"y must hold 20 integers from 0 to 9, got torch.int64 \(19,\)"),
        ({"y": torch.arange(20)}, "y must hold 20 integers from 0 to 9"),
        ({"y": torch.zeros(20)}, "got torch.float32"),
        ({"z": (0.0, 4.5)}, r"z must be two numbers between -4\.0 and 4\.0"),
        ({"z": (0.0,)}, "z must be two numbers"),
        ({"poster": b"GIF89a"}, "must be the bytes of a PNG image"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_any_widget_is_made(changed, message, build, images, monkeypatch):
    monkeypatch.setattr(explorer, "FrontEnd", None)
    monkeypatch.setattr(explorer.ipywidgets, "FloatSlider", None)
    with pytest.raises(ValueError, match=message):
        LatentExplorer(**{"model": build(), "x": images[0], "y": images[1]} | changed)
