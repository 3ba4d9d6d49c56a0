"""The explorer outside a browser: what travels there, how it shows itself, its page, and what it refuses."""

import gc
import json
import re
import weakref
import zlib
from base64 import b64decode, b64encode
from pathlib import Path

import numpy as np
import pytest
import seaborn as sns
import torch
from torch import nn
from torch.nn import functional as F

from tme_utils import explorer
from tme_utils.checkpoints import shipped_model
from tme_utils.explorer import LatentExplorer, pack_networks
from tme_utils.metrics import posterior_parameters
from tme_utils.priors import Flow
from tme_utils.training import seeded
from tme_utils.vae import VAE, Bernoulli, conv_vae, elbo_terms, kl_per_dim

SCRIPT, STYLE = explorer.front_end_script(), (explorer.FRONT_END / "explorer.css").read_text(encoding="utf-8")
PNG = b"\x89PNG\r\n\x1a\n and so on"


@pytest.fixture(scope="module")
def images(random_images):
    """Twenty images with their labels."""
    return random_images(20), torch.arange(20) % 10


@pytest.fixture(scope="module")
def conv():
    """The convolutional model of the page, with its first weights."""
    with seeded(0):
        return conv_vae(2)


def vae(*layers, latent_dim=2, likelihood=None, prior=None, bias=0.0):
    """A VAE with this encoder and the smallest decoder, of this bias."""
    decoder = nn.Sequential(nn.Linear(latent_dim, 784), nn.Unflatten(1, (1, 28, 28)))
    nn.init.constant_(decoder[0].bias, bias)
    encoder = nn.Sequential(*(layers or (nn.Flatten(), nn.Linear(784, 2 * latent_dim))))
    return VAE(encoder, decoder, latent_dim, {"architecture": "test"}, likelihood, prior)


def front_end(shown, place=1):
    """The widget that carries what the browser needs, below the sliders of a plane."""
    return shown.widget.children[place]


