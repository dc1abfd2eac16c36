"""What `eval.tables` and `eval.compare_variants` run; experiments, no part of the package."""
