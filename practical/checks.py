"""Checks of the practical: each says that something is wrong and, where it knows the mistake, which one.

A check looks at what a student's function does with tiny tensors in float64 and compares it with exact knowledge: 784
log 2 nats for even odds, no KL at the prior, rows that know nothing of one another, an integral, a gradient. No right
version is stored. `MISTAKES` holds wrong ones: a mistake is named only if its wrong version, looked at in the same way,
gives all the same numbers, and no other one does.
"""

import copy
import math
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

F64 = torch.float64
LOG_2 = math.log(2)
EVEN_ODDS = 784 * LOG_2  # nats for an image of 784 pixels, whatever it shows


class Mistake(NamedTuple):
    """A wrong version of what a part asks for, and two hints: where to look, and what it is."""

    part: str
    name: str
    wrong: object
    hint: str
    sharper: str


class About(NamedTuple):
    """A number that depends on random draws: two such numbers are the same within 0.1 and a tenth."""

    value: float

    def __repr__(self):
        """Show two digits."""
        return f"about {self.value:.2g}"


class NotYetError(AssertionError):
    """What a failed check raises: in a notebook its text alone is shown, without the lines of this file."""

    def _render_traceback_(self):
        return str(self).splitlines()


MISTAKES = []
_last = {"text": "No check has failed yet."}


def hint():
    """Print the sharper hint for the check that failed last."""
    print(_last["text"])


def mistake(part, name, hint, sharper):
    """Enter the decorated wrong version into the table."""

    def enter(wrong):
        MISTAKES.append(Mistake(part, name, wrong, hint, sharper))
        return wrong

    return enter


def table_of_mistakes():
    """Return all known mistakes with both hints as a Markdown table, for the teacher's page."""
    lines = ["| part | mistake | the check says | `checks.hint()` says |", "|---|---|---|---|"]
    lines += [f"| `{m.part}` | {m.name} | {m.hint} | {m.sharper} |" for m in MISTAKES]
    return "\n".join(lines)


# --- the machinery: look, compare with what must be, and search the table


def judge(part, look, given, praise):
    """Pass, or raise `NotYetError`: `look(given)` returns what was seen, and facts as (text, came, should)."""
    _last["text"] = "The last check passed: there is nothing to hint at."
    with seeded(0):  # the same numbers at every call, and none taken from those that a training will draw
        seen, facts = look(given)
        failed = next((fact for fact in facts if not same(fact[1], fact[2])), None)
        known = explanations(part, look, seen) if failed else []
    if failed is None:
        if praise:
            print(f"✓ {part}: {praise}")
        return
    text, came, should = failed
    errors = [value for value in (came if isinstance(came, list) else [came]) if isinstance(value, Exception)]
    if errors and not known:
        raise errors[0]
    lines = [f"{part} is not right yet: {text}", f"    came:       {show(came)}", f"    should be:  {show(should)}"]
    if len(known) == 1:
        lines += [f"→ {known[0].hint}", "  Still in the dark? Run checks.hint() in a new cell."]
        _last["text"] = known[0].sharper
    else:
        lines.append("→ No mistake that this sheet knows gives these numbers.")
        _last["text"] = f"No known mistake gives these numbers. Work this one out by hand, line by line: {text}."
    raise NotYetError("\n".join(lines))


def explanations(part, look, seen):
    """Return the known mistakes of a part that, looked at in the same way, show all that was seen."""
    return [m for m in MISTAKES if m.part == part and same(look(m.wrong)[0], seen)]


def same(a, b):
    """Whether two observations agree: numbers to seven digits, NaN with NaN, errors by type and text."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b) and str(a) == str(b)
    if isinstance(a, About) or isinstance(b, About):
        a, b = (v.value if isinstance(v, About) else v for v in (a, b))
        return a == b or (isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 0.1 * abs(b) + 0.1)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-7 * max(1, abs(a), abs(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def show(value):
    """A number, a list of them or a word, short enough to read."""
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value[:6])) + (", …]" if len(value) > 6 else "]")
    return f"{value:.6g}".replace("-", "−") if isinstance(value, float) else str(value)


def attempt(function, *arguments):
    """The result, or the error that was raised; a hole's own instruction goes through."""
    try:
        return function(*arguments)
    except NotImplementedError as hole:
        text = f"Still to be written: {hole}"
        hole._render_traceback_ = lambda: [text]  # what a notebook shows, instead of the way through this file
        raise
    except Exception as error:
        return error


def shape(value):
    """The shape of a tensor, or what else was returned."""
    if isinstance(value, Exception):
        return value
    return tuple(value.shape) if hasattr(value, "shape") else f"a {type(value).__name__} and not a tensor"


def numbers(value):
    """A tensor as a flat list of floats; anything else stays."""
    if isinstance(value, int | float):
        return [float(value)]
    return torch.as_tensor(value).detach().double().flatten().tolist() if hasattr(value, "shape") else shape(value)


def first(values):
    """The first number of a list."""
    return values[0] if isinstance(values, list) and values else values


class seeded:  # noqa: N801 - it reads as a verb
    """Within the block torch and NumPy draw from a seed; afterwards they go on as if nothing had been."""

    def __init__(self, seed):
        """Keep the seed."""
        self.seed = seed

    def __enter__(self):
        """Save the states and seed."""
        self.before, numpy = torch.get_rng_state(), sys.modules.get("numpy")
        torch.default_generator.manual_seed(self.seed)
        if numpy is not None:
            self.numpy_before = numpy.random.get_state()
            numpy.random.seed(self.seed)

    def __exit__(self, *_):
        """Give the states back."""
        torch.set_rng_state(self.before)
        if "numpy" in sys.modules and hasattr(self, "numpy_before"):
            sys.modules["numpy"].random.set_state(self.numpy_before)


def some(*size, seed=0):
    """The same normal numbers at every call, float64."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- part 0: images


def images(to_images):
    """Check `to_images(pixels)`: integers 0 to 255 become grey levels from 0 to 1."""
    judge("to_images", look_at_images, to_images, "float32, one channel, grey levels from 0 to 1")


def look_at_images(to_images):
    """Three images of four known grey levels."""
    pixels = torch.zeros(3, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 1], pixels[:, 0, 2], pixels[:, 0, 3] = 51, 200, 255
    x = attempt(to_images, pixels)
    seen = {"shape": shape(x), "type": str(getattr(x, "dtype", None)), "four": numbers(x)}
    seen["four"] = seen["four"][:4] if isinstance(seen["four"], list) else seen["four"]
    return seen, [
        ("three images of 28 by 28 pixels, their shape", seen["shape"], (3, 1, 28, 28)),
        ("the type of the numbers", seen["type"], "torch.float32"),
        ("pixels of 0, 51, 200 and 255", seen["four"], [0.0, *torch.tensor([0.2, 200 / 255, 1.0]).double().tolist()]),
    ]


@mistake(
    "to_images",
    "integers 0 to 255 kept",
    "The numbers have the right order, but not the right range: a probability is never above 1.",
    "The pixels are still counted from 0 to 255. The whitest one must become 1.",
)
def _(pixels):
    return pixels.unsqueeze(1).float()


@mistake(
    "to_images",
    "divided by 256",
    "The range is almost right: look at the largest number.",
    "255, not 256, is the largest value of a byte; full ink must become exactly 1.",
)
def _(pixels):
    return pixels.unsqueeze(1).float() / 256


@mistake(
    "to_images",
    "standardised to mean 0 and variance 1",
    "There are negative numbers. Could a pixel's target probability be one of them?",
    "The mean was subtracted and the spread divided out, as for a classifier. A Bernoulli's target stays in [0, 1].",
)
def _(pixels):
    return (pixels.unsqueeze(1).float() / 255 - 0.1307) / 0.3081


@mistake(
    "to_images",
    "scaled to −1 … 1",
    "Paper should be 0. Look at what an empty pixel became.",
    "The images run from −1 to 1, the range that goes with a tanh. A Bernoulli's target must run from 0 to 1.",
)
def _(pixels):
    return pixels.unsqueeze(1).float() / 127.5 - 1


@mistake(
    "to_images",
    "black and white",
    "Grey levels got lost: look at the pixel of 51.",
    "Every pixel was rounded or compared with a threshold. The handout asks for grey levels (*niveaux de gris*).",
)
def _(pixels):
    return (pixels.unsqueeze(1) > 127).float()


@mistake(
    "to_images",
    "integer division",
    "Grey levels got lost, all but full ink. Which kind of division was it?",
    "Only full ink is left. Integers divided as integers lose the rest: make the pixels floating point first.",
)
def _(pixels):
    return (pixels.unsqueeze(1) // 255).float()


@mistake(
    "to_images",
    "no axis for the channel",
    "The numbers may be right. Count the axes.",
    "An axis of length 1 for the single channel (grey) is missing behind the first one.",
)
def _(pixels):
    return pixels.float() / 255


@mistake(
    "to_images",
    "images flattened",
    "The numbers may be right. Look at how they are arranged.",
    "The images were laid out as rows of 784. They stay pictures here; the encoder flattens them itself.",
)
def _(pixels):
    return pixels.flatten(1).float() / 255


# --- part 1: encoder and decoder


def encoder(encoder_class):
    """Check `Encoder.forward`: (mu, logvar), straight from their layers, each image on its own."""
    judge("Encoder", look_at_encoder, encoder_class, "mu and logvar of every sign, a ReLU before them, rows apart")


def _fill(layer, weight, bias):
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.copy_(torch.as_tensor(bias, dtype=F64).expand_as(layer.bias))


def look_at_encoder(encoder_class):
    """Layers of known weights, so that what comes out is known."""
    with seeded(0):
        net = encoder_class(2).double()
    x = some(4, 1, 28, 28).sigmoid()

    def answer():
        out = attempt(net, x)
        if isinstance(out, Exception):
            return out, out
        if not isinstance(out, tuple) or len(out) != 2:
            return shape(out), shape(out)
        return out

    mu, logvar = answer()
    seen = {"shapes": [shape(mu), shape(logvar)]}
    alone = attempt(net, x[:1])
    seen["rows apart"] = isinstance(alone, tuple) and same(
        [numbers(part) for part in alone], [numbers(mu[:1]), numbers(logvar[:1])]
    )
    _fill(net.mu, 0, [-1.0, 2.0])
    _fill(net.logvar, 0, [-3.0, 0.5])
    mu, logvar = answer()
    seen |= {"mu": numbers(mu)[:2] if hasattr(mu, "shape") else mu}
    seen |= {"logvar": numbers(logvar)[:2] if hasattr(logvar, "shape") else logvar}
    _fill(net.mu, 1 / 400, 0.0)
    for bias in (-1.0, 2.0):
        _fill(net.hidden, 0, bias)
        seen[f"hidden {bias}"] = first(numbers(answer()[0]))
    return seen, [
        ("the shapes of mu and logvar for four images, latent_dim = 2", seen["shapes"], [(4, 2), (4, 2)]),
        ("the layer mu set to give (−1, 2) for every image: mu", seen["mu"], [-1.0, 2.0]),
        ("the layer logvar set to give (−3, 0.5): logvar", seen["logvar"], [-3.0, 0.5]),
        ("hidden units of −1 before the ReLU, averaged by the layer mu", seen["hidden -1.0"], 0.0),
        ("hidden units of 2 before the ReLU, averaged by the layer mu", seen["hidden 2.0"], 2.0),
        ("an image gets the same mu and logvar alone and among others", seen["rows apart"], True),
    ]


class EncoderLayers(nn.Module):
    """The layers of the sheet's encoder."""

    def __init__(self, latent_dim, hidden=400):
        """Make them."""
        super().__init__()
        self.hidden = nn.Linear(784, hidden)
        self.mu = nn.Linear(hidden, latent_dim)
        self.logvar = nn.Linear(hidden, latent_dim)

    def features(self, x):
        """The hidden units."""
        return F.relu(self.hidden(x.flatten(1)))


