// Depthwise convolution for CPUs, as three XLA FFI handlers: forward, gradient of the input,
// gradient of the weight.
//
// Layout is NHWC. An image is cut into blocks of channels, one vector wide. A block is first copied
// into a small dense buffer whose columns carry the zero padding (rows need none: taps that fall
// outside are skipped), so that the inner loops see neither edges nor strides of C floats. They keep
// a strip of output columns in registers and read each input column once per kernel row.
//
// Vectors are stored and loaded at full width even where fewer channels are left. What is written
// beyond them belongs to channels of later pixels or of lower blocks, and those are written
// afterwards: blocks run from the last to the first, pixels from the first to the last. Only where a
// full vector would leave the image are the lanes copied one by one.
//
// Block after block is a poor order for memory: one line in every few, which prefetchers do not follow.
// So each image is first brought into the cache in its own order, where a batch is too large to be there.
//
// The input may be clipped on the way: clip(x + offset, low, high), the offset per channel. That is
// done while a block is copied, and undone (gradients pass where the clip did not bite) where the
// gradient of the input is written, so that no clipped image ever exists in memory.
//
// Work is divided by image, and the weight gradient is summed in a fixed number of partial sums that
// are added in order: results depend neither on timing nor on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using kws::Index;
using kws::parallel_for;

#if defined(__AVX512F__)
constexpr int kWide = 16, kNarrow = 8;  // half vectors run at twice the rate on some AVX-512 cores
constexpr bool kManyRegisters = true;
#elif defined(__AVX__)
constexpr int kWide = 8, kNarrow = 8;
constexpr bool kManyRegisters = false;
#else
constexpr int kWide = 4, kNarrow = 4;
#if defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif
#endif

// Strips of output columns held in registers: 15 and 8 leave no rest of the widths 30, 15 and 8 that 60
// filters come down to, 16 registers hold only the shorter ones.
constexpr int kLong = kManyRegisters ? 15 : 8;
constexpr int kShort = kManyRegisters ? 8 : 5;
// The same for the gradient of a strided input, where a strip has to start at an even column.
constexpr int kLongEven = kManyRegisters ? 16 : 8;
constexpr int kShortEven = kManyRegisters ? 8 : 4;

constexpr Index kPartialSums = 16;  // of the weight gradient; more than threads, to balance them

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

template <int V>
struct VectorOf {
  typedef float type __attribute__((vector_size(V * sizeof(float))));
};
template <int V>
using Vec = typename VectorOf<V>::type;

template <int V>
INLINE void load(const float* p, Vec<V>& v) { std::memcpy(&v, p, sizeof v); }

template <int V>
INLINE void store(float* p, const Vec<V>& v) { std::memcpy(p, &v, sizeof v); }

