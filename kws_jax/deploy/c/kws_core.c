#include "kws_core.h"

#include <string.h>

/* ------------------------------------------------------------------ numbers out of the stream */

typedef struct {
  const uint8_t *next;
  uint32_t bits;
  unsigned have;
} reader;

static reader seek(const uint8_t *stream, uint32_t bit) {
  reader r;
  r.next = stream + bit / 8u + 1u;
  r.bits = (uint32_t)stream[bit / 8u] >> (bit % 8u);
  r.have = 8u - bit % 8u;
  return r;
}

/* At most 16 bits; reads no byte before it is needed. */
static uint32_t take(reader *r, unsigned width) {
  uint32_t value;
  while (r->have < width) {
    r->bits |= (uint32_t)*r->next++ << r->have;
    r->have += 8u;
  }
  value = r->bits & ((1u << width) - 1u);
  r->bits >>= width;
  r->have -= width;
  return value;
}

/* Two's complement, or odd codes; those of one bit are. The fields of the reader are kept in registers. */
static void take_weights(reader *r, unsigned width, int odd, int8_t *to, uint32_t count) {
  const uint32_t mask = (1u << width) - 1u, sign = odd || width == 1u ? 0u : 1u << (width - 1u);
  const int32_t factor = sign ? 1 : 2, lowest = sign ? (int32_t)sign : (int32_t)mask;
  const uint8_t *next = r->next;
  uint32_t bits = r->bits;
  unsigned have = r->have;
  for (; count != 0u; --count) {
    if (have < width) {
      bits |= (uint32_t)*next++ << have;
      have += 8u;
    }
    *to++ = (int8_t)(factor * (int32_t)((bits & mask) ^ sign) - lowest);
    bits >>= width;
    have -= width;
  }
  r->next = next, r->bits = bits, r->have = have;
}

/* ------------------------------------------------------------------------------- arithmetic */

/* floor(value / 2^shift) of either sign. */
static int64_t down(int64_t value, unsigned shift) {
  return value < 0 ? ~(~value >> shift) : value >> shift;
}

static int64_t rounded(int64_t value, unsigned shift) {
  return shift == 0u ? value : down(value + ((int64_t)1 << (shift - 1u)), shift);
}

static int64_t up(int64_t value, unsigned shift) { return value * ((int64_t)1 << shift); }

static int32_t clipped(int64_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : (int32_t)value;
}

static uint32_t square_root(uint64_t value) {
  uint64_t root = 0, bit = (uint64_t)1 << 62;
  while (bit > value) bit >>= 2;
  while (bit != 0u) {
    if (value >= root + bit) {
      value -= root + bit;
      root = (root >> 1) + bit;
    } else {
      root >>= 1;
    }
    bit >>= 2;
  }
  return (uint32_t)root;
}

/* 2^16 log2(1 + i / 256) */
static const int32_t kLog[257] = {
    0, 369, 736, 1102, 1466, 1829, 2190, 2551, 2909, 3267, 3623, 3978,
    4331, 4683, 5034, 5384, 5732, 6079, 6425, 6769, 7112, 7454, 7795, 8134,
    8473, 8810, 9146, 9480, 9814, 10146, 10477, 10807, 11136, 11464, 11791, 12116,
    12440, 12764, 13086, 13407, 13727, 14046, 14363, 14680, 14996, 15310, 15624, 15937,
    16248, 16559, 16868, 17177, 17484, 17791, 18096, 18401, 18704, 19007, 19308, 19609,
    19909, 20207, 20505, 20802, 21098, 21393, 21687, 21980, 22272, 22564, 22854, 23144,
    23433, 23720, 24007, 24293, 24579, 24863, 25146, 25429, 25711, 25992, 26272, 26551,
    26830, 27108, 27384, 27660, 27936, 28210, 28484, 28757, 29029, 29300, 29571, 29840,
    30109, 30378, 30645, 30912, 31178, 31443, 31707, 31971, 32234, 32496, 32758, 33019,
    33279, 33538, 33797, 34055, 34312, 34569, 34825, 35080, 35334, 35588, 35841, 36094,
    36346, 36597, 36847, 37097, 37346, 37595, 37842, 38090, 38336, 38582, 38827, 39072,
    39316, 39559, 39802, 40044, 40286, 40527, 40767, 41006, 41246, 41484, 41722, 41959,
    42196, 42432, 42667, 42902, 43137, 43370, 43603, 43836, 44068, 44300, 44530, 44761,
    44990, 45220, 45448, 45676, 45904, 46131, 46357, 46583, 46809, 47034, 47258, 47482,
    47705, 47928, 48150, 48372, 48593, 48813, 49034, 49253, 49472, 49691, 49909, 50127,
    50344, 50560, 50776, 50992, 51207, 51422, 51636, 51850, 52063, 52276, 52488, 52700,
    52911, 53122, 53332, 53542, 53751, 53960, 54169, 54377, 54584, 54791, 54998, 55204,
    55410, 55615, 55820, 56025, 56229, 56432, 56635, 56838, 57040, 57242, 57443, 57644,
    57845, 58045, 58245, 58444, 58643, 58841, 59039, 59237, 59434, 59631, 59827, 60023,
    60219, 60414, 60609, 60803, 60997, 61190, 61384, 61576, 61769, 61961, 62152, 62343,
    62534, 62725, 62915, 63104, 63294, 63483, 63671, 63859, 64047, 64234, 64421, 64608,
    64794, 64980, 65166, 65351, 65536
};

