// Activation functions whose derivative is a function of their input, elementwise, with at most one parameter. Those from the
// output are in activation.cu.
//
// Launch: a grid-stride loop of 256 threads a block, V elements an access.
#include "common.cuh"

// As FUNCTIONS in xpnet/accel/cupy/elementwise.py.
const int LEAKY_RELU = 0, ELU = 1, SELU = 2, SOFTPLUS = 3, SOFTSIGN = 4, HARD_SIGMOID = 5, SILU = 6, GELU = 7, GELU_TANH = 8;

__device__ inline float xexpm1(float v) { return expm1f(v); }
__device__ inline double xexpm1(double v) { return expm1(v); }
__device__ inline float xlog1p(float v) { return log1pf(v); }
__device__ inline double xlog1p(double v) { return log1p(v); }
__device__ inline float xerfc(float v) { return erfcf(v); }
__device__ inline double xerfc(double v) { return erfc(v); }
template <typename A>
__device__ inline A magnitude(A v) {
  return v < 0 ? -v : v;
}

// 1 / (1 + exp(-v)) from exp(-|v|), which lies in (0, 1].
template <typename A>
__device__ inline A logistic(A v) {
  const A small = xexp(-magnitude(v));
  return (v < 0 ? small : static_cast<A>(1)) / (1 + small);
}
// The normal distribution's CDF.
template <typename A>
__device__ inline A normal_cdf(A v) {
  return xerfc(v * static_cast<A>(-0.70710678118654752440)) / 2;
}
// The approximation of GELU: the argument of its tanh, and the derivative of that.
template <typename A>
__device__ inline A cubic(A v) {
  return static_cast<A>(0.79788456080286535588) * (v + static_cast<A>(0.044715) * v * v * v);
}
template <typename A>
__device__ inline A cubic_slope(A v) {
  return static_cast<A>(0.79788456080286535588) * (1 + static_cast<A>(3 * 0.044715) * v * v);
}

const double SELU_ALPHA = 1.6732632423543772848170429916717, SELU_SCALE = 1.0507009873554804934193349852946;

template <int FUNCTION, typename A>
__device__ inline A value(A x, A parameter) {
  if (FUNCTION == LEAKY_RELU) return x > 0 ? x : parameter * x;
  if (FUNCTION == ELU) return x > 0 ? x : parameter * xexpm1(x);
  if (FUNCTION == SELU) return static_cast<A>(SELU_SCALE) * (x > 0 ? x : static_cast<A>(SELU_ALPHA) * xexpm1(x));
  if (FUNCTION == SOFTPLUS) return (x > 0 ? x : static_cast<A>(0)) + xlog1p(xexp(-magnitude(x)));
  if (FUNCTION == SOFTSIGN) return x / (1 + magnitude(x));
  if (FUNCTION == HARD_SIGMOID) return x <= -3 ? static_cast<A>(0) : x >= 3 ? static_cast<A>(1) : x / 6 + static_cast<A>(0.5);
  if (FUNCTION == SILU) return x * logistic(x);
  if (FUNCTION == GELU) return x * normal_cdf(x);
  return x * (static_cast<A>(0.5) * (1 + xtanh(cubic(x))));
}

template <int FUNCTION, typename A>
__device__ inline A gradient(A dy, A x, A parameter) {
  if (FUNCTION == LEAKY_RELU) return x > 0 ? dy : parameter * dy;
  if (FUNCTION == ELU) return x > 0 ? dy : dy * (parameter * xexp(x));
  if (FUNCTION == SELU) return static_cast<A>(SELU_SCALE) * (x > 0 ? dy : dy * (static_cast<A>(SELU_ALPHA) * xexp(x)));
  if (FUNCTION == SOFTPLUS) return dy * logistic(x);
  if (FUNCTION == SOFTSIGN) {
    const A width = 1 + magnitude(x);
    return dy / width / width;
  }
  if (FUNCTION == HARD_SIGMOID) return x > -3 && x < 3 ? dy / 6 : static_cast<A>(0);
  if (FUNCTION == SILU) {
    const A s = logistic(x);
    return dy * s * (1 + x * (1 - s));
  }
  if (FUNCTION == GELU) {
    const A density = xexp(static_cast<A>(-0.5) * x * x) * static_cast<A>(0.39894228040143267794);
    return dy * (normal_cdf(x) + x * density);
  }
  const A t = xtanh(cubic(x));
  return dy * (static_cast<A>(0.5) * (1 + t) + static_cast<A>(0.5) * x * (1 - t * t) * cubic_slope(x));
}

template <typename T, int V, int FUNCTION>
__global__ void __launch_bounds__(256, 4)
elementwise(const T* x, T* y, acc_t<T> parameter, i64 count) {
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> v = load<V>(x + i);
#pragma unroll
    for (int j = 0; j < V; ++j) v.at[j] = round_to<T>(value<FUNCTION>(widen(v.at[j]), parameter));
    store<V>(y + i, v);
  }
}

template <typename T, int V, int FUNCTION>
__global__ void __launch_bounds__(256, 4)
elementwise_backward(const T* dy, const T* x, T* dx, acc_t<T> parameter, i64 count) {
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> g = load<V>(dy + i), v = load<V>(x + i);
#pragma unroll
    for (int j = 0; j < V; ++j) g.at[j] = round_to<T>(gradient<FUNCTION>(widen(g.at[j]), widen(v.at[j]), parameter));
    store<V>(dx + i, g);
  }
}
