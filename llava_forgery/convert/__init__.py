"""Conversion of third-party weights to our formats."""
