import io
import json
import re
import shutil
import subprocess
import sysconfig
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import seaborn as sns
import torch
from PIL import Image
from torch import nn

from tme_utils import explorer, paths
from tme_utils.architectures import Residual
from tme_utils.explorer import LatentExplorer, pack_networks
from tme_utils.training import seeded
from tme_utils.vae import VAE, Bernoulli, conv_vae

SCRIPT = explorer.FRONT_END / "explorer.js"


@pytest.fixture(scope="module")
def labels():
    """Make n labels, 0 to 9 over and over."""
    return lambda n: torch.arange(n) % 10


@pytest.fixture(scope="module")
def images(random_images, labels):
    """Twenty images with their labels."""
    return random_images(20), labels(20)


@pytest.fixture(scope="module")
def conv():
    """The convolutional model of the page, with its first weights."""
    with seeded(0):
        return conv_vae(2)


@pytest.fixture(scope="module")
def with_encoder():
    """A VAE with this encoder and the smallest decoder."""

    def with_encoder(*layers):
        decoder = nn.Sequential(nn.Linear(2, 784), nn.Unflatten(1, (1, 28, 28)))
        return VAE(nn.Sequential(*layers), decoder, 2, {"architecture": "test"})

    return with_encoder


@pytest.fixture(scope="module")
def png():
    """The bytes of a PNG image."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="png")
    return buffer.getvalue()


def front_end(shown):
    """The widget that carries what the browser needs."""
    return shown.widget.children[1]


def integers(packed):
    """The 16-bit integers of packed weights, in order."""
    low, high = np.frombuffer(packed, np.uint8).reshape(2, -1).astype(np.int32)
    return (high << 8 | low).astype(np.uint16).view(np.int16).astype(float)


# --- what travels to the browser


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_packed_weights_are_the_models_own_within_half_a_step_of_their_scale(architecture, build, conv):
    model = {"mlp": build(), "conv": conv}[architecture]
    networks, packed = pack_networks(model)
    tensors = [
        layer[kind]
        for name in ("encoder", "decoder")
        for layer in networks[name]
        for kind in ("weight", "bias")
        if kind in layer
    ]
    values, at = integers(packed), 0
    parameters = list(model.parameters())
    assert len(tensors) == len(parameters)
    for tensor, parameter in zip(tensors, parameters, strict=True):
        assert tensor["shape"] == list(parameter.shape)
        unpacked = values[at : at + parameter.numel()] * tensor["scale"]
        at += parameter.numel()
        expected = parameter.detach().numpy().ravel()
        assert np.abs(unpacked - expected).max() <= 0.5001 * tensor["scale"]
        assert tensor["scale"] == pytest.approx(np.abs(expected).max() / (2**15 - 1))
    assert at == len(values)


def test_layers_are_described_in_order_with_their_options(conv):
    networks, _ = pack_networks(conv)
    assert [layer["type"] for layer in networks["encoder"]] == [type(layer).__name__ for layer in conv.encoder]
    assert [layer["type"] for layer in networks["decoder"]] == [type(layer).__name__ for layer in conv.decoder]
    assert {(layer["stride"], layer["padding"]) for layer in networks["encoder"] if "stride" in layer} == {(2, 1)}
    assert json.loads(json.dumps(networks)) == networks


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_an_activation_travels_by_its_name(with_encoder, activation):
    networks, _ = pack_networks(with_encoder(nn.Flatten(), nn.Linear(784, 8), activation(), nn.Linear(8, 4)))
    assert networks["encoder"][2] == {"type": activation.__name__}
    assert f"  {activation.__name__}: (" in SCRIPT.read_text(encoding="utf-8")


def test_a_sequential_in_a_sequential_is_read_like_its_layers(build, with_encoder):
    flat = with_encoder(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 4))
    nested = with_encoder(nn.Flatten(), nn.Sequential(*flat.encoder[1:]))
    nested.decoder = flat.decoder
    assert pack_networks(nested) == pack_networks(flat)


def test_weights_that_are_all_zero_stay_zero(with_encoder):
    model = with_encoder(nn.Flatten(), nn.Linear(784, 4))
    nn.init.zeros_(model.encoder[1].bias)
    networks, packed = pack_networks(model)
    assert networks["encoder"][1]["bias"]["scale"] > 0
    assert not integers(packed)[784 * 4 : 784 * 4 + 4].any()


def test_images_labels_and_means_arrive_as_they_are(build, images):
    model, (x, y) = build(), images
    traits = front_end(LatentExplorer(model, x, y))
    pixels = np.frombuffer(zlib.decompress(traits.images), np.uint8).reshape(x.shape)
    assert np.abs(pixels / 255 - x.numpy()).max() <= 0.5001 / 255
    assert list(zlib.decompress(traits.labels)) == y.tolist()
    mu = np.frombuffer(zlib.decompress(traits.mu), "<f4").reshape(-1, 2)
    np.testing.assert_allclose(mu, model.encode(x)[0].detach().numpy(), rtol=1e-6)


def test_a_model_in_double_precision_is_shown_too(build, images):
    double, single = (front_end(LatentExplorer(model, *images)) for model in (build().double(), build()))
    assert zlib.decompress(double.weights) == zlib.decompress(single.weights)


def test_the_plane_reaches_to_4_or_to_the_farthest_image(build, images):
    assert front_end(LatentExplorer(build(), *images)).limit == 4
    far = build()
    nn.init.constant_(far.encoder[-1].bias, 7.0)
    shown = LatentExplorer(far, *images)
    farthest = far.encode(images[0])[0].abs().max()
    assert farthest < front_end(shown).limit < farthest * 1.02 + 0.2
    assert (shown.z1.min, shown.z2.max) == (-front_end(shown).limit, front_end(shown).limit)


@pytest.mark.parametrize(
    "z",
    [(1.5, -0.5), np.array([1.5, -0.5], np.float32), torch.tensor([1.5, -0.5])],
    ids=["tuple", "array", "tensor"],
)
def test_the_sliders_and_the_plane_begin_where_asked(build, images, z):
    shown = LatentExplorer(build(), *images, z=z)
    assert (shown.z1.value, shown.z2.value) == (1.5, -0.5) == (front_end(shown).z1, front_end(shown).z2)
    assert shown.z1.continuous_update
    assert shown.z1.step == explorer.STEP


def test_the_front_end_has_the_reports_colours():
    (block,) = re.findall(r"PALETTE = \[(.*?)\]", SCRIPT.read_text(encoding="utf-8"), re.DOTALL)
    assert re.findall(r'"(#\w{6})"', block) == sns.color_palette("colorblind", 10).as_hex()


def test_the_linter_finds_nothing_in_the_front_end():
    oxlint = shutil.which("oxlint", path=sysconfig.get_path("scripts"))
    result = subprocess.run([oxlint, "tme_utils"], cwd=paths.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "on 1 file" in result.stdout


# --- how it shows itself


def test_its_text_does_not_change_from_run_to_run(build, images):
    first, second = (LatentExplorer(build(), *images) for _ in range(2))
    assert repr(first) == repr(second) == "LatentExplorer(mlp, 20 images)"
    assert first._repr_mimebundle_()["text/plain"] == repr(first)


def test_it_displays_its_widget_and_the_poster_where_none_can_run(build, images, png):
    shown = LatentExplorer(build(), *images, poster=png)
    bundle = shown._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.widget.model_id
    assert b64decode(bundle["image/png"]) == png
    assert "image/png" not in LatentExplorer(build(), *images)._repr_mimebundle_()


# --- the page


class Page(HTMLParser):
    """Names and attributes of all the elements of a page."""

    def __init__(self, text):
        """Parse the text."""
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Keep an element."""
        self.elements.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def page(conv, mnist_test, tmp_path_factory):
    """The page of the convolutional model with 2,000 test images."""
    shown = LatentExplorer(conv, mnist_test.x[:2000], mnist_test.y[:2000])
    shown.z1.value = 1.25
    return shown.to_html(tmp_path_factory.mktemp("page") / "explorer.html", title="Digits <&> more")


