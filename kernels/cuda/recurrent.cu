// One step of a long short-term memory, behind the product of the state before it with the recurrent kernel:
//
//   i, f, o = sigmoid(zi), sigmoid(zf), sigmoid(zo);  g = tanh(zg);  c = f * c_before + i * g;  h = o * tanh(c)
//
//   z, gates, dz (N, 4H), in blocks i, f, g, o     bias (4H)     mask (N)     all others (N, H)
//
// A step is a launch, as it waits for a product: a grid-stride loop of 256 threads a block over count = N * H elements.
#include "activations.cuh"

// The gates overwrite z. c_before: null means 0. h_last, c_last: where the states are written once more, or null.
// Where the mask is 0 the states stay and y is 0; without a mask y is null, as it is h.
template <typename T>
__global__ void __launch_bounds__(256, 4)
lstm_step(T* z, const T* bias, const T* h_before, const T* c_before, T* h, T* c, T* y, T* h_last, T* c_last, const u8* mask,
          i64 count, FastDivmod by_units) {
  typedef acc_t<T> A;
  const int H = static_cast<int>(by_units.divisor);
  for (i64 i = thread_index(); i < count; i += grid_stride()) {
    u32 j;
    const i64 n = by_units.divmod(static_cast<u32>(i), j);
    T* gates = z + n * 4 * H + j;
    A in[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) in[k] = widen(gates[k * H]) + (bias == nullptr ? A(0) : widen(bias[k * H + j]));
    const A input = activate<SIGMOID>(in[0]), forget = activate<SIGMOID>(in[1]), fresh = activate<TANH>(in[2]),
            output = activate<SIGMOID>(in[3]);
    gates[0] = round_to<T>(input), gates[H] = round_to<T>(forget);
    gates[2 * H] = round_to<T>(fresh), gates[3 * H] = round_to<T>(output);
    A state = widen(h_before[i]), cell = c_before == nullptr ? A(0) : widen(c_before[i]);
    const bool inside = mask == nullptr || mask[n] != 0;
    if (inside) {
      cell = forget * cell + input * fresh;
      state = output * xtanh(cell);
    }
    h[i] = round_to<T>(state), c[i] = round_to<T>(cell);
    if (y != nullptr) y[i] = round_to<T>(inside ? state : A(0));
    if (h_last != nullptr) h_last[i] = round_to<T>(state), c_last[i] = round_to<T>(cell);
  }
}

// dz of a step and dc of the state before it, from dy of its output and dh, dc of the states after it (null means 0). dh_before
// is the part of dh that bypasses the step where the mask is 0; the product of dz with the recurrent kernel is added to it.
template <typename T>
__global__ void __launch_bounds__(256, 4)
lstm_step_backward(const T* gates, const T* c_before, const T* c, const T* dy, const T* dh, const T* dc, T* dz, T* dh_before,
                   T* dc_before, const u8* mask, i64 count, FastDivmod by_units) {
  typedef acc_t<T> A;
  const int H = static_cast<int>(by_units.divisor);
  for (i64 i = thread_index(); i < count; i += grid_stride()) {
    u32 j;
    const i64 n = by_units.divmod(static_cast<u32>(i), j), first = n * 4 * H + j;
    const A arriving = dh == nullptr ? A(0) : widen(dh[i]);
    A cell = dc == nullptr ? A(0) : widen(dc[i]), found[4] = {};
    const bool inside = mask == nullptr || mask[n] != 0;
    if (inside) {
      const A input = widen(gates[first]), forget = widen(gates[first + H]), fresh = widen(gates[first + 2 * H]),
              output = widen(gates[first + 3 * H]), earlier = c_before == nullptr ? A(0) : widen(c_before[i]);
      const A squashed = xtanh(widen(c[i])), d = arriving + (dy == nullptr ? A(0) : widen(dy[i]));
      cell += d * output * (1 - squashed * squashed);
      found[0] = cell * fresh * input * (1 - input);
      found[1] = cell * earlier * forget * (1 - forget);
      found[2] = cell * input * (1 - fresh * fresh);
      found[3] = d * squashed * output * (1 - output);
      cell *= forget;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) dz[first + k * H] = round_to<T>(found[k]);
    dc_before[i] = round_to<T>(cell);
    if (dh_before != nullptr) dh_before[i] = round_to<T>(inside ? A(0) : arriving);
  }
}
