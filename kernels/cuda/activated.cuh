// The activations whose derivative is a function of their output.
#pragma once
#include "common.cuh"

// The numbers are known to the Python side.
const int IDENTITY = 0, RELU = 1, SIGMOID = 2, TANH = 3;

template <int ACTIVATION, typename A>
__device__ inline A activated(A v) {
  if (ACTIVATION == RELU) return v < 0 ? static_cast<A>(0) : v;  // a NaN stays one
  if (ACTIVATION == SIGMOID) {
    A small = xexp(v < 0 ? v : -v);  // in (0, 1]: nothing overflows
    return (v < 0 ? small : static_cast<A>(1)) / (1 + small);
  }
  if (ACTIVATION == TANH) return xtanh(v);
  return v;
}

// A number of the launch, the same for all threads.
template <typename A>
__device__ inline A activated_by(int activation, A v) {
  if (activation == RELU) return activated<RELU>(v);
  if (activation == SIGMOID) return activated<SIGMOID>(v);
  if (activation == TANH) return activated<TANH>(v);
  return v;
}
