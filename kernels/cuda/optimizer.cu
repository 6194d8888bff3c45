// Optimizer steps over all parameters of a model in one launch: parameters, gradients and optimizer state are flat arrays of
// one length. Arithmetic is in acc_t<T>. Weight decay applies to the first `decayed` elements.
//
// The learning rate and the number of finished steps are numbers, or in device memory (then the pointers are not null), so
// that a step can be captured in a CUDA graph and replayed: the last block to finish increments the steps. `ticket` counts
// finished blocks, must be 0 before the first launch and is 0 after each. If `skip` is not null and points to a number other
// than 0 (the gradients overflowed), a launch does nothing.
//
// Gradient clipping and the moving average of the weights are here as well.
//
// Launch: a grid-stride loop of 256 threads a block.
#include "grid_sum.cuh"

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

// As SGD_FORMS in xpnet/accel/cupy/optimizers.py.
const int VELOCITY = 0, NESTEROV = 1, INERTIA = 2;

// v = momentum * v - lr * g;  p += v, or with NESTEROV p += momentum * v - lr * g. `velocity` is null without momentum.
// INERTIA: v = momentum * v + rest * g;  p -= lr * v. Weight decay is added to the gradient.
// Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
template <typename T, int V, int FORM>
__global__ void __launch_bounds__(256, 4)
sgd(T* parameters, const T* gradients, T* velocity, const acc_t<T>* device_rate, i64* device_step, u32* ticket,
    const u32* skip, i64 count, i64 decayed, acc_t<T> rate, acc_t<T> momentum, acc_t<T> rest,
    acc_t<T> weight_decay) {
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
      A speed, way;
      if (FORM == INERTIA) {
        speed = momentum * widen(v.at[j]) + rest * grad;
        way = -lr * speed;
      } else {
        speed = momentum * widen(v.at[j]) - lr * grad;
        way = FORM == NESTEROV ? momentum * speed - lr * grad : speed;
      }
      p.at[j] = round_to<T>(widen(p.at[j]) + way);
      v.at[j] = round_to<T>(speed);
    }
    store<V>(parameters + i, p);
    if (velocity != nullptr) store<V>(velocity + i, v);
  }
  count_step(device_step, ticket);
}

// 1 / (1 - beta^t) at the step t that follows `finished`, in double: a float would lose most of its digits for small t.
template <typename A>
__device__ inline A bias_correction(double beta, i64 finished) {
  return static_cast<A>(1 / (1 - pow(beta, static_cast<double>(finished + 1))));
}

// The larger number, NaN if one is.
template <typename A>
__device__ inline A larger(A a, A b) {
  return a > b || a != a ? a : b;
}

// Adam with bias correction; DECOUPLED: AdamW, whose weight decay bypasses the moments. With `largest`, which else is null, it
// is AMSGrad: the largest mean square so far takes the place of the present one.
// Sources: Kingma and Ba, "Adam", 2015; Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; Reddi et al.,
// "On the convergence of Adam and beyond", 2018.
template <typename T, int V, bool DECOUPLED>
__global__ void __launch_bounds__(256, 3)
adam(T* parameters, const T* gradients, T* mean, T* square, T* largest, const acc_t<T>* device_rate, i64* device_step,
     u32* ticket, const u32* skip, i64 count, i64 decayed, i64 finished_steps, acc_t<T> rate, double beta1, double beta2,
     acc_t<T> epsilon, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = device_rate == nullptr ? rate : *device_rate;
  __shared__ A correction[2];  // computed once a block, because consumer GPUs have few double units
  if (threadIdx.x == 0) {
    const i64 finished = device_step == nullptr ? finished_steps : *device_step;
    correction[0] = bias_correction<A>(beta1, finished), correction[1] = bias_correction<A>(beta2, finished);
  }
  __syncthreads();
  const A correct1 = correction[0], correct2 = correction[1];
  const A b1 = static_cast<A>(beta1), b2 = static_cast<A>(beta2);
  const A rest1 = static_cast<A>(1 - beta1), rest2 = static_cast<A>(1 - beta2);
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), m = load<V>(mean + i), s = load<V>(square + i), l = {};
    if (largest != nullptr) l = load<V>(largest + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A old = widen(p.at[j]), grad = widen(g.at[j]);
      const bool decays = i + j < decayed;
      if (!DECOUPLED && decays) grad += weight_decay * old;
      A first = b1 * widen(m.at[j]) + rest1 * grad, second = b2 * widen(s.at[j]) + rest2 * grad * grad;
      m.at[j] = round_to<T>(first), s.at[j] = round_to<T>(second);
      if (largest != nullptr) {
        second = larger(widen(l.at[j]), second);
        l.at[j] = round_to<T>(second);
      }
      A update = first * correct1 / (xsqrt(second * correct2) + epsilon);
      if (DECOUPLED && decays) old *= 1 - lr * weight_decay;
      p.at[j] = round_to<T>(old - lr * update);
    }
    store<V>(parameters + i, p), store<V>(mean + i, m), store<V>(square + i, s);
    if (largest != nullptr) store<V>(largest + i, l);
  }
  count_step(device_step, ticket);
}

