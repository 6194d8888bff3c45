"""Single instructions of PTX, against values that NVIDIA's manual gives."""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.software_gpu import build

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("software_gpu"),
    pytest.mark.skipif(build.front_end() != "nvrtc", reason="tests the way by PTX; runs with SOFTWARE_GPU_FRONT_END=nvrtc"),
]


class Word(NamedTuple):
    """Bits in a register; the constraint of inline PTX says how many."""

    constraint: str
    bits: int


def b32(v: int) -> Word:
    return Word("r", v & 0xFFFFFFFF)


def b64(v: int) -> Word:
    return Word("l", v & 0xFFFFFFFFFFFFFFFF)


def b16(v: int) -> Word:
    return Word("h", v & 0xFFFF)


def f32(v: float) -> Word:
    return b32(struct.unpack("<I", struct.pack("<f", v))[0])


def f64(v: float) -> Word:
    return b64(struct.unpack("<Q", struct.pack("<d", v))[0])


def f16(v: float) -> Word:
    return b16(struct.unpack("<H", struct.pack("<e", v))[0])


NAN, CANONICAL, TINY, INF = math.nan, b32(0x7FFFFFFF), 2.0**-140, math.inf
ULP = 2.0**-23

CASES: list[tuple[str, list[Word], Word]] = [
    # integers
    ("add.s32 %0, %1, %2;", [b32(2**31 - 1), b32(1)], b32(-(2**31))),
    ("mul.hi.s32 %0, %1, %2;", [b32(-3), b32(2**30)], b32(-1)),
    ("mul.hi.u64 %0, %1, %2;", [b64(2**63), b64(6)], b64(3)),
    ("mul.wide.s32 %0, %1, %2;", [b32(-5), b32(2**30)], b64(-5 * 2**30)),
    ("mul.wide.u16 %0, %1, %2;", [b16(65535), b16(65535)], b32(65535**2)),
    ("mad.wide.u32 %0, %1, %2, %3;", [b32(2**32 - 1), b32(2), b64(7)], b64(2 * (2**32 - 1) + 7)),
    ("mad.hi.u32 %0, %1, %2, %3;", [b32(2**31), b32(6), b32(4)], b32(7)),
    ("{ .reg .u32 t; add.cc.u32 t, %1, %1; addc.u32 %0, %2, 0; }", [b32(2**31), b32(5)], b32(6)),
    ("{ .reg .u32 t; sub.cc.u32 t, 0, %1; subc.u32 %0, %2, 0; }", [b32(1), b32(5)], b32(4)),
    ("{ .reg .u32 t; mad.lo.cc.u32 t, %1, 4, %1; madc.hi.u32 %0, %1, 4, 0; }", [b32(0xF0000000)], b32(4)),
    ("div.s32 %0, %1, %2;", [b32(-7), b32(2)], b32(-3)),
    ("rem.s32 %0, %1, %2;", [b32(-7), b32(2)], b32(-1)),
    ("min.s64 %0, %1, %2;", [b64(-1), b64(1)], b64(-1)),
    ("max.u32 %0, %1, %2;", [b32(-1), b32(1)], b32(-1)),
    ("abs.s32 %0, %1;", [b32(-9)], b32(9)),
    ("sad.u32 %0, %1, %2, %3;", [b32(3), b32(10), b32(100)], b32(107)),
    ("dp4a.s32.s32 %0, %1, %2, %3;", [b32(0x010203FF), b32(0x04030201), b32(10)], b32(10 + 4 + 6 + 6 - 1)),
    ("dp4a.u32.u32 %0, %1, %2, %3;", [b32(0xFF), b32(0xFF), b32(1)], b32(65026)),
    ("dp2a.hi.s32.s32 %0, %1, %2, %3;", [b32(0xFFFF0002), b32(0x03040000), b32(1)], b32(1 + 8 - 3)),
    # bits
    ("shl.b32 %0, %1, %2;", [b32(1), b32(32)], b32(0)),
    ("shr.s32 %0, %1, %2;", [b32(-8), b32(40)], b32(-1)),
    ("shr.u32 %0, %1, %2;", [b32(-8), b32(1)], b32(0x7FFFFFFC)),
    ("shf.l.wrap.b32 %0, %1, %2, %3;", [b32(0x80000000), b32(1), b32(33)], b32(3)),
    ("shf.r.clamp.b32 %0, %1, %2, %3;", [b32(5), b32(7), b32(40)], b32(7)),
    ("popc.b64 %0, %1;", [b64(-1)], b32(64)),
    ("clz.b32 %0, %1;", [b32(0)], b32(32)),
    ("clz.b64 %0, %1;", [b64(1)], b32(63)),
    ("brev.b32 %0, %1;", [b32(1)], b32(2**31)),
    ("bfind.u32 %0, %1;", [b32(0x1000)], b32(12)),
    ("bfind.s32 %0, %1;", [b32(-1)], b32(-1)),
    ("bfind.shiftamt.u32 %0, %1;", [b32(0x1000)], b32(19)),
    ("bfe.u32 %0, %1, %2, %3;", [b32(0xABCD), b32(4), b32(8)], b32(0xBC)),
    ("bfe.s32 %0, %1, %2, %3;", [b32(0xABCD), b32(4), b32(8)], b32(0xFFFFFFBC)),
    ("bfe.u32 %0, %1, %2, %3;", [b32(-1), b32(28), b32(9)], b32(15)),
    ("bfi.b32 %0, %1, %2, %3, %4;", [b32(0xFF), b32(0), b32(8), b32(4)], b32(0xF00)),
    ("prmt.b32 %0, %1, %2, %3;", [b32(0x33221100), b32(0x77665584), b32(0x7C10)], b32(0x77FF1100)),
    ("lop3.b32 %0, %1, %2, %3, 0xE8;", [b32(0b1100), b32(0b1010), b32(0b0110)], b32(0b1110)),
    ("not.b64 %0, %1;", [b64(0)], b64(-1)),
    # rounding, flushing, saturation
    ("add.rn.f32 %0, %1, %2;", [f32(1), f32(ULP / 2)], f32(1)),
    ("add.rz.f32 %0, %1, %2;", [f32(-1), f32(-ULP / 2)], f32(-1)),
    ("add.rm.f32 %0, %1, %2;", [f32(-1), f32(-ULP / 2)], f32(-1 - ULP)),
    ("add.rp.f32 %0, %1, %2;", [f32(1), f32(2.0**-60)], f32(1 + ULP)),
    ("mul.f32 %0, %1, %2;", [f32(TINY), f32(1)], f32(TINY)),
    ("mul.ftz.f32 %0, %1, %2;", [f32(-TINY), f32(2.0**100)], f32(-0.0)),
    ("add.sat.f32 %0, %1, %2;", [f32(0.75), f32(0.5)], f32(1)),
    ("add.sat.f32 %0, %1, %2;", [f32(NAN), f32(0.5)], f32(0)),
    ("add.f32 %0, %1, %2;", [f32(INF), f32(-INF)], CANONICAL),
    ("fma.rn.f32 %0, %1, %2, %3;", [f32(1 + ULP), f32(1 + ULP), f32(-1 - 2 * ULP)], f32(ULP * ULP)),
    ("fma.rn.f64 %0, %1, %2, %3;", [f64(1 + 2.0**-52), f64(1 + 2.0**-52), f64(-1 - 2.0**-51)], f64(2.0**-104)),
    ("fma.rm.f32 %0, %1, %2, %3;", [f32(1), f32(1), f32(-(2.0**-40))], f32(1 - ULP / 2)),
    ("div.rn.f32 %0, %1, %2;", [f32(1), f32(3)], b32(0x3EAAAAAB)),
    ("div.rp.f64 %0, %1, %2;", [f64(1), f64(3)], f64(np.nextafter(1 / 3, 1))),
    ("rcp.rn.f32 %0, %1;", [f32(0)], f32(INF)),
    ("sqrt.rn.f64 %0, %1;", [f64(2)], f64(math.sqrt(2))),
    ("sqrt.rn.f32 %0, %1;", [f32(-1)], CANONICAL),
    ("rcp.approx.ftz.f64 %0, %1;", [f64(3)], b64(0x3FD5555500000000)),
    ("ex2.approx.ftz.f32 %0, %1;", [f32(-3)], f32(0.125)),
    ("lg2.approx.f32 %0, %1;", [f32(8)], f32(3)),
    ("rsqrt.approx.f32 %0, %1;", [f32(16)], f32(0.25)),
    ("neg.f32 %0, %1;", [f32(0)], f32(-0.0)),
    ("abs.f64 %0, %1;", [f64(-2)], f64(2)),
    ("min.f32 %0, %1, %2;", [f32(NAN), f32(3)], f32(3)),
    ("min.NaN.f32 %0, %1, %2;", [f32(NAN), f32(3)], CANONICAL),
    ("min.f32 %0, %1, %2;", [f32(0.0), f32(-0.0)], f32(-0.0)),
    ("max.f64 %0, %1, %2;", [f64(-0.0), f64(0.0)], f64(0.0)),
    ("copysign.f32 %0, %1, %2;", [f32(-1), f32(5)], f32(-5)),
    # numbers of 16 bits
    ("add.f16 %0, %1, %2;", [f16(2048), f16(1)], f16(2048)),
    ("fma.rn.f16 %0, %1, %2, %3;", [f16(1 + 2.0**-10), f16(1 + 2.0**-10), f16(-1)], f16(2.0**-9 + 2.0**-20)),
    ("fma.rn.bf16 %0, %1, %2, %3;", [b16(0x3F80), b16(0x3F80), b16(0x3B80)], b16(0x3F80)),
    ("add.bf16x2 %0, %1, %2;", [b32(0x3F804000), b32(0x3F803F80)], b32(0x40004040)),
    ("neg.f16x2 %0, %1;", [b32(0x3C00BC00)], b32(0xBC003C00)),
    ("fma.rn.f16x2 %0, %1, %1, %2;", [b32(0x40004200), b32(0x3C003C00)], b32(0x45004900)),
    ("min.NaN.bf16x2 %0, %1, %2;", [b32(0x7FC03F80), b32(0x3F804000)], b32(0x7FFF3F80)),
    ("set.gtu.f32.f32 %0, %1, %2;", [f32(NAN), f32(1)], f32(1)),
    ("set.le.u32.s32 %0, %1, %2;", [b32(-1), b32(1)], b32(-1)),
    ("set.nan.bf16.bf16 %0, %1, %1;", [b16(0x7FFF)], b16(0x3F80)),
    ("max.f16 %0, %1, %2;", [f16(-1), f16(2)], f16(2)),
    # conversions
    ("cvt.rni.s32.f32 %0, %1;", [f32(2.5)], b32(2)),
    ("cvt.rzi.s32.f32 %0, %1;", [f32(-2.9)], b32(-2)),
    ("cvt.rmi.s32.f32 %0, %1;", [f32(-2.1)], b32(-3)),
    ("cvt.rpi.u32.f32 %0, %1;", [f32(2.1)], b32(3)),
    ("cvt.rzi.u32.f32 %0, %1;", [f32(-5)], b32(0)),
    ("cvt.rzi.s32.f64 %0, %1;", [f64(1e300)], b32(2**31 - 1)),
    ("cvt.rzi.s32.f32 %0, %1;", [f32(NAN)], b32(0)),
    ("cvt.rni.f32.f32 %0, %1;", [f32(3.5)], f32(4)),
    ("cvt.rn.f32.s64 %0, %1;", [b64(2**53 + 2**29)], f32(2.0**53)),
    ("cvt.rn.f32.u64 %0, %1;", [b64(-1)], f32(2.0**64)),
    ("cvt.rn.f32.f64 %0, %1;", [f64(1 + 2.0**-24)], f32(1)),
    ("cvt.rp.f32.f64 %0, %1;", [f64(1 + 2.0**-24)], f32(1 + ULP)),
    ("cvt.f64.f32 %0, %1;", [f32(TINY)], f64(TINY)),
    ("cvt.ftz.f64.f32 %0, %1;", [f32(TINY)], f64(0)),
    ("cvt.sat.f32.f32 %0, %1;", [f32(-3)], f32(0)),
    ("cvt.sat.u8.s32 %0, %1;", [b32(300)], b32(255)),
    ("cvt.s32.s8 %0, %1;", [b32(0x80)], b32(-128)),
    ("cvt.u32.u16 %0, %1;", [b16(0xFFFF)], b32(0xFFFF)),
    ("cvt.rn.f16.f32 %0, %1;", [f32(65520)], f16(INF)),
    ("cvt.rn.f16.f32 %0, %1;", [f32(NAN)], b16(0x7FFF)),
    ("cvt.f32.f16 %0, %1;", [f16(2.0**-24)], f32(2.0**-24)),
    ("cvt.rn.bf16.f32 %0, %1;", [f32(1 + 2.0**-8)], b16(0x3F80)),
    ("cvt.rn.bf16.f32 %0, %1;", [f32(1 + 2.0**-8 + ULP)], b16(0x3F81)),
    ("cvt.rni.f16.f16 %0, %1;", [f16(2.5)], f16(2)),
    ("cvt.rn.f16x2.f32 %0, %1, %2;", [f32(1), f32(2)], b32(0x3C004000)),
    ("cvt.rn.bf16x2.f32 %0, %1, %2;", [f32(1), f32(2)], b32(0x3F804000)),
    ("cvt.rna.tf32.f32 %0, %1;", [f32(1 + 2.0**-11)], f32(1 + 2.0**-10)),
    # moves
    ("mov.b64 %0, {%1, %2};", [b32(1), b32(2)], b64(2**33 + 1)),
    ("{ .reg .b32 t; mov.b64 {t, %0}, %1; }", [b64(7 << 32)], b32(7)),
    ("{ .reg .b16 t; mov.b32 {%0, t}, %1; }", [b32(0xABCD1234)], b16(0x1234)),
    ("selp.f32 %0, %1, %2, 0;", [f32(1), f32(2)], f32(2)),
    ("slct.u32.s32 %0, %1, %2, %3;", [b32(1), b32(2), b32(-1)], b32(2)),
]  # fmt: skip

