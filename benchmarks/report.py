"""What a benchmark leaves: the machine, the figures, and how many times as fast we are."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any


PACKAGES = ("jax", "torch", "transformers", "ctranslate2")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How many times as fast we do a work as another does it."""

    work: str
    against: str
    ratio: float


def write(path: Path | None, results: Any, comparisons: Sequence[Comparison] = ()) -> None:
    """Writes the figures of a benchmark, if a file was asked for."""
    if path is not None:
        compared = [dataclasses.asdict(one) for one in comparisons]
        report = {"machine": machine(), "results": results, "comparisons": compared}
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What figures are measured on; other work there, by the load, spoils them."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def version(package: str) -> str | None:
    """The version of what is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The name of the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
