// The explorer's view, for a notebook (an anywidget module) and for the page that `to_html` writes. Python joins the
// modules beside this one before it (see __init__.py), so that nothing is fetched at run time.
//
// The model's traits: `networks` (layers of encoder and decoder) with their `weights`; `images` with their `labels`
// and means `mu`; the `hearts` of the classes; `quantiles` of each term of the loss over the images; `walks` as lists
// of points; the half-width `limit` of the plane; the point (`z1`, `z2`); and `own_sliders`, true where no Jupyter
// sliders stand beside the widget.

import { clamp, likeMnist, makeSketch, onDrag, onKeys, PEN } from "./drawing.js";
import { decode, encode, inflate, klPerDim, loadNetworks, N_PIXELS, pixelCosts, SIDE, sigmoid, total } from "./networks.js";
import { N_STD, nearest, Plane, setAttributes, svg } from "./plane.js";

const STEP = 0.01; // of the sliders
const N_NEAREST = 8;
const FAR = 4; // standard deviations: of 3,000 draws of q(z|x) about one lies farther from its mean
const PLAY = 6000; // milliseconds of a walk
const HOTTEST = 3; // nats of a pixel, from which on the heat is full
const TERMS = {
  kl_1: "KL of z₁",
  kl_2: "KL of z₂",
  recon: 'recon<span class="exact"> = −log p(x|z)</span>',
  neg_elbo: '−ELBO<span class="exact"> = KL + recon</span>',
};

/** Show pixel values in [0, 1], ink on paper. */
function paint(canvas, x) {
  const context = canvas.getContext("2d", { willReadFrequently: true }); // so few pixels are quicker in memory
  const image = context.createImageData(SIDE, SIDE);
  const pixels = new Uint32Array(image.data.buffer); // opacity, then three times the grey level
  for (let i = 0; i < x.length; i++) pixels[i] = 0xff000000 + 0x010101 * (255 - Math.round(255 * x[i]));
  context.putImageData(image, 0, 0);
}

