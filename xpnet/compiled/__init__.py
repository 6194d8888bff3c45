"""Executors: whole models and training steps as CUDA graphs, or as planned lists of NumPy calls."""