def _with_forward(layers):
    """Turn a function (net, input) into a class of these layers with that function as its forward."""
    return lambda forward: type("Wrong", (layers,), {"forward": forward})


def _wrong_encoder(name, hint, sharper):
    enter, to_class = mistake("Encoder", name, hint, sharper), _with_forward(EncoderLayers)
    return lambda forward: enter(to_class(forward))


@_wrong_encoder(
    "ReLU on mu",
    "A mean may lie anywhere on the line. Yours lost its sign.",
    "mu went through a ReLU. A mean is a location: its layer's output is it, with nothing after.",
)
def _(net, x):
    h = net.features(x)
    return F.relu(net.mu(h)), net.logvar(h)


@_wrong_encoder(
    "tanh on mu",
    "A mean may lie anywhere on the line. Yours cannot go beyond 1.",
    "mu went through a tanh. A mean is a location: its layer's output is it, with nothing after.",
)
def _(net, x):
    h = net.features(x)
    return net.mu(h).tanh(), net.logvar(h)


@_wrong_encoder(
    "sigmoid on mu",
    "A mean may lie anywhere on the line. Yours lies between 0 and 1.",
    "mu went through a sigmoid, which belongs to probabilities. Its layer's output is the mean, with nothing after.",
)
def _(net, x):
    h = net.features(x)
    return net.mu(h).sigmoid(), net.logvar(h)


@_wrong_encoder(
    "softplus on logvar",
    "A variance is positive. Must its logarithm be?",
    "logvar went through a softplus. The logarithm is there so that any real number will do: nothing after the layer.",
)
def _(net, x):
    h = net.features(x)
    return net.mu(h), F.softplus(net.logvar(h))


@_wrong_encoder(
    "ReLU on logvar",
    "A variance is positive. Must its logarithm be?",
    "logvar went through a ReLU: no variance below 1 is left, and an encoder needs them. Nothing after the layer.",
)
def _(net, x):
    h = net.features(x)
    return net.mu(h), F.relu(net.logvar(h))


@_wrong_encoder(
    "variance returned for its logarithm",
    "The second answer is positive and has the right size for something else. Read its name again.",
    "The exponential was taken here already: what is returned is σ², and the sheet asks for log σ² (*logsigma*).",
)
def _(net, x):
    h = net.features(x)
    return net.mu(h), net.logvar(h).exp()


@_wrong_encoder(
    "logarithm of the square of a raw output",
    "The second answer went through a function that forgets the sign.",
    "The layer's output was taken for σ and log(σ²) computed from it. Here it *is* log σ²: no logarithm is needed.",
)
def _(net, x):
    h = net.features(x)
    return net.mu(h), net.logvar(h).square().log()


@_wrong_encoder(
    "mu and logvar swapped",
    "Both numbers are there. In which order?",
    "logvar was returned first. Everything below unpacks `mu, logvar`.",
)
def _(net, x):
    h = net.features(x)
    return net.logvar(h), net.mu(h)


@_wrong_encoder(
    "one layer for both",
    "mu is right. Follow the other answer back to its layer.",
    "The second answer comes from the layer mu as well; the layer logvar is never used.",
)
def _(net, x):
    h = net.features(x)
    return net.mu(h), net.mu(h)


@_wrong_encoder(
    "no ReLU",
    "Negative hidden units came through.",
    "There is no ReLU between the two linear layers: without it both together are one linear map.",
)
def _(net, x):
    h = net.hidden(x.flatten(1))
    return net.mu(h), net.logvar(h)


@_wrong_encoder(
    "sigmoid in place of the ReLU",
    "Hidden units lie between 0 and 1.",
    "The hidden layer goes through a sigmoid; the sheet asks for a ReLU there.",
)
def _(net, x):
    h = net.hidden(x.flatten(1)).sigmoid()
    return net.mu(h), net.logvar(h)


@_wrong_encoder(
    "images not flattened",
    "The linear layer met something that has no 784 numbers in its last axis.",
    "The images came in as pictures, (B, 1, 28, 28). The layer wants rows, (B, 784).",
)
def _(net, x):
    h = F.relu(net.hidden(x))
    return net.mu(h), net.logvar(h)


def decoder(decoder_class):
    """Check `Decoder.forward`: logits of any sign, as pictures, each code on its own."""
    judge("Decoder", look_at_decoder, decoder_class, "logits of every sign, a ReLU before them, pictures row by row")


def look_at_decoder(decoder_class):
    """Layers of known weights, so that what comes out is known."""
    with seeded(0):
        net = decoder_class(2).double()
    z = some(4, 2)
    logits = attempt(net, z)
    seen = {"shape": shape(logits)}
    seen["rows apart"] = hasattr(logits, "shape") and same(numbers(attempt(net, z[:1])), numbers(logits[:1]))
    _fill(net.out, 0, torch.linspace(-5, 5, 784, dtype=F64))
    logits = numbers(attempt(net, z))
    seen["logits"] = [logits[i] for i in (0, 1, 28, 783)] if isinstance(logits, list) else logits
    _fill(net.out, 1 / 400, 0.0)
    for bias in (-1.0, 2.0):
        _fill(net.hidden, 0, bias)
        seen[f"hidden {bias}"] = first(numbers(attempt(net, z)))
    ramp = [-5 + 10 * i / 783 for i in (0, 1, 28, 783)]
    return seen, [
        ("the shape of the logits for four codes", seen["shape"], (4, 1, 28, 28)),
        ("the layer out set to give −5 … 5, pixels 0, 1, 28 and 783", seen["logits"], ramp),
        ("hidden units of −1 before the ReLU, averaged by the layer out", seen["hidden -1.0"], 0.0),
        ("hidden units of 2 before the ReLU, averaged by the layer out", seen["hidden 2.0"], 2.0),
        ("a code gets the same logits alone and among others", seen["rows apart"], True),
    ]


class DecoderLayers(nn.Module):
    """The layers of the sheet's decoder."""

    def __init__(self, latent_dim, hidden=400):
        """Make them."""
        super().__init__()
        self.hidden = nn.Linear(latent_dim, hidden)
        self.out = nn.Linear(hidden, 784)

    def features(self, z):
        """The hidden units."""
        return F.relu(self.hidden(z))


def _wrong_decoder(name, hint, sharper):
    enter, to_class = mistake("Decoder", name, hint, sharper), _with_forward(DecoderLayers)
    return lambda forward: enter(to_class(forward))


@_wrong_decoder(
    "sigmoid at the end",
    "These are probabilities. The sheet asks for what comes before them.",
    "A sigmoid ends the decoder. The cost below takes logits and applies it itself: it would be applied twice.",
)
def _(net, z):
    return net.out(net.features(z)).sigmoid().view(-1, 1, 28, 28)


@_wrong_decoder(
    "ReLU at the end",
    "A logit may have either sign. Which probability does a logit of 0 stand for?",
    "A ReLU ends the decoder: no pixel can be less probable than ½, so paper can never be white.",
)
def _(net, z):
    return F.relu(net.out(net.features(z))).view(-1, 1, 28, 28)


