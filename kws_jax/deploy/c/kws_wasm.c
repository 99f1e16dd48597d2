/* The runtime as a WebAssembly module: one model at a time, in memory that JavaScript fills. */
#include <string.h>

#include "kws_core.h"

#define EXPORT(name) __attribute__((export_name(#name)))
#define LARGEST_MODEL (1u << 20)
#define LARGEST_MEMORY (1u << 21)
#define LARGEST_CHUNK 16000u

static kws_core core;
static uint8_t model[LARGEST_MODEL];
static uint32_t memory[LARGEST_MEMORY / 4u];
static int16_t samples[LARGEST_CHUNK];
static int32_t logits[KWS_MAX_CLASSES];

EXPORT(model) uint8_t *model_bytes(void) { return model; }
EXPORT(model_capacity) uint32_t model_capacity(void) { return LARGEST_MODEL; }
EXPORT(samples) int16_t *sample_buffer(void) { return samples; }
EXPORT(samples_capacity) uint32_t samples_capacity(void) { return LARGEST_CHUNK; }
EXPORT(logits) int32_t *logit_buffer(void) { return logits; }

/* Reads the `size` bytes at model(); returns 0, or one of the errors of kws_core.h. */
EXPORT(load) int load(uint32_t size) {
  const int status = size > LARGEST_MODEL ? KWS_TOO_LARGE : kws_load(&core, model, size);
  if (status != KWS_OK) return status;
  return core.samples > LARGEST_CHUNK ? KWS_TOO_LARGE : kws_attach(&core, memory, sizeof memory);
}

EXPORT(memory_bytes) uint32_t memory_bytes(void) { return kws_memory(&core); }
EXPORT(window_samples) uint32_t window_samples(void) { return core.samples; }
EXPORT(hop_samples) uint32_t hop_samples(void) { return (uint32_t)core.every * core.stride; }
EXPORT(classes) uint32_t classes(void) { return core.classes; }
EXPORT(frames) uint32_t frames(void) { return core.frames; }
EXPORT(filters) uint32_t filters(void) { return core.filters; }
EXPORT(image_bits) uint32_t image_bits(void) { return core.image_bits; }

/* The ring of image rows, and the row that comes next, which is the oldest. */
EXPORT(image) const int8_t *image(void) { return core.image; }
EXPORT(image_row) uint32_t image_row(void) { return core.row; }

/* Logits of the window at samples(). Forgets what was streamed. */
EXPORT(window) void window(void) { kws_window(&core, samples, logits); }

EXPORT(restart) void restart(void) { kws_restart(&core); }

/* Takes some of the `count` samples from samples() + `first` on, up to a decision. Returns how many,
 * plus 2^16 if the logits were written. */
EXPORT(feed) uint32_t feed(uint32_t first, uint32_t count) {
  int decided = 0;
  const uint32_t taken = kws_feed(&core, samples + first, count, logits, &decided);
  return taken | (uint32_t)decided << 16;
}

/* ------------------------------------------------------------------------- instead of a library */

void *memset(void *to, int value, size_t size) {
  unsigned char *byte = to;
  while (size-- != 0u) *byte++ = (unsigned char)value;
  return to;
}

void *memcpy(void *to, const void *from, size_t size) { return memmove(to, from, size); }

void *memmove(void *to, const void *from, size_t size) {
  unsigned char *into = to;
  const unsigned char *out = from;
  if (into <= out) {
    while (size-- != 0u) *into++ = *out++;
  } else {
    while (size-- != 0u) into[size] = out[size];
  }
  return to;
}

int memcmp(const void *a, const void *b, size_t size) {
  const unsigned char *left = a, *right = b;
  for (; size != 0u; --size, ++left, ++right) {
    if (*left != *right) return *left < *right ? -1 : 1;
  }
  return 0;
}
