import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from tme_utils.models import ARCHITECTURES, conv_vae, deterministic, mlp_vae, residual_vae
from tme_utils.training import fit

SMALL = {
    "mlp": lambda latent_dim=3: mlp_vae(latent_dim, hidden=(16,)),
    "conv": lambda latent_dim=3: conv_vae(latent_dim, channels=(2, 3), hidden=8),
    "residual": lambda latent_dim=3: residual_vae(latent_dim, channels=(2, 3), hidden=8),
}


@pytest.fixture(params=SMALL)
def model(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SMALL[request.param]()


def linear(n_in, n_out):
    return n_in * n_out + n_out


# --- architectures


def layers(network):
    return [
        (type(layer), layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else type(layer)
        for layer in network
    ]


def test_the_mlp_is_linear_relu_linear_both_ways():
    model = mlp_vae()
    assert layers(model.encoder) == [nn.Flatten, (nn.Linear, 784, 400), nn.ReLU, (nn.Linear, 400, 40)]
    assert layers(model.decoder) == [(nn.Linear, 20, 400), nn.ReLU, (nn.Linear, 400, 784), nn.Unflatten]


def test_the_mlp_computes_the_formula_of_the_handout(random_images, generator):
    model, x = mlp_vae(2, hidden=(8,)).double(), random_images(3, dtype=torch.float64)
    down, out = model.encoder[1], model.encoder[3]
    hidden = (x.reshape(3, 784) @ down.weight.T + down.bias).clamp(min=0)
    mu, logvar = model.encode(x)
    assert_close(torch.cat([mu, logvar], 1), hidden @ out.weight.T + out.bias)

    z = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    up, pixels = model.decoder[0], model.decoder[2]
    logits = (z @ up.weight.T + up.bias).clamp(min=0) @ pixels.weight.T + pixels.bias
    assert_close(model.decode(z), logits.reshape(3, 1, 28, 28))


def test_deeper_hidden_layers_are_mirrored():
    model = mlp_vae(2, hidden=(64, 32))
    assert [layer[1:] for layer in layers(model.encoder) if layer not in (nn.ReLU, nn.Flatten)] == [
        (784, 64),
        (64, 32),
        (32, 4),
    ]
    assert [layer[1:] for layer in layers(model.decoder) if layer not in (nn.ReLU, nn.Unflatten)] == [
        (2, 32),
        (32, 64),
        (64, 784),
    ]


def test_the_convolutional_sides_are_28_14_7_and_back(random_images):
    model = conv_vae(latent_dim=5, channels=(2, 3), hidden=8)
    sides = []
    for layer in [*model.encoder, *model.decoder]:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda _, inputs, output: sides.append((inputs[0].shape[-1], output.shape[-1])))
    model(random_images(2))
    assert sides == [(28, 14), (14, 7), (7, 14), (14, 28)]


def test_every_output_pixel_of_the_transposed_convolution_has_as_many_taps():
    found = [layer for layer in conv_vae(2).decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert len(found) == 2
    for layer in found:
        layer.weight.data.fill_(1 / layer.in_channels)
        layer.bias.data.zero_()
        taps = layer(torch.ones(1, layer.in_channels, 7, 7))[0, 0, 1:-1, 1:-1]
        assert torch.equal(taps, torch.full_like(taps, 4.0))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (mlp_vae(), 652_824),  # pytorch/examples' VAE has as many
        (mlp_vae(2), linear(784, 400) + linear(400, 4) + linear(2, 400) + linear(400, 784)),
        (
            conv_vae(),
            linear(16, 16)  # 1 channel by 4 by 4, to 16 channels
            + linear(16 * 16, 32)
            + linear(32 * 49, 256)
            + linear(256, 40)
            + linear(20, 256)
            + linear(256, 32 * 49)
            + (32 * 16 * 16 + 16)
            + (16 * 16 + 1),
        ),
    ],
    ids=["mlp", "mlp of 2 dimensions", "conv"],
)
def test_number_of_parameters(model, expected):
    assert model.n_parameters == expected
    assert model.n_parameters == sum(weights.numel() for weights in model.state_dict().values())


def test_config_tells_what_was_asked():
    assert mlp_vae(2, (8, 4)).config == {"architecture": "mlp", "latent_dim": 2, "hidden": [8, 4]}
    sizes = {"architecture": "conv", "latent_dim": 3, "channels": [2, 4], "hidden": 8}
    assert conv_vae(3, (2, 4), 8).config == sizes
    assert residual_vae(3, (2, 4), 8).config == sizes | {"architecture": "residual"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_known_by_the_name_in_its_config(name):
    assert ARCHITECTURES[name](2).config["architecture"] == name
    assert name in SMALL


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "20", None])
@pytest.mark.parametrize("builder", [mlp_vae, conv_vae, residual_vae])
def test_a_latent_dimension_that_is_no_positive_integer_is_named(builder, bad):
    with pytest.raises(ValueError, match=f"latent_dim .*got {bad!r}"):
        builder(latent_dim=bad)


@pytest.mark.parametrize("bad", [(0,), (400, -1), (2.5,), (True,), ("4",)])
def test_hidden_sizes_that_are_no_positive_integers_are_named(bad):
    with pytest.raises(ValueError, match=r"hidden .*got"):
        mlp_vae(hidden=bad)


@pytest.mark.parametrize(
    ("build", "name", "bad", "accepted"),
    [
        (mlp_vae, "hidden", 400, "a sequence of positive integers"),
        (conv_vae, "channels", (16,), "two positive integers"),
        (conv_vae, "channels", (16, 32, 64), "two positive integers"),
        (conv_vae, "channels", 16, "two positive integers"),
        (residual_vae, "hidden", (8,), "a positive integer"),
        (conv_vae, "latent_dim", (2,), "a positive integer"),
    ],
)
def test_sizes_of_another_number_are_named_beside_what_is_accepted(build, name, bad, accepted):
    with pytest.raises(ValueError, match=re.escape(f"{name} must be {accepted}, got {bad!r}")):
        build(**{name: bad})


