"""Names of the facial regions that a mask of the forged area, such as a benchmark's, covers."""

import numpy as np

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE
from llava_forgery.faces.regions import hull_mask

COVERED = 0.5
"""Smallest covered share of a region's hull for which the region is named."""
WHOLE = 0.8
"""Smallest covered share of the hull of all landmarks for which the whole inner face is named."""
# Brighter pixels are forged; compression leaves grey ones along the edge.
_BRIGHT = 127


def covered_regions(mask: np.ndarray, landmarks: np.ndarray) -> tuple[str, ...]:
    """Name the regions that a mask covers.

    A region is the hull that simulated forgeries fill (:mod:`llava_forgery.faces.regions`), so that
    names mean the same for benchmarks and simulated forgeries. A mask that covers less than
    ``COVERED`` of every region, but touches some, gives the one that it covers most.

    Args:
        mask: (S, S) uint8, bright where forged.
        landmarks: (68, 2) pixels of the mask, x right and y down.

    Returns:
        Names in the order of ``REGION_NAMES``; none if the mask touches no part of the face.

    Raises:
        ValueError: Shape or dtype of the mask differ, or no region lies within it.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"expected a mask (H, W) uint8, got {mask.shape} {mask.dtype}")
    forged = mask > _BRIGHT
    shares = {}
    for name in REGION_NAMES:
        hull = hull_mask((name,), landmarks, mask.shape) > 0
        # A region outside the picture is neither forged nor untouched.
        if hull.any():
            shares[name] = float(forged[hull].mean())
    if WHOLE_FACE not in shares:
        raise ValueError("the landmarks lie outside the mask; both must be of one picture")
    if shares.pop(WHOLE_FACE) >= WHOLE:
        return (WHOLE_FACE,)
    named = tuple(name for name, share in shares.items() if share >= COVERED)
    if not named and max(shares.values(), default=0) > 0:
        named = (max(shares, key=lambda name: shares[name]),)
    return named