// Nadam: Adam with Nesterov's momentum, a schedule of which `now` and `following` are the shares of this step's gradient and of
// the mean: lr * (1 - mu_t) / (1 - prod mu) and lr * mu_(t+1) / (1 - prod mu * mu_(t+1)), without lr.
// Source: Dozat, "Incorporating Nesterov momentum into Adam", 2016.
template <typename T, int V>
__global__ void __launch_bounds__(256, 3)
nadam(T* parameters, const T* gradients, T* mean, T* square, i64 count, i64 decayed, acc_t<T> rate, acc_t<T> now,
      acc_t<T> following, acc_t<T> beta1, acc_t<T> rest1, acc_t<T> beta2, acc_t<T> rest2, acc_t<T> correct2, acc_t<T> epsilon,
      acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), m = load<V>(mean + i), s = load<V>(square + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A grad = widen(g.at[j]);
      if (i + j < decayed) grad += weight_decay * widen(p.at[j]);
      A first = beta1 * widen(m.at[j]) + rest1 * grad, second = beta2 * widen(s.at[j]) + rest2 * grad * grad;
      m.at[j] = round_to<T>(first), s.at[j] = round_to<T>(second);
      A ahead = rate * (now * grad + following * first);
      p.at[j] = round_to<T>(widen(p.at[j]) - ahead / (xsqrt(second * correct2) + epsilon));
    }
    store<V>(parameters + i, p), store<V>(mean + i, m), store<V>(square + i, s);
  }
}

// Adamax: Adam with a decaying maximum of |g| instead of the root of the mean square.
// Source: Kingma and Ba, "Adam", 2015, section 7.1.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
adamax(T* parameters, const T* gradients, T* mean, T* largest, const acc_t<T>* device_rate, i64* device_step, u32* ticket,
       const u32* skip, i64 count, i64 decayed, i64 finished_steps, acc_t<T> rate, double beta1, acc_t<T> beta2,
       acc_t<T> epsilon, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = device_rate == nullptr ? rate : *device_rate;
  __shared__ A correction;
  if (threadIdx.x == 0) correction = bias_correction<A>(beta1, device_step == nullptr ? finished_steps : *device_step);
  __syncthreads();
  const A step = lr * correction, b1 = static_cast<A>(beta1), rest1 = static_cast<A>(1 - beta1);
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), m = load<V>(mean + i), l = load<V>(largest + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A grad = widen(g.at[j]);
      if (i + j < decayed) grad += weight_decay * widen(p.at[j]);
      A first = b1 * widen(m.at[j]) + rest1 * grad;
      A top = larger(beta2 * widen(l.at[j]), (grad < 0 ? -grad : grad) + epsilon);
      m.at[j] = round_to<T>(first), l.at[j] = round_to<T>(top);
      p.at[j] = round_to<T>(widen(p.at[j]) - step * first / top);
    }
    store<V>(parameters + i, p), store<V>(mean + i, m), store<V>(largest + i, l);
  }
  count_step(device_step, ticket);
}

