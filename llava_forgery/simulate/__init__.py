"""Simulated forgeries: from a FaceCrop to a forged face, its mask and its regions."""
