# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["teacher"]
# # Teacher's page
#
# **What it is.** Two hours, one sheet, groups of two. Students know what a density and a gradient step are, and have
# trained one network in PyTorch. They leave with a VAE that they wrote, and with the habit of checking a formula before
# training with it.
#
# | part | objective: afterwards a student can … | minutes | code | words |
# |---|---|---|---|---|
# | 0 images | say what the target of a Bernoulli is | 5 | ½ | |
# | 1 encoder, decoder | tell a value from the parameters of a distribution | 20 | 2 | 1 |
# | 2 the draw | explain why noise must be an input | 10 | 1½ | 1 |
# | 3 KL | check a closed form against its definition | 15 | 1½ | 1 |
# | 4 likelihood | name the least and the uninformed cost of an image | 10 | 1 | 1 |
# | 5 loss and loop | put two terms into one unit; train | 20 | 2½ | 1 |
# | 6 scores, pictures | tell reconstructions from generated images | 15 | 1½ | 1 |
# | 7 a choice | run a small comparison and read it | 15 | 1 | 1 |
# | 8 the plane | read a latent space | 10 | ½ | 1 |
# | | | **120** | **12** | **8** |
#
# **Marking scheme, out of 20.** A part's code has its marks when its check passes; half of them when the check's message
# is quoted and explained in words. An answer in words has one mark for the reason and none for a verdict without one.
# The model answers stand below each question. Whoever finishes early does the other half of part 7.

# %% [markdown] tags=["teacher"]
# **Handing it out.** `make practical` writes everything into `practical/handout/`: `student/`, `solution/` and
# `teacher/`, each with `local/vae.ipynb` and `colab/vae.ipynb`. The student's file is all a student needs: the checks and
# the helpers are inside.
#
# - *Files:* give `student/local/vae.ipynb`. It needs PyTorch, torchvision, Matplotlib and ipywidgets.
# - *Colab:* put `student/colab/vae.ipynb` on Drive or in a public repository. Its first cell asks for lowest versions
#   only, and so installs nothing where the runtime has them.
# - *JupyterHub:* put the file into a clone of the repository: the images are found in `data/`.
#
# **A room without network.** Copy the four archives of `data/MNIST/raw/` into a folder `data/MNIST/raw/` beside the
# notebook, or in any folder above it: they are looked for there first, and then nothing is downloaded.
#
# **Time.** The solved sheet takes about four minutes of one core with both halves of part 7, nearly all of it in parts 6
# and 7. With `FAST = True`, or with the environment variable `NOTEBOOK_PROFILE=fast-test`, it trains on a few hundred
# images and takes under a minute: run it so once in the room before the class comes.
#
# **When a check fails** it says what came and what should have come, then where to look. `checks.hint()` names the
# mistake. Let a group read the first message for five minutes before they ask for the second. A mistake that is not in
# the table of the checks gets the numbers alone: nobody is accused on suspicion.