template <class F, int... I>
INLINE void unroll(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
INLINE void unroll(F&& f) { unroll(f, std::make_integer_sequence<int, N>{}); }

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// A buffer of this thread, grown as needed, aligned to a cache line; contents are undefined.
float* scratch(size_t floats) {
  thread_local std::vector<float> buffer;
  if (buffer.size() < floats + 16) buffer.resize(floats + 16);
  auto address = reinterpret_cast<uintptr_t>(buffer.data());
  return buffer.data() + ((64 - address % 64) % 64) / sizeof(float);
}

// Brings an image, or the place of one that will be written, into the cache of this core, if the batch of
// `images` is so large that it is in no cache already.
void bring(const float* image, Index floats, Index images) {
  constexpr Index in_cache = 1 << 20;  // floats
  if (floats * images < in_cache) return;
  Vec<kWide> all = {}, v;
  for (Index i = 0; i + kWide <= floats; i += kWide) {
    load<kWide>(image + i, v);
    all += v;
  }
  volatile float used = all[0];  // or the compiler would drop the loop
  (void)used;
}

// ----------------------------------------------------------------------------------- problem

struct Problem {
  Index images, height, width, channels;  // of the input
  Index out_height, out_width, stride;
  Index all_kh, all_kw;     // extent of the weight array
  Index kh, kw;             // of the centred taps in use
  Index active;             // channels in use; the others are zero
  Index ph() const { return kh / 2; }
  Index pw() const { return kw / 2; }
  Index blocks() const { return ceil_div(active, kWide); }
  // Index in the weight array [all_kh, all_kw, channels] of a tap in use.
  Index tap(Index ky, Index kx) const {
    return ((ky + (all_kh - kh) / 2) * all_kw + kx + (all_kw - kw) / 2) * channels;
  }
};

// What is done to the input on the way in: clip(x + offset, low, high) where `on`. Offsets are padded
// to whole blocks.
struct Gate {
  bool on;
  std::vector<float> offset;
  float low, high;
};

// Lets the gradient of a block of the input pass where `x` was inside the clip, and adds it up for the
// offset. Lanes beyond the block's are undefined.
template <int V>
struct Pass {
  const float* x;  // image of the input before the clip
  Vec<V> offset, low, high;
  Vec<V> sum;
};

template <int V>
INLINE Vec<V> same(float value) {
  Vec<V> all;
  for (int i = 0; i < V; ++i) all[i] = value;
  return all;
}

// Channels first .. first + lanes of one image, and how many pixels may be touched at full width.
struct Block {
  Index first, lanes, channels;
  Index whole_pixels(Index pixels, int vector) const {
    Index room = pixels * channels - first - vector;
    return room < 0 ? 0 : room / channels + 1;
  }
};

// Weights in use as [block][kh * kw][kWide], lanes beyond the channels zero.
std::vector<float> pack_weights(const Problem& p, const float* w, bool flip) {
  const Index taps = p.kh * p.kw;
  std::vector<float> packed(p.blocks() * taps * kWide, 0.0f);
  for (Index b = 0; b < p.blocks(); ++b) {
    const Index lanes = std::min<Index>(kWide, p.active - b * kWide);
    for (Index t = 0; t < taps; ++t) {
      const Index from = flip ? taps - 1 - t : t;
      std::memcpy(packed.data() + (b * taps + t) * kWide,
                  w + p.tap(from / p.kw, from % p.kw) + b * kWide, lanes * sizeof(float));
    }
  }
  return packed;
}

// Copies a block of an image [height, width, channels] to `to` [height, columns, V], with `left` zero
// columns before it and zeros after it, clipped on the way if `Clipped`.
template <int V, bool Clipped>
void pack_image_as(const float* image, Index height, Index width, Block block, float* to,
                   Index left, Index columns, const Gate* gate) {
  Vec<V> offset = {}, low = {}, high = {};
  if constexpr (Clipped) {
    load<V>(gate->offset.data() + block.first, offset);
    low = same<V>(gate->low), high = same<V>(gate->high);
  }
  auto clipped = [&](Vec<V> v) INLINE_LAMBDA {
    if constexpr (Clipped) {
      v += offset;
      v = v < low ? low : v;
      v = v > high ? high : v;
    }
    return v;
  };
  const Index whole = block.whole_pixels(height * width, V);
  auto zero_columns = [&](Index count) INLINE_LAMBDA {  // few; a call of memset would cost more
    const Vec<V> none = {};
    for (; count > 0; --count, to += V) store<V>(to, none);
  };
  for (Index row = 0; row < height; ++row) {
    zero_columns(left);
    const float* from = image + row * width * block.channels + block.first;
    const Index fast = std::max<Index>(0, std::min(width, whole - row * width));
    Index column = 0;
    for (; column < fast; ++column, to += V, from += block.channels) {
      Vec<V> v;
      load<V>(from, v);
      store<V>(to, clipped(v));
    }
    for (; column < width; ++column, to += V, from += block.channels) {
      Vec<V> v = {};
      std::memcpy(&v, from, block.lanes * sizeof(float));
      store<V>(to, clipped(v));
    }
    zero_columns(columns - left - width);
  }
}

template <int V>
void pack_image(const float* image, Index height, Index width, Block block, float* to,
                Index left, Index columns, const Gate* gate = nullptr) {
  auto run = gate && gate->on ? pack_image_as<V, true> : pack_image_as<V, false>;
  run(image, height, width, block, to, left, columns, gate);
}

template <int V>
__attribute__((noinline)) void store_lanes(float* to, Vec<V> v, Index lanes) {
  std::memcpy(to, &v, lanes * sizeof(float));
}

// Writes `count` of the columns of a strip to an image [.., channels], from `pixel` on; what `pass`
// does not let through, if there is one, as zeros.
template <int V, int Strip>
INLINE void store_strip(Vec<V> (&strip)[Strip], float* image, Block block, Index pixel,
                        Index count, Index whole, Pass<V>* pass) {
  float* to = image + pixel * block.channels + block.first;
  if (pass) {
    const float* x = pass->x + (to - image);
    unroll<Strip>([&](auto o) INLINE_LAMBDA {
      if (o < count) {
        Vec<V> v = {};
        if (pixel + o < whole) {
          load<V>(x + o * block.channels, v);
        } else {
          std::memcpy(&v, x + o * block.channels, block.lanes * sizeof(float));
        }
        v += pass->offset;
        const Vec<V> none = {};
        strip[o] = (v > pass->low) & (v < pass->high) ? strip[o] : none;
        pass->sum += strip[o];
      }
    });
  }
  unroll<Strip>([&](auto o) INLINE_LAMBDA {
    if (o < count) {
      if (pixel + o < whole) {
        store<V>(to, strip[o]);
      } else {
        store_lanes<V>(to, strip[o], block.lanes);
      }
      to += block.channels;
    }
  });
}

Index strip_for(Index width, Index longer, Index shorter) {
  constexpr Index overhead = 3;  // columns' worth of work that a strip costs beside its columns
  return ceil_div(width, longer) * (longer + overhead) <=
                 ceil_div(width, shorter) * (shorter + overhead) ? longer : shorter;
}

// Columns of a packed input from which `out_width` columns, rounded up to strips, can be computed.
Index packed_columns(Index out_width, Index strip, Index stride, Index kw, Index width) {
  return std::max((ceil_div(out_width, strip) * strip - 1) * stride + kw, kw / 2 + width);
}

// -------------------------------------------------------------------------------- inner loops

// Correlates a block with `w` [kh, KW, kWide]: `x` is either packed, [height, columns, V], or the image
// itself, [height, columns, channels], for a whole block of channels. What small kernels do with a packed
// block takes hardly longer than packing it.
template <int V, int KW, int S, int Strip, bool Packed>
void correlate(const float* x, Index height, Index columns, const float* w, Index kh, float* out,
               Index out_height, Index out_width, Block block, Pass<V>* pass) {
  constexpr int pw = KW / 2;
  const Index ph = kh / 2, whole = block.whole_pixels(out_height * out_width, V);
  const Index pixel = Packed ? V : block.channels;
  if (!Packed) x += block.first - pw * pixel;  // a packed block begins with the padding
  for (Index i = 0; i < out_height; ++i) {
    const Index first = std::max<Index>(0, ph - i * S);
    const Index last = std::min(kh, height + ph - i * S);
    for (Index j = 0; j < out_width; j += Strip) {
      const Index beyond = columns + pw - j * S;
      Vec<V> sum[Strip] = {};
      for (Index ky = first; ky < last; ++ky) {
        const float* row = x + ((i * S + ky - ph) * columns + j * S) * pixel;
        Vec<V> tap[KW];
        unroll<KW>([&](auto kx) INLINE_LAMBDA { load<V>(w + (ky * KW + kx) * kWide, tap[kx]); });
        unroll<(Strip - 1) * S + KW>([&](auto c) INLINE_LAMBDA {
          if (!Packed && (c >= beyond || (c < pw && c + j * S < pw))) return;
          Vec<V> v;
          load<V>(row + c * pixel, v);
          unroll<KW>([&](auto kx) INLINE_LAMBDA {
            constexpr int offset = c - kx;
            if constexpr (offset >= 0 && offset % S == 0 && offset / S < Strip) {
              sum[offset / S] += v * tap[kx];
            }
          });
        });
      }
      store_strip<V, Strip>(sum, out, block, i * out_width + j, std::min<Index>(Strip, out_width - j),
                            whole, pass);
    }
  }
}

// First packed column, relative to half the first column of a strip, that reaches the strip.
constexpr int lead_of(int kw) { return kw / 2 / 2; }
constexpr int reach_of(int kw, int strip) { return (strip - 1 + kw / 2) / 2 + lead_of(kw) + 1; }

// Gradient of the input at stride 2: spreads a packed block `g` [out_height, columns, V], which has
// `lead_of(KW)` zero columns before it.
template <int V, int KW, int Strip>
void spread(const float* g, Index out_height, Index columns, const float* w, Index kh, float* dx,
            Index height, Index width, Block block, Pass<V>* pass) {
  static_assert(Strip % 2 == 0, "taps of a column depend on its parity");
  constexpr int lead = lead_of(KW), pw = KW / 2;
  const Index ph = kh / 2, whole = block.whole_pixels(height * width, V);
  for (Index i = 0; i < height; ++i) {
    for (Index j = 0; j < width; j += Strip) {
      Vec<V> sum[Strip] = {};
      for (Index ky = (i + ph) % 2; ky < kh; ky += 2) {
        const Index from = i + ph - ky;
        if (from < 0) break;
        if (from / 2 >= out_height) continue;
        const float* row = g + (from / 2 * columns + j / 2) * V;
        Vec<V> tap[KW];
        unroll<KW>([&](auto kx) INLINE_LAMBDA { load<V>(w + (ky * KW + kx) * kWide, tap[kx]); });
        unroll<reach_of(KW, Strip)>([&](auto c) INLINE_LAMBDA {
          Vec<V> v;
          load<V>(row + c * V, v);
          unroll<KW>([&](auto kx) INLINE_LAMBDA {
            constexpr int column = 2 * (c - lead) + kx - pw;
            if constexpr (column >= 0 && column < Strip) sum[column] += v * tap[kx];
          });
        });
      }
      store_strip<V, Strip>(sum, dx, block, i * width + j, std::min<Index>(Strip, width - j), whole,
                            pass);
    }
  }
}

// Adds the gradient of the weight to `dw` [kh, KW, kWide], from a packed input and a packed output
// gradient whose `g_columns` are a multiple of Strip. Takes KH rows of taps at once, so that enough
// sums are under way: one alone waits for its own last addition.
template <int V, int KW, int S, int Strip, int KH>
void weigh(const float* x, Index height, Index columns, const float* g, Index out_height,
           Index g_columns, Index kh, float* dw) {
  const Index ph = kh / 2;
  for (Index from_ky = 0; from_ky < kh; from_ky += KH) {
    Vec<V> sum[KH][KW] = {};
    for (Index i = 0; i < out_height; ++i) {
      for (Index j = 0; j < g_columns; j += Strip) {
        const float* from = g + (i * g_columns + j) * V;
        Vec<V> d[Strip];
        unroll<Strip>([&](auto o) INLINE_LAMBDA { load<V>(from + o * V, d[o]); });
        unroll<KH>([&](auto k) INLINE_LAMBDA {
          const Index at = i * S + from_ky + k - ph;
          if (at < 0 || at >= height || from_ky + k >= kh) return;
          const float* row = x + (at * columns + j * S) * V;
          unroll<(Strip - 1) * S + KW>([&](auto c) INLINE_LAMBDA {
            Vec<V> v;
            load<V>(row + c * V, v);
            unroll<KW>([&](auto kx) INLINE_LAMBDA {
              constexpr int offset = c - kx;
              if constexpr (offset >= 0 && offset % S == 0 && offset / S < Strip) {
                sum[k][kx] += v * d[offset / S];
              }
            });
          });
        });
      }
    }
    unroll<KH>([&](auto k) INLINE_LAMBDA {
      if (from_ky + k >= kh) return;
      unroll<KW>([&](auto kx) INLINE_LAMBDA {
        float* to = dw + ((from_ky + k) * KW + kx) * kWide;
        Vec<V> total;
        load<V>(to, total);
        total += sum[k][kx];
        store<V>(to, total);
      });
    });
  }
}

// Rows of taps whose sums and a strip fit the registers.
constexpr int rows_at_once(int kw) { return !kManyRegisters ? 1 : kw <= 3 ? 3 : 1; }

// ----------------------------------------------------------------------------------- dispatch

template <int Value>
using Constant = std::integral_constant<int, Value>;

template <class F>
void with_kernel_width(Index kw, F&& f) {
  switch (kw) {
    case 1: return f(Constant<1>{});
    case 3: return f(Constant<3>{});
    case 5: return f(Constant<5>{});
    default: return f(Constant<7>{});
  }
}

template <class F>
void with_stride(Index stride, F&& f) {
  stride == 1 ? f(Constant<1>{}) : f(Constant<2>{});
}

// Calls f(vector width, block, index of block) for the blocks of channels in use, the last first.
template <class F>
void for_blocks(const Problem& p, F&& f) {
  for (Index b = p.blocks(); b-- > 0;) {
    const Index lanes = std::min<Index>(kWide, p.active - b * kWide);
    const Block block{b * kWide, lanes, p.channels};
    if (lanes > kNarrow) {
      f(Constant<kWide>{}, block, b);
    } else {
      f(Constant<kNarrow>{}, block, b);
    }
  }
}

void clear_inactive(const Problem& p, float* image, Index pixels) {
  if (p.active == p.channels) return;
  for (Index i = 0; i < pixels; ++i) {
    std::memset(image + i * p.channels + p.active, 0, (p.channels - p.active) * sizeof(float));
  }
}

// Where gradients of the input are written: `gate` and the input of the image they pass, or null, and
// where their sums per channel go.
struct Passage {
  const Gate* gate;
  const float* x;
  float* sums;  // [blocks * kWide]
};

// Calls f(pass of this block, or null), then keeps its sum.
template <int V, class F>
INLINE void through(const Passage& passage, Block block, F&& f) {
  if (!passage.gate || !passage.gate->on) return f(static_cast<Pass<V>*>(nullptr));
  Pass<V> pass{passage.x, {}, same<V>(passage.gate->low), same<V>(passage.gate->high), {}};
  load<V>(passage.gate->offset.data() + block.first, pass.offset);
  f(&pass);
  store<V>(passage.sums + block.first, pass.sum);
}

// `gate` clips what is read, `passage` gates what is written.
void correlate_image(const Problem& p, Index stride, const float* x, Index height, Index width,
                     const float* w, float* out, Index out_height, Index out_width,
                     const Gate* gate, const Passage& passage) {
  const Index strip = strip_for(out_width, kLong, kShort);
  const Index columns = packed_columns(out_width, strip, stride, p.kw, width);
  float* packed = scratch(height * columns * kWide);
  bring(x, height * width * p.channels, p.images);
  bring(out, out_height * out_width * p.channels, p.images);
  for_blocks(p, [&](auto vector, Block block, Index b) {
    constexpr int V = vector;
    const bool unpacked = p.kw <= 3 && block.lanes == V && !(gate && gate->on);
    if (!unpacked) pack_image<V>(x, height, width, block, packed, p.pw(), columns, gate);
    through<V>(passage, block, [&](Pass<V>* pass) {
      with_kernel_width(p.kw, [&](auto kw) {
        with_stride(stride, [&](auto s) {
          const float* taps = w + b * p.kh * p.kw * kWide;
          if constexpr (kw <= 3) {
            if (unpacked) {
              auto run = strip == kLong ? correlate<V, kw, s, kLong, false>
                                        : correlate<V, kw, s, kShort, false>;
              return run(x, height, width, taps, p.kh, out, out_height, out_width, block, pass);
            }
          }
          auto run = strip == kLong ? correlate<V, kw, s, kLong, true>
                                    : correlate<V, kw, s, kShort, true>;
          run(packed, height, columns, taps, p.kh, out, out_height, out_width, block, pass);
        });
      });
    });
  });
  clear_inactive(p, out, out_height * out_width);
}

void spread_image(const Problem& p, const float* g, const float* w, float* dx,
                  const Passage& passage) {
  const Index strip = strip_for(p.width, kLongEven, kShortEven);
  const Index lead = lead_of(p.kw);
  const Index columns = std::max((ceil_div(p.width, strip) - 1) * (strip / 2) + reach_of(p.kw, strip),
                                 lead + p.out_width);
  float* packed = scratch(p.out_height * columns * kWide);
  bring(g, p.out_height * p.out_width * p.channels, p.images);
  bring(dx, p.height * p.width * p.channels, p.images);
  for_blocks(p, [&](auto vector, Block block, Index b) {
    constexpr int V = vector;
    pack_image<V>(g, p.out_height, p.out_width, block, packed, lead, columns);
    through<V>(passage, block, [&](Pass<V>* pass) {
      with_kernel_width(p.kw, [&](auto kw) {
        auto run = strip == kLongEven ? spread<V, kw, kLongEven> : spread<V, kw, kShortEven>;
        run(packed, p.out_height, columns, w + b * p.kh * p.kw * kWide, p.kh, dx, p.height, p.width,
            block, pass);
      });
    });
  });
  clear_inactive(p, dx, p.height * p.width);
}

void weigh_image(const Problem& p, const float* x, const float* g, float* dw, const Gate* gate) {
  const Index strip = strip_for(p.out_width, kLong, kShort);
  const Index columns = packed_columns(p.out_width, strip, p.stride, p.kw, p.width);
  const Index g_columns = ceil_div(p.out_width, strip) * strip;
  float* packed = scratch((p.height * columns + p.out_height * g_columns) * kWide);
  float* packed_g = packed + p.height * columns * kWide;
  bring(x, p.height * p.width * p.channels, p.images);
  bring(g, p.out_height * p.out_width * p.channels, p.images);
  for_blocks(p, [&](auto vector, Block block, Index b) {
    constexpr int V = vector;
    pack_image<V>(x, p.height, p.width, block, packed, p.pw(), columns, gate);
    pack_image<V>(g, p.out_height, p.out_width, block, packed_g, 0, g_columns);
    with_kernel_width(p.kw, [&](auto kw) {
      with_stride(p.stride, [&](auto s) {
        constexpr int at_once = rows_at_once(kw);
        auto run = strip == kLong ? weigh<V, kw, s, kLong, at_once>
                                  : weigh<V, kw, s, kShort, at_once>;
        run(packed, p.height, columns, packed_g, p.out_height, g_columns, p.kh,
            dw + b * p.kh * p.kw * kWide);
      });
    });
  });
}

// ----------------------------------------------------------------------------------- handlers

using Array = ffi::Buffer<ffi::F32>;
using Scalars = ffi::Buffer<ffi::S32>;
using Result = ffi::Result<Array>;
using Dimensions = ffi::Span<const Index>;

// `active` is {kernel, channels} in use; kernel -1 stands for all taps.
ffi::Error describe(Dimensions x, Dimensions w, Dimensions out, Scalars active, Index stride,
                    Problem& p) {
  if (x.size() != 4 || w.size() != 3 || out.size() != 4 || active.element_count() != 2) {
    return ffi::Error::InvalidArgument("depthwise: wrong number of dimensions");
  }
  const Index kernel = active.typed_data()[0], channels = active.typed_data()[1];
  p = Problem{x[0], x[1], x[2], x[3], out[1], out[2], stride, w[0], w[1],
              kernel == -1 ? w[0] : kernel, kernel == -1 ? w[1] : kernel, channels};
  const bool known_width = p.kw == 1 || p.kw == 3 || p.kw == 5 || p.kw == 7;
  if (p.kh < 1 || p.kh % 2 == 0 || !known_width || p.kh > p.all_kh || p.kw > p.all_kw) {
    return ffi::Error::InvalidArgument("depthwise: active_kernel must be odd, at most 7 and fit w");
  }
  if (channels < 0 || channels > p.channels) {
    return ffi::Error::InvalidArgument("depthwise: active_channels must be in 0..channels");
  }
  if (w[2] != p.channels || out[0] != p.images || out[3] != p.channels || stride < 1 || stride > 2 ||
      p.out_height != ceil_div(p.height, stride) || p.out_width != ceil_div(p.width, stride)) {
    return ffi::Error::InvalidArgument("depthwise: shapes or stride do not match");
  }
  return ffi::Error::Success();
}

// `bounds` is {low, high}; without them (`gated` 0) the other two are ignored.
ffi::Error describe_gate(const Problem& p, Array offset, Array bounds, Index gated, Gate& gate) {
  if (offset.element_count() != static_cast<size_t>(p.channels) || bounds.element_count() != 2) {
    return ffi::Error::InvalidArgument("depthwise: offset or bounds do not fit the channels");
  }
  gate = Gate{gated != 0, {}, bounds.typed_data()[0], bounds.typed_data()[1]};
  gate.offset.assign(p.blocks() * kWide + kWide, 0.0f);
  std::copy_n(offset.typed_data(), p.active, gate.offset.begin());
  return ffi::Error::Success();
}

ffi::Error forward(ffi::ThreadPool pool, Array x, Array w, Scalars active, Array offset,
                   Array bounds, Result y, Index stride, Index gated) {
  Problem p;
  Gate gate;
  if (auto e = describe(x.dimensions(), w.dimensions(), y->dimensions(), active, stride, p);
      e.failure()) {
    return e;
  }
  if (auto e = describe_gate(p, offset, bounds, gated, gate); e.failure()) return e;
  const auto packed = pack_weights(p, w.typed_data(), false);
  const Index size = p.height * p.width * p.channels;
  const Index out_size = p.out_height * p.out_width * p.channels;
  const float* from = x.typed_data();
  float* to = y->typed_data();
  parallel_for(pool, p.images, [&](Index n) {
    correlate_image(p, stride, from + n * size, p.height, p.width, packed.data(), to + n * out_size,
                    p.out_height, p.out_width, &gate, {});
  });
  return ffi::Error::Success();
}

ffi::Error input_gradient(ffi::ThreadPool pool, Array g, Array w, Scalars active, Array x,
                          Array offset, Array bounds, Result dx, Result d_offset, Index stride,
                          Index gated) {
  Problem p;
  Gate gate;
  if (auto e = describe(dx->dimensions(), w.dimensions(), g.dimensions(), active, stride, p);
      e.failure()) {
    return e;
  }
  if (auto e = describe_gate(p, offset, bounds, gated, gate); e.failure()) return e;
  if (gated && x.element_count() != dx->element_count()) {
    return ffi::Error::InvalidArgument("depthwise: the input does not fit its gradient");
  }
  const auto packed = pack_weights(p, w.typed_data(), stride == 1);
  const Index size = p.height * p.width * p.channels;
  const Index out_size = p.out_height * p.out_width * p.channels;
  const float* from = g.typed_data();
  float* to = dx->typed_data();
  const Index lanes = p.blocks() * kWide;
  std::vector<float> sums(gated ? p.images * lanes : 0, 0.0f);
  parallel_for(pool, p.images, [&](Index n) {
    const Passage passage{&gate, gated ? x.typed_data() + n * size : nullptr,
                          gated ? sums.data() + n * lanes : nullptr};
    if (stride == 1) {
      correlate_image(p, 1, from + n * out_size, p.height, p.width, packed.data(), to + n * size,
                      p.height, p.width, nullptr, passage);
    } else {
      spread_image(p, from + n * out_size, packed.data(), to + n * size, passage);
    }
  });
  float* total = d_offset->typed_data();
  std::memset(total, 0, d_offset->size_bytes());
  for (Index n = 0; gated && n < p.images; ++n) {
    for (Index c = 0; c < p.active; ++c) total[c] += sums[n * lanes + c];
  }
  return ffi::Error::Success();
}

ffi::Error weight_gradient(ffi::ThreadPool pool, Array x, Array g, Scalars active, Array offset,
                           Array bounds, Result dw, Index stride, Index gated) {
  Problem p;
  Gate gate;
  if (auto e = describe(x.dimensions(), dw->dimensions(), g.dimensions(), active, stride, p);
      e.failure()) {
    return e;
  }
  if (auto e = describe_gate(p, offset, bounds, gated, gate); e.failure()) return e;
  const Index size = p.height * p.width * p.channels;
  const Index out_size = p.out_height * p.out_width * p.channels;
  const Index taps = p.kh * p.kw, partial = p.blocks() * taps * kWide;
  const Index parts = std::min(p.images, kPartialSums);
  std::vector<float> sums(parts * partial, 0.0f);
  parallel_for(pool, parts, [&](Index part) {
    for (Index n = p.images * part / parts; n < p.images * (part + 1) / parts; ++n) {
      weigh_image(p, x.typed_data() + n * size, g.typed_data() + n * out_size,
                  sums.data() + part * partial, &gate);
    }
  });
  float* to = dw->typed_data();
  std::memset(to, 0, dw->size_bytes());
  for (Index b = 0; b < p.blocks(); ++b) {
    const Index lanes = std::min<Index>(kWide, p.active - b * kWide);
    for (Index t = 0; t < taps; ++t) {
      float* tap = to + p.tap(t / p.kw, t % p.kw) + b * kWide;
      for (Index part = 0; part < parts; ++part) {
        const float* sum = sums.data() + part * partial + (b * taps + t) * kWide;
        for (Index c = 0; c < lanes; ++c) tap[c] += sum[c];
      }
    }
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(KwsDepthwiseForward, forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Scalars>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<Index>("stride")
                                  .Attr<Index>("gated"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(KwsDepthwiseInputGradient, input_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Scalars>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<Index>("stride")
                                  .Attr<Index>("gated"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(KwsDepthwiseWeightGradient, weight_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Scalars>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<Index>("stride")
                                  .Attr<Index>("gated"));
