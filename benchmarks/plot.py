"""Draws benchmark rows: python benchmarks/plot.py ROWS.jsonl [PICTURE.png]

One panel per case and mode, one bar per provider and layout, annotated with the share of the limit.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(rows_path: Path, picture: Path) -> None:
    rows = [json.loads(line) for line in rows_path.read_text().splitlines()]
    cases = list(dict.fromkeys((row["case"], row["dtype"]) for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    figure, panels = plt.subplots(
        len(cases), len(modes), squeeze=False, figsize=(5 * len(modes), 3.2 * len(cases))
    )
    for line, (case, dtype) in zip(panels, cases, strict=True):
        for panel, mode in zip(line, modes, strict=True):
            shown = [
                row
                for row in rows
                if (row["case"], row["dtype"], row["mode"]) == (case, dtype, mode)
            ]
            bars = panel.barh(
                [f"{row['provider']}\n{row['layout']}" for row in shown],
                [row["median_seconds"] * 1e3 for row in shown],
                color=[f"C{providers.index(row['provider'])}" for row in shown],
            )
            panel.bar_label(bars, [f"{row['fraction_of_limit']:.0%}" for row in shown], fontsize=7)
            panel.invert_yaxis()
            panel.tick_params(labelsize=7)
            panel.set_title(f"{case}, {dtype}: {mode}", fontsize=9)
            panel.set_xlabel("milliseconds; label: share of the copy-bandwidth limit", fontsize=7)
    identity = rows[0]["identity"]
    figure.suptitle(
        f"{identity['device']}, {identity['cpu']}, {identity['threads']} threads, "
        f"torch {identity['torch']}, {identity['time']}",
        fontsize=8,
    )
    figure.tight_layout()
    figure.savefig(picture, dpi=150)
    print(picture)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2] if len(sys.argv) == 3 else sys.argv[1]).with_suffix(".png"),
    )
