r"""How well a model generates: its digits in a classifier's eyes, and how far its codes lie from the prior.

A model can rebuild well and generate badly: rebuilding decodes codes of the aggregated posterior
:math:`q(z) = E_{x}[q(z|x)]`, generating decodes codes of the prior p(z). What differs is measured twice: on codes,
by a network that is to tell which of both a code comes from; on images, by the Fréchet distance between features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tme_utils.training import seeded

N_FEATURES = 64
MAX_LR = 2e-3  # of Adam, at a classifier's first step
HIDDEN = 128  # units in each of the two hidden layers that tell codes from draws of the prior


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


def fit_classifier(model: nn.Module, x: Tensor, y: Tensor, n_epochs: int, *, seed: int, batch_size: int = 128) -> None:
    """Train a classifier by the cross-entropy, in place; the learning rate falls linearly to its thousandth.

    Args:
        model: gives logits (B, n_classes) from a batch of x.
        x: inputs, (N, ...).
        y: classes, integers (N,).
        n_epochs: passes over x.
        seed: of the order of the batches.
        batch_size: inputs a step.

    Raises:
        ValueError: if x and y do not have one row each for every input, or there is none.
    """
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"need as many classes as inputs, at least one, got {len(y)} and {len(x)}")
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), MAX_LR)
    n_steps = n_epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1e-3, n_steps)
    for _ in range(n_epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch_size):
            optimiser.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimiser.step()
            schedule.step()


@torch.no_grad()
def features(classifier: DigitClassifier, images: Tensor, batch_size: int = 1000) -> Tensor:
    """The classifier's features, (N, 64), of images (N, 1, 28, 28)."""
    return torch.cat([classifier.features(part) for part in images.split(batch_size)])


@torch.no_grad()
def recognised(classifier: DigitClassifier, image_features: Tensor, threshold: float = 0.9) -> float:
    """Share of the images that the classifier gives to one class with at least this probability, from features."""
    probability = classifier.head(image_features).softmax(dim=1).amax(dim=1)
    return float((probability >= threshold).double().mean())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Fréchet distance between the Gaussians fitted to two sets of features, squared.

    With means m and covariances C,
    :math:`\lVert m_a - m_b \rVert^2 + \mathrm{tr}\big(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}\big)`:
    zero where both agree, and small only if the images of both sets look alike *and* vary alike. It depends on the
    features and falls with the number of images; only distances of equal settings compare.

    Args:
        a: features of one set, (N, n_features), N >= 2.
        b: features of the other, (M, n_features), M >= 2.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Heusel et al. (2017), with the features of an ImageNet network; Dowson and Landau (1982).
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"need features (N, F) and (M, F) with N, M >= 2, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * cross)


def divergence_from_prior(z: Tensor, z_held_out: Tensor, *, seed: int, n_epochs: int = 15) -> float:
    r"""Lower bound of the Jensen-Shannon divergence between the distribution of codes and N(0, I), in bits.

    A network learns to tell codes from as many draws of the prior; on codes and draws that it has not seen, its
    cross-entropy H gives :math:`\mathrm{JS} \ge 1 - H`: 0 bits if it cannot tell, 1 if it always can. The bound is
    as tight as the network is good. It needs no density of q(z), whose estimates by the mixture of the posteriors
    of N images can see no more than log N nats of what codes say of images.

    Args:
        z: codes to learn from, (N, latent_dim), of any floating type and on any device; the network, float32, is
            on the CPU.
        z_held_out: codes to score, (M, latent_dim), of other images.
        seed: of the prior's draws, of the network and of its training.
        n_epochs: passes over the 2 N codes.

    Returns:
        The bound, at most 1; chance and overfitting can push it a little below 0.

    Raises:
        ValueError: if the shapes do not fit.

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
