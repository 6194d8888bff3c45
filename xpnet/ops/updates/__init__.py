"""Update rules of the optimizers, on native arrays."""
