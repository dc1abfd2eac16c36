"""Changes of 8-bit pictures with OpenCV: colour, sharpness, resolution, compression, noise.

All functions take and return (H, W, 3) uint8 RGB.
"""

import math

import cv2
import numpy as np

# Rec. 601: what counts as the brightness that a change of the saturation keeps.
LUMA = (0.299, 0.587, 0.114)
# Sharpening's blur: 5 x 5 with this standard deviation.
SHARPEN_SIGMA = 1.2


def colour_matrix(
    *,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    hue: float = 0.0,
    saturation: float = 1.0,
    contrast: float = 1.0,
    brightness: float = 0.0,
    grey: float = 0.5,
) -> np.ndarray:
    """All changes of colour as one affine map of RGB, so that they cost one pass and one rounding.

    In this order: the channels are shifted, the hue turns about the grey axis, the saturation
    scales the distance from the luma, the contrast the distance from ``grey``, then brightness is
    added.

    Each number may be an array (B,) as well.

    Args:
        shift: Of red, green and blue, in units of the full range.
        hue: Turn in radians.
        saturation: Factor.
        contrast: Factor.
        brightness: In units of the full range.
        grey: What the contrast leaves as it is, in [0, 1].

    Returns:
        (3, 4) float64 for columns (red, green, blue, 1) in [0, 1], or (3, 4, B).
    """
    cos, sine = np.cos(hue), np.sin(hue) / math.sqrt(3)
    third = (1 - cos) / 3
    turn = np.array(
        [
            [cos + third, third - sine, third + sine],
            [third + sine, cos + third, third - sine],
            [third - sine, third + sine, cos + third],
        ]
    )
    luma = LUMA[0] * turn[0] + LUMA[1] * turn[1] + LUMA[2] * turn[2]
    linear = contrast * (saturation * turn + (1 - saturation) * luma)
    red, green, blue = shift
    offset = linear[:, 0] * red + linear[:, 1] * green + linear[:, 2] * blue
    offset += (1 - contrast) * grey + brightness
    return np.concatenate([linear, offset[:, None]], axis=1)


def recolour(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a :func:`colour_matrix`."""
    scaled = matrix.astype(np.float32)
    scaled[:, 3] *= 255
    return cv2.transform(image, scaled)


def mean_grey(image: np.ndarray) -> float:
    """Mean of all channels, in [0, 1]."""
    return sum(cv2.mean(image)[:3]) / (3 * 255)


def sharpen(image: np.ndarray, amount: float) -> np.ndarray:
    """Unsharp mask: the distance from a blurred picture grows by ``amount``, 0 or more."""
    blurred = cv2.GaussianBlur(image, (5, 5), SHARPEN_SIGMA)
    return cv2.addWeighted(image, 1 + amount, blurred, -amount, 0)


def reduced_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width) of a picture of ``size`` after a reduction by ``factor``."""
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


def reduce(image: np.ndarray, factor: float) -> np.ndarray:
    """Reduce by ``factor``, 1 or more, averaging areas."""
    height, width = reduced_size(image.shape[:2], factor)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def enlarge(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring to (height, width), bilinearly."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring to (height, width): averages areas to shrink, interpolates cubically to enlarge."""
    if image.shape[:2] == size:
        return image
    shrink = size[0] < image.shape[0]
    method = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode as JPEG of a quality of 1 to 100."""
    # OpenCV's channel order is blue, green, red.
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
