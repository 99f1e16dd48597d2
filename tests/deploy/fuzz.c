/* libFuzzer target: the loader gets altered models, most with a length and a checksum that fit again; some
 * of those that it accepts are run. */
#include <stdlib.h>
#include <string.h>

#include "kws_core.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put32(uint8_t *p, uint32_t v) {
  p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8), p[2] = (uint8_t)(v >> 16), p[3] = (uint8_t)(v >> 24);
}

static uint32_t crc32(const uint8_t *p, size_t size) {
  static uint32_t table[256];
  uint32_t crc = 0xFFFFFFFFu, i, bit;
  for (i = 0; table[255] == 0u && i < 256u; ++i) {
    table[i] = i;
    for (bit = 0; bit < 8u; ++bit) table[i] = table[i] >> 1 ^ (0xEDB88320u & (0u - (table[i] & 1u)));
  }
  while (size-- != 0u) crc = crc >> 8 ^ table[(crc ^ *p++) & 0xFFu];
  return ~crc;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
  /* headers are what a loader has to doubt: half of the changes stay within them */
  const size_t within = seed & 1u && size > 400u ? 400u : size;
  const size_t changed = LLVMFuzzerMutate(data, within, within == size ? most : within);
  if (within == size) size = changed;
  if (size >= 16u && seed % 16u >= 2u) {
    put32(data + 8, (uint32_t)size);
    put32(data + 12, crc32(data + 16, size - 16u));
  }
  return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int16_t samples[1 << 16];
  static uint32_t accepted;
  kws_core core;
  uint32_t i;
  if (samples[1] == 0) {
    for (i = 0; i < 1u << 16; ++i) samples[i] = (int16_t)(uint16_t)(i * 2654435761u >> 16 | 1u);
  }
  if (kws_load(&core, data, (uint32_t)size) != KWS_OK) return 0;
  ++accepted;
  if (kws_memory(&core) < 1u << 18 && core.samples <= 1u << 16 && accepted % 64u == 1u) {
    int32_t logits[KWS_MAX_CLASSES];
    int decided;
    void *memory = malloc(kws_memory(&core));
    if (kws_attach(&core, memory, kws_memory(&core)) != KWS_OK) abort();
    kws_window(&core, samples, logits);
    (void)kws_feed(&core, samples, core.samples, logits, &decided);
    free(memory);
  }
  return 0;
}
