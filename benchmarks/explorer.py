"""The latent explorer in a real JupyterLab in headless Chromium: ``python -m benchmarks.explorer``.

For the shipped MLP VAE and the shipped convolutional one:

(a) milliseconds from a step of the z1 slider (an arrow key pressed on its handle) to the changed pixels of the large
    digit, median and 95th percentile;
(b) frames per second in which the digit changed while the handle was dragged without a pause, and how many frames the
    browser drew in all;
(c) the largest difference between browser and torch over 200 z and 200 test images: in grey levels, in mu, and in nats
    of KL, recon and −ELBO;
(d) the size of the page that ``to_html`` writes with 2,000 test images.

The numbers go to ``figures/speed_explorer.csv``.
"""

import argparse
import statistics
import tempfile
import zlib
from base64 import b64encode
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from playwright.sync_api import Browser, Page
from torch import Tensor

from benchmarks.browser import jupyter_lab, open_browser, run_all, write_notebook
from tme_utils.checkpoints import shipped_model
from tme_utils.data import load_mnist
from tme_utils.explorer import LatentExplorer, front_end_script, pack_networks
from tme_utils.study import allowed_cores, processor, save_table
from tme_utils.vae import VAE, elbo_terms, kl_per_dim

N_IMAGES = 2000
MODELS = {"mlp": "mlp_2d", "conv": "conv_2d"}  # names of shipped models
CELL = """
from tme_utils.data import load_mnist
from tme_utils.explorer import LatentExplorer
from tme_utils.checkpoints import shipped_model
test = load_mnist("test")
LatentExplorer(shipped_model("{name}")[0], test.x[:{n}], test.y[:{n}])
"""

# Each step: note when the key event began, press, and look at the digit until its pixels differ.
LATENCY = """
async (nSteps) => {
  const digit = document.querySelector(".tme-explorer .large").getContext("2d");
  const pixels = () => digit.getImageData(0, 0, 28, 28).data.join();
  const handle = document.querySelector(".noUi-handle");
  const channel = new MessageChannel();
  const pause = () => new Promise((next) => { channel.port1.onmessage = next; channel.port2.postMessage(0); });
  const rest = (ms) => new Promise((next) => setTimeout(next, ms));
  const times = [];
  for (let i = 0; i < nSteps; i++) {
    await rest(20 + 20 * Math.random());  // steps of a hand, at any moment of a frame
    const before = pixels();
    const key = i % 40 < 20 ? "ArrowRight" : "ArrowLeft";
    const start = performance.now();
    handle.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    while (pixels() === before && performance.now() < start + 2000) await pause();
    times.push(performance.now() - start);
  }
  return times;
}
"""

# One movement of the pointer in each frame, as a browser reports them, for some seconds.
FRAMES = """
async (seconds) => {
  const digit = document.querySelector(".tme-explorer .large").getContext("2d");
  const pixels = () => digit.getImageData(0, 0, 28, 28).data.join();
  const handle = document.querySelector(".noUi-handle");
  const track = document.querySelector(".noUi-base").getBoundingClientRect();
  const send = (target, type, clientX) => target.dispatchEvent(new MouseEvent(type, {
    clientX, clientY: track.y, buttons: type === "mouseup" ? 0 : 1, bubbles: true, cancelable: true,
  }));
  const frame = () => new Promise(requestAnimationFrame);
  send(handle, "mousedown", track.x + track.width / 2);
  let [before, drawn, changed] = [pixels(), 0, 0];
  const start = await frame();
  let now = start;
  while (now < start + 1000 * seconds) {
    const beat = ((now - start) / 1000) % 2;  // to and fro at one speed: each frame brings another value
    const place = 0.2 + 0.6 * Math.abs(beat - 1);
    send(document.documentElement, "mousemove", track.x + track.width * place);
    now = await frame();
    const after = pixels();
    drawn += 1;
    changed += after !== before;
    before = after;
  }
  send(document.documentElement, "mouseup", track.x + track.width / 2);
  return { drawn: 1000 * drawn / (now - start), changed: 1000 * changed / (now - start) };
}
"""

