"""Cutting squares out of images without moving the landmarks by a fraction of a pixel.

Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)``, its centre lies at ``i + 0.5``, and
an image of width W spans the box from 0 to W. A crop then maps every point linearly,
``(point - corner) * size / side``, with no half-pixel terms.
"""

import math

import cv2
import numpy as np

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels."""

MARGIN = 0.3
"""Margin of inference around a face on each side, as a share of the longer side of its landmarks'
box."""
MARGINS, JITTER = (0.1, 0.4), 0.05
"""Smallest and largest margin of training, and the largest shift of the face from the picture's
centre, in the same unit."""
# Error of the landmarks found in a crop; nine of ten are within it.
_DOUBT = 0.05

# Samples that cubic interpolation reads beyond a box on each side.
_REACH = 3


def crop_square(
    image: np.ndarray,
    landmarks: np.ndarray,
    size: int = 320,
    margin: float = 0.4,
    angle: float = 0.0,
) -> tuple[np.ndarray, Box, np.ndarray]:
    """Cut out the square around a face.

    The square is centred on the landmarks' bounding box; its side is ``1 + 2 * margin`` times the
    longer side of that box. Outside the image its edge is repeated. With an angle, box and square
    are aligned with axes rotated by it.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (N, 2) in pixels of the image, x right and y down.
        size: Side of the crop in pixels.
        margin: Space on each side, as a share of the bounding box's longer side; not negative.
        angle: Clockwise rotation of the square about its centre in degrees; :func:`eye_angle` makes
            the eyes level.

    Returns:
        The crop (size, size, 3) uint8, the box of the unrotated square in pixels of the image (it
        may extend beyond it), and the landmarks (N, 2) float32 in pixels of the crop.

    Raises:
        ValueError: Landmarks are not finite or coincide, or the margin is negative.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"expected finite landmarks of shape (N, 2), got {points.shape}")
    if margin < 0:
        raise ValueError(f"expected a margin of 0 or more, got {margin}")
    turn = rotation(angle)
    # Coordinates along the square's own axes.
    points = points @ turn
    low, high = points.min(axis=0), points.max(axis=0)
    longer = float((high - low).max())
    if longer <= 0:
        raise ValueError(f"all landmarks lie at {tuple(low)}: they do not span a face")
    side = (1 + 2 * margin) * longer
    corner = (low + high) / 2 - side / 2
    inside = (points - corner) * (size / side)
    x, y = (turn @ ((low + high) / 2) - side / 2).tolist()
    box = (x, y, x + side, y + side)
    return crop_box(image, box, size, angle), box, inside.astype(np.float32)


