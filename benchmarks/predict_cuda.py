"""Predict the times of the CUDA kernels by counting; nothing is measured.

python benchmarks/predict_cuda.py [--case NAME...] [--write]
"""

import argparse

from cuda_model.page import PAGE, PREDICTED, render
from cuda_model.text import ALL

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=ALL, default=PREDICTED, metavar="NAME")
    parser.add_argument("--write", action="store_true", help=f"all cases, to {PAGE.name}")
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(render())
    else:
        print(render(options.case), end="")