# %% [markdown] tags=["teacher"]
# **Mistakes to expect, and what the check says to each.** Each of them runs and shows a falling loss, which looks
# plausible. The full table stands at the end of this notebook.
#
# | mistake | what the check says first | what `checks.hint()` adds |
# |---|---|---|
# | `reparameterize`: one noise vector for the whole batch | Whose noise is it? Compare two images. | One vector is drawn and broadcast over the batch. Every image needs its own: look at the shape of the noise. |
# | `reparameterize`: σ² for σ | The noise has the wrong width. Compare it with σ, and with what the encoder gives you. | The noise is scaled by the variance. logvar is log σ²: which power of e gives σ? |
# | `reparameterize`: log σ² used as σ | The noise has the wrong width: at σ = 1 there is none at all. | logvar itself multiplies the noise. It is a logarithm: a step is missing. |
# | `reparameterize`: gradient cut | The values are right. Now think of the way back: can a gradient pass? | The graph is cut, by .data, .detach(), .item() or no_grad: only ε may be drawn (torch.normal, too, stops a gradient); the rest is arithmetic. |
# | `Encoder`: logarithm of the square of a raw output | The second answer went through a function that forgets the sign. | The layer's output was taken for σ and log(σ²) computed from it. Here it *is* log σ²: no logarithm is needed. |
# | `Decoder`: sigmoid at the end | These are probabilities. The sheet asks for what comes before them. | A sigmoid ends the decoder. The cost takes logits and applies it itself: it would be applied twice. |
# | `kl_divergence`: sign | A KL divergence is never negative. Yours always is. | This is minus the KL: the form in which it stands in the ELBO. The handout's ½ has a sign before it. |
# | `kl_divergence`: mean over the coordinates | One number per image, but the wrong size. How do independent coordinates combine? | The coordinates were averaged. What independent coordinates cost adds up, in nats; only then do both terms of the loss have the same unit. |
# | `reconstruction_cost`: mean over the pixels | One number per image, but the wrong size. How do independent pixels combine? | The pixels were averaged. What independent pixels cost adds up, in nats; only then do both terms of the loss have the same unit. |
# | `reconstruction_cost`: mean over everything | One small number came for the whole batch: the function's own default. | The cross-entropy averages over pixels and images unless it is told otherwise: look at its argument `reduction`. |
# | `reconstruction_cost`: sigmoid twice | Logits of ±50 are certainty, and right. Yet they cost: who was told ½ where 0 was meant? | A sigmoid was applied to the logits, and the function with `with_logits` applies another one. |
# | `negative_elbo`: recon averaged, KL summed over the batch | One of the two terms grows with the batch, and the other does not. | The KL is summed over the images beside a mean of the reconstruction: with 128 images it weighs 128 times. |
# | `negative_elbo`: decoded at mu | What did the decoder get? Compare with what part 2 draws. | The decoder got mu, not a draw: an expectation under q was replaced by the value at its centre. |
# | `train_epoch`: zero_grad forgotten | The steps grow: something from the steps before is still there. | backward() adds to the gradients it finds. They have to be emptied before each step. |
# | `evaluate`: mean of batch means | Close, but it depends on how the images fall into batches. | The means of the batches were averaged, and the last batch is smaller: its images count more. Sum over images, divide by images. |
# | `generate`: generator not used | The film of a model that does not move must stand still. | The noise is drawn without the given generator: every picture of the film would show other codes. |

# %% [markdown]
# # Practical: a variational auto-encoder in two hours
#
# You will write a VAE for handwritten digits, piece by piece. In the end two sliders move through its latent plane
# (*espace latent*), and the digit follows.
#
# **How a part works.** The *idea*, in a few lines. A *hole*: a function whose signature and one-line instruction are
# given. Put your lines in the place of `raise NotImplementedError` and of the `assert` below it, and run the cell. Then a
# *check*, in its own cell: it says what came and what should have come. If the message is not enough, run
# `checks.hint()` in a new cell. Last a *question*, to be answered in words: double-click the cell and write. Whoever
# mends a function later runs its cell again, and trains again.
#
# | part | minutes | | part | minutes |
# |---|---|---|---|---|
# | 0 Images | 5 | | 5 Loss and training | 20 |
# | 1 Encoder and decoder | 20 | | 6 Scores and pictures | 15 |
# | 2 The draw | 10 | | 7 Convolution, or latent dimension | 15 |
# | 3 The KL divergence | 15 | | 8 The latent plane | 10 |
# | 4 The likelihood | 10 | | | |
#
# **Words and shapes.** `x` is a batch of images, (B, 1, 28, 28), between 0 (paper) and 1 (ink). `mu` and `logvar`, both
# (B, latent_dim), are the encoder's answer; `logvar` is $\log\sigma^2$, which the handout calls *logsigma*. `z` is a
# code, `logits` the decoder's answer. Costs are in **nats per image**: natural logarithms, summed over the pixels.
# `torch`, `nn` (`torch.nn`) and `F` (`torch.nn.functional`) are imported.

# %% tags=["colab"]
# Lowest versions only: where the runtime has them, nothing is installed.
# %pip install --quiet "torch>=2.2" "torchvision>=0.17" "numpy>=1.24" "matplotlib>=3.8" "ipywidgets>=7.7" "pillow>=9.4"

# %% [markdown]
# First what is given. Run these cells; you need not read them. MNIST is read from `data/MNIST/raw`, here or in a folder
# above, and downloaded where there is none. Parts 6 and 7 train for a minute or two each, on one free core. `FAST = True`
# trains on a few hundred images only: the whole sheet then runs in a minute, and the digits stay blurred.

# %%
# [[imports]]

import os

FAST = os.environ.get("NOTEBOOK_PROFILE") == "fast-test"  # or write True
N_TRAIN, N_TEST, N_EPOCHS = (512, 256, 2) if FAST else (60_000, 10_000, 10)

# %% jupyter={"source_hidden": true} cellView="form"
# The checks. They hold wrong versions only: whoever peeks learns what not to write.
import practical.checks as checks

# %% jupyter={"source_hidden": true} cellView="form"
# Pictures.
import matplotlib.pyplot as plt
import torch


