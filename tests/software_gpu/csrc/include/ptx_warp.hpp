// PTX's instructions of warps and blocks. The first thing in the C++ that ptx/ makes of PTX.
#pragma once
#include "ptx.hpp"

namespace ptx {

inline u32 lane() { return emulator::current % emulator::kWarp; }

// ---- shuffles and votes ----

enum Shuffle { up, down, bfly, idx };

// The operand of another lane, and whether that lies within the bounds that `c` gives: else the lane has its own.
template <Shuffle KIND>
inline Vector<u32, 2> shuffle(u32 v, u32 b, u32 c, u32 mask) {
  const int me = lane(), segment = c >> 8 & 31, least = me & segment, most = least | (int)(c & 31 & ~segment), n = b & 31;
  const int from = KIND == up ? me - n : KIND == down ? me + n : KIND == bfly ? me ^ n : least | (n & ~segment);
  const bool inside = KIND == up ? from >= most : from <= most;
  return {emulator::shuffle(mask, v, inside ? from : me), inside};
}
inline bool vote_uniform(bool p, u32 mask) {
  const u32 all = __ballot_sync(mask, 1), votes = __ballot_sync(mask, p);
  return votes == 0 || votes == all;
}

// ---- asynchronous copies, executed as late as a wait permits ----

// Copy `given` bytes and clear the others of BYTES.
template <int BYTES>
inline void copy_async(char* to, const char* from, u32 given) {
  if (given > BYTES) illegal(700, "an asynchronous copy of more bytes than its size, from", (u64)from);
  emulator::Copies& mine = emulator::copies[emulator::current];
  mine.pending.push_back({to, from, BYTES, (int)given, mine.groups});
}

// ---- matrices ----

template <int N, bool TRANSPOSED>
inline Vector<u32, N> load_matrices(u32 row) {
  Vector<u32, N> r;
  // The addresses of the other lanes are not looked at.
  emulator_ldmatrix(r.v, (int)lane() < 8 * N ? shared<16>(row) : nullptr, TRANSPOSED);
  return r;
}

inline float element(float, u32 bits, int) { return as<float>(bits & 0xffffe000u); }  // TF32 in 32 bits
template <typename T>
inline float element(T, u32 bits, int i) {
  return as<T>((u16)(bits >> 16 * i));
}
// c + a b: a is 16 rows of 32 bytes, b is 8 columns of 32 bytes; T is the type of their elements, float for TF32.
template <typename T>
inline Vector<f32, 4> multiply(Vector<u32, 4> a, Vector<u32, 2> b, Vector<f32, 4> c) {
  emulator_mma(c.v, a.v, b.v, 4 / sizeof(T), [](u32 bits, int i) { return element(T(), bits, i); });
  return c;
}

// ---- what NVRTC's code calls ----

inline void assertion(u64 message, u64 file, u32 line, u64 function) {
  emulator::assertion((const char*)message, (const char*)file, line, (const char*)function);
}

}  // namespace ptx

static constexpr bool software_gpu_flush = false;  // instructions say it, each for itself
