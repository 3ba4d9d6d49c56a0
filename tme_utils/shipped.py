"""The trained models that ship in ``checkpoints/``: what they are, and the command that makes them.

``python -m tme_utils.shipped`` trains those whose checkpoint is missing, on all 60,000 training images, by the
recipe of :mod:`tme_utils.training`, its learning rate halved for three hidden layers (``figures/02_recipe.csv``).
"""

from functools import partial
from typing import Any

import torch

from tme_utils import data, models
from tme_utils.checkpoints import load_or_train
from tme_utils.training import History, Probes

N_EPOCHS = 30
MAX_LR = 2e-3
SEED = 0
BUILDERS = {
    # Two dimensions leave the decoder all the work: three hidden layers each way instead of the handout's one.
    "mlp_2d": partial(models.mlp_vae, latent_dim=2, hidden=(512, 512, 256)),
}


def shipped_model(name: str, **options: Any) -> tuple[models.VAE, History]:
    """Load a shipped model, or train it if its checkpoint is missing.

    Args:
        name: one of ``BUILDERS``.
        **options: for :func:`tme_utils.training.fit`, such as ``progress``.

    Returns:
        (model, history); the history has the snapshots of the display digits.

    Raises:
        ValueError: for an unknown name, or a damaged checkpoint.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown model {name!r}; the shipped models are {', '.join(BUILDERS)}")
    train, test = data.load_mnist("train+validation"), data.load_mnist("test")
    latent_dim = BUILDERS[name].keywords["latent_dim"]
    probes = Probes(
        train=data.display_batch(train).x,
        held_out=data.display_batch(test).x,
        z=torch.randn(20, latent_dim, generator=torch.Generator().manual_seed(SEED)),
    )
    return load_or_train(BUILDERS[name], train.x, test.x, N_EPOCHS, seed=SEED, max_lr=MAX_LR, probes=probes, **options)


if __name__ == "__main__":
    for name in BUILDERS:
        _, history = shipped_model(name)
        print(f"{name}: test −ELBO {history.rows[-1]['held_out_neg_elbo']:.2f} nats per image")
