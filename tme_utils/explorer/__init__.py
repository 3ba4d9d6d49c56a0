"""The live latent explorer: the latent space, an image's way through the model and its loss, computed in the browser.

The scripts, ``view.html`` and ``explorer.css`` beside this file are its front end, in notebook and page alike.
"""

import html
import itertools
import json
import math
import re
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tme_utils import paths
from tme_utils.metrics import active_units, posterior_parameters
from tme_utils.vae import VAE, Bernoulli, StandardNormal, check_images, elbo_terms, kl_per_dim

FRONT_END = Path(__file__).parent
MODULES = (
    "networks.js",
    "quadrature.js",
    "drawing.js",
    "plane.js",
    "film.js",
    "explorer.js",
)  # each needs those before it
STEP = 0.01
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A step in the encoder moves the mean of q(z|x), and a few images stand where recon is steep.
LARGEST = {"encoder": 2**16, "decoder": 2**14}
QUANTILES = 21  # 0, 5, ..., 100 %
N_CHECKED = 500  # images that the encoder and its bare layers must agree on
# The layers that the front end runs, and what it computes for each.
LAYERS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Flatten: lambda layer, x: x.flatten(1),
    nn.Unflatten: lambda layer, x: x.unflatten(1, layer.unflattened_size),
    nn.Linear: lambda layer, x: F.linear(x, layer.weight, layer.bias),
    nn.ReLU: lambda layer, x: x.relu(),
    nn.SiLU: lambda layer, x: F.silu(x),
    nn.Conv2d: lambda layer, x: F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding),
    nn.ConvTranspose2d: lambda layer, x: F.conv_transpose2d(x, layer.weight, layer.bias, layer.stride, layer.padding),
}
SUPPORTED = f"{', '.join(kind.__name__ for kind in LAYERS)}, in a Sequential"


def front_end_script() -> str:
    """The modules of the front end as one, which needs no bundler: joined in order, without their imports."""
    modules = [(FRONT_END / name).read_text(encoding="utf-8") for name in MODULES]
    return "\n".join(re.sub(r'^import .* from "\./.*;\n', "", module, flags=re.MULTILINE) for module in modules)


class FrontEnd(anywidget.AnyWidget):
    """What travels to ``explorer.js``; see there how each is read. All ``Bytes`` are compressed by zlib."""

    _esm = front_end_script()
    _css = (FRONT_END / "explorer.css").read_text(encoding="utf-8")  # a path would be watched, its widgets never freed
    view = traitlets.Unicode((FRONT_END / "view.html").read_text(encoding="utf-8")).tag(sync=True)
    networks = traitlets.Dict().tag(sync=True)
    weights = traitlets.Bytes().tag(sync=True)
    images = traitlets.Bytes().tag(sync=True)
    labels = traitlets.Bytes().tag(sync=True)
    mu = traitlets.Bytes().tag(sync=True)
    class_names: traitlets.List[Any] = traitlets.List().tag(sync=True)
    hearts: traitlets.List[Any] = traitlets.List().tag(sync=True)
    quantiles = traitlets.Dict().tag(sync=True)
    coordinates: traitlets.List[Any] = traitlets.List().tag(sync=True)
    walks = traitlets.Dict().tag(sync=True)
    limit = traitlets.Float().tag(sync=True)
    film = traitlets.Dict().tag(sync=True)
    film_codes = traitlets.Bytes().tag(sync=True)
    film_picture = traitlets.Bytes().tag(sync=True)
    z1 = traitlets.Float().tag(sync=True)
    z2 = traitlets.Float().tag(sync=True)
    own_sliders = traitlets.Bool(False).tag(sync=True)


