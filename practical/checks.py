"""Checks of the practical: each says that something is wrong and, where it knows the mistake, which one.

A check looks at what a student's function does with tiny tensors in float64 and compares it with exact knowledge: 784
log 2 nats for even odds, no KL at the prior, rows that know nothing of one another, an integral, a gradient. No right
version is stored. `KNOWN` holds wrong ones: a mistake is named only if its wrong version, looked at in the same way,
gives all the same numbers, and no other one does.
"""

import contextlib
import copy
import math
import sys
import traceback
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

F64 = torch.float64
EVEN_ODDS = 784 * math.log(2)  # nats for an image of 784 pixels, whatever it shows


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


KNOWN = {}  # for each part the names of its mistakes: (wrong version, hint, sharper hint)
_last = {"text": "No check has failed yet."}


def hint():
    """Print the sharper hint for the check that failed last."""
    print(_last["text"])


def mistakes():
    """Return the table as a list of all known mistakes."""
    return [Mistake(part, name, *rest) for part, known in KNOWN.items() for name, rest in known.items()]


def table_of_mistakes():
    """Return all known mistakes with both hints as a Markdown table, for the teacher's page."""
    lines = ["| part | mistake | the check says | `checks.hint()` says |", "|---|---|---|---|"]
    lines += [f"| `{m.part}` | {m.name} | {m.hint} | {m.sharper} |" for m in mistakes()]
    return "\n".join(lines)


# --- the machinery: look, compare with what must be, and search the table


def judge(part, look, given, praise):
    """Pass, or raise `NotYetError`: `look(given)` returns what was seen, and facts as (text, came, should)."""
    _last["text"] = "The check stopped at an error in your own lines: the last line says which, those above it where."
    with seeded(0):  # the same numbers at every call, and none taken from those that a training will draw
        try:
            seen, facts = look(given)
        except Exception as error:
            raise in_own_lines(error)  # noqa: B904
        failed = next((fact for fact in facts if not same(fact[1], fact[2])), None)
        known = explanations(part, look, seen) if failed else []
    if failed is None:
        _last["text"] = "The last check passed: there is nothing to hint at."
        if praise:
            print(f"✓ {part}: {praise}")
        return
    text, came, should = failed
    errors = [value for value in (came if isinstance(came, list) else [came]) if isinstance(value, Exception)]
    if errors and not known:
        raise in_own_lines(errors[0])
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
    return [m for m in mistakes() if m.part == part and same(look(m.wrong)[0], seen)]


def same(a, b):
    """Whether two observations agree: numbers to the six digits shown, NaN with NaN, errors by type and text."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b) and str(a) == str(b)
    if isinstance(a, About) or isinstance(b, About):
        a, b = (v.value if isinstance(v, About) else v for v in (a, b))
        return a == b or (isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 0.1 * abs(b) + 0.1)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-6 * max(1, abs(a), abs(b))
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
    except NotImplementedError:
        raise
    except Exception as error:
        return error


def in_own_lines(error):
    """The error, of which a notebook shows the student's own lines alone: none of torch's, none of this file's."""
    places = [place for place in traceback.extract_tb(error.__traceback__) if place.filename != __file__]
    lines = [f"in {p.name}, line {p.lineno}: {p.line}" for p in places if "site-packages" not in p.filename]
    hole = isinstance(error, NotImplementedError)
    lines = [f"Still to be written: {error}"] if hole else [*lines, f"{type(error).__name__}: {error}"]
    error._render_traceback_ = lambda: lines
    return error


def shape(value):
    """The shape of a tensor, or what else was returned."""
    if isinstance(value, Exception):
        return value
    kind = "nothing: is a return missing?" if value is None else f"a {type(value).__name__} and not a tensor"
    return tuple(value.shape) if hasattr(value, "shape") else kind


def numbers(value):
    """A tensor as a flat list of floats; anything else stays."""
    if isinstance(value, int | float):
        return [float(value)]
    return torch.as_tensor(value).detach().double().flatten().tolist() if hasattr(value, "shape") else shape(value)


def first(values):
    """The first number of a list."""
    return values[0] if isinstance(values, list) and values else values


@contextlib.contextmanager
def seeded(seed):
    """Within the block torch and NumPy draw from a seed; afterwards they go on as if nothing had been."""
    before, numpy = torch.get_rng_state(), sys.modules.get("numpy")
    numpy_before = numpy.random.get_state() if numpy else None
    torch.default_generator.manual_seed(seed)
    if numpy:
        numpy.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if numpy:
            numpy.random.set_state(numpy_before)


