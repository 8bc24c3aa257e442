"""Plain-torch references of the kernels, the definition that each kernel is tested against."""
