// Batches from a data set in device memory. `select` finds the examples of the next batch and the random numbers of their
// augmentation, `gather` reads the examples, augments and converts them in one pass. Where nothing is augmented `gather` finds
// the examples itself.
//
// An augmentation is a program: one row of FIELDS integers for each stage, in the order of application.
//
// Launch: select with one block; gather with blockIdx.y over examples and a grid-stride loop over the elements of one.
#include "last_block.cuh"
#include "philox.cuh"

enum Kind { MOVE = 0, FLIP_COLUMNS = 1, FLIP_ROWS = 2, CUTOUT = 3 };
enum Field {
  KIND = 0,
  HEIGHT,       // of the stage's input images
  WIDTH,
  SIZE,         // of the square that a cutout fills
  CHOICES_ROW,  // a random row is sign * (0 .. choices - 1) + offset; columns likewise
  CHOICES_COLUMN,
  OFFSET,
  SIGN,
  PAIRED,     // row and column of an example are drawn together; else all rows before all columns
  KEY_LOW,    // of the stage's Philox stream
  KEY_HIGH,
  THRESHOLD,  // flip where 53 random bits are below it
  FIELDS
};

// The t-th 32-bit number of a Philox stream in NumPy's order: the lower half of each 64-bit word, then the upper half.
__device__ inline u32 half_word(const Words& words, u32 t) {
  const u32 w = t / 2 % 4;
  const u64 word = w == 0 ? words.at[0] : w == 1 ? words.at[1] : w == 2 ? words.at[2] : words.at[3];
  return static_cast<u32>(t % 2 ? word >> 32 : word);
}

// What the t-th random number is used for: an example's row or column, and the number of choices.
struct Draw {
  i64 slot;
  u32 choices;
};
__device__ inline Draw draw_of(const i64* stage, u32 t, i64 batch) {
  const bool rows = stage[CHOICES_ROW] > 1, columns = stage[CHOICES_COLUMN] > 1;  // a single choice draws nothing
  i64 example = t;
  bool column = !rows;
  if (rows && columns) {
    if (stage[PAIRED]) {
      example = t / 2, column = t % 2 != 0;
    } else if (example >= batch) {
      example -= batch, column = true;
    }
  }
  return {example + (column ? batch : 0), static_cast<u32>(stage[column ? CHOICES_COLUMN : CHOICES_ROW])};
}
__device__ inline int drawn_offset(const i64* stage, u32 drawn) {
  return static_cast<int>(stage[SIGN] * static_cast<i64>(drawn) + stage[OFFSET]);
}

// The place in the data of an example of the next batch, -1 beyond the end of the order.
__device__ inline i64 place_of(const i64* order, i64 count, i64 at) { return at < count ? order[at] : -1; }