def some(*size, seed=0):
    """The same normal numbers at every call, float64."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- families of mistakes that several parts have


def reductions(terms, what, axes):
    """The wrong sums and means of `terms(...)`, of which those of each image, along `axes`, are to be added up."""
    return {
        f"mean over the {what}": (
            lambda *given: terms(*given).mean(axes),
            f"One number per image, but the wrong size. How do independent {what} combine?",
            f"The {what} were averaged. What independent {what} cost adds up, in nats; only then do both terms of the "
            "loss have the same unit.",
        ),
        "sum over everything": (
            lambda *given: terms(*given).sum(),
            "One number came for all images together.",
            "The sum runs over the images as well. Keep one number per image; the batch is averaged in part 5.",
        ),
        "averaged over the batch here": (
            lambda *given: terms(*given).sum(axes).mean(),
            f"The {what} are summed; then one number came for all images.",
            "The mean over the batch belongs to the loss, in part 5. Here every image keeps its number.",
        ),
        "wrong axis": (
            lambda *given: terms(*given).sum(0),
            "Count the images, and the numbers that came.",
            f"The sum runs over the axis of the images. It must run over the {what} and leave the images apart.",
        ),
        "not summed": (
            terms,
            f"All {what} of all images came. What is asked for is one number per image.",
            f"The sum over the {what} is missing.",
        ),
    }


def gradient_cut(values, consequence):
    """What has the right values and forgets where they came from."""
    return (
        lambda *given: values(*given).detach(),
        "The values are right. Now think of the way back: can a gradient pass?",
        f"The graph is cut, by .data, .detach(), .item() or no_grad: {consequence}",
    )


def endings(decoder):
    """The activations that end a wrong decoder, `decoder(activation)`."""
    return {
        "sigmoid at the end": (
            decoder(nn.Sigmoid()),
            "These are probabilities. The sheet asks for what comes before them.",
            "A sigmoid ends the decoder. The cost takes logits and applies it itself: it would be applied twice.",
        ),
        "ReLU at the end": (
            decoder(nn.ReLU()),
            "A logit may have either sign. Which probability does a logit of 0 stand for?",
            "A ReLU ends the decoder: no pixel can be less probable than ½, so paper can never be white.",
        ),
    }


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


KNOWN["to_images"] = {
    "integers 0 to 255 kept": (
        lambda pixels: pixels.unsqueeze(1).float(),
        "The numbers have the right order, but not the right range: a probability is never above 1.",
        "The pixels are still counted from 0 to 255. The whitest one must become 1.",
    ),
    "standardised to mean 0 and variance 1": (
        lambda pixels: (pixels.unsqueeze(1).float() / 255 - 0.1307) / 0.3081,
        "There are negative numbers. Could a pixel's target probability be one of them?",
        "The mean was subtracted and the spread divided out, as for a classifier. A target stays in [0, 1].",
    ),
    "scaled to −1 … 1": (
        lambda pixels: pixels.unsqueeze(1).float() / 127.5 - 1,
        "There are negative numbers. What does 0 stand for, paper or a half?",
        "The levels were spread over [−1, 1]. A probability lies in [0, 1].",
    ),
    "channel last": (
        lambda pixels: pixels.unsqueeze(-1).float() / 255,
        "The axis of the channel is there. Look at its place.",
        "The channel came last. In PyTorch it stands behind the batch: (n, 1, 28, 28).",
    ),
    "no axis for the channel": (
        lambda pixels: pixels.float() / 255,
        "The numbers may be right. Count the axes.",
        "An axis of length 1 for the single channel (grey) is missing behind the first one.",
    ),
}


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
    out = attempt(net, x)
    seen = {"shapes": [shape(part) for part in out] if isinstance(out, tuple) else shape(out)}
    facts = [("the shapes of mu and logvar for four images, latent_dim = 2", seen["shapes"], [(4, 2), (4, 2)])]
    if seen["shapes"] != [(4, 2), (4, 2)]:
        return seen, facts
    alone = attempt(net, x[:1])
    seen["rows apart"] = isinstance(alone, tuple) and same(
        [numbers(part) for part in alone], [numbers(part[:1]) for part in out]
    )
    _fill(net.mu, 0, [-1.0, 2.0])
    _fill(net.logvar, 0, [-3.0, 0.5])
    seen["mu"], seen["logvar"] = (numbers(part)[:2] for part in net(x))
    _fill(net.mu, 1 / 400, 0.0)
    for bias in (-1.0, 2.0):
        _fill(net.hidden, 0, bias)
        seen[f"hidden {bias}"] = first(numbers(net(x)[0]))
    return seen, [
        *facts,
        ("the layer mu set to give (−1, 2) for every image: mu", seen["mu"], [-1.0, 2.0]),
        ("the layer logvar set to give (−3, 0.5): logvar", seen["logvar"], [-3.0, 0.5]),
        ("hidden units of −1 before the ReLU, averaged by the layer mu", seen["hidden -1.0"], 0.0),
        ("hidden units of 2 before the ReLU, averaged by the layer mu", seen["hidden 2.0"], 2.0),
        ("an image gets the same mu and logvar alone and among others", seen["rows apart"], True),
    ]


def _encoder(answer, features=lambda net, x: net.hidden(x.flatten(1)).relu()):
    """A class of wrong encoders: `answer` is what they make of their last layers, `features` of the images."""

    class Wrong(nn.Module):
        def __init__(self, latent_dim, hidden=400):
            super().__init__()
            self.hidden = nn.Linear(784, hidden)
            self.mu, self.logvar = nn.Linear(hidden, latent_dim), nn.Linear(hidden, latent_dim)

        def forward(self, x):
            h = features(self, x)
            return answer(self.mu(h), self.logvar(h))

    return Wrong


KNOWN["Encoder"] = {
    **{
        f"{name} on mu": (
            _encoder(lambda mu, logvar, f=f: (f(mu), logvar)),
            f"A mean may lie anywhere on the line. Yours {fate}.",
            f"mu went through a {name}. A mean is a location: its layer's output is it, with nothing after.",
        )
        for name, f, fate in [
            ("ReLU", torch.relu, "lost its sign"),
            ("sigmoid", torch.sigmoid, "lies between 0 and 1"),
            ("tanh", torch.tanh, "lies between −1 and 1"),
        ]
    },
    "ReLU on logvar": (
        _encoder(lambda mu, logvar: (mu, logvar.relu())),
        "A variance is positive. Must its logarithm be?",
        "logvar went through a ReLU: no variance below 1 is left, and an encoder needs them. Nothing after the layer.",
    ),
    "ReLU on both": (
        _encoder(lambda mu, logvar: (mu.relu(), logvar.relu())),
        "Neither answer is ever negative. May a mean be? May a logarithm?",
        "Both answers went through a ReLU. It belongs behind self.hidden; nothing follows the last layers.",
    ),
    **{
        f"{name} returned for log σ²": (
            _encoder(lambda mu, logvar, c=c: (mu, (c * logvar).exp())),
            "The second answer is positive and has the right size for something else. Read its name again.",
            f"The exponential was taken here already: this is {name}, and the sheet asks for log σ² (*logsigma*).",
        )
        for name, c in [("σ²", 1), ("σ", 0.5)]
    },
    **{
        name: (_encoder(answer), "Each number is a layer's output. Which layer's, and in which place?", sharper)
        for name, answer, sharper in [
            ("mu and logvar swapped", lambda mu, logvar: (logvar, mu), "The pair is (mu, logvar), in this order."),
            ("self.mu twice", lambda mu, logvar: (mu, mu), "self.mu gave both answers, and self.logvar none."),
        ]
    },
    "ReLU forgotten": (
        _encoder(lambda mu, logvar: (mu, logvar), features=lambda net, x: net.hidden(x.flatten(1))),
        "The hidden units went on with their sign.",
        "The ReLU behind self.hidden is missing: two linear layers in a row are one linear layer.",
    ),
    "logarithm of the square of a raw output": (
        _encoder(lambda mu, logvar: (mu, logvar.square().log())),
        "The second answer went through a function that forgets the sign.",
        "The layer's output was taken for σ and log(σ²) computed from it. Here it *is* log σ²: no logarithm is needed.",
    ),
    "images not flattened": (
        _encoder(lambda mu, logvar: (mu, logvar), features=lambda net, x: net.hidden(x).relu()),
        "The linear layer met something that has no 784 numbers in its last axis.",
        "The images came in as pictures, (B, 1, 28, 28). The layer wants rows, (B, 784).",
    ),
}


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


def _decoder(*last, between=nn.ReLU):
    """A decoder with the sheet's layers in their order, and what comes `between` and `last`."""

    class Wrong(nn.Sequential):
        def __init__(self, latent_dim, hidden=400):
            layers = {"hidden": nn.Linear(latent_dim, hidden), "between": between(), "out": nn.Linear(hidden, 784)}
            super().__init__(OrderedDict(layers))
            self.extend(last)

    return Wrong


