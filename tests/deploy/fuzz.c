/* Feeds the loader altered models, most with a checksum that fits again, and runs those it accepts.
 * usage: fuzz MODEL COUNT SEED; prints how many were accepted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kws_core.h"

static uint64_t state;

static uint32_t draw(uint32_t below) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33) % below;
}

static void put32(uint8_t *p, uint32_t v) {
  p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8), p[2] = (uint8_t)(v >> 16), p[3] = (uint8_t)(v >> 24);
}

static uint32_t table[256];

static uint32_t crc32(const uint8_t *p, uint32_t size) {
  uint32_t crc = 0xFFFFFFFFu, i;
  for (i = 0; i < size; ++i) crc = crc >> 8 ^ table[(crc ^ p[i]) & 0xFFu];
  return ~crc;
}

int main(int argc, char **argv) {
  static uint8_t original[1 << 16];
  static int16_t samples[1 << 16];
  uint32_t size, count, i, n, accepted = 0;
  FILE *file = fopen(argv[1], "rb");
  if (argc != 4 || file == 0) return 2;
  size = (uint32_t)fread(original, 1, sizeof original, file);
  count = (uint32_t)atol(argv[2]);
  state = (uint64_t)atol(argv[3]);
  for (i = 0; i < 256; ++i) {
    uint32_t bit;
    table[i] = i;
    for (bit = 0; bit < 8; ++bit) table[i] = table[i] >> 1 ^ (0xEDB88320u & (0u - (table[i] & 1u)));
  }
  for (i = 0; i < 1u << 16; ++i) samples[i] = (int16_t)(uint16_t)draw(1u << 16);
  for (n = 0; n < count; ++n) {
    const uint32_t cut = draw(8) == 0 ? draw(size + 1) : size;
    uint8_t *model = malloc(cut ? cut : 1); /* of its own size, so that reading past it is seen */
    uint32_t changes = draw(4) + (cut == size), c;
    kws_core core;
    memcpy(model, original, cut);
    for (c = 0; c < changes && cut; ++c) {
      const uint32_t at = draw(3) ? draw(cut < 400 ? cut : 400) : draw(cut);
      model[at] = draw(2) ? (uint8_t)draw(256) : (uint8_t)(model[at] ^ 1u << draw(8));
    }
    if (cut >= 16 && draw(16)) {
      put32(model + 8, cut);
      put32(model + 12, crc32(model + 16, cut - 16));
    }
    if (kws_load(&core, model, cut) == KWS_OK) {
      ++accepted;
      if (kws_memory(&core) < 1u << 18 && core.samples <= 1u << 16 && accepted % 64 == 0) {
        int32_t logits[KWS_MAX_CLASSES];
        int decided;
        void *memory = malloc(kws_memory(&core));
        if (kws_attach(&core, memory, kws_memory(&core)) != KWS_OK) return 3;
        kws_window(&core, samples, logits);
        (void)kws_feed(&core, samples, core.samples, logits, &decided);
        free(memory);
      }
    }
    free(model);
  }
  printf("%lu of %lu accepted\n", (unsigned long)accepted, (unsigned long)count);
  return 0;
}
