"""Benchmarks of the op library: ``python -m benchmarks.<name>``. Results lie in `results/`, one folder a machine."""
