r"""How well a model generates: its digits in a classifier's eyes, and how far its codes lie from the prior.

A model can rebuild well and generate badly: rebuilding decodes codes of the aggregated posterior
:math:`q(z) = E_{x}[q(z|x)]`, generating decodes codes of the prior p(z). What differs is measured twice: on codes,
by a network that is to tell which of both a code comes from; on images, by the Fréchet distance between features.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tme_utils import data, paths
from tme_utils.checkpoints import checkpoint_path, load_checkpoint, save_checkpoint, shipped_model
from tme_utils.metrics import active_units, posterior_parameters
from tme_utils.priors import Flow, fit_prior
from tme_utils.training import History, seeded
from tme_utils.vae import VAE, reparameterize

N_FEATURES = 64
MAX_LR = 2e-3  # of Adam, at a classifier's first step
HIDDEN = 128  # units in each of the two hidden layers that tell codes from draws of the prior
N_GENERATED = 10_000  # images for each Fréchet distance, as many as there are test images


class DigitClassifier(nn.Module):
    """A small convolutional network that names a digit; its last hidden layer gives the features of an image."""

    def __init__(self) -> None:
        """Draw the initial weights from torch's global generator."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),  # 28 -> 14
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),  # 14 -> 7
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, N_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(N_FEATURES, 10)
        self.config = {"architecture": "classifier", "n_features": N_FEATURES}

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities of the ten classes up to a constant, (B, 10), of images (B, 1, 28, 28)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def fit_classifier(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, "n"],
    n_epochs: int,
    *,
    seed: int,
    batch_size: int = 128,
) -> None:
    """Train a classifier by the cross-entropy, in place; the learning rate falls linearly to its thousandth."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"need as many classes as inputs, at least one, got {len(y)} and {len(x)}")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), MAX_LR)
    n_steps = n_epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, n_steps)
    for _ in range(n_epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()


def shipped_classifier() -> DigitClassifier:
    """The classifier in whose features generated images are compared, or, if its checkpoint is missing, train it."""
    with seeded(0):
        classifier = DigitClassifier()
    n_epochs = 4
    settings = classifier.config | {"n_epochs": n_epochs, "seed": 0}
    path = paths.CHECKPOINTS / "classifier.safetensors"
    if path.exists():
        load_checkpoint(path, classifier, settings)
    else:
        train = data.load_mnist("train+validation")
        fit_classifier(classifier, train.x, train.y, n_epochs, seed=0)
        save_checkpoint(path, classifier, settings, History())
    return classifier


def shipped_prior() -> tuple[Flow, float]:
    """The flow fitted to the codes of ``residual_32d``, or fit it if its file is missing; and the seconds it took."""
    n_epochs = 60
    with seeded(0):
        flow = Flow(32)
    settings = {"architecture": "flow_of_residual", "latent_dim": 32, "n_epochs": n_epochs, "seed": 0}
    path = checkpoint_path(paths.CHECKPOINTS, settings)
    if path.exists():
        return flow, load_checkpoint(path, flow, settings).rows[0]["seconds"]
    model, _ = shipped_model("residual_32d")
    codes = posterior_parameters(model, data.load_mnist("train+validation").x)
    seconds = fit_prior(flow, *codes, n_epochs, seed=0)
    save_checkpoint(path, flow, settings, History(rows=[{"seconds": seconds}]))
    return flow, seconds


@torch.no_grad()
def features(classifier: DigitClassifier, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 64"]:
    """The classifier's features of images."""
    return torch.cat([classifier.features(part) for part in images.split(1000)])


@torch.no_grad()
def recognised(classifier: DigitClassifier, image_features: Float[Tensor, "n 64"], threshold: float = 0.9) -> float:
    """Share of the images that the classifier gives to one class with at least this probability, from features."""
    probability = classifier.head(image_features).softmax(dim=1).amax(dim=1)
    return float((probability >= threshold).double().mean())


def frechet_distance(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> float:
    r"""Fréchet distance between the Gaussians fitted to two sets of features, squared.

    With means m and covariances C,
    :math:`\lVert m_a - m_b \rVert^2 + \mathrm{tr}\big(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}\big)`:
    zero where both agree, and small only if the images of both sets look alike *and* vary alike. It depends on the
    features and falls with the number of images; only distances of equal settings compare.

    Source: Heusel et al. (2017), with the features of an ImageNet network; Dowson and Landau (1982).
    """
    if a.dim() != 2 or a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise ValueError(f"need features (N, F) and (M, F) with N, M >= 2, got {(*a.shape,)} and {(*b.shape,)}")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.atleast_2d(a.T.cov()), torch.atleast_2d(b.T.cov())  # of one feature, cov makes a number
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * cross)


