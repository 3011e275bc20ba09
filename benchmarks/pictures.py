"""Two pictures of what `python -m benchmarks` has measured: beside the peers, and how time
grows.

python benchmarks/pictures.py results.json DIRECTORY
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from generate import BFLOAT16, CT2, FLAX, FLOAT32, FLOATS, GROWTH, HF, INT8, OURS
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator


COLOURS = {OURS: "#0b7285", HF: "#e8590c", FLAX: "#f2b705", CT2: "#868e96"}
SHADES = {FLOAT32: 1.0, BFLOAT16: 0.7, **dict.fromkeys(FLOATS, 0.45)}
ENGINES = [
    *((OURS, dtype) for dtype in SHADES),
    (HF, FLOAT32),
    (HF, BFLOAT16),
    (FLAX, FLOAT32),
    (FLAX, BFLOAT16),
    (CT2, FLOAT32),
    (CT2, INT8),
]
AXES = {
    "source": "source tokens",
    "new_tokens": "new tokens a row",
    "batch": "rows",
    "beams": "beams",
}


def beside(records: list[dict[str, Any]]) -> Figure:
    """Tokens per second of all engines, a group of bars for each case."""
    cases = list(dict.fromkeys(record["case"] for record in records))
    rates = {
        (record["case"], record["engine"], record["dtype"]): record[
            "tokens_per_second_median"
        ]
        for record in records
    }
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    subplots = figure.subplots(1, len(cases), squeeze=False)[0]
    for axes, case in zip(subplots, cases, strict=True):
        shown = [engine for engine in ENGINES if (case, *engine) in rates]
        bars = axes.bar(
            range(len(shown)),
            [rates[case, *engine] for engine in shown],
            color=[COLOURS[name] for name, _ in shown],
            width=0.85,
        )
        for bar, (_, dtype) in zip(bars, shown, strict=True):
            bar.set_alpha(SHADES[dtype])
        axes.bar_label(bars, fmt="%.0f", fontsize=6)
        axes.set_title(title_of(case), fontsize=8)
        axes.set_xticks(range(len(shown)), [dtype for _, dtype in shown])
        axes.tick_params(axis="x", labelrotation=90, labelsize=7)
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    subplots[0].set_ylabel("tokens/s", fontsize=8)
    handles = [Patch(color=colour) for colour in COLOURS.values()]
    figure.legend(handles, COLOURS, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def title_of(case: str) -> str:
    """A case, as `generate.py` names it, in two lines."""
    size, batch, search, source, _ = case.split("/")
    rows = "1 row" if batch == "1" else f"{batch} rows"
    return f"{size}, {rows}, {search}\n{source} source tokens"


def growth(records: list[dict[str, Any]]) -> Figure:
    """Seconds by what grows, a line for each engine."""
    seconds = {
        (record["case"], record["engine"], record["dtype"]): statistics.median(
            record["seconds"]
        )
        for record in records
    }
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    for axes, (name, cases) in zip(figure.subplots(1, 4), GROWTH.items(), strict=True):
        sizes = [getattr(case, name) for case in cases]
        for engine, dtype in ENGINES:
            times = [seconds.get((str(case), engine, dtype), np.nan) for case in cases]
            if not np.isnan(times).all():
                axes.plot(
                    sizes,
                    times,
                    marker="o",
                    markersize=3,
                    color=COLOURS[engine],
                    linestyle="-" if dtype == FLOAT32 else ":",
                    label=f"{engine}, {dtype}",
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, sizes)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(AXES[name], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def main() -> None:
    """Draws what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    results = json.loads(args.results.read_text(encoding="utf-8"))
    for name, draw in (("generate", beside), ("growth", growth)):
        if report := results.get(name, {}).get("newest"):
            figure = draw(report["results"])
            figure.savefig(args.directory / f"{name}.png", dpi=160)


if __name__ == "__main__":
    main()
