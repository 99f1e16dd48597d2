// The backward pass of `quantize` (rounding.py) in one sweep over its input, as an XLA FFI handler.
//
// XLA:CPU takes six: it stores each summand of the two sums before it adds them up.
//
// The input is cut into parts whose number depends on its size alone, and their sums are added in
// order: results depend neither on timing nor on the number of threads.

#include <algorithm>
#include <cstring>
#include <vector>

#include "../layers/parallel.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using kws::Index;

constexpr int kLanes = 16;
constexpr Index kPart = 1 << 15;  // floats, a multiple of the lanes

typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));

struct Sums {
  double step = 0, side = 0;
};

inline Floats all(float value) {
  Floats v;
  for (int i = 0; i < kLanes; ++i) v[i] = value;
  return v;
}

// To the nearest integer, ties to even: adding this pushes the fraction out of the mantissa. Exact
// for magnitudes below 2^22, and codes have at most 16 bits.
inline Floats nearest(Floats v) {
  const Floats big = all(12582912.0f);
  return (v + big) - big;
}

struct Gradient {
  Floats step, low, high;
  bool is_signed;
  Floats to_step = {}, to_side = {};

  // The gradient to a few values; what they add to the sums is kept.
  Floats of(Floats x, Floats g) {
    const Floats none = {}, one = all(1.0f);
    const Floats v = x / step;
    const auto above = v > high, below = v < low;
    Floats clipped = below ? low : v;
    clipped = above ? high : clipped;
    const Floats code = nearest(clipped);
    const auto inside = (v >= low) & (v <= high);
    to_step += g * (inside ? code - v : code);
    Floats side = above ? one : none;
    if (is_signed) side -= below ? one : none;
    to_side += g * side;
    return inside ? g : none;
  }
};

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

// `sums` are those that the gradients to the step and to the largest code are made of.
ffi::Error gradient(ffi::ThreadPool pool, Array x, Array g, Array step, Array levels, Result to_x,
                    Result sums, int64_t is_signed) {
  const Index size = x.element_count();
  if (g.element_count() != static_cast<size_t>(size) ||
      to_x->element_count() != static_cast<size_t>(size) || step.element_count() != 1 ||
      levels.element_count() != 1 || sums->element_count() != 2) {
    return ffi::Error::InvalidArgument("quantize: shapes do not match");
  }
  const float most = *levels.typed_data();
  const Gradient start{all(*step.typed_data()), all(is_signed ? -most : 0.0f), all(most),
                       is_signed != 0};
  const Index parts = (size + kPart - 1) / kPart;
  std::vector<Sums> each(parts);
  kws::parallel_for(pool, parts, [&](Index part) {
    Gradient own = start;
    const Index end = std::min(size, (part + 1) * kPart);
    for (Index i = part * kPart; i < end; i += kLanes) {
      const size_t bytes = std::min<Index>(kLanes, end - i) * sizeof(float);
      Floats value = {}, upstream = {};
      if (bytes == sizeof value) {
        std::memcpy(&value, x.typed_data() + i, sizeof value);
        std::memcpy(&upstream, g.typed_data() + i, sizeof upstream);
        const Floats result = own.of(value, upstream);
        std::memcpy(to_x->typed_data() + i, &result, sizeof result);
      } else {
        std::memcpy(&value, x.typed_data() + i, bytes);
        std::memcpy(&upstream, g.typed_data() + i, bytes);
        const Floats result = own.of(value, upstream);
        std::memcpy(to_x->typed_data() + i, &result, bytes);
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      each[part].step += own.to_step[lane];
      each[part].side += own.to_side[lane];
    }
  });
  Sums total;
  for (const Sums& part : each) total.step += part.step, total.side += part.side;
  sums->typed_data()[0] = static_cast<float>(total.step);
  sums->typed_data()[1] = static_cast<float>(total.side);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(KwsQuantizeGradient, gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("is_signed"));
