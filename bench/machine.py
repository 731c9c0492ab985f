"""Facts about the machine that a reader needs to judge the numbers.

Owns: reading them. Must never: include anything that identifies the machine or its user.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

VERSIONS: dict[str, list[str]] = {
    "haproxy": ["haproxy", "-v"],
    "socat": ["socat", "-V"],
    "pasta": ["dpkg-query", "-W", "-f", "${Version}", "passt"],
    "bubblewrap": ["bwrap", "--version"],
    "podman": ["podman", "--version"],
    "nginx": ["nginx", "-v"],
    "node": ["node", "--version"],
}


def read_facts() -> dict[str, str]:
    """Kernel, processor, memory, Python and the versions of the peers."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    memory = Path("/proc/meminfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*:\s*(.*)$", cpu, re.MULTILINE)
    total = re.search(r"^MemTotal:\s*(\d+) kB", memory, re.MULTILINE)
    facts = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "kernel": re.sub(r"[^0-9.].*", "", platform.release()),
        "processor": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{int(total[1]) // 1024 // 1024 if total else 0} GiB",
        "python": platform.python_version(),
        "user": "root" if os.getuid() == 0 else "a plain user",
    }
    return facts | {
        name: found for name, command in VERSIONS.items() if (found := _version(command))
    }


def _version(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    number = re.search(r"\d+[\d.]*(?:[\w.+~-]*)", done.stdout + done.stderr)
    return number[0] if number else ""