def image_rows(rows, title=""):
    """A figure with one labelled row of images (n, 1, 28, 28) for each entry."""
    fig, axes = plt.subplots(len(rows), 1, squeeze=False, figsize=(7, 0.5 + 0.65 * len(rows)), layout="constrained")
    for ax, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        ax.imshow(1 - torch.cat([*images.detach()], dim=-1)[0].numpy(), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], frame_on=False)
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
    fig.suptitle(title)
    return fig


# %% jupyter={"source_hidden": true} cellView="form"
# The data: from a folder data/MNIST/raw here or above, else by torchvision, which downloads it.
import gzip
from pathlib import Path

import numpy as np


def load_mnist(train):
    """Integer pixels (n, 28, 28) from 0 to 255, and the labels (n,)."""
    name = "train" if train else "t10k"
    for folder in (Path.cwd(), *Path.cwd().parents):
        raw = folder / "data" / "MNIST" / "raw"
        if (raw / f"{name}-images-idx3-ubyte.gz").is_file():
            files = (raw / f"{name}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
            images, labels = (
                torch.frombuffer(bytearray(gzip.decompress(f.read_bytes())), dtype=torch.uint8) for f in files
            )
            return images[16:].view(-1, 28, 28), labels[8:].long()  # behind a header of 16 or 8 bytes
    from torchvision.datasets import MNIST

    dataset = MNIST("data", train=train, download=True)
    return dataset.data, dataset.targets


# %% [markdown]
# ## 0. Images (5 minutes)
#
# MNIST's pixels are bytes: 0 for paper, 255 for ink. We read a pixel as a **probability of ink**. So it must lie between
# 0 and 1, as a floating-point number (`float32`), and grey levels (*niveaux de gris*) must be kept. A batch of images has
# the shape (B, 1, 28, 28): the 1 is the single colour channel.


# %%
def to_images(pixels):
    """Images in [0, 1], float32 (n, 1, 28, 28), from bytes (n, 28, 28)."""
    # [[student]] Return float32 in [0, 1], with a channel axis of length 1 behind the first axis.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("Return float32 in [0, 1], with a channel axis of length 1 behind the first axis.")
    return pixels.unsqueeze(1).float() / 255
    # [[/student]]


# %%
checks.images(to_images)

# %% [markdown]
# Two sets: the model learns from the training images (*apprentissage*) and is judged on the others (*test*).

# %%
(pixels_train, y_train), (pixels_test, y_test) = load_mnist(train=True), load_mnist(train=False)
x_train, x_test = to_images(pixels_train[:N_TRAIN]), to_images(pixels_test[:N_TEST])
checks.unseen(x_train, x_test)
figure = image_rows({"train": x_train[:12], "test": x_test[:12]})

# %% [markdown]
# ## 1. Encoder and decoder (20 minutes)
#
# The encoder (*encodeur*) does not return a code, but the **parameters of a distribution** of codes,
# $q(z|x) = N(\mu, \mathrm{diag}(\sigma^2))$; the decoder (*décodeur*) not an image, but a probability of ink for each
# pixel. Both are linear → ReLU → linear. Any real number can be a mean, a logarithm ($\log\sigma^2$) or a logit: so
# **nothing follows the last layers**. The handout's last *sigmoïde* turns logits into probabilities; here it is applied
# where one looks at them.


# %%
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    """q(z|x): from images (B, 1, 28, 28) to mu and logvar, each (B, latent_dim)."""

    def __init__(self, latent_dim, hidden=400):
        super().__init__()
        self.hidden = nn.Linear(784, hidden)
        self.mu = nn.Linear(hidden, latent_dim)
        self.logvar = nn.Linear(hidden, latent_dim)

    def forward(self, x):
        # [[student]] Flatten x to (B, 784); self.hidden, ReLU; return self.mu and self.logvar of that.
        # [[assert]] Your lines replace this line and the one above.
        ## raise NotImplementedError("Flatten x to (B, 784); self.hidden, ReLU; return self.mu and self.logvar of that.")
        h = F.relu(self.hidden(x.flatten(1)))
        return self.mu(h), self.logvar(h)
        # [[/student]]


# %%
checks.encoder(Encoder)


# %%
class Decoder(nn.Module):
    """p(x|z): from codes (B, latent_dim) to logits (B, 1, 28, 28)."""

    def __init__(self, latent_dim, hidden=400):
        super().__init__()
        self.hidden = nn.Linear(latent_dim, hidden)
        self.out = nn.Linear(hidden, 784)

    def forward(self, z):
        # [[student]] self.hidden, ReLU, self.out; return the result as pictures, row by row.
        # [[assert]] Your lines replace this line and the one above.
        ## raise NotImplementedError("self.hidden, ReLU, self.out; return the result as pictures, row by row.")
        return self.out(F.relu(self.hidden(z))).view(-1, 1, 28, 28)
        # [[/student]]


# %%
checks.decoder(Decoder)

# %% [markdown]
# **Question 1.** Why does the encoder return $\log\sigma^2$, and not $\sigma$ itself?
#
# *Your answer:*

# %% [markdown] tags=["teacher"]
# **Model answer 1** (1 mark). σ must be positive, and a linear layer returns any number. Its exponential is always
# positive, so the network needs no constraint; and σ can become very small or large by a moderate step of the output,
# which keeps gradients of a reasonable size (the handout: *pour des raisons de stabilité*). ½ for "σ must be positive".

# %% [markdown]
# The pair is one model. This is given:


# %%
class VAE(nn.Module):
    """An encoder, a decoder, and the dimension of the plane or space between them."""

    def __init__(self, encoder, decoder, latent_dim):
        super().__init__()
        self.encoder, self.decoder, self.latent_dim = encoder, decoder, latent_dim


def mlp_vae(latent_dim):
    """A new model of the two networks above."""
    return VAE(Encoder(latent_dim), Decoder(latent_dim), latent_dim)


# %% [markdown]
# ## 2. The draw (10 minutes)
#
# A code is *drawn* from $q(z|x)$. But no gradient passes through a draw: how would it change if μ did? The way out
# (*reparametrization trick*): draw noise that depends on nothing, $\epsilon \sim N(0, I)$, and move it into place,
# $z = \mu + \sigma \odot \epsilon$. Now $z$ is a plain function of μ and σ, and gradients pass.
#
# $\odot$ multiplies number by number: every image, and every coordinate of it, has noise of its own, drawn anew at every
# call. Mind what `logvar` is: $\log\sigma^2$, not σ.


# %%
def reparameterize(mu, logvar):
    """A draw z ~ N(mu, sigma²) for each image, (B, latent_dim), through which gradients pass."""
    # [[student]] Draw eps of the shape of mu from N(0, I), and return mu + sigma * eps.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("Draw eps of the shape of mu from N(0, I), and return mu + sigma * eps.")
    eps = torch.randn_like(mu)
    return mu + torch.exp(0.5 * logvar) * eps
    # [[/student]]


# %%
checks.reparameterization(reparameterize)

# %% [markdown]
# **Question 2.** Suppose one vector ε were used for all images of a batch. The loss would still fall. What would be
# wrong?
#
# *Your answer:*

# %% [markdown] tags=["teacher"]
# **Model answer 2** (1 mark). Each term is still right on average, but the images of a batch no longer have independent
# noise: the average over the batch does not average the noise, so the gradient is much noisier, and all codes of a batch
# move in the same direction. Nothing in the curve tells: only a check does. ½ for "the draws are not independent".

# %% [markdown]
# ## 3. The KL divergence (15 minutes)
#
# If every image could choose a narrow place of its own far from all others, codes would be a mere list of addresses. So
# distance from the prior (*probabilité a priori*) $p(z) = N(0, I)$ has a price, $KL(q(z|x) \| p(z))$: zero if
# $q$ is the prior, positive otherwise, **one number for each image**, summed over its $d$ coordinates. The handout's
# closed form:
#
# $$KL(q(z|x) \| p(z)) = -\frac12 \sum_{i=1}^{d} \left(1 + \log\sigma_i^2 - \mu_i^2 - \sigma_i^2\right).$$


# %%
def kl_divergence(mu, logvar):
    """KL(q(z|x) ‖ N(0, I)) of each image, (B,), in nats."""
    # [[student]] Return the closed form above, summed over the coordinates (not over the images).
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("Return the closed form above, summed over the coordinates (not over the images).")
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
    # [[/student]]


# %%
checks.divergence(kl_divergence)

# %% [markdown]
# **Question 3.** Which encoder pays no KL for any image? What can a decoder then show?
#
# *Your answer:*

# %% [markdown] tags=["teacher"]
# **Model answer 3** (1 mark). The one that answers $\mu = 0$, $\sigma = 1$ whatever the image. The code then says nothing
# about the image, and the best the decoder can do is one picture for all: the mean image of the training set, a blur.
# This is *posterior collapse*. ½ for the encoder, ½ for the picture.

# %% [markdown]
# ## 4. The likelihood (10 minutes)
#
# How well does the decoder's answer fit an image? Each pixel is one Bernoulli with probability of ink
# $\pi_i = \mathrm{sigmoid}(\mathrm{logit}_i)$; the cost is minus the log-likelihood (*log-vraisemblance*), **summed over the
# pixels**: $-\sum_i \left[ x_i \log \pi_i + (1 - x_i) \log(1 - \pi_i) \right]$, the binary cross-entropy.
#
# Compute it from the logits: a probability rounded to 0 has no logarithm. PyTorch has a function for it (its name ends in
# `with_logits`); find out what it does with the pixels unless told otherwise.


# %%
def reconstruction_cost(logits, x):
    """−log p(x|z) of each image, (B,), in nats."""
    # [[student]] Return the binary cross-entropy, summed over all pixels (not over the images).
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("Return the binary cross-entropy, summed over all pixels (not over the images).")
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    # [[/student]]


# %%
checks.cost(reconstruction_cost)

# %% [markdown]
# **Question 4.** A decoder that knows nothing says ½ for every pixel. What does an image cost then? And can the cost of
# a *grey* image ever reach 0?
#
# *Your answer:*

# %% [markdown] tags=["teacher"]
# **Model answer 4** (1 mark). One bit per pixel, $784 \log 2 \approx 543$ nats, whatever the image. And no: a pixel of
# grey $x$ costs least at $\pi = x$, and then its entropy $-x \log x - (1-x) \log(1-x) > 0$. Summed over an image of the
# test set this floor is about 45.5 nats on average. A smaller score is a mistake. ½ for each half.

# %% [markdown]
# ## 5. Loss and training (20 minutes)
#
# The loss is the handout's $\mathcal{L}_{VI}$, the negative ELBO: the cost of the image given its code, plus the price of
# the code. Both are in nats per image, so they may be added; the batch is averaged.
#
# $$\mathcal{L} = \frac1B \sum_{b=1}^{B} \left[ -\log p(x_b|z_b) + KL(q(z|x_b) \| p(z)) \right], \qquad z_b \sim q(z|x_b).$$


# %%
def negative_elbo(model, x):
    """The loss: mean over the batch of −log p(x|z) + KL, one number, in nats per image."""
    # [[student]] model.encoder, a draw, model.decoder; return the mean over the images of both terms' sum.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("model.encoder, a draw, model.decoder; return the mean over the images of both terms' sum.")
    mu, logvar = model.encoder(x)
    logits = model.decoder(reparameterize(mu, logvar))
    return (reconstruction_cost(logits, x) + kl_divergence(mu, logvar)).mean()
    # [[/student]]


# %%
checks.loss(negative_elbo)

# %% [markdown]
# One epoch goes through all the training images once, in a new random order, batch by batch; the last batch may be
# smaller. Each batch makes one step: empty the gradients, differentiate the loss, let the optimiser move. (Hint:
# `torch.randperm(n)` is a random order, and `tensor.split(k)` cuts a tensor into pieces of `k`.)


# %%
def train_epoch(model, optimizer, x, batch_size=128):
    """Go once through the images x, in a new order, with one step for each batch."""
    # [[student]] For each batch of a new order: empty the gradients, differentiate the loss, make a step.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("For each batch of a new order: empty the gradients, differentiate the loss, make a step.")
    for index in torch.randperm(len(x)).split(batch_size):
        optimizer.zero_grad()
        negative_elbo(model, x[index]).backward()
        optimizer.step()
    # [[/student]]


# %%
checks.epoch(train_epoch)

# %% [markdown]
# **Question 5.** Someone writes the *mean* over the 784 pixels in part 4 and keeps the sum over coordinates in part 3.
# The loss falls nicely, from 0.7 to about 0.26. What are the reconstructions like, and why?
#
# *Your answer:*

# %% [markdown] tags=["teacher"]
# **Model answer 5** (1 mark). The two terms have different units: 784 times the loss is recon + 784 · KL, a β-VAE with
# β = 784. The price of a code is so high that the encoder says nothing (answer 3), and every reconstruction is the same
# blur, whose cost is about 206 nats, or 0.26 per pixel. ½ for the picture, ½ for the reason. Appendix A of the
# report, `notebooks/A_common_mistakes.ipynb`, trains this mistake and shows it.

# %% [markdown]
# ## 6. Scores and pictures (15 minutes)
#
# A score is the mean negative ELBO over **all images of a set**: sum over the images, divide by their number. (A mean of
# batch means counts the images of a small last batch more than the others.) A **reconstruction** starts from an image. A
# **generated** image starts from nothing but the prior: $z \sim p(z)$, then the decoder. To see the decoder learn, the
# *same* codes must be decoded after each epoch: their noise comes from a generator that is passed in.


# %%
@torch.no_grad()
def evaluate(model, x, batch_size=1000):
    """Mean negative ELBO over all images of x, a float, in nats per image."""
    # [[student]] Sum negative_elbo over batches, each times its number of images; divide by all images.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("Sum negative_elbo over batches, each times its number of images; divide by all images.")
    return sum(len(batch) * negative_elbo(model, batch).item() for batch in x.split(batch_size)) / len(x)
    # [[/student]]


# %%
checks.evaluation(evaluate)


# %%
@torch.no_grad()
def generate(model, n_images, generator):
    """Probabilities of ink of n_images new images, (n_images, 1, 28, 28), decoded from draws of the prior."""
    # [[student]] Draw n_images codes by torch.randn(..., generator=generator); decode; return the sigmoid.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("Draw n_images codes by torch.randn(..., generator=generator); decode; return the sigmoid.")
    return model.decoder(torch.randn(n_images, model.latent_dim, generator=generator)).sigmoid()
    # [[/student]]


# %%
checks.generation(generate)

# %% [markdown]
# The rest of the training is given. After every epoch one picture is drawn anew: training images and their
# reconstructions, test images and theirs, and the same ten draws of the prior. Watch which becomes sharp first.

# %%
from IPython.display import display


@torch.no_grad()
def reconstruct(model, x):
    """Probabilities of ink decoded from mu: what the model makes of an image, without noise."""
    return model.decoder(model.encoder(x)[0]).sigmoid()


def fit(model, x_train, x_test, n_epochs, lr=1e-3):
    """Train on x_train, redraw one picture after each epoch, and return the −ELBO of both sets by epoch."""
    checks.unseen(x_train, x_test, quiet=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    handle, scores = None, []
    for epoch in range(1, n_epochs + 1):
        train_epoch(model, optimizer, x_train)
        scores.append((evaluate(model, x_train[:10_000]), evaluate(model, x_test)))
        rows = {"train": x_train[:10], "train rebuilt": reconstruct(model, x_train[:10])}
        rows |= {"test": x_test[:10], "test rebuilt": reconstruct(model, x_test[:10])}
        rows |= {"generated": generate(model, 10, torch.Generator().manual_seed(0))}
        title = f"latent_dim {model.latent_dim}, epoch {epoch} of {n_epochs}: −ELBO {scores[-1][0]:.1f} train, {scores[-1][1]:.1f} test"
        figure = image_rows(rows, title)
        plt.close(figure)  # it is shown below, once
        if handle is None:
            handle = display(figure, display_id=True)
        else:
            handle.update(figure)
    return scores


# %%
torch.manual_seed(0)
model_2d = mlp_vae(latent_dim=2)
scores = fit(model_2d, x_train, x_test, N_EPOCHS)

# %%
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(range(1, N_EPOCHS + 1), scores, "o-", label=["train", "test"])
ax.set(xlabel="epoch", ylabel="−ELBO, nats per image")
ax.legend()
plt.show()
checks.score(scores[-1][1], x_test)
# [[remove]]
# What the solved sheet reaches; a group's own may differ by a few nats.
assert FAST or 145 < scores[-1][1] < 165, scores[-1]
# [[/remove]]

# %% [markdown]
# **Question 6.** Compare the rows of the last picture. Which are better, the reconstructions or the generated images?
# Why should one never show the first under the title of the second?
#
# *Your answer:*

# %% [markdown] tags=["teacher"]
# **Model answer 6** (1 mark). The reconstructions. Their codes come from the encoder, which has seen the image: they lie
# where the decoder was trained. A draw of the prior can fall between the classes, or where no image was encoded, and
# decodes to something between digits. Only the generated images say how good a model of $p(x)$ it is; reconstructions
# under that title hide its weakness.

# %% [markdown]
# ## 7. Convolution, or latent dimension (15 minutes)
#
# Choose one with your group, and say so in the next cell. **7a, latent dimension:** how do the two terms change with the
# number of coordinates? Write your guess under question 7 first. **7b, convolution:** the encoder is given; write its
# mirror, the decoder of transposed convolutions (*déconvolution*).

# %%
CHOICE = {"dimension"}  # or {"convolution"}, or {"dimension", "convolution"}
EPOCHS_7 = 2 if FAST else 4

# %% [markdown]
# ### 7a. The latent dimension
#
# `both_terms` tells the two costs of a trained model apart. `compare` should train a *new* model for every dimension:
# a model that goes on from the last one would have had more epochs.


# %%
@torch.no_grad()
def both_terms(model, x):
    """Mean cost of the images and mean KL, in nats per image."""
    mu, logvar = model.encoder(x)
    logits = model.decoder(reparameterize(mu, logvar))
    return reconstruction_cost(logits, x).mean().item(), kl_divergence(mu, logvar).mean().item()


def compare(dimensions, n_epochs):
    """(recon, KL) on the test images, by latent dimension."""
    # [[student]] For each dimension fit a new mlp_vae; return {dimension: both_terms(model, x_test)}.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("For each dimension fit a new mlp_vae; return {dimension: both_terms(model, x_test)}.")
    results = {}
    for dimension in dimensions:
        model = mlp_vae(dimension)
        fit(model, x_train, x_test, n_epochs)
        results[dimension] = both_terms(model, x_test)
    return results
    # [[/student]]


# %%
if "dimension" in CHOICE:
    results = compare((2, 5, 10, 20), EPOCHS_7)
    for dimension, (recon, kl) in results.items():
        print(f"latent_dim {dimension:2d}: recon {recon:.1f} + KL {kl:.1f}")
        checks.score(recon + kl, x_test)

# %% [markdown]
# ### 7b. Convolution
#
# The encoder halves the side twice, 28 → 14 → 7. The decoder doubles it twice: a linear layer to `32 * 7 * 7`, ReLU,
# `nn.Unflatten(1, (32, 7, 7))`, `nn.ConvTranspose2d` to 16 channels, ReLU, and another one to 1. A transposed convolution
# with kernel 4, stride 2 and padding 1 doubles a side exactly.


# %%
class ConvEncoder(nn.Module):
    """q(z|x) by convolutions: 28 → 14 → 7."""

    def __init__(self, latent_dim):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),  # (B, 16, 14, 14)
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),  # (B, 32, 7, 7)
            nn.ReLU(),
            nn.Flatten(),
        )
        self.mu, self.logvar = nn.Linear(32 * 7 * 7, latent_dim), nn.Linear(32 * 7 * 7, latent_dim)

    def forward(self, x):
        h = self.layers(x)
        return self.mu(h), self.logvar(h)