// total += g * g;  p -= lr * g / (sqrt(total) + epsilon).
// Source: Duchi et al., "Adaptive subgradient methods", 2011.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
adagrad(T* parameters, const T* gradients, T* sum, const acc_t<T>* device_rate, i64* device_step, u32* ticket, const u32* skip,
        i64 count, i64 decayed, acc_t<T> rate, acc_t<T> epsilon, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = device_rate == nullptr ? rate : *device_rate;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), s = load<V>(sum + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A grad = widen(g.at[j]);
      if (i + j < decayed) grad += weight_decay * widen(p.at[j]);
      A total = widen(s.at[j]) + grad * grad;
      s.at[j] = round_to<T>(total);
      p.at[j] = round_to<T>(widen(p.at[j]) - lr * grad / (xsqrt(total) + epsilon));
    }
    store<V>(parameters + i, p), store<V>(sum + i, s);
  }
  count_step(device_step, ticket);
}

// square = decay * square + rest * g * g;  p -= lr * g / (sqrt(square) + epsilon). `mean`, a decaying mean of g whose square is
// subtracted from the mean square, and `velocity`, which adds up what p moves by, may be null.
// Source: Tieleman and Hinton, Coursera lecture 6.5, 2012; Graves, 2013 (mean).
template <typename T, int V>
__global__ void __launch_bounds__(256, 3)
rmsprop(T* parameters, const T* gradients, T* square, T* mean, T* velocity, const acc_t<T>* device_rate, i64* device_step,
        u32* ticket, const u32* skip, i64 count, i64 decayed, acc_t<T> rate, acc_t<T> decay, acc_t<T> rest, acc_t<T> momentum,
        acc_t<T> epsilon, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = device_rate == nullptr ? rate : *device_rate;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), s = load<V>(square + i), m = {}, v = {};
    if (mean != nullptr) m = load<V>(mean + i);
    if (velocity != nullptr) v = load<V>(velocity + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A grad = widen(g.at[j]);
      if (i + j < decayed) grad += weight_decay * widen(p.at[j]);
      A below = decay * widen(s.at[j]) + rest * grad * grad;
      s.at[j] = round_to<T>(below);
      if (mean != nullptr) {
        const A middle = decay * widen(m.at[j]) + rest * grad;
        m.at[j] = round_to<T>(middle);
        below -= middle * middle;
        below = below > 0 ? below : static_cast<A>(0);  // rounding may make a variance of 0 negative
      }
      A ahead = grad / (xsqrt(below) + epsilon);
      if (velocity != nullptr) {
        ahead += momentum * widen(v.at[j]);
        v.at[j] = round_to<T>(ahead);
      }
      p.at[j] = round_to<T>(widen(p.at[j]) - lr * ahead);
    }
    store<V>(parameters + i, p), store<V>(square + i, s);
    if (mean != nullptr) store<V>(mean + i, m);
    if (velocity != nullptr) store<V>(velocity + i, v);
  }
  count_step(device_step, ticket);
}

// -1, 0 or 1; NaN stays NaN.
template <typename A>
__device__ inline A sign_of(A v) {
  return v > 0 ? static_cast<A>(1) : v < 0 ? static_cast<A>(-1) : v;
}

// Rprop: p -= sign(g) * size, where `size` grows while the sign stays the same and shrinks where it changed.
// Source: Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning", 1993.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
rprop(T* parameters, const T* gradients, T* previous, T* size, const acc_t<T>* device_rate, i64* device_step, u32* ticket,
      const u32* skip, i64 count, i64 decayed, acc_t<T> grow, acc_t<T> shrink, acc_t<T> smallest, acc_t<T> largest,
      acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), b = load<V>(previous + i), s = load<V>(size + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A grad = widen(g.at[j]);
      if (i + j < decayed) grad += weight_decay * widen(p.at[j]);
      const A product = grad * widen(b.at[j]);
      A step = widen(s.at[j]);
      if (product > 0) step *= grow;
      if (product < 0) step *= shrink, grad = 0;  // no step is made, and the next one whatever its sign
      step = step < smallest ? smallest : step > largest ? largest : step;
      s.at[j] = round_to<T>(step), b.at[j] = round_to<T>(grad);
      p.at[j] = round_to<T>(widen(p.at[j]) - sign_of(grad) * step);
    }
    store<V>(parameters + i, p), store<V>(previous + i, b), store<V>(size + i, s);
  }
  count_step(device_step, ticket);
}

