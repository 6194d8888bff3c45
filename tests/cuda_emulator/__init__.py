"""An emulator for CUDA kernels and the code that launches them, on a CPU; see `emulator`."""
