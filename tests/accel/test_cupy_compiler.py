"""Compilation with NVRTC for every architecture, and the cache of cubins. No GPU is needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

import xpnet.accel.cupy as accel
from xpnet.accel.cupy import compiler, source


def _nvrtc_is_missing() -> str:
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # whatever keeps CuPy or the library from loading is the reason to skip
        return f"needs CuPy and NVRTC: {error}"
    return ""


pytestmark = [pytest.mark.nvrtc, pytest.mark.skipif(bool(_nvrtc_is_missing()), reason=_nvrtc_is_missing() or "-")]

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


@pytest.fixture
def instance():
    return accel.activation._forward["float", 4, 1]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XPNET_CACHE", str(tmp_path))
    return tmp_path / "kernels"


class Usage:
    """The report of ptxas about one instance on one architecture."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.registers = self.shared = self.stack = self.spilled = 0


def usage(log: str, symbols: dict[str, str]) -> list[Usage]:
    names = {symbol: expression for expression, symbol in symbols.items()}
    found: list[Usage] = []
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)'", line):
            found.append(Usage(names[entry[1]]))
        if stack := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[-1].stack = int(stack[1])
            found[-1].spilled = int(stack[2]) + int(stack[3])
        if registers := re.search(r"Used (\d+) registers", line):
            found[-1].registers = int(registers[1])
            shared = re.search(r"(\d+) bytes smem", line)
            found[-1].shared = int(shared[1]) if shared else 0
    return found


def files():
    """Return every kernel file in use."""
    return sorted({kernel.file for kernel in source.every_kernel})


def instances(file):
    return [i for kernel in source.every_kernel if kernel.file == file for i in kernel.instances()]


def compiled_log(file, architecture):
    """Compile every instance of a file and return the symbols and the log, cached on disk."""
    digest = hashlib.sha256("".join(compiler._key(i, architecture) for i in instances(file)).encode()).hexdigest()
    kept = compiler.cache_folder().parent / "ptxas" / f"{file}-sm{architecture}-{digest[:24]}.json"
    if not kept.exists():
        _, symbols, log = compiler.compile_instances(file, instances(file), architecture, ["--ptxas-options=-v"])
        kept.parent.mkdir(parents=True, exist_ok=True)
        written = kept.with_suffix(f".{os.getpid()}.tmp")
        written.write_text(json.dumps([symbols, log]))
        written.replace(kept)
    return json.loads(kept.read_text())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", files())
def test_every_instance_compiles_without_spills(file, architecture, capsys):
    symbols, log = compiled_log(file, architecture)
    found = usage(log, symbols)
    assert len(found) == len(instances(file))
    with capsys.disabled():
        print(f"\n{file}.cu, sm_{architecture}: {len(found)} instances; of each kernel the one with most registers:")
        for name in source.declarations(file):
            most = max((u for u in found if u.expression.startswith(f"{name}<")), key=lambda u: u.registers)
            print(f"  {most.expression:48}{most.registers:4} registers {most.shared:6} B shared")
    allowed = stack_allowed(source.read_source(file))
    offenders = [f"{u.expression}: {u.stack} B stack, {u.spilled} B spilled" for u in found if u.stack > allowed or u.spilled]
    assert not offenders, "\n".join(offenders)


def stack_allowed(text):
    """Return the bytes of stack that a kernel file declares, for the slow path of a function of CUDA's."""
    declared = re.search(r"^// Stack: at most (\d+) bytes, for .", text, re.MULTILINE)
    return int(declared[1]) if declared else 0


def test_a_stack_is_declared_with_its_reason():
    assert stack_allowed("// y = sin(x)\n// Stack: at most 40 bytes, for the slow path of sin.\n") == 40
    assert stack_allowed("// Stack: at most 40 bytes\n") == stack_allowed('#include "common.cuh"\n') == 0


def test_the_log_of_a_kernel_that_spills_is_understood():
    log = (
        "ptxas info    : Compiling entry function '_Z1fv' for 'sm_90'\n"
        "ptxas         .     8 bytes stack frame, 24 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem\n"
    )
    (one,) = usage(log, {"f<float>": "_Z1fv"})
    assert (one.expression, one.registers, one.shared, one.stack, one.spilled) == ("f<float>", 32, 1024, 8, 44)


def test_the_error_of_a_kernel_that_does_not_compile(monkeypatch, instance):
    right, wrong = "Vector<T, V> v = load<V>(x + i);", "Vector<T, V> v = no_such_function(x + i);"
    text = source.read_source("activation").replace(right, wrong)
    assert wrong in text
    monkeypatch.setattr(compiler, "read_source", lambda file: text)
    with pytest.raises(compiler.CompileError) as caught:
        compiler.compile_instances("activation", [instance], 90)
    message = str(caught.value)
    assert "kernels/cuda/activation.cu" in message
    assert "sm_90" in message
    assert "activation<float, 4, 1>" in message
    assert "no_such_function" in message


