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
 */
export async function loadNetworks(networks, weights) {
  const bytes = await inflate(weights);
  const n = bytes.length / 3;
  let at = 0;
  const read = ({ shape, scales }) => {
    const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
    const perScale = values.length / scales.length;
    for (let i = 0; i < values.length; i++, at++) {
      const bits = bytes[at] | (bytes[n + at] << 8) | (bytes[2 * n + at] << 16);
      values[i] = ((bits >> 1) ^ -(bits & 1)) * scales[Math.floor(i / perScale)];
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
