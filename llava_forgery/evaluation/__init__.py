"""Measures of detectors and of a host's answers."""
