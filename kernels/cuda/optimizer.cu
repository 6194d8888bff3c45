// Optimizer steps over all parameters of a model in one launch: parameters, gradients and optimizer state are flat arrays of
// one length. Arithmetic is in acc_t<T>. Weight decay applies to the first `decayed` elements.
//
// The learning rate and the number of finished steps are numbers, or in device memory (then the pointers are not null), so
// that a step can be captured in a CUDA graph and replayed: the last block to finish increments the steps. `ticket` counts
// finished blocks, must be 0 before the first launch and is 0 after each. If `skip` is not null and points to a number other
// than 0 (the gradients overflowed), a launch does nothing.
//
// Launch: a grid-stride loop of 256 threads a block.
#include "common.cuh"

__device__ inline void count_step(i64* step, u32* ticket) {
  if (step == nullptr) return;
  __syncthreads();  // every thread of this block has read the old count
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(ticket, 1u) == gridDim.x - 1) {
      *ticket = 0;
      *step += 1;
    }
  }
}

// v = momentum * v - lr * g;  p += v, or with NESTEROV p += momentum * v - lr * g. `velocity` is null without momentum.
// Weight decay is added to the gradient.
// Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
template <typename T, int V, bool NESTEROV>
__global__ void __launch_bounds__(256, 4)
sgd(T* parameters, const T* gradients, T* velocity, const acc_t<T>* device_rate, i64* device_step, u32* ticket,
    const u32* skip, i64 count, i64 decayed, acc_t<T> rate, acc_t<T> momentum, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = device_rate == nullptr ? rate : *device_rate;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), v = {};
    if (velocity != nullptr) v = load<V>(velocity + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A grad = widen(g.at[j]);
      if (i + j < decayed) grad += weight_decay * widen(p.at[j]);
      A speed = momentum * widen(v.at[j]) - lr * grad;
      p.at[j] = round_to<T>(widen(p.at[j]) + (NESTEROV ? momentum * speed - lr * grad : speed));
      v.at[j] = round_to<T>(speed);
    }
    store<V>(parameters + i, p);
    if (velocity != nullptr) store<V>(velocity + i, v);
  }
  count_step(device_step, ticket);
}

// Adam with bias correction; DECOUPLED: AdamW, whose weight decay bypasses the moments.
// Sources: Kingma and Ba, "Adam", 2015; Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
template <typename T, int V, bool DECOUPLED>
__global__ void __launch_bounds__(256, 3)
adam(T* parameters, const T* gradients, T* mean, T* square, const acc_t<T>* device_rate, i64* device_step, u32* ticket,
     const u32* skip, i64 count, i64 decayed, i64 finished_steps, acc_t<T> rate, double beta1, double beta2,
     acc_t<T> epsilon, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = device_rate == nullptr ? rate : *device_rate;
  // 1 / (1 - beta^t) in double: a float would lose most of its digits for small t. Once a block, because consumer GPUs have
  // few double units.
  __shared__ A correction[2];
  if (threadIdx.x == 0) {
    const double t = static_cast<double>((device_step == nullptr ? finished_steps : *device_step) + 1);
    correction[0] = static_cast<A>(1 / (1 - pow(beta1, t)));
    correction[1] = static_cast<A>(1 / (1 - pow(beta2, t)));
  }
  __syncthreads();
  const A correct1 = correction[0], correct2 = correction[1];
  const A b1 = static_cast<A>(beta1), b2 = static_cast<A>(beta2);
  const A rest1 = static_cast<A>(1 - beta1), rest2 = static_cast<A>(1 - beta2);
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), m = load<V>(mean + i), s = load<V>(square + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A old = widen(p.at[j]), grad = widen(g.at[j]);
      const bool decays = i + j < decayed;
      if (!DECOUPLED && decays) grad += weight_decay * old;
      A first = b1 * widen(m.at[j]) + rest1 * grad, second = b2 * widen(s.at[j]) + rest2 * grad * grad;
      m.at[j] = round_to<T>(first), s.at[j] = round_to<T>(second);
      A update = first * correct1 / (xsqrt(second * correct2) + epsilon);
      if (DECOUPLED && decays) old *= 1 - lr * weight_decay;
      p.at[j] = round_to<T>(old - lr * update);
    }
    store<V>(parameters + i, p), store<V>(mean + i, m), store<V>(square + i, s);
  }
  count_step(device_step, ticket);
}
