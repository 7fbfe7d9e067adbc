"""What the figures were taken on, in words."""

import os
import platform
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
