"""Pictures of a verdict: photograph, map, and where the ground truth is known, the mask."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava_forgery.infer.verdict import Verdict

# Height of a caption of two lines.
CAPTION = 46
# Of a drawn photograph, in pixels: larger ones are reduced, as no screen shows them.
_LONGEST = 2048
BAND_COLOURS = {"real": "lime", "uncertain": "orange", "fake": "red"}


def heat_overlay(image: np.ndarray, mask: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Lay a map over a picture in colours, the more the higher its value.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (h, w) in [0, 1]; brought to the picture's size.
        strength: Weight of the colours where the mask is 1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    mask = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((255 * mask).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = strength * mask[..., None]
    mixed = image * (1 - weight) + colours[..., ::-1] * weight
    return mixed.round().clip(0, 255).astype(np.uint8)


def paste_mask(verdict: Verdict, height: int, width: int) -> np.ndarray:
    """The map of a verdict at its place in the photograph.

    Args:
        verdict: With ``mask`` over ``box``.
        height: Of the photograph.
        width: Of the photograph.

    Returns:
        (height, width) float32 in [0, 1], 0 outside the box.
    """
    x0, y0, x1, y1 = verdict.box
    side = verdict.mask.shape[0]
    # Pixel centres of the mask onto those of the photograph.
    scale_x, scale_y = (x1 - x0) / side, (y1 - y0) / side
    matrix = np.array(
        [
            [scale_x, 0, x0 + (scale_x - 1) / 2],
            [0, scale_y, y0 + (scale_y - 1) / 2],
        ],
        np.float32,
    )
    return cv2.warpAffine(verdict.mask, matrix, (width, height), flags=cv2.INTER_LINEAR)


def side_by_side(panels: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Pictures of equal height in a row, each under its caption.

    Args:
        panels: Caption and (H, W, 3) or (H, W) uint8.
    """
    height = panels[0][1].shape[0]
    width = sum(panel.shape[1] for _, panel in panels)
    sheet = Image.new("RGB", (width, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    x = 0
    for caption, panel in panels:
        sheet.paste(Image.fromarray(panel), (x, CAPTION))
        draw.text((x + 6, 5), caption, fill="black", font=font)
        x += panel.shape[1]
    return sheet


def caption_of(verdict: Verdict) -> str:
    """Band, score and P(yes), and a second line where they disagree or the picture is unusual."""
    said = "" if verdict.p_yes is None else f"  P(yes) {verdict.p_yes:.2f}"
    notes = ["they disagree"] if verdict.agree is False else []
    notes += ["see warnings"] if verdict.warnings else []
    tail = f"\n({', '.join(notes)})" if notes else ""
    return f"{verdict.band}  score {verdict.score:.2f}{said}{tail}"


def photograph_overlay(
    image: np.ndarray, verdicts: Sequence[Verdict], caption: str = "photograph"
) -> Image.Image:
    """The photograph beside the maps of all its faces.

    Args:
        image: (H, W, 3) uint8 RGB; of more than 2048 pixels on its longer side it is reduced.
        verdicts: Of its faces.
        caption: Over the picture itself.
    """
    scale = min(1.0, _LONGEST / max(image.shape[:2]))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        verdicts = [replace(v, box=tuple(scale * x for x in v.box)) for v in verdicts]
    height, width = image.shape[:2]
    mask = np.max([paste_mask(v, height, width) for v in verdicts], axis=0)
    drawn = Image.fromarray(heat_overlay(image, mask))
    draw = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(14, height // 40))
    for verdict in verdicts:
        x0, y0, x1, y1 = verdict.box
        colour = BAND_COLOURS[verdict.band]
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=max(2, height // 300))
        corner = (max(x0, 0) + 6, max(y0, 0) + 6)
        text = caption_of(verdict)
        left, top, right, bottom = draw.textbbox(corner, text, font=font)
        # To be read on skin, hair and bright walls alike.
        draw.rectangle((left - 3, top - 3, right + 3, bottom + 3), fill="black")
        draw.text(corner, text, fill=colour, font=font)
    return side_by_side([(caption, image), ("map of the forged area", np.asarray(drawn))])
