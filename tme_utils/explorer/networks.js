// The model in the browser: its layers, and the terms of its loss. Checked against torch in tests/test_browser.py.

export const SIDE = 28;
export const N_PIXELS = SIDE * SIDE;

/** Undo Python's zlib.compress: a DataView in, its bytes out. */
export async function inflate(view) {
  const stream = new Blob([view]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Read the tensors of all layers, in order: integers with their sign in the lowest bit, in three bytes, all the low
 * ones first. A tensor has one scale for each of its rows, that is for each value of its first index, or one for all.
 * Weights are kept with a row for each input, as those of ConvTranspose2d come: the others are transposed.
 */
export async function loadNetworks(networks, weights) {
  const bytes = await inflate(weights);
  const n = bytes.length / 3;
  let at = 0;
  const read = ({ shape, scales }, byInput) => {
    const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
    const perRow = values.length / shape[0];
    for (let i = 0; i < values.length; i++, at++) {
      const bits = bytes[at] | (bytes[n + at] << 8) | (bytes[2 * n + at] << 16);
      const row = Math.floor(i / perRow);
      values[byInput ? i : (i % perRow) * shape[0] + row] = ((bits >> 1) ^ -(bits & 1)) * scales[row % scales.length];
    }
    return { shape, values };
  };
  const load = ({ weight, bias, ...rest }) =>
    weight ? { ...rest, weight: read(weight, rest.type === "ConvTranspose2d"), bias: read(bias, true) } : rest;
  return { encoder: networks.encoder.map(load), decoder: networks.decoder.map(load) };
}

/**
 * Add to `out` each input times its row of weights. Inputs of zero, most of an image's and about half of what ReLU
 * leaves, cost nothing; the others go by fours, so that `out` is read and written a quarter as often.
 */
function addRows(x, weights, out) {
  const n = out.length;
  const used = [];
  for (let i = 0; i < x.length; i++) if (x[i] !== 0) used.push(i);
  for (; used.length % 4 > 0; used.pop()) {
    for (let o = 0, i = used.at(-1); o < n; o++) out[o] += x[i] * weights[i * n + o];
  }
  for (let k = 0; k < used.length; k += 4) {
    const [a, b, c, d] = [used[k], used[k + 1], used[k + 2], used[k + 3]];
    const [xa, xb, xc, xd] = [x[a], x[b], x[c], x[d]];
    for (let o = 0, ra = a * n, rb = b * n, rc = c * n, rd = d * n; o < n; o++) {
      out[o] += xa * weights[ra + o] + xb * weights[rb + o] + xc * weights[rc + o] + xd * weights[rd + o];
    }
  }
  return out;
}

function linear({ values }, { weight, bias }) {
  return { values: addRows(values, weight.values, bias.values.slice()), shape: bias.shape };
}

/** For each cell of a coarse image, which pixels of a fine one are its window, as the weights go; -1 for none. */
function listWindows([, height, width], [nChannels, fineHeight, fineWidth], { weight, stride, padding }) {
  const [, , nRows, nColumns] = weight.shape;
  return [...Array(height * width).keys()].map((cell) =>
    new Int32Array(nChannels * nRows * nColumns).map((_, k) => {
      const y = Math.floor(cell / width) * stride - padding + (Math.floor(k / nColumns) % nRows);
      const x = (cell % width) * stride - padding + (k % nColumns);
      if (Math.min(x, y) < 0 || y >= fineHeight || x >= fineWidth) return -1;
      return (Math.floor(k / (nRows * nColumns)) * fineHeight + y) * fineWidth + x;
    }),
  );
}

/** Cell by cell a linear layer: Conv2d from a window to the cell's channels, ConvTranspose2d from these to a window. */
function convolve({ values, shape }, layer) {
  const { weight, bias, stride, padding, type } = layer;
  const isTransposed = type === "ConvTranspose2d";
  const down = (n, k) => Math.floor((n + 2 * padding - k) / stride) + 1;
  const up = (n, k) => (n - 1) * stride - 2 * padding + k;
  const [height, width] = [1, 2].map((axis) => (isTransposed ? up : down)(shape[axis], weight.shape[axis + 1]));
  const outShape = [bias.values.length, height, width];
  const windows = (layer.windows ??= listWindows(...(isTransposed ? [shape, outShape] : [outShape, shape]), layer));
  const out = new Float32Array(outShape[0] * height * width);
  bias.values.forEach((value, c) => out.fill(value, c * height * width, (c + 1) * height * width));
  const [channels, pixels] = [new Float32Array(weight.shape[0]), new Float32Array(windows[0].length)];
  windows.forEach((window, cell) => {
    if (isTransposed) {
      for (let c = 0; c < channels.length; c++) channels[c] = values[c * windows.length + cell];
      addRows(channels, weight.values, pixels.fill(0));
      for (let k = 0; k < pixels.length; k++) if (window[k] >= 0) out[window[k]] += pixels[k];
    } else {
      for (let k = 0; k < pixels.length; k++) pixels[k] = window[k] < 0 ? 0 : values[window[k]];
      addRows(pixels, weight.values, channels.fill(0));
      for (let c = 0; c < channels.length; c++) out[c * windows.length + cell] += channels[c];
    }
  });
  return { values: out, shape: outShape };
}

export const LAYERS = {
  Flatten: ({ values }) => ({ values, shape: [values.length] }),
  Unflatten: ({ values }, { shape }) => ({ values, shape }),
  ReLU: ({ values, shape }) => ({ values: values.map((value) => Math.max(value, 0)), shape }),
  SiLU: ({ values, shape }) => ({ values: values.map((value) => value / (1 + Math.exp(-value))), shape }),
  Linear: linear,
  Conv2d: convolve,
  ConvTranspose2d: convolve,
};

const run = (layers, values, shape) => layers.reduce((x, layer) => LAYERS[layer.type](x, layer), { values, shape });

/** Logits (784) of the pixels of p(x|z). */
export const decode = ({ decoder }, ...z) => run(decoder, Float32Array.from(z), [z.length]).values;

/** Pixel probabilities π from logits. */
export const sigmoid = (logits) => logits.map((logit) => 1 / (1 + Math.exp(-logit)));

/** Mean, log-variance and standard deviation of q(z|x), lists of one number for each coordinate; x has 784 pixels. */
export function encode({ encoder }, x) {
  const both = [...run(encoder, x, [1, SIDE, SIDE]).values];
  const [mu, logvar] = [both.slice(0, both.length / 2), both.slice(both.length / 2)];
  return { mu, logvar, std: logvar.map((value) => Math.exp(value / 2)) };
}

/** KL of each coordinate of q(z|x) from N(0, 1), in nats. */
export const klPerDim = ({ mu, logvar }) => mu.map((m, j) => (m * m + Math.expm1(logvar[j]) - logvar[j]) / 2);

/** What each pixel adds to recon = −log p(x|z), in nats; from the logits, so that no probability is rounded to 0. */
export const pixelCosts = (logits, x) =>
  logits.map((logit, i) => Math.max(logit, 0) + Math.log1p(Math.exp(-Math.abs(logit))) - x[i] * logit);

/** The sum, in double precision. */
export const total = (values) => values.reduce((sum, value) => sum + value, 0);