KNOWN["Decoder"] = {
    **endings(lambda activation: _decoder(activation, nn.Unflatten(1, (1, 28, 28)))),
    "rows instead of pictures": (
        _decoder(),
        "The numbers may be right. Look at how they are arranged.",
        "The logits are rows of 784; an image has the shape (1, 28, 28).",
    ),
    "no axis for the channel": (
        _decoder(nn.Unflatten(1, (28, 28))),
        "The numbers may be right. Count the axes.",
        "The axis of length 1 for the channel is missing: a picture has the shape (1, 28, 28).",
    ),
    "ReLU forgotten": (
        _decoder(nn.Unflatten(1, (1, 28, 28)), between=nn.Identity),
        "The hidden units went on with their sign.",
        "The ReLU behind self.hidden is missing: two linear layers in a row are one linear layer.",
    ),
}


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
            return reparameterize(mu, logvar)

    n = 4000
    zero = torch.zeros(n, 3, dtype=F64)
    wide, narrow = torch.full_like(zero, math.log(4)), torch.full_like(zero, -2.0)
    mu = some(n, 3, seed=1)
    z = attempt(draw, zero, wide)
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


def _sigma(logvar):
    return (0.5 * logvar).exp()


def _draw(width=_sigma, noise=torch.randn_like):
    """A draw whose noise has the wrong width, or is the wrong noise."""
    return lambda mu, logvar: mu + width(logvar) * noise(mu)