COMPARISONS = {  # of pairs of floats: 1 and 2, 2 and 2, NaN and 2
    "eq": "010", "ne": "100", "lt": "100", "le": "110", "gt": "000", "ge": "010", "equ": "011", "neu": "101", "ltu": "101",
    "leu": "111", "gtu": "001", "geu": "011", "num": "110", "nan": "001",
}  # fmt: skip
for _name, _answers in COMPARISONS.items():
    for _a, _answer in zip((1, 2, NAN), _answers, strict=True):
        _text = f"{{ .reg .pred p; setp.{_name}.f32 p, %1, %2; selp.u32 %0, 1, 0, p; }}"
        CASES.append((_text, [f32(_a), f32(2)], b32(int(_answer))))
_PAIR = "{ .reg .pred p, q, s; setp.ne.u32 s, %3, 0; setp.lt.and.s32 p|q, %1, %2, s; selp.u32 %0, 1, 0, q; }"
CASES += [
    (_PAIR, [b32(-1), b32(1), b32(1)], b32(0)),
    (_PAIR, [b32(1), b32(-1), b32(1)], b32(1)),
    (_PAIR, [b32(1), b32(-1), b32(0)], b32(0)),
    ("{ .reg .pred p; setp.hi.u32 p, %1, %2; selp.u32 %0, 1, 0, p; }", [b32(-1), b32(1)], b32(1)),
    ("{ .reg .pred p; testp.subnormal.f32 p, %1; selp.u32 %0, 1, 0, p; }", [f32(TINY)], b32(1)),
    ("{ .reg .pred p; testp.finite.f64 p, %1; @!p mov.u32 %0, 5; }", [f64(INF)], b32(5)),
]

