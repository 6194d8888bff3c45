// Softmax, log softmax and cross entropy over the last axis of a matrix (rows, K).
//
// ITEMS > 0: a row of at most LANES * ITEMS elements is loaded once and kept in registers. ITEMS = 0: rows of any length, read
// again in each pass (mostly from the cache). Launch: row_reduction.cuh.
#include "grid_sum.cuh"
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
  // The maximum, NaN if there is one, and its first place.
  __device__ inline int largest(acc_t<T>& top) const {
    acc_t<T> m = -infinity<acc_t<T>>();
    each_column<LANES, ITEMS>(K, [&](int i, int column) {
      acc_t<T> v = get(i, column);
      m = (v > m || v != v) ? v : m;
    });
    top = Rows<LANES>::max(m);
    int place = K;
    each_column<LANES, ITEMS>(K, [&](int i, int column) {
      if (column < place && get(i, column) == top) place = column;
    });
    return -Rows<LANES>::max(-place);
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

// The loss of a row is -sum(target * log_softmax(x)). It is stored in `losses`, or where that is null the sum over the rows,
// divided by `divisor`, in `loss`. gradient = (softmax(x) * sum(target) - target) * scale, where it is not null.
// Labels are class indices (int, i64), or a probability for each logit (T). An index outside 0..K-1 gives NaN: a kernel cannot
// raise. `smoothing` is the share of the uniform distribution in the target.
template <typename T, typename L, int LANES, int ITEMS>
__global__ void __launch_bounds__(256, 3)
cross_entropy(const T* x, const L* labels, T* losses, T* gradient, T* loss, acc_t<T>* partial, u32* counter, i64 rows, int K,
              acc_t<T> smoothing, acc_t<T> scale, acc_t<T> divisor) {
  typedef acc_t<T> A;
  const A rest = 1 - smoothing, even = smoothing / K;  // the shares of the labels, and of each class beside them
  A mine = 0;  // the losses of the rows that this thread has finished
  for (Rows<LANES> r(rows); r.more(); r.next()) {
    const i64 start = r.row() * K;
    Row<T, LANES, ITEMS> row(x + start, K, r.active());
    A top, total;
    row.max_and_sum(top, total);
    const A log_total = xlog(total), share = 1 / total;
    bool finishes = r.active() && Rows<LANES>::lane() == 0;  // whether this thread has the loss of the row
    A of_row = 0;
    if constexpr (IsClass<L>::value) {
      i64 label = r.active() ? static_cast<i64>(labels[r.row()]) : 0;
      const bool valid = label >= 0 && label < K;
      const A poison = valid ? static_cast<A>(0) : infinity<A>() - infinity<A>();
      if (valid) finishes = r.active() && label % LANES == Rows<LANES>::lane();
      of_row = poison;
      each_column<LANES, ITEMS>(row.K, [&](int i, int column) {
        A shifted = row.get(i, column) - top;
        if (column == label) of_row = log_total - shifted;
        if (gradient != nullptr)
          gradient[start + column] =
              round_to<T>((xexp(shifted) * share - ((column == label ? rest : 0) + even)) * scale + poison);
      });
    } else {
      A sum = 0, weight = 0;
      each_column<LANES, ITEMS>(row.K, [&](int i, int column) {
        A t = widen(labels[start + column]);
        weight += t;
        // A class of probability 0 adds nothing, even where its logit is -inf; NaN adds NaN.
        sum += t == 0 ? static_cast<A>(0) : t * (log_total - (row.get(i, column) - top));
      });
      of_row = Rows<LANES>::sum(sum), weight = Rows<LANES>::sum(weight);
      if (gradient != nullptr)
        each_column<LANES, ITEMS>(row.K, [&](int i, int column) {
          A t = widen(labels[start + column]);
          gradient[start + column] =
              round_to<T>((xexp(row.get(i, column) - top) * share * (rest * weight + smoothing) - (rest * t + even)) * scale);
        });
    }
    if (smoothing != 0) {
      A sum = 0;
      each_column<LANES, ITEMS>(row.K, [&](int i, int column) { sum += row.get(i, column) - top; });
      of_row = rest * of_row + smoothing * (log_total - Rows<LANES>::sum(sum) / K);
    }
    if (finishes) {
      if (losses != nullptr)
        losses[r.row()] = round_to<T>(of_row);
      else
        mine += of_row;
    }
  }
  if (loss != nullptr) grid_sum(mine, partial, counter, [&](A total) { *loss = round_to<T>(total / divisor); });
}

// The share of the rows whose largest element, the first of equal ones, is at the right place; NaN where a NaN is in x or in
// the target: class indices (int, i64), or a number for each element (T), of which the largest counts.
template <typename T, typename L, int LANES, int ITEMS>
__global__ void __launch_bounds__(256, 3)
accuracy(const T* x, const L* target, double* share, double* partial, u32* counter, i64 rows, int K) {
  typedef acc_t<T> A;
  double mine = 0;
  for (Rows<LANES> r(rows); r.more(); r.next()) {
    const i64 start = r.row() * K;
    Row<T, LANES, ITEMS> row(x + start, K, r.active());
    A top;
    const int place = row.largest(top);
    if constexpr (IsClass<L>::value) {
      if (r.active() && Rows<LANES>::lane() == 0)
        mine += top != top ? top : static_cast<A>(place == static_cast<i64>(target[r.row()]));
    } else {
      A highest;
      const int right = Row<T, LANES, ITEMS>(target + start, K, r.active()).largest(highest);
      if (r.active() && Rows<LANES>::lane() == 0)
        mine += top != top || highest != highest ? top + highest : static_cast<A>(place == right);
    }
  }
  grid_sum(mine, partial, counter, [&](double total) { *share = total / static_cast<double>(rows); });
}