KNOWN["reparameterize"] = {
    "σ² for σ": (
        _draw(width=torch.exp),
        "The noise has the wrong width. Compare it with σ, and with what the encoder gives you.",
        "The noise is scaled by the variance. logvar is log σ²: which power of e gives σ?",
    ),
    "log σ² used as σ": (
        _draw(width=lambda logvar: logvar),
        "The noise has the wrong width: at σ = 1 there is none at all.",
        "logvar itself multiplies the noise. It is a logarithm: a step is missing.",
    ),
    "one noise vector for the whole batch": (
        _draw(noise=lambda mu: torch.randn(mu.shape[-1], dtype=mu.dtype)),
        "Whose noise is it? Compare two images.",
        "One vector is drawn and broadcast over the batch. Every image needs its own: look at the shape of the noise.",
    ),
    "one number for all coordinates": (
        _draw(noise=lambda mu: torch.randn(len(mu), 1, dtype=mu.dtype)),
        "Compare two coordinates of one image.",
        "One number is drawn for each image and used for all its coordinates: look at the shape of the noise.",
    ),
    "noise not drawn anew": (
        _draw(noise=lambda mu: some(*mu.shape)),
        "Call it twice and compare.",
        "The noise is the same at every call: it is seeded inside, or drawn once outside. Draw it in here and anew.",
    ),
    "uniform noise": (
        _draw(noise=torch.rand_like),
        "The noise is not centred on 0.",
        "The noise is uniform on [0, 1]. N(0, I) is asked for; torch's two functions differ by one letter.",
    ),
    "gradient cut": gradient_cut(
        _draw(), "only ε may be drawn (torch.normal, too, stops a gradient); the rest is arithmetic."
    ),
}


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


def _bracket(mu, logvar):
    return 1 + logvar - mu.square() - logvar.exp()


KNOWN["kl_divergence"] = {
    "sign": (
        lambda mu, logvar: 0.5 * _bracket(mu, logvar).sum(1),
        "A KL divergence is never negative. Yours always is.",
        "This is minus the KL: the form in which it stands in the ELBO. The handout's ½ has a sign before it.",
    ),
    "½ forgotten": (
        lambda mu, logvar: -_bracket(mu, logvar).sum(1),
        "Everything has the right form. Compare the sizes.",
        "Everything is twice too large: a factor is missing.",
    ),
    "the 1 forgotten": (
        lambda mu, logvar: -0.5 * (_bracket(mu, logvar) - 1).sum(1),
        "At the prior nothing must be left.",
        "A constant is missing in the bracket: at the prior its terms do not cancel.",
    ),
    "the 1 outside the sum": (
        lambda mu, logvar: -0.5 * (1 + (_bracket(mu, logvar) - 1).sum(1)),
        "At the prior nothing must be left. How often does each term of the bracket count?",
        "The 1 stands outside the sum over the coordinates: it counts once, and must count d times.",
    ),
    "mu not squared": (
        lambda mu, logvar: -0.5 * (1 + logvar - mu - logvar.exp()).sum(1),
        "Widths are priced rightly, means are not: a mean of −2 must cost as much as one of 2.",
        "mu stands in the bracket where the formula has its square.",
    ),
    **{
        f"{name} for σ²": (
            lambda mu, logvar, c=c: -0.5 * (1 + logvar - mu.square() - (c * logvar).exp()).sum(1),
            "Means are priced rightly, widths are not. At σ = 2, which of your terms is which?",
            f"The last term is {name} where the formula has σ²: {why}.",
        )
        for name, c, why in [
            ("σ", 0.5, "logvar was halved in the exponent, as for a draw"),
            ("σ⁴", 2, "exp(logvar) is σ² already"),
        ]
    },
    **reductions(lambda mu, logvar: -0.5 * _bracket(mu, logvar), "coordinates", axes=1),
    "gradient cut": gradient_cut(
        lambda mu, logvar: -0.5 * _bracket(mu, logvar).sum(1), "the penalty would penalise nobody."
    ),
}


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


def _by_pixel(logits, x):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none")


def _by_hand(p, x, eps):
    return -(x * (p + eps).log() + (1 - x) * (1 - p + eps).log())


