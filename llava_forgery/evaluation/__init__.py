"""Measures of detectors and of what a host says, and what its words mean."""
