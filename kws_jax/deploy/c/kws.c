#include "kws.h"

#include "kws_core.h"

extern const uint8_t kws_model[];

static kws_core core;
static uint32_t memory[(KWS_MEMORY_BYTES + 3) / 4];

int kws_init(void) {
  const int status = kws_load(&core, kws_model, KWS_MODEL_BYTES);
  return status != KWS_OK ? status : kws_attach(&core, memory, sizeof memory);
}

void kws_run(const int16_t samples[KWS_SAMPLES], int32_t logits[KWS_CLASSES]) {
  kws_window(&core, samples, logits);
}

void kws_stream_reset(void) { kws_restart(&core); }

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