def divergence_from_prior(
    z: Float[Tensor, "n d"], z_held_out: Float[Tensor, "m d"], *, seed: int, n_epochs: int = 15
) -> float:
    r"""Lower bound of the Jensen-Shannon divergence between the distribution of codes and N(0, I), in bits.

    A network learns to tell codes from as many draws of the prior; on codes and draws that it has not seen, its
    cross-entropy H gives :math:`\mathrm{JS} \ge 1 - H`: 0 bits if it cannot tell, 1 if it always can. The bound is
    as tight as the network is good; chance and overfitting can push it a little below 0. It needs no density of q(z),
    whose estimates by the mixture of the posteriors of N images can see no more than log N nats of what codes say.

    The network is float32, on the CPU. ``seed`` is that of the prior's draws, of the network and of its training: not
    the seed of the codes' own noise, or draws and noise would be the same numbers.

    Source: Nguyen et al. (2010); Goodfellow et al. (2014), section 4.1.
    """
    if z.dim() != 2 or z_held_out.shape[1:] != z.shape[1:] or min(len(z), len(z_held_out)) == 0:
        raise ValueError(f"need codes (N, d) and (M, d), at least one each, got {z.shape} and {z_held_out.shape}")
    z, z_held_out = z.float().cpu(), z_held_out.float().cpu()
    generator = torch.Generator().manual_seed(seed)

    def beside_prior(codes: Tensor) -> tuple[Tensor, Tensor]:
        prior = torch.randn(codes.shape, generator=generator)
        return torch.cat([codes, prior]), torch.arange(2).repeat_interleave(len(codes))

    with seeded(seed):
        network = nn.Sequential(
            nn.Linear(z.shape[1], HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2)
        )
    fit_classifier(network, *beside_prior(z), n_epochs, seed=seed, batch_size=500)
    with torch.no_grad():
        inputs, classes = beside_prior(z_held_out)
        return 1 - F.cross_entropy(network(inputs), classes).item() / math.log(2)


@torch.no_grad()
def generation_scores(
    model: VAE, x_train: Float[Tensor, "n 1 28 28"], x_test: Float[Tensor, "m 1 28 28"], *, seed: int
) -> dict[str, float]:
    """Compare what a model makes of codes of the prior with what it makes of codes of training images.

    Returns:
        ``frechet_prior`` and ``frechet_aggregated``, the Fréchet distances to the test images of up to 10,000 decoded
        images (probabilities, no pixel drawn), from draws of the prior and from codes drawn from q(z|x) of training
        images, which stand for the aggregated posterior; ``recognised_prior`` and ``recognised_aggregated``, the shares
        of them that the shipped classifier is sure of; ``divergence_from_prior`` of the codes' active coordinates, in
        bits.
    """
    classifier = shipped_classifier()
    generator = torch.Generator().manual_seed(seed)
    posteriors = [posterior_parameters(model, x) for x in (x_train, x_test)]
    codes = [reparameterize(mu, logvar, generator=generator) for mu, logvar in posteriors]
    scores = {}
    reference = features(classifier, x_test)
    for name, z in [
        ("prior", model.prior.sample(min(N_GENERATED, len(x_train)), codes[0][0], generator)),
        ("aggregated", codes[0][:N_GENERATED]),
    ]:
        decoded = torch.cat([features(classifier, model.likelihood.mean(model.decode(part))) for part in z.split(1000)])
        scores[f"frechet_{name}"] = round(frechet_distance(decoded, reference), 3)
        scores[f"recognised_{name}"] = round(recognised(classifier, decoded), 4)
    # Where a unit is not active q(z|x) is the prior: to the network these coordinates would be noise.
    active = active_units(posteriors[1][0])
    other_seed = int(torch.randint(2**31, (), generator=generator))  # the codes' noise came from ``seed`` itself
    with torch.enable_grad():
        bits = divergence_from_prior(*(z[:, active] for z in codes), seed=other_seed) if active.any() else 0.0
    return scores | {"divergence_from_prior": round(bits, 4)}
