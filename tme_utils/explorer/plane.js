// The latent plane as it is drawn: dots of test images, the prior's circles, names of the classes, and what moves.

import { clamp } from "./drawing.js";

export const PALETTE = [
  // seaborn's "colorblind", as in the report's figures; each class is also named by its digit
  "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
];
const UNITS = 480; // the side of a plane in units of its drawing, which grows with the screen as a whole
const PRIOR_MASSES = [0.5, 0.95, 0.999];
const RADII = PRIOR_MASSES.map((mass) => Math.sqrt(-2 * Math.log(1 - mass))); // of N(0, I) within these radii
export const N_STD = 2; // the ellipse of q(z|x) is drawn at this many standard deviations
const DEEPEST = 64; // how many times the plane may be enlarged
const TEXT = 14; // sizes of letters, in units
const NAME = 17;

/** A new SVG element with these attributes; `content` is its text. */
export function svg(tag, attributes, content = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(element, attributes);
  element.textContent = content;
  return element;
}

export function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

const note = (text, places) => ({ text, places, kind: "note", size: TEXT });

/** `n` places around a point, the first to its right. */
const around = ([x, y], radius, n) =>
  Array.from({ length: n }, (_, k) => (2 * Math.PI * k) / n).map((angle) => [
    x + radius * Math.cos(angle),
    y - radius * Math.sin(angle),
  ]);

/** A line from a name to the heart of its class. */
const leader = ({ heart: [x2, y2], at: [x1, y1] }) => svg("line", { class: "leader", x1, y1, x2, y2 });

/**
 * Give each label the first of its `places` where it stays inside and covers no earlier one. A label without such a
 * place is left out, so that no two ever cover one another, however the codes lie.
 */
export function placeLabels(labels) {
  const taken = [];
  return labels.flatMap(({ places, ...label }) => {
    const half = [0.33 * label.size * Math.max(label.text.length, 1.4), 0.66 * label.size];
    const isInside = (at) => at.every((value, axis) => value >= half[axis] && value <= UNITS - half[axis]);
    const isFree = (at) =>
      taken.every((other) => at.some((value, j) => Math.abs(value - other.at[j]) >= half[j] + other.half[j]));
    const at = places.find((place) => isInside(place) && isFree(place));
    if (at === undefined) return [];
    taken.push({ at, half });
    return [{ ...label, at }];
  });
}

/** A plane with z1 to the right and z2 up, in an element of a canvas and two SVG layers, the upper for what moves. */
export class Plane {
  /** `data`: means `mu` of the images, their `labels`, the classes' `names`, their `hearts` as [label, z1, z2], `limit`. */
  constructor(element, data, { isInset = false } = {}) {
    Object.assign(this, data, { isInset, canvas: element.querySelector("canvas"), z: [0, 0], past: null });
    [this.still, this.moving] = element.querySelectorAll("svg");
    this.window = svg("rect", { class: "window", visibility: "hidden" });
    this.point = svg("g", { class: "point" });
    const r = isInset ? 14 : 6;
    this.point.append(svg("circle", { r }), svg("circle", { r }));
    this.ellipse = svg("ellipse", { class: "posterior", visibility: "hidden" });
    this.mean = svg("path", { class: "mean", visibility: isInset ? "inherit" : "hidden" });
    for (const layer of [this.still, this.moving]) layer.setAttribute("viewBox", `0 0 ${UNITS} ${UNITS}`);
    this.moving.append(this.window, this.point, this.ellipse, this.mean); // the ellipse lies on top of the point
    this.show(0, 0, this.limit);
  }

  /** From the plane to units of the drawing, and from shares of its sides, y downwards, back to the plane. */
  toUnits(z1, z2) {
    const { x, y, half } = this.view;
    return [(UNITS / 2) * (1 + (z1 - x) / half), (UNITS / 2) * (1 - (z2 - y) / half)];
  }
  toPlane(right, down) {
    const { x, y, half } = this.view;
    return [x + (2 * right - 1) * half, y + (1 - 2 * down) * half];
  }

  /** Show the square around (x, y) of this half-width. */
  show(x, y, half) {
    this.view = { x, y, half };
    this.drawDots();
    if (!this.isInset) this.drawStill();
    this.markPoint(...this.z);
    if (this.q) this.markPosterior(this.q);
    if (this.framed) this.frame(this.framed);
  }

  /** Enlarge by a factor; the point keeps its place on the screen, as far as the edge of the plane allows. */
  zoom(factor) {
    const { x, y, half } = this.view;
    const to = clamp(half / factor, this.limit / DEEPEST, this.limit);
    this.showInside(...[x, y].map((centre, j) => this.z[j] + ((centre - this.z[j]) * to) / half), to);
  }

  showInside(x, y, half) {
    const free = this.limit - half;
    this.show(clamp(x, -free, free), clamp(y, -free, free), half);
  }

  /** Show what the plane was at an epoch of the training, or, without a `past`, what it is. */
  showPast(past) {
    this.past = past;
    this.canvas.parentElement.classList.toggle("past", past !== null);
    this.drawDots();
  }

