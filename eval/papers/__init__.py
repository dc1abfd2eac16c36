"""Experiments of `eval.tables` and `eval.compare_variants`, not part of the package."""
