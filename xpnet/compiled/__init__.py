"""What runs a whole model or training step at once: CUDA graphs, and planned lists of NumPy calls."""
