// Updates of all parameters of a model in one launch: parameters, gradients and the optimizer's memory are flat arrays of
// the same length. Arithmetic is in acc_t<T>. Weight decay applies to the first `decayed` elements.
//
// The learning rate and the number of finished steps are numbers, or live on the device (then the pointers are not null),
// so that a step can be captured in a CUDA graph and replayed. On the device the last block to finish adds one to the
// steps; `ticket` counts blocks, must be 0 before the first launch and is 0 again after each. Where `skip` is not null and
// its number is not 0 (the gradients overflowed) a launch does nothing at all.
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

// v = momentum * v - lr * g;  p += v, or with NESTEROV p += momentum * v - lr * g. Without momentum `velocity` is null.
// Weight decay is added to the gradient.
// Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
template <typename T, int V, bool NESTEROV>
__global__ void __launch_bounds__(256, 4)
sgd(T* parameters, const T* gradients, T* velocity, const acc_t<T>* rate_there, i64* step_there, u32* ticket,
    const u32* skip, i64 count, i64 decayed, acc_t<T> rate, acc_t<T> momentum, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = rate_there == nullptr ? rate : *rate_there;
  for (i64 i = first_index() * V; i < count; i += index_step() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), v = {};
    if (velocity != nullptr) v = load<V>(velocity + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A slope = up(g.at[j]);
      if (i + j < decayed) slope += weight_decay * up(p.at[j]);
      A speed = momentum * up(v.at[j]) - lr * slope;
      p.at[j] = down<T>(up(p.at[j]) + (NESTEROV ? momentum * speed - lr * slope : speed));
      v.at[j] = down<T>(speed);
    }
    store<V>(parameters + i, p);
    if (velocity != nullptr) store<V>(velocity + i, v);
  }
  count_step(step_there, ticket);
}

// Adam with bias correction; DECOUPLED: AdamW, whose decay does not pass through the moments.
// Sources: Kingma and Ba, "Adam", 2015; Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
template <typename T, int V, bool DECOUPLED>
__global__ void __launch_bounds__(256, 3)
adam(T* parameters, const T* gradients, T* mean, T* square, const acc_t<T>* rate_there, i64* step_there, u32* ticket,
     const u32* skip, i64 count, i64 decayed, i64 finished_steps, acc_t<T> rate, double beta1, double beta2,
     acc_t<T> epsilon, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = rate_there == nullptr ? rate : *rate_there;
  // 1 / (1 - beta^t), in double: for small t a float would lose most of its digits. Once per block, because consumer GPUs
  // have few double units.
  __shared__ A correction[2];
  if (threadIdx.x == 0) {
    const double t = static_cast<double>((step_there == nullptr ? finished_steps : *step_there) + 1);
    correction[0] = static_cast<A>(1 / (1 - pow(beta1, t)));
    correction[1] = static_cast<A>(1 / (1 - pow(beta2, t)));
  }
  __syncthreads();
  const A correct1 = correction[0], correct2 = correction[1];
  const A b1 = static_cast<A>(beta1), b2 = static_cast<A>(beta2);
  const A rest1 = static_cast<A>(1 - beta1), rest2 = static_cast<A>(1 - beta2);
  for (i64 i = first_index() * V; i < count; i += index_step() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), m = load<V>(mean + i), s = load<V>(square + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A old = up(p.at[j]), slope = up(g.at[j]);
      const bool decays = i + j < decayed;
      if (!DECOUPLED && decays) slope += weight_decay * old;
      A first = b1 * up(m.at[j]) + rest1 * slope, second = b2 * up(s.at[j]) + rest2 * slope * slope;
      m.at[j] = down<T>(first), s.at[j] = down<T>(second);
      A update = first * correct1 / (xsqrt(second * correct2) + epsilon);
      if (DECOUPLED && decays) old *= 1 - lr * weight_decay;
      p.at[j] = down<T>(old - lr * update);
    }
    store<V>(parameters + i, p), store<V>(mean + i, m), store<V>(square + i, s);
  }
  count_step(step_there, ticket);
}
