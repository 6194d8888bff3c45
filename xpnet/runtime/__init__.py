"""Settings and services of the whole process: threads, determinism, precision, events, late imports."""
