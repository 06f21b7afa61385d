"""Makes the paper's tables and figures on generated images and photographs, with controls.

    python examples/study_mrrcnn.py --data shape --runs 0 1 2
    python examples/study_mrrcnn.py --data bin --data-dir FOLDER --runs 0 1 2 3
    python examples/study_mrrcnn.py --report-only

The data are generated images whose classes differ in shape or color, or photographs (bin,
mushrooms), which the converters in examples/study/datasets write. A run is a seed; for photographs,
also a fold.

Each row trains or evaluates one model and is written as soon as it is complete. Existing rows are
skipped, and an interrupted training resumes from its last checkpoint. The study can therefore be
interrupted, and each run can be a separate process:

    for run in 0 1 2; do python examples/study_mrrcnn.py --runs $run --threads 1 & done

All rows except the first start from the same weights and see the same images in every iteration.
All weights train unless a row says otherwise. The controls, which the paper's tables lack, continue
to train Mask R-CNN for as many iterations as the refining module, and for as much time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from study.report import write_report
from study.rows import GROUPS, ROWS
from study.run import Run
from study.settings import DATA, PRESETS
from study.splits import open_splits

RESULTS = Path(__file__).with_name("results")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="cpu",
        help="sizes of models and schedules; smoke takes seconds, for a trial; default %(default)s",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        choices=DATA,
        default=["shape"],
        help="shape and color are generated, bin and mushrooms are photographs in --data-dir; "
        "default: shape",
    )
    parser.add_argument(
        "--runs", nargs="+", type=int, default=[0], help="seeds, or folds of photographs; default 0"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=[*GROUPS, *ROWS],
        metavar="ROW",
        default=["main"],
        help=f"groups ({', '.join(GROUPS)}) or rows ({', '.join(ROWS)}); the rows on which they "
        "depend are also made; default: main",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--workers", type=int, default=0, help="loader processes; default %(default)s"
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device such as cpu or cuda:1; default here: %(default)s",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the rows; default %(default)s"
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("runs/study"),
        help="folder of generated images, weights and metrics; default %(default)s",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("runs/data"),
        help="folder of converted photographs: bin/fold0 and so on; default %(default)s",
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write the tables from the existing rows"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    names = [row for name in args.rows for row in GROUPS.get(name, [name])]
    for number in args.runs:
        for data in args.data:
            setting = PRESETS[args.preset][data]
            study = Run(
                setting,
                open_splits(setting, data, number, args.work_dir, args.data_dir),
                f"{args.preset}-{data}-{number}",
                number,
                folder=args.results / "runs",
                work_dir=args.work_dir,
                device=args.device,
                workers=args.workers,
            )
            study.make(names)
            if number == 0 and data != "bin":  # the pictures of bin have no licence
                study.picture()


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.report_only:
        run(args)
    print(f"Wrote {write_report(args.results)}.")


if __name__ == "__main__":
    main()