def integers(packed):
    """The integers of packed weights, in order."""
    low, middle, high = np.frombuffer(packed, np.uint8).reshape(3, -1).astype(int)
    bits = low + 256 * middle + 256**2 * high
    return np.where(bits % 2, -(bits + 1) // 2, bits // 2)


@pytest.mark.parametrize("name", ["mlp", "conv", "nested"])
def test_layers_travel_in_order_and_weights_within_half_a_step_of_their_rows_scale(name, build, conv):
    nested = vae(nn.Flatten(), nn.Sequential(nn.Linear(784, 8), nn.Sequential(nn.SiLU(), nn.Linear(8, 4))))
    model = {"mlp": build(), "conv": conv, "nested": nested}[name]  # some of the last one's weights are all zero
    networks, packed = pack_networks(model)
    assert json.loads(json.dumps(networks)) == networks
    layers, values, at = [*networks["encoder"], *networks["decoder"]], integers(packed), 0
    own = [layer for layer in [*model.encoder.modules(), *model.decoder.modules()] if type(layer) is not nn.Sequential]
    assert [layer["type"] for layer in layers] == [type(layer).__name__ for layer in own]
    options = [(layer["stride"], layer["padding"]) for layer in layers if "Conv" in layer["type"]]
    assert options == ([(2, 1)] * 4 if name == "conv" else [])
    tensors = [
        (layer[kind], explorer.LARGEST[name])
        for name in networks
        for layer in networks[name]
        for kind in ("weight", "bias")
        if kind in layer
    ]
    for (tensor, largest), parameter in zip(tensors, model.parameters(), strict=True):
        assert tensor["shape"] == list(parameter.shape)
        expected, scales = parameter.detach().numpy(), np.array(tensor["scales"])[:, None]
        rows = expected.reshape(1 if expected.ndim == 1 else len(expected), -1)
        assert np.abs(rows).max(axis=1) == pytest.approx(largest * scales[:, 0], rel=1e-4, abs=1e-20)
        error = np.abs(values[at : at + expected.size].reshape(rows.shape) * scales - rows)
        assert (error <= 0.5001 * scales).all()
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


def test_a_heart_is_where_a_class_is_purest_not_where_its_median_falls():
    mu = torch.cat([torch.tensor([[-3.0, 0.0]] * 30 + [[3.0, 0.0]] * 28), torch.zeros(40, 2)])
    y = torch.tensor([7] * 58 + [1] * 40)
    mu = mu + 0.1 * torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    hearts = explorer.find_hearts(mu, y)
    assert list(hearts) == [1, 7]
    assert abs(hearts[7][0]) > 2 > 0.5 > abs(hearts[1][0])
    assert explorer.find_hearts(mu[:1], y[:1]) == {7: mu[0].tolist()}


@pytest.mark.parametrize("name", ["mlp_2d", "conv_2d"])
@torch.no_grad()
def test_at_a_name_at_least_nine_of_the_ten_nearest_test_images_bear_it(name, mnist_test):
    model, y = shipped_model(name)[0], mnist_test.y
    mu = posterior_parameters(model, mnist_test.x)[0]
    hearts = explorer.find_hearts(mu[:2000], y[:2000])  # those of the page, among its dots and among all images
    assert list(hearts) == list(range(10))
    places = torch.tensor(list(hearts.values()))
    for n in (2000, len(y)):
        near = torch.cdist(places, mu[:n]).topk(10, largest=False).indices
        assert ((y[near] == torch.arange(10)[:, None]).sum(1) >= 9).all()


@torch.no_grad()
def test_the_quantiles_are_those_of_the_loss_and_walks_lead_where_they_say(build, images, generator):
    (x, y), model = images, build()
    traits = front_end(LatentExplorer(model, x, y))
    terms, kl = elbo_terms(model, x, generator=generator()), kl_per_dim(*model.encode(x))
    expected = {"kl_1": kl[:, 0], "kl_2": kl[:, 1], "recon": terms.recon, "neg_elbo": -terms.elbo}
    assert list(traits.quantiles) == list(expected)
    for name, values in expected.items():
        found = traits.quantiles[name]
        assert (found[0], found[10], found[20]) == pytest.approx(
            values.quantile(torch.tensor([0.0, 0.5, 1.0])).tolist(), abs=0.006
        )
    hearts = {label: pytest.approx(heart, abs=1e-3) for label, *heart in traits.hearts}
    *straight, circle = traits.walks.items()
    for name, path in straight:
        start, end = map(int, re.findall(r"\d", name))
        assert path == [hearts[start], hearts[end]]
    assert circle[0] == "the 50 % circle"
    assert np.hypot(*np.array(circle[1]).T) == pytest.approx(np.sqrt(np.log(4)), abs=2e-3)
    own = {"there and back": torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 0.0]])}
    assert front_end(LatentExplorer(model, x, y, walks=own)).walks == {name: w.tolist() for name, w in own.items()}


@pytest.mark.parametrize("to", [tuple, np.array, torch.tensor])
def test_the_sliders_and_the_plane_begin_where_asked(to, build, images):
    shown = LatentExplorer(build(), *images, z=to((1.5, -0.5)))
    assert (shown.z1.value, shown.z2.value) == (1.5, -0.5) == (front_end(shown).z1, front_end(shown).z2)
    assert shown.z1.continuous_update
    assert shown.z1.step == explorer.STEP