PARITY = """
async ({ source, networks, weights, z, x, eps }) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const bytes = Uint8Array.from(atob(weights), (character) => character.charCodeAt(0));
  const loaded = await module.loadNetworks(networks, new DataView(bytes.buffer));
  return {
    probs: z.map(([z1, z2]) => Array.from(module.sigmoid(module.decode(loaded, z1, z2)))),
    terms: x.map((pixels, i) => {
      const image = Float32Array.from(pixels);
      const q = module.encode(loaded, image);
      const code = q.mu.map((mean, j) => mean + q.std[j] * eps[i][j]);
      const recon = module.total(module.pixelCosts(module.decode(loaded, ...code), image));
      return [...q.mu, ...module.klPerDim(q), recon];
    }),
  };
}
"""


class Differences(NamedTuple):
    """The largest differences between browser and torch: in grey levels of 255, in mu, in a term of the loss."""

    grey_levels: float
    mu: float
    nats: float


@torch.no_grad()
def differences(page: Page, model: VAE, z: Tensor, x: Tensor) -> Differences:
    """Compare pixels over z (n, 2), and mu, KL, recon and the negative ELBO over x, with one noise for both."""
    networks, weights = pack_networks(model)
    eps = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(0))
    arguments: dict[str, Any] = {
        "source": front_end_script(),
        "networks": networks,
        "weights": b64encode(zlib.compress(weights)).decode(),
        "z": z.tolist(),
        "x": x.flatten(1).tolist(),
        "eps": eps.tolist(),
    }
    result = page.evaluate(PARITY, arguments)
    grey = 255 * (torch.tensor(result["probs"]) - model.decode(z).sigmoid().flatten(1))
    mu, kl, recon = torch.tensor(result["terms"]).split([2, 2, 1], dim=1)
    expected, expected_kl = elbo_terms(model, x, eps), kl_per_dim(*model.encode(x))
    of_recon = recon[:, 0] - expected.recon
    of_neg_elbo = recon[:, 0] + kl.sum(1) + expected.elbo
    nats = max(float(difference.abs().max()) for difference in (kl - expected_kl, of_recon, of_neg_elbo))
    return Differences(float(grey.abs().max()), float((mu - model.encode(x)[0]).abs().max()), nats)


def measure(
    name: str, model: VAE, browser: Browser, address: str, folder: Path, n_steps: int, seconds: float
) -> dict[str, Any]:
    """The four measures of one model, with what they were made of."""
    test = load_mnist("test")
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    from_torch = differences(page, model, z, test.x[:200])
    write_notebook(folder / f"{name}.ipynb", CELL.format(name=MODELS[name], n=N_IMAGES))
    run_all(page, address, f"{name}.ipynb")
    page.wait_for_timeout(2000)  # Lab has its own work to finish
    page.evaluate(LATENCY, 20)
    times = page.evaluate(LATENCY, n_steps)
    frames = page.evaluate(FRAMES, seconds)
    page.close()
    html = LatentExplorer(model, test.x[:N_IMAGES], test.y[:N_IMAGES]).to_html(folder / f"{name}.html")
    return {
        "architecture": name,
        "n_steps": n_steps,
        "step_ms": round(statistics.median(times), 2),
        "step_ms_95th_percentile": round(statistics.quantiles(times, n=20)[-1], 2),
        "seconds": seconds,
        "changed_frames_per_second": round(frames["changed"], 1),
        "drawn_frames_per_second": round(frames["drawn"], 1),
        "grey_levels_from_torch": round(from_torch.grey_levels, 3),
        "mu_from_torch": float(f"{from_torch.mu:.2g}"),
        "nats_from_torch": round(from_torch.nats, 3),
        "page_megabytes": round(html.stat().st_size / 1e6, 2),
        "processor": processor(),
        "cores": allowed_cores(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the latent explorer in JupyterLab in headless Chromium.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with jupyter_lab(folder) as address, open_browser() as browser:
            rows = [
                measure(
                    architecture, shipped_model(name)[0], browser, address, folder, arguments.steps, arguments.seconds
                )
                for architecture, name in MODELS.items()
            ]
    print(pd.DataFrame(rows).set_index("architecture").T.to_string())
    print(save_table(rows, "speed_explorer"))


if __name__ == "__main__":
    main()
