"""The plane of ``mlp_2d`` after every epoch of its training, for the explorer's film: ``python -m tables.epochs``.

The model is trained anew by its own recipe and seed. Rounding differs between processors, so that its end is near the
shipped model's loss but another plane. The film goes to ``figures/05_epochs.npz``: ``codes``, means of the first 2,000
test images, (n_epochs + 1, 2000, 2), as int16 in units of ``extent`` / 32767; ``neg_elbo`` of the test images; and
``picture``, the bytes of a WebP image that holds for each epoch 15 by 15 digits decoded over the plane, from -extent to
extent, then ten draws of the prior, ten test images rebuilt, and these images.
"""

import argparse
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tme_utils import data, paths
from tme_utils.checkpoints import SEED, SHIPPED
from tme_utils.metrics import posterior_parameters
from tme_utils.training import History, fit, seeded
from tme_utils.vae import VAE

N_IMAGES, N_TILES, N_SHOWN = 2000, 15, 10
EXTENT = 4.5
QUALITY = 30  # of the lossy picture: strokes stay whole, and 31 epochs take half a megabyte


@torch.no_grad()
def picture(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Grey levels (504, 420) of one epoch: the grid of digits, z decoded, x rebuilt, and x (10, 1, 28, 28)."""
    axis = (2 * torch.arange(N_TILES) + 1) * EXTENT / N_TILES - EXTENT
    grid = torch.stack(torch.meshgrid(axis, -axis, indexing="xy"), dim=-1)  # z1 to the right, z2 up
    rows = [*model.decode(grid).sigmoid(), model.decode(z).sigmoid(), model.reconstruct(x), x]
    padded = [torch.cat([row, torch.zeros(N_TILES - len(row), 1, 28, 28)]) for row in rows]
    tiles = torch.stack(padded).squeeze(2).transpose(1, 2)  # (18, 28, 15, 28)
    return (255 * (1 - tiles)).round().byte().reshape(-1, 28 * N_TILES)


def save(codes: list[Tensor], pictures: list[Tensor], neg_elbo: list[float]) -> None:
    """Write the film; what the quantities are says the head of this file."""
    buffer = io.BytesIO()
    Image.fromarray(torch.cat(pictures).numpy()).save(buffer, "WEBP", quality=QUALITY, method=6)
    units = torch.stack(codes).clamp(-EXTENT, EXTENT).mul(32767 / EXTENT).round().short().numpy()
    with paths.atomic_write(paths.figures_dir() / "05_epochs.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            codes=units,
            neg_elbo=np.array(neg_elbo).round(2),
            extent=np.array(EXTENT),
            picture=np.frombuffer(buffer.getvalue(), np.uint8),
        )


def probes() -> tuple[Tensor, Tensor, Tensor]:
    """The images of the plane, the ten to rebuild, and the ten draws of the prior."""
    test = data.load_mnist("test")
    draws = torch.randn(20, 2, generator=torch.Generator().manual_seed(SEED))
    return test.x[:N_IMAGES], data.display_batch(test).x[::2], draws[:N_SHOWN]


def main() -> None:
    """Train, record and save."""
    argparse.ArgumentParser(description="Train mlp_2d anew and record its plane after every epoch.").parse_args()
    build, recipe, _ = SHIPPED["mlp_2d"]
    with seeded(SEED):
        model = build()
    x, shown, z = probes()
    codes: list[Tensor] = []
    pictures: list[Tensor] = []

    def record(_: History) -> None:
        device = next(model.parameters()).device
        model.cpu().eval()
        codes.append(posterior_parameters(model, x)[0])
        pictures.append(picture(model, shown, z))
        model.to(device).train()

    images = (data.load_mnist("train+validation").x, data.load_mnist("test").x)
    history = fit(model, *images, recipe, seed=SEED, on_epoch=record)
    save(codes, pictures, [row["held_out_neg_elbo"] for row in history.rows])


if __name__ == "__main__":
    main()