def trained_framing(landmarks: np.ndarray, height: int, width: int) -> tuple[Box, float]:
    """The square to cut out of a picture that is already a face crop, to frame it as in training.

    A crop that training could have drawn is kept unchanged. Otherwise the square whose margin is
    nearest to ``MARGIN`` is chosen from those that lie within the crop. If none of them has at
    least the smallest margin of training, a tight crop is kept unchanged, and a face at the edge of
    a wide picture gets ``MARGIN``, although the square extends beyond the picture.

    Args:
        landmarks: (N, 2) in pixels of the crop.
        height: Height of the crop in pixels.
        width: Width of the crop in pixels.

    Returns:
        The square's box in pixels of the crop, and the largest margin within the picture, for
        :func:`is_trained_margin`.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    longer, centre = float((high - low).max()), (low + high) / 2
    middle, side = np.array([width, height]) / 2, max(width, height)
    # Negative if landmarks lie outside.
    room = float(min(*centre, *(2 * middle - centre)))
    fits = (2 * room / longer - 1) / 2
    whole = (side / longer - 1) / 2
    known = MARGINS[0] - _DOUBT <= whole <= MARGINS[1] + _DOUBT
    is_central = float(np.abs(centre - middle).max()) <= (JITTER + _DOUBT) * longer
    is_square = min(width, height) >= 0.9 * side
    if known and is_central and is_square:
        return _square(middle, side), min(whole, MARGINS[1])
    if is_trained_margin(fits):
        return _square(centre, (1 + 2 * min(fits, MARGIN)) * longer), min(fits, MARGIN)
    if whole <= MARGINS[1]:
        return _square(middle, side), fits
    return _square(centre, (1 + 2 * MARGIN) * longer), fits


def is_trained_margin(margin: float) -> bool:
    """Whether training may draw so small a margin, up to the error of the landmarks."""
    return margin >= MARGINS[0] - _DOUBT


def _square(centre: np.ndarray, side: float) -> Box:
    x, y = (centre - side / 2).tolist()
    return (x, y, x + side, y + side)


def eye_angle(landmarks: np.ndarray) -> float:
    """Tilt of a face: degrees from the horizontal to the line through its eyes.

    Args:
        landmarks: (68, 2) in pixels, iBUG 300-W order.

    Returns:
        Angle in (-180, 180], positive if the eye on the right of the picture is lower.
    """
    across = landmarks[42:48].mean(axis=0) - landmarks[36:42].mean(axis=0)
    return math.degrees(math.atan2(float(across[1]), float(across[0])))


def whole_box(height: int, width: int) -> Box:
    """The smallest square around a picture, centred on it."""
    side = max(height, width)
    x, y = (width - side) / 2, (height - side) / 2
    return x, y, x + side, y + side


def whole_square(image: np.ndarray, size: int) -> np.ndarray:
    """A whole picture as (size, size, 3) uint8, padded to a square by repeating its edge, so that
    faces keep their proportions; raises like :func:`crop_box`."""
    return crop_box(image, whole_box(*image.shape[:2]), size)


def crop_box(
    image: np.ndarray, box: Box, size: int, angle: float = 0.0, *, single_pass: bool = False
) -> np.ndarray:
    """Cut a square box out of an image and resize it.

    Shrinking averages areas, enlarging interpolates cubically; outside the image its edge is
    repeated. The corners may lie between pixels.

    Args:
        image: (H, W, 3) uint8.
        box: Square (x0, y0, x1, y1) in continuous pixels; it may extend beyond the image.
        size: Side of the result in pixels.
        angle: Clockwise rotation of the box about its centre in degrees.
        single_pass: What shrinks, to no less than half, is blurred as much as averaging areas
            does on average, and interpolated once: half the time, as sharp (the power is within
            5 % up to 0.7 of the highest frequency), but other bytes. For pictures to train on;
            what is enlarged or shrunk further is the same either way.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ValueError: The image is not (H, W, 3) uint8, the box is empty, not finite or not square, or
            the size is less than 1.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected (H, W, 3) uint8, got {image.dtype} {image.shape}")
    x0, y0, x1, y1 = (float(value) for value in box)
    side = x1 - x0
    if not (math.isfinite(x0 + y0 + x1 + y1) and side > 0):
        raise ValueError(f"expected a finite box with x0 < x1, got {box}")
    if abs((y1 - y0) - side) > 1e-3 * side:
        raise ValueError(f"expected a square box, got {side:.2f} x {y1 - y0:.2f} pixels")
    if size < 1:
        raise ValueError(f"expected a size of 1 or more, got {size}")

    turn = rotation(angle)
    # The upright square around the rotated one; without an angle the box itself.
    reach = side * (float(np.abs(turn[0]).sum()) - 1) / 2
    image, x, y = _surroundings(image, x0 - reach, y0 - reach, side + 2 * reach)
    centre = np.array([x, y]) + reach + side / 2
    height, width = image.shape[:2]
    scale = np.array([1.0, 1.0])
    factor = int(side / size / 2)
    if factor > 1:
        # A first, coarse reduction bounds the memory by the image instead of the box.
        small = (max(1, width // factor), max(1, height // factor))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        scale = np.array([small[0] / width, small[1] / height])
    length = side * scale.max()
    # An intermediate grid of about the image's own resolution carries the subpixel shift.
    grid = size if length <= size else math.ceil(length)
    if single_pass and size < length <= 2 * size:
        image = _blur_as_areas(image, length / size)
        grid = size
    linear = scale[:, None] * turn * (side / grid)
    # warpAffine counts pixel centres: continuous x is index x - 0.5.
    shift = centre * scale - linear @ np.full(2, grid / 2 - 0.5) - 0.5
    matrix = np.hstack([linear, shift[:, None]])
    crop = cv2.warpAffine(
        image,
        matrix,
        (grid, grid),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    if grid != size:
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    return crop


def _blur_as_areas(image: np.ndarray, ratio: float) -> np.ndarray:
    """Blur as averaging areas does that shrinks by ``ratio``, from 1 to 2.

    The weights of an average over ``ratio`` pixels that starts anywhere have the variance
    ``(ratio ** 2 + 1) / 12``, and these three have twice the outer one. It is a tenth larger here:
    so the power of photographs' high frequencies is matched as well.
    """
    outer = (ratio**2 + 1) / 22
    weights = np.float32([outer, 1 - 2 * outer, outer])
    return cv2.sepFilter2D(image, -1, weights, weights, borderType=cv2.BORDER_REPLICATE)


def rotation(angle: float) -> np.ndarray:
    """(2, 2): from the axes of a rotated square to those of the image, x right and y down."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[cos, -sin], [sin, cos]])


def _surroundings(
    image: np.ndarray, x0: float, y0: float, side: float
) -> tuple[np.ndarray, float, float]:
    """The part of the image that a box needs (at least one pixel), and the box's corner in it."""
    corners = []
    for start, length in ((x0, image.shape[1]), (y0, image.shape[0])):
        first = min(max(math.floor(start) - _REACH, 0), length - 1)
        last = min(max(math.ceil(start + side) + _REACH, first + 1), length)
        corners.append((first, last))
    (left, right), (top, bottom) = corners
    return np.ascontiguousarray(image[top:bottom, left:right]), x0 - left, y0 - top
