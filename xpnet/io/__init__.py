"""Files: models, checkpoints and other libraries' formats. Nothing is pickled, and reading a file runs no code from it."""