_TYPES = {"r": "unsigned", "l": "unsigned long long", "h": "unsigned short"}


@pytest.fixture(scope="module")
def found() -> Any:
    """What each case gives."""
    import cupy

    body = ""
    for i, (text, operands, expected) in enumerate(CASES):
        inputs = ", ".join(f'"{o.constraint}"(({_TYPES[o.constraint]}){o.bits}ull)' for o in operands)
        kind = expected.constraint
        body += f'{{ {_TYPES[kind]} v; asm volatile("{text}" : "={kind}"(v) : {inputs}); y[{i}] = v; }}\n'
    y = cupy.zeros(len(CASES), np.uint64)
    cupy.RawKernel(f'extern "C" __global__ void k(unsigned long long* y) {{ {body} }}', "k")((1,), (1,), (y,))
    return y.get().tolist()


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: f"{i} {CASES[i][0]}")
def test_an_instruction(found: list[int], number: int) -> None:
    assert hex(found[number]) == hex(CASES[number][2].bits)


def test_approximations_are_close() -> None:
    """What is approximate on a GPU is libm's here, rounded."""
    import cupy

    x = np.linspace(0.1, 3, 64, dtype=np.float32)
    functions = {"sin": np.sin, "cos": np.cos, "tanh": np.tanh, "sqrt": np.sqrt, "ex2": np.exp2, "lg2": np.log2}
    body = "".join(
        f'asm("{name}.approx.f32 %0, %1;" : "=f"(v) : "f"(x[t])); y[{i} * 64 + t] = v;\n' for i, name in enumerate(functions)
    )
    y = cupy.zeros((len(functions), 64), np.float32)
    source = f'extern "C" __global__ void k(const float* x, float* y) {{ const int t = threadIdx.x; float v; {body} }}'
    cupy.RawKernel(source, "k")((1,), (64,), (cupy.asarray(x), y))
    for row, function in zip(y.get(), functions.values(), strict=True):
        np.testing.assert_allclose(row, function(x.astype(np.float64)), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("kind", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("c", [0x0, 0x1F, 0x1807, 0x181F, 0x1C03])
def test_shuffles(kind: str, c: int) -> None:
    import cupy

    y = cupy.zeros((2, 3, 32), np.uint32)
    body = "".join(
        f'asm volatile("{{ .reg .pred p; shfl.sync.{kind}.b32 %0|p, %2, {b}, {c}, -1; selp.u32 %1, 1, 0, p; }}"'
        f' : "=r"(v), "=r"(p) : "r"(t)); y[{i * 32} + t] = v; y[{96 + i * 32} + t] = p;\n'
        for i, b in enumerate((1, 5, 30))
    )
    cupy.RawKernel(f'extern "C" __global__ void k(unsigned* y) {{ unsigned t = threadIdx.x, v, p; {body} }}', "k")(
        (1,), (32,), (y,)
    )
    segment, clamp = c >> 8 & 31, c & 31
    for i, b in enumerate((1, 5, 30)):
        for lane in range(32):  # the manual's own program
            most = (lane & segment) | (clamp & ~segment)
            least = lane & segment
            j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": least | (b & ~segment)}[kind]
            inside = j >= most if kind == "up" else j <= most
            assert y[:, i, lane].get().tolist() == [j if inside else lane, int(inside)]


def test_votes() -> None:
    import cupy

    y = cupy.zeros((5, 32), np.uint32)
    source = """extern "C" __global__ void k(unsigned* y) {
      unsigned t = threadIdx.x, all, any, uniform, ballot, same;
      asm volatile("{ .reg .pred p, q; setp.lt.u32 p, %5, 8; vote.sync.ballot.b32 %0, p, -1;"
        "vote.sync.all.pred q, p, -1; selp.u32 %1, 1, 0, q; vote.sync.any.pred q, p, -1; selp.u32 %2, 1, 0, q;"
        "vote.sync.uni.pred q, p, -1; selp.u32 %3, 1, 0, q; and.b32 %4, %5, 3; match.any.sync.b32 %4, %4, -1; }"
        : "=r"(ballot), "=r"(all), "=r"(any), "=r"(uniform), "=r"(same) : "r"(t));
      y[t] = ballot; y[32 + t] = all; y[64 + t] = any; y[96 + t] = uniform; y[128 + t] = same;
    }"""
    cupy.RawKernel(source, "k")((1,), (32,), (y,))
    rows = y.get()
    assert [set(row) for row in rows[:4].tolist()] == [{0xFF}, {0}, {1}, {0}]
    assert rows[4].tolist() == [0x11111111 << t % 4 for t in range(32)]
