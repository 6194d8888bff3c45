// Activation functions for epilogues: those whose derivative is a function of their output.
#pragma once
#include "common.cuh"

// As ACTIVATION_IDS in xpnet/accel/cupy/activation.py.
const int IDENTITY = 0, RELU = 1, SIGMOID = 2, TANH = 3;

template <int ACTIVATION, typename A>
__device__ inline A activate(A v) {
  if (ACTIVATION == RELU) return v < 0 ? static_cast<A>(0) : v;  // a NaN stays one
  if (ACTIVATION == SIGMOID) {
    A small = xexp(v < 0 ? v : -v);  // in (0, 1]: nothing overflows
    return (v < 0 ? small : static_cast<A>(1)) / (1 + small);
  }
  if (ACTIVATION == TANH) return xtanh(v);
  return v;
}

// The gradient of the input, from that of the output y.
template <int ACTIVATION, typename A>
__device__ inline A activation_gradient(A dy, A y) {
  if (ACTIVATION == RELU) return y > 0 ? dy : static_cast<A>(0);
  if (ACTIVATION == SIGMOID) return dy * y * (1 - y);
  if (ACTIVATION == TANH) return dy * (1 - y * y);
  return dy;
}

// The activation, chosen at run time: uniform over the launch, so that no warp diverges.
template <typename A>
__device__ inline A apply_activation(int activation, A v) {
  if (activation == RELU) return activate<RELU>(v);
  if (activation == SIGMOID) return activate<SIGMOID>(v);
  if (activation == TANH) return activate<TANH>(v);
  return v;
}