@_wrong_decoder(
    "tanh at the end",
    "A logit may be any number. Yours cannot go beyond 1.",
    "A tanh ends the decoder: probabilities would stay between 0.27 and 0.73. The last layer's output is the logits.",
)
def _(net, z):
    return net.out(net.features(z)).tanh().view(-1, 1, 28, 28)


@_wrong_decoder(
    "rows instead of pictures",
    "The numbers may be right. Look at how they are arranged.",
    "The logits are rows of 784; an image has the shape (1, 28, 28).",
)
def _(net, z):
    return net.out(net.features(z))


@_wrong_decoder(
    "no axis for the channel",
    "The numbers may be right. Count the axes.",
    "The pictures lack their channel axis, and (B, 28, 28) beside (B, 1, 28, 28) would broadcast silently.",
)
def _(net, z):
    return net.out(net.features(z)).view(-1, 28, 28)


@_wrong_decoder(
    "no ReLU",
    "Negative hidden units came through.",
    "There is no ReLU between the two linear layers: without it both together are one linear map.",
)
def _(net, z):
    return net.out(net.hidden(z)).view(-1, 1, 28, 28)


# --- part 2: the draw


def reparameterization(reparameterize):
    """Check `reparameterize(mu, logvar)`: mu + sigma ⊙ eps, new noise everywhere, gradients through both."""
    judge("reparameterize", look_at_draws, reparameterize, "right mean and spread, noise of its own for every number")


def _median(values):
    return values.flatten().sort().values[values.numel() // 2].item()


def look_at_draws(reparameterize):
    """Draws of the same noise with several means and widths, and what the gradients say."""

    def draw(mu, logvar, seed=0):
        with seeded(seed):
            return attempt(reparameterize, mu, logvar)

    n = 4000
    zero = torch.zeros(n, 3, dtype=F64)
    wide, narrow = torch.full_like(zero, math.log(4)), torch.full_like(zero, -2.0)
    mu = some(n, 3, seed=1)
    z = draw(zero, wide)
    seen = {"shape": shape(z)}
    facts = [("the shape of z for mu and logvar of shape (4000, 3)", seen["shape"], (n, 3))]
    if not hasattr(z, "shape") or z.shape != zero.shape:
        return seen, facts
    z = z.detach()
    seen["noise"] = "some" if z.abs().max().item() > 0 else "none"  # as mu is 0
    seen["rows share it"] = seen["noise"] == "some" and torch.equal(z, z[:1].expand_as(z))
    seen["columns share it"] = seen["noise"] == "some" and torch.equal(z, z[:, :1].expand_as(z))
    seen["anew"] = not torch.equal(draw(zero, wide, seed=2).detach(), z)
    certain = (draw(mu, torch.full_like(zero, -200.0)).detach() - mu).abs().max().item()
    seen["sigma 0"] = "mu" if certain < 1e-9 else "something else"
    seen["shift"] = (draw(mu, wide).detach() - z - mu).abs().max().item() < 1e-9
    one = draw(zero, zero).detach()  # σ = 1
    for name, wider in [("2", z), ("e⁻¹", draw(zero, narrow).detach())]:
        seen[f"factor {name}"] = _median(wider / one) if seen["noise"] == "some" else math.nan
    few = seen["rows share it"] or seen["noise"] == "none"
    seen["spread"] = "not known" if few else About(z.std().item())
    seen["mean"] = "not known" if few else About(z.mean().item())
    share = 100 * ((z - z.mean()).abs() > 2 * z.std()).double().mean().item()
    seen["tails"] = "not known" if few else "about 5 %" if 3 < share < 6.5 else f"about {share:.0f} %"
    mu_, logvar_ = mu[:5].clone().requires_grad_(), wide[:5].clone().requires_grad_()
    z_ = draw(mu_, logvar_)
    for name, leaf in [("mu", mu_), ("logvar", logvar_)]:
        grad = None
        if z_.requires_grad:
            (grad,) = torch.autograd.grad(z_.sum(), leaf, retain_graph=True, allow_unused=True)
        if grad is None:
            seen[f"gradient {name}"] = "cut"
        elif name == "mu":
            seen["gradient mu"] = _median(grad) if same(numbers(grad), [1.0] * 15) else "varies"
        else:  # in shares of the noise σε, of which it must be a half
            seen["gradient logvar"] = _median(grad / (z_ - mu_).detach())
    return seen, [
        *facts,
        ("σ = 0: z", seen["sigma 0"], "mu"),
        ("σ = 2: is there noise?", seen["noise"], "some"),
        ("all images get the same noise", seen["rows share it"], False),
        ("all coordinates of an image get the same noise", seen["columns share it"], False),
        ("a second call draws new noise", seen["anew"], True),
        ("another mu, with the same noise, moves z by the difference of the two", seen["shift"], True),
        ("how much wider the noise is at σ = 2 than at σ = 1", seen["factor 2"], 2.0),
        ("how much wider the noise is at σ = e⁻¹ than at σ = 1", seen["factor e⁻¹"], 1 / math.e),
        ("mu = 0, σ = 2: the standard deviation of 12,000 numbers z", seen["spread"], About(2.0)),
        ("mu = 0, σ = 2: their mean", seen["mean"], About(0.0)),
        ("mu = 0: the share of z beyond two standard deviations", seen["tails"], "about 5 %"),
        ("the derivative of z by mu", seen["gradient mu"], 1.0),
        ("the derivative of z by logvar, over z − mu", seen["gradient logvar"], 0.5),
    ]


@mistake(
    "reparameterize",
    "σ² for σ",
    "The noise has the wrong width. Compare it with σ, and with what the encoder gives you.",
    "The noise is scaled by the variance. logvar is log σ²: which power of e gives σ?",
)
def _(mu, logvar):
    return mu + logvar.exp() * torch.randn_like(mu)


@mistake(
    "reparameterize",
    "log σ² used as σ",
    "The noise has the wrong width: at σ = 1 there is none at all.",
    "logvar itself multiplies the noise. It is a logarithm: a step is missing.",
)
def _(mu, logvar):
    return mu + logvar * torch.randn_like(mu)


@mistake(
    "reparameterize",
    "2 log σ² in the exponent",
    "The noise has the wrong width: much too wide where σ is above 1.",
    "The exponent was multiplied where it should be halved: σ⁴ came out.",
)
def _(mu, logvar):
    return mu + (2 * logvar).exp() * torch.randn_like(mu)


@mistake(
    "reparameterize",
    "1/σ for σ",
    "The noise is wide where it should be narrow.",
    "There is a minus in the exponent that does not belong there.",
)
def _(mu, logvar):
    return mu + (-0.5 * logvar).exp() * torch.randn_like(mu)


@mistake(
    "reparameterize",
    "√(log σ²) for σ",
    "At σ = 1 there is no noise, and below it is not a number.",
    "A root was taken of logvar itself. Undo the logarithm first.",
)
def _(mu, logvar):
    return mu + logvar.sqrt() * torch.randn_like(mu)


@mistake(
    "reparameterize",
    "one noise vector for the whole batch",
    "Whose noise is it? Compare two images.",
    "One vector is drawn and broadcast over the batch. Every image needs its own: look at the shape of the noise.",
)
def _(mu, logvar):
    return mu + (0.5 * logvar).exp() * torch.randn(mu.shape[-1], dtype=mu.dtype)


@mistake(
    "reparameterize",
    "one number for all coordinates",
    "Compare two coordinates of one image.",
    "One number is drawn for each image and used for all its coordinates: look at the shape of the noise.",
)
def _(mu, logvar):
    return mu + (0.5 * logvar).exp() * torch.randn(len(mu), 1, dtype=mu.dtype)


@mistake(
    "reparameterize",
    "one number for everything",
    "All images and all coordinates move together.",
    "A single number is drawn for the whole batch: look at the shape of the noise.",
)
def _(mu, logvar):
    return mu + (0.5 * logvar).exp() * torch.randn(1, dtype=mu.dtype)


@mistake(
    "reparameterize",
    "noise not drawn anew",
    "Call it twice and compare.",
    "The noise is the same at every call: it is seeded inside, or drawn once outside. Draw it in here, without a seed.",
)
def _(mu, logvar):
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0), dtype=mu.dtype)
    return mu + (0.5 * logvar).exp() * eps


@mistake(
    "reparameterize",
    "uniform noise",
    "The noise is not centred on 0.",
    "The noise is uniform on [0, 1]. N(0, I) is asked for; torch's two functions differ by one letter.",
)
def _(mu, logvar):
    return mu + (0.5 * logvar).exp() * torch.rand_like(mu)


@mistake(
    "reparameterize",
    "uniform noise around 0",
    "The noise is too narrow, and it has no tails.",
    "The noise is uniform between −1 and 1. N(0, I) is asked for, for which torch has a function of its own.",
)
def _(mu, logvar):
    return mu + (0.5 * logvar).exp() * (2 * torch.rand_like(mu) - 1)


@mistake(
    "reparameterize",
    "no noise",
    "Where is the draw?",
    "z is mu: nothing random is in it. The handout's last step, σ ⊙ ε, is missing.",
)
def _(mu, logvar):
    return mu + 0 * logvar


@mistake(
    "reparameterize",
    "mu forgotten",
    "With σ = 0 the draw must be mu.",
    "Only the noise is returned. It has to be added to something.",
)
def _(mu, logvar):
    return 0 * mu + (0.5 * logvar).exp() * torch.randn_like(mu)


