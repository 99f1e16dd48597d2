/* Runs the model on a WAV file: 16-bit mono PCM at the model's rate. Prints the logits of the window,
 * or of every decision where the file is longer than one. */
#include <stdio.h>
#include <string.h>

#include "kws.h"

static uint32_t u32(const unsigned char *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void show(double seconds, const int32_t *logits) {
  int best = 0, i;
  for (i = 1; i < KWS_CLASSES; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  printf("%.2f %s", seconds, kws_labels[best]);
  for (i = 0; i < KWS_CLASSES; ++i) printf(" %ld", (long)logits[i]);
  printf("\n");
}

/* Puts the file at its samples; returns how many there are, or 0. */
static uint32_t open_samples(FILE *file, const char *path) {
  unsigned char head[12], chunk[8], format[16];
  if (fread(head, 1, 12, file) != 12 || memcmp(head, "RIFF", 4) != 0 || memcmp(head + 8, "WAVE", 4) != 0) {
    fprintf(stderr, "%s is not a WAV file\n", path);
    return 0;
  }
  memset(format, 0, sizeof format);
  while (fread(chunk, 1, 8, file) == 8) {
    uint32_t size = u32(chunk + 4);
    if (memcmp(chunk, "fmt ", 4) == 0 && size >= 16 && fread(format, 1, 16, file) == 16) {
      size -= 16;
    } else if (memcmp(chunk, "data", 4) == 0) {
      if (format[0] != 1 || format[2] != 1 || u32(format + 4) != KWS_SAMPLE_RATE || format[14] != 16) {
        fprintf(stderr, "%s must be 16-bit mono PCM at %d Hz\n", path, KWS_SAMPLE_RATE);
        return 0;
      }
      return size / 2;
    }
    if (fseek(file, (long)(size + size % 2), SEEK_CUR) != 0) break;
  }
  fprintf(stderr, "%s has no samples\n", path);
  return 0;
}

int main(int argc, char **argv) {
  static int16_t samples[KWS_SAMPLES];
  int32_t logits[KWS_CLASSES];
  uint32_t count, at = 0;
  FILE *file;
  if (argc != 2) {
    fprintf(stderr, "usage: %s FILE.wav\n", argv[0]);
    return 2;
  }
  file = fopen(argv[1], "rb");
  if (file == 0) {
    fprintf(stderr, "cannot read %s\n", argv[1]);
    return 1;
  }
  count = open_samples(file, argv[1]);
  if (count == 0) return 1;
  if (kws_init() != 0) {
    fprintf(stderr, "the model was refused\n");
    return 1;
  }
  if (count <= KWS_SAMPLES) {
    for (; at < count; ++at) {
      unsigned char pair[2];
      if (fread(pair, 1, 2, file) != 2) break;
      samples[at] = (int16_t)(uint16_t)(pair[0] | pair[1] << 8);
    }
    kws_run(samples, logits); /* a short file is followed by zeros */
    show((double)KWS_SAMPLES / KWS_SAMPLE_RATE, logits);
    return 0;
  }
  while (at < count) {
    unsigned char pair[2];
    int16_t sample;
    if (fread(pair, 1, 2, file) != 2) break;
    sample = (int16_t)(uint16_t)(pair[0] | pair[1] << 8);
    ++at;
    if (kws_stream(&sample, 1, logits)) show((double)at / KWS_SAMPLE_RATE, logits);
  }
  return 0;
}
