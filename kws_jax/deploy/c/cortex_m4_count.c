/* Counts instructions on an emulated Cortex-M4 (qemu, mps2-an386, one instruction a nanosecond): a known
 * loop, one window, one decision of a stream. Prints them through semihosting. */
#include "kws.h"

extern uint32_t stack_top, data_load, data_start, data_end, bss_start, bss_end;

#define TICKS_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define TICKS_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define TICKS_NOW (*(volatile uint32_t *)0xE000E018u)
#define LOOPS 1000000u /* of two instructions */

static int16_t audio[KWS_SAMPLES];
static int32_t logits[KWS_CLASSES];

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

static void host(uint32_t operation, const void *argument) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void print(const char *name, uint32_t value) {
  char text[12], *at = text + 11;
  *at = '\0';
  *--at = '\n';
  do {
    *--at = (char)('0' + value % 10u);
    value /= 10u;
  } while (value != 0u);
  host(4, name);
  host(4, at);
}

static void begin(void) {
  TICKS_RELOAD = 0xFFFFFFu;
  TICKS_NOW = 0u;
  TICKS_CONTROL = 5u; /* the processor's clock, no interrupt */
}

static uint32_t ticks(void) { return 0xFFFFFFu - TICKS_NOW; }

static void measure(void) {
  uint32_t loops = LOOPS, seed = 1u, i;
  begin();
  __asm__ volatile("1: subs %0, %0, #1\n bne 1b" : "+r"(loops));
  print("loop ", ticks());
  if (kws_init() != 0) return;
  for (i = 0; i < KWS_SAMPLES; ++i) {
    seed = seed * 1103515245u + 12345u;
    audio[i] = (int16_t)((int32_t)(seed >> 16 & 0x3FFFu) - 8192);
  }
  begin();
  kws_run(audio, logits);
  print("window ", ticks());
  kws_stream_reset();
  while (!kws_stream(audio, KWS_CHUNK, logits)) {
  }
  begin();
  while (!kws_stream(audio, KWS_CHUNK, logits)) {
  }
  print("decision ", ticks());
  print("check ", (uint32_t)logits[0]);
}

void reset(void) {
  static const uint32_t done = 0x20026u; /* ADP_Stopped_ApplicationExit */
  uint32_t *from = &data_load, *to = &data_start;
  while (to < &data_end) *to++ = *from++;
  for (to = &bss_start; to < &bss_end; ++to) *to = 0u;
  measure();
  host(0x18, (const void *)(uintptr_t)done);
  halt();
}