@mistake(
    "reparameterize",
    "bracket around mu + σ",
    "With σ = 0 the draw must be mu. Think of which factor belongs to the noise.",
    "mu is multiplied by the noise as well: there is a bracket too many, or one in the wrong place.",
)
def _(mu, logvar):
    return (mu + (0.5 * logvar).exp()) * torch.randn_like(mu)


@mistake(
    "reparameterize",
    "σ added to the noise",
    "With σ = 0 the draw must be mu: no noise may be left.",
    "σ is added to the noise. It has to multiply it.",
)
def _(mu, logvar):
    return mu + (0.5 * logvar).exp() + torch.randn_like(mu)


@mistake(
    "reparameterize",
    "gradient cut",
    "The values are right. Now think of the way back: can a gradient pass?",
    "The graph is cut: by .data, .detach(), .item(), no_grad, or a sampler like torch.normal, through which no "
    "gradient passes. Only ε may be drawn; the rest is arithmetic.",
)
def _(mu, logvar):
    return (mu + (0.5 * logvar).exp() * torch.randn_like(mu)).detach()


@mistake(
    "reparameterize",
    "gradient of σ cut",
    "The values are right, and mu learns. Does σ?",
    "σ was taken out of the graph (.data, .detach(), .item() or no_grad): the encoder could never learn its widths.",
)
def _(mu, logvar):
    return mu + (0.5 * logvar.detach()).exp() * torch.randn_like(mu)


@mistake(
    "reparameterize",
    "gradient of mu cut",
    "The values are right, and σ learns. Does mu?",
    "mu was taken out of the graph (.data, .detach(), .item() or no_grad): the encoder could never learn its means.",
)
def _(mu, logvar):
    return mu.detach() + (0.5 * logvar).exp() * torch.randn_like(mu)


# --- part 3: the KL divergence


def divergence(kl_divergence):
    """Check `kl_divergence(mu, logvar)`: one number per image, 0 at the prior, the integral elsewhere."""
    judge("kl_divergence", look_at_kl, kl_divergence, "0 at the prior, the integral of its definition elsewhere")


def _kl_by_integration(mu, logvar):
    """The integral of q log(q / p) over a grid, coordinate by coordinate: no closed form is used."""
    z = torch.linspace(-20, 20, 2001, dtype=F64)
    total = torch.zeros(len(mu), dtype=F64)
    for mean, sigma in zip(mu.T, (logvar.T / 2).exp(), strict=True):
        q = torch.distributions.Normal(mean[:, None], sigma[:, None]).log_prob(z)
        p = torch.distributions.Normal(torch.zeros(1, dtype=F64), 1).log_prob(z)
        total += (q.exp() * (q - p)).sum(1) * (z[1] - z[0])
    return total


def look_at_kl(kl_divergence):
    """At the prior, with one part of q moved, and anywhere."""
    mu = torch.tensor([[0.5, -1.0, 0.2], [1.5, 0.3, -0.7], [-0.4, 0.1, 0.9], [2.0, -0.6, 0.0]], dtype=F64)
    logvar = torch.tensor([[-1.0, 0.4, 0.1], [0.7, -0.3, -2.0], [0.2, -0.5, 1.1], [-1.6, 0.8, 0.3]], dtype=F64)
    mu_ = mu.clone().requires_grad_()
    kl = attempt(kl_divergence, mu_, logvar)
    seen = {"shape": shape(kl), "values": numbers(kl)}
    zero = torch.zeros(2, 2, dtype=F64)
    seen["prior"] = numbers(attempt(kl_divergence, zero, zero))
    seen["moved"] = numbers(attempt(kl_divergence, torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=F64), zero))
    seen["wide"] = numbers(attempt(kl_divergence, zero, zero + math.log(4)))
    passes = hasattr(kl, "requires_grad") and kl.requires_grad
    seen["gradient"] = "passes" if passes else "cut"
    return seen, [
        ("the shape for four images with three coordinates: one number per image", seen["shape"], (4,)),
        ("two images whose q is the prior", seen["prior"], [0.0, 0.0]),
        ("σ = 1, mu = (1, −2) and (3, 4)", seen["moved"], [2.5, 12.5]),
        ("mu = 0, σ = 2 in two coordinates: 3 − log 4, twice", seen["wide"], [3 - math.log(4)] * 2),
        ("four other Gaussians, against the integral", seen["values"], numbers(_kl_by_integration(mu, logvar))),
        ("the gradient", seen["gradient"], "passes"),
    ]


@mistake(
    "kl_divergence",
    "sign",
    "A KL divergence is never negative. Yours always is.",
    "This is minus the KL: the form in which it stands in the ELBO. The handout's ½ has a sign before it.",
)
def _(mu, logvar):
    return 0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)


@mistake(
    "kl_divergence",
    "½ forgotten",
    "Everything has the right form. Compare the sizes.",
    "Everything is twice too large: a factor is missing.",
)
def _(mu, logvar):
    return -(1 + logvar - mu.square() - logvar.exp()).sum(1)


@mistake(
    "kl_divergence",
    "sign, and ½ forgotten",
    "A KL divergence is never negative. Yours always is, and the size is wrong too.",
    "Both the sign and the ½ before the sum are missing.",
)
def _(mu, logvar):
    return (1 + logvar - mu.square() - logvar.exp()).sum(1)


@mistake(
    "kl_divergence",
    "the 1 forgotten",
    "At the prior nothing must be left.",
    "A constant is missing in the bracket: at the prior its terms do not cancel.",
)
def _(mu, logvar):
    return -0.5 * (logvar - mu.square() - logvar.exp()).sum(1)