class ConvDecoder(nn.Module):
    """p(x|z) by transposed convolutions: 7 → 14 → 28."""

    def __init__(self, latent_dim):
        super().__init__()
        # [[student]] self.layers: an nn.Sequential of the six layers named above.
        # [[assert]] Your lines replace this line and the one above.
        ## raise NotImplementedError("self.layers: an nn.Sequential of the six layers named above.")
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 32 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),  # (B, 16, 14, 14)
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),  # (B, 1, 28, 28)
        )
        # [[/student]]

    def forward(self, z):
        return self.layers(z)


# %%
if "convolution" in CHOICE:
    checks.convolution(ConvDecoder)
    conv = VAE(ConvEncoder(2), ConvDecoder(2), 2)
    conv_scores = fit(conv, x_train, x_test, EPOCHS_7)
    checks.score(conv_scores[-1][1], x_test)
    for name, model, curve in [("linear layers", model_2d, scores), ("convolutions", conv, conv_scores)]:
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {n_parameters:,} parameters, −ELBO {curve[EPOCHS_7 - 1][1]:.1f} after {EPOCHS_7} epochs")

# %% [markdown]
# **Question 7.** (7a) What do recon and KL each do as the dimension grows, and why does their sum not fall for ever?
# (7b) Compare parameters, and −ELBO after the same number of epochs. What does a convolution know about images that a
# linear layer has to learn?
#
# *Your answer:*