def test_the_page_is_at_most_3_megabytes(page):
    assert 1_000_000 < page.stat().st_size <= 3_000_000


def test_the_page_refers_to_nothing_outside_itself(page):
    text = page.read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'`)]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a language, which no browser fetches
    assert not re.findall(r"\bimport\b\s*[({\"']|@import|url\(", text)
    elements = Page(text).elements
    assert "script" in {tag for tag, _ in elements}
    references = [value for _, attributes in elements for name, value in attributes.items() if name in ("src", "href")]
    assert references == ["data:,"]


def test_the_page_is_made_of_the_front_ends_own_source(page):
    text = page.read_text(encoding="utf-8")
    assert SCRIPT.read_text(encoding="utf-8") in text
    assert (explorer.FRONT_END / "explorer.css").read_text(encoding="utf-8") in text
    assert text.count("</script>") == 1


def test_the_page_holds_the_title_and_the_sliders_present_values(page):
    text = page.read_text(encoding="utf-8")
    assert "<h1>Digits &lt;&amp;&gt; more</h1>" in text
    (traits,) = re.findall(r"^const traits = (.*);$", text, re.MULTILINE)
    assert json.loads(traits)["z1"] == 1.25
    assert json.loads(traits)["own_sliders"] is True


def test_the_page_is_written_whole_or_not_at_all(build, images, tmp_path, monkeypatch):
    path = tmp_path / "explorer.html"
    assert LatentExplorer(build(), *images).to_html(str(path)) == path
    before = path.read_bytes()

    def fail(self, *_, **__):
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        LatentExplorer(build(1), *images).to_html(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_explorer_writes_the_same_page(build, images, tmp_path):
    first, second = (LatentExplorer(build(), *images).to_html(tmp_path / name) for name in ("1.html", "2.html"))
    assert first.read_bytes() == second.read_bytes()


# --- errors, before any widget is made


@pytest.fixture
def no_widget(monkeypatch):
    """Fail if a widget is made."""
    monkeypatch.setattr(explorer, "FrontEnd", lambda **_: pytest.fail("a widget was made"))
    monkeypatch.setattr(explorer.ipywidgets, "FloatSlider", lambda *_, **__: pytest.fail("a slider was made"))


@pytest.mark.usefixtures("no_widget")
def test_a_model_of_another_latent_space_or_likelihood(build, images):
    with pytest.raises(ValueError, match=r"latent_dim = 2 .* got latent_dim = 3 and Bernoulli"):
        LatentExplorer(build(latent_dim=3), *images)
    other = type("Normal", (Bernoulli,), {})()
    with pytest.raises(ValueError, match="Bernoulli likelihood, got latent_dim = 2 and Normal"):
        LatentExplorer(VAE(build().encoder, build().decoder, 2, {}, other), *images)


LINEAR = nn.Linear(784, 4)


@pytest.mark.usefixtures("no_widget")
@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Flatten(), nn.Tanh(), LINEAR], r"encoder\.1: Tanh"),
        ([Residual(1), nn.Flatten(), LINEAR], r"encoder\.0: Residual"),
        ([nn.Flatten(), nn.Sequential(nn.Dropout(), LINEAR)], r"encoder\.1\.0: Dropout"),
        ([nn.Flatten(), nn.Linear(784, 4, bias=False)], r"encoder\.1: Linear"),
        ([nn.Flatten(2), nn.Flatten(), LINEAR], r"encoder\.0: Flatten"),
        ([nn.Unflatten(0, (1, 1)), nn.Flatten(), LINEAR], r"encoder\.0: Unflatten"),
        ([nn.Conv2d(1, 1, 3, dilation=2, padding=2), nn.Flatten(), LINEAR], r"encoder\.0: Conv2d"),
        ([nn.Conv2d(1, 1, 3, padding="same"), nn.Flatten(), LINEAR], r"encoder\.0: Conv2d"),
        ([nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), LINEAR], r"encoder\.1: Conv2d"),
        ([nn.Conv2d(1, 1, 1, stride=(1, 2)), nn.Flatten(), LINEAR], r"encoder\.0: Conv2d"),
        ([nn.ConvTranspose2d(1, 1, 2, stride=2, output_padding=1), nn.Flatten()], r"encoder\.0: ConvTranspose2d"),
    ],
)
def test_a_layer_that_the_browser_cannot_run(layers, named, with_encoder, images):
    with pytest.raises(ValueError, match=f"(?s)unsupported layer {named}.*explorer runs Flatten, Unflatten, Linear"):
        LatentExplorer(with_encoder(*layers), *images)


@pytest.mark.usefixtures("no_widget")
def test_weights_that_are_not_finite(build, images):
    model = build()
    with torch.no_grad():
        model.decoder[2].bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"decoder\.2\.bias holds NaN or infinite values"):
        LatentExplorer(model, *images)


@pytest.mark.usefixtures("no_widget")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.full((20, 1, 28, 28), 255.0)}, r"pixels must lie in \[0, 1\]"),
        ({"y": torch.arange(19) % 10}, r"y must hold 20 integers from 0 to 9, got torch.int64 \(19,\)"),
        ({"y": torch.arange(20)}, "y must hold 20 integers from 0 to 9"),
        ({"y": torch.zeros(20)}, "got torch.float32"),
        ({"z": (0.0, 4.5)}, r"z must be two numbers between -4\.0 and 4\.0"),
        ({"z": (0.0,)}, "z must be two numbers"),
        ({"poster": b"GIF89a"}, "must be the bytes of a PNG image"),
    ],
)
def test_other_bad_arguments(changed, message, build, images):
    with pytest.raises(ValueError, match=message):
        LatentExplorer(**{"model": build(), "x": images[0], "y": images[1]} | changed)
