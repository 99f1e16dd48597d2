/* Start-up of a bare Cortex-M4 and the least program around the keyword spotter: it waits for audio in
 * `kws_audio`, which an interrupt or a DMA fills, and leaves what it hears in `kws_heard`. */
#include "kws.h"

extern uint32_t stack_top, data_load, data_start, data_end, bss_start, bss_end;

volatile uint32_t kws_ready; /* set by whoever filled kws_audio */
int16_t kws_audio[KWS_CHUNK];
volatile int kws_heard = -1; /* number of the last keyword */
volatile uint32_t kws_words; /* how many there have been */
int kws_status;

void reset(void);
static void halt(void) {
  for (;;) {
  }
}

typedef union {
  uint32_t *stack;
  void (*handler)(void);
} vector;

__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    {.stack = &stack_top}, {.handler = reset}, {.handler = halt}, {.handler = halt},
    {.handler = halt},     {.handler = halt},  {.handler = halt}, {.handler = halt},
    {.handler = halt},     {.handler = halt},  {.handler = halt}, {.handler = halt},
    {.handler = halt},     {.handler = halt},  {.handler = halt}, {.handler = halt}};

static void listen(void) {
  kws_status = kws_init();
  while (kws_status == 0) {
    if (kws_ready != 0u) {
      int word;
      kws_ready = 0u;
      word = kws_listen(kws_audio, KWS_CHUNK);
      if (word >= 0) kws_heard = word, ++kws_words;
    }
  }
}

void reset(void) {
  uint32_t *from = &data_load, *to = &data_start;
  while (to < &data_end) *to++ = *from++;
  for (to = &bss_start; to < &bss_end; ++to) *to = 0u;
  listen();
  halt();
}
