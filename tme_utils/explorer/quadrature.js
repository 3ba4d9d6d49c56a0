// In a plane, log p(x) can be had: the integral of p(x|z) p(z) as a sum over squares. Both functions here rest after
// each decoded point (`yield`), so that whoever runs them can keep a hand from waiting.

import { decode, klPerDim, pixelCosts, total } from "./networks.js";

const WIDTH = 0.2; // of a square at first, and what lies beyond the farthest image
const SPLITS = 6; // a square is split in four as often as this
const LEAST = 7; // nats below the whole, from which on the smallest squares are not split
const HIDDEN = 60; // how much more a first square may hide, whose middle lies beside a peak; a quarter for one in four
const CONVERGED = 0.02; // nats that the last split may change
const CORNERS = [[-1, -1], [-1, 1], [1, -1], [1, 1]];
const NODES = Array.from({ length: 9 }, (_, k) => k - 4); // of ε along each axis

/** log p(x, z) from the logits of z. */
const logJoint = (x, z, logits) => -total(pixelCosts(logits, x)) - (z[0] ** 2 + z[1] ** 2) / 2 - Math.log(2 * Math.PI);

function logSumExp(values) {
  const top = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return top + Math.log(total(values.map((value) => Math.exp(value - top))));
}

/** The first squares of a plane, their middles decoded once for all images. */
export function* firstSquares(networks, limit) {
  const reach = limit + WIDTH;
  const n = Math.ceil((2 * reach) / WIDTH);
  const squares = [];
  for (let k = 0; k < n * n; k++) {
    const z = [k % n, Math.floor(k / n)].map((i) => (i + 0.5 - n / 2) * WIDTH);
    if (Math.hypot(...z) > reach) continue; // the prior's draws hardly ever lie in the corners
    squares.push({ z, logits: decode(networks, ...z) });
    yield;
  }
  return squares;
}

/**
 * log p(x) of one image. Squares with much of the integral are split in four and in four again, and so are those around
 * the mean of q(z|x) until they are as narrow as q: its peak may lie between their middles.
 */
export function* logLikelihood(networks, first, x, q) {
  const narrow = Math.min(...q.std);
  let half = WIDTH / 2;
  const square = (z, logits) => ({ z, mass: logJoint(x, z, logits) + 2 * Math.log(2 * half) });
  const isNear = ({ z }) => z.every((value, j) => Math.abs(value - q.mu[j]) < half + 2 * q.std[j]);
  let squares = [];
  for (const { z, logits } of first) {
    squares.push(square(z, logits));
    yield;
  }
  const settled = [];
  let whole = logSumExp(squares.map(({ mass }) => mass));
  for (let level = 0; level < SPLITS; level++) {
    const least = whole - LEAST - HIDDEN / 4 ** level;
    const isSplit = (one) => one.mass > least || (2 * half > narrow && isNear(one));
    settled.push(...squares.filter((one) => !isSplit(one)).map(({ mass }) => mass));
    const split = squares.filter(isSplit);
    half /= 2;
    squares = [];
    for (const { z } of split) {
      for (const corner of CORNERS) {
        const middle = z.map((value, j) => value + half * corner[j]);
        squares.push(square(middle, decode(networks, ...middle)));
        yield;
      }
    }
    const before = whole;
    whole = logSumExp([...settled, ...squares.map(({ mass }) => mass)]);
    if (2 * half <= narrow && Math.abs(whole - before) < CONVERGED) break;
  }
  return whole;
}

/** The ELBO of one image, averaged over the noise ε by a sum over its plane. */
export function* averageElbo(networks, x, q) {
  let [sum, mass] = [0, 0];
  for (const eps1 of NODES) {
    for (const eps2 of NODES) {
      const weight = Math.exp(-(eps1 ** 2 + eps2 ** 2) / 2);
      const z = [q.mu[0] + q.std[0] * eps1, q.mu[1] + q.std[1] * eps2];
      sum -= weight * total(pixelCosts(decode(networks, ...z), x));
      mass += weight;
      yield;
    }
  }
  return sum / mass - total(klPerDim(q));
}
