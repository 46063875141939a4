"""What trackers log of a row."""

from collections.abc import Mapping
from typing import Any


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row by name, with latency and speed-up for each setting once they are measured."""
    found = {name: float(row[name]) for name in ("parameters", "macs", "size_bytes", "seconds")}
    found["accuracy"] = float(row["accuracy"]["value"])
    for entry in row.get("latency", ()):
        if "median_ms" in entry:
            setting = f"{entry['engine']}-{entry['device']}-{entry['threads']}-threads-batch-{entry['batch']}"
            found |= {f"latency_ms/{setting}": entry["median_ms"], f"speedup/{setting}": entry["speedup"]}
    return found
