"""Blending a foreground into a background under a mask: alpha and Poisson.

Source: LVLM-DFD, equation 6; Perez et al., "Poisson Image Editing" (2003). Both work on one 8-bit
picture.
"""

from functools import lru_cache

import cv2
import numpy as np
import scipy.fft


def alpha_blend(
    foreground: np.ndarray, background: np.ndarray, mask: np.ndarray, opacity: float = 1.0
) -> np.ndarray:
    """``M * foreground + (1 - M) * background`` with ``M = opacity * mask`` (equation 6).

    Args:
        foreground: (H, W, 3) uint8.
        background: (H, W, 3) uint8.
        mask: (H, W) uint8, 255 inside.
        opacity: Factor of the mask in (0, 1].

    Returns:
        (H, W, 3) uint8; exactly the background where the mask is 0.
    """
    weight = cv2.multiply(mask, opacity / 255, dtype=cv2.CV_32F)
    return cv2.blendLinear(foreground, background, weight, 1 - weight)


def poisson_blend(
    foreground: np.ndarray, background: np.ndarray, mask: np.ndarray, erosion: int = 0
) -> np.ndarray:
    """Seamless cloning: the gradients of the foreground inside the mask, of the background outside.

    The Poisson equation is solved exactly by sine transforms on the mask's bounding rectangle,
    with the background on the rectangle's edge as the boundary value. With ``erosion=3`` it is the
    problem that ``cv2.seamlessClone`` solves for ``NORMAL_CLONE`` (OpenCV 4 and 5,
    ``modules/photo/src/seamless_cloning_impl.cpp``), which rounds down where this rounds.

    Args:
        foreground: (H, W, 3) uint8.
        background: (H, W, 3) uint8.
        mask: (H, W) uint8; over 127 counts as inside.
        erosion: Pixels by which the foreground's gradients stay away from the mask's edge.

    Returns:
        (H, W, 3) uint8; it differs from the background in the mask's bounding rectangle only.
    """
    inside = cv2.compare(mask, 127, cv2.CMP_GT)
    # The picture's own edge is a boundary value at the least.
    inside[[0, -1]] = 0
    inside[:, [0, -1]] = 0
    x, y, width, height = cv2.boundingRect(inside)
    result = background.copy()
    if width < 3 or height < 3:
        return result
    box = np.s_[y : y + height, x : x + width]
    if erosion:
        # Before the cut: beyond the rectangle lies outside, too.
        inside = cv2.erode(inside, np.ones((3, 3), np.uint8), iterations=erosion)
    inside = inside[box]
    # The solution is background + correction with the correction 0 on the edge, so that only
    # the difference of the two pictures' gradients inside the mask enters the right-hand side.
    difference = cv2.subtract(foreground[box], background[box], dtype=cv2.CV_32F)
    planes = np.stack(cv2.split(difference))
    used = (inside > 0).astype(np.float32)
    right = (planes[:, 1:-1, 1:] - planes[:, 1:-1, :-1]) * used[1:-1, :-1]
    down = (planes[:, 1:, 1:-1] - planes[:, :-1, 1:-1]) * used[:-1, 1:-1]
    divergence = right[:, :, 1:] - right[:, :, :-1]
    divergence += down[:, 1:]
    divergence -= down[:, :-1]
    correction = cv2.merge(list(_solve(divergence)))
    inner = np.s_[y + 1 : y + height - 1, x + 1 : x + width - 1]
    result[inner] = cv2.add(background[inner], correction, dtype=cv2.CV_8U)
    return result


def _solve(divergence: np.ndarray) -> np.ndarray:
    """Solve Laplacian(u) = divergence (3, h, w) with u = 0 around the rectangle."""
    rows, columns = (sine_eigenvalues(n) for n in divergence.shape[1:])
    spectrum = scipy.fft.dstn(divergence, type=1, axes=(1, 2), norm="ortho", overwrite_x=True)
    spectrum /= rows[:, None] + columns
    return scipy.fft.dstn(spectrum, type=1, axes=(1, 2), norm="ortho", overwrite_x=True)


@lru_cache(maxsize=1024)
def sine_eigenvalues(n: int) -> np.ndarray:
    """Eigenvalues (n,) float32 of the 1-D Laplacian with zeros at both ends."""
    return (2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) - 2).astype(np.float32)
