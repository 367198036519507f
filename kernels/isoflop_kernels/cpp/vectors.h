// Vectors as GCC and Clang both spell them: no intrinsics, so any machine they compile for will do.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

// memcpy, since rows start where they like: it compiles to one unaligned move.
static inline Floats load(const float *from) {
  Floats v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

static inline void store(float *to, Floats v) { std::memcpy(to, &v, sizeof v); }

// Lane by lane: adding to a zero vector would be a real addition.
static inline Floats all(float value) {
  Floats v;
  for (int i = 0; i < LANES; i++) v[i] = value;
  return v;
}

static inline Ints bits(Floats v) {
  Ints b;
  std::memcpy(&b, &v, sizeof b);
  return b;
}

static inline Floats floats(Ints b) {
  Floats v;
  std::memcpy(&v, &b, sizeof v);
  return v;
}

typedef float Quad __attribute__((vector_size(16)));

// The lanes folded to four, always in the same order.
static inline Quad folded(Floats v) {
  Quad part[LANES / 4];
  std::memcpy(part, &v, sizeof v);
  for (int width = LANES / 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) part[i] += part[i + width];
  return part[0];
}

static inline float total(Floats v) {
  const Quad q = folded(v);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

// Totals of four vectors at once, each summed in the order of `total`.
static inline Quad totals(const Floats *v) {
  const Quad a = folded(v[0]), b = folded(v[1]), c = folded(v[2]), d = folded(v[3]);
#if __has_builtin(__builtin_shufflevector)
  const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) +
                  __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) +
                  __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#else
  return Quad{(a[0] + a[2]) + (a[1] + a[3]), (b[0] + b[2]) + (b[1] + b[3]),
              (c[0] + c[2]) + (c[1] + c[3]), (d[0] + d[2]) + (d[1] + d[3])};
#endif
}
