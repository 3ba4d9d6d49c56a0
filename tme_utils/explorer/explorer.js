// The explorer's view, for a notebook (an anywidget module) and for the page that `to_html` writes. Python joins the
// modules beside this one before it (see __init__.py), so that nothing is fetched at run time.
//
// The model's traits: `networks` (layers of encoder and decoder) with their `weights`; `images` with their `labels`
// and means `mu`; `class_names` by label, and the classes' `hearts`; `quantiles` of each term of the loss over the
// images; `walks` as lists of codes; `limit`, how far each coordinate reaches; `coordinates` that have a slider, as
// [index, KL]; `view`, the elements as HTML; in a plane the point (`z1`, `z2`) and the `film`, see there; and
// `own_sliders`, true where no Jupyter sliders stand beside it.

import { clamp, likeMnist, makeSketch, onDrag, onKeys, onPinch, PEN } from "./drawing.js";
import { showFilm } from "./film.js";
import { decode, encode, inflate, klPerDim, loadNetworks } from "./networks.js";
import { N_PIXELS, pixelCosts, SIDE, sigmoid, total } from "./networks.js";
import { N_STD, nearest, Plane, setAttributes, svg } from "./plane.js";
import { averageElbo, firstSquares, logLikelihood } from "./quadrature.js";

const STEP = 0.01; // of the sliders
const N_NEAREST = 8;
const FAR = 2.6; // σ beyond the root of the dimension: of thousands of draws of q(z|x) one lies so far from μ
const PLAY = 6000; // milliseconds of a walk
const HOTTEST = 3; // nats of a pixel, from which on the heat is full
const REST = 300; // milliseconds after a move, before the quadrature goes on
const SLICE = 10; // milliseconds of a frame for the quadrature
const TERMS = {
  kl: "KL",
  kl_1: "KL of z₁",
  kl_2: "KL of z₂",
  recon: 'recon<span class="exact"> = −log p(x|z)</span>',
  neg_elbo: '−ELBO<span class="exact"> = KL + recon</span>',
};

/** Show a colour for each of an image's values: a number with red in its lowest byte, then green, blue and alpha. */
function paint(canvas, values, colour) {
  const context = canvas.getContext("2d", { willReadFrequently: true }); // so few pixels are quicker in memory
  const image = context.createImageData(SIDE, SIDE);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colour(values[i]);
  context.putImageData(image, 0, 0);
}

/** Pixel values in [0, 1] as ink on paper. */
const ink = (value) => 0xff000000 + 0x010101 * (255 - Math.round(255 * value));

/** Costs of pixels in nats, from white to a dark red. */
const heat = (cost) => {
  const share = Math.min(cost / HOTTEST, 1);
  return 0xff000000 + 0x010100 * Math.round(255 * (1 - share)) + Math.round(255 - 105 * share);
};

const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

const signed = (value, decimals = 2) => value.toFixed(decimals).replace(/^-(?=.*[1-9])/, "−").replace("-", "");

const pair = (values, decimals) => `(${values.map((value) => signed(value, decimals)).join(", ")})`;

const withArticle = (name) => `${/^[8aeiou]/i.test(name) ? "an" : "a"} ${name}`;

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
  bar.append(svg("line", { class: "base", x1: 2, x2: 118, y1: 8, y2: 8 }));
  bar.append(box(0.05, 0.95, 5, 6), box(0.25, 0.75, 2, 12));
  bar.append(svg("line", { class: "median", x1: place(at(0.5)), x2: place(at(0.5)), y1: 2, y2: 14 }), mark);
  return (value) => {
    mark.setAttribute("visibility", value === null ? "hidden" : "visible");
    if (value !== null) setAttributes(mark, { x1: place(value), x2: place(value) });
  };
}

const nameOf = (j) => `z${String(j + 1).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit])}`;

/** New elements of this HTML, the last in their parent. */
const append = (parent, html) => parent.insertAdjacentHTML("beforeend", html);

