// The integer runtime in WebAssembly, and what turns its logits into words that were heard.
// The same rule as kws_jax/detection.py: scores averaged over a few windows, a threshold for every
// keyword, and a time after a detection in which it is not reported again.

const NOT_KEYWORDS = ['silence', 'unknown'];
const HEADER_BYTES = 48, LAYER_BYTES = 16; // of a packed model, see kws_jax/deploy/packed.py
const ERRORS = {
  '-1': 'not a packed model, damaged, or cut short',
  '-2': 'a packed model of a version that this page does not read; export it again',
  '-3': 'a model beyond the limits of this page',
  '-4': 'a model that needs more memory than this page gives',
};

export class Spotter {
  // From a compiled module and the bytes of model.kws; throws an Error that says what is wrong.
  constructor(instance, bytes) {
    this.wasm = instance.exports;
    if (bytes.length > this.wasm.model_capacity()) throw new Error(ERRORS['-3']);
    new Uint8Array(this.wasm.memory.buffer, this.wasm.model(), bytes.length).set(bytes);
    const status = this.wasm.load(bytes.length);
    if (status !== 0) throw new Error(ERRORS[status]);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const blocks = view.getUint16(34, true), text = view.getUint32(16, true);
    const start = HEADER_BYTES + LAYER_BYTES * (3 + 3 * blocks);
    const about = JSON.parse(new TextDecoder().decode(bytes.subarray(start, start + text)));
    this.labels = about.labels;
    this.logitStep = about.logit_step;
    this.card = about.card ?? {};
    this.flashBytes = view.getUint32(20, true);
    this.memoryBytes = this.wasm.memory_bytes();
    this.windowSamples = this.wasm.window_samples();
    this.hopSamples = this.wasm.hop_samples();
    this.samples = new Int16Array(
      this.wasm.memory.buffer, this.wasm.samples(), this.wasm.samples_capacity());
    this.rawLogits = new Int32Array(
      this.wasm.memory.buffer, this.wasm.logits(), this.labels.length);
  }

  static async load(wasmUrl, bytes) {
    const { instance } = await WebAssembly.instantiate(await (await fetch(wasmUrl)).arrayBuffer());
    return new Spotter(instance, bytes);
  }

  // Integer logits of one window; forgets what was streamed.
  window(samples) {
    this.samples.set(samples.subarray(0, this.windowSamples));
    this.wasm.window();
    return Array.from(this.rawLogits);
  }

  restart() {
    this.wasm.restart();
  }

  // Scores of every decision within these samples (Int16Array, any length).
  *feed(samples) {
    for (let at = 0; at < samples.length; at += this.samples.length) {
      const part = samples.subarray(at, at + this.samples.length);
      this.samples.set(part);
      for (let first = 0; first < part.length;) {
        const answer = this.wasm.feed(first, part.length - first);
        first += answer & 0xffff;
        if (answer >> 16) yield this.scores();
      }
    }
  }

  scores() {
    const logits = Array.from(this.rawLogits, (logit) => logit * this.logitStep);
    const top = Math.max(...logits);
    const weights = logits.map((logit) => Math.exp(logit - top));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return weights.map((weight) => weight / total);
  }

  // The image in order of time: { frames, filters, top, codes: Int8Array [frames * filters] }.
  image() {
    const frames = this.wasm.frames(), filters = this.wasm.filters();
    const ring = new Int8Array(this.wasm.memory.buffer, this.wasm.image(), frames * filters);
    const oldest = this.wasm.image_row() * filters, codes = new Int8Array(ring.length);
    codes.set(ring.subarray(oldest));
    codes.set(ring.subarray(0, oldest), ring.length - oldest);
    return { frames, filters, top: 2 ** (this.wasm.image_bits() - 1) - 1, codes };
  }
}

export class Listener {
  // thresholds: by label; `fallback` where there is none.
  constructor(labels, { thresholds = {}, fallback = 0.8, smoothing = 4, refractory = 12 } = {}) {
    Object.assign(this, { labels, thresholds, fallback, smoothing, refractory });
    this.restart();
  }

  restart() {
    this.recent = [];
    this.rest = this.labels.map(() => 0);
  }

  // Takes the scores of one window: { scores: smoothed, heard: [{ label, score }] }.
  hear(scores) {
    this.recent.push(scores);
    if (this.recent.length > this.smoothing) this.recent.shift();
    const mean = scores.map(
      (_, i) => this.recent.reduce((sum, row) => sum + row[i], 0) / this.recent.length);
    const heard = [];
    this.labels.forEach((label, i) => {
      if (this.rest[i] > 0) {
        this.rest[i] -= 1;
      } else if (!NOT_KEYWORDS.includes(label)
          && mean[i] >= (this.thresholds[label] ?? this.fallback)) {
        heard.push({ label, score: mean[i] });
        this.rest[i] = this.refractory;
      }
    });
    return { scores: mean, heard };
  }
}

export function toInt16(float32) {
  return Int16Array.from(float32, (v) => Math.max(-32768, Math.min(32767, Math.round(v * 32768))));
}