@torch.no_grad()
def test_beyond_a_plane_the_active_coordinates_travel_by_their_kl_and_the_walks_in_all(build, images):
    model, (x, y) = build(latent_dim=6), images
    silent = [1, 4]
    for rows in (silent, [j + 6 for j in silent]):  # of mu and of logvar
        model.encoder[-1].weight[rows] = 0
        model.encoder[-1].bias[rows] = 0
    model.encoder[-1].weight[:6] *= 20
    shown = LatentExplorer(model, x, y)
    kl = kl_per_dim(*model.encode(x)).mean(dim=0)
    order = [j for j in kl.argsort(descending=True).tolist() if j not in silent]
    traits = front_end(shown, 0)
    assert traits.coordinates == [[j, pytest.approx(kl[j].item())] for j in order]
    assert list(traits.quantiles) == ["kl", "recon", "neg_elbo"]
    assert traits.own_sliders
    assert [np.shape(path) for path in traits.walks.values()] == [(2, 6)] * 2
    assert not hasattr(shown, "z1")


def test_the_front_end_has_the_reports_colours_and_every_supported_layer():
    (block,) = re.findall(r"PALETTE = \[(.*?)\]", SCRIPT, re.DOTALL)
    assert re.findall(r'"(#\w{6})"', block) == sns.color_palette("colorblind", 10).as_hex()
    (block,) = re.findall(r"LAYERS = \{\n(.*?)\n\}", SCRIPT, re.DOTALL)
    supported = re.findall(r"[A-Z]\w+", explorer.SUPPORTED.removesuffix("Sequential"))
    assert sorted(re.findall(r"^  (\w+):", block, re.MULTILINE)) == sorted(supported)


def test_it_displays_its_widget_an_unchanging_text_and_the_poster_where_none_can_run(build, images, monkeypatch):
    monkeypatch.delattr(explorer.ipywidgets.Widget, "_repr_mimebundle_", raising=False)  # as ipywidgets 7 has none
    plain, shown = LatentExplorer(build(), *images), LatentExplorer(build(), *images, poster=PNG)
    bundle = shown._repr_mimebundle_()
    assert bundle["text/plain"] == repr(shown) == repr(plain) == "LatentExplorer(mlp, 20 images)"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.widget.model_id
    assert b64decode(bundle["image/png"]) == PNG
    assert "image/png" not in plain._repr_mimebundle_()


def test_closed_it_is_freed(build, images):
    shown = LatentExplorer(build(), *images, poster=PNG)
    seen = weakref.ref(front_end(shown))
    shown.close()
    del shown
    gc.collect()
    assert seen() is None


@torch.no_grad()
def test_labels_of_any_integer_type_and_one_class_are_shown(build, images, tmp_path):
    x, y = images
    (tmp_path / "poster.png").write_bytes(PNG)
    shown = LatentExplorer(build(), x, y.numpy().astype("int32"), poster=tmp_path / "poster.png")
    assert list(zlib.decompress(front_end(shown).labels)) == y.tolist()
    assert b64decode(shown._repr_mimebundle_()["image/png"]) == PNG
    assert [label for label, *_ in front_end(LatentExplorer(build(), x, [3] * 20)).hearts] == [3]