class LatentExplorer:
    """Walk through a latent space: as a cell's last expression it shows the sliders and, of two dimensions, the plane.

    In more dimensions there is a slider for each active coordinate, the one with the largest KL first, and no plane.
    The browser holds the encoder and the decoder, and no step of a walk asks Python. A weight travels as an integer
    times a scale of its row, fine enough that recon stays within 0.05 nats of torch's on the shipped models.

    Args:
        model: a VAE with ``latent_dim`` 2 or more, of the layers of :mod:`tme_utils.vae`.
        x: images (N, 1, 28, 28): the dots of the plane, and the neighbours shown beside the digit. A thousand of them
            take about 0.2 MB of the page.
        y: their labels, integers from 0 to 9, (N,).
        z: the point of a plane where the walk begins: two numbers, in a tuple, an array or a tensor.
        poster: a PNG image, its bytes or its path, that stands where no widget can run, such as on GitHub, or in a page
            without JavaScript.
        walks: paths (n, latent_dim) by name, each a button that plays it; between the classes if none are given.
        film: what ``python -m tables.epochs`` recorded of a training whose plane this is, with codes of these images.
        class_names: what stands for the labels 0, 1, 2, ...; their digits if none are given.

    Attributes:
        z1, z2: the sliders of a plane; ``z1.value`` follows the front end and moves it.
        widget: both sliders above the plane, or the front end alone, to be placed in another layout.
    """

    def __init__(
        self,
        model: VAE,
        x: Tensor,
        y: Tensor,
        z: Iterable[float] | Tensor = (0.0, 0.0),
        poster: bytes | Path | str | None = None,
        walks: Mapping[str, Tensor] | None = None,
        film: Mapping[str, np.ndarray] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        """Check everything, then make the widgets; they appear when the explorer is displayed."""
        pack_networks(model)  # refuses what the front end cannot run, before anything runs it
        check_images(x)
        y = torch.as_tensor(y)
        if y.shape != x.shape[:1] or y.is_floating_point() or not ((y >= 0) & (y <= 9)).all():
            raise ValueError(f"y must hold {len(x)} integers from 0 to 9, got {y.dtype} {(*y.shape,)}: {y.unique()}")
        names = [str(name) for name in list(class_names) or range(int(y.max()) + 1)]
        if len(names) <= int(y.max()):
            raise ValueError(f"class_names must name the labels up to {int(y.max())}, got {names}")
        if isinstance(poster, str | Path):
            poster = Path(poster).expanduser().read_bytes()
        if poster is not None and not poster.startswith(PNG_SIGNATURE):
            raise ValueError(f"poster must be the bytes of a PNG image, got {poster[:8]!r}...")
        like = next(model.parameters())
        posterior = posterior_parameters(model, x.to(like))
        mu = posterior[0].float().cpu()
        limit = float(mu.abs().max().mul(1.02).clamp(min=4.0).mul(10).ceil()) / 10
        codes = limit / 3 * torch.randn(N_CHECKED, model.latent_dim, generator=torch.Generator().manual_seed(0))
        check_layers(model, x[:N_CHECKED].to(like), codes.to(like))
        networks, weights = pack_networks(model)  # only now: hooks may make weights anew when a model runs
        z = tuple(float(value) for value in z)  # the widgets take no number of numpy or torch
        if len(z) != 2 or not all(abs(value) <= limit for value in z):
            raise ValueError(f"z must be two numbers between {-limit} and {limit}, got {z!r}")

        hearts = find_hearts(mu, y.cpu())
        walks = {
            name: torch.as_tensor(path)
            for name, path in (_walks(hearts, names, model.latent_dim) if walks is None else walks).items()
        }
        for name, path in walks.items():
            if path.shape[1:] != mu.shape[1:] or len(path) < 2 or not (path.abs() <= limit).all():
                size = f"(n, {model.latent_dim})"
                raise ValueError(f"walk {name!r} must be two points or more, {size}, within {limit}, got {path}")

        kl, is_plane = kl_per_dim(*posterior).mean(dim=0), model.latent_dim == 2
        shown = [0, 1] if is_plane else [j for j in kl.argsort(descending=True).tolist() if active_units(mu)[j]]
        shot = {}
        if film is not None:
            if film["codes"].shape[1:] != mu.shape or not is_plane:
                raise ValueError(f"film must hold codes (n, {len(x)}, 2) of a plane, got {film['codes'].shape}")
            shot = {
                "film": {name: film[name].tolist() for name in ("neg_elbo", "extent")},
                "film_codes": zlib.compress(film["codes"].astype("<i2").tobytes(), 9),
                "film_picture": film["picture"].tobytes(),
            }
        self._name = f"LatentExplorer({model.config.get('architecture', 'VAE')}, {len(x):,} images)"
        self._poster = poster
        self._front_end = FrontEnd(
            networks=networks,
            weights=zlib.compress(weights, 9),
            images=zlib.compress(x.mul(255).round().to(torch.uint8).cpu().numpy().tobytes(), 9),
            labels=zlib.compress(y.to(torch.uint8).cpu().numpy().tobytes(), 9),
            mu=zlib.compress(mu.numpy().astype("<f4").tobytes(), 9),
            class_names=names,
            hearts=[[label, *heart] for label, heart in hearts.items()],
            quantiles=loss_quantiles(model, x.to(like), *posterior),
            coordinates=[[j, kl[j].item()] for j in shown],
            own_sliders=not is_plane,
            walks={name: path.double().mul(1000).round().div(1000).tolist() for name, path in walks.items()},
            limit=limit,
            z1=z[0],
            z2=z[1],
            **shot,
        )
        self.widget = ipywidgets.VBox([self._front_end])
        self._widgets: tuple[ipywidgets.Widget, ...] = (self.widget, self._front_end)
        self._sliders: dict[str, ipywidgets.FloatSlider] = {}
        if not is_plane:
            return
        style, layout = {"description_width": "2em"}, ipywidgets.Layout(width="440px")
        self.z1, self.z2 = (
            ipywidgets.FloatSlider(
                value, min=-limit, max=limit, step=STEP, description=name, style=style, layout=layout
            )
            for name, value in zip(("z₁", "z₂"), z, strict=True)
        )
        sliders = ipywidgets.HBox([self.z1, self.z2], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget.children = (sliders, self._front_end)
        self._sliders = {"z1": self.z1, "z2": self.z2}
        links = [
            ipywidgets.jslink((slider, "value"), (self._front_end, name)) for name, slider in self._sliders.items()
        ]
        self._widgets = (*links, sliders, self.z1, self.z2, *self._widgets)

    def close(self) -> None:
        """Take the explorer off the page and free what it holds: Jupyter keeps every widget until it is closed."""
        for widget in self._widgets:
            widget.close()

    def __repr__(self) -> str:
        return self._name

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # Not `widget._repr_mimebundle_`, which ipywidgets 7 lacks: hosted notebooks still have it.
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        bundle = {"text/plain": repr(self), "application/vnd.jupyter.widget-view+json": view}
        if self._poster is not None:
            bundle["image/png"] = b64encode(self._poster).decode()
        return bundle

    def to_html(self, path: Path | str, title: str = "The latent plane of a VAE") -> Path:
        """Write the explorer as one page that needs neither Python nor a network, and return its path.

        The page opens at the sliders' present values; ``title`` is its heading.
        """
        traits = {name: getattr(self._front_end, name) for name in FrontEnd.class_own_traits(sync=True)}
        packed = {name: b64encode(value).decode() for name, value in traits.items() if isinstance(value, bytes)}
        present = {name: slider.value for name, slider in self._sliders.items()}
        plain = traits | {"own_sliders": True} | present
        names = {"template": "page.html", "css": "explorer.css"}
        parts = {part: (FRONT_END / name).read_text(encoding="utf-8") for part, name in names.items()}
        parts |= {"script": front_end_script(), "title": html.escape(title), "packed": json.dumps(packed)}
        poster = b64encode(self._poster or b"").decode()
        image = f'<img alt="The plane, and a digit decoded from it" src="data:image/png;base64,{poster}">'
        parts["poster"] = image if poster else ""
        parts["traits"] = json.dumps({name: value for name, value in plain.items() if name not in packed})
        with paths.atomic_write(path) as partial:
            partial.write_text(parts.pop("template").format(**parts), encoding="utf-8")
        return Path(path)


def find_hearts(mu: Tensor, y: Tensor, n_near: int = 10, n_wide: int = 20) -> dict[int, list[float]]:
    """The heart of each class: of its dots (n, 2), the one with most of its own class among its neighbours.

    Where at least nine of the ``n_near`` nearest dots, itself among them, are of its class, the wider neighbourhood
    decides. A median would not do: it may lie in another class.
    """
    n_wide = min(n_wide, len(mu))
    near = torch.cat([torch.cdist(part, mu).topk(n_wide, largest=False).indices for part in mu.split(1000)])
    own = (y[near] == y[:, None]).float()
    score = 100 * own[:, :n_near].sum(1).clamp(max=0.9 * n_near) + own.sum(1)
    return {c: mu[torch.where(y == c, score, -1).argmax()].tolist() for c in y.unique().tolist()}


def _walks(hearts: dict[int, list[float]], names: Sequence[str], latent_dim: int) -> dict[str, Tensor]:
    """Between the two nearest hearts, the two farthest, and around the circle that holds half of a plane's prior."""
    angle = torch.linspace(0, 2 * math.pi, 91)
    circle = math.sqrt(2 * math.log(2)) * torch.stack([angle.cos(), angle.sin()], dim=1)
    pairs = sorted(itertools.combinations(hearts, 2), key=lambda pair: math.dist(hearts[pair[0]], hearts[pair[1]]))
    ends = [*pairs[:1], *pairs[-1:]]
    straight = {f"from {names[a]} to {names[b]}": torch.tensor([hearts[a], hearts[b]]) for a, b in ends}
    return straight | ({"the 50 % circle": circle} if latent_dim == 2 else {})


@torch.no_grad()
def loss_quantiles(model: VAE, x: Tensor, mu: Tensor, logvar: Tensor) -> dict[str, list[float]]:
    """Quantiles of each term of the loss over the images, at equal steps from 0 to 1; recon by one draw for each."""
    generator, kl = torch.Generator().manual_seed(0), kl_per_dim(mu, logvar)
    recon = torch.cat([elbo_terms(model, part, generator=generator).recon for part in x.split(1000)])
    of_kl = {"kl_1": kl[:, 0], "kl_2": kl[:, 1]} if model.latent_dim == 2 else {"kl": kl.sum(1)}
    terms = of_kl | {"recon": recon, "neg_elbo": recon + kl.sum(1)}
    shares = torch.linspace(0, 1, QUANTILES).to(recon)
    return {name: value.quantile(shares).double().mul(100).round().div(100).tolist() for name, value in terms.items()}


def pack_networks(model: VAE) -> tuple[dict[str, list[dict[str, Any]]], bytes]:
    """The layers of both networks, and their weights as the front end reads them.

    Lists of layers under "encoder" and "decoder", where each tensor has its shape and scales; and the integers of all
    tensors in order, with their sign in the lowest bit: all low bytes, then all middle ones, then all high ones,
    because that compresses better.
    """
    kinds = type(model.likelihood), type(model.prior)
    if model.latent_dim < 2 or kinds != (Bernoulli, StandardNormal):
        found = f"latent_dim = {model.latent_dim}, {kinds[0].__name__} and {kinds[1].__name__}"
        raise ValueError(f"the explorer needs latent_dim >= 2, a Bernoulli likelihood and a N(0, I) prior, got {found}")
    integers: list[Tensor] = []
    networks = {
        name: [_pack_layer(where, layer, LARGEST[name], integers) for where, layer in _leaves(network, name)]
        for name, network in (("encoder", model.encoder), ("decoder", model.decoder))
    }
    values = torch.cat(integers).int()
    unsigned = torch.where(values < 0, -2 * values - 1, 2 * values).numpy().astype("<u4")
    return networks, unsigned.view("uint8").reshape(-1, 4)[:, :3].T.tobytes()


@torch.no_grad()
def check_layers(model: VAE, x: Tensor, z: Tensor) -> None:
    """Raise ``ValueError`` if the model computes anything but its layers in turn, at these images or codes.

    Hooks, parametrisations and methods of its own may change a forward pass, and none of them travels.
    """
    for name, network, value, computed in [
        ("encoder", model.encoder, x, torch.cat(model.encode(x), dim=1)),
        ("decoder", model.decoder, z, model.decode(z)),
    ]:
        for _, layer in _leaves(network, name):
            value = LAYERS[type_before_parametrizations(layer)](layer, value)
        value, computed = value.flatten(1), computed.flatten(1)
        if not torch.allclose(value, computed, rtol=1e-3, atol=1e-3):
            worst = (value - computed).abs().max()
            raise ValueError(
                f"the {name} does not compute what its layers do: up to {worst:.3g} lies between them. The explorer "
                f"takes weights from the layers and knows neither hooks nor a forward pass of the model's own"
            )


def _leaves(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """(name, layer) in the order of the forward pass; a Sequential may hold others."""
    if type(module) is not nn.Sequential:
        return [(name, module)]
    return [leaf for key, child in module.named_children() for leaf in _leaves(child, f"{name}.{key}")]


def _pack_layer(where: str, layer: Any, largest: int, integers: list[Tensor]) -> dict[str, Any]:
    """Describe one layer for the front end; its weights, as integers, are appended to ``integers``."""

    def pack(name: str) -> dict[str, Any]:
        value = getattr(layer, name).detach().cpu().double()
        if not value.isfinite().all():
            raise ValueError(f"{where}.{name} holds NaN or infinite values; the explorer needs finite weights")
        rows = value.reshape(1 if value.dim() == 1 else len(value), -1)
        scales = [float(f"{value / largest:.5g}") for value in rows.abs().amax(1).clamp(min=1e-30).tolist()]
        integers.append((rows / rows.new_tensor(scales)[:, None]).round().flatten())
        return {"shape": list(value.shape), "scales": scales}

    kind = type_before_parametrizations(layer)
    described: dict[str, Any] = {"type": kind.__name__}
    if kind in (nn.ReLU, nn.SiLU) or (kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)):
        return described
    if kind is nn.Unflatten and layer.dim == 1:
        return described | {"shape": list(layer.unflattened_size)}
    is_plain = kind is nn.Linear
    if kind in (nn.Conv2d, nn.ConvTranspose2d):
        is_plain = (
            len(set(layer.stride)) == len(set(layer.padding)) == 1  # no "same" or "valid" either
            and (layer.groups, layer.dilation, layer.padding_mode) == (1, (1, 1), "zeros")
            and not any(layer.output_padding)
        )
        described |= {"stride": layer.stride[0], "padding": layer.padding[0]}
    if not is_plain or layer.bias is None:
        raise ValueError(f"unsupported layer {where}: {layer}; the explorer runs {SUPPORTED}, with their plain options")
    return described | {"weight": pack("weight"), "bias": pack("bias")}
