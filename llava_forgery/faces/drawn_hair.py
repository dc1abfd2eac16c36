"""Hair, brows and beards of drawn faces: strands that flow from a parting."""

from typing import NamedTuple

import cv2
import numpy as np

from llava_forgery.faces.drawn_shape import Moment, Person
from llava_forgery.faces.drawn_texture import Canvas, curve, lay, smooth


class HairLayer(NamedTuple):
    """Hair behind or in front of the face."""

    alpha: np.ndarray
    """(height, width) opacity in [0, 1]."""
    shade: np.ndarray
    """(height, width) factor on the hair's colour."""


def paint_hair(
    canvas: Canvas, person: Person, moment: Moment, face: np.ndarray, direction: np.ndarray
) -> tuple[HairLayer, HairLayer]:
    """Layers behind the head and in front of it.

    Args:
        canvas: Where to.
        person: Style and texture.
        moment: Turn of the head.
        face: (height, width) mask of the head.
        direction: (3,) towards the light.
    """
    rng = np.random.default_rng([person.seed, 2])
    points = moment.landmarks.astype(np.float32)
    # The skull turns the other way from the face's front.
    middle = float(points[0, 0] + points[16, 0]) / 2 - 0.25 * float(np.sin(moment.yaw))
    reach = float(points[16, 0] - points[0, 0]) / 2
    strands = _strands(canvas, person, middle, rng)
    style, volume = person.style, person.volume

    outer = _back(canvas, person, middle, reach)
    back = _ragged(outer, strands, 0.25 if style == "curly" else 0.12)
    tight = style in ("shaved", "tied")
    thick = 0.03 if style == "shaved" else 0.06 if tight else volume
    turn = np.linspace(np.pi, 2 * np.pi, 15)
    cap = np.stack(
        [middle + (reach + thick) * np.cos(turn), -0.1 + (1.38 + thick) * np.sin(turn)], axis=1
    )
    line = _hairline(person, middle, reach)
    front = canvas.fill(np.concatenate([cap, line]), blur=0.03)
    if style in ("long", "fringe"):
        front = np.maximum(front, _curtains(canvas, person, middle, reach))
    front = _ragged(front, strands, 0.55 if style in ("fringe", "curly") else 0.35)
    if style == "shaved":
        front = np.clip(front * (0.55 + 0.12 * canvas.noise(rng, 2)), 0, 1)
        back = np.zeros_like(back)

    # Light falls on a band across the crown and on the lit side.
    band = canvas.bumps((0.5, middle + 0.5 * direction[0], -1.05, 0.8, 0.16))
    side = 0.22 * float(direction[0]) * (canvas.x - middle)
    shade = 0.62 + 0.3 * strands + band * (0.8 + 0.4 * strands) + side
    shade = np.clip(shade, 0.06, 2.4)
    # Behind the head little light arrives.
    depth = 1 - 0.6 * smooth(face, 0.12 * canvas.unit)
    return HairLayer(back, shade * 0.7 * depth), HairLayer(front, shade)