@pytest.fixture(scope="module")
def page(conv, mnist_test, tmp_path_factory):
    """The page of the convolutional model with 2,000 test images and a poster."""
    shown = LatentExplorer(conv, mnist_test.x[:2000], mnist_test.y[:2000], poster=PNG)
    shown.z1.value = 1.25
    path = shown.to_html(tmp_path_factory.mktemp("page") / "explorer.html", title="Digits <&> more")
    assert 1_000_000 < path.stat().st_size <= 3_500_000
    return path.read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside_itself(page):
    addresses = set(re.findall(r"https?://[^\s\"'`)]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a language, which no browser fetches
    assert not re.findall(r"\bimport\b\s*[({\"']|@import|url\(", page)
    references = re.findall(r"\b(?:src|href)\s*=\s*(\S*?)>", page, re.IGNORECASE)
    assert references == ['"data:,"', f'"data:image/png;base64,{b64encode(PNG).decode()}"']


def test_the_page_holds_the_front_ends_own_source_the_title_and_the_sliders_present_values(page):
    assert SCRIPT in page
    assert not re.search(r"^import ", SCRIPT, re.MULTILINE)
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


class Doubled(nn.Linear):
    """A layer whose forward pass is its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class OwnDecode(VAE):
    """A model whose forward pass is its own."""

    def decode(self, z):
        return super().decode(z).clamp(-0.01, 0.01)


def hooked(register, hook):
    """A model with a hook on the decoder's first layer."""
    model = vae()
    getattr(model.decoder[0], register)(hook)
    return model


def replaced(model):
    """A model one of whose layers has been given another forward pass."""
    model.decoder[0].forward = lambda z: F.linear(z.sin(), model.decoder[0].weight)
    return model


OTHERWISE = {
    "hook": hooked("register_forward_hook", lambda layer, args, output: output + 0.1),
    "hook before": hooked("register_forward_pre_hook", lambda layer, args: (args[0].tanh(),)),
    "subclass": vae(nn.Flatten(), Doubled(784, 4)),
    "model": OwnDecode(vae().encoder, vae().decoder, 2, {}),
    "replaced": replaced(vae()),
    "hook on all": vae(),
}
OTHERWISE["hook on all"].decoder.register_forward_hook(lambda layer, args, output: output.clamp(-0.01, 0.01))


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_forward_pass_other_than_its_layers_is_refused(name, images):
    with pytest.raises(ValueError, match=r"does not compute what its layers do|unsupported layer"):
        LatentExplorer(OTHERWISE[name], *images)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@torch.no_grad()
def test_weights_that_each_forward_pass_makes_anew_travel_as_they_are_now(norm, images):
    model = vae()
    layer = norm(model.decoder[0])
    layer.register_forward_hook(lambda *_: None)  # one that only looks changes nothing
    next(g for name, g in layer.named_parameters() if name.endswith(("_g", "original0"))).mul_(2)
    shown = front_end(LatentExplorer(model, *images))
    model.decode(torch.zeros(1, 2))
    rows = integers(zlib.decompress(shown.weights))[-784 * 3 : -784].reshape(784, 2)
    scales = np.array(shown.networks["decoder"][0]["weight"]["scales"])
    np.testing.assert_allclose(rows * scales[:, None], layer.weight, atol=1e-3)


def encoder(*layers):
    """What makes a model of these layers, then of a linear one, a bad argument."""
    return {"model": vae(*layers, nn.Flatten(), nn.LazyLinear(4))}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": vae(latent_dim=1)}, r"latent_dim >= 2, .* got latent_dim = 1, Bernoulli and StandardNormal"),
        (
            {"model": vae(likelihood=type("Normal", (Bernoulli,), {})())},
            "got latent_dim = 2, Normal and StandardNormal",
        ),
        ({"model": vae(prior=Flow(2))}, "got latent_dim = 2, Bernoulli and Flow"),
        ({"class_names": ["zero", "one"]}, r"class_names must name the labels up to \d, got \['zero', 'one'\]"),
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
        ({"walks": {"far": torch.full((2, 2), 9.0)}}, r"walk 'far' must be two points or more, \(n, 2\), within 4\.0"),
        ({"walks": {"flat": torch.zeros(4)}}, r"walk 'flat' .* got tensor\(\[0"),
        ({"x": np.zeros((20, 1, 28, 28), np.float32)}, "x must be a tensor .* got ndarray"),
        ({"film": {"codes": np.zeros((3, 19, 2))}}, r"film must hold codes \(n, 20, 2\) of a plane, got \(3, 19, 2\)"),
        ({"poster": b"GIF89a"}, "must be the bytes of a PNG image"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_any_widget_is_made(changed, message, build, images, monkeypatch):
    monkeypatch.setattr(explorer, "FrontEnd", None)
    monkeypatch.setattr(explorer.ipywidgets, "FloatSlider", None)
    with pytest.raises(ValueError, match=message):
        LatentExplorer(**{"model": build(), "x": images[0], "y": images[1]} | changed)
