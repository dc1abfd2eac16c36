"""A sheet of simulated forgeries and their conversations for inspection.

    llava-forgery data preview --faces FACES --out sheet.png

A row shows a pristine face, its forgery, the mask and the conversation that trains the answer.
"""

import random
from collections.abc import Sequence
from os import PathLike

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava_forgery.constants import FAKE, REAL
from llava_forgery.images import save_png
from llava_forgery.qa.build import build_conversation
from llava_forgery.qa.conversation import Conversation
from llava_forgery.qa.templates import join_regions
from llava_forgery.simulate.pairs import FacePair, FacePairs
from llava_forgery.tensors import to_bytes

NOTE = (
    "simulated forgeries beside their pristine faces, made by llava-forgery to look at training "
    "data; not real photographs"
)
_GAP, _CAPTION, _LINE = 12, 26, 19
_TEXT_WIDTH = 460
_COLOURS = {"user": "#1f4e8c", "assistant": "#222222"}


def draw_preview(pairs: FacePairs, path: str | PathLike) -> None:
    """Write the sheet, one row per pair, described in the file's metadata.

    Every second row has the pristine face's conversation, the others the forgery's.

    Args:
        pairs: Pairs to draw, whose seed also determines the conversations.
        path: PNG file to write.
    """
    side, regular, bold = pairs.size, ImageFont.load_default(14), ImageFont.load_default(17)
    rows = [(pairs[i], _conversation(pairs[i], pairs.seed, i)) for i in range(len(pairs))]
    texts = [_layout(conversation, regular) for _, conversation in rows]
    heights = [max(side + _CAPTION, len(lines) * _LINE) + _GAP for lines in texts]
    width = 3 * (side + _GAP) + _TEXT_WIDTH + 2 * _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP + _CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    columns = [_GAP + i * (side + _GAP) for i in range(4)]
    titles = ("pristine", "forged", "mask", "conversation about the framed picture")
    for x, title in zip(columns, titles, strict=True):
        draw.text((x, _GAP // 2), title, fill="black", font=bold)
    top = _GAP + _CAPTION
    for (pair, conversation), lines, height in zip(rows, texts, heights, strict=True):
        mask = to_bytes(pair.mask.expand(3, -1, -1))
        panels = (to_bytes(pair.pristine), to_bytes(pair.forged), mask)
        for x, panel in zip(columns, panels, strict=False):
            sheet.paste(Image.fromarray(panel), (x, top))
        about = columns[1] if conversation.label == FAKE else columns[0]
        # The frame marks the picture that the conversation is about.
        draw.rectangle((about, top, about + side - 1, top + side - 1), outline="#d96b00", width=3)
        draw.text((columns[1], top + side + 4), join_regions(pair.regions), "black", regular)
        draw.text((columns[2], top + side + 4), _share(pair), "black", regular)
        for i, (role, line) in enumerate(lines):
            draw.text((columns[3], top + i * _LINE), line, _COLOURS[role], regular)
        top += height
        draw.line((_GAP, top - _GAP // 2, width - _GAP, top - _GAP // 2), "#cccccc")
    save_png(sheet, path, NOTE)


def _conversation(pair: FacePair, seed: int, index: int) -> Conversation:
    words = np.random.SeedSequence([seed, 2, index]).generate_state(1)[0]
    label, regions = (REAL, ()) if index % 2 else (FAKE, pair.regions)
    return build_conversation(label, regions, rng=random.Random(int(words)), follow_ups=1)


def _layout(
    conversation: Conversation, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Sequence[tuple[str, str]]:
    """Lines, each with the role of its speaker."""
    lines = []
    for message in conversation.messages:
        speaker = "Q: " if message.role == "user" else "A: "
        lines += [(message.role, line) for line in _wrap(speaker + message.text, font)]
    return lines


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > _TEXT_WIDTH:
            lines.append("     " + word)
        else:
            lines[-1] = longer
    return lines


def _share(pair: FacePair) -> str:
    return f"{100 * float((pair.mask > 0.5).float().mean()):.1f} % of the picture"
