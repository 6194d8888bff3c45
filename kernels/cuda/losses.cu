// Losses with a term for each element, the share of right signs, and the sums of an epoch.
//
// Launch: losses and shares a grid-stride loop of 256 threads a block; add_means one block.
#include "activations.cuh"
#include "grid_sum.cuh"

// As LOSS_IDS in xpnet/accel/cupy/losses.py.
const int LOGISTIC = 0, SQUARED = 1, ABSOLUTE = 2, HUBER = 3;

__device__ inline float xlog1p(float v) { return log1pf(v); }
__device__ inline double xlog1p(double v) { return log1p(v); }

// A term of a loss and its slope in x. A NaN in either input is one in both.
template <int LOSS, typename A>
__device__ inline A loss_term(A x, A target, A delta, A& slope) {
  if (LOSS == LOGISTIC) {
    // Nothing is subtracted from a large number, so that a tiny loss keeps its digits.
    slope = activate<SIGMOID>(x) - target;
    return (x < 0 ? -x * target : x * (1 - target)) + xlog1p(xexp(x < 0 ? x : -x));
  }
  const A r = x - target, distance = r < 0 ? -r : r;
  if (LOSS == SQUARED) {
    slope = 2 * r;
    return r * r;
  }
  const A sign = r > 0 ? static_cast<A>(1) : r < 0 ? static_cast<A>(-1) : r;
  if (LOSS == ABSOLUTE) {
    slope = sign;
    return distance;
  }
  const bool far = distance > delta;
  slope = far ? sign * delta : r;
  return far ? static_cast<A>(0.5) * delta * delta + (distance - delta) * delta : static_cast<A>(0.5) * r * r;
}

// scale * the term of each element in `terms`, or where that is null their sum, divided by `divisor`, in `loss`.
// gradient = slope * share, where it is not null.
template <typename T, int V, int LOSS>
__global__ void __launch_bounds__(256, 4)
elementwise_loss(const T* x, const T* target, T* terms, T* gradient, T* loss, acc_t<T>* partial, u32* counter, i64 count,
                 acc_t<T> delta, acc_t<T> scale, acc_t<T> divisor, acc_t<T> share) {
  typedef acc_t<T> A;
  A mine = 0;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    const Vector<T, V> a = load<V>(x + i), b = load<V>(target + i);
    Vector<T, V> term, slope;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A s;
      const A t = loss_term<LOSS>(widen(a.at[j]), widen(b.at[j]), delta, s);
      mine += t;
      term.at[j] = round_to<T>(scale * t), slope.at[j] = round_to<T>(s * share);
    }
    if (terms != nullptr) store<V>(terms + i, term);
    if (gradient != nullptr) store<V>(gradient + i, slope);
  }
  if (loss != nullptr) grid_sum(mine, partial, counter, [&](A total) { *loss = round_to<T>(total / divisor * scale); });
}

// The share of the elements where x > 0 agrees with target > 0.5; NaN where there is one.
template <typename T>
__global__ void __launch_bounds__(256)
binary_accuracy(const T* x, const T* target, double* share, double* partial, u32* counter, i64 count) {
  typedef acc_t<T> A;
  double mine = 0;
  for (i64 i = thread_index(); i < count; i += grid_stride()) {
    const A a = widen(x[i]), b = widen(target[i]);
    mine += a != a || b != b ? a + b : static_cast<A>((a > 0) == (b > static_cast<A>(0.5)));
  }
  grid_sum(mine, partial, counter, [&](double total) { *share = total / static_cast<double>(count); });
}

// total += mean * examples, for a mean of the type with this number: FLOATS in xpnet/accel/cupy/source.py.
__device__ inline void add_mean(double* total, const u8* mean, int kind, double examples) {
  double value;
  if (kind == 0)
    value = *reinterpret_cast<const float*>(mean);
  else if (kind == 1)
    value = *reinterpret_cast<const double*>(mean);
  else if (kind == 2)
    value = widen(*reinterpret_cast<const float16*>(mean));
  else
    value = widen(*reinterpret_cast<const bfloat16*>(mean));
  *total += value * examples;
}

// The same for COUNT pairs; the others are not looked at.
template <int COUNT>
__global__ void __launch_bounds__(32)
add_means(double* total0, const u8* mean0, int kind0, double* total1, const u8* mean1, int kind1, double* total2,
          const u8* mean2, int kind2, double* total3, const u8* mean3, int kind3, double examples) {
  if (threadIdx.x == 0) add_mean(total0, mean0, kind0, examples);
  if (COUNT > 1 && threadIdx.x == 1) add_mean(total1, mean1, kind1, examples);
  if (COUNT > 2 && threadIdx.x == 2) add_mean(total2, mean2, kind2, examples);
  if (COUNT > 3 && threadIdx.x == 3) add_mean(total3, mean3, kind3, examples);
}
