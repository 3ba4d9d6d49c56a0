// Digits drawn by hand: pointer and keys on a canvas, and what makes of their strokes an image like MNIST's.

import { N_PIXELS, SIDE } from "./networks.js";

export const PEN = 2.8; // thickness of MNIST's lines in pixels: median over the test ones, from their ink and length
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

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/**
 * Call `at(x, y, isNew)`, both in [0, 1] and y downwards, while mouse, pen or finger is down on the element, and
 * `clicked(x, y)` if it was lifted where it came down. A second finger or a palm changes nothing.
 */
export function onDrag(element, at, clicked = () => {}) {
  let start = null;
  const place = (event) => {
    const box = element.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [clamp(x, 0, 1), clamp(y, 0, 1)];
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    element.setPointerCapture(event.pointerId); // a drag may leave the element
    start = [event.clientX, event.clientY];
    at(...place(event), true);
  });
  element.addEventListener("pointermove", (event) => {
    if (event.isPrimary && element.hasPointerCapture(event.pointerId)) at(...place(event), false);
  });
  element.addEventListener("pointerup", (event) => {
    if (!event.isPrimary || start === null) return;
    if (Math.hypot(event.clientX - start[0], event.clientY - start[1]) < 3) clicked(...place(event));
    start = null;
  });
}

const gapOf = ([a, b]) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);

/** Call `pinched(factor)` while two fingers on the element move; returns what tells whether there are two. */
export function onPinch(element, pinched) {
  const fingers = new Map();
  element.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") fingers.set(event.pointerId, event);
  });
  element.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = [...fingers.values()];
    fingers.set(event.pointerId, event);
    if (fingers.size === 2) pinched(gapOf([...fingers.values()]) / gapOf(before));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    element.addEventListener(end, ({ pointerId }) => fingers.delete(pointerId));
  }
  return () => fingers.size > 1;
}

/** Call `move(dx, dy, event)` for the arrow keys, y upwards, and the other keys' own actions. */
export function onKeys(element, move, actions) {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
  element.addEventListener("keydown", (event) => {
    if (!(event.key in arrows || event.key in actions) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook moves between its cells by the same keys
    if (event.key in arrows) move(...arrows[event.key], event);
    else actions[event.key]();
  });
}

/** Let the reader draw on a canvas, by pointer or keys; `changed(strokes, isNew)` hears of it. Returns what clears. */
export function makeSketch(canvas, changed) {
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
    changed(strokes, isNew && strokes.length === 1);
  };
  const clear = () => {
    strokes = [];
    pen.down = false;
    draw();
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
