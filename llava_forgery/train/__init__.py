"""Training of the detector, of adapters and of pseudo-words."""
