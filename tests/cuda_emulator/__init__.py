"""Runs the CUDA kernels and everything that launches them on a CPU; see `emulator`."""
