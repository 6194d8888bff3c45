// Softmax, log softmax and cross entropy over the last axis of a matrix (rows, K).
//
// ITEMS > 0: a row of at most LANES * ITEMS elements is loaded once and kept in registers. ITEMS = 0: rows of any length, read
// again in each pass (mostly from the cache). Launch: row_reduction.cuh.
#include "row_reduction.cuh"

// Call f(i, column) for each column of this lane.
template <int LANES, int ITEMS, typename F>
__device__ inline void each_column(int K, F f) {
  const int lane = threadIdx.x % LANES;
  if constexpr (ITEMS > 0) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
      if (lane + i * LANES < K) f(i, lane + i * LANES);
  } else {
    for (int column = lane; column < K; column += LANES) f(0, column);
  }
}

// One row of T, in registers or in memory. A row that is not active has K = 0: all its loops are empty.
template <typename T, int LANES, int ITEMS>
struct Row {
  const T* p;
  int K;
  acc_t<T> held[ITEMS > 0 ? ITEMS : 1];

  __device__ inline Row(const T* at, int k, bool active) : p(at), K(active ? k : 0) {
    if constexpr (ITEMS > 0)
      each_column<LANES, ITEMS>(K, [&](int i, int column) { held[i] = widen(p[column]); });
  }
  __device__ inline acc_t<T> get(int i, int column) const {
    if constexpr (ITEMS > 0)
      return held[i];
    else
      return widen(p[column]);
  }
  // The maximum, and the sum of exp(element - maximum).
  __device__ inline void max_and_sum(acc_t<T>& top, acc_t<T>& total) const {
    acc_t<T> m = -infinity<acc_t<T>>(), s = 0;
    each_column<LANES, ITEMS>(K, [&](int i, int column) {
      acc_t<T> v = get(i, column);
      m = (v > m || v != v) ? v : m;
    });
    top = Rows<LANES>::max(m);
    each_column<LANES, ITEMS>(K, [&](int i, int column) { s += xexp(get(i, column) - top); });
    total = Rows<LANES>::sum(s);
  }
};

template <typename T, bool LOG, int LANES, int ITEMS>
__global__ void __launch_bounds__(256, 3)
softmax(const T* x, T* y, i64 rows, int K) {
  for (Rows<LANES> r(rows); r.more(); r.next()) {
    const i64 start = r.row() * K;
    Row<T, LANES, ITEMS> row(x + start, K, r.active());
    acc_t<T> top, total;
    row.max_and_sum(top, total);
    const acc_t<T> log_total = LOG ? xlog(total) : 0, share = 1 / total;
    each_column<LANES, ITEMS>(row.K, [&](int i, int column) {
      acc_t<T> shifted = row.get(i, column) - top;
      y[start + column] = round_to<T>(LOG ? shifted - log_total : xexp(shifted) * share);
    });
  }
}

// dx = y * (dy - sum(dy * y)); LOG: dx = dy - exp(y) * sum(dy).
template <typename T, bool LOG, int LANES, int ITEMS>
__global__ void __launch_bounds__(256, 3)
softmax_backward(const T* dy, const T* y, T* dx, i64 rows, int K) {
  for (Rows<LANES> r(rows); r.more(); r.next()) {
    const i64 start = r.row() * K;
    Row<T, LANES, ITEMS> g(dy + start, K, r.active()), v(y + start, K, r.active());
    acc_t<T> sum = 0;
    each_column<LANES, ITEMS>(g.K, [&](int i, int column) {
      sum += LOG ? g.get(i, column) : g.get(i, column) * v.get(i, column);
    });
    sum = Rows<LANES>::sum(sum);
    each_column<LANES, ITEMS>(g.K, [&](int i, int column) {
      acc_t<T> d = g.get(i, column), a = v.get(i, column);
      dx[start + column] = round_to<T>(LOG ? d - xexp(a) * sum : a * (d - sum));
    });
  }
}

template <typename L>
struct IsClass {
  static const bool value = false;
};
template <>
struct IsClass<int> {
  static const bool value = true;
};
template <>
struct IsClass<i64> {
  static const bool value = true;
};

// losses = -sum(target * log_softmax(x)); gradient = (softmax(x) * sum(target) - target) * scale, where it is not null.
// Labels are class indices (int, i64), or a probability for each logit (T). An index outside 0..K-1 gives NaN: a kernel cannot
// raise.
template <typename T, typename L, int LANES, int ITEMS>
__global__ void __launch_bounds__(256, 3)
cross_entropy(const T* x, const L* labels, acc_t<T>* losses, T* gradient, i64 rows, int K, acc_t<T> scale) {
  typedef acc_t<T> A;
  for (Rows<LANES> r(rows); r.more(); r.next()) {
    const i64 start = r.row() * K;
    Row<T, LANES, ITEMS> row(x + start, K, r.active());
    A top, total;
    row.max_and_sum(top, total);
    const A log_total = xlog(total), share = 1 / total;
    if constexpr (IsClass<L>::value) {
      i64 label = r.active() ? static_cast<i64>(labels[r.row()]) : 0;
      const bool valid = label >= 0 && label < K;
      const A poison = valid ? static_cast<A>(0) : infinity<A>() - infinity<A>();
      each_column<LANES, ITEMS>(row.K, [&](int i, int column) {
        A shifted = row.get(i, column) - top;
        if (column == label) losses[r.row()] = log_total - shifted;
        if (gradient != nullptr)
          gradient[start + column] = round_to<T>((xexp(shifted) * share - (column == label ? 1 : 0)) * scale + poison);
      });
      if (!valid && Rows<LANES>::lane() == 0) losses[r.row()] = poison;
    } else {
      A loss = 0, weight = 0;
      each_column<LANES, ITEMS>(row.K, [&](int i, int column) {
        A t = widen(labels[start + column]);
        weight += t;
        // A class of probability 0 adds nothing, even where its logit is -inf; NaN adds NaN.
        loss += t == 0 ? static_cast<A>(0) : t * (log_total - (row.get(i, column) - top));
      });
      loss = Rows<LANES>::sum(loss), weight = Rows<LANES>::sum(weight);
      if (r.active() && Rows<LANES>::lane() == 0) losses[r.row()] = loss;
      if (gradient != nullptr)
        each_column<LANES, ITEMS>(row.K, [&](int i, int column) {
          A t = widen(labels[start + column]);
          gradient[start + column] = round_to<T>((xexp(row.get(i, column) - top) * share * weight - t) * scale);
        });
    }
  }
}