# %% [markdown] tags=["teacher"]
# **Model answer 7** (1 mark, for either). (7a) recon falls, because more can be said; KL rises, because what is said is
# paid for. Each new coordinate brings less: after four epochs the solved sheet has about 160, 132, 116 and 110 nats. From
# some dimension on a coordinate saves less than it costs: the encoder leaves it at the prior, unused, and the sum stays.
# (7b) That a stroke is a stroke wherever it stands (the weights are shared over places) and that near pixels belong
# together (each weight sees a small window). So about 28,000 parameters come within a few nats of 631,000.

# %% [markdown]
# ## 8. The latent plane (10 minutes)
#
# With `latent_dim = 2` the whole latent space fits on the screen. Every test image becomes a point: its mean `mu`. The
# labels, which the model has never seen, give the colours. Then the other way: choose a point, and look at what the
# decoder makes of it.


# %%
@torch.no_grad()
def codes(model, x):
    """The place of each image in latent space: the mean of q(z|x), (n, latent_dim)."""
    # [[student]] Return the means that model.encoder gives for x.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("Return the means that model.encoder gives for x.")
    return model.encoder(x)[0]
    # [[/student]]


# %%
checks.plane(codes)


# %%
@torch.no_grad()
def picture(model, z1, z2):
    """Probabilities of ink decoded at the point (z1, z2), (28, 28); z1 and z2 are Python floats."""
    # [[student]] Decode a batch of one code, (1, 2); return the sigmoid, without batch and channel axes.
    # [[assert]] Your lines replace this line and the one above.
    ## raise NotImplementedError("Decode a batch of one code, (1, 2); return the sigmoid, without batch and channel axes.")
    return model.decoder(torch.tensor([[z1, z2]])).sigmoid()[0, 0]
    # [[/student]]