const thumbnail = (name) => `<button type="button" class="thumbnail ${name}">
  <canvas class="digit" aria-hidden="true"></canvas><span></span></button>`;

const slider = ([j, nats], limit, isPlane) => `<label class="slider"><span class="coordinate">${nameOf(j)}</span>
  <span class="track"><input type="range" name="z${j + 1}" min="${-limit}" max="${limit}" step="${STEP}"></span>
  <span class="value"></span>
  ${isPlane ? "" : `<span class="nats">${nats.toFixed(2)} nats</span>`}</label>`;

const term = (name) => `<tr class="${name}"><th scope="row">${TERMS[name]}</th><td></td><td>
  <svg class="bar" viewBox="0 0 120 16" preserveAspectRatio="none" aria-hidden="true"></svg></td><td></td></tr>`;

/** What the front end works with, unpacked from the model's traits. */
async function unpack(model) {
  const [networks, images, labels, mu] = await Promise.all([
    loadNetworks(model.get("networks"), model.get("weights")),
    ...["images", "labels", "mu"].map((name) => inflate(model.get(name))),
  ]);
  const image = (i) => new Float32Array(images.subarray(i * N_PIXELS, (i + 1) * N_PIXELS)).map((value) => value / 255);
  const names = model.get("class_names");
  const nameOfImage = (i) => names[labels[i]];
  return { networks, image, labels: [...labels], names, nameOfImage, mu: new Float32Array(mu.buffer) };
}

