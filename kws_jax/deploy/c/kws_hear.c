/* Prints the keywords it hears in raw 16-bit samples on standard input, as they come:
 *   arecord -f S16_LE -r 16000 -t raw | ./kws_hear */
#include <stdio.h>

#include "kws.h"

int main(void) {
  unsigned char bytes[2 * KWS_CHUNK];
  int16_t samples[KWS_CHUNK];
  unsigned long heard = 0, total = 0;
  size_t count, i;
  if (kws_init() != 0) {
    fprintf(stderr, "the model was refused\n");
    return 1;
  }
  while ((count = fread(bytes, 2, KWS_CHUNK, stdin)) != 0) {
    int word;
    for (i = 0; i < count; ++i) samples[i] = (int16_t)(uint16_t)(bytes[2 * i] | bytes[2 * i + 1] << 8);
    word = kws_listen(samples, (uint32_t)count);
    total += count;
    if (word >= 0) {
      printf("%8.2f s  %s\n", (double)total / KWS_SAMPLE_RATE, kws_labels[word]);
      fflush(stdout);
      ++heard;
    }
  }
  if (heard == 0) printf("%8.2f s  nothing was heard\n", (double)total / KWS_SAMPLE_RATE);
  return 0;
}