KNOWN["reconstruction_cost"] = {
    **reductions(_by_pixel, "pixels", axes=(1, 2, 3)),
    "mean over everything": (
        F.binary_cross_entropy_with_logits,
        "One small number came for the whole batch: the function's own default.",
        "The cross-entropy averages over pixels and images unless it is told otherwise: look at its argument "
        "`reduction`.",
    ),
    "one axis summed": (
        lambda logits, x: _by_pixel(logits, x).sum(1),
        "Count the axes of what came: one is gone, and three must go.",
        "The sum ran over the channel alone. Rows and columns of pixels are still there.",
    ),
    "logits and images swapped": (
        lambda logits, x: _by_pixel(x, logits).sum((1, 2, 3)),
        "The price of even odds depends on the image. Which argument is the prediction, which the target?",
        "The two arguments are swapped: PyTorch's losses take the prediction first and the target second.",
    ),
    **{
        f"by hand, {eps:g} added in the logarithm": (
            lambda logits, x, eps=eps: _by_hand(logits.sigmoid(), x, eps).sum((1, 2, 3)),
            "Grey levels are priced rightly. Certainty, and surprise, are not.",
            "This is the formula by hand: a sure probability is rounded to 0 or 1, and its logarithm is none or that "
            f"of the small number added ({eps:g}). Take the function that takes logits.",
        )
        for eps in (0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
    },
    "sigmoid twice": (
        lambda logits, x: _by_pixel(logits.sigmoid(), x).sum((1, 2, 3)),
        "Logits of ±50 are certainty, and right. Yet they cost: who was told ½ where 0 was meant?",
        "A sigmoid was applied to the logits, and the function with `with_logits` applies another one.",
    ),
    "probabilities meant, logits given": (
        lambda logits, x: F.binary_cross_entropy(logits, x, reduction="none").sum((1, 2, 3)),
        "The function refused numbers outside [0, 1].",
        "This cross-entropy takes probabilities, and logits were given. There is a version that takes logits.",
    ),
    "through a rounded probability": (
        lambda logits, x: F.binary_cross_entropy(logits.sigmoid(), x, reduction="none").sum((1, 2, 3)),
        "Almost everything is right. Only the very surprised pixel costs too little.",
        "The logits became probabilities first, and the logarithm of almost 0 was cut at −100: no gradient comes from "
        "there. Take the function that takes logits.",
    ),
    "squared error": (
        lambda logits, x: (logits.sigmoid() - x).square().sum((1, 2, 3)),
        "At even odds the price must not depend on the image. Yours does.",
        "This is a squared error: the likelihood of a Gaussian with a fixed width. The sheet asks for a Bernoulli.",
    ),
    "sign": (
        lambda logits, x: -_by_pixel(logits, x).sum((1, 2, 3)),
        "The size is right. A cost is never negative.",
        "This is the log-likelihood. The loss needs minus it.",
    ),
    "gradient cut": gradient_cut(
        lambda logits, x: _by_pixel(logits, x).sum((1, 2, 3)), "the decoder would learn nothing."
    ),
}


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
        cut = " without its gradient" if torch.is_grad_enabled() and not z.requires_grad else ""
        self.codes.append(("mu" if torch.equal(z, self.mu) else "a draw") + cut)
        return (0 * z.sum(1)).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    def terms(self, x, code=lambda mu: mu + torch.randn_like(mu)):
        """Both terms of each image, for the wrong versions."""
        mu, logvar = self.encoder(x)
        self.decoder(code(mu))
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


def _combined(combine, **code):
    """A loss that combines both terms in a wrong way, or takes them at a wrong `code`."""
    return lambda model, x: combine(*model.terms(x, **code))


KNOWN["negative_elbo"] = {
    "KL subtracted": (
        _combined(lambda recon, kl: (recon - kl).mean()),
        "Both terms are costs.",
        "The KL was subtracted: the loss would reward codes far from the prior, without end.",
    ),
    "sum over the batch": (
        _combined(lambda recon, kl: (recon + kl).sum()),
        "The same images twice must not cost more per image.",
        "The images were summed. The loss is a mean over the batch, so that it does not depend on the batch's size.",
    ),
    "recon averaged, KL summed over the batch": (
        _combined(lambda recon, kl: recon.mean() + kl.sum()),
        "One of the two terms grows with the batch, and the other does not.",
        "The KL is summed over the images beside a mean of the reconstruction: with 128 images it weighs 128 times.",
    ),
    "recon averaged over pixels and batch, KL summed over the batch": (
        _combined(lambda recon, kl: recon.mean() / 784 + kl.sum()),
        "One of the two terms is far too small, and the other grows with the batch.",
        "The reconstruction is a mean over pixels and images, the KL a sum over images: with 128 images it weighs "
        "128 · 784 times, and the code dies.",
    ),
    "recon averaged over the pixels too": (
        _combined(lambda recon, kl: recon.mean() / 784 + kl.mean()),
        "One of the two terms is far too small.",
        "The reconstruction was divided by the 784 pixels once more: the KL then weighs 784 times, and the code dies.",
    ),
    "decoded at mu": (
        _combined(lambda recon, kl: (recon + kl).mean(), code=lambda mu: mu),
        "What did the decoder get? Compare with what part 2 draws.",
        "The decoder got mu, not a draw: an expectation under q was replaced by the value at its centre.",
    ),
    "the draw cut from the encoder": (
        _combined(lambda recon, kl: (recon + kl).mean(), code=lambda mu: (mu + torch.randn_like(mu)).detach()),
        "The value is right. Does the encoder learn from the reconstruction?",
        "z was cut from the graph (.detach(), .data or no_grad): the encoder would obey the KL alone.",
    ),
    "logits and images swapped": (
        lambda model, x: sum(model.terms(x)).mean() + (F.softplus(x[:, 0, 0, 0]) - math.log(2)).mean(),
        "The cost depends on the image where it must not. In which order does part 4 take its arguments?",
        "reconstruction_cost was given (x, logits): it takes (logits, x).",
    ),
    **{
        name: (_combined(combine), hint, sharper)
        for name, combine, hint, sharper in [
            ("KL forgotten", lambda r, k: (r + 0 * k).mean(), "One term is missing.", "The KL is not in the loss."),
            ("not averaged", lambda r, k: r + k, "A loss is one number.", "The mean over the images is missing."),
            ("sign", lambda r, k: -(r + k).mean(), "Both terms are costs.", "This is the ELBO; the loss is minus it."),
            (
                "per pixel",
                lambda r, k: (r + k).mean() / 784,
                "The unit is another.",
                "Nats per image: do not divide by 784.",
            ),
        ]
    },
    "a Python number": (
        _combined(lambda recon, kl: (recon + kl).mean().item()),
        "The value is right, but it has forgotten where it came from.",
        "A float was returned (.item(), float()): it has no graph, and backward() has nothing to go through.",
    ),
}


class Descent:
    """Plain gradient descent, with the two methods of an optimiser."""

    def __init__(self, parameters, lr):
        """Keep what is to be moved."""
        self.parameters, self.lr, self.n_steps = list(parameters), lr, 0

    def zero_grad(self, set_to_none=True):
        """Empty the gradients."""
        for parameter in self.parameters:
            parameter.grad = None if set_to_none else 0 * parameter.detach()

    def step(self):
        """Go downhill."""
        self.n_steps += 1
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
            seen = {"sizes": [len(batch) for batch in model.batches], "backward": model.n_backward}
            seen |= {"steps": optimizer.n_steps, "a": model.a.item()}
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
        ("how often the optimiser made a step", seen["steps"], 3),
        ("a parameter that each step should multiply by 0.9, after three steps", seen["a"], 0.9**3),
    ]