/** Draw the explorer into `el` and keep it in step with the model. */
async function render({ model, el }) {
  const { networks, image, labels, names, nameOfImage, mu } = await unpack(model);
  const [limit, hearts, quantiles, coordinates] = ["limit", "hearts", "quantiles", "coordinates"].map(
    (name) => model.get(name),
  );
  const latentDim = mu.length / labels.length;
  const isPlane = latentDim === 2;
  const firsts = [...new Set(labels)].toSorted().map((label) => labels.indexOf(label));
  const root = document.createElement("div");
  root.className = "tme-explorer";
  const id = `tme-${Math.random().toString(36).slice(2)}`; // each view in a notebook may have a module of its own
  root.innerHTML = model.get("view").replaceAll("{id}", id).replace("{pen}", PEN);
  const find = (selector) => root.querySelector(selector);
  const findAll = (selector) => [...root.querySelectorAll(selector)];
  for (const element of findAll(isPlane ? ".beyond-plane" : ".in-plane")) element.remove();
  append(find(".nearest"), thumbnail("near").repeat(Math.min(N_NEAREST, labels.length)));
  append(find(".first"), thumbnail("ready").repeat(firsts.length));
  append(find("tbody"), Object.keys(quantiles).map(term).join(""));
  if (model.get("own_sliders")) {
    append(find(".sliders"), coordinates.map((one) => slider(one, limit, isPlane)).join(""));
  }
  for (const canvas of findAll(".digit")) Object.assign(canvas, { width: SIDE, height: SIDE });
  const sliders = findAll(".sliders input");
  const bars = Object.entries(quantiles).map(([name, values]) => drawBar(find(`.${name} svg`), values));
  const cells = Object.keys(quantiles).map((name) => findAll(`.${name} > td`));
  const output = find(".output");

  let code = Array.from({ length: latentDim }, () => 0); // the point, where it is no point of a plane
  let chosen = null; // the image x, its q(z|x), the KL of each coordinate, ε, and the quadrature that runs
  let uniforms = null; // one number for each pixel: the sample has ink where π exceeds it
  let near = []; // indices of the test images on the thumbnails
  let first = null; // squares of the quadrature, the same for all images
  let [isMoving, isDrawn, isStale] = [false, false, false];
  let [speech, walk, moved] = [0, 0, 0];

  const point = () => (isPlane ? [model.get("z1"), model.get("z2")] : [...code]);

  /** The point moves; all coordinates change before anything is drawn. */
  function move(to) {
    isMoving = true;
    code = to.map((value) => clamp(value, -limit, limit));
    if (isPlane) code.forEach((value, j) => model.set(`z${j + 1}`, value));
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
    moved = performance.now();
    const z = point();
    const logits = decode(networks, ...z);
    const probabilities = sigmoid(logits);
    paint(find(".large"), probabilities, ink);
    paint(find(".sample"), probabilities.map((p, i) => Number(p > uniforms[i])), ink);
    for (const plane of planes) plane.markPoint(...z);
    showNearest(z);
    for (const input of sliders) {
      input.value = z[input.name.slice(1) - 1];
      input.parentElement.nextElementSibling.textContent = signed(input.valueAsNumber);
    }
    const [length, usual] = [Math.hypot(...z), Math.sqrt(latentDim)].map((value) => value.toFixed(1));
    const inPrior = isPlane ? placeInPrior(z) : `‖z‖ = ${length}; draws of the prior have about ${usual}.`;
    find(".where").textContent = inPrior;
    const costs = showLoss(z, logits);
    clearTimeout(speech); // a screen reader hears where a move ends, not every step
    speech = setTimeout(() => {
      const classes = near.map(nameOfImage).join(", ");
      const where = coordinates.map(([j]) => `z${j + 1} ${z[j].toFixed(2)}`).join(", ");
      find(".spoken").textContent = `${where}; recon ${costs.toFixed(1)} nats; nearest test images: ${classes}`;
    }, 400);
  }

  function showNearest(z) {
    const before = near;
    near = nearest(mu, z, N_NEAREST);
    findAll(".near").forEach((button, k) => near[k] === before[k] || showThumbnail(button, near[k]));
  }

  function showThumbnail(button, i) {
    paint(button.firstElementChild, image(i), ink);
    button.lastElementChild.textContent = nameOfImage(i);
    button.setAttribute("aria-label", `test image of ${withArticle(nameOfImage(i))}: send it through the model`);
  }

  /** The terms of the loss of x at this z; returns recon. */
  function showLoss(z, logits) {
    const { x, q, kl } = chosen;
    const costs = pixelCosts(logits, x);
    const recon = total(costs);
    if (output.matches(":hover, :focus")) paint(find(".heat"), costs, heat);
    const eps = z.map((value, j) => (value - q.mu[j]) / q.std[j]);
    const distance = Math.hypot(...eps);
    const isDraw = distance <= FAR + Math.sqrt(latentDim);
    const terms = { kl: total(kl), kl_1: kl[0], kl_2: kl[1], recon, neg_elbo: isDraw ? total(kl) + recon : null };
    Object.entries(quantiles).forEach(([name, ofImages], row) => {
      const value = terms[name];
      bars[row](value);
      cells[row][0].textContent = value === null ? "–" : signed(value);
      cells[row][2].textContent = value === null ? "" : `${Math.round(100 * shareBelow(ofImages, value))} %`;
    });
    const far = `this z is ${distance.toFixed(0)} σ away from μ: q(z|x) draws no such z`;
    const where = isPlane ? `z = μ + σ ⊙ ε = ${pair(z)}, ` : "z = μ + σ ⊙ ε, ";
    const noise = isPlane ? `ε = ${pair(eps)}` : `‖ε‖ = ${distance.toFixed(1)}`;
    const means = isPlane ? `μ = ${pair(q.mu)}, σ = ${pair(q.std, 3)}\n` : "";
    find(".numbers").textContent = means + where + (isDraw ? noise : far);
    return recon;
  }

  /** Take an image as x, and a z from its q(z|x) unless the point is to stay; `eps` is new if none is given. */
  function choose(x, name, { stay = false, eps = drawn() } = {}) {
    const q = encode(networks, x);
    chosen = { x, q, kl: klPerDim(q), eps };
    paint(find(".seen"), x, ink);
    find(".name").textContent = name;
    find(".seen").setAttribute("aria-label", `The image x: ${name}`);
    for (const plane of planes) plane.markPosterior(q);
    if (isPlane) {
      enlargePosterior(q);
      integrate();
    }
    for (const { name: of, parentElement } of sliders) {
      const [mean, std] = [q.mu, q.std].map((values) => values[of.slice(1) - 1]);
      const at = (value) => `${50 + (50 * clamp(value, -limit, limit)) / limit}%`;
      parentElement.style.setProperty("--from", at(mean - N_STD * std));
      parentElement.style.setProperty("--to", at(mean + N_STD * std));
    }
    if (stay) update();
    else drawNoise(eps);
  }

  const chooseTestImage = (i, options) => choose(image(i), `test image of ${withArticle(nameOfImage(i))}`, options);

  const drawn = () => Array.from({ length: latentDim }, normal);

  function drawNoise(eps = drawn()) {
    stop();
    chosen.eps = eps;
    move(chosen.q.mu.map((mean, j) => mean + chosen.q.std[j] * eps[j]));
  }

  /** In slices, while the hand rests: −log p(x), and how far the ELBO lies below log p(x) on average. */
  function integrate() {
    const { x, q } = chosen;
    const shown = ["neg_log_p", "gap"].map((name) => find(`.${name} td`));
    for (const cell of shown) cell.textContent = "…";
    const work = (function* () {
      first ??= yield* firstSquares(networks, limit);
      const logP = yield* logLikelihood(networks, first, x, q);
      const elbo = yield* averageElbo(networks, x, q);
      [-logP, logP - elbo].forEach((value, row) => (shown[row].textContent = signed(value)));
    })();
    chosen.work = work;
    const slice = () => {
      if (chosen?.work !== work) return;
      const end = performance.now() + SLICE;
      let isDone = false;
      if (end - moved > REST) while (!isDone && performance.now() < end) isDone = work.next().done;
      if (!isDone) requestAnimationFrame(slice);
    };
    requestAnimationFrame(slice);
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
    find(".film[open]")?.removeAttribute("open"); // the plane as it is now
    findAll(".walks [aria-pressed=true]").forEach((button) => button.setAttribute("aria-pressed", "false"));
  }

  const goTo = (z) => {
    stop();
    move(z);
  };

  /** Walk along a path of codes, evenly in time; another press, or a hand on the plane, ends it. */
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
      move(path[k].map((value, j) => value + (t - k) * (path[k + 1][j] - value)));
      if (now - start < PLAY) walk = requestAnimationFrame(frame);
      else stop();
    };
    walk = requestAnimationFrame(frame);
  }

  const planes = [];
  if (isPlane) {
    const data = { mu, labels, names, hearts, limit };
    planes.push(new Plane(find(".pad"), data), new Plane(find(".inset"), data, { isInset: true }));
    const film = model.get("film");
    if (film.extent) await showFilm(find(".film"), planes[0], film, model.get("film_codes"), model.get("film_picture"));
    else find(".film").remove();
    steer(planes[0], find(".pad"), { point, goTo, chooseTestImage });
    find(".enlarge").addEventListener("click", () => planes[0].zoom(2));
    find(".reduce").addEventListener("click", () => planes[0].zoom(0.5));
  }

  function enlargePosterior(q) {
    const half = 2 * N_STD * Math.max(...q.std);
    find(".times").textContent = `× ${Math.round(limit / half)}`;
    planes[1].show(...q.mu, half);
    planes[0].frame(planes[1].view);
  }

  for (const input of sliders) {
    input.addEventListener("input", () => goTo(point().with(input.name.slice(1) - 1, input.valueAsNumber)));
  }
  const onClick = (selector, action) => find(selector)?.addEventListener("click", action);
  for (const name of ["pointerenter", "focus"]) output.addEventListener(name, update); // the heat is there now
  onClick(".noise", () => drawNoise());
  onClick(".prior", () => goTo(drawn()));
  onClick(".again", drawPixels);
  if (document.fullscreenEnabled) {
    onClick(".screen", () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen()));
  } else find(".screen")?.remove();
  onClick(".clear", makeSketch(find(".sketch"), encodeDrawing));
  findAll(".near").forEach((button, k) => button.addEventListener("click", () => chooseTestImage(near[k])));
  findAll(".ready").forEach((button, k) => {
    showThumbnail(button, firsts[k]);
    button.addEventListener("click", () => chooseTestImage(firsts[k]));
  });
  for (const [name, path] of Object.entries(model.get("walks"))) {
    append(find(".walks"), `<button type="button" aria-pressed="false">▶ </button>`);
    const button = find(".walks").lastElementChild;
    button.append(name);
    button.addEventListener("click", () => play(button, path));
  }
  // With the focus on any of these, Jupyter's own keys would act: `d d` deletes a cell.
  for (const element of findAll("button, input, [tabindex]")) element.dataset.lmSuppressShortcuts = "";
  for (const name of ["change:z1", "change:z2"]) model.on(name, update);
  uniforms = Float32Array.from({ length: N_PIXELS }, Math.random);
  if (isPlane) chooseTestImage(nearest(mu, point(), 1)[0], { stay: true });
  else chooseTestImage(firsts[0], { eps: code });
  el.replaceChildren(...el.querySelectorAll("h1"), root); // the page's sentence and poster have done their work
  return () => {
    stop();
    chosen = null;
    clearTimeout(speech);
    for (const name of ["change:z1", "change:z2"]) model.off(name, update);
  };
}

