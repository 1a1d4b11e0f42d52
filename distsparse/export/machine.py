"""The machine that a measurement was made on."""

from __future__ import annotations

import os
import platform
import re
import socket
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def describe() -> dict[str, str | int]:
    """Return hostname, cpu, num_cpus, accelerator, python_version and torch_version of this process.

    ``num_cpus`` are the ones that the process may run on; ``accelerator`` is empty without a CUDA device.
    """
    return {
        "hostname": socket.gethostname(),
        "cpu": _cpu_name(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
    }


def _cpu_name() -> str:
    cpuinfo = _CPUINFO.read_text() if _CPUINFO.is_file() else ""
    # ARM kernels have no model name in /proc/cpuinfo.
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return name.group(1).strip() if name else platform.processor() or platform.machine()