def _shuffled(x, batch_size):
    return x[torch.randperm(len(x))].split(batch_size)


def _loop(batches=_shuffled, calls=("zero_grad", "backward", "step"), last=()):
    """A training loop that goes through these batches, makes these calls for each, and those in `last` at the end."""

    def train_epoch(model, optimizer, x, batch_size):
        for batch in batches(x, batch_size):
            value = model.loss(batch)
            methods = {"zero_grad": optimizer.zero_grad, "backward": value.backward, "step": optimizer.step}
            for call in calls:
                methods[call]()
        for call in last:
            methods[call]()

    return train_epoch


KNOWN["train_epoch"] = {
    "zero_grad forgotten": (
        _loop(calls=("backward", "step")),
        "The steps grow: something from the steps before is still there.",
        "backward() adds to the gradients it finds. They have to be emptied before each step.",
    ),
    **{
        name: (_loop(calls=calls, last=last), "Follow the three calls of a step, in their order.", sharper)
        for name, calls, last, sharper in [
            ("step forgotten", ("zero_grad", "backward"), (), "The optimiser was never asked to make its step."),
            ("backward forgotten", ("zero_grad", "step"), (), "The loss was never differentiated: no backward()."),
            ("step after the loop", ("zero_grad", "backward"), ("step",), "step() stands outside the loop."),
            ("step first", ("zero_grad", "step", "backward"), (), "step() comes before backward(): nothing to go by."),
            (
                "emptied late",
                ("backward", "zero_grad", "step"),
                (),
                "The gradients are emptied before step() uses them.",
            ),
        ]
    },
    "batch_size not used": (
        _loop(lambda x, batch_size: _shuffled(x, 128)),
        "All ten came at once, where four were asked for.",
        "The size of a batch is fixed inside: use the argument batch_size.",
    ),
    "the number of batches for their size": (
        _loop(lambda x, batch_size: _shuffled(x, len(x) // batch_size)),
        "Count the images in a batch, and the batches.",
        "split takes the size of a piece, not the number of pieces.",
    ),
    "drawn anew for each batch": (
        _loop(lambda x, batch_size: [x[torch.randint(len(x), (batch_size,))] for _ in range(3)]),
        "Twelve images were seen, of ten.",
        "The images are drawn anew for each batch. An epoch has one order, cut into batches.",
    ),
    "indices for images": (
        _loop(lambda x, batch_size: torch.randperm(len(x)).split(batch_size)),
        "The encoder was given numbers in a row, and no images.",
        "The random order holds indices. A batch is x at these indices.",
    ),
    "the same order every time": (
        _loop(lambda x, batch_size: x[torch.randperm(len(x), generator=torch.manual_seed(0))].split(batch_size)),
        "Two epochs, and the same order in both.",
        "The order is seeded inside, or drawn once outside. Draw it in here and anew.",
    ),
    "return inside the loop": (
        _loop(lambda x, batch_size: _shuffled(x, batch_size)[:1]),
        "The epoch ended too early: count the batches.",
        "A return (or a break) stands inside the loop over the batches: only the first is seen.",
    ),
    "last batch dropped": (
        _loop(lambda x, batch_size: _shuffled(x, batch_size)[: len(x) // batch_size]),
        "Two images were never seen.",
        "The last, smaller batch is left out: the number of batches was rounded down.",
    ),
    "not shuffled": (
        _loop(lambda x, batch_size: x.split(batch_size)),
        "The images come as they lie in the file, epoch after epoch.",
        "The order is not drawn, or drawn and not used: a batch is x at random indices, others at each epoch.",
    ),
}


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


def _over_batches(average):
    """A score from the means of the batches, combined in a wrong way."""
    return lambda model, x, batch_size: average([model.loss(batch).item() for batch in x.split(batch_size)])


KNOWN["evaluate"] = {
    "mean of batch means": (
        _over_batches(lambda means: sum(means) / len(means)),
        "Close, but it depends on how the images fall into batches.",
        "The means of the batches were averaged, and the last batch is smaller: its images count more. Sum over "
        "images, divide by images.",
    ),
    "return inside the loop": (
        _over_batches(lambda means: means[0] / len(means)),
        "Far too small: about the number of batches too small.",
        "A return stands inside the loop: the first batch alone was divided by the number of batches.",
    ),
    **{
        name: (_over_batches(average), "Sum over the images, divide by their number: compare.", sharper)
        for name, average, sharper in [
            ("means not weighed", lambda means: sum(means) / 10, "A batch's mean counts once for each of its images."),
            ("all weighed alike", lambda means: 4 * sum(means) / 10, "The last batch is smaller than batch_size."),
            ("not divided", lambda means: 4 * sum(means[:2]) + 2 * means[2], "The sum was not divided by the images."),
            (
                "return in the loop",
                lambda means: 4 * means[0] / 10,
                "A return stands inside the loop over the batches.",
            ),
            ("first batch", lambda means: means[0], "Only the first batch was looked at."),
            ("last batch dropped", lambda means: sum(means[:2]) / 2, "The last, smaller batch is left out."),
        ]
    },
    "at mu": (
        lambda model, x, batch_size: _combined(lambda recon, kl: (recon + kl).mean().item(), code=lambda mu: mu)(
            model, x
        ),
        "What did the decoder get?",
        "The score is taken at z = mu. Without the noise this is no bound of log p(x): it flatters by several nats.",
    ),
}


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

KNOWN["the two sets"] = {
    "the test set is the training set": (
        (_TEN, _TEN),
        "The two sets are one and the same.",
        "The same file, or the same split, was read twice: look at the argument `train`.",
    ),
    "test images pooled with the training images": (
        (_TEN, _TEN[6:]),
        "Every test image is also a training image.",
        "The test images were added to those trained on: the score would measure memory.",
    ),
    "sets that overlap": (
        (_TEN[:6], _TEN[4:]),
        "Some test images are also training images.",
        "The two sets were cut from one file, and the cuts overlap.",
    ),
}


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


class TwoRows(nn.Module):
    """A decoder of which everything is known: the logits are 3 z_1 in the first row of pixels, z_2 in all others."""

    latent_dim = 3

    def decoder(self, z):
        """Logits, and the codes written down."""
        self.codes.append(z.detach())
        logits = z[:, 1].view(-1, 1, 1, 1).repeat(1, 1, 28, 28)
        logits[:, 0, 0] = 3 * z[:, :1]
        return logits


def look_at_generation(generate):
    """Many images of a known decoder: the codes they came from, and what became of the logits."""
    model = TwoRows()

    def draw(seed):
        model.codes = []
        with seeded(5 + seed):
            x = attempt(generate, model, 500, torch.Generator().manual_seed(seed % 2))
        return x, torch.cat(model.codes or [torch.empty(0, 3)])

    x, z = draw(0)
    seen = {"shape": shape(x), "codes": tuple(z.shape)}
    facts = [("500 images, their shape", seen["shape"], (500, 1, 28, 28))]
    facts.append(("the shape of their codes, latent_dim = 3", seen["codes"], (500, 3)))
    if not all(same(came, should) for _, came, should in facts):
        return seen, facts
    logits = model.decoder(z)
    kinds = {"probabilities": logits.sigmoid(), "logits": logits}
    kinds |= {"black and white": logits.sigmoid().round(), "1 − probabilities": 1 - logits.sigmoid()}
    seen["shows"] = next((name for name, kind in kinds.items() if torch.allclose(x.to(kind), kind)), "something else")
    seen["different codes"] = len(z.unique(dim=0)) > 1
    seen["follows the generator"] = torch.equal(z, draw(2)[1])  # nothing but the generator is as before
    seen["anew"] = not torch.equal(z, draw(1)[1])
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


KNOWN["generate"] = {
    "uniform codes": (
        lambda model, n, generator: model.decoder(torch.rand(n, 3, generator=generator)).sigmoid(),
        "The codes do not come from the prior: look at their mean.",
        "The codes are uniform on [0, 1]. The prior is N(0, I); torch's two functions differ by one letter.",
    ),
    "generator not used": (
        lambda model, n, generator: model.decoder(torch.randn(n, 3)).sigmoid(),
        "The film of a model that does not move must stand still.",
        "The noise is drawn without the given generator: every picture of the film would show other codes.",
    ),
    "logits shown": (
        lambda model, n, generator: model.decoder(torch.randn(n, 3, generator=generator)),
        "Probabilities lie between 0 and 1. These do not.",
        "The decoder's logits are returned. A picture shows probabilities.",
    ),
    "two coordinates for every model": (
        lambda model, n, generator: model.decoder(torch.randn(n, 2, generator=generator)).sigmoid(),
        "This model has three coordinates: count those of your codes.",
        "The number of coordinates is fixed inside: use model.latent_dim, which part 7 will change.",
    ),
    "reconstructions for generated images": (
        lambda model, n, generator: model.encoder(torch.zeros(n, 1, 28, 28)),
        "The model of this check has no encoder: who needs one here?",
        "The encoder was asked, so an image went in: that gives a reconstruction. Start from a draw of the prior.",
    ),
}


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


def _conv_decoder(*last, padding=1, stride=2):
    """Wrong decoders differ in their transposed convolutions and in what comes after them."""

    class Wrong(nn.Sequential):
        def __init__(self, latent_dim):
            super().__init__(
                nn.Linear(latent_dim, 32 * 7 * 7),
                nn.ReLU(),
                nn.Unflatten(1, (32, 7, 7)),
                nn.ConvTranspose2d(32, 16, 4, stride=stride, padding=padding),
                nn.ReLU(),
                nn.ConvTranspose2d(16, 1, 4, stride=stride, padding=padding),
                *last,
            )

    return Wrong


KNOWN["ConvDecoder"] = {
    **endings(_conv_decoder),
    "padding forgotten": (
        _conv_decoder(padding=0),
        "The picture is too large: follow the sides, 7 → ? → ?.",
        "With kernel 4 and stride 2 a transposed convolution gives 2 n + 2. A padding takes 2 away.",
    ),
    "stride forgotten": (
        _conv_decoder(stride=1),
        "The picture is too small: follow the sides, 7 → ? → ?.",
        "The stride is left at 1: a side grows by 1 only. Stride 2 doubles it.",
    ),
}


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


KNOWN["codes"] = {
    "a draw for the mean": (
        lambda model, x: _draw()(*model.encoder(x)),
        "Ask twice, and the points have moved.",
        "The codes are draws. The handout asks for the vector of parameters mu.",
    ),
    "logvar for the mean": (
        lambda model, x: model.encoder(x)[1],
        "These numbers are the encoder's, but the other ones.",
        "logvar was taken: how sure the encoder is, not where.",
    ),
    "the pair returned whole": (
        lambda model, x: model.encoder(x),
        "Two things came back where one was asked for.",
        "The encoder's whole answer, (mu, logvar), was returned.",
    ),
}


def pixels(picture):
    """Check `picture(model, z1, z2)`: the probabilities decoded at one point, (28, 28)."""
    judge("picture", look_at_picture, picture, "28 by 28 probabilities, z1 and z2 in their places")


def look_at_picture(picture):
    """One point of a known decoder."""
    model = TwoRows()
    model.codes = []
    x = attempt(picture, model, 0.5, -2.0)
    values = numbers(x)
    seen = {"shape": shape(x), "three": values}
    if isinstance(values, list):
        seen["three"] = [round(values[i], 5) for i in (0, 1, 28)]
    expected = [round(value, 5) for value in torch.tensor([1.5, 1.5, -2.0], dtype=F64).sigmoid().tolist()]
    return seen, [
        ("the shape of a picture", seen["shape"], (28, 28)),
        ("logits 1.5 in the first row, −2 below: pixels 0, 1 and 28", seen["three"], expected),
    ]


KNOWN["picture"] = {
    "logits shown": (
        lambda model, z1, z2: model.decoder(torch.tensor([[z1, z2]]))[0, 0],
        "Probabilities lie between 0 and 1. These do not.",
        "The logits are returned. A picture shows probabilities.",
    ),
    "axes kept": (
        lambda model, z1, z2: model.decoder(torch.tensor([[z1, z2]])).sigmoid(),
        "The numbers may be right. Count the axes.",
        "This is still a batch of one image with one channel. Its picture is at index [0, 0].",
    ),
    "rows and columns swapped": (
        lambda model, z1, z2: model.decoder(torch.tensor([[z1, z2]])).sigmoid()[0, 0].T,
        "The picture lies on its side.",
        "It was transposed: rows and columns changed places.",
    ),
    "z1 and z2 swapped": (
        lambda model, z1, z2: model.decoder(torch.tensor([[z2, z1]])).sigmoid()[0, 0],
        "Each slider moves what the other one should.",
        "z1 and z2 changed places.",
    ),
    "a code without its batch axis": (
        lambda model, z1, z2: model.decoder(torch.tensor([z1, z2])).sigmoid()[0, 0],
        "The decoder wants a batch of codes.",
        "The code has the shape (2,). A batch of one code is (1, 2).",
    ),
}