// Quickprop: jump to the minimum of the parabola through this gradient and the last, at most `growth` times the last step.
// Source: Fahlman, "An empirical study of learning speed in back-propagation networks", 1988.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
quickprop(T* parameters, const T* gradients, T* steps, T* slopes, const acc_t<T>* device_rate, i64* device_step, u32* ticket,
          const u32* skip, i64 count, i64 decayed, acc_t<T> rate, acc_t<T> growth, acc_t<T> bound, acc_t<T> weight_decay) {
  typedef acc_t<T> A;
  if (skip != nullptr && *skip != 0) return;
  const A lr = device_rate == nullptr ? rate : *device_rate;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> p = load<V>(parameters + i), g = load<V>(gradients + i), s = load<V>(steps + i), b = load<V>(slopes + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A grad = widen(g.at[j]);
      if (i + j < decayed) grad += weight_decay * widen(p.at[j]);
      const A last = widen(s.at[j]), slope = widen(b.at[j]), way = sign_of(last), gap = slope - grad;
      A step = -lr * grad;
      if (way != 0) {
        const A jump = way * grad <= way * slope * bound || gap == 0 ? growth * last : last * grad / gap;
        step = way * grad < 0 ? jump + step : jump;
      }
      s.at[j] = round_to<T>(step), b.at[j] = round_to<T>(grad);
      p.at[j] = round_to<T>(widen(p.at[j]) + step);
    }
    store<V>(parameters + i, p), store<V>(steps + i, s), store<V>(slopes + i, b);
  }
  count_step(device_step, ticket);
}

// What makes the norm of all gradients at most `limit`: limit / max(norm, limit); NaN where the norm is not finite. The squares
// of float cannot overflow in double.
template <typename T>
__global__ void __launch_bounds__(256)
clipping_factor(const T* gradients, acc_t<T>* factor, double* partial, u32* counter, i64 count, double limit) {
  double mine = 0;
  for (i64 i = thread_index(); i < count; i += grid_stride()) {
    const double g = widen(gradients[i]);
    mine += g * g;
  }
  grid_sum(mine, partial, counter, [&](double total) {
    const double norm = sqrt(total);
    *factor = static_cast<acc_t<T>>(norm - norm != 0 ? norm - norm : norm > limit ? limit / norm : 1);
  });
}

// Multiply all gradients by *factor, and without a factor clip each to [-limit, limit], where a NaN stays one.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
clip(T* gradients, const acc_t<T>* factor, i64 count, acc_t<T> limit) {
  typedef acc_t<T> A;
  const A by = factor == nullptr ? static_cast<A>(1) : *factor;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> g = load<V>(gradients + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A v = widen(g.at[j]);
      g.at[j] = round_to<T>(factor != nullptr ? by * v : v > limit ? limit : v < -limit ? -limit : v);
    }
    store<V>(gradients + i, g);
  }
}

// moved = decay * average + rest * parameters; the average itself where `steps`, if it is not null, is still at `before`, as an
// update was skipped. `after` is then set to `steps`.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
moving_average(const T* average, const T* parameters, T* moved, const i64* steps, const i64* before, i64* after, i64 count,
               acc_t<T> decay, acc_t<T> rest) {
  typedef acc_t<T> A;
  const bool skipped = before != nullptr && *before == *steps;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> a = load<V>(average + i);
    const Vector<T, V> p = load<V>(parameters + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A next = decay * widen(a.at[j]) + rest * widen(p.at[j]);
      if (!skipped) a.at[j] = round_to<T>(next);
    }
    store<V>(moved + i, a);
  }
  if (after != nullptr && thread_index() == 0) *after = *steps;
}
