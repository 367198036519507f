// Selection, one row per vector lane: each value is inserted into the sorted best of its row
// without a branch. Exactly the rule of product_key_topk: see product_key_topk/packed.py for why
// pairs can be pruned by rank, and why a row is redone over all pairs when one left out reaches the
// k-th sum. NaN comes before all numbers there, and here.
//
// N values per row or half, k chosen, RANKS kept per half.

#include <algorithm>
#include <limits>

#include "vectors.h"

namespace {

constexpr int MAX_K = 32;
constexpr int32_t LOWEST = std::numeric_limits<int32_t>::min();

constexpr int32_t INFINITE = 0x7F800000, NOT_A_NUMBER = 0x7FC00000;

// Integers in the order of the floats; 0.0 is added first, since -0.0 must equal 0.0. All NaN are
// the same integer, above those of numbers.
inline Ints ordered(Floats v) {
  const Ints b = bits(v + 0.0f);
  return v == v ? b ^ ((b >> 31) & 0x7FFFFFFF) : Ints{} + NOT_A_NUMBER;
}

inline int32_t ordered(float v) {
  v += 0.0f;
  int32_t b;
  std::memcpy(&b, &v, sizeof b);
  return v == v ? b ^ ((b >> 31) & 0x7FFFFFFF) : NOT_A_NUMBER;
}

inline Floats unordered(Ints key) { return floats(key ^ ((key >> 31) & 0x7FFFFFFF)); }

// The best so far of each lane's row. K = 0 leaves the number to run time.
template <int K>
struct Best {
  Ints key[MAX_K + 1], place[MAX_K + 1];
  const int count;

  explicit Best(int k) : count(K ? K : k) {
    for (int j = 0; j < count; j++) {
      key[j] = Ints{} + LOWEST;
      place[j] = Ints{};
    }
  }

  inline void put(int j, Ints above, Ints here, Ints new_key, Ints new_place) {
    key[j] = above ? key[j - 1] : (here ? new_key : key[j]);
    place[j] = above ? place[j - 1] : (here ? new_place : place[j]);
  }

  // Places arrive in ascending order, so an equal key goes below.
  inline void insert(Ints new_key, Ints new_place) {
    const int n = K ? K : count;
    Ints here = new_key > key[n - 1];
    for (int j = n - 1; j > 0; j--) {
      const Ints above = new_key > key[j - 1];
      put(j, above, here, new_key, new_place);
      here = above;
    }
    key[0] = here ? new_key : key[0];
    place[0] = here ? new_place : place[0];
  }

