"""The output layer's kernels for CUDA devices: Triton, and the matrix products of cuBLAS where they win."""