  drawDots() {
    const { canvas, labels, limit, view, past } = this;
    const mu = past?.mu ?? this.mu;
    const context = canvas.getContext("2d");
    const scale = canvas.width / UNITS;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.globalAlpha = 0.6;
    if (past) {
      const corner = this.toUnits(-past.extent, past.extent).map((value) => value * scale);
      const side = (canvas.width * past.extent) / view.half;
      context.fillStyle = "white"; // paper in every theme
      context.globalAlpha = 1;
      context.fillRect(...corner, side, side);
      context.globalAlpha = 0.6;
      context.drawImage(past.image, ...past.place, ...corner, side, side);
      context.globalAlpha = 0.8;
    }
    const radius = scale * (this.isInset ? 9 : Math.min(2 * Math.sqrt(limit / view.half), 6));
    labels.forEach((label, i) => {
      // in the file's order, so that no class covers all the others
      const [u, v] = this.toUnits(mu[2 * i], mu[2 * i + 1]).map((value) => value * scale);
      if (Math.max(u, v) > canvas.width + radius || Math.min(u, v) < -radius) return;
      context.fillStyle = PALETTE[label];
      context.beginPath();
      context.arc(u, v, radius, 0, 7);
      context.fill();
    });
  }

  /** Axes, circles and names, placed anew for each view. */
  drawStill() {
    const { view, hearts } = this;
    const origin = this.toUnits(0, 0);
    const [u0, v0] = origin;
    const [edgeU, edgeV] = [clamp(u0, 0, UNITS - 34), clamp(v0, 0, UNITS - 22)]; // numbers stay in sight
    const unit = UNITS / 2 / view.half;
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2].find((size) => size * unit >= 60) ?? 5;
    const ticks = [0, 1].map((axis) => {
      const centre = axis === 0 ? view.x : view.y;
      const first = Math.ceil((centre - view.half) / step);
      const all = Array.from({ length: 20 }, (_, k) => step * (first + k));
      return all.filter((value) => Math.abs(value) > step / 2 && value < centre + view.half);
    });
    const decimals = Math.max(0, Math.ceil(-Math.log10(step)));
    const number = (value) => value.toFixed(decimals).replace("-", "−");
    const inSight = hearts
      .map(([label, z1, z2]) => ({ label, heart: this.toUnits(z1, z2) }))
      .filter(({ heart }) => heart.every((value) => value > 0 && value < UNITS));
    const names = inSight.map(({ label, heart }) => ({
      text: this.names[label],
      kind: "name",
      size: NAME,
      heart,
      places: [heart, ...Array.from({ length: 12 }, (_, k) => around(heart, 20 + 8 * k, 24)).flat()],
    }));
    const circles = PRIOR_MASSES.map((mass, i) => {
      const places = around(origin, RADII[i] * unit, 36).filter((_, k) => k % 9); // not along an axis
      return note(`${+(100 * mass).toFixed(1)} %`, places);
    });
    const labels = placeLabels([
      ...names,
      note("z₁ →", [[UNITS - 26, edgeV + 13]]),
      note("z₂ ↑", [[edgeU + 20, 11]]),
      ...circles,
      ...ticks[0].map((value) => note(number(value), [[this.toUnits(value, 0)[0], edgeV + 13]])),
      ...ticks[1].map((value) => {
        const text = number(value);
        return note(text, [[edgeU + 6 + 5 * text.length, this.toUnits(0, value)[1]]]);
      }),
    ]);
    this.still.replaceChildren(
      svg("line", { class: "axis", x1: 0, x2: UNITS, y1: v0, y2: v0 }),
      svg("line", { class: "axis", x1: u0, x2: u0, y1: 0, y2: UNITS }),
      ...RADII.map((r) => svg("circle", { class: "prior", cx: u0, cy: v0, r: r * unit })),
      ...labels.filter(({ heart, at }) => heart && Math.hypot(at[0] - heart[0], at[1] - heart[1]) > 1).map(leader),
      ...labels.map(({ text, kind, size, at: [x, y] }) => svg("text", { x, y, class: kind, "font-size": size }, text)),
    );
  }

  /** Mark the point z; an enlarged plane follows it. */
  markPoint(z1, z2) {
    this.z = [z1, z2];
    const { x, y, half } = this.view;
    const isOutside = Math.max(Math.abs(z1 - x), Math.abs(z2 - y)) > 1.001 * half;
    if (isOutside && !this.isInset) this.showInside(z1, z2, half);
    this.point.setAttribute("transform", `translate(${this.toUnits(z1, z2).join(" ")})`);
  }

  /** Draw the ellipse of q(z|x) and its mean. */
  markPosterior(q) {
    this.q = q;
    const [u, v] = this.toUnits(...q.mu);
    const [rx, ry] = q.std.map((std) => (N_STD * std * UNITS) / 2 / this.view.half);
    setAttributes(this.ellipse, { cx: u, cy: v, rx, ry, visibility: "visible" });
    this.mean.setAttribute("d", `M${u - rx} ${v}H${u + rx}M${u} ${v - ry}V${v + ry}`);
  }

  /** Frame the square that an inset enlarges. */
  frame({ x, y, half }) {
    this.framed = { x, y, half };
    const [u, v] = this.toUnits(x - half, y + half);
    const side = (UNITS * half) / this.view.half;
    const visibility = side < UNITS ? "visible" : "hidden";
    setAttributes(this.window, { x: u, y: v, width: side, height: side, visibility });
  }
}

/** Indices of the `n` codes nearest to z, nearest first; `mu` holds all their coordinates. */
export function nearest(mu, z, n) {
  const found = [];
  for (let i = 0; i < mu.length / z.length; i++) {
    let distance = 0;
    for (let j = 0; j < z.length; j++) distance += (mu[i * z.length + j] - z[j]) ** 2;
    if (found.length === n && distance >= found[n - 1].distance) continue;
    const at = found.findIndex((other) => distance < other.distance);
    found.splice(at < 0 ? found.length : at, 0, { distance, i });
    if (found.length > n) found.pop();
  }
  return found.map(({ i }) => i);
}