@mistake(
    "kl_divergence",
    "mean over the coordinates",
    "One number per image, but the wrong size. How do independent coordinates combine?",
    "The coordinates were averaged. Information adds up: the KL of independent coordinates is their sum.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).mean(1)


@mistake(
    "kl_divergence",
    "summed over the batch too",
    "One number came for all images together.",
    "The sum runs over the images as well. Name the axis of the coordinates.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()


@mistake(
    "kl_divergence",
    "averaged over everything",
    "One number came for all images together, and a small one.",
    "Both axes were averaged: the coordinates must be summed, and the images left alone.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).mean()


@mistake(
    "kl_divergence",
    "averaged over the batch here",
    "The coordinates are summed; then one number came for all images.",
    "The mean over the batch belongs to the loss, in part 5. Here every image keeps its number.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()


@mistake(
    "kl_divergence",
    "wrong axis",
    "Count: there are four images and three coordinates.",
    "The sum runs over the images and leaves the coordinates: it is the other axis.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(0)


@mistake(
    "kl_divergence",
    "not summed",
    "Every coordinate kept its own number.",
    "The sum over the coordinates is missing.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu.square() - logvar.exp())


@mistake(
    "kl_divergence",
    "σ for σ²",
    "Means are priced rightly, widths are not. At σ = 2, which of your terms is which?",
    "The last term is σ where the formula has σ²: logvar was halved in the exponent, as for a draw.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu.square() - (0.5 * logvar).exp()).sum(1)


@mistake(
    "kl_divergence",
    "log σ for log σ²",
    "Means are priced rightly, widths are not. At σ = 2, which of your terms is which?",
    "logvar was halved outside the exponential: it is log σ² already, as the formula asks.",
)
def _(mu, logvar):
    return -0.5 * (1 + 0.5 * logvar - mu.square() - logvar.exp()).sum(1)


@mistake(
    "kl_divergence",
    "logvar taken for log σ",
    "Means are priced rightly, widths are not. At σ = 2, which of your terms is which?",
    "logvar was treated as log σ and doubled. It is log σ² already (*logsigma*).",
)
def _(mu, logvar):
    return -0.5 * (1 + 2 * logvar - mu.square() - (2 * logvar).exp()).sum(1)


@mistake(
    "kl_divergence",
    "logvar taken for σ²",
    "The widths are priced by the wrong quantity: at logvar = 0 something explodes.",
    "logvar was used as the variance, and its logarithm taken. It is a logarithm already.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar.log() - mu.square() - logvar).sum(1)


@mistake(
    "kl_divergence",
    "σ² without its exponential",
    "The widths cost nothing at all.",
    "In the last place stands logvar, not its exponential: it cancels the term before.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu.square() - logvar - 1).sum(1)


@mistake(
    "kl_divergence",
    "mu not squared",
    "Moving the mean to one side must cost as much as to the other.",
    "mu stands in the formula without its square.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - mu - logvar.exp()).sum(1)


@mistake(
    "kl_divergence",
    "mu² with the wrong sign",
    "Moving the mean away from 0 must cost something. Here it earns.",
    "The sign before μ² is wrong: read the bracket term by term.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar + mu.square() - logvar.exp()).sum(1)


@mistake(
    "kl_divergence",
    "mu forgotten",
    "Moving the mean costs nothing.",
    "The term with mu is missing.",
)
def _(mu, logvar):
    return -0.5 * (1 + logvar - logvar.exp()).sum(1) + 0 * mu.sum(1)


@mistake(
    "kl_divergence",
    "the other direction, KL(p ‖ q)",
    "It is a divergence, of the same two densities. In which order?",
    "This is KL(p ‖ q). A KL divergence is not symmetric: the expectation is to be taken under q.",
)
def _(mu, logvar):
    return 0.5 * (logvar - 1 + (1 + mu.square()) / logvar.exp()).sum(1)


@mistake(
    "kl_divergence",
    "gradient cut",
    "The values are right. Can a gradient pass?",
    "The graph is cut (.data, .detach(), .item() or no_grad): the penalty would penalise nobody.",
)
def _(mu, logvar):
    return (-0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)).detach()


# --- part 4: the likelihood


def cost(reconstruction_cost):
    """Check `reconstruction_cost(logits, x)`: −log p(x|z) of each image, from logits, in nats."""
    judge("reconstruction_cost", look_at_cost, reconstruction_cost, "784 log 2 for even odds, the entropy as its floor")


def look_at_cost(reconstruction_cost):
    """Even odds, certainty, a target that is its own probability, and one pixel that is surely wrong."""
    x = some(3, 1, 28, 28).sigmoid()
    black_and_white = x.round()
    sure = 100 * black_and_white - 50  # logits of ±50
    surprised = sure.clone()
    black_and_white[:, 0, 5, 5], surprised[:, 0, 5, 5] = 1, -200
    even = attempt(reconstruction_cost, 0 * x, x)
    seen = {"shape": shape(even), "even": numbers(even)}
    seen["sure"] = numbers(attempt(reconstruction_cost, sure, x.round()))
    seen["floor"] = numbers(attempt(reconstruction_cost, torch.logit(x), x))
    seen["surprised"] = numbers(attempt(reconstruction_cost, surprised, black_and_white))
    logits = some(3, 1, 28, 28, seed=1).requires_grad_()
    out = attempt(reconstruction_cost, logits, x)
    seen["gradient"] = "cut"
    if hasattr(out, "requires_grad") and out.requires_grad:
        seen["gradient"] = numbers(torch.autograd.grad(out.sum(), logits)[0])[:3]
    entropy = -(x * x.log() + (1 - x) * (1 - x).log()).sum((1, 2, 3))
    slope = numbers(logits.sigmoid() - x)[:3]
    return seen, [
        ("the shape for three images: one number per image", seen["shape"], (3,)),
        ("logits 0, even odds for every pixel: 784 log 2", seen["even"], [EVEN_ODDS] * 3),
        ("logits of ±50, all right", seen["sure"], [0.0] * 3),
        ("the probabilities are the grey levels themselves: their entropy", seen["floor"], numbers(entropy)),
        ("all surely right but one pixel, logit −200 where there is ink", seen["surprised"], [200.0] * 3),
        ("the gradient by the first logits: probability − grey level", seen["gradient"], slope),
    ]


def _bce(logits, x, **options):
    return F.binary_cross_entropy_with_logits(logits, x, **options)


@mistake(
    "reconstruction_cost",
    "mean over the pixels",
    "One number per image, 784 times too small.",
    "The pixels were averaged. Log-likelihoods of independent pixels add up; only then do both terms of the loss have "
    "the same unit.",
)
def _(logits, x):
    return _bce(logits, x, reduction="none").mean((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "mean over everything",
    "One small number came for the whole batch: the function's own default.",
    "The cross-entropy averages over pixels and images unless it is told otherwise: look at its argument `reduction`.",
)
def _(logits, x):
    return _bce(logits, x)


@mistake(
    "reconstruction_cost",
    "sum over everything",
    "One large number came for the whole batch.",
    "The sum runs over the images as well. Keep one number per image; the batch is averaged in part 5.",
)
def _(logits, x):
    return _bce(logits, x, reduction="sum")


@mistake(
    "reconstruction_cost",
    "averaged over the batch here",
    "The pixels are summed; then one number came for all images.",
    "The mean over the batch belongs to the loss, in part 5. Here every image keeps its number.",
)
def _(logits, x):
    return _bce(logits, x, reduction="sum") / len(x)


@mistake(
    "reconstruction_cost",
    "wrong axes",
    "Count the images, and the numbers that came.",
    "The sum runs over the axis of the images. It must run over the three others.",
)
def _(logits, x):
    return _bce(logits, x, reduction="none").sum(0)


@mistake(
    "reconstruction_cost",
    "not summed",
    "Every pixel kept its own number.",
    "The sum over the pixels is missing.",
)
def _(logits, x):
    return _bce(logits, x, reduction="none")


@mistake(
    "reconstruction_cost",
    "summed over one axis of pixels only",
    "Some pixels were summed, not all: count the axes that are left.",
    "A picture has three axes, channel, row and column: all three are summed over.",
)
def _(logits, x):
    return _bce(logits, x, reduction="none").sum(1)


@mistake(
    "reconstruction_cost",
    "sigmoid twice",
    "Logits of ±50 are certainty, and right. Yet they cost: who was told ½ where 0 was meant?",
    "A sigmoid was applied to the logits, and the function with `with_logits` applies another one.",
)
def _(logits, x):
    return _bce(logits.sigmoid(), x, reduction="none").sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "probabilities meant, logits given",
    "The function refused numbers outside [0, 1].",
    "This cross-entropy takes probabilities, and logits were given. There is a version that takes logits.",
)
def _(logits, x):
    return F.binary_cross_entropy(logits, x, reduction="none").sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "through a rounded probability",
    "Almost everything is right. Only the very surprised pixel costs too little.",
    "The logits became probabilities first, and the logarithm of almost 0 was cut at −100: no gradient comes from "
    "there. Take the function that takes logits.",
)
def _(logits, x):
    return F.binary_cross_entropy(logits.sigmoid(), x, reduction="none").sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "logarithm of 0",
    "Where the decoder is certain, the result is not a number.",
    "The logits became probabilities, rounded to 1, and 0 · log 0 was computed. Take the function that takes logits.",
)
def _(logits, x):
    p = logits.sigmoid()
    return -(x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "squared error",
    "At even odds the price must not depend on the image. Yours does.",
    "This is a squared error: the likelihood of a Gaussian with a fixed width. The sheet asks for a Bernoulli.",
)
def _(logits, x):
    return (logits.sigmoid() - x).square().sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "squared error on logits",
    "At even odds the price must not depend on the image. Yours does.",
    "The logits themselves were compared with the image, by a squared error. The sheet asks for a Bernoulli.",
)
def _(logits, x):
    return (logits - x).square().sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "paper forgotten",
    "At even odds white pixels cost as much as black ones. Yours are free.",
    "Only x log π was summed. A Bernoulli has a second term, for paper.",
)
def _(logits, x):
    return -(x * F.logsigmoid(logits)).sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "sign",
    "The size is right. A cost is never negative.",
    "This is the log-likelihood. The loss needs minus it.",
)
def _(logits, x):
    return -_bce(logits, x, reduction="none").sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "arguments swapped",
    "Who is the target?",
    "The image and the logits changed places: the first argument is the prediction.",
)
def _(logits, x):
    return _bce(x, logits, reduction="none").sum((1, 2, 3))


@mistake(
    "reconstruction_cost",
    "gradient cut",
    "The values are right. Can a gradient pass?",
    "The graph is cut (.data, .detach(), .item() or no_grad): the decoder would learn nothing.",
)
def _(logits, x):
    return _bce(logits, x, reduction="none").sum((1, 2, 3)).detach()


# --- part 5: loss and training


class Toy(nn.Module):
    """A VAE of which everything is known: mu is `means(x)`, σ is 1, all logits are 0; it writes down what it is asked.

    recon is 784 log 2 for every image, and the KL half the squared length of mu.
    """

    latent_dim = 2

    def __init__(self, means, start=1.0):
        """Begin with the parameter `start`, which `means(x, parameter)` may use."""
        super().__init__()
        self.a = nn.Parameter(torch.tensor(start, dtype=F64))
        self.means, self.batches, self.codes, self.n_backward = means, [], [], 0
        self.a.register_hook(self._count)

    def _count(self, grad):
        self.n_backward += 1
        return grad

    def encoder(self, x):
        """Mu and logvar of the images, of which the first pixels are written down."""
        self.batches.append(x[:, 0, 0, 0].tolist())
        self.mu = self.means(x, self.a)
        return self.mu, torch.zeros_like(self.mu)

    def decoder(self, z):
        """Logits 0, whatever the code."""
        self.codes.append("mu" if torch.equal(z, self.mu) else "a draw")
        return (0 * z.sum(1)).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    def terms(self, x, noise=1.0):
        """Both terms of each image, for the wrong versions."""
        mu, logvar = self.encoder(x)
        self.decoder(mu + noise * torch.randn_like(mu))
        return torch.full((len(x),), EVEN_ODDS, dtype=F64), 0.5 * mu.square().sum(1) + 0 * logvar.sum()

    def loss(self, x):
        """The loss, for the wrong loops."""
        recon, kl = self.terms(x)
        return (recon + kl).mean()


def numbered(n):
    """`n` empty images; the first pixel of each is its number."""
    x = torch.zeros(n, 1, 28, 28, dtype=F64)
    x[:, 0, 0, 0] = torch.arange(n)
    return x


def loss(negative_elbo):
    """Check `negative_elbo(model, x)`: the mean over the batch of both terms."""
    judge("negative_elbo", look_at_loss, negative_elbo, "both terms in nats per image, z drawn, the same for any batch")


def look_at_loss(negative_elbo):
    """Three images whose KL is 0, 2.5 and 12.5 nats, once and twice."""
    places = torch.tensor([[0.0, 0.0], [1.0, -2.0], [3.0, 4.0]], dtype=F64)
    model = Toy(lambda x, a: a * places[x[:, 0, 0, 0].long()])
    x = numbered(3)
    value = attempt(negative_elbo, model, x)
    seen = {"shape": shape(value), "value": first(numbers(value)), "decoded": model.codes[-1:]}
    seen["twice"] = first(numbers(attempt(negative_elbo, model, x.repeat(2, 1, 1, 1))))
    seen["gradient"] = "cut"
    if hasattr(value, "requires_grad") and value.requires_grad and value.dim() == 0:
        (grad,) = torch.autograd.grad(value, model.a, allow_unused=True)
        seen["gradient"] = "cut" if grad is None else grad.item()
    return seen, [
        ("the loss is one number: its shape", seen["shape"], ()),
        ("recon 784 log 2 each, KL 0, 2.5 and 12.5: the loss", seen["value"], EVEN_ODDS + 5),
        ("the same three images twice in the batch", seen["twice"], EVEN_ODDS + 5),
        ("what is decoded", seen["decoded"], ["a draw"]),
        ("the gradient of the loss by a factor on all means", seen["gradient"], 10.0),
    ]


def _wrong_loss(name, hint, sharper):
    return mistake("negative_elbo", name, hint, sharper)


@_wrong_loss(
    "KL subtracted",
    "Both terms are costs.",
    "The KL was subtracted: the loss would reward codes far from the prior, without end.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return (recon - kl).mean()


@_wrong_loss(
    "minus the loss",
    "The size is right. Which way does an optimiser go?",
    "This is the ELBO. An optimiser minimises: give it minus that.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return -(recon + kl).mean()


@_wrong_loss(
    "KL forgotten",
    "Something costs nothing here.",
    "Only the reconstruction is left: this is an auto-encoder, and nothing ties its codes to the prior.",
)
def _(model, x):
    return model.terms(x)[0].mean() + 0 * model.mu.sum()


@_wrong_loss(
    "reconstruction forgotten",
    "The price of 784 pixels is missing.",
    "Only the KL is left: the best encoder would then say nothing.",
)
def _(model, x):
    return model.terms(x)[1].mean()


@_wrong_loss(
    "sum over the batch",
    "The same images twice must not cost more per image.",
    "The images were summed. The loss is a mean over the batch, so that it does not depend on the batch's size.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return (recon + kl).sum()


@_wrong_loss(
    "recon averaged, KL summed over the batch",
    "One of the two terms grows with the batch, and the other does not.",
    "The KL is summed over the images beside a mean of the reconstruction: with 128 images it weighs 128 times.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return recon.mean() + kl.sum()


@_wrong_loss(
    "recon summed, KL averaged over the batch",
    "One of the two terms grows with the batch, and the other does not.",
    "The reconstruction is summed over the images beside a mean of the KL: with 128 images the KL all but vanishes.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return recon.sum() + kl.mean()


@_wrong_loss(
    "recon averaged over the pixels too",
    "One of the two terms is far too small.",
    "The reconstruction was divided by the 784 pixels once more: the KL then weighs 784 times, and the code dies.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return recon.mean() / 784 + kl.mean()


@_wrong_loss(
    "KL divided by the batch size again",
    "One of the two terms is too small, the more so the larger the batch.",
    "The KL was averaged over the batch and divided by its size once more.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return recon.mean() + kl.mean() / len(x)


@_wrong_loss(
    "KL divided by the pixels",
    "One of the two terms is too small, by a factor that you know.",
    "The KL was divided by 784. Both terms are sums, in nats per image: neither is divided by the number of pixels.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return recon.mean() + kl.mean() / 784


@_wrong_loss(
    "decoded at mu",
    "What did the decoder get? Compare with what part 2 draws.",
    "The decoder got mu, not a draw: an expectation under q was replaced by the value at its centre.",
)
def _(model, x):
    recon, kl = model.terms(x, noise=0.0)
    return (recon + kl).mean()


@_wrong_loss(
    "not averaged",
    "Every image kept its own number. An optimiser needs one.",
    "The mean over the batch is missing.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return recon + kl


@_wrong_loss(
    "a Python number",
    "The value is right, but it has forgotten where it came from.",
    "A float was returned (.item(), float()): it has no graph, and backward() has nothing to go through.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return (recon + kl).mean().item()


@_wrong_loss(
    "gradient of the KL cut",
    "The value is right. Does the encoder feel the penalty?",
    "A term was taken out of the graph (.data, .detach(), .item() or no_grad): it counts, but it teaches nothing.",
)
def _(model, x):
    recon, kl = model.terms(x)
    return (recon + kl.detach() + 0 * kl).mean()


class Descent:
    """Plain gradient descent, with the two methods of an optimiser."""

    def __init__(self, parameters, lr):
        """Keep what is to be moved."""
        self.parameters, self.lr = list(parameters), lr

    def zero_grad(self, set_to_none=True):
        """Empty the gradients."""
        for parameter in self.parameters:
            parameter.grad = None if set_to_none else 0 * parameter.detach()

    def step(self):
        """Go downhill."""
        with torch.no_grad():
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter -= self.lr * parameter.grad


def epoch(train_epoch):
    """Check `train_epoch(model, optimizer, x, batch_size)`: every image once, in a new order, one step a batch."""
    judge("train_epoch", look_at_epoch, train_epoch, "every image once, in a new order, one clean step for each batch")


def look_at_epoch(train_epoch):
    """Ten numbered images in batches of four; a step of gradient descent multiplies the one parameter by 0.9."""
    model, x = Toy(lambda x, a: a * torch.tensor([[1.0, 0.0]], dtype=F64).expand(len(x), 2)), numbered(10)
    optimizer = Descent(model.parameters(), lr=0.1)
    orders = []
    for seed in (0, 1):
        model.batches = []
        with seeded(seed):
            out = attempt(train_epoch, model, optimizer, x, 4)
        if isinstance(out, Exception):
            return {"error": out}, [("one epoch over ten images", out, "no error")]
        orders.append([i for batch in model.batches for i in batch])
        if seed == 0:
            seen = {"sizes": [len(batch) for batch in model.batches], "backward": model.n_backward, "a": model.a.item()}
    seen["each once"] = sorted(orders[0]) == [float(i) for i in range(10)]
    seen["in the file's order"] = orders[0] == [float(i) for i in range(len(orders[0]))]
    seen["new order"] = orders[0] != orders[1]
    seen["left"] = model.a.grad is not None if seen["a"] == 1 else "not asked"
    return seen, [
        ("ten images in batches of four: the sizes of the batches", seen["sizes"], [4, 4, 2]),
        ("every image is seen exactly once", seen["each once"], True),
        ("the images come in the order of the file", seen["in the file's order"], False),
        ("a second epoch has another order", seen["new order"], True),
        ("how often a gradient was computed", seen["backward"], 3),
        ("a parameter that each step should multiply by 0.9, after three steps", seen["a"], 0.9**3),
    ]


def _batches(x, batch_size):
    return x[torch.randperm(len(x))].split(batch_size)


@mistake(
    "train_epoch",
    "zero_grad forgotten",
    "The steps grow: something from the steps before is still there.",
    "backward() adds to the gradients it finds. They have to be emptied before each step.",
)
def _(model, optimizer, x, batch_size=4):
    optimizer.zero_grad()
    for batch in _batches(x, batch_size):
        model.loss(batch).backward()
        optimizer.step()


@mistake(
    "train_epoch",
    "step forgotten",
    "Gradients were computed, and nothing moved.",
    "The optimiser was never asked to make its step.",
)
def _(model, optimizer, x, batch_size=4):
    for batch in _batches(x, batch_size):
        optimizer.zero_grad()
        model.loss(batch).backward()


@mistake(
    "train_epoch",
    "backward forgotten",
    "Nothing moved, and no gradient was computed.",
    "The loss was computed but not differentiated: one call is missing between the loss and the step.",
)
def _(model, optimizer, x, batch_size=4):
    for batch in _batches(x, batch_size):
        optimizer.zero_grad()
        model.loss(batch)
        optimizer.step()


@mistake(
    "train_epoch",
    "gradients emptied before the step",
    "A gradient was computed for every batch, and nothing moved: look at the order of the three calls.",
    "The gradients are emptied between backward() and step(): the step finds none.",
)
def _(model, optimizer, x, batch_size=4):
    for batch in _batches(x, batch_size):
        model.loss(batch).backward()
        optimizer.zero_grad()
        optimizer.step()


@mistake(
    "train_epoch",
    "step before backward",
    "The parameter is one step behind: look at the order of the three calls.",
    "The step is made before the gradient of its batch is there.",
)
def _(model, optimizer, x, batch_size=4):
    for batch in _batches(x, batch_size):
        value = model.loss(batch)
        optimizer.step()
        optimizer.zero_grad()
        value.backward()


@mistake(
    "train_epoch",
    "return inside the loop",
    "The epoch ended too early: count the batches.",
    "A return (or a break) stands inside the loop over the batches: only the first is seen.",
)
def _(model, optimizer, x, batch_size=4):
    for batch in _batches(x, batch_size):
        optimizer.zero_grad()
        model.loss(batch).backward()
        return optimizer.step()


@mistake(
    "train_epoch",
    "step outside the loop",
    "A gradient was computed for every batch, but the parameter moved once.",
    "The step stands behind the loop: it must be made for every batch.",
)
def _(model, optimizer, x, batch_size=4):
    for batch in _batches(x, batch_size):
        optimizer.zero_grad()
        model.loss(batch).backward()
    optimizer.step()


@mistake(
    "train_epoch",
    "last batch dropped",
    "Two images were never seen.",
    "The last, smaller batch is left out: the number of batches was rounded down.",
)
def _(model, optimizer, x, batch_size=4):
    for batch in _batches(x, batch_size)[: len(x) // batch_size]:
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()


@mistake(
    "train_epoch",
    "not shuffled",
    "The images come as they lie in the file, epoch after epoch.",
    "The order is not drawn. A batch should be a random one, and another one each time.",
)
def _(model, optimizer, x, batch_size=4):
    for batch in x.split(batch_size):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()


@mistake(
    "train_epoch",
    "the same order in every epoch",
    "The order is not the file's, but it is the same in every epoch.",
    "Every epoch goes through the same batches: a seed is set inside, or the order does not depend on chance.",
)
def _(model, optimizer, x, batch_size=4):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for index in order.split(batch_size):
        optimizer.zero_grad()
        model.loss(x[index]).backward()
        optimizer.step()


@mistake(
    "train_epoch",
    "drawn with replacement",
    "Some images came twice, others never.",
    "Indices are drawn independently, with replacement. An epoch goes through a permutation.",
)
def _(model, optimizer, x, batch_size=4):
    for index in torch.tensor([3, 3, 7, 0, 1, 9, 9, 5, 2, 7])[torch.randperm(10)].split(batch_size):
        optimizer.zero_grad()
        model.loss(x[index]).backward()
        optimizer.step()


@mistake(
    "train_epoch",
    "no batches",
    "The ten images came all at once.",
    "There are no batches: the whole set is one step.",
)
def _(model, optimizer, x, batch_size=4):
    optimizer.zero_grad()
    model.loss(x[torch.randperm(len(x))]).backward()
    optimizer.step()


# --- part 6: scores and pictures


def evaluation(evaluate):
    """Check `evaluate(model, x, batch_size)`: the mean −ELBO over a set, an uneven last batch included."""
    judge("evaluate", look_at_evaluation, evaluate, "a mean over images, whatever the batches, with z drawn")


def look_at_evaluation(evaluate):
    """Ten images in batches of four; the KL of image i is i² / 2."""
    model = Toy(lambda x, a: a * torch.stack([x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]], 1))
    value = attempt(evaluate, model, numbered(10), 4)
    seen = {"value": first(numbers(value)), "decoded": sorted(set(model.codes)), "a": model.a.item()}
    return seen, [
        ("ten images, batches of four, −ELBO 784 log 2 + i²/2 each: the mean", seen["value"], EVEN_ODDS + 14.25),
        ("what is decoded", seen["decoded"], ["a draw"]),
        ("a parameter of the model afterwards, 1 before", seen["a"], 1.0),
    ]


@mistake(
    "evaluate",
    "mean of batch means",
    "Close, but it depends on how the images fall into batches.",
    "The means of the batches were averaged, and the last batch is smaller: its images count more. Sum over images, "
    "divide by images.",
)
def _(model, x, batch_size=4):
    return torch.stack([model.loss(batch) for batch in x.split(batch_size)]).mean().item()


@mistake(
    "evaluate",
    "sum of batch means",
    "Far too large: about the number of batches too large.",
    "The means of the batches were summed and never divided.",
)
def _(model, x, batch_size=4):
    return sum(model.loss(batch).item() for batch in x.split(batch_size))


@mistake(
    "evaluate",
    "sum over the images",
    "Far too large: about the number of images too large.",
    "This is the sum over the set. Nats per image are asked for.",
)
def _(model, x, batch_size=4):
    return sum(model.loss(batch).item() * len(batch) for batch in x.split(batch_size))


@mistake(
    "evaluate",
    "batch means over the number of images",
    "Far too small.",
    "The means of the batches were summed and divided by the number of images. A mean must be weighed by its images.",
)
def _(model, x, batch_size=4):
    return sum(model.loss(batch).item() for batch in x.split(batch_size)) / len(x)


@mistake(
    "evaluate",
    "last batch only",
    "Only some of the images are in this number: the last ones.",
    "The value of the last batch overwrote all the others.",
)
def _(model, x, batch_size=4):
    return [model.loss(batch).item() for batch in x.split(batch_size)][-1]


@mistake(
    "evaluate",
    "first batch only",
    "Only some of the images are in this number: the first ones.",
    "A return stands inside the loop over the batches.",
)
def _(model, x, batch_size=4):
    return model.loss(x[:batch_size]).item()


@mistake(
    "evaluate",
    "last batch dropped",
    "Two images are missing in this number.",
    "The last, smaller batch is left out.",
)
def _(model, x, batch_size=4):
    return model.loss(x[: len(x) // batch_size * batch_size]).item()


@mistake(
    "evaluate",
    "at mu",
    "What did the decoder get?",
    "The score is taken at z = mu. Without the noise this is no bound of log p(x): it flatters by several nats.",
)
def _(model, x, batch_size=4):
    recon, kl = model.terms(x, noise=0.0)
    return (recon + kl).mean().item()


@mistake(
    "evaluate",
    "without the KL",
    "Something costs nothing here.",
    "Only the reconstruction was averaged: the price of the code is missing.",
)
def _(model, x, batch_size=4):
    return model.terms(x)[0].mean().item()


def unseen(x_train, x_test, quiet=False):
    """Check that no image is in both sets; `quiet` prints nothing where all is well."""
    judge("the two sets", look_at_sets, (x_train, x_test), "" if quiet else "no test image is trained on")


def look_at_sets(sets):
    """Look for the images of the second set in the first."""
    train, test = ({hash(row.tobytes()) for row in x.flatten(1).numpy()} for x in sets)
    common = len(train & test)
    share = "none" if not common else "all" if common == len(test) else "some"
    seen = {"test images trained on": share, "one set": train == test}
    return seen, [("test images that are among the training images", share, "none")]


_TEN = numbered(10)

mistake(
    "the two sets",
    "the test set is the training set",
    "The two sets are one and the same.",
    "The same file, or the same split, was read twice: look at the argument `train`.",
)((_TEN, _TEN))

mistake(
    "the two sets",
    "test images pooled with the training images",
    "Every test image is also a training image.",
    "The test images were added to those trained on: the score would measure memory.",
)((_TEN, _TEN[6:]))

mistake(
    "the two sets",
    "sets that overlap",
    "Some test images are also training images.",
    "The two sets were cut from one file, and the cuts overlap.",
)((_TEN[:6], _TEN[4:]))


def score(value, x):
    """Check a trained model's −ELBO on images x: above their entropy, below the price of even odds."""
    grey = x.double().clamp(1e-12, 1 - 1e-12)
    floor = -(grey * grey.log() + (1 - grey) * (1 - grey).log()).sum((1, 2, 3)).mean().item()
    place = "below the floor" if value < floor else "above even odds" if value > EVEN_ODDS else "between"
    text = f"−ELBO {value:.1f} between the entropy floor {floor:.1f} and even odds {EVEN_ODDS:.1f}"
    judge("score", lambda _: ({}, [(text, place, "between")]), None, text)


def generation(generate):
    """Check `generate(model, n_images, generator)`: probabilities decoded from draws of the prior."""
    judge("generate", look_at_generation, generate, "codes from N(0, I) by the given generator, shown as probabilities")


class TwoPixels(nn.Module):
    """A decoder of which everything is known: the logits are 3 z_1 in the first pixel, z_2 in all others."""

    latent_dim = 2

    def decoder(self, z):
        """Logits, and the codes written down."""
        self.codes = z.detach()
        logits = z[:, 1].view(-1, 1, 1, 1).repeat(1, 1, 28, 28)
        logits[:, 0, 0, 0] = 3 * z[:, 0]
        return logits


def look_at_generation(generate):
    """Many images of a known decoder: the codes they came from, and what became of the logits."""
    model = TwoPixels()

    def draw(seed, n=500):
        with seeded(5 + seed):
            return attempt(generate, model, n, torch.Generator().manual_seed(seed))

    x = draw(0)
    seen = {"shape": shape(x)}
    facts = [("500 images, their shape", seen["shape"], (500, 1, 28, 28))]
    if not hasattr(x, "shape") or x.shape != (500, 1, 28, 28):
        return seen, facts
    z, logits = model.codes, model.decoder(model.codes)
    kinds = {"probabilities": logits.sigmoid(), "logits": logits}
    kinds |= {"black and white": logits.sigmoid().round(), "1 − probabilities": 1 - logits.sigmoid()}
    seen["shows"] = next((name for name, kind in kinds.items() if torch.allclose(x.to(kind), kind)), "something else")
    seen["different codes"] = len(z.unique(dim=0)) > 1
    with seeded(99):  # nothing but the generator is as before
        attempt(generate, model, 500, torch.Generator().manual_seed(0))
    seen["follows the generator"] = torch.equal(z, model.codes)
    draw(1)
    seen["anew"] = not torch.equal(z, model.codes)
    seen["mean"], seen["spread"] = About(z.mean().item()), About(z.std().item())
    if not seen["different codes"]:
        seen["mean"] = seen["spread"] = "not known"
    return seen, [
        *facts,
        ("every image has a code of its own", seen["different codes"], True),
        ("the same generator, the same images", seen["follows the generator"], True),
        ("another generator, other images", seen["anew"], True),
        ("the mean of the codes", seen["mean"], About(0.0)),
        ("the standard deviation of the codes", seen["spread"], About(1.0)),
        ("what is shown", seen["shows"], "probabilities"),
    ]


def _wrong_generate(name, hint, sharper):
    return mistake("generate", name, hint, sharper)


@_wrong_generate(
    "uniform codes",
    "The codes do not come from the prior: look at their mean.",
    "The codes are uniform on [0, 1]. The prior is N(0, I); torch's two functions differ by one letter.",
)
def _(model, n, generator):
    return model.decoder(torch.rand(n, model.latent_dim, generator=generator)).sigmoid()


@_wrong_generate(
    "generator not used",
    "The film of a model that does not move must stand still.",
    "The noise is drawn without the given generator: every picture of the film would show other codes.",
)
def _(model, n, generator):
    return model.decoder(torch.randn(n, model.latent_dim)).sigmoid()


@_wrong_generate(
    "one code for all",
    "All images are the same one.",
    "One code is drawn and repeated: look at the shape of the noise.",
)
def _(model, n, generator):
    return model.decoder(torch.randn(1, model.latent_dim, generator=generator).expand(n, -1)).sigmoid()


@_wrong_generate(
    "the prior's mean",
    "All images are the same one, and no generator changes it.",
    "Every code is 0, the prior's mean. A generated image starts from a draw.",
)
def _(model, n, generator):
    return model.decoder(torch.zeros(n, model.latent_dim)).sigmoid()


@_wrong_generate(
    "logits shown",
    "Probabilities lie between 0 and 1. These do not.",
    "The decoder's logits are returned. A picture shows probabilities.",
)
def _(model, n, generator):
    return model.decoder(torch.randn(n, model.latent_dim, generator=generator))


@_wrong_generate(
    "rounded to black and white",
    "The grey levels are gone.",
    "The probabilities were rounded. The sheet shows them as they are.",
)
def _(model, n, generator):
    return model.decoder(torch.randn(n, model.latent_dim, generator=generator)).sigmoid().round()


# --- part 7: deconvolution


def convolution(conv_decoder_class):
    """Check `ConvDecoder`: 28 by 28 logits of every sign."""
    judge("ConvDecoder", look_at_convolution, conv_decoder_class, "28 by 28, logits of every sign, rows apart")


def look_at_convolution(conv_decoder_class):
    """The shape, the range with large weights, and one code alone against among others."""
    with seeded(0):
        net = attempt(conv_decoder_class, 2)
        if isinstance(net, Exception):
            return {"error": net}, [("ConvDecoder(2)", net, "a network")]
    net, z = net.double().eval(), some(5, 2)
    logits = attempt(net, z)
    seen = {"shape": shape(logits)}
    facts = [("the shape of the logits for five codes", seen["shape"], (5, 1, 28, 28))]
    if not hasattr(logits, "shape") or logits.shape != (5, 1, 28, 28):
        return seen, facts
    seen["rows apart"] = torch.allclose(net(z[:1]), logits[:1])
    large = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(20)
        out = large(z)
    seen["least"] = "negative" if out.min() < -1e-9 else "0 or more"
    seen["most"] = "above 1" if out.max() > 1 + 1e-9 else "at most 1"
    return seen, [
        *facts,
        ("large weights: the least logit", seen["least"], "negative"),
        ("large weights: the largest logit", seen["most"], "above 1"),
        ("a code gets the same logits alone and among others", seen["rows apart"], True),
    ]


def _conv_layers(*last, kernel=4, stride=2, padding=1):
    """Wrong decoders differ in their transposed convolutions and in what comes after them."""
    options = {"stride": stride, "padding": padding}

    class Wrong(nn.Sequential):
        def __init__(self, latent_dim):
            super().__init__(
                nn.Linear(latent_dim, 32 * 7 * 7),
                nn.ReLU(),
                nn.Unflatten(1, (32, 7, 7)),
                nn.ConvTranspose2d(32, 16, kernel, **options),
                nn.ReLU(),
                nn.ConvTranspose2d(16, 1, kernel, **options),
                *last,
            )

    return Wrong


mistake(
    "ConvDecoder",
    "sigmoid at the end",
    "These are probabilities. The cost takes what comes before them.",
    "A sigmoid ends the decoder: it would be applied twice.",
)(_conv_layers(nn.Sigmoid()))

mistake(
    "ConvDecoder",
    "ReLU at the end",
    "A logit may have either sign.",
    "A ReLU ends the decoder: no pixel can be less probable than ½, so paper can never be white.",
)(_conv_layers(nn.ReLU()))

mistake(
    "ConvDecoder",
    "tanh at the end",
    "A logit may be any number. Yours cannot go beyond 1.",
    "A tanh ends the decoder. The last layer's output is the logits.",
)(_conv_layers(nn.Tanh()))

mistake(
    "ConvDecoder",
    "padding forgotten",
    "The picture is too large: follow the sides, 7 → ? → ?.",
    "With kernel 4 and stride 2 a transposed convolution gives 2 n + 2. A padding takes 2 away.",
)(_conv_layers(padding=0))

mistake(
    "ConvDecoder",
    "stride forgotten",
    "The picture is too small: follow the sides, 7 → ? → ?.",
    "Nothing doubles the side: look at the stride.",
)(_conv_layers(stride=1))

mistake(
    "ConvDecoder",
    "kernel of 3 without output padding",
    "The picture is a little too small: follow the sides, 7 → ? → ?.",
    "With kernel 3, stride 2 and padding 1 a side n becomes 2 n − 1. A kernel of 4 gives 2 n exactly.",
)(_conv_layers(kernel=3))


# --- part 8: the plane


def plane(codes):
    """Check `codes(model, x)`: the means, (n, 2)."""
    judge("codes", look_at_codes, codes, "the means of q(z|x), one row for each image")


class ThreeImages(nn.Module):
    """An encoder of which everything is known: mu = (i, −i) and logvar = (−i, 5) for image i."""

    latent_dim = 2

    def encoder(self, x):
        """Mu and logvar by the images' numbers."""
        i = x[:, 0, 0, 0]
        return torch.stack([i, -i], 1).requires_grad_(), torch.stack([-i, 5 + 0 * i], 1).requires_grad_()


def look_at_codes(codes):
    """Three numbered images."""
    z, again = (attempt(codes, ThreeImages(), numbered(3)) for _ in range(2))
    seen = {"shape": shape(z), "values": numbers(z)}
    if not same(seen["values"], numbers(again)):
        seen["values"] = "other numbers at every call"
    return seen, [
        ("three images: the shape of their codes", seen["shape"], (3, 2)),
        ("means (0, 0), (1, −1), (2, −2): the codes", seen["values"], [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]),
    ]


@mistake(
    "codes",
    "a draw for the mean",
    "Ask twice, and the points have moved.",
    "The codes are draws. The handout asks for the vector of parameters mu.",
)
def _(model, x):
    mu, logvar = model.encoder(x)
    return mu + (0.5 * logvar).exp() * torch.randn_like(mu)


@mistake(
    "codes",
    "logvar for the mean",
    "These numbers are the encoder's, but the other ones.",
    "logvar was taken: how sure the encoder is, not where.",
)
def _(model, x):
    return model.encoder(x)[1]


@mistake(
    "codes",
    "both answers joined",
    "There are more coordinates than the latent space has.",
    "mu and logvar were put side by side. A place in the plane is mu alone.",
)
def _(model, x):
    return torch.cat(model.encoder(x), 1)


@mistake(
    "codes",
    "the pair returned whole",
    "Two things came back where one was asked for.",
    "The encoder's whole answer, (mu, logvar), was returned.",
)
def _(model, x):
    return model.encoder(x)


def pixels(picture):
    """Check `picture(model, z1, z2)`: the probabilities decoded at one point, (28, 28)."""
    judge("picture", look_at_picture, picture, "28 by 28 probabilities, z1 and z2 in their places")


def look_at_picture(picture):
    """One point of a known decoder."""
    x = attempt(picture, TwoPixels().double(), 0.5, -2.0)
    values = numbers(x)
    seen = {"shape": shape(x), "two": values}
    if isinstance(values, list):
        seen["two"] = [round(value, 5) for value in values[:2]]
    expected = [round(value, 5) for value in torch.tensor([1.5, -2.0], dtype=F64).sigmoid().tolist()]
    return seen, [
        ("the shape of a picture", seen["shape"], (28, 28)),
        ("logits 1.5 and −2 in the first two pixels: the picture", seen["two"], expected),
    ]


@mistake(
    "picture",
    "logits shown",
    "Probabilities lie between 0 and 1. These do not.",
    "The logits are returned. A picture shows probabilities.",
)
def _(model, z1, z2):
    return model.decoder(torch.tensor([[z1, z2]]))[0, 0]


@mistake(
    "picture",
    "z1 and z2 swapped",
    "Each slider moves what the other one should.",
    "z1 and z2 changed places.",
)
def _(model, z1, z2):
    return model.decoder(torch.tensor([[z2, z1]])).sigmoid()[0, 0]


@mistake(
    "picture",
    "batch of one returned",
    "The numbers may be right. Count the axes.",
    "The decoder answers for a batch: take the first image, and its only channel.",
)
def _(model, z1, z2):
    return model.decoder(torch.tensor([[z1, z2]])).sigmoid()


@mistake(
    "picture",
    "channel axis left",
    "The numbers may be right. One axis is left over.",
    "The channel is still there: a picture to draw is (28, 28).",
)
def _(model, z1, z2):
    return model.decoder(torch.tensor([[z1, z2]])).sigmoid()[0]


@mistake(
    "picture",
    "a code without its batch axis",
    "The decoder wants a batch of codes.",
    "The code has the shape (2,). A batch of one code is (1, 2).",
)
def _(model, z1, z2):
    return model.decoder(torch.tensor([z1, z2])).sigmoid()[0, 0]