@pytest.mark.parametrize("sizes", [{"channels": (0, 4)}, {"channels": (4, -4)}, {"hidden": 0}, {"hidden": 2.5}])
def test_convolutional_sizes_that_are_no_positive_integers_are_named(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))} .*got"):
        conv_vae(**sizes)


# --- shapes


@given(st.sampled_from(sorted(SMALL)), st.integers(1, 7), st.integers(1, 5))
def test_shapes_for_any_batch_and_latent_dimension(name, batch, latent_dim):
    model, x = SMALL[name](latent_dim), torch.rand(batch, 1, 28, 28)
    logits, mu, logvar = model(x)
    assert logits.shape == x.shape
    assert mu.shape == logvar.shape == (batch, latent_dim)
    assert model.reconstruct(x).shape == x.shape
    assert model.sample(batch).shape == x.shape
    assert model.latent_dim == latent_dim


@pytest.mark.parametrize("leading", [(), (1,), (0,), (4, 2), (2, 3, 4)])
def test_decode_keeps_leading_dimensions(model, leading):
    z = torch.linspace(-1, 1, 3 * math.prod(leading)).reshape(*leading, 3)
    logits = model.decode(z)
    assert logits.shape == (*leading, 1, 28, 28)
    assert_close(logits.reshape(-1, 1, 28, 28), model.decode(z.reshape(-1, 3)))


@pytest.mark.parametrize("shape", [(2, 784), (1, 28, 28), (2, 28, 28), (2, 3, 28, 28), (2, 1, 32, 32)])
def test_encode_names_a_wrong_shape(model, shape):
    with pytest.raises(ValueError, match=r"must have shape \(B, 1, 28, 28\), got"):
        model.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 2), (2, 4), (3, 1)])
def test_decode_names_a_wrong_shape(model, shape):
    with pytest.raises(ValueError, match=r"must end in latent_dim = 3, got"):
        model.decode(torch.zeros(shape))


# --- what the methods compute


def test_forward_decodes_a_drawn_code(model, random_images, generator):
    x = random_images(4)
    logits, mu, logvar = model(x, generator=generator(1))
    eps = torch.randn(4, 3, generator=generator(1))
    assert_close(logits, model.decode(mu + (0.5 * logvar).exp() * eps))
    assert not torch.allclose(logits, model.decode(mu))
    assert_close(model(x, eps=torch.zeros(4, 3))[0], model.decode(mu))


def test_reconstruct_goes_through_the_mean_and_is_deterministic(model, random_images):
    x = random_images(4)
    probs = model.reconstruct(x)
    assert torch.equal(probs, model.reconstruct(x))
    assert_close(probs, model.decode(model.encode(x)[0]).sigmoid().detach())
    assert not probs.requires_grad


def test_sample_is_repeated_by_its_generator(model, generator):
    first, again, other = (model.sample(5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad
    assert ((first > 0) & (first < 1)).all()


def test_sample_decodes_the_prior_and_not_reconstructions(model, generator):
    z = torch.randn(5, 3, generator=generator(1))
    assert_close(model.sample(5, generator(1)), model.decode(z).sigmoid().detach())


def test_float64(model, random_images, generator):
    model.double()
    x = random_images(2, dtype=torch.float64)
    results = [*model(x, generator=generator()), model.reconstruct(x), model.sample(2, generator())]
    assert {result.dtype for result in results} == {torch.float64}


@pytest.mark.parametrize("name", SMALL)
def test_state_dict_round_trip(name, random_images):
    torch.manual_seed(0)
    model, other, x = SMALL[name](), SMALL[name](), random_images(3)
    assert not torch.equal(model.reconstruct(x), other.reconstruct(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.reconstruct(x), other.reconstruct(x))


def test_gradients_reach_every_parameter(model, random_images, generator):
    logits, mu, logvar = model(random_images(8), generator=generator())
    (logits.square().sum() + mu.square().sum() + logvar.square().sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


# --- the auto-encoder without noise


@pytest.mark.parametrize("builder", [mlp_vae, conv_vae, residual_vae])
def test_a_deterministic_model_decodes_its_mean_whatever_the_noise(builder, random_images, generator):
    torch.manual_seed(0)
    model = deterministic(builder(3))
    x = random_images(4)
    logits, mu, logvar = model(x, generator=generator(1))
    assert_close(logits, model.decode(mu), rtol=0, atol=0)
    assert_close(logits, model(x, generator=generator(2))[0], rtol=0, atol=0)
    assert mu.shape == logvar.shape == (4, 3)


def test_a_deterministic_model_has_the_means_of_the_model_it_is_made_of(random_images):
    vae = mlp_vae(3)
    x = random_images(4)
    assert_close(deterministic(vae).encode(x)[0], vae.encode(x)[0], rtol=0, atol=0)


def test_a_deterministic_model_says_so_in_its_config():
    vae = mlp_vae(3)
    assert deterministic(vae).config == vae.config | {"architecture": "mlp_ae"}
    assert vae.config["architecture"] == "mlp"


def test_with_beta_0_a_deterministic_model_learns_to_rebuild(random_images):
    torch.manual_seed(0)
    model, x = deterministic(mlp_vae(5, hidden=(32,))), random_images(50)
    history = fit(model, x, x, 30, beta=0.0, progress=False)
    assert history.rows[-1]["train_recon"] < history.rows[0]["train_recon"] - 5