/* 2^16 log2(value / 2^fraction), value > 0 */
static int32_t logarithm(uint64_t value, unsigned fraction) {
  unsigned high = 0;
  uint32_t behind, at;
  int32_t between;
  uint64_t rest = value;
  if (rest >> 32) { high += 32u; rest >>= 32; }
  if (rest >> 16) { high += 16u; rest >>= 16; }
  if (rest >> 8) { high += 8u; rest >>= 8; }
  if (rest >> 4) { high += 4u; rest >>= 4; }
  if (rest >> 2) { high += 2u; rest >>= 2; }
  if (rest >> 1) high += 1u;
  behind = (uint32_t)(high >= 24u ? value >> (high - 24u) : value << (24u - high)) & 0xFFFFFFu;
  at = behind >> 16;
  between = ((kLog[at + 1u] - kLog[at]) * (int32_t)(behind & 0xFFFFu) + 0x8000) >> 16;
  return ((int32_t)high - (int32_t)fraction) * 65536 + kLog[at] + between;
}

/* Inner loops have a known length: compilers make vectors of them where the machine has some. */
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__)
/* A Cortex-M4 and later: four products in two instructions, on pairs of 16 bits. */
#define LANES 4u
#define PAIRS(name, op)                               \
  static uint32_t name##_low(uint32_t x) {            \
    uint32_t y;                                       \
    __asm__(op " %0, %1" : "=r"(y) : "r"(x));         \
    return y;                                         \
  }                                                   \
  static uint32_t name##_high(uint32_t x) {           \
    uint32_t y;                                       \
    __asm__(op " %0, %1, ror #8" : "=r"(y) : "r"(x)); \
    return y;                                         \
  }
PAIRS(signed_pairs, "sxtb16")
PAIRS(unsigned_pairs, "uxtb16")

static int32_t add_products(uint32_t a, uint32_t b, int32_t sum) {
  int32_t total;
  __asm__("smlad %0, %1, %2, %3" : "=r"(total) : "r"(a), "r"(b), "r"(sum));
  return total;
}