def test_an_architecture_that_nvrtc_no_longer_supports(instance):
    with pytest.raises(compiler.CompileError, match="sm_35"):
        compiler.compile_instances("activation", [instance], 35)


def test_a_device_that_is_newer_than_nvrtc():
    known = (75, 80, 86, 90)
    assert compiler.target(86, known) == ("sm", 86)
    assert compiler.target(89, known) == ("sm", 86)  # a cubin of an earlier minor version runs
    assert compiler.target(100, known) == ("compute", 90)
    assert compiler.target(70, known) == ("sm", 70)


def test_a_much_newer_device_gets_ptx(cache, instance):
    code, symbol = compiler.cubin(instance, 999)
    assert b".entry " + symbol.encode() in code


def test_a_cubin_is_compiled_once(cache, monkeypatch, instance):
    first = compiler.cubin(instance, 80)
    (entry,) = cache.iterdir()
    assert entry.suffix == ".cubin"
    assert first[0].startswith(b"\x7fELF")

    def never(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "compile_instances", never)
    assert compiler.cubin(instance, 80) == first
    with pytest.raises(AssertionError, match="compiled again"):
        compiler.cubin(instance, 90)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_entry_is_compiled_again(cache, instance, damage):
    first = compiler.cubin(instance, 80)
    (entry,) = cache.iterdir()
    data = entry.read_bytes()
    entry.write_bytes({"truncated": data[: len(data) // 2], "changed": data[:-1] + b"\x99", "empty": b""}[damage])
    assert compiler.cubin(instance, 80) == first
    assert entry.read_bytes() == data


def test_the_key_covers_source_headers_options_and_architecture(monkeypatch, instance):
    keys = {compiler._key(instance, 80), compiler._key(instance, 90)}
    keys.add(compiler._key(accel.activation._forward["float", 1, 1], 80))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "OPTIONS", ("--std=c++17",))
        keys.add(compiler._key(instance, 80))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "read_source", lambda file: source.read_source(file) + " ")
        keys.add(compiler._key(instance, 80))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "read_headers", lambda: {"common.cuh": "other"})
        keys.add(compiler._key(instance, 80))
    assert len(keys) == 6


def test_a_read_only_cache_is_no_error(tmp_path, monkeypatch, instance):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XPNET_CACHE", str(tmp_path / "file"))  # a file where a folder should be
    assert compiler.cubin(instance, 80)[0].startswith(b"\x7fELF")


def test_the_cache_folder_follows_the_platform(monkeypatch):
    monkeypatch.delenv("XPNET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert compiler.cache_folder().as_posix() == "/somewhere/xpnet/kernels"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert compiler.cache_folder().as_posix().endswith("Library/Caches/xpnet/kernels")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert compiler.cache_folder().as_posix() == "/local/xpnet/kernels"


def test_several_processes_may_share_the_cache(cache):
    program = (
        "import hashlib\n"
        "import xpnet.accel.cupy as accel\n"
        "from xpnet.accel.cupy import compiler\n"
        "for width in (1, 4):\n"
        "    code, symbol = compiler.cubin(accel.activation._forward['float', width, 3], 90)\n"
        "    print(symbol, hashlib.sha256(code).hexdigest())\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 3
    assert len(outputs) == 1
    assert len(list(cache.glob("*.cubin"))) == 2
    assert list(cache.glob("*.tmp")) == []


@pytest.mark.parametrize("file", files())
def test_vectors_move_sixteen_bytes_in_one_access(file):
    wide = [
        instance
        for kernel in source.every_kernel
        if kernel.file == file and ("int", "V") in source.declarations(file)[kernel.name].template
        for instance in kernel.instances()
        if re.search(r"<(float, 4|float16, 8|16)\b", instance.expression)
    ]
    if not wide:
        # Lanes read adjacent elements: accesses of a warp are coalesced anyway.
        assert file in ("recurrent", "softmax")
        return
    code, symbols, _ = compiler.compile_instances(file, wide, 999)  # PTX, which is text
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)\n\}\n", code.decode(), re.DOTALL))
    for instance in wide:
        body = entries[symbols[instance.expression]]
        accesses = re.findall(r"(?:ld|st)\.global(?:\.nc)?\.v4\.(?:f32|u32|b32)", body)
        assert accesses, f"{instance.expression} has no 16-byte access"
