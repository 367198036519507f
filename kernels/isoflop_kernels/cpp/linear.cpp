// The passes of gathered_linear: dot with chosen rows, weighted sum of chosen rows, and the same
// sum per expert over its tokens. float32, row-major, no allocation; the caller checks every index.
//
// T tokens, D width, C tables of E rows, K choices per token and table (a shared table is C = 1),
// M = C * K, R = C * E rows; choices name the row among all R. Each sum runs in one order, whatever
// the number of threads.

#include <algorithm>

#include "vectors.h"

namespace {

// Tables are visited so many channels at a time that their rows stay in a core's own cache.
constexpr int64_t CACHE_BYTES = 384 * 1024;
// Vectors of one row that are summed at a time: with their factor they fit the registers.
constexpr int MAX_SLICE = 8;

int64_t channels_at_once(int64_t C, int64_t E, int64_t width) {
  return std::clamp<int64_t>(CACHE_BYTES / (E * width * 4), 1, C);
}

template <int ROWS>
inline void dots(const float *x, const float *const *row, int64_t D, float *h) {
  Floats even[ROWS] = {}, odd[ROWS] = {};
  int64_t d = 0;
  for (; d + 2 * LANES <= D; d += 2 * LANES) {
    const Floats x0 = load(x + d), x1 = load(x + d + LANES);
    for (int r = 0; r < ROWS; r++) {
      even[r] += x0 * load(row[r] + d);
      odd[r] += x1 * load(row[r] + d + LANES);
    }
  }
  if (d + LANES <= D) {
    for (int r = 0; r < ROWS; r++) even[r] += load(x + d) * load(row[r] + d);
    d += LANES;
  }
  for (int r = 0; r < ROWS; r++) even[r] += odd[r];
  if constexpr (ROWS == 4) {
    const Quad sum = totals(even);
    std::memcpy(h, &sum, sizeof sum);
  } else {
    for (int r = 0; r < ROWS; r++) h[r] = total(even[r]);
  }
  if (d == D) return;
  for (int r = 0; r < ROWS; r++) {
    float rest = 0;
    for (int64_t i = d; i < D; i++) rest += x[i] * row[r][i];
    h[r] += rest;
  }
}

// out (+)= sum of weight * row over the `count` rows, for N vectors of each row.
template <int N>
inline void sum_vectors(const float *table, int64_t D, const int32_t *row, const float *weight,
                        int64_t count, bool add, float *out) {
  Floats sum[N];
  for (int n = 0; n < N; n++) sum[n] = add ? load(out + n * LANES) : Floats{};
  for (int64_t p = 0; p < count; p++) {
    const float *from = table + row[p] * D;
    const Floats w = all(weight[p]);
    for (int n = 0; n < N; n++) sum[n] += w * load(from + n * LANES);
  }
  for (int n = 0; n < N; n++) store(out + n * LANES, sum[n]);
}

// The same for what remains of the rows after their last whole vector.
inline void sum_rest(const float *table, int64_t D, const int32_t *row, const float *weight,
                     int64_t count, bool add, float *out, int64_t width) {
  float sum[LANES];
  for (int64_t i = 0; i < width; i++) sum[i] = add ? out[i] : 0;
  for (int64_t p = 0; p < count; p++) {
    const float *from = table + row[p] * D;
    for (int64_t i = 0; i < width; i++) sum[i] += weight[p] * from[i];
  }
  for (int64_t i = 0; i < width; i++) out[i] = sum[i];
}

// The same for whole rows, a slice at a time. Slices of all rows one after the other would use
// a part of the cache's sets only, since rows are often a power of two apart.
inline void sum_rows(const float *table, int64_t D, const int32_t *row, const float *weight,
                     int64_t count, bool add, float *out) {
  int64_t d = 0;
  for (; d + MAX_SLICE * LANES <= D; d += MAX_SLICE * LANES)
    sum_vectors<MAX_SLICE>(table + d, D, row, weight, count, add, out + d);
  const int64_t vectors = (D - d) / LANES;
  switch (vectors) {
    case 1: sum_vectors<1>(table + d, D, row, weight, count, add, out + d); break;
    case 2: sum_vectors<2>(table + d, D, row, weight, count, add, out + d); break;
    case 3: sum_vectors<3>(table + d, D, row, weight, count, add, out + d); break;
    case 4: sum_vectors<4>(table + d, D, row, weight, count, add, out + d); break;
    case 5: sum_vectors<5>(table + d, D, row, weight, count, add, out + d); break;
    case 6: sum_vectors<6>(table + d, D, row, weight, count, add, out + d); break;
    case 7: sum_vectors<7>(table + d, D, row, weight, count, add, out + d); break;
    default: break;
  }
  d += vectors * LANES;
  if (d < D) sum_rest(table + d, D, row, weight, count, add, out + d, D - d);
}

void tokens_dot(const float *x, const float *table, const int32_t *row, float *h, int64_t begin,
                int64_t end, int64_t D, int64_t C, int64_t K, int64_t E) {
  const int64_t M = C * K, step = channels_at_once(C, E, D) * K;
  for (int64_t first = 0; first < M; first += step)
    for (int64_t t = begin; t < end; t++) {
      int64_t n = t * M + first;
      const int64_t last = t * M + std::min(first + step, M);
      const float *from[4];
      for (; n + 4 <= last; n += 4) {
        for (int r = 0; r < 4; r++) from[r] = table + row[n + r] * D;
        dots<4>(x + t * D, from, D, h + n);
      }
      for (; n < last; n++) {
        from[0] = table + row[n] * D;
        dots<1>(x + t * D, from, D, h + n);
      }
    }
}

void tokens_combine(const float *table, const int32_t *row, const float *z, float *y, int64_t begin,
                    int64_t end, int64_t D, int64_t C, int64_t K, int64_t E) {
  const int64_t M = C * K, step = channels_at_once(C, E, D) * K;
  for (int64_t first = 0; first < M; first += step)
    for (int64_t t = begin; t < end; t++) {
      const int64_t n = t * M + first;
      sum_rows(table, D, row + n, z + n, std::min(step, M - first), first > 0, y + t * D);
    }
}

}  // namespace