#define ADD_LANES(pairs)                                            \
  do {                                                              \
    uint32_t x, y;                                                  \
    memcpy(&x, a, 4u);                                              \
    memcpy(&y, b, 4u);                                              \
    sum = add_products(pairs##_low(x), signed_pairs_low(y), sum);   \
    sum = add_products(pairs##_high(x), signed_pairs_high(y), sum); \
  } while (0)
#else
#define LANES 16u
#define ADD_LANES(pairs)                                     \
  do {                                                       \
    unsigned i;                                              \
    for (i = 0; i < LANES; ++i) sum += (int32_t)a[i] * b[i]; \
  } while (0)
#endif

static int32_t dot_signed(const int8_t *a, const int8_t *b, uint32_t count) {
  int32_t sum = 0;
  for (; count >= LANES; count -= LANES, a += LANES, b += LANES) ADD_LANES(signed_pairs);
  for (; count != 0u; --count) sum += (int32_t)*a++ * *b++;
  return sum;
}

static int32_t dot_unsigned(const uint8_t *a, const int8_t *b, uint32_t count) {
  int32_t sum = 0;
  for (; count >= LANES; count -= LANES, a += LANES, b += LANES) ADD_LANES(unsigned_pairs);
  for (; count != 0u; --count) sum += (int32_t)*a++ * *b++;
  return sum;
}

static int32_t dot(const int8_t *a, int is_signed, const int8_t *b, uint32_t count) {
  return is_signed ? dot_signed(a, b, count) : dot_unsigned((const uint8_t *)a, b, count);
}

/* ---------------------------------------------------------------------------------- loading */

static uint32_t u16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t u32(const uint8_t *p) { return u16(p) | u16(p + 2) << 16; }
static int16_t i16(const uint8_t *p) { return (int16_t)(uint16_t)u16(p); }

static uint32_t checksum(const uint8_t *p, uint32_t size) {
  uint32_t crc = 0xFFFFFFFFu, i;
  for (i = 0; i < size; ++i) {
    unsigned bit;
    crc ^= p[i];
    for (bit = 0; bit < 8u; ++bit) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
  }
  return ~crc;
}

static uint32_t constant(const kws_core *k, uint32_t first, uint32_t index) {
  reader r = seek(k->stream, first + 16u * index);
  return take(&r, 16u);
}

/* A place in the stream that is being laid out. */
typedef struct {
  uint64_t bit, end;
} cursor;

static uint32_t pass(cursor *c, uint64_t count, uint32_t width) {
  const uint32_t at = (uint32_t)c->bit;
  c->bit += count * width;
  return at;
}

static int read_word(const kws_core *k, cursor *c, uint32_t *word) {
  reader r;
  if (c->bit + 32u > c->end) return KWS_BAD_FILE;
  r = seek(k->stream, pass(c, 1u, 32u));
  *word = take(&r, 16u);
  *word |= take(&r, 16u) << 16;
  return KWS_OK;
}

/* Constants and weights of a layer: where they are, and whether every shift is one that can be done. */
static int read_layer(const kws_core *k, kws_layer *l, cursor *c, int classifier) {
  const uint32_t inputs = classifier || (l->kh == 1u && l->kw == 1u && l->in != 0u) ? l->in : 1u;
  uint32_t i, word;
  const int status = read_word(k, c, &word);
  if (status != KWS_OK) return status;
  l->base = (int8_t)((int32_t)(word & 0x7Fu) - 64);
  l->fraction = (uint8_t)(word >> 7 & 0x1Fu);
  if (l->residual) {
    const int residual = read_word(k, c, &word);
    if (residual != KWS_OK) return residual;
    l->extra_shift = (int16_t)((int32_t)(word >> 24) - 64);
    l->extra = (word & 0xFFFFFFu) + 0x1000000u;
  }
  l->constants = pass(c, l->out, 32u);
  l->weights = pass(c, (uint64_t)l->kh * l->kw * l->out * inputs, l->bits);
  if (c->bit > c->end) return KWS_BAD_FILE;
  if (classifier) return KWS_OK;
  for (i = 0; i < l->out; ++i) {
    reader r = seek(k->stream, l->constants + 16u * i);
    const int32_t shift = (int32_t)(take(&r, 16u) >> 11) + l->base;
    const int32_t apart = shift - l->extra_shift;
    if (shift < 1 || shift > 62 || shift < l->fraction || shift - l->fraction > 46) return KWS_BAD_FILE;
    if (l->residual && (apart < -62 || apart > 28)) return KWS_BAD_FILE;
  }
  return KWS_OK;
}

static int read_layer_header(const uint8_t *p, kws_layer *l) {
  l->out = (uint16_t)u16(p);
  l->kh = p[2], l->kw = p[3], l->sh = p[4], l->sw = p[5];
  l->bits = p[6], l->out_bits = p[7];
  l->low = i16(p + 8), l->high = i16(p + 10);
  l->residual = p[12], l->odd = p[13];
  if (l->bits == 0u) return KWS_OK;
  if (l->out == 0u || l->kh % 2u == 0u || l->kw % 2u == 0u || l->sh == 0u || l->sw == 0u) return KWS_BAD_FILE;
  if (l->bits > 8u || l->residual > 1u || l->low > l->high || l->low < -128) return KWS_BAD_FILE;
  if (l->odd > 1u || (l->odd && l->bits != 2u)) return KWS_BAD_FILE;
  if (l->high > (l->low < 0 ? 127 : 255)) return KWS_BAD_FILE;
  return l->out > KWS_MAX_CHANNELS || l->kh > 31u || l->kw > 31u ? KWS_TOO_LARGE : KWS_OK;
}

static void follow(kws_layer *l, uint16_t in, uint16_t h, uint16_t w) {
  l->in = in, l->in_h = h, l->in_w = w;
  l->h = (uint16_t)((h + l->sh - 1u) / l->sh);
  l->w = (uint16_t)((w + l->sw - 1u) / l->sw);
}

static uint64_t map_size(const kws_layer *l) { return (uint64_t)l->h * l->w * l->out; }
static uint64_t aligned(uint64_t size) { return (size + 3u) & ~(uint64_t)3u; }

/* Memory for sums and codes of a row. */
static uint64_t row_scratch(const kws_layer *depthwise) {
  const uint64_t row = (uint64_t)depthwise->w * depthwise->out;
  return 4u * row + aligned(row);
}

/* Rows of the depthwise layer's input, as many as its kernel has. */
static uint64_t ring_size(const kws_layer *depthwise) {
  return aligned((uint64_t)depthwise->kh * depthwise->in_w * depthwise->out);
}

/* Memory beside its input and output that a block needs. */
static uint64_t block_scratch(const kws_layer *expand) {
  return row_scratch(expand + 1) + (expand->bits ? ring_size(expand + 1) : 0u);
}

/* Lays out what the stream of a causal network keeps, and returns how much it is in all. */
static uint64_t stream_memory(kws_core *k) {
  const kws_layer *head = k->layer + 1u + 3u * k->blocks;
  uint64_t at = 0, scratch = 4u * (uint64_t)k->layer->w * k->layer->out;
  uint64_t row = aligned((uint64_t)k->layer->w * k->layer->out);
  uint32_t i; /* what is too large for 32 bits here is refused by its sum */
  for (i = 0; i < k->blocks; ++i) {
    const kws_layer *depthwise = k->layer + 2u + 3u * i, *project = depthwise + 1;
    const uint64_t size = aligned((uint64_t)project->w * project->out);
    k->ring[i] = (uint32_t)at;
    at += ring_size(depthwise);
    scratch = row_scratch(depthwise) > scratch ? row_scratch(depthwise) : scratch;
    row = size > row ? size : row;
  }
  k->sums = (uint32_t)at;
  at += 4u * (uint64_t)head->h * head->out;
  k->scratch = (uint32_t)at;
  scratch = 4u * (uint64_t)head->out > scratch ? 4u * (uint64_t)head->out : scratch;
  k->in_out = (uint32_t)(at + scratch);
  k->row_size = (uint32_t)row;
  return at + scratch + 2u * row;
}

int kws_load(kws_core *k, const uint8_t *model, uint32_t size) {
  uint32_t i, flags, text, columns, half, even, word;
  uint64_t work, need;
  cursor c;
  kws_layer *l;
  int status;
  memset(k, 0, sizeof *k);
  if (size < 48u || memcmp(model, "KWSI", 4u) != 0) return KWS_BAD_FILE;
  if (u16(model + 4) != 2u) return KWS_BAD_VERSION;
  if (u32(model + 8) != size || checksum(model + 16, size - 16u) != u32(model + 12)) return KWS_BAD_FILE;
  flags = u16(model + 6);
  k->pairs = flags & 1u, k->log = flags >> 1 & 1u, k->symmetric = flags >> 2 & 1u;
  k->magnitude = flags >> 3 & 3u, k->causal = flags >> 5 & 1u;
  text = u32(model + 16);
  k->samples = u16(model + 24);
  k->kernel = (uint16_t)u16(model + 26), k->stride = (uint16_t)u16(model + 28);
  k->filters = (uint16_t)u16(model + 30), k->classes = (uint16_t)u16(model + 32);
  k->blocks = (uint16_t)u16(model + 34);
  k->tap_bits = model[36], k->sample_bits = model[37], k->image_bits = model[38];
  k->response_fraction = model[39], k->factor_fraction = model[40], k->offset_fraction = model[41];
  k->every = (uint16_t)u16(model + 42);
  k->floor = u32(model + 44);
  if (k->kernel < 2u || k->stride == 0u || k->filters == 0u || k->classes == 0u) return KWS_BAD_FILE;
  if (k->samples < k->kernel || k->tap_bits < 1u || k->tap_bits > 8u) return KWS_BAD_FILE;
  if (k->sample_bits < 2u || k->sample_bits > 8u || k->image_bits < 2u || k->image_bits > 8u) return KWS_BAD_FILE;
  if (k->magnitude > 2u || k->response_fraction > 24u || k->factor_fraction > 46u) return KWS_BAD_FILE;
  if (k->offset_fraction > k->factor_fraction) return KWS_BAD_FILE;
  if (k->every == 0u || k->every % KWS_FRAMES_AT_ONCE != 0u) return KWS_BAD_FILE;
  if (k->log && k->magnitude == 2u && !k->pairs) return KWS_BAD_FILE;
  if (k->blocks > KWS_MAX_BLOCKS || k->kernel > KWS_MAX_KERNEL || k->filters > KWS_MAX_CHANNELS ||
      k->classes > KWS_MAX_CLASSES || k->stride > k->kernel) {
    return KWS_TOO_LARGE;
  }
  k->frames = (uint16_t)((k->samples - k->kernel) / k->stride + 1u);
  if (k->frames < KWS_FRAMES_AT_ONCE) return KWS_BAD_FILE;
  k->layers = (uint16_t)(3u * k->blocks + 3u);
  need = 48u + 16u * (uint64_t)k->layers + text;
  if (need + u32(model + 20) != size) return KWS_BAD_FILE;
  k->stream = model + need;
  c.bit = 0, c.end = (uint64_t)u32(model + 20) * 8u;
  if (c.end > 0xFFFFFFFFu) return KWS_TOO_LARGE;

  columns = k->pairs ? 2u * k->filters : k->filters;
  status = read_word(k, &c, &word);
  if (status != KWS_OK) return status;
  k->sample_shift = (int16_t)((int32_t)(word >> 24) - 64);
  k->sample_mantissa = (word & 0xFFFFFFu) + 0x1000000u;
  if (k->sample_shift < 1 || k->sample_shift > 62) return KWS_BAD_FILE;
  k->multipliers = pass(&c, columns, 32u);
  k->factors = pass(&c, k->filters, 16u);
  k->offsets = pass(&c, k->filters, 16u);
  half = (k->kernel + 1u) / 2u, even = k->kernel / 2u;
  k->taps = pass(&c, (uint64_t)k->filters * (k->symmetric ? half : k->kernel), k->tap_bits);
  if (k->pairs) pass(&c, (uint64_t)k->filters * (k->symmetric ? even : k->kernel), k->tap_bits);
  if (c.bit > c.end) return KWS_BAD_FILE;
  for (i = 0; i < columns; ++i) {
    const int32_t shift = (int32_t)(constant(k, k->multipliers, 2u * i + 1u) >> 8) - 64;
    if (shift < 1 || shift > 62) return KWS_BAD_FILE;
  }

  for (i = 0; i < k->layers; ++i) {
    status = read_layer_header(model + 48u + 16u * i, &k->layer[i]);
    if (status != KWS_OK) return status;
  }
  l = k->layer;
  if (l->bits == 0u || l->residual) return KWS_BAD_FILE;
  follow(l, 1u, k->frames, k->filters);
  l->in = 0; /* one channel, whose weights are stored like those of a depthwise convolution */
  status = read_layer(k, l, &c, 0);
  if (status != KWS_OK) return status;
  work = map_size(l) + 4u * (uint64_t)l->w * l->out;
  for (i = 0; i < k->blocks; ++i) {
    kws_layer *before = l, *expand = k->layer + 1u + 3u * i, *depthwise = expand + 1, *project = expand + 2;
    uint16_t inside = before->out;
    if (depthwise->bits == 0u || project->bits == 0u || depthwise->low < 0) return KWS_BAD_FILE;
    if (depthwise->residual || depthwise->sh != depthwise->sw) return KWS_BAD_FILE;
    if (project->kh != 1u || project->kw != 1u || project->sh != 1u || project->sw != 1u) return KWS_BAD_FILE;
    if (expand->bits) {
      if (expand->kh != 1u || expand->kw != 1u || expand->sh != 1u || expand->sw != 1u) return KWS_BAD_FILE;
      if (expand->residual || expand->low < 0) return KWS_BAD_FILE;
      follow(expand, before->out, before->h, before->w);
      status = read_layer(k, expand, &c, 0);
      if (status != KWS_OK) return status;
      inside = expand->out;
    }
    if (depthwise->out != inside) return KWS_BAD_FILE;
    follow(depthwise, 0u, before->h, before->w);
    status = read_layer(k, depthwise, &c, 0);
    if (status != KWS_OK) return status;
    follow(project, depthwise->out, depthwise->h, depthwise->w);
    status = read_layer(k, project, &c, 0);
    if (status != KWS_OK) return status;
    if (project->residual && (depthwise->sh != 1u || project->out != before->out)) return KWS_BAD_FILE;
    need = aligned(map_size(before)) + aligned(map_size(project)) + block_scratch(expand);
    work = need > work ? need : work;
    l = project;
  }
  {
    kws_layer *head = k->layer + 1u + 3u * k->blocks, *classifier = head + 1;
    if (head->bits == 0u || classifier->bits == 0u || head->low < 0 || head->residual) return KWS_BAD_FILE;
    if (head->kh != 1u || head->kw != 1u || head->sh != 1u || head->sw != 1u) return KWS_BAD_FILE;
    if (classifier->kh != 1u || classifier->kw != 1u || classifier->out != k->classes) return KWS_BAD_FILE;
    follow(head, l->out, l->h, l->w);
    status = read_layer(k, head, &c, 0);
    if (status != KWS_OK) return status;
    follow(classifier, head->out, 1u, 1u);
    status = read_layer(k, classifier, &c, 1);
    if (status != KWS_OK) return status;
    need = aligned(map_size(l)) + 4u * (uint64_t)head->out;
    work = need > work ? need : work;
  }
  if ((c.bit + 7u) / 8u != u32(model + 20)) return KWS_BAD_FILE;
  /* a row of the stem needs its sums beside the map */
  need = aligned(map_size(k->layer)) + 4u * (uint64_t)k->layer->w * k->layer->out;
  work = need > work ? need : work;
  if (k->causal) {
    need = stream_memory(k);
    work = need > work ? need : work;
  }
  k->image_size = (uint32_t)aligned((uint64_t)k->frames * k->filters);
  k->codes_size = (uint32_t)aligned((uint64_t)k->kernel + (KWS_FRAMES_AT_ONCE - 1u) * k->stride);
  if (work + k->image_size + k->codes_size > 0x7FFFFFFFu) return KWS_TOO_LARGE;
  k->work_size = (uint32_t)aligned(work);
  return KWS_OK;
}

uint32_t kws_memory(const kws_core *k) { return k->image_size + k->codes_size + k->work_size; }

int kws_attach(kws_core *k, void *memory, uint32_t size) {
  if (memory == 0 || size < kws_memory(k) || (uintptr_t)memory % 4u != 0u) return KWS_NO_MEMORY;
  k->work = (int8_t *)memory; /* aligned, as it holds sums */
  k->image = k->work + k->work_size;
  k->codes = k->image + k->image_size;
  kws_restart(k);
  return KWS_OK;
}

/* -------------------------------------------------------------------------------- front end */

static void column_taps(const kws_core *k, uint32_t column, int8_t *taps) {
  const uint32_t second = k->pairs && column >= k->filters;
  const uint32_t half = (k->kernel + 1u) / 2u, even = k->kernel / 2u;
  const uint32_t each = !k->symmetric ? k->kernel : second ? even : half;
  uint32_t first = k->taps, index = column, i;
  reader r;
  if (second) {
    first += (uint32_t)k->filters * (k->symmetric ? half : k->kernel) * k->tap_bits;
    index -= k->filters;
  }
  r = seek(k->stream, first + index * each * k->tap_bits);
  take_weights(&r, k->tap_bits, 0, taps, each);
  if (!k->symmetric) return;
  if (second && k->kernel % 2u) taps[even] = k->tap_bits == 1u; /* one bit has no zero */
  for (i = 0; i < even; ++i) taps[k->kernel - 1u - i] = (int8_t)(second ? -taps[i] : taps[i]);
}

static int64_t scaled(const kws_core *k, int32_t sum, uint32_t column) {
  const uint32_t high = constant(k, k->multipliers, 2u * column + 1u);
  const uint32_t low = constant(k, k->multipliers, 2u * column);
  const int64_t mantissa = (int64_t)((high & 0xFFu) << 16 | low) + 0x1000000;
  return rounded(sum * mantissa, (unsigned)((int32_t)(high >> 8) - 64));
}

/* Image codes of `frames` frames, the first at `codes`, in rows `row` on of the ring. */
static void image_rows(kws_core *k, const int8_t *codes, uint32_t frames) {
  int8_t taps[KWS_MAX_KERNEL], other[KWS_MAX_KERNEL];
  const int32_t top = ((int32_t)1 << (k->image_bits - 1u)) - 1;
  uint32_t f, t;
  for (f = 0; f < k->filters; ++f) {
    const int32_t factor = (int16_t)(uint16_t)constant(k, k->factors, f);
    const int32_t offset = (int16_t)(uint16_t)constant(k, k->offsets, f);
    column_taps(k, f, taps);
    if (k->pairs) column_taps(k, f + k->filters, other);
    for (t = 0; t < frames; ++t) {
      const int8_t *frame = codes + (uint32_t)k->stride * t;
      const int64_t a = scaled(k, dot_signed(frame, taps, k->kernel), f);
      int64_t response = a, value;
      if (k->pairs) {
        const int64_t b = scaled(k, dot_signed(frame, other, k->kernel), f + k->filters);
        /* unsigned: whatever an altered model holds, nothing overflows */
        response = (int64_t)square_root((uint64_t)a * (uint64_t)a + (uint64_t)b * (uint64_t)b + k->floor);
      } else if (a < 0 && k->magnitude != 2u) {
        response = k->magnitude == 1u ? 0 : -a;
      }
      if (k->log) {
        response = logarithm((uint64_t)response + ((uint64_t)1 << k->response_fraction), k->response_fraction);
      }
      value = response * factor + up(offset, (unsigned)(k->factor_fraction - k->offset_fraction));
      value = rounded(value, k->factor_fraction);
      k->image[((k->row + t) % k->frames) * k->filters + f] = (int8_t)clipped(value, -top, top);
    }
  }
  k->row = (k->row + frames) % k->frames;
}

static int8_t sample_code(const kws_core *k, int16_t sample) {
  const int32_t top = ((int32_t)1 << (k->sample_bits - 1u)) - 1;
  const int64_t value = (int64_t)sample * (int64_t)k->sample_mantissa;
  return (int8_t)clipped(rounded(value, (unsigned)k->sample_shift), -top, top);
}

/* ----------------------------------------------------------------------------------- layers */

typedef struct {
  int64_t mantissa, offset;
  unsigned shift;
} channel;

static channel channel_of(const kws_core *k, const kws_layer *l, uint32_t index) {
  const uint32_t word = constant(k, l->constants, index);
  channel c;
  c.mantissa = (int64_t)((word & 0x7FFu) + 2048u);
  c.shift = (unsigned)((int32_t)(word >> 11) + l->base);
  c.offset = up((int16_t)(uint16_t)constant(k, l->constants + 16u * l->out, index), c.shift - l->fraction);
  c.offset += (int64_t)1 << (c.shift - 1u);
  return c;
}

static int8_t code_of(const kws_layer *l, const channel *c, int32_t sum, int32_t residual) {
  int64_t value = sum * c->mantissa + c->offset;
  if (l->residual) {
    const int64_t more = (int64_t)residual * (int64_t)l->extra;
    const int32_t apart = (int32_t)c->shift - l->extra_shift;
    value += apart >= 0 ? up(more, (unsigned)apart) : down(more, (unsigned)-apart);
  }
  /* codes above 127 are read back as unsigned bytes */
  return (int8_t)(uint8_t)clipped(down(value, c->shift), l->low, l->high);
}

/* `pixels` pixels of a pointwise layer. */
static void pointwise(const kws_core *k, const kws_layer *l, const int8_t *in, int is_signed,
                      uint32_t pixels, int8_t *out, const int8_t *residual, int residual_signed) {
  int8_t weights[KWS_MAX_CHANNELS];
  reader r = seek(k->stream, l->weights);
  uint32_t o, p;
  for (o = 0; o < l->out; ++o) {
    const channel c = channel_of(k, l, o);
    take_weights(&r, l->bits, l->odd, weights, l->in);
    for (p = 0; p < pixels; ++p) {
      const uint32_t at = p * l->out + o;
      int32_t more = 0;
      if (l->residual) more = residual_signed ? residual[at] : (uint8_t)residual[at];
      out[at] = code_of(l, &c, dot(in + p * l->in, is_signed, weights, l->in), more);
    }
  }
}

/* Adds products of one tap with a row, `count` pixels `step` channels apart. */
static void add_tap(int32_t *sums, const int8_t *row, int is_signed, const int8_t *taps,
                    uint32_t channels, uint32_t count, uint32_t step) {
  uint32_t p;
  for (p = 0; p < count; ++p, sums += channels, row += step) {
    uint32_t c = 0;
    if (is_signed) {
      for (; c + LANES <= channels; c += LANES) {
        unsigned i;
        for (i = 0; i < LANES; ++i) sums[c + i] += (int32_t)row[c + i] * taps[c + i];
      }
      for (; c < channels; ++c) sums[c] += (int32_t)row[c] * taps[c];
    } else {
      const uint8_t *from = (const uint8_t *)row;
      for (; c + LANES <= channels; c += LANES) {
        unsigned i;
        for (i = 0; i < LANES; ++i) sums[c + i] += (int32_t)from[c + i] * taps[c + i];
      }
      for (; c < channels; ++c) sums[c] += (int32_t)from[c] * taps[c];
    }
  }
}

/* Sums of a row of the map to codes. */
static void row_codes(const kws_core *k, const kws_layer *l, const int32_t *sums, int8_t *out) {
  uint32_t c, p;
  for (c = 0; c < l->out; ++c) {
    const channel own = channel_of(k, l, c);
    for (p = 0; p < l->w; ++p) out[p * l->out + c] = code_of(l, &own, sums[p * l->out + c], 0);
  }
}

/* Rows of padding above the input of a stem or a depthwise layer. */
static int32_t padding(const kws_core *k, const kws_layer *l) { return k->causal ? l->kh - 1 : l->kh / 2; }

/* A row of the stem, whose kernel lies on rows `above` on of the image, oldest row first; those before
 * `lowest` are padding. */
static void stem_row(const kws_core *k, const kws_layer *l, int32_t above, int32_t lowest, int8_t *out,
                     int32_t *sums) {
  int8_t taps[KWS_MAX_CHANNELS];
  reader r = seek(k->stream, l->weights);
  int32_t ky, kx;
  uint32_t p, c;
  memset(sums, 0, sizeof *sums * l->w * l->out);
  for (ky = 0; ky < l->kh; ++ky) {
    const int32_t from = above + ky;
    for (kx = 0; kx < l->kw; ++kx) {
      take_weights(&r, l->bits, l->odd, taps, l->out);
      if (from < lowest || from >= l->in_h) continue;
      for (p = 0; p < l->w; ++p) {
        const int32_t at = (int32_t)(p * l->sw) + kx - l->kw / 2;
        int32_t x;
        if (at < 0 || at >= l->in_w) continue;
        x = k->image[((k->row + (uint32_t)from) % k->frames) * k->filters + (uint32_t)at];
        for (c = 0; c < l->out; ++c) sums[p * l->out + c] += x * taps[c];
      }
    }
  }
  row_codes(k, l, sums, out);
}

/* A row of a block, whose kernel lies on rows `above` on of `rows`, of which row y is at y % count;
 * those before 0 and from `end` on are padding. `scratch` is as long as row_scratch says. */
static void block_row(const kws_core *k, const kws_layer *depthwise, const int8_t *rows, int is_signed,
                      int32_t count, int32_t above, int32_t end, int8_t *scratch, int8_t *out,
                      const int8_t *block_input, int input_signed) {
  const kws_layer *project = depthwise + 1;
  const uint32_t channels = depthwise->out, row = (uint32_t)depthwise->w * channels;
  const uint32_t in_row = (uint32_t)depthwise->in_w * channels;
  int32_t *sums = (int32_t *)(void *)scratch;
  int8_t *codes = scratch + 4u * row;
  int8_t taps[KWS_MAX_CHANNELS];
  const int32_t half = depthwise->kw / 2, stride = depthwise->sw;
  reader r = seek(k->stream, depthwise->weights);
  int32_t ky, kx;
  memset(sums, 0, sizeof *sums * row);
  for (ky = 0; ky < depthwise->kh; ++ky) {
    const int32_t from = above + ky;
    const int outside = from < 0 || from >= end;
    const int8_t *line = outside ? rows : rows + (uint32_t)(from % count) * in_row;
    for (kx = 0; kx < depthwise->kw; ++kx) {
      /* columns p with 0 <= p * stride + kx - half < in_w */
      const int32_t first = half > kx ? (half - kx + stride - 1) / stride : 0;
      int32_t last = depthwise->in_w - 1 + half - kx;
      last = last < 0 ? 0 : last / stride + 1;
      if (last > depthwise->w) last = depthwise->w;
      take_weights(&r, depthwise->bits, depthwise->odd, taps, channels);
      if (outside || first >= last) continue;
      add_tap(sums + (uint32_t)first * channels,
              line + (uint32_t)(first * stride + kx - half) * channels, is_signed, taps, channels,
              (uint32_t)(last - first), (uint32_t)stride * channels);
    }
  }
  row_codes(k, depthwise, sums, codes);
  pointwise(k, project, codes, 0, project->w, out, project->residual ? block_input : 0, input_signed);
}

/* A block, row by row: of the expanded input only as many rows exist as the kernel has. */
static void block(const kws_core *k, const kws_layer *expand, const int8_t *in, int in_signed,
                  int8_t *out, int8_t *scratch) {
  const kws_layer *depthwise = expand + 1, *project = expand + 2;
  const uint32_t in_row = (uint32_t)depthwise->in_w * depthwise->out;
  int8_t *ring = scratch + row_scratch(depthwise);
  const int wide = expand->bits != 0u;
  int32_t ready = 0, y;
  for (y = 0; y < depthwise->h; ++y) {
    const int32_t above = y * depthwise->sh - padding(k, depthwise);
    const uint32_t at = (uint32_t)y * project->w * project->out;
    for (; wide && ready < depthwise->in_h && ready < above + depthwise->kh; ++ready) {
      const uint32_t pixels = expand->w;
      pointwise(k, expand, in + (uint32_t)ready * pixels * expand->in, in_signed, pixels,
                ring + (uint32_t)(ready % depthwise->kh) * in_row, 0, 0);
    }
    block_row(k, depthwise, wide ? ring : in, wide ? 0 : in_signed,
              wide ? depthwise->kh : depthwise->in_h, above, depthwise->in_h, scratch, out + at,
              project->residual ? in + at : 0, in_signed);
  }
}

/* Sums of the head's codes over `pixels` pixels. */
static void head(const kws_core *k, const kws_layer *l, const int8_t *in, int in_signed, uint32_t pixels,
                 int32_t *sums) {
  int8_t weights[KWS_MAX_CHANNELS];
  reader r = seek(k->stream, l->weights);
  uint32_t o, p;
  for (o = 0; o < l->out; ++o) {
    const channel c = channel_of(k, l, o);
    int32_t sum = 0;
    take_weights(&r, l->bits, l->odd, weights, l->in);
    for (p = 0; p < pixels; ++p) {
      sum += (uint8_t)code_of(l, &c, dot(in + p * l->in, in_signed, weights, l->in), 0);
    }
    sums[o] = sum;
  }
}

static void classify(const kws_core *k, const kws_layer *classifier, const int32_t *sums, int32_t *logits) {
  int8_t weights[KWS_MAX_CHANNELS];
  reader r = seek(k->stream, classifier->weights);
  uint32_t o, i;
  for (o = 0; o < classifier->out; ++o) {
    reader b = seek(k->stream, classifier->constants + 32u * o);
    const uint32_t low = take(&b, 16u);
    const uint32_t bias = low | take(&b, 16u) << 16;
    uint32_t logit = bias; /* unsigned: what is too large wraps, as it does in the reference */
    take_weights(&r, classifier->bits, classifier->odd, weights, classifier->in);
    for (i = 0; i < classifier->in; ++i) logit += (uint32_t)sums[i] * (uint32_t)(int32_t)weights[i];
    logits[o] = (int32_t)logit;
  }
}

/* The image in the ring, oldest row first, to logits. Maps lie at the two ends of the memory in turn. */
static void network(const kws_core *k, int32_t *logits) {
  const kws_layer *l = k->layer, *last = k->layer + 1u + 3u * k->blocks;
  const int8_t *in = k->work;
  uint32_t size = (uint32_t)aligned(map_size(l)), i;
  int32_t *sums;
  int low = 1;
  for (i = 0; i < l->h; ++i) {
    stem_row(k, l, (int32_t)(i * l->sh) - padding(k, l), 0, k->work + i * l->w * l->out,
             (int32_t *)(void *)(k->work + size));
  }
  for (i = 0; i < k->blocks; ++i) {
    const kws_layer *expand = k->layer + 1u + 3u * i, *project = expand + 2;
    const uint32_t next = (uint32_t)aligned(map_size(project));
    int8_t *out = low ? k->work + k->work_size - next : k->work;
    block(k, expand, in, l->low < 0, out, low ? k->work + size : k->work + next);
    in = out, size = next, low = !low, l = project;
  }
  sums = (int32_t *)(void *)(low ? k->work + size : k->work);
  head(k, last, in, l->low < 0, (uint32_t)last->h * last->w, sums);
  classify(k, last + 1, sums, logits);
}

/* ---------------------------------------------------------------- streams of a causal network */

/* The number of the row behind row `y`; numbers start over where neither the place in the ring nor that
 * between two strides changes, and as many rows as the kernel has lie before. */
static uint16_t later(const kws_layer *depthwise, uint16_t y) {
  const uint32_t turn = (uint32_t)depthwise->kh * depthwise->sh;
  return (uint16_t)(y + 1u < 2u * turn ? y + 1u : turn);
}

/* What a row of the image brings, down to the sums of the head; `ahead` rows of it are newer. */
static void advance(kws_core *k, uint32_t ahead) {
  const kws_layer *l = k->layer, *last = k->layer + 1u + 3u * k->blocks;
  int8_t *scratch = k->work + k->scratch, *in = k->work + k->in_out, *out = in + k->row_size;
  uint32_t i;
  const int32_t newest = (int32_t)(k->frames - 1u - ahead);
  if (k->stem_phase != 0u) {
    --k->stem_phase;
    return;
  }
  k->stem_phase = l->sh - 1u;
  stem_row(k, l, newest + 1 - l->kh, (int32_t)(k->frames - k->counted), in, (int32_t *)(void *)scratch);
  for (i = 0; i < k->blocks; ++i) {
    const kws_layer *expand = k->layer + 1u + 3u * i, *depthwise = expand + 1;
    const uint32_t in_row = (uint32_t)depthwise->in_w * depthwise->out;
    const int32_t y = k->next[i];
    int8_t *ring = k->work + k->ring[i], *line = ring + (uint32_t)(y % depthwise->kh) * in_row;
    int8_t *other;
    const int in_signed = l->low < 0;
    if (expand->bits) {
      pointwise(k, expand, in, in_signed, expand->w, line, 0, 0);
    } else {
      memcpy(line, in, in_row);
    }
    k->next[i] = later(depthwise, k->next[i]);
    if (y % depthwise->sh != 0) return;
    block_row(k, depthwise, ring, expand->bits ? 0 : in_signed, depthwise->kh, y + 1 - depthwise->kh, y + 1,
              scratch, out, in, in_signed);
    l = depthwise + 1, other = in, in = out, out = other;
  }
  head(k, last, in, l->low < 0, last->w, (int32_t *)(void *)(k->work + k->sums) + k->sums_next * last->out);
  k->sums_next = (k->sums_next + 1u) % last->h;
}

static void decide(const kws_core *k, int32_t *logits) {
  const kws_layer *last = k->layer + 1u + 3u * k->blocks;
  const int32_t *sums = (const int32_t *)(const void *)(k->work + k->sums);
  int32_t *total = (int32_t *)(void *)(k->work + k->scratch);
  uint32_t y, o;
  if (!k->causal) {
    network(k, logits);
    return;
  }
  memset(total, 0, sizeof *total * last->out);
  for (y = 0; y < last->h; ++y) {
    for (o = 0; o < last->out; ++o) total[o] += *sums++;
  }
  classify(k, last + 1, total, logits);
}

/* ---------------------------------------------------------------------------------- running */

void kws_restart(kws_core *k) {
  k->row = k->have = k->counted = 0;
  k->due = k->frames;
  k->stem_phase = k->sums_next = 0;
  memset(k->next, 0, sizeof k->next);
  if (k->causal) memset(k->work + k->sums, 0, k->scratch - k->sums);
}

void kws_window(kws_core *k, const int16_t *samples, int32_t *logits) {
  uint32_t t;
  kws_restart(k);
  for (t = 0; t < k->frames; t += KWS_FRAMES_AT_ONCE) {
    const uint32_t left = k->frames - t, frames = left < KWS_FRAMES_AT_ONCE ? left : KWS_FRAMES_AT_ONCE;
    const int16_t *from = samples + t * k->stride;
    const uint32_t count = k->kernel + (frames - 1u) * k->stride;
    uint32_t i;
    for (i = 0; i < count; ++i) k->codes[i] = sample_code(k, from[i]);
    image_rows(k, k->codes, frames);
  }
  network(k, logits);
  kws_restart(k);
}

uint32_t kws_feed(kws_core *k, const int16_t *samples, uint32_t count, int32_t *logits, int *decided) {
  uint32_t taken = 0;
  *decided = 0;
  while (taken < count) {
    /* as many frames as may come before the next decision, in a batch that ends with it */
    uint32_t batch = k->due % KWS_FRAMES_AT_ONCE;
    uint32_t want;
    if (batch == 0u) batch = KWS_FRAMES_AT_ONCE;
    want = k->kernel + (batch - 1u) * k->stride;
    while (k->have < want && taken < count) k->codes[k->have++] = sample_code(k, samples[taken++]);
    if (k->have < want) break;
    image_rows(k, k->codes, batch);
    k->have -= batch * k->stride;
    memmove(k->codes, k->codes + batch * k->stride, k->have);
    k->due -= batch;
    if (k->causal) {
      uint32_t ahead = batch;
      k->counted = k->counted + batch < k->frames ? k->counted + batch : k->frames;
      while (ahead-- != 0u) advance(k, ahead);
    }
    if (k->due == 0u) {
      k->due = k->every;
      decide(k, logits);
      *decided = 1;
      break;
    }
  }
  return taken;
}