/** Show costs of pixels in nats, from white to a dark red. */
function paintHeat(canvas, costs) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < costs.length; i++) {
    const share = Math.min(costs[i] / HOTTEST, 1);
    image.data.set([255 - 105 * share, 255 * (1 - share), 255 * (1 - share), 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

const signed = (value, decimals = 2) => value.toFixed(decimals).replace("-", "−");

const pair = (values, decimals) => `(${values.map((value) => signed(value, decimals)).join(", ")})`;

const withArticle = (label) => `${label === 8 ? "an" : "a"} ${label}`;

/** Which share of the test images cost less, from their quantiles at equal steps. */
export function shareBelow(quantiles, value) {
  const above = quantiles.findIndex((quantile) => quantile > value);
  if (above === 0) return 0;
  if (above < 0) return 1;
  const [low, high] = [quantiles[above - 1], quantiles[above]];
  return (above - 1 + (value - low) / (high - low)) / (quantiles.length - 1);
}

/** A bar of where the test images lie, 90 % in the thin box, half in the thick one; returns what marks a value. */
function drawBar(bar, quantiles) {
  const at = (share) => quantiles[Math.round(share * (quantiles.length - 1))];
  const [low, high] = [at(0), at(0.95) + 0.3 * (at(0.95) - at(0.05))]; // beyond, a mark stays at the end
  const place = (value) => 2 + (116 * (clamp(value, low, high) - low)) / (high - low || 1);
  const box = (from, to, y, height) =>
    svg("rect", { x: place(at(from)), width: place(at(to)) - place(at(from)), y, height });
  const mark = svg("line", { class: "mark", y1: 0, y2: 16 });
  bar.append(svg("line", { class: "base", x1: 2, x2: 118, y1: 8, y2: 8 }), box(0.05, 0.95, 5, 6), box(0.25, 0.75, 2, 12));
  bar.append(svg("line", { class: "median", x1: place(at(0.5)), x2: place(at(0.5)), y1: 2, y2: 14 }), mark);
  return (value) => {
    mark.setAttribute("visibility", value === null ? "hidden" : "visible");
    if (value !== null) setAttributes(mark, { x1: place(value), x2: place(value) });
  };
}

const canvas = (name, label) =>
  `<canvas class="digit ${name}" width="${SIDE}" height="${SIDE}" role="img" aria-label="${label}"></canvas>`;

const thumbnail = (name) => `<button type="button" class="thumbnail ${name}">
  <canvas class="digit" width="${SIDE}" height="${SIDE}" aria-hidden="true"></canvas><span></span></button>`;

const plane = (side) => `<canvas width="${side}" height="${side}"></canvas>
  <svg aria-hidden="true"></svg><svg class="moving" aria-hidden="true"></svg>`;

/** The elements of a view; `id` makes its names its own. */
const skeleton = (id, limit, nNearest, nReady) => `<div class="body">
  <section class="line" aria-label="One image through the model">
    <figure>${canvas("seen", "The image x")}
      <figcaption><b>x</b> <span class="name wide-only"></span></figcaption></figure>
    <span class="arrow">encoder</span>
    <figure><div class="inset" role="img" aria-label="q(z|x), enlarged: its ellipse, its mean and z">${plane(240)}</div>
      <figcaption><b>q(z|x)</b> <span class="times"></span><br><button type="button" class="noise">draw z</button></figcaption></figure>
    <span class="arrow">decoder</span>
    <figure class="output" tabindex="0" aria-label="Pixel probabilities; with the focus here, what each pixel costs">
      <div class="stack">${canvas("large", "Decoded digit")}<canvas class="digit heat" width="${SIDE}" height="${SIDE}"
        aria-hidden="true"></canvas></div>
      <figcaption><b>π</b> <span class="wide-only">probabilities; point here: the cost of each pixel</span></figcaption></figure>
    <span class="arrow">draw</span>
    <figure>${canvas("sample", "A sample of the pixels")}
      <figcaption><b>sample</b><br><button type="button" class="again">draw pixels</button></figcaption></figure>
  </section>
  <section class="left" aria-label="Plane">
    ${["z1", "z2"].map((name) => `<label class="slider">${name.replace("1", "₁").replace("2", "₂")}
      <input type="range" name="${name}" min="${-limit}" max="${limit}" step="${STEP}"><span></span>
    </label>`).join("")}
    <div class="frame">
      <div class="pad" tabindex="0" role="application" aria-roledescription="plane with a movable point"
          aria-label="Latent plane, z1 to the right, z2 up" aria-describedby="${id}-plane">${plane(960)}</div>
      <div class="zoom">
        <button type="button" class="enlarge" aria-label="enlarge the plane">+</button>
        <button type="button" class="reduce" aria-label="reduce the plane">−</button>
        <button type="button" class="screen">full screen</button>
      </div>
    </div>
    <div class="walks" role="group" aria-label="Walks"></div>
    <p class="where"></p>
    <p class="hint" id="${id}-plane">
      Drag the point, or press the arrow keys on the plane (Shift: larger steps, Home: back to 0, + and −: enlarge; so
      does the wheel). Click a dot, the mean of q(z|x) of a test image, to send that image through the model. The dashed
      circles hold 50, 95 and 99.9 % of the prior. A number stands where its class is purest.
    </p>
  </section>
  <section class="right" aria-label="The loss and the images">
    <table><caption>What x costs, in nats</caption>
      <thead><tr><td></td><th scope="col">nats</th><th scope="col">the test images</th><th scope="col">cost less</th></tr></thead>
      <tbody>${Object.entries(TERMS).map(([name, text]) => `<tr class="${name}"><th scope="row">${text}</th><td></td><td>
        <svg class="bar" viewBox="0 0 120 16" preserveAspectRatio="none" aria-hidden="true"></svg></td><td></td></tr>`).join("")}</tbody>
    </table>
    <p class="numbers"></p>
    <section aria-label="Nearest test images">
      <h2>Nearest test images</h2><div class="strip">${thumbnail("near").repeat(nNearest)}</div>
    </section>
    <section aria-label="Choose x">
      <h2>Choose x: the first test image of each digit, or your own</h2>
      <div class="strip">${thumbnail("ready").repeat(nReady)}</div>
      <div class="own">
        <canvas class="sketch" width="280" height="280" tabindex="0" role="application"
          aria-roledescription="drawing area" aria-label="Draw a digit" aria-describedby="${id}-sketch"></canvas>
        <div><p class="hint" id="${id}-sketch">
          Draw a digit here. As MNIST's digits were, it is scaled to 20 × 20 pixels and centred by its centre of mass in
          28 × 28; its lines become ${PEN} pixels thick. By keyboard: the arrow keys move the pen, Space lowers or
          lifts it, Delete clears.</p><button type="button" class="clear">clear</button></div>
      </div>
    </section>
  </section>
  <p class="spoken" aria-live="polite"></p>
</div>`;

/** What the front end works with, unpacked from the model's traits. */
async function unpack(model) {
  const [networks, images, labels, mu] = await Promise.all([
    loadNetworks(model.get("networks"), model.get("weights")),
    ...["images", "labels", "mu"].map((name) => inflate(model.get(name))),
  ]);
  const image = (i) => new Float32Array(images.subarray(i * N_PIXELS, (i + 1) * N_PIXELS)).map((value) => value / 255);
  return { networks, image, labels: [...labels], mu: new Float32Array(mu.buffer) };
}

/** Draw the explorer into `el` and keep it in step with the model. */
async function render({ model, el }) {
  const { networks, image, labels, mu } = await unpack(model);
  const [limit, hearts, quantiles] = ["limit", "hearts", "quantiles"].map((name) => model.get(name));
  const firsts = [...new Set(labels)].toSorted().map((label) => labels.indexOf(label));
  const root = document.createElement("div");
  root.className = "tme-explorer";
  const id = `tme-${Math.random().toString(36).slice(2)}`; // each view in a notebook may have a module of its own
  root.innerHTML = skeleton(id, limit, Math.min(N_NEAREST, labels.length), firsts.length);
  const find = (selector) => root.querySelector(selector);
  const findAll = (selector) => [...root.querySelectorAll(selector)];
  const pad = find(".pad");
  const data = { mu, labels, hearts, limit };
  const map = new Plane(pad, data);
  const inset = new Plane(find(".inset"), data, { isInset: true });
  const bars = Object.keys(TERMS).map((name) => drawBar(find(`.${name} svg`), quantiles[name]));
  const cells = Object.keys(TERMS).map((name) => findAll(`.${name} > td`));
  const sliders = model.get("own_sliders") ? findAll(".slider input") : [];
  if (sliders.length === 0) findAll(".slider").forEach((slider) => slider.remove());

  let chosen = null; // the image x, its q(z|x) and the KL of each coordinate
  let uniforms = null; // one number for each pixel: the sample has ink where π exceeds it
  let near = []; // indices of the test images on the thumbnails
  let [isMoving, isDrawn, isStale] = [false, false, false];
  let [speech, walk] = [0, 0];

  /** The point moves; both coordinates change before anything is drawn. */
  function move(to) {
    isMoving = true;
    for (const [name, value] of Object.entries(to)) model.set(name, clamp(value, -limit, limit));
    isMoving = false;
    model.save_changes();
    update();
  }

  /** Draw at once, but no more than once a frame. */
  function update() {
    if (isMoving) return;
    isStale = isDrawn;
    if (isDrawn) return;
    draw();
    isDrawn = true;
    requestAnimationFrame(() => {
      isDrawn = false;
      if (isStale) update();
    });
  }

  function draw() {
    const z = [model.get("z1"), model.get("z2")];
    const logits = decode(networks, ...z);
    const probabilities = sigmoid(logits);
    paint(find(".large"), probabilities);
    paint(find(".sample"), probabilities.map((p, i) => Number(p > uniforms[i])));
    map.markPoint(...z);
    inset.markPoint(...z);
    showNearest(z);
    for (const slider of sliders) {
      slider.value = model.get(slider.name);
      slider.nextElementSibling.textContent = signed(model.get(slider.name));
    }
    const mass = 100 * (1 - Math.exp(-(z[0] ** 2 + z[1] ** 2) / 2));
    const closer = mass < 0.5 ? "Hardly any" : `About ${mass.toFixed(0)} %`;
    find(".where").textContent = `z = ${pair(z)}. ${closer} of the prior's draws lie closer to the centre.`;
    const costs = showLoss(z, logits);
    clearTimeout(speech); // a screen reader hears where a move ends, not every step
    speech = setTimeout(() => {
      const classes = near.map((i) => labels[i]).join(", ");
      const where = `z1 ${z[0].toFixed(2)}, z2 ${z[1].toFixed(2)}; recon ${costs.toFixed(1)} nats`;
      find(".spoken").textContent = `${where}; nearest test images: ${classes}`;
    }, 400);
  }

  function showNearest(z) {
    const before = near;
    near = nearest(mu, ...z, N_NEAREST);
    findAll(".near").forEach((button, k) => near[k] === before[k] || showThumbnail(button, near[k]));
  }

  function showThumbnail(button, i) {
    paint(button.firstElementChild, image(i));
    button.lastElementChild.textContent = labels[i];
    button.setAttribute("aria-label", `test image of ${withArticle(labels[i])}: send it through the model`);
  }

  /** The terms of the loss of x at this z; returns recon. */
  function showLoss(z, logits) {
    const { x, q, kl } = chosen;
    const costs = pixelCosts(logits, x);
    const recon = total(costs);
    paintHeat(find(".heat"), costs);
    const eps = z.map((value, j) => (value - q.mu[j]) / q.std[j]);
    const distance = Math.hypot(...eps);
    const isDraw = distance <= FAR;
    [...kl, recon, isDraw ? total(kl) + recon : null].forEach((value, row) => {
      bars[row](value);
      const share = value === null ? 0 : shareBelow(Object.values(quantiles)[row], value);
      cells[row][0].textContent = value === null ? "–" : signed(value);
      cells[row][2].textContent = value === null ? "" : `${Math.round(100 * share)} %`;
    });
    const noise = isDraw ? `ε = ${pair(eps)}` : `this z is ${distance.toFixed(0)} σ away from μ: q(z|x) draws no such z`;
    find(".numbers").textContent = `μ = ${pair(q.mu)}, σ = ${pair(q.std, 3)}\nz = μ + σ ⊙ ε = ${pair(z)}, ${noise}`;
    return recon;
  }

  /** Take an image as x, and a z from its q(z|x) unless the point is to stay; `eps` is new if none is given. */
  function choose(x, name, { stay = false, eps = [normal(), normal()] } = {}) {
    const q = encode(networks, x);
    chosen = { x, q, kl: klPerDim(q), eps };
    paint(find(".seen"), x);
    find(".name").textContent = name;
    find(".seen").setAttribute("aria-label", `The image x: ${name}`);
    const half = 2 * N_STD * Math.max(...q.std);
    find(".times").textContent = `× ${Math.round(limit / half)}`;
    for (const one of [map, inset]) one.markPosterior(q);
    inset.show(...q.mu, half);
    map.frame(inset.view);
    if (stay) update();
    else drawNoise(eps);
  }

  const chooseTestImage = (i, options) => choose(image(i), `test image of ${withArticle(labels[i])}`, options);

  function drawNoise(eps = [normal(), normal()]) {
    stop();
    chosen.eps = eps;
    const [z1, z2] = chosen.q.mu.map((mean, j) => mean + chosen.q.std[j] * eps[j]);
    move({ z1, z2 });
  }

  function drawPixels() {
    uniforms = Float32Array.from({ length: N_PIXELS }, Math.random);
    update();
  }

  function encodeDrawing(strokes, isNew) {
    if (strokes.length > 0) choose(likeMnist(strokes), "your drawing", isNew ? {} : { eps: chosen.eps });
  }

  function stop() {
    cancelAnimationFrame(walk);
    findAll(".walks [aria-pressed=true]").forEach((button) => button.setAttribute("aria-pressed", "false"));
  }

  /** Walk along a path of points, evenly in time; another press, or a hand on the plane, ends it. */
  function play(button, path) {
    const isPlaying = button.getAttribute("aria-pressed") === "true";
    stop();
    if (isPlaying) return;
    button.setAttribute("aria-pressed", "true");
    let start = null;
    const frame = (now) => {
      start ??= now;
      const t = Math.min((now - start) / PLAY, 1) * (path.length - 1);
      const k = Math.min(Math.floor(t), path.length - 2);
      const [z1, z2] = [0, 1].map((j) => path[k][j] + (t - k) * (path[k + 1][j] - path[k][j]));
      move({ z1, z2 });
      if (now - start < PLAY) walk = requestAnimationFrame(frame);
      else stop();
    };
    walk = requestAnimationFrame(frame);
  }

  const toStep = (value) => (map.view.half < limit ? value : Math.round(value / STEP) * STEP);
  const to = (x, y) => map.toPlane(x, y).map(toStep);
  const goTo = ([z1, z2]) => {
    stop();
    move({ z1, z2 });
  };
  const pick = (x, y) => {
    const at = map.toPlane(x, y);
    const [i] = nearest(mu, ...at, 1);
    const away = Math.hypot(mu[2 * i] - at[0], mu[2 * i + 1] - at[1]);
    if (away < 0.02 * map.view.half) chooseTestImage(i);
  };
  onDrag(pad, (x, y) => goTo(to(x, y)), pick);
  const step = (dx, dy, { shiftKey }) => {
    const size = ((shiftKey ? 0.5 : 0.1) * map.view.half) / limit;
    goTo([toStep(model.get("z1") + size * dx), toStep(model.get("z2") + size * dy)]);
  };
  const zoom = (factor) => () => map.zoom(factor);
  onKeys(pad, step, { Home: () => goTo([0, 0]), "+": zoom(2), "=": zoom(2), "-": zoom(0.5) });
  const onWheel = (event) => {
    if (!event.ctrlKey && document.activeElement !== pad) return; // the page scrolls past a plane without the focus
    event.preventDefault();
    map.zoom(Math.exp(-event.deltaY / 300));
  };
  pad.addEventListener("wheel", onWheel, { passive: false });
  for (const slider of sliders) {
    slider.addEventListener("input", () => {
      stop();
      move({ [slider.name]: slider.valueAsNumber });
    });
  }
  const onClick = (selector, action) => find(selector).addEventListener("click", action);
  onClick(".enlarge", zoom(2));
  onClick(".reduce", zoom(0.5));
  onClick(".noise", () => drawNoise());
  onClick(".again", drawPixels);
  if (document.fullscreenEnabled) {
    onClick(".screen", () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen()));
  } else find(".screen").remove();
  onClick(".clear", makeSketch(find(".sketch"), encodeDrawing));
  findAll(".near").forEach((button, k) => button.addEventListener("click", () => chooseTestImage(near[k])));
  findAll(".ready").forEach((button, k) => {
    showThumbnail(button, firsts[k]);
    button.addEventListener("click", () => chooseTestImage(firsts[k]));
  });
  for (const [name, path] of Object.entries(model.get("walks"))) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: `▶ ${name}` });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => play(button, path));
    find(".walks").append(button);
  }
  // With the focus on any of these, Jupyter's own keys would act: `d d` deletes a cell.
  for (const element of findAll("button, input, [tabindex]")) element.dataset.lmSuppressShortcuts = "";
  model.on("change:z1", update);
  model.on("change:z2", update);
  uniforms = Float32Array.from({ length: N_PIXELS }, Math.random);
  chooseTestImage(nearest(mu, model.get("z1"), model.get("z2"), 1)[0], { stay: true });
  el.replaceChildren(...el.querySelectorAll("h1"), root); // the page's sentence and poster have done their work
  return () => {
    stop();
    clearTimeout(speech);
    model.off("change:z1", update);
    model.off("change:z2", update);
  };
}

/** The model of a page without Jupyter: the traits as they are, and whoever listens to them. */
export class PageModel {
  constructor(traits) {
    this.traits = traits;
    this.listeners = new Map();
  }
  get(name) {
    return this.traits[name];
  }
  set(name, value) {
    const isNew = this.traits[name] !== value;
    this.traits[name] = value;
    if (isNew) for (const listener of this.listeners.get(`change:${name}`) ?? []) listener();
  }
  on(event, listener) {
    this.listeners.set(event, [...(this.listeners.get(event) ?? []), listener]);
  }
  off(event, listener) {
    this.listeners.set(event, (this.listeners.get(event) ?? []).filter((other) => other !== listener));
  }
  save_changes() {} // there is nobody to tell
}

export default { render };