/** Let a hand move the point on the plane: by pointer, keys and wheel; a click on a dot takes its image. */
function steer(map, pad, { point, goTo, chooseTestImage }) {
  const toStep = (value) => (map.view.half < map.limit ? value : Math.round(value / STEP) * STEP);
  const pick = (x, y) => {
    const at = map.toPlane(x, y);
    const [i] = nearest(map.mu, at, 1);
    if (Math.hypot(map.mu[2 * i] - at[0], map.mu[2 * i + 1] - at[1]) < 0.02 * map.view.half) chooseTestImage(i);
  };
  const step = (dx, dy, { shiftKey }) => {
    const size = ((shiftKey ? 0.5 : 0.1) * map.view.half) / map.limit;
    const [z1, z2] = point();
    goTo([toStep(z1 + size * dx), toStep(z2 + size * dy)]);
  };
  const zoom = (factor) => () => map.zoom(factor);
  const isPinched = onPinch(pad, (factor) => map.zoom(factor));
  onDrag(pad, (x, y) => isPinched() || goTo(map.toPlane(x, y).map(toStep)), pick);
  onKeys(pad, step, { Home: () => goTo([0, 0]), "+": zoom(2), "=": zoom(2), "-": zoom(0.5) });
  const onWheel = (event) => {
    if (!event.ctrlKey && document.activeElement !== pad) return; // the page scrolls past a plane without the focus
    event.preventDefault();
    map.zoom(Math.exp(-event.deltaY / 300));
  };
  pad.addEventListener("wheel", onWheel, { passive: false });
}

const placeInPrior = (z) => {
  const mass = 100 * (1 - Math.exp(-(z[0] ** 2 + z[1] ** 2) / 2));
  const closer = mass < 0.5 ? "Hardly any" : `About ${mass.toFixed(0)} %`;
  return `z = ${pair(z)}. ${closer} of the prior's draws lie closer to the centre.`;
};

/** The model of a page without Jupyter: the traits as they are, and whoever listens to them. */
export class PageModel extends EventTarget {
  constructor(traits) {
    super();
    this.traits = traits;
  }
  get(name) {
    return this.traits[name];
  }
  set(name, value) {
    const isNew = this.traits[name] !== value;
    this.traits[name] = value;
    if (isNew) this.dispatchEvent(new Event(`change:${name}`));
  }
  on(event, listener) {
    this.addEventListener(event, listener);
  }
  save_changes() {} // there is nobody to tell
}

export default { render };
