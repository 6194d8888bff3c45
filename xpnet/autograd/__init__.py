"""Gradients: Tensors on a tape, Parameters in flat arrays, and gradient checkpointing."""
