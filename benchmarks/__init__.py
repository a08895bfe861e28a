"""How fast the kernels are, beside a naive reference: python -m benchmarks NAME."""
