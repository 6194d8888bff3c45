"""A fuzzer of every reader of files: mutated files, seeded, with what must hold for each of them.

``python -m tests.fuzz --files 20000`` runs it by hand; `tests/test_fuzz.py` runs a short part of it.
"""
