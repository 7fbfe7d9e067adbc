"""What the figures were taken on, in words."""

import os
import platform
import subprocess
from pathlib import Path

# Instruction sets that decide how fast matrices are multiplied, worst first.
SETS = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"]


def cpu(text=None):
    """The processor's name and which of SETS it has, from /proc/cpuinfo."""
    if text is None:
        text = Path("/proc/cpuinfo").read_text()
    fields = {}
    for line in text.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = fields.get("flags", "").split()
    return {"model": fields.get("model name", platform.machine()), "sets": [name for name in SETS if name in flags]}


def threads():
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def nvidia_smi(*arguments):
    """What NVIDIA's tool answers, "" where there is none."""
    try:
        command = ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def device():
    """The first CUDA device and its driver, "" where there is none."""
    return ", driver ".join(nvidia_smi("--query-gpu=name,driver_version").partition("\n")[0].split(", "))


def device_memory(pid, text=None):
    """Bytes that a process holds on the CUDA devices, caches of its allocator included; None where the driver does not say."""
    if text is None:
        text = nvidia_smi("--query-compute-apps=pid,used_memory")
    rows = [line.split(", ") for line in text.splitlines()]
    held = [int(row[1]) for row in rows if len(row) == 2 and row[0] == str(pid) and row[1].isdecimal()]
    return sum(held) << 20 if held else None
