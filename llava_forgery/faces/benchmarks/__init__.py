"""Public benchmarks by their own folders, read into the records that ``data prepare`` takes.

Label, split, video, method, compression, mask and, where the benchmark says it, the identity come
from the benchmark's own files. What is missing, unknown or in two places is an error that names it.
"""
