"""The update rules of the optimizers, on native arrays."""
