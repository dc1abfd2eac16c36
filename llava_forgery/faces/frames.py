"""A decoded frame of a video as players show it: colours, shape of its pixels, orientation."""

import logging
import math
from functools import cache
from typing import Any

import cv2
import numpy as np

logger = logging.getLogger(__name__)

# Numbers of ITU-T H.273, as PyAV gives them.
_RGB, _UNSPECIFIED, _BT601 = 0, 2, 5
_MATRICES = {_RGB, 1, _UNSPECIFIED, 4, _BT601, 6, 7, 9, 10}
_FULL_RANGE = 2
PQ, HLG = 16, 18
TRANSFERS = {PQ: "PQ", HLG: "HLG"}
"""Numbers of the transfer functions of high dynamic range."""

# Assumed luminance of diffuse white and of the peak, in cd/m2 (ITU-R BT.2408).
_WHITE, _PEAK = 203.0, 1000.0
_TO_BT709 = np.float32(
    [
        [1.660491, -0.587641, -0.072850],
        [-0.124550, 1.132900, -0.008349],
        [-0.018151, -0.100579, 1.118730],
    ]
)
_LUMA_BT2020 = np.float32([[0.2627, 0.6780, 0.0593]])


def to_rgb(frame: Any, transfer: int = 0) -> np.ndarray:
    """The stored pixels of a frame, in the colours that it declares.

    Without a declaration the matrix is BT.601's, as in FFmpeg. High dynamic range is converted to
    the standard range: up to half of diffuse white pixels are unchanged, brighter ones are
    compressed (ITU-R BT.2390). Transparent pixels are blended with white.

    Args:
        frame: Frame of PyAV.
        transfer: Number of the stream's transfer function; only used if it is in ``TRANSFERS``.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: The colours are not supported, such as YCgCo.
    """
    if frame.colorspace not in _MATRICES:
        raise ValueError(f"its colours are of matrix {frame.colorspace} (ITU-T H.273), which is "
                         "not read; convert it to BT.709")  # fmt: skip
    if transfer in TRANSFERS:
        return _tone_mapped(_converted(frame, "rgb48le"), transfer)
    transparent = frame.format.name == "pal8" or any(
        component.is_alpha for component in frame.format.components
    )
    if not transparent:
        return _converted(frame, "rgb24")
    pixels = _converted(frame, "rgba").astype(np.uint16)
    alpha = pixels[..., 3:]
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def square_pixels(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """Enlarge a frame along one axis so that its pixels are square.

    Args:
        pixels: (H, W, 3).
        aspect: Width of a stored pixel over its height.
    """
    height, width = pixels.shape[:2]
    if aspect > 1:
        width = round(width * aspect)
    else:
        height = round(height / aspect)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def upright(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Rotate and mirror a frame according to its display matrix.

    Args:
        pixels: (H, W, 3).
        matrix: (9,) of the QuickTime family: a stored point (x, y) is shown at
            (m0 x + m3 y, m1 x + m4 y). None leaves the frame unchanged.

    Raises:
        ValueError: The rotation is not by quarter turns.
    """
    if matrix is None or not matrix[[0, 1, 3, 4]].any():
        return pixels
    a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
    lying = abs(b) > abs(a)
    if abs(a if lying else b) > 0.02 * abs(b if lying else a):
        angle = math.degrees(math.atan2(b, a))
        raise ValueError(
            f"it is to be shown rotated by {angle:.0f} degrees; expected quarter turns: rotate "
            "the pixels themselves"
        )
    if lying:
        pixels = pixels.swapaxes(0, 1)
    if (c if lying else a) < 0:
        pixels = pixels[:, ::-1]
    if (b if lying else d) < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def display_matrix(frame: Any) -> np.ndarray | None:
    """(9,) int32 of a frame's side data; None if there is none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(data, dtype=np.int32, count=9)


def _converted(frame: Any, form: str) -> np.ndarray:
    name = frame.format.name
    if name == form:
        return frame.to_ndarray()
    grey = name.startswith(("gray", "ya"))
    full = frame.color_range == _FULL_RANGE or name.startswith("yuvj")
    # FFmpeg assumes full range for grey unless declared otherwise.
    full = full or (grey and frame.color_range != 1)
    matrix = _BT601 if frame.colorspace in (_RGB, _UNSPECIFIED) else frame.colorspace
    # PyAV applies matrix and range only if they differ from the target's.
    return frame.reformat(
        format=form,
        src_colorspace=matrix,
        dst_colorspace=_BT601,
        src_color_range=_FULL_RANGE if full else 1,
        dst_color_range=1,
    ).to_ndarray()


def _tone_mapped(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """Convert (H, W, 3) uint16 of BT.2020 in PQ or HLG to sRGB."""
    linear, dimming, encode = _curves(transfer)
    light = linear[pixels]
    if transfer == HLG:
        # From scene light to the light of a display with that peak.
        luma = cv2.transform(light, _LUMA_BT2020)
        light *= (_PEAK * np.maximum(luma, 1e-6) ** 0.2)[..., None]
    light = np.maximum(cv2.transform(light, _TO_BT709), 0)
    brightest = light.max(axis=2)
    light *= dimming[_index(brightest / _PEAK)][..., None] / _WHITE
    return encode[_index(light)]


def _index(values: np.ndarray) -> np.ndarray:
    """Indices of values in [0, 1] in tables with finer steps in the dark."""
    return (np.sqrt(np.clip(values, 0, 1)) * 65535).astype(np.uint16)


@cache
def _curves(transfer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tables of 65536: code to light; share of the peak to factor; share of white to sRGB."""
    code = np.linspace(0, 1, 65536)
    if transfer == PQ:
        linear = _pq_light(code)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        linear = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    light = np.maximum(code**2 * _PEAK, 1e-4)
    dimming = np.minimum(_rolled_off(light) / light, 1)
    share = code**2
    encoded = np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)
    return (
        linear.astype(np.float32),
        dimming.astype(np.float32),
        (255 * encoded).round().astype(np.uint8),
    )


def _rolled_off(light: np.ndarray) -> np.ndarray:
    """The EETF of ITU-R BT.2390: cd/m2 up to the peak to cd/m2 up to diffuse white."""
    top = _pq_code(np.float64(_PEAK))
    most = _pq_code(np.float64(_WHITE)) / top
    value = np.minimum(_pq_code(light) / top, 1)
    knee = 1.5 * most - 0.5
    t = np.clip((value - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * most
    )
    return _pq_light(np.where(value < knee, value, spline) * top)


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_light(code: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: code in [0, 1] to cd/m2."""
    power = code ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _pq_code(light: np.ndarray) -> np.ndarray:
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
