"""Records: how long it takes to reach a stated accuracy, in the manner of the public ones."""
