"""How long the CUDA kernels should take, by counting: what each kernel does in each benchmark case,
times assumed latencies and bandwidths.

kernels.py   the launch rules and block sizes of csrc/cuda, in Python
boxes.py     the boxes of a case: samples, touched rows and columns, bins that read them
counts.py    work of the kernels that serve boxes: forward, gradients of maps and boxes
tiles.py     work of the kernels that serve tiles: gradient of the features
calls.py     the launches of a backward pass
machine.py   assumptions, and blocks per multiprocessor
page.py      benchmarks/cuda_prediction.md
comparisons.py   its last part: former kernels, other choices, times out of reach
text.py      cases, and how the page writes numbers and tables
"""