// index[b] = order[position + b], -1 beyond its end; taken[b] = its label, `words` 32-bit words. drawn (stages, 2, batch): the
// random numbers of the augmentation of batch `step`, with the bits of numpy.random.Generator: `random` for flips, else
// `integers` (32 bits). Then both counters are advanced. order, labels or step may be null. One block.
// Source: D. Lemire, "Fast random integer generation in an interval", 2019.
template <int THREADS>
__global__ void __launch_bounds__(THREADS)
select(const i64* order, i64 count, i64* position, u64* step, const i64* program, int stages, i64 batch, const u32* labels,
       int words, i64* index, u32* taken, int* drawn) {
  __shared__ int rejected;
  const u64 at = step == nullptr ? 0 : *step;
  if (order != nullptr) {
    const i64 first = *position;
    for (i64 b = threadIdx.x; b < batch; b += THREADS) {
      const i64 row = place_of(order, count, first + b);
      index[b] = row;
      for (int w = 0; w < words; ++w) taken[b * words + w] = row < 0 ? 0xffffffffu : labels[row * words + w];
    }
  }
#pragma unroll 1
  for (int s = 0; s < stages; ++s) {
    const i64* stage = program + s * FIELDS;
    int* out = drawn + s * 2 * batch;
    const u64 key0 = static_cast<u64>(stage[KEY_LOW]), key1 = static_cast<u64>(stage[KEY_HIGH]);
    if (stage[KIND] == FLIP_COLUMNS || stage[KIND] == FLIP_ROWS) {
#pragma unroll 1
      for (i64 block = threadIdx.x; block * 4 < batch; block += THREADS) {
        const Words words = philox(key0, key1, static_cast<u64>(block) + 1, 0, at, 0);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (block * 4 + e < batch) out[block * 4 + e] = (words.at[e] >> 11) < static_cast<u64>(stage[THRESHOLD]);
      }
      continue;
    }
    if (threadIdx.x == 0) rejected = 0;
    __syncthreads();
    const bool rows = stage[CHOICES_ROW] > 1, columns = stage[CHOICES_COLUMN] > 1;
    for (i64 b = threadIdx.x; b < batch; b += THREADS) {
      if (!rows) out[b] = drawn_offset(stage, 0);
      if (!columns) out[batch + b] = drawn_offset(stage, 0);
    }
    const u32 draws = static_cast<u32>(batch) * (rows + columns);
#pragma unroll 1
    for (u32 block = threadIdx.x; block * 8 < draws; block += THREADS) {
      const Words words = philox(key0, key1, static_cast<u64>(block) + 1, 0, at, 0);
#pragma unroll 1
      for (u32 t = block * 8; t < block * 8 + 8 && t < draws; ++t) {
        const Draw draw = draw_of(stage, t, batch);
        const u64 product = static_cast<u64>(half_word(words, t)) * draw.choices;
        if (static_cast<u32>(product) < (0u - draw.choices) % draw.choices) rejected = 1;
        out[draw.slot] = drawn_offset(stage, static_cast<u32>(product >> 32));
      }
    }
    __syncthreads();
    // A rejected number is drawn again and shifts all that follow. That is rare (4 in 2^32 for 9 choices), so one thread then
    // repeats the whole sequence.
    if (rejected && threadIdx.x == 0) {
      u32 taken = 0;
      Words words = {};
#pragma unroll 1
      for (u32 t = 0; t < draws; ++t) {
        const Draw draw = draw_of(stage, t, batch);
        u64 product;
#pragma unroll 1
        do {
          if (taken % 8 == 0) words = philox(key0, key1, static_cast<u64>(taken / 8) + 1, 0, at, 0);
          product = static_cast<u64>(half_word(words, taken++)) * draw.choices;
        } while (static_cast<u32>(product) < (0u - draw.choices) % draw.choices);
        out[draw.slot] = drawn_offset(stage, static_cast<u32>(product >> 32));
      }
    }
    __syncthreads();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (order != nullptr) *position += batch;
    if (step != nullptr) *step += 1;
  }
}

// The source of an output pixel: a pixel of the input (>= 0), or -1 - s where stage s fills it.
__device__ inline int source_pixel(const i64* program, const int* drawn, int stages, i64 batch, i64 b, int i, int j,
                                   int width) {
#pragma unroll 1
  for (int s = stages - 1; s >= 0; --s) {
    const i64* stage = program + s * FIELDS;
    const int* mine = drawn + s * 2 * batch + b;
    const int kind = static_cast<int>(stage[KIND]), row = mine[0];
    if (kind == FLIP_COLUMNS) {
      if (row) j = static_cast<int>(stage[WIDTH]) - 1 - j;
    } else if (kind == FLIP_ROWS) {
      if (row) i = static_cast<int>(stage[HEIGHT]) - 1 - i;
    } else if (kind == MOVE) {
      i += row, j += mine[batch];
      if (i < 0 || i >= stage[HEIGHT] || j < 0 || j >= stage[WIDTH]) return -1 - s;
    } else {
      const int below = i - row, right = j - mine[batch];
      if (below >= 0 && below < stage[SIZE] && right >= 0 && right < stage[SIZE]) return -1 - s;
    }
  }
  return i * width + j;
}