extern "C" {

// h [T, C, K] = <x[t], table[row[t, c, k]]>
void gathered_dot(const float *x, const float *table, const int32_t *row, float *h, int64_t T,
                  int64_t D, int64_t C, int64_t K, int64_t E, int64_t threads) {
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static)
  for (int64_t part = 0; part < threads; part++)
    tokens_dot(x, table, row, h, T * part / threads, T * (part + 1) / threads, D, C, K, E);
}

// y [T, D] = sum over c and k of z[t, c, k] * table[row[t, c, k]]
void combine(const float *table, const int32_t *row, const float *z, float *y, int64_t T, int64_t D,
             int64_t C, int64_t K, int64_t E, int64_t threads) {
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static)
  for (int64_t part = 0; part < threads; part++)
    tokens_combine(table, row, z, y, T * part / threads, T * (part + 1) / threads, D, C, K, E);
}

// Counting sort by table row, stable: `choice` and `token` of each place, the `start` [R + 1] of
// each row's places. A channel's places are known beforehand, so channels are sorted side by side.
void sort_choices(const int32_t *row, int32_t *start, int32_t *choice, int32_t *token, int64_t T,
                  int64_t C, int64_t K, int64_t E, int64_t threads) {
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static)
  for (int64_t c = 0; c < C; c++) {
    int32_t *place = start + c * E;
    std::fill(place, place + E, 0);
    for (int64_t t = 0; t < T; t++)
      for (int64_t k = 0; k < K; k++) start[row[(t * C + c) * K + k]]++;
    int64_t next = c * T * K;
    for (int64_t e = 0; e < E; e++) {
      const int32_t count = place[e];
      place[e] = static_cast<int32_t>(next);
      next += count;
    }
    for (int64_t t = 0; t < T; t++)
      for (int64_t k = 0; k < K; k++) {
        const int64_t n = (t * C + c) * K + k;
        const int32_t to = start[row[n]]++;
        choice[to] = static_cast<int32_t>(n);
        token[to] = static_cast<int32_t>(t);
      }
    // Every place now holds the start of the next row's.
    std::memmove(place + 1, place, (E - 1) * sizeof *place);
    place[0] = static_cast<int32_t>(c * T * K);
  }
  start[C * E] = static_cast<int32_t>(T * C * K);
}

// out [R, D]: for each row, the sum over its places of weight * x[token]; zeros where it has none.
void segment_sum(const float *x, const int32_t *token, const int32_t *start, const float *weight,
                 float *out, int64_t D, int64_t R, int64_t threads) {
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(dynamic, 32)
  for (int64_t r = 0; r < R; r++)
    sum_rows(x, D, token + start[r], weight + start[r], start[r + 1] - start[r], false,
             out + r * D);
}
}