def _strands(canvas: Canvas, person: Person, middle: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of about unit deviation, drawn out along strands that leave the parting."""
    if person.style == "curly":
        curls = np.sin(2.5 * canvas.noise(rng, 9) + 2 * canvas.noise(rng, 26))
        return 0.55 * curls + 0.35 * canvas.noise(rng, 7, 2) + 0.3 * canvas.noise(rng, 2)
    part = middle + 0.55 * person.asymmetry * (person.style in ("parted", "long"))
    dx, dy = canvas.x - np.float32(part), canvas.y + np.float32(1.45)
    dx, dy = np.broadcast_arrays(dx, dy)
    distance, angle = cv2.cartToPolar(np.ascontiguousarray(dx), np.ascontiguousarray(dy))
    angle += 0.05 * person.wave * np.sin(7 * distance + canvas.noise(rng, 90))
    angle += 0.03 * canvas.noise(rng, 60)
    angle %= np.float32(2 * np.pi)
    row = np.minimum(distance * np.float32(2.2), 10.9)
    total = np.zeros_like(distance)
    for count, strength in ((1024, 0.6), (420, 0.6), (130, 0.55)):
        grid = rng.standard_normal((12, count), dtype=np.float32)
        grid = np.concatenate([grid, grid[:, :2]], axis=1)
        column = angle * np.float32(count / (2 * np.pi))
        total += strength * cv2.remap(grid, column, row, cv2.INTER_LINEAR)
    return 1.2 * total


def _ragged(mask: np.ndarray, strands: np.ndarray, amount: float) -> np.ndarray:
    """Let strands stick out of the edge of a soft mask."""
    wide = smooth(mask, 7)
    return np.clip((wide - 0.5 + amount * 0.3 * strands * (wide > 0.02)) * 5 + 0.5, 0, 1)


def _hairline(person: Person, middle: float, reach: float) -> np.ndarray:
    """From the right temple over the forehead to the left one, (N, 2)."""
    high = person.hairline
    if person.style == "fringe":
        x = np.linspace(1, -1, 21)
        y = -0.42 - 0.1 * np.cos(2.5 * x) + 0.05 * np.sin(23 * x + 9 * person.asymmetry)
        return np.stack([middle + x * reach * 1.03, y], axis=1)
    lean = 0.25 * person.asymmetry if person.style in ("parted", "long") else 0.0
    low = 0.1 if person.style in ("short", "shaved", "curly") else -0.05
    line = np.array(
        [
            (1.04, low),
            (0.97, low),
            (0.93, -0.42),
            (0.78, -0.68 - lean / 2),
            (0.5, high + 0.07 - lean),
            (0.0, high),
            (-0.5, high + 0.07 + lean),
            (-0.78, -0.68 + lean / 2),
            (-0.93, -0.42),
            (-0.97, low),
            (-1.04, low),
        ]
    )
    return curve(line * [reach, 1] + [middle, 0], 6)


def _back(canvas: Canvas, person: Person, middle: float, reach: float) -> np.ndarray:
    """Soft outline of the hair behind the head."""
    volume = person.volume
    if person.style in ("long", "fringe"):
        wide = reach + volume
        half = [(0.0, -1.5 - volume), (0.6, -1.4), (wide * 0.93, -0.9), (wide, 0.0)]
        half += [(wide * 1.05, 1.0), (wide * 1.02, 2.0), (wide * 0.9, 3.2)]
        right = np.array(half)
        outline = np.concatenate([curve(right), curve(right)[::-1] * [-1, 1]]) + [middle, 0]
        return canvas.fill(outline, blur=0.03)
    thick = {"curly": 1.6 * volume, "tied": 0.04, "shaved": 0.0}.get(person.style, 0.7 * volume)
    low = 0.75 if person.style == "curly" else 0.35
    turn = np.linspace(0, 2 * np.pi, 33)[:32]
    round_head = np.stack(
        [(reach + thick) * np.cos(turn), -0.15 + (1.4 + thick) * np.sin(turn)], axis=1
    )
    round_head[:, 1] = np.minimum(round_head[:, 1], low)
    return canvas.fill(round_head + [middle, 0], blur=0.03)


def _curtains(canvas: Canvas, person: Person, middle: float, reach: float) -> np.ndarray:
    """Hair that falls in front of the ears, along both cheeks."""
    shapes = []
    for side in (-1, 1):
        inner = 0.98 - 0.06 * side * person.asymmetry
        edge = [(0.86, -0.75), (inner, -0.2), (inner + 0.01, 0.5), (inner + 0.02, 1.2)]
        edge += [(1.08, 3.2)]
        far = [(1.35 + person.volume, 3.2), (1.12 + person.volume, 1.2), (1.06, -0.4)]
        shape = np.array(edge + far) * [side * reach, 1] + [middle, 0]
        shapes.append(np.concatenate([curve(shape[:5]), curve(shape[5:])]))
    return np.maximum(canvas.fill(shapes[0], blur=0.03), canvas.fill(shapes[1], blur=0.03))


def paint_brows(
    canvas: Canvas,
    person: Person,
    points: np.ndarray,
    skin: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Brows out of single hairs over a soft shadow, in place."""
    dark = np.square(person.hair) * 0.55
    for line in (points[17:22], points[22:27][::-1]):
        part, window = canvas.window(line, 0.16)
        # From the outer end inwards; hairs grow outwards, at the inner end upwards.
        spine = curve(line, 10)
        along = np.gradient(spine, axis=0)
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        share = np.linspace(0, 1, len(spine))
        thick = person.brow_thickness * np.interp(share, [0, 0.35, 0.9, 1], [0.25, 0.9, 1, 0.7])
        across = np.stack([-along[:, 1], along[:, 0]], axis=1) * thick[:, None] / 2
        outline = np.concatenate([spine + across, (spine - across)[::-1]])
        body = part.fill(outline, blur=0.028) * (0.2 + 0.4 * person.brow_density)
        lay(skin[window], dark, body)
        count = int(150 * person.brow_density)
        place = rng.integers(0, len(spine), count)
        start = spine[place] + across[place] * rng.uniform(-1, 1, (count, 1))
        lift = np.stack([np.zeros(count), -1.5 * share[place] ** 3 - 0.25], axis=1)
        way = -along[place] + lift + rng.normal(0, 0.15, (count, 2))
        way *= rng.uniform(0.05, 0.1, (count, 1)) / np.linalg.norm(way, axis=1, keepdims=True)
        hairs = list(np.stack([start, start + way], axis=1))
        lay(skin[window], dark * 0.6, part.strokes(hairs, 1, blur=0.006) * 0.7)


def paint_beard(
    canvas: Canvas,
    person: Person,
    points: np.ndarray,
    skin: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Stubble or a short beard on the skin's colour, in place."""
    if not person.stubble:
        return
    jaw = points[2:15]
    top = [points[14] * 0.55 + points[35] * 0.45, points[33] + [0, 0.07]]
    top += [points[2] * 0.55 + points[31] * 0.45]
    outline = curve(np.concatenate([jaw, top]), closed=True)
    part, window = canvas.window(outline, 0.2)
    area = part.fill(outline, blur=0.09)
    lips = part.fill(curve(points[48:60], closed=True), blur=0.03)
    upper = part.bumps(
        (0.6, points[51, 0], points[51, 1] - 0.1, 0.3, 0.06),
        (0.5, points[8, 0], points[8, 1] - 0.2, 0.35, 0.22),
    )
    area = np.clip(area * (0.45 + upper), 0, 1) * (1 - lips)
    grain = 0.6 * part.noise(rng, (2, 4)) + 0.5 * part.noise(rng, 3, 2)
    grain += 0.3 * part.noise(rng, 18)
    density = np.clip(area * person.stubble * (0.75 + 0.35 * grain), 0, 0.9)
    lay(skin[window], np.square(person.hair) * 0.7, density)
