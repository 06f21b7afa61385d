"""Predicts the times of the CUDA kernels from operation counts; measures nothing.

    python benchmarks/predict_cuda.py --case p2_7x7 c4
    python benchmarks/predict_cuda.py --write

Counts the operations of every kernel in a case and multiplies them by assumed latencies and
bandwidths.
"""

import argparse

from cuda_model.page import PAGE, PREDICTED, render
from cuda_model.text import ALL

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case",
        nargs="+",
        choices=ALL,
        default=PREDICTED,
        metavar="NAME",
        help=f"cases among {', '.join(ALL)}; default: {', '.join(PREDICTED)}",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"write the page benchmarks/{PAGE.name} instead of printing it",
    )
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(render())
    else:
        print(render(options.case), end="")
