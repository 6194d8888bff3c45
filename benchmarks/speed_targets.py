"""Speed targets: how fast xpnet has to be at least, and which targets a result misses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import PASSES

Result = dict[str, Any]
GRAPHS_OR_COMPILED = ("torch-graphs", "torch-compile", "torch-compile-graphs")


@dataclass(frozen=True)
class Target:
    """The least ratio of their time to ours, for some cases.

    Attributes:
        device: "cpu" or "cuda".
        cases: a regular expression for the beginning of case names.
        peers: libraries of which the fastest counts.
        ratio: the least ratio.
    """

    device: str
    cases: str
    peers: tuple[str, ...]
    ratio: float


def _cpu(cases: str, **ratios: float) -> list[Target]:
    return [Target("cpu", cases, (peer,), ratio) for peer, ratio in ratios.items()]


def _cuda(cases: str, eager: float, best: float) -> list[Target]:
    return [Target("cuda", cases, ("torch",), eager), Target("cuda", cases, GRAPHS_OR_COMPILED, best)]


TARGETS = [
    *_cpu(r"step mlp \[784,30,10\]", torch=3.0, chainer=5.0, sklearn=1.5),
    *_cpu(r"step mlp \[784,128,10\]", torch=1.3, chainer=2.0, sklearn=1.3),
    *_cpu(r"step mlp \[784,512,512,10\]", torch=1.0, chainer=1.2, sklearn=1.1),
    *_cpu(r"step mnist convnet batch 128", torch=1.0, chainer=6.0),
    *_cpu(r"step cifar vgg batch 64", torch=0.85, chainer=7.0),
    *_cpu(r"layer conv \((64,16,128,128|64,8,256,256),3\)", torch=0.9, chainer=5.0),
    *_cpu(r"layer (max_pool|softmax_cross_entropy|batch_norm)", torch=1.0, chainer=2.0),
    *_cpu(r"predict mnist convnet 1$", torch=1.5, chainer=3.0),
    *_cuda(r"step mlp ", 4.0, 1.1),
    *_cuda(r"step (mnist convnet|lenet-5) batch (64|128|256|512)$", 3.0, 1.0),
    *_cuda(r"step cifar vgg batch (128|256|512)$", 1.0, 0.9),
    *_cuda(r"step resnet-20 batch 128", 1.5, 0.9),
]
KERNELS = 0.7
"""The target for convolutions on tensor cores: a fraction of the speed of the same product in cuBLAS."""


def judged(result: Result) -> list[tuple[Result, Target, str, float]]:
    """Return (case, target, the peer that counts, ratio) for every target that the result covers."""
    found = []
    for record in result["cases"]:
        for target in TARGETS:
            ratios = {peer: record["ratios"][peer]["median"] for peer in target.peers if peer in record["ratios"]}
            if target.device == result["options"]["device"] and re.match(target.cases, record["name"]) and ratios:
                fastest = min(ratios, key=ratios.__getitem__)
                found.append((record, target, fastest, ratios[fastest]))
    return found


def fraction_of_product(record: Result, algorithm: str = "") -> float | None:
    """Return the speed of a pass of a convolution, with the chosen or a given algorithm, over that of the product in cuBLAS."""
    if "products" not in record["ceilings"]:
        return None
    fraction = float(record["ceilings"]["products"]["fraction"]["median"])
    if not algorithm:
        return fraction
    # The ratio of an algorithm is its time over that of the chosen one.
    found = record.get("ways", {})
    return fraction / found[algorithm]["ratio"] if algorithm in found else None


def sentences(result: Result) -> list[str]:
    """Return how many targets are met, and a sentence for every one that is missed."""
    every = judged(result)
    missed = [
        f"* Target missed: {record['name']} against {peer}: {ratio:.2f}, the target is {target.ratio:g}."
        for record, target, peer, ratio in every
        if ratio < target.ratio
    ]
    lines = [f"* {len(every) - len(missed)} of {len(every)} speed targets are met.", *missed] if every else []
    return [*lines, *(_kernels(result) if result["options"]["device"] == "cuda" else [])]


def _kernels(result: Result) -> list[str]:
    passes = [(record, fraction_of_product(record)) for record in result["cases"] if record["kind"] in PASSES]
    known = [(record, fraction) for record, fraction in passes if fraction is not None]
    below = [(record, fraction) for record, fraction in known if fraction < KERNELS]
    if not known:
        return []
    lines = [
        f"* {len(known) - len(below)} of {len(known)} passes of convolutions reach {KERNELS:.0%} of the product in cuBLAS."
    ]
    return lines + [f"* Below {KERNELS:.0%} of the product: {record['name']}: {fraction:.0%}." for record, fraction in below]
