#include "kws.h"

#include "kws_core.h"

extern const uint8_t kws_model[];
extern const uint16_t kws_thresholds[KWS_CLASSES]; /* in units of 2^-15; 65535 is never reached */
extern const uint32_t kws_score_mantissa, kws_score_shift;

static kws_core core;
static uint32_t memory[(KWS_MEMORY_BYTES + 3) / 4];

/* what kws_listen remembers: scores of the last decisions, and decisions that a keyword has to wait */
static uint16_t recent[KWS_SMOOTHING][KWS_CLASSES], waits[KWS_CLASSES];
static uint32_t scored;

static void forget(void) {
  uint32_t i;
  scored = 0u;
  for (i = 0u; i < KWS_CLASSES; ++i) waits[i] = 0u;
}

int kws_init(void) {
  const int status = kws_load(&core, kws_model, KWS_MODEL_BYTES);
  forget();
  return status != KWS_OK ? status : kws_attach(&core, memory, sizeof memory);
}

void kws_run(const int16_t samples[KWS_SAMPLES], int32_t logits[KWS_CLASSES]) {
  forget();
  kws_window(&core, samples, logits);
}

void kws_stream_reset(void) {
  forget();
  kws_restart(&core);
}

int kws_stream(const int16_t *samples, uint32_t count, int32_t logits[KWS_CLASSES]) {
  int any = 0;
  while (count != 0u) {
    int decided;
    const uint32_t taken = kws_feed(&core, samples, count, logits, &decided);
    samples += taken, count -= taken;
    any |= decided;
  }
  return any;
}

/* 65536 * 2^(-i / 32) */
static const uint32_t exp2_table[33] = {
    65536u, 64132u, 62757u, 61413u, 60097u, 58809u, 57549u, 56316u, 55109u, 53928u, 52773u,
    51642u, 50535u, 49452u, 48393u, 47356u, 46341u, 45348u, 44376u, 43425u, 42495u, 41584u,
    40693u, 39821u, 38968u, 38133u, 37316u, 36516u, 35734u, 34968u, 34219u, 33486u, 32768u};

/* Shares of 2^(logit) in units of 2^-15. */
static void score(const int32_t *logits, uint16_t *scores) {
  uint32_t shares[KWS_CLASSES], total = 0u, i;
  int32_t top = logits[0];
  for (i = 1u; i < KWS_CLASSES; ++i) {
    if (logits[i] > top) top = logits[i];
  }
  for (i = 0u; i < KWS_CLASSES; ++i) {
    const uint64_t below = (uint32_t)top - (uint32_t)logits[i];
    const uint64_t exponent = (below * kws_score_mantissa) >> kws_score_shift;
    const uint32_t at = (uint32_t)(exponent >> 11) & 31u, rest = (uint32_t)exponent & 2047u;
    const uint32_t share = exp2_table[at] - (((exp2_table[at] - exp2_table[at + 1u]) * rest) >> 11);
    shares[i] = exponent >> 16 < 17u ? share >> (exponent >> 16) : 0u;
    total += shares[i];
  }
  for (i = 0u; i < KWS_CLASSES; ++i) scores[i] = (uint16_t)(((shares[i] << 15) + total / 2u) / total);
}

/* The surest keyword that is heard with this decision, or -1. */
static int detect(const int32_t *logits) {
  uint32_t i, j, count, best = 0u;
  int heard = -1;
  score(logits, recent[scored % KWS_SMOOTHING]);
  ++scored;
  count = scored < KWS_SMOOTHING ? scored : KWS_SMOOTHING;
  if (scored == 2u * KWS_SMOOTHING) scored = KWS_SMOOTHING;
  for (i = 0u; i < KWS_CLASSES; ++i) {
    uint32_t sum = 0u;
    if (waits[i] != 0u) {
      --waits[i];
      continue;
    }
    for (j = 0u; j < count; ++j) sum += recent[j][i];
    if (sum < kws_thresholds[i] * count) continue;
    waits[i] = KWS_REFRACTORY;
    if (heard < 0 || sum > best) heard = (int)i, best = sum;
  }
  return heard;
}

int kws_listen(const int16_t *samples, uint32_t count) {
  int heard = -1;
  while (count != 0u) {
    int32_t logits[KWS_CLASSES];
    int decided;
    const uint32_t taken = kws_feed(&core, samples, count, logits, &decided);
    samples += taken, count -= taken;
    if (decided != 0) {
      const int now = detect(logits);
      if (now >= 0) heard = now;
    }
  }
  return heard;
}
