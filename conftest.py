"""What several test files share; how tests are spread over the cores; a folder of figures for notebooks under test."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch.distributions import Normal

from benchmarks.browser import find_browser, open_browser
from tme_utils import checkpoints, data, paths
from tme_utils.study import allowed_cores
from tme_utils.training import Probes, fit, seeded
from tme_utils.vae import mlp_vae

TIMEOUT = 60_000  # milliseconds: a busy machine is slow, not wrong
# Each file, notebook or not, runs on one worker. These begin first, the longest before.
FIRST = (
    *("03_conv_vae.ipynb", "test_browser.py", "02_mlp_vae.ipynb", "01_theory_and_kl.ipynb"),
    *("05_latent_exploration.ipynb", "04_latent_dimension.ipynb", "B_learnt_prior.ipynb"),
    *("A_common_mistakes.ipynb", "test_practical.py", "test_site.py"),
)

settings.register_profile("report", deadline=None, derandomize=True)
settings.load_profile("report")


def pytest_xdist_auto_num_workers():
    """A worker for each core that this process may use."""
    return allowed_cores()


def pytest_collection_modifyitems(items):
    """Put the files that take longest first, in the same order on every worker."""
    rank = {name: i for i, name in enumerate(dict.fromkeys([*FIRST, *(item.path.name for item in items)]))}
    items.sort(key=lambda item: rank[item.path.name])


def pytest_configure(config):
    """Give workers, and the kernels that they start, one thread each, and every process a folder of figures."""
    if config.getoption("numprocesses", None):  # small layers gain little from a second thread, and lose if it is busy
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    config.option.nbval_sanitize_with = config.option.nbval_sanitize_with or str(paths.ROOT / "tests" / "sanitize.cfg")
    folder = Path(tempfile.mkdtemp(prefix="tme-figures-"))
    for pattern in ("*.csv", "*.npz"):  # what the notebooks read
        for table in (paths.ROOT / "figures").glob(pattern):
            shutil.copy(table, folder)
    patch = pytest.MonkeyPatch()
    patch.setenv("TME_FIGURES", str(folder))
    config.add_cleanup(patch.undo)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@dataclass
class Gaussian:
    """A likelihood that the package does not know: p(x|z) = N(output, std² I)."""

    std: float

    def log_prob(self, output, x):
        """Log-density of each image."""
        return Normal(output, self.std).log_prob(x).sum(dim=(-3, -2, -1))

    def mean(self, output):
        """The picture to show."""
        return output

    def log_prob_pairs(self, output, x):
        """Log-density of every image under every output."""
        return self.log_prob(output[:, None], x)


@pytest.fixture(scope="session")
def mnist_train():
    """All 60,000 training images."""
    return data.load_mnist("train+validation")


@pytest.fixture(scope="session")
def mnist_test():
    """The 10,000 test images."""
    return data.load_mnist("test")


@pytest.fixture(scope="session")
def generator():
    """Make a CPU generator from a seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def build(generator):
    """Build a tiny VAE whose weights depend on the seed alone."""

    def build(seed=0, latent_dim=2, hidden=(16,)):
        with seeded(seed):
            return mlp_vae(latent_dim, hidden)

    return build


@pytest.fixture(scope="session")
def random_images(generator):
    """Make n grey images of noise."""
    return lambda n, seed=0, dtype=torch.float32: torch.rand(n, 1, 28, 28, generator=generator(seed), dtype=dtype)


@pytest.fixture(scope="session")
def weights():
    """All the weights of a model as one vector."""
    return lambda model: torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.fixture
def probes(random_images, generator):
    """Probes of 3 training images, 4 held-out images and 5 draws of a 2-D prior."""
    return Probes(random_images(3, 1), random_images(4, 2), torch.randn(5, 2, generator=generator()))


@pytest.fixture
def n_trainings(monkeypatch):
    """Count how often ``fit`` is called by ``load_or_train``: the length of this list."""
    calls = []
    monkeypatch.setattr(checkpoints, "fit", lambda *a, **k: calls.append(k) or fit(*a, **k))
    return calls


@pytest.fixture(scope="session")
def at_call():
    """Have ``action`` run just before a network's n-th call in a training step, or in an evaluation."""

    def at_call(network, n, action, training=True):
        calls = []

        def hook(*_):
            if torch.is_grad_enabled() == training:
                calls.append(n)
                if len(calls) == n:
                    action()

        network.register_forward_pre_hook(hook)

    return at_call


@pytest.fixture(scope="session")
def ctrl_c():
    """What Ctrl-C does, as a callable."""

    def ctrl_c(*_, **__):
        raise KeyboardInterrupt

    return ctrl_c


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; without one the tests are skipped, but fail in CI."""
    if find_browser() is None:
        message = "no Chromium and no Chrome on this machine: nothing is tested in a browser"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with open_browser() as browser:
        yield browser


@contextmanager
def opened(browser, **options):
    """A tab, its console errors and its requests; nobody may have complained in the end."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000}, **options)
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []
