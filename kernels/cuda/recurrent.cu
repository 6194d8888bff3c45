// One step of recurrent networks, behind the product of the state before it with the recurrent kernel.
//
//   z, gates, b, dz, db (N, G*H), in G blocks     biases (G*H)     mask (N)     all others (N, H)
//
// A step is a launch, as it waits for a product: a grid-stride loop of 256 threads a block over count = N * H elements. Where
// the mask is 0 the state stays and y is 0; without a mask y is null, as it is h. h_last: where the state is written once more,
// or null. Backward dy and dh may be null, which means 0; dh_before is the part of dh that does not come through the product
// of the step's gradient with the recurrent kernel, which is added to it.
#include "activations.cuh"

// h = activation(z + bias).
template <typename T, int ACTIVATION>
__global__ void __launch_bounds__(256, 4)
rnn_step(T* z, const T* bias, const T* h_before, T* h, T* y, T* h_last, const u8* mask, i64 count, FastDivmod by_units) {
  typedef acc_t<T> A;
  for (i64 i = thread_index(); i < count; i += grid_stride()) {
    u32 j;
    const u32 n = by_units.divmod(static_cast<u32>(i), j);
    const A made = activate<ACTIVATION>(widen(z[i]) + (bias == nullptr ? A(0) : widen(bias[j])));
    const bool inside = mask == nullptr || mask[n] != 0;
    const A state = inside ? made : widen(h_before[i]);
    z[i] = round_to<T>(made), h[i] = round_to<T>(state);
    if (y != nullptr) y[i] = round_to<T>(inside ? made : A(0));
    if (h_last != nullptr) h_last[i] = round_to<T>(state);
  }
}

// after: what rnn_step left in z.
template <typename T, int ACTIVATION>
__global__ void __launch_bounds__(256, 4)
rnn_step_backward(const T* after, const T* dy, const T* dh, T* dz, T* dh_before, const u8* mask, i64 count,
                  FastDivmod by_units) {
  typedef acc_t<T> A;
  for (i64 i = thread_index(); i < count; i += grid_stride()) {
    const bool inside = mask == nullptr || mask[by_units.divide(static_cast<u32>(i))] != 0;
    const A arriving = dh == nullptr ? A(0) : widen(dh[i]), d = arriving + (dy == nullptr ? A(0) : widen(dy[i]));
    dz[i] = round_to<T>(inside ? activation_gradient<ACTIVATION>(d, widen(after[i])) : A(0));
    if (dh_before != nullptr) dh_before[i] = round_to<T>(inside ? A(0) : arriving);
  }
}

// A gated recurrent unit: r, u = sigmoid(zr + br), sigmoid(zu + bu);  n = tanh(zn + r * bn);  h = n + u * (h_before - n).
// z and b get their biases; r, u, n overwrite z, and b keeps bn in its last block.
template <typename T>
__global__ void __launch_bounds__(256, 4)
gru_step(T* z, T* b, const T* bias, const T* recurrent_bias, const T* h_before, T* h, T* y, T* h_last, const u8* mask,
         i64 count, FastDivmod by_units) {
  typedef acc_t<T> A;
  const int H = static_cast<int>(by_units.divisor);
  for (i64 i = thread_index(); i < count; i += grid_stride()) {
    u32 j;
    const i64 n = by_units.divmod(static_cast<u32>(i), j), first = n * 3 * H + j;
    A in[3], back[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      in[k] = widen(z[first + k * H]) + (bias == nullptr ? A(0) : widen(bias[k * H + j]));
      back[k] = widen(b[first + k * H]) + (recurrent_bias == nullptr ? A(0) : widen(recurrent_bias[k * H + j]));
    }
    const A reset = activate<SIGMOID>(in[0] + back[0]), update = activate<SIGMOID>(in[1] + back[1]),
            fresh = xtanh(in[2] + reset * back[2]), before = widen(h_before[i]);
    z[first] = round_to<T>(reset), z[first + H] = round_to<T>(update), z[first + 2 * H] = round_to<T>(fresh);
    b[first + 2 * H] = round_to<T>(back[2]);
    const bool inside = mask == nullptr || mask[n] != 0;
    const A made = fresh + update * (before - fresh), state = inside ? made : before;
    h[i] = round_to<T>(state);
    if (y != nullptr) y[i] = round_to<T>(inside ? made : A(0));
    if (h_last != nullptr) h_last[i] = round_to<T>(state);
  }
}

// db: the gradient of b; dz: that of z, which differs in the last block.
template <typename T>
__global__ void __launch_bounds__(256, 4)
gru_step_backward(const T* gates, const T* b, const T* h_before, const T* dy, const T* dh, T* dz, T* db, T* dh_before,
                  const u8* mask, i64 count, FastDivmod by_units) {
  typedef acc_t<T> A;
  const int H = static_cast<int>(by_units.divisor);
  for (i64 i = thread_index(); i < count; i += grid_stride()) {
    u32 j;
    const i64 n = by_units.divmod(static_cast<u32>(i), j), first = n * 3 * H + j;
    const A arriving = dh == nullptr ? A(0) : widen(dh[i]);
    A to_reset = 0, to_update = 0, to_new = 0, to_inner = 0, passed = arriving;
    if (mask == nullptr || mask[n] != 0) {
      const A reset = widen(gates[first]), update = widen(gates[first + H]), fresh = widen(gates[first + 2 * H]);
      const A d = arriving + (dy == nullptr ? A(0) : widen(dy[i]));
      to_new = d * ((1 - update) * (1 - fresh * fresh));
      to_inner = to_new * reset;
      to_reset = to_new * widen(b[first + 2 * H]) * reset * (1 - reset);
      to_update = d * ((widen(h_before[i]) - fresh) * update * (1 - update));
      passed = d * update;
    }
    dz[first] = db[first] = round_to<T>(to_reset), dz[first + H] = db[first + H] = round_to<T>(to_update);
    dz[first + 2 * H] = round_to<T>(to_new), db[first + 2 * H] = round_to<T>(to_inner);
    dh_before[i] = round_to<T>(passed);
  }
}

// A long short-term memory: i, f, o = sigmoid(zi), sigmoid(zf), sigmoid(zo);  g = tanh(zg);  c = f * c_before + i * g;
// h = o * tanh(c).
//
// The gates overwrite z. c_before: null means 0.
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

// dc: null means 0.
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
