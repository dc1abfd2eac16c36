"""Others' weights, brought into our formats."""
