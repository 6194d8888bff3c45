"""A CUDA device in software: the unmodified CuPy wheel runs on a CPU. See README.md.

Nothing here imports the project whose tests it runs: the folder can be copied into another one.
"""
