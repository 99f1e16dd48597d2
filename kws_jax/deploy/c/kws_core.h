/* Integer keyword spotting: runs a packed model in memory that the caller gives.
 * C99, no dynamic memory, no floating point. */
#ifndef KWS_CORE_H
#define KWS_CORE_H

#include <stdint.h>

#define KWS_MAX_BLOCKS 16
#define KWS_MAX_LAYERS (3 * KWS_MAX_BLOCKS + 3)
#define KWS_MAX_CHANNELS 512
#define KWS_MAX_KERNEL 1024
#define KWS_MAX_CLASSES 64
#define KWS_FRAMES_AT_ONCE 8

enum {
  KWS_OK = 0,
  KWS_BAD_FILE = -1,    /* not a packed model, damaged, or cut short */
  KWS_BAD_VERSION = -2, /* of a format that this runtime does not read */
  KWS_TOO_LARGE = -3,   /* beyond the limits above */
  KWS_NO_MEMORY = -4    /* the memory given is too small; see kws_memory */
};

typedef struct {
  uint16_t in, out;          /* channels */
  uint16_t in_h, in_w, h, w; /* of the maps before and behind */
  uint8_t kh, kw, sh, sw;
  uint8_t bits, out_bits, residual, odd;
  int16_t low, high;
  int8_t base;          /* of the multipliers */
  uint8_t fraction;     /* of the offsets */
  uint32_t extra;       /* mantissa of the residual */
  int16_t extra_shift;  /* and its shift */
  uint32_t constants;   /* first bit in the stream */
  uint32_t weights;     /* first bit in the stream */
} kws_layer;

typedef struct {
  const uint8_t *stream;
  uint32_t samples;
  uint16_t kernel, stride, filters, classes, frames, blocks;
  uint8_t pairs, log, symmetric, magnitude, causal;
  uint8_t tap_bits, sample_bits, image_bits;
  uint16_t every; /* frames from one decision to the next */
  uint8_t response_fraction, factor_fraction, offset_fraction;
  uint32_t floor;
  uint32_t sample_mantissa;
  int16_t sample_shift;
  uint32_t multipliers, factors, offsets, taps; /* first bits in the stream */
  uint16_t layers;
  kws_layer layer[KWS_MAX_LAYERS]; /* stem, blocks of three, head, classifier */
  /* memory of the caller */
  int8_t *image;  /* [frames][filters]; a ring of rows when streaming */
  int8_t *codes;  /* of samples not yet used, when streaming */
  int8_t *work;   /* everything else */
  uint32_t work_size, image_size, codes_size;
  /* stream */
  uint32_t row;     /* of the ring, where the next frame goes */
  uint32_t have;    /* samples in `codes` */
  uint32_t counted; /* frames so far, at most `frames` */
  uint32_t due;     /* frames until the next decision */
  /* stream of a causal network: what it keeps of its rows, in `work` */
  uint32_t ring[KWS_MAX_BLOCKS]; /* of the depthwise layer's input: [kh][in_w][out] */
  uint16_t next[KWS_MAX_BLOCKS]; /* number of the row that comes next, see `later` */
  uint32_t sums;                 /* of the head's codes, [h][out] */
  uint32_t scratch, in_out;      /* memory for a row of a block; for two rows of `row_size` bytes */
  uint32_t row_size;
  uint32_t stem_phase;           /* frames until the stem's next row */
  uint32_t sums_next;            /* where the next sums go */
} kws_core;

/* Reads and checks a packed model of `size` bytes, which must stay where it is.
 * kws_memory then says how many bytes of memory kws_attach needs. */
int kws_load(kws_core *k, const uint8_t *model, uint32_t size);
uint32_t kws_memory(const kws_core *k);
int kws_attach(kws_core *k, void *memory, uint32_t size);

/* Logits of one window of k->samples samples. Forgets what was streamed. */
void kws_window(kws_core *k, const int16_t *samples, int32_t *logits);

/* Streaming: forgets everything; takes samples, up to the next decision. Returns how many it took and
 * sets *decided to 1 if logits were written: of the last k->samples samples, every
 * k->every frames. A causal network computes each row of its maps once; rows at the start of a window
 * have heard what came before it. */
void kws_restart(kws_core *k);
uint32_t kws_feed(kws_core *k, const int16_t *samples, uint32_t count, int32_t *logits, int *decided);

#endif
