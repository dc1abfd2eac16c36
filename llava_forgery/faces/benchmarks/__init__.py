"""Readers of public benchmarks in their original layout, for ``data prepare``.

Label, split, video, method, compression, mask and, if the benchmark gives it, the identity come
from the benchmark's own files. Missing, unknown or duplicate entries raise an error that names
them.
"""