// Convert one element: look a byte up in table (256, channels or 1); apply (v - first) / second to a number, for each of the
// pairs of values (pairs, 2, channels).
template <typename T>
__device__ inline T convert_element(u8 v, u32 c, int, const T* table, int columns, const acc_t<T>*, int) {
  return table[columns == 1 ? v : v * columns + c];
}
template <typename T>
__device__ inline T convert_element(T v, u32 c, int channels, const T*, int, const acc_t<T>* values, int pairs) {
  acc_t<T> x = widen(v);
  for (int k = 0; k < pairs; ++k) x = (x - values[2 * k * channels + c]) / values[(2 * k + 1) * channels + c];
  return round_to<T>(x);
}

// out (batch, out_size): the rows `index` (null: 0, 1, ...) of data (examples, size), augmented and converted. Stage s fills
// with fills (stages, channels) at s. Rows of data and out are images (H, W, channels), their widths `width` and
// by_out_width. An index outside 0..examples-1 gives a row of NaN. With an order the index and the labels are those of the next
// batch, written as `select` does, and the position advances.
template <typename T, int V, typename S>
__global__ void __launch_bounds__(256, 4)
gather(const S* data, i64* index, const i64* order, i64 count, i64* position, const u32* labels, int words, u32* taken,
       u32* counter, const T* table, const acc_t<T>* values, const T* fills, const i64* program,
       const int* drawn, T* out, i64 batch, i64 examples, i64 size, i64 out_size, int stages, int columns, int pairs, int width,
       FastDivmod by_channels, FastDivmod by_out_width) {
  typedef acc_t<T> A;
  const int channels = static_cast<int>(by_channels.divisor);
  const i64 first = order == nullptr ? 0 : *position;
  for (i64 b = blockIdx.y; b < batch; b += gridDim.y) {
    i64 row = b;
    if (order != nullptr) {
      row = place_of(order, count, first + b);
      if (blockIdx.x == 0) {
        if (threadIdx.x == 0) index[b] = row;
        for (int w = threadIdx.x; w < words; w += 256) taken[b * words + w] = row < 0 ? 0xffffffffu : labels[row * words + w];
      }
    } else if (index != nullptr) {
      row = index[b];
    }
    const bool valid = row >= 0 && row < examples;
    const S* source = data + (valid ? row * size : 0);
    for (i64 f = thread_index() * V; f < out_size; f += grid_stride() * V) {
      Vector<T, V> result;
      u32 c, j;
      const u32 pixel = by_channels.divmod(static_cast<u32>(f), c);
      if (!valid) {
#pragma unroll
        for (int e = 0; e < V; ++e) result.at[e] = round_to<T>(infinity<A>() - infinity<A>());
      } else if (stages == 0) {
        const Vector<S, V> v = load<V>(source + f);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          result.at[e] = convert_element<T>(v.at[e], c, channels, table, columns, values, pairs);
          c = c + 1 == static_cast<u32>(channels) ? 0 : c + 1;
        }
      } else {
        u32 i = by_out_width.divmod(pixel, j);
        int from = source_pixel(program, drawn, stages, batch, b, i, j, width);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          result.at[e] = from < 0 ? fills[(-1 - from) * channels + c]
                                  : convert_element<T>(source[static_cast<i64>(from) * channels + c], c, channels, table,
                                                       columns, values, pairs);
          if (++c == static_cast<u32>(channels)) {
            c = 0;
            if (++j == by_out_width.divisor) j = 0, ++i;
            if (e + 1 < V) from = source_pixel(program, drawn, stages, batch, b, i, j, width);
          }
        }
      }
      store<V>(out + b * out_size + f, result);
    }
  }
  if (order != nullptr && is_last_block(counter, gridDim.x * gridDim.y) && threadIdx.x == 0) *position = first + batch;
}