  // Places arrive in any order: of equal keys the lower place comes first.
  inline void insert_unsorted(Ints new_key, Ints new_place) {
    const int n = K ? K : count;
    const auto before = [&](int j) {
      return (new_key > key[j]) | ((new_key == key[j]) & (new_place < place[j]));
    };
    Ints here = before(n - 1);
    for (int j = n - 1; j > 0; j--) {
      const Ints above = before(j - 1);
      put(j, above, here, new_key, new_place);
      here = above;
    }
    key[0] = here ? new_key : key[0];
    place[0] = here ? new_place : place[0];
  }
};

// Rows beyond `rows` repeat the last one: lanes must hold something, and it is not written.
template <int K>
void insert_rows(const float *const *row, int64_t N, Best<K> &best) {
  for (int64_t i = 0; i < N; i++) {
    float value[LANES];
    for (int lane = 0; lane < LANES; lane++) value[lane] = row[lane][i];
    best.insert(ordered(load(value)), Ints{} + static_cast<int32_t>(i));
  }
}

// One row over all its pairs, in order of their numbers; `best` holds k of them.
void all_pairs(const float *first, const float *second, int64_t N, int k, int32_t *best) {
  int32_t sum[MAX_K];
  int filled = 0;
  for (int64_t a = 0; a < N; a++)
    for (int64_t b = 0; b < N; b++) {
      const int32_t s = ordered(first[a] + second[b]);
      if (filled == k && !(s > sum[k - 1])) continue;
      int j = filled < k ? filled++ : k - 1;
      for (; j > 0 && s > sum[j - 1]; j--) {
        sum[j] = sum[j - 1];
        best[j] = best[j - 1];
      }
      sum[j] = s;
      best[j] = static_cast<int32_t>(a * N + b);
    }
}

template <int K>
void best_pairs(const float *sim, const int32_t *pairs, int64_t inside, int64_t edge, int64_t *out,
                int64_t begin, int64_t end, int64_t C, int64_t N, int k) {
  constexpr int RANKS = K ? K + 1 : 0;
  const int64_t ranks = std::min<int64_t>(k + 1, N);
  for (int64_t r = begin; r < end; r += LANES) {
    const float *half[2][LANES];
    for (int lane = 0; lane < LANES; lane++) {
      const int64_t row = std::min(r + lane, end - 1), t = row / C, c = row % C;
      for (int side = 0; side < 2; side++) half[side][lane] = sim + ((t * 2 + side) * C + c) * N;
    }
    Best<RANKS> first(static_cast<int>(ranks)), second(static_cast<int>(ranks));
    insert_rows(half[0], N, first);
    insert_rows(half[1], N, second);
    Best<K> best(k);
    const auto sum = [&](const int32_t *pair) {
      return ordered(unordered(first.key[pair[0]]) + unordered(second.key[pair[1]]));
    };
    for (int64_t p = 0; p < inside; p++) {
      const int32_t *pair = pairs + 2 * p;
      const Ints place =
          first.place[pair[0]] * static_cast<int32_t>(N) + second.place[pair[1]];
      best.insert_unsorted(sum(pair), place);
    }
    // Where +inf meets -inf, a sum of lower ranks is NaN and comes first.
    Ints reached = {};
    for (int64_t j = 0; j < ranks; j++)
      reached |= (first.key[j] == INFINITE) | (second.key[j] == INFINITE);
    for (int64_t p = inside; p < inside + edge; p++)
      reached |= sum(pairs + 2 * p) >= best.key[k - 1];
    for (int lane = 0; lane < LANES && r + lane < end; lane++) {
      const int64_t t = (r + lane) / C, c = (r + lane) % C;
      int32_t chosen[MAX_K];
      for (int j = 0; j < k; j++) chosen[j] = best.place[j][lane];
      if (reached[lane]) all_pairs(half[0][lane], half[1][lane], N, k, chosen);
      for (int j = 0; j < k; j++) {
        out[((t * 2 + 0) * C + c) * k + j] = chosen[j] / N;
        out[((t * 2 + 1) * C + c) * k + j] = chosen[j] % N;
      }
    }
  }
}

template <int K>
void best_places(const float *values, int64_t *out, int64_t begin, int64_t end, int64_t N, int k) {
  for (int64_t r = begin; r < end; r += LANES) {
    const float *row[LANES];
    for (int lane = 0; lane < LANES; lane++) row[lane] = values + std::min(r + lane, end - 1) * N;
    Best<K> best(k);
    insert_rows(row, N, best);
    for (int lane = 0; lane < LANES && r + lane < end; lane++)
      for (int j = 0; j < k; j++) out[(r + lane) * k + j] = best.place[j][lane];
  }
}

}  // namespace

extern "C" {

// Sub-keys [T, 2, C, k] of the k best pairs of `sim` [T, 2, C, N]. `pairs` holds two ranks each:
// first the pairs that can be among the k best, then the best of those that cannot.
void product_key_pairs(const float *sim, const int32_t *pairs, int64_t inside, int64_t edge,
                       int64_t *out, int64_t T, int64_t C, int64_t N, int64_t k, int64_t threads) {
  const int64_t rows = T * C;
  const int chosen = static_cast<int>(k);
  // Whole ranks only, so that the templates know how many there are.
  const bool full = N > k;
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static)
  for (int64_t part = 0; part < threads; part++) {
    const int64_t begin = rows * part / threads, end = rows * (part + 1) / threads;
    if (full && k == 4) best_pairs<4>(sim, pairs, inside, edge, out, begin, end, C, N, chosen);
    else if (full && k == 8) best_pairs<8>(sim, pairs, inside, edge, out, begin, end, C, N, chosen);
    else best_pairs<0>(sim, pairs, inside, edge, out, begin, end, C, N, chosen);
  }
}

// Positions [rows, k] of the k largest of each row, the lowest first among equal ones.
void topk_indices(const float *values, int64_t *out, int64_t rows, int64_t N, int64_t k,
                  int64_t threads) {
  const int chosen = static_cast<int>(k);
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static)
  for (int64_t part = 0; part < threads; part++) {
    const int64_t begin = rows * part / threads, end = rows * (part + 1) / threads;
    if (k == 4) best_places<4>(values, out, begin, end, N, chosen);
    else if (k == 8) best_places<8>(values, out, begin, end, N, chosen);
    else best_places<0>(values, out, begin, end, N, chosen);
  }
}
}