# %%
checks.pixels(picture)

# %% [markdown]
# The drawing is given: the plane first, then the sliders. Move them with the mouse; JupyterLab takes the arrow keys too.

# %%
import io

import ipywidgets as widgets
from PIL import Image, ImageDraw

z_test, labels_test = np.asarray(codes(model_2d, x_test)), np.asarray(y_test[:N_TEST])
LIMIT = max(4, int(np.ceil(np.quantile(np.abs(z_test), 0.995))))  # the plane is shown from −LIMIT to LIMIT


def draw_plane(ax, z, labels):
    """Points (n, 2), coloured by their labels; each class is named at its median."""
    ax.scatter(z[:, 0], z[:, 1], c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=4, alpha=0.6, linewidths=0)
    for label in range(10):
        place = np.median(z[labels == label], axis=0)
        box = {"facecolor": f"C{label}", "edgecolor": "black", "pad": 1.5}
        ax.text(*place, label, weight="bold", ha="center", va="center", bbox=box)
    ax.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")


def explore(model, z, labels, side=280):
    """Two sliders; the point they choose on the plane, and the digit decoded there."""
    figure = plt.figure(figsize=(side / 100, side / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    draw_plane(ax, z, labels)
    ax.axis("off")
    figure.canvas.draw()
    plane = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").resize((side, side))
    plt.close(figure)
    options = {"min": -LIMIT, "max": LIMIT, "step": 0.05, "layout": widgets.Layout(width=f"{2 * side + 20}px")}
    sliders = [widgets.FloatSlider(0, description=name, **options) for name in ("z1", "z2")]
    shown = widgets.Image(format="png", width=2 * side + 20, height=side)

    def redraw(_=None):
        z1, z2 = (slider.value for slider in sliders)
        ink = np.asarray(picture(model, z1, z2))
        digit = Image.fromarray((255 * (1 - ink)).astype(np.uint8)).resize((side, side), Image.NEAREST)
        both = Image.new("RGB", (2 * side + 20, side), "white")
        both.paste(plane, (0, 0))
        both.paste(digit, (side + 20, 0))
        x, y = (side * (0.5 + value / (2 * LIMIT)) for value in (z1, -z2))
        ImageDraw.Draw(both).ellipse((x - 6, y - 6, x + 6, y + 6), outline="black", fill="white", width=3)
        file = io.BytesIO()
        both.save(file, "png")
        shown.value = file.getvalue()

    for slider in sliders:
        slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([*sliders, shown])


fig, ax = plt.subplots(figsize=(5.5, 5.5))
draw_plane(ax, z_test, labels_test)
plt.show()

# %%
explore(model_2d, z_test, labels_test)

# %% [markdown]
# **Question 8.** Find two classes that touch, and move slowly from one to the other. What does the decoder show on the
# way? Then go to a place where no image was encoded. What is shown there, and why does the model not say "nothing"?
#
# *Your answer:*

# %% [markdown] tags=["teacher"]
# **Model answer 8** (1 mark). Between two classes the digit changes continuously, through shapes that are neither, or
# blurred sums of both, because the decoder is a continuous function, and draws around the codes of both classes overlap
# there. Where nothing was encoded the decoder extrapolates: it is a function of the whole plane and must return
# probabilities everywhere. Whether a place is likely is said by the prior and by the codes, not by the decoder.

# %% [markdown]
# **Done early?** Do the other half of part 7. Or break one of your functions on purpose, train for one epoch, and find
# the mistake from the pictures alone.

# %% [markdown] tags=["teacher"]
# ## All mistakes that the checks know
#
# Run the sheet, then this cell: each known mistake, what the check says, and what `checks.hint()` adds.

# %% tags=["teacher"]
from IPython.display import Markdown

display(Markdown(checks.table_of_mistakes()))
