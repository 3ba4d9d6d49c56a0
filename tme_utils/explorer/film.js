// Training as a film: the plane's dots, the digits decoded over it, draws of the prior and images rebuilt, by epoch.

import { inflate } from "./networks.js";

const SIDE_OF_GRID = 420; // pixels of the picture of one epoch: a square of digits, and three rows below it
const STRIP = { width: 280, height: 84 };

/**
 * Let the slider in `element`, while it is open, show the plane as it was after that epoch.
 *
 * `film` has `neg_elbo` of the test images by epoch, and `extent`, where the digits end; `codes` are the means of the
 * test images by epoch, compressed 16-bit integers of which 32767 is the extent; `picture` holds all epochs' digits.
 */
export async function showFilm(element, plane, { neg_elbo: losses, extent }, codes, picture) {
  const [bytes, image] = await Promise.all([inflate(codes), createImageBitmap(new Blob([picture]))]);
  const units = new Int16Array(bytes.buffer);
  const size = units.length / losses.length;
  const frame = image.height / losses.length;
  const [slider, told, strip] = ["input", ".value", "canvas"].map((one) => element.querySelector(one));
  Object.assign(slider, { max: losses.length - 1, value: losses.length - 1 });
  Object.assign(strip, STRIP);
  const show = () => {
    const epoch = slider.valueAsNumber;
    const top = epoch * frame;
    told.textContent = `${epoch}: −ELBO ${losses[epoch].toFixed(1)}`;
    const of = [STRIP.width, STRIP.height];
    strip.getContext("2d").drawImage(image, 0, top + SIDE_OF_GRID, ...of, 0, 0, ...of);
    const mu = Float32Array.from(units.subarray(epoch * size, (epoch + 1) * size), (unit) => (unit * extent) / 32767);
    plane.showPast(element.open ? { mu, extent, image, place: [0, top, SIDE_OF_GRID, SIDE_OF_GRID] } : null);
  };
  slider.addEventListener("input", show);
  element.addEventListener("toggle", show);
}
