// Front end of the latent explorer: an anywidget module, and the whole of the page that `to_html` writes.
//
// The model's traits (see __init__.py): `networks` (layers of the encoder and of the decoder) with their `weights`,
// `images` with their `labels` and posterior means `mu`, the half-width `limit` of the plane, the point (`z1`, `z2`),
// and `own_sliders`, true where no Jupyter sliders stand beside the widget.

const SIDE = 28;
const N_PIXELS = SIDE * SIDE;
const STEP = 0.01; // of the sliders
const N_NEAREST = 8;
const N_STD = 2; // the ellipse of q(z|x) is drawn at this many standard deviations
const PRIOR_MASSES = [0.5, 0.95, 0.999];
export const PALETTE = [
  // seaborn's "colorblind", as in the report's figures; each class is also named by its digit
  "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
];

// ---------------------------------------------------------------------------------------------- the networks

/** Undo Python's zlib.compress: a DataView in, its bytes out. */
export async function inflate(view) {
  const stream = new Blob([view]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Read the tensors of all layers, in order: 16-bit integers, all their low bytes before all their high ones. */
export async function loadNetworks(networks, weights) {
  const bytes = await inflate(weights);
  const n = bytes.length / 2;
  let at = 0;
  const read = ({ shape, scale }) => {
    const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
    for (let i = 0; i < values.length; i++, at++) {
      values[i] = (((bytes[n + at] << 24) | (bytes[at] << 16)) >> 16) * scale; // the shift back keeps the sign
    }
    return { shape, values };
  };
  const load = (layer) => (layer.weight ? { ...layer, weight: read(layer.weight), bias: read(layer.bias) } : layer);
  return { encoder: networks.encoder.map(load), decoder: networks.decoder.map(load) };
}

function linear(x, { weight, bias }) {
  const [nOut, nIn] = weight.shape;
  const out = new Float32Array(nOut);
  for (let o = 0, at = 0; o < nOut; o++) {
    let sum = bias.values[o];
    for (let i = 0; i < nIn; i++, at++) sum += weight.values[at] * x.values[i];
    out[o] = sum;
  }
  return { values: out, shape: [nOut] };
}

/**
 * Both convolutions pair each cell of a coarse grid with a window of a fine one, by weights stored as
 * (coarse channel, fine channel, row, column): Conv2d sums the windows into the cells, ConvTranspose2d spreads the
 * cells over the windows. One weight at a time meets all its pairs, row by row, so that memory is read in order.
 */
function pairWindows(coarse, fine, { weight, stride, padding }, spread) {
  const [nCoarse, nFine, nRows, nColumns] = weight.shape;
  const [, height, width] = coarse.shape;
  const [, fineHeight, fineWidth] = fine.shape;
  const [a, b] = [coarse.values, fine.values];
  const first = (k) => Math.max(0, Math.ceil((padding - k) / stride)); // the first cell whose pixel k is inside
  const end = (k, size, fineSize) => Math.min(size, Math.floor((fineSize - 1 + padding - k) / stride) + 1);
  let at = 0;
  for (let c = 0; c < nCoarse; c++) {
    for (let f = 0; f < nFine; f++) {
      for (let ky = 0; ky < nRows; ky++) {
        const y1 = end(ky, height, fineHeight);
        for (let kx = 0; kx < nColumns; kx++) {
          const w = weight.values[at++];
          const x0 = first(kx);
          const x1 = end(kx, width, fineWidth);
          for (let y = first(ky); y < y1; y++) {
            let i = (c * height + y) * width + x0;
            let j = (f * fineHeight + y * stride + ky - padding) * fineWidth + x0 * stride + kx - padding;
            if (spread) for (let x = x0; x < x1; x++, i++, j += stride) b[j] += w * a[i];
            else for (let x = x0; x < x1; x++, i++, j += stride) a[i] += w * b[j];
          }
        }
      }
    }
  }
}

/** An image (channels, height, width) that holds each channel's bias. */
function filled({ values }, height, width) {
  const image = { values: new Float32Array(values.length * height * width), shape: [values.length, height, width] };
  values.forEach((value, c) => image.values.fill(value, c * height * width, (c + 1) * height * width));
  return image;
}

function conv2d(x, layer) {
  const size = (n, k) => Math.floor((n + 2 * layer.padding - k) / layer.stride) + 1;
  const [, , nRows, nColumns] = layer.weight.shape;
  const out = filled(layer.bias, size(x.shape[1], nRows), size(x.shape[2], nColumns));
  pairWindows(out, x, layer, false);
  return out;
}

function convTranspose2d(x, layer) {
  const size = (n, k) => (n - 1) * layer.stride - 2 * layer.padding + k;
  const [, , nRows, nColumns] = layer.weight.shape;
  const out = filled(layer.bias, size(x.shape[1], nRows), size(x.shape[2], nColumns));
  pairWindows(x, out, layer, true);
  return out;
}

export const LAYERS = {
  Flatten: ({ values }) => ({ values, shape: [values.length] }),
  Unflatten: ({ values }, { shape }) => ({ values, shape }),
  ReLU: ({ values, shape }) => ({ values: values.map((value) => Math.max(value, 0)), shape }),
  SiLU: ({ values, shape }) => ({ values: values.map((value) => value / (1 + Math.exp(-value))), shape }),
  Linear: linear,
  Conv2d: conv2d,
  ConvTranspose2d: convTranspose2d,
};

const run = (layers, values, shape) => layers.reduce((x, layer) => LAYERS[layer.type](x, layer), { values, shape });

/** Pixel probabilities (784) of p(x|z). */
export function decode({ decoder }, z1, z2) {
  return run(decoder, Float32Array.of(z1, z2), [2]).values.map((logit) => 1 / (1 + Math.exp(-logit)));
}

/** Mean and standard deviations of q(z|x), two numbers each, from an image of 784 pixels in [0, 1]. */
export function encode({ encoder }, x) {
  const [mu1, mu2, logvar1, logvar2] = run(encoder, x, [1, SIDE, SIDE]).values;
  return { mu: [mu1, mu2], std: [Math.exp(logvar1 / 2), Math.exp(logvar2 / 2)] };
}

// ------------------------------------------------------------------------------------------- drawn digits

const PEN = 2.8; // thickness of MNIST's lines in pixels: median over the test ones, from their ink and their length
const BOX = 20; // MNIST's digits fit into 20 by 20 pixels
const CENTRE = 14.5; // and have their centre of mass in the middle of pixel 14, counted from 0

/**
 * Make of strokes what MNIST's authors made of their scans: scaled, its shape kept, so that the ink fits into 20 by
 * 20 pixels, smoothed at its edges, and placed in 28 by 28 with its centre of mass in the middle. A stroke is drawn
 * anew after the scaling, 2.8 pixels thick, so that a small drawing has no thicker lines than a large one.
 *
 * @param strokes lists of points [x, y] in [0, 1], y downwards
 * @returns an image of 784 pixels in [0, 1]
 */
export function likeMnist(strokes) {
  const points = strokes.flat();
  if (points.length === 0) return new Float32Array(N_PIXELS);
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [x0, y0] = [Math.min(...xs), Math.min(...ys)];
  const size = Math.max(Math.max(...xs) - x0, Math.max(...ys) - y0, 0.1); // a dot stays a dot
  const scale = (BOX - PEN) / size;
  const canvas = new OffscreenCanvas(SIDE, SIDE);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const ink = (dx, dy) => {
    context.clearRect(0, 0, SIDE, SIDE);
    tracePath(context, strokes, ([x, y]) => [(x - x0) * scale + dx, (y - y0) * scale + dy], PEN);
    const { data } = context.getImageData(0, 0, SIDE, SIDE);
    return Float32Array.from({ length: N_PIXELS }, (_, i) => data[4 * i + 3] / 255);
  };
  const margin = (SIDE - BOX + PEN) / 2;
  const x = ink(margin, margin);
  let [mass, mx, my] = [0, 0, 0];
  x.forEach((value, i) => {
    mass += value;
    mx += value * ((i % SIDE) + 0.5);
    my += value * (Math.floor(i / SIDE) + 0.5);
  });
  return ink(margin + CENTRE - mx / mass, margin + CENTRE - my / mass);
}

function tracePath(context, strokes, place, width) {
  Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  for (const stroke of strokes) {
    const [x, y] = place(stroke[0]);
    context.moveTo(x, y);
    context.lineTo(x + 0.001, y); // a line of no length would not be drawn: a click leaves a dot
    for (const point of stroke.slice(1)) context.lineTo(...place(point));
  }
  context.stroke();
}

// ---------------------------------------------------------------------------------------------- the drawing

/** A new SVG element with these attributes; `content` is its text. */
function svg(tag, attributes, content = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(element, attributes);
  element.textContent = content;
  return element;
}

function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

/** Show pixel values in [0, 1], ink on paper. */
function paint(canvas, x) {
  const context = canvas.getContext("2d", { willReadFrequently: true }); // so few pixels are quicker in memory
  const image = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < x.length; i++) {
    image.data.fill(255 - Math.round(255 * x[i]), 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

const toStep = (value) => Math.round(value / STEP) * STEP;

const signed = (value) => value.toFixed(2).replace("-", "−");

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** Median of each class as {label, x, y}, pushed apart where names would cover one another. */
function classNames(mu, labels, distance) {
  const names = [...new Set(labels)].toSorted().map((label) => {
    const of = (axis) => median([...labels.keys()].filter((i) => labels[i] === label).map((i) => mu[2 * i + axis]));
    return { label, x: of(0), y: of(1) };
  });
  for (let round = 0; round < 200; round++) {
    for (const a of names) {
      for (const b of names) {
        const gap = Math.hypot(a.x - b.x, a.y - b.y);
        if (a === b || gap >= distance) continue;
        a.x += (0.1 * (a.x - b.x)) / Math.max(gap, 1e-9);
        a.y += (0.1 * (a.y - b.y)) / Math.max(gap, 1e-9);
      }
    }
  }
  return names;
}

/** The direction [cos, sin] whose points at these radii stay farthest from the class names; never along an axis. */
function freeRay(names, radii) {
  const angles = [...Array(16).keys()].filter((k) => k % 4).map((k) => (k * Math.PI) / 8);
  const rays = angles.map((angle) => [Math.cos(angle), Math.sin(angle)]);
  const places = ([cos, sin]) => radii.map((r) => [r * cos, r * sin]);
  const room = (ray) =>
    Math.min(...places(ray).flatMap(([px, py]) => names.map(({ x, y }) => Math.hypot(px - x, py - y))));
  return rays.reduce((best, ray) => (room(ray) > room(best) ? ray : best));
}

/** Draw the plane into its three layers, the last for what moves: z1 to the right, z2 up. Returns what moves. */
function drawPlane(dots, plane, moving, mu, labels, limit) {
  const context = dots.getContext("2d");
  const place = (value) => (dots.width / 2) * (1 + value / limit);
  context.globalAlpha = 0.6;
  labels.forEach((label, i) => {
    // in the file's order, so that no class covers all the others
    context.fillStyle = PALETTE[label];
    context.beginPath();
    context.arc(place(mu[2 * i]), place(-mu[2 * i + 1]), 4, 0, 7);
    context.fill();
  });

  const unit = limit / 4; // sizes below are those of a plane from -4 to 4
  const text = (content, x, y, kind = "note") => svg("text", { x, y, class: kind, "font-size": 0.27 * unit }, content);
  for (const layer of [plane, moving]) {
    layer.setAttribute("viewBox", [-limit, -limit, 2 * limit, 2 * limit].join(" ")); // y is -z2
  }
  plane.append(svg("line", { class: "axis", x1: -limit, x2: limit }));
  plane.append(svg("line", { class: "axis", y1: -limit, y2: limit }));
  plane.append(text("z₁ →", limit - 0.4 * unit, 0.25 * unit), text("z₂ ↑", 0.35 * unit, 0.2 * unit - limit));
  for (let tick = 2; tick < limit - 0.9 * unit; tick += 2) {
    plane.append(text(tick, tick, 0.25 * unit), text(`−${tick}`, -tick, 0.25 * unit));
    plane.append(text(tick, 0.2 * unit, -tick), text(`−${tick}`, 0.2 * unit, tick));
  }
  const names = classNames(mu, labels, 0.55 * unit);
  // Within these radii N(0, I) has these masses.
  const radii = PRIOR_MASSES.map((mass) => Math.sqrt(-2 * Math.log(1 - mass)));
  const [cos, sin] = freeRay(names, radii);
  PRIOR_MASSES.forEach((mass, i) => {
    plane.append(svg("circle", { class: "prior", r: radii[i] }));
    plane.append(text(`${+(100 * mass).toFixed(1)} %`, radii[i] * cos, -radii[i] * sin));
  });
  for (const { label, x, y } of names) {
    plane.append(svg("circle", { class: "name", cx: x, cy: -y, r: 0.23 * unit, fill: PALETTE[label] }));
    plane.append(text(label, x, -y, "name"));
  }
  const ellipse = svg("ellipse", { class: "posterior" });
  const point = svg("g", { class: "point" });
  point.append(svg("circle", { r: 0.16 * unit }), svg("circle", { r: 0.16 * unit }));
  moving.append(ellipse, point);
  return { ellipse, point };
}

/** Indices of the points nearest to (z1, z2), nearest first. */
function nearest(mu, z1, z2) {
  const found = [];
  for (let i = 0; i < mu.length / 2; i++) {
    const distance = (mu[2 * i] - z1) ** 2 + (mu[2 * i + 1] - z2) ** 2;
    if (found.length === N_NEAREST && distance >= found[N_NEAREST - 1].distance) continue;
    const at = found.findIndex((other) => distance < other.distance);
    found.splice(at < 0 ? found.length : at, 0, { distance, i });
    if (found.length > N_NEAREST) found.pop();
  }
  return found.map(({ i }) => i);
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Call `at(x, y, isNew)`, both in [0, 1] and y downwards, while mouse, pen or finger is down on the element. */
function onDrag(element, at) {
  const send = (event, isNew) => {
    const box = element.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    at(clamp(x, 0, 1), clamp(y, 0, 1), isNew);
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId); // a drag may leave the element
    send(event, true);
  });
  element.addEventListener("pointermove", (event) => {
    if (element.hasPointerCapture(event.pointerId)) send(event, false);
  });
}

/** Call `move(dx, dy, event)` for the arrow keys, y upwards, and the other keys' own actions. */
function onKeys(element, move, actions) {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
  element.addEventListener("keydown", (event) => {
    if (!(event.key in arrows || event.key in actions) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook moves between its cells by the same keys
    if (event.key in arrows) move(...arrows[event.key], event);
    else actions[event.key]();
  });
}

/** Let the reader draw on a canvas, by pointer or keys; `changed(strokes)` hears of it. Returns what clears it. */
function makeSketch(canvas, changed) {
  const size = canvas.width;
  const context = canvas.getContext("2d");
  const pen = { at: [0.5, 0.5], down: false, shown: false };
  let strokes = [];
  const draw = () => {
    context.clearRect(0, 0, size, size);
    context.strokeStyle = "#111";
    tracePath(context, strokes, ([x, y]) => [x * size, y * size], size / 14);
    if (pen.shown) {
      context.strokeStyle = pen.down ? "#d55e00" : "#0173b2";
      tracePath(context, [[pen.at]], ([x, y]) => [x * size, y * size], size / 28);
    }
  };
  const add = (point, isNew) => {
    if (isNew || strokes.length === 0) strokes.push([]);
    strokes.at(-1).push(point);
    draw();
    changed(strokes);
  };
  const clear = () => {
    strokes = [];
    pen.down = false;
    draw();
    changed(strokes);
  };
  onDrag(canvas, (x, y, isNew) => {
    pen.shown = pen.down = false;
    add([x, y], isNew);
  });
  const move = (dx, dy) => {
    pen.shown = true;
    pen.at = [pen.at[0] + 0.04 * dx, pen.at[1] - 0.04 * dy].map((value) => clamp(value, 0, 1));
    if (pen.down) add(pen.at, false);
    else draw();
  };
  const toggle = () => {
    pen.shown = true;
    pen.down = !pen.down;
    if (pen.down) add(pen.at, true);
    else draw();
  };
  onKeys(canvas, move, { " ": toggle, Delete: clear, Backspace: clear });
  return clear;
}

const digit = (name, label) =>
  `<canvas class="digit ${name}" width="${SIDE}" height="${SIDE}" role="img" aria-label="${label}"></canvas>`;

/** The elements of a view; `id` makes its names its own. */
const skeleton = (id, limit, nThumbnails) => `
  <div class="left">
    ${["z1", "z2"].map((name) => `<label class="slider">${name.replace("1", "₁").replace("2", "₂")}
      <input type="range" name="${name}" min="${-limit}" max="${limit}" step="${STEP}"><output></output>
    </label>`).join("")}
    <div class="pad" tabindex="0" role="application" aria-roledescription="plane with a movable point"
        aria-label="Latent plane, z1 to the right, z2 up" aria-describedby="${id}-plane">
      <canvas width="960" height="960"></canvas>
      <svg aria-hidden="true"></svg>
      <svg class="moving" aria-hidden="true"></svg>
    </div>
    <p class="hint" id="${id}-plane">
      Drag, click, or focus the plane and press the arrow keys (Shift: larger steps, Home: back to 0).
      Each dot is the mean of q(z|x) for one test image; the dashed circles hold 50, 95 and 99.9 % of the prior.
    </p>
  </div>
  <div class="right">
    <section class="decoded" aria-label="Decoded digit">
      ${digit("large", "Decoded digit")}
      <div>
        <output class="where"></output>
        <fieldset>
          <legend>Show</legend>
          <label><input type="radio" name="${id}-show" value="probabilities" checked>pixel probabilities</label>
          <label><input type="radio" name="${id}-show" value="sample">Bernoulli sample</label>
          <button type="button" class="again">draw again</button>
        </fieldset>
      </div>
    </section>
    <section aria-label="Nearest test images">
      <h2>Nearest test images, with their labels</h2>
      <div class="strip">
        ${`<figure>${digit("near", "")}<figcaption></figcaption></figure>`.repeat(nThumbnails)}
      </div>
    </section>
    <section aria-label="Draw your own">
      <h2>Draw your own</h2>
      <div class="strip wide">
        <figure class="drawn">
          <canvas class="sketch" width="280" height="280" tabindex="0" role="application"
            aria-roledescription="drawing area" aria-label="Draw a digit" aria-describedby="${id}-sketch"></canvas>
          <figcaption><button type="button" class="clear">clear</button></figcaption>
        </figure>
        <figure>${digit("seen", "The drawing as the encoder sees it")}<figcaption>as encoded</figcaption></figure>
        <figure>${digit("rebuilt", "Its reconstruction")}<figcaption>reconstruction</figcaption></figure>
      </div>
      <output class="posterior-text"></output>
      <p class="hint" id="${id}-sketch">
        As MNIST's digits were, the drawing is scaled to 20 × 20 pixels and centred by its centre of mass in 28 × 28;
        its lines become ${PEN} pixels thick. The ellipse on the plane is q(z|x) at ${N_STD} standard deviations.
        By keyboard: the arrow keys move the pen, Space lowers or lifts it, Delete clears.
      </p>
    </section>
  </div>
  <p class="spoken" aria-live="polite"></p>`;

/** What the front end works with, unpacked from the model's traits. */
async function unpack(model) {
  const [networks, images, labels, mu] = await Promise.all([
    loadNetworks(model.get("networks"), model.get("weights")),
    ...["images", "labels", "mu"].map((name) => inflate(model.get(name))),
  ]);
  const image = (i) => Float32Array.from(images.subarray(i * N_PIXELS, (i + 1) * N_PIXELS), (value) => value / 255);
  return { networks, image, labels: [...labels], mu: new Float32Array(mu.buffer), limit: model.get("limit") };
}

let nViews = 0;

/** Draw the explorer into `el` and keep it in step with the model. */
async function render({ model, el }) {
  const { networks, image, labels, mu, limit } = await unpack(model);
  const root = document.createElement("div");
  root.className = "tme-explorer";
  root.innerHTML = skeleton(`tme-explorer-${++nViews}`, limit, Math.min(N_NEAREST, labels.length));
  const find = (selector) => root.querySelector(selector);
  const pad = find(".pad");
  const { ellipse, point } = drawPlane(find(".pad canvas"), ...root.querySelectorAll(".pad svg"), mu, labels, limit);
  const thumbnails = [...root.querySelectorAll(".near")];
  const sliders = model.get("own_sliders") ? [...root.querySelectorAll(".slider input")] : [];
  if (sliders.length === 0) root.querySelectorAll(".slider").forEach((slider) => slider.remove());

  let uniforms = null; // one number per pixel: a sample shows ink where the probability exceeds it
  let shown = []; // indices of the test images on the thumbnails
  let isMoving = false;
  let speech = 0;

  function move(to) {
    isMoving = true; // both coordinates change before anything is drawn
    for (const [name, value] of Object.entries(to)) model.set(name, clamp(value, -limit, limit));
    isMoving = false;
    model.save_changes();
    update();
  }

  function update() {
    if (isMoving) return;
    const [z1, z2] = [model.get("z1"), model.get("z2")];
    const probabilities = decode(networks, z1, z2);
    paint(find(".large"), uniforms ? probabilities.map((p, i) => Number(p > uniforms[i])) : probabilities);
    point.setAttribute("transform", `translate(${z1} ${-z2})`);
    const neighbours = nearest(mu, z1, z2);
    thumbnails.forEach((canvas, k) => {
      if (neighbours[k] === shown[k]) return;
      const label = labels[neighbours[k]];
      paint(canvas, image(neighbours[k]));
      canvas.nextElementSibling.textContent = label;
      canvas.setAttribute("aria-label", `test image of a ${label}`);
    });
    shown = neighbours;
    const mass = 100 * (1 - Math.exp(-(z1 * z1 + z2 * z2) / 2));
    find(".where").textContent = `z = (${signed(z1)}, ${signed(z2)})\n${mass.toFixed(1)} % of the prior is nearer to 0`;
    for (const slider of sliders) {
      slider.value = model.get(slider.name);
      slider.nextElementSibling.textContent = signed(model.get(slider.name));
    }
    clearTimeout(speech); // a screen reader hears where a move ends, not every step
    speech = setTimeout(() => {
      const near = neighbours.map((i) => labels[i]).join(", ");
      find(".spoken").textContent = `z1 ${z1.toFixed(2)}, z2 ${z2.toFixed(2)}; nearest test images: ${near}`;
    }, 400);
  }

  function encodeDrawing(strokes) {
    const x = likeMnist(strokes);
    paint(find(".seen"), x);
    const isEmpty = strokes.length === 0;
    ellipse.setAttribute("visibility", isEmpty ? "hidden" : "visible");
    find(".posterior-text").textContent = "";
    paint(find(".rebuilt"), isEmpty ? x : reconstruct(x));
  }

  function reconstruct(x) {
    const { mu: mean, std } = encode(networks, x);
    setAttributes(ellipse, { cx: mean[0], cy: -mean[1], rx: N_STD * std[0], ry: N_STD * std[1] });
    const [means, stds] = [mean, std].map((pair) => pair.map(signed).join(", "));
    find(".posterior-text").textContent = `q(z|x): mean (${means}), standard deviations (${stds})`;
    move({ z1: mean[0], z2: mean[1] });
    return decode(networks, ...mean);
  }

  function sample() {
    uniforms = find("[value=sample]").checked ? Float32Array.from({ length: N_PIXELS }, Math.random) : null;
    find(".again").disabled = uniforms === null;
    update();
  }

  onDrag(pad, (x, y) => move({ z1: toStep((2 * x - 1) * limit), z2: toStep((1 - 2 * y) * limit) }));
  const step = (dx, dy, { shiftKey }) => {
    const size = shiftKey ? 0.5 : 0.1;
    move({ z1: toStep(model.get("z1") + size * dx), z2: toStep(model.get("z2") + size * dy) });
  };
  onKeys(pad, step, { Home: () => move({ z1: 0, z2: 0 }) });
  for (const slider of sliders) {
    slider.addEventListener("input", () => move({ [slider.name]: slider.valueAsNumber }));
  }
  root.querySelectorAll("[type=radio]").forEach((input) => input.addEventListener("change", sample));
  find(".again").addEventListener("click", sample);
  const clear = makeSketch(find(".sketch"), encodeDrawing);
  find(".clear").addEventListener("click", clear);
  model.on("change:z1", update);
  model.on("change:z2", update);
  clear();
  sample();
  el.append(root);
  return () => {
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
