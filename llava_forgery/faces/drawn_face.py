"""Painting a drawn person: background, body, skin under light, hair.

Colours are mixed as squares of sRGB values, which is close to linear light and cheap.
"""

from dataclasses import dataclass

import numpy as np

from llava_forgery.faces.drawn_features import (
    creases,
    paint_eyes,
    paint_lips,
    paint_mouth,
    paint_nostrils,
)
from llava_forgery.faces.drawn_hair import paint_beard, paint_brows, paint_hair
from llava_forgery.faces.drawn_shape import Moment, Person
from llava_forgery.faces.drawn_texture import (
    Canvas,
    blob,
    curve,
    lay,
    light_up,
    plane,
    shifted,
    smooth,
)


@dataclass(frozen=True)
class Light:
    """One photograph's light."""

    direction: np.ndarray
    """(3,) float32 towards the main light: x right, y down, z to the viewer."""
    ambient: float
    """Light that comes from everywhere, 0 to 1."""
    colour: np.ndarray
    """(3,) float32 of the main light."""
    shade: np.ndarray
    """(3,) float32 of the ambient light."""

    def on(self, diffuse: np.ndarray) -> np.ndarray:
        """(3, height, width) light that falls on a surface with that diffuse light."""
        direct = diffuse * np.float32(1.12 - self.ambient)
        return direct * plane(self.colour) + plane(self.ambient * self.shade)


def draw_light(rng: np.random.Generator) -> Light:
    """Draw direction, hardness and colour of the light."""
    warmth, cool = rng.normal(0, 0.04), rng.normal(0, 0.03)
    return Light(
        direction=np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.75, -0.1), 0.9], np.float32),
        ambient=rng.uniform(0.2, 0.5),
        colour=np.array([1 + warmth, 1, 1 - 1.3 * warmth], dtype=np.float32),
        shade=np.array([1 - cool, 1, 1 + cool], dtype=np.float32),
    )


def paint(
    canvas: Canvas, person: Person, moment: Moment, light: Light, rng: np.random.Generator
) -> np.ndarray:
    """Paint a person in one moment.

    Args:
        canvas: Where to.
        person: Who.
        moment: Expression and pose.
        light: Light of the photograph.
        rng: Of the photograph: background and clothes.

    Returns:
        (3, height, width) float32, squares of sRGB values, 0 to somewhat over 1.
    """
    points = moment.landmarks.astype(np.float32)
    outline = _head(points)
    face = canvas.fill(outline, blur=0.012)
    hair = np.square(person.hair)
    back, front = paint_hair(canvas, person, moment, face, light.direction)

    picture = _background(canvas, rng)
    lay(picture, plane(hair) * back.shade, back.alpha)
    _paint_body(canvas, person, points, face, light, picture, rng)
    _paint_ears(canvas, person, points, light, picture)
    part, window = canvas.window(outline, 0.06)
    skin = _paint_skin(part, person, moment, light, face[window[1:]], front.alpha[window[1:]])
    lay(picture[window], skin, face[window[1:]])
    lay(picture, plane(hair) * front.shade, front.alpha)
    return picture


def _paint_skin(
    canvas: Canvas,
    person: Person,
    moment: Moment,
    light: Light,
    face: np.ndarray,
    hair: np.ndarray,
) -> np.ndarray:
    """The whole head's front with its features, on the face's own part of the canvas."""
    points = moment.landmarks.astype(np.float32)
    rng = np.random.default_rng([person.seed, 1])
    skin = _skin_colour(canvas, person, points, rng)
    gloss = paint_lips(canvas, person, points, skin, rng)
    skin *= 1 - creases(canvas, person, points)
    paint_beard(canvas, person, points, skin, rng)
    relief = _relief(canvas, person, points, moment, face, rng)
    diffuse, mirror = light_up(relief, canvas.unit, light.direction)
    diffuse *= 1 - _cast_shadow(canvas, points, light, hair)
    skin *= light.on(diffuse)
    skin += (np.float32(0.02 + 0.1 * person.shine) * mirror * gloss) * plane(light.colour)
    paint_nostrils(canvas, points, skin)
    paint_mouth(canvas, moment, skin, light.ambient)
    paint_eyes(canvas, person, moment, skin, light.direction, light.ambient, rng)
    paint_brows(canvas, person, points, skin, rng)
    return skin


def _background(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    first = rng.uniform(0.06, 0.92) * rng.normal(1, 0.07, 3)
    second = first * rng.uniform(0.55, 1.5) * rng.normal(1, 0.05, 3)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle).astype(np.float32) * canvas.x
    ramp = ramp + np.sin(angle).astype(np.float32) * (canvas.y - np.float32(0.7))
    ramp = np.clip(0.5 + 0.16 * ramp, 0, 1)
    picture = np.empty((3, canvas.height, canvas.width), np.float32)
    picture[:] = plane(np.square(np.clip(first, 0.02, 1)))
    lay(picture, np.square(np.clip(second, 0.02, 1)), ramp)
    # Things in the room, out of focus.
    for _ in range(int(rng.choice([0, 0, 3, 6]))):
        centre, reach = rng.uniform([-2.3, -1.6], [2.3, 2.6]), rng.uniform(0.2, 1.1, 2)
        turn = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, 5)[:4]
        outline = centre + reach * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        mask = canvas.fill(outline, blur=rng.uniform(0.08, 0.3)) * rng.uniform(0.3, 0.9)
        colour = np.clip(rng.uniform(0.05, 0.9) * rng.normal(1, 0.15, 3), 0.02, 1)
        lay(picture, np.square(colour), mask)
    uneven = rng.uniform(0.015, 0.1) * canvas.noise(rng, 90, 2)
    picture *= 1 + uneven + rng.uniform(0, 0.04) * canvas.noise(rng, 6, 2)
    return picture


def _head(points: np.ndarray) -> np.ndarray:
    """Outline of the head without hair and ears."""
    left, right = points[0], points[16]
    middle, reach = (left[0] + right[0]) / 2, (right[0] - left[0]) / 2
    turn = np.linspace(0, np.pi, 9)[1:-1]
    skull = np.stack(
        [middle + 1.01 * reach * np.cos(turn), left[1] - 1.6 * np.sin(turn) ** 0.75], axis=1
    )
    return curve(np.concatenate([points[0:17], skull]), closed=True)


def _skin_colour(
    canvas: Canvas, person: Person, points: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Skin without light: uneven on every scale, redder here, darker there."""
    base = np.square(person.skin)
    nose, chin = points[30], points[8]
    left, right = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    blood = np.float32(person.flush) * canvas.bumps(
        (0.12, left[0] - 0.12, 0.62, 0.26, 0.22),
        (0.12, right[0] + 0.12, 0.62, 0.26, 0.22),
        (0.12, nose[0], nose[1], 0.18, 0.14),
        (0.06, chin[0], chin[1] - 0.12, 0.2, 0.15),
        (0.05, 0, -0.75, 0.5, 0.2),
    )
    blood += (0.015 + 0.02 * person.flush) * canvas.noise(rng, 34, 3)
    dark_rings = 0.1 + 0.14 * person.age
    shadow = canvas.bumps(
        (dark_rings, left[0], left[1] + 0.14, 0.22, 0.1),
        (dark_rings, right[0], right[1] + 0.14, 0.22, 0.1),
        (0.14, left[0] + 0.12, left[1] - 0.06, 0.2, 0.1),
        (0.14, right[0] - 0.12, right[1] - 0.06, 0.2, 0.1),
    )
    uneven = 0.05 * canvas.noise(rng, 90, 2) + 0.04 * canvas.noise(rng, 14, 3)
    uneven += 0.035 * canvas.noise(rng, 3, 2)
    # Blood takes green and blue away.
    skin = 1 + blood * plane([0.5, -1.5, -1.2])
    skin *= 1 + uneven - shadow
    skin *= plane(base)
    for count, size, strength in ((person.freckles, 0.011, 0.35), (person.moles, 0.02, 0.7)):
        if count:
            centres = rng.normal([0, 0.45], [0.55, 0.38], (count, 2))
            sizes = size * rng.uniform(0.6, 1.5, count)
            spots = [blob(c, (s, s)) for c, s in zip(centres, sizes, strict=True)]
            lay(skin, base * [0.42, 0.28, 0.22], strength * canvas.fill(*spots, blur=0.007))
    return skin


def _relief(
    canvas: Canvas,
    person: Person,
    points: np.ndarray,
    moment: Moment,
    face: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Height of the face in units, from the skull down to the pores."""
    round_x = np.square((canvas.x - np.float32(0.45 * np.sin(moment.yaw))) / 1.42)
    round_y = np.square((canvas.y - np.float32(0.35 + 0.4 * np.sin(moment.pitch))) / 2.0)
    skull = 1.05 * np.sqrt(np.maximum(1 - round_x - round_y, 0.06))
    # The edge falls away round the cheeks and the jaw.
    rim = 0.42 * smooth(face, 0.26 * canvas.unit) + 0.16 * smooth(face, 0.1 * canvas.unit)

    deep, nose, tip = person.nose_depth, points[31:36], points[30]
    left, right = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    root, mouth = points[27], points[48:60].mean(axis=0)
    corners, cheeks = points[[48, 54]], person.cheek_depth
    upper, lower = points[[50, 51, 52]].mean(axis=0), points[[56, 57, 58]].mean(axis=0)
    lips = person.lip_depth
    height = canvas.bumps(
        (0.17 * deep, (root[0] + tip[0]) / 2, 0.3, 0.1, 0.26),
        (0.2 * deep, tip[0], tip[1] + 0.02, 0.14, 0.12),
        (0.1 * deep, nose[0][0] + 0.035, nose[0][1] - 0.04, 0.065, 0.075),
        (0.1 * deep, nose[4][0] - 0.035, nose[4][1] - 0.04, 0.065, 0.075),
        # Sockets, with the eyeballs in them.
        (-0.13, left[0] + 0.06, left[1] - 0.03, 0.26, 0.15),
        (-0.13, right[0] - 0.06, right[1] - 0.03, 0.26, 0.15),
        (0.06, left[0], left[1], 0.15, 0.09),
        (0.06, right[0], right[1], 0.15, 0.09),
        (0.05, points[19][0], points[19][1] + 0.03, 0.27, 0.08),
        (0.05, points[24][0], points[24][1] + 0.03, 0.27, 0.08),
        (0.06, 0, -0.62, 0.6, 0.3),
        # Cheekbones, and the hollows under them.
        (0.1 * cheeks, left[0] - 0.14, 0.52, 0.28, 0.2),
        (0.1 * cheeks, right[0] + 0.14, 0.52, 0.28, 0.2),
        (-0.04 * cheeks, left[0] - 0.15, 1.02, 0.2, 0.24),
        (-0.04 * cheeks, right[0] + 0.15, 1.02, 0.2, 0.24),
        # Muzzle, lips, the dent under them, chin, the groove under the nose.
        (0.08, mouth[0], mouth[1] - 0.03, 0.34, 0.22),
        (0.045 * lips, upper[0], upper[1] + 0.06, 0.2, 0.045),
        (0.06 * lips, lower[0], lower[1] - 0.06, 0.18, 0.05),
        (-0.05, lower[0], lower[1] + 0.09, 0.22, 0.06),
        (0.09, points[8][0], points[8][1] - 0.2, 0.22, 0.16),
        (-0.025, upper[0], upper[1] - 0.1, 0.035, 0.08),
        *((-0.035, x, y, 0.06, 0.06) for x, y in corners),
    )
    rough = 0.7 + 0.8 * person.age
    height += skull + rim
    height += (0.0010 * rough) * canvas.noise(rng, 2) + (0.0017 * rough) * canvas.noise(rng, 6, 2)
    height += 0.006 * canvas.noise(rng, 26, 2)
    return height


def _cast_shadow(canvas: Canvas, points: np.ndarray, light: Light, hair: np.ndarray) -> np.ndarray:
    """Where nose, brows, lips and hair keep the main light away, 0 to 1."""
    x, y, _ = light.direction
    tip, lip = points[33], points[57]
    shadow = canvas.bumps(
        (0.6, tip[0] - 0.1 * x, tip[1] + 0.05 - 0.06 * y, 0.15, 0.05),
        (0.45 * abs(x), tip[0] - 0.26 * x, tip[1] - 0.2, 0.09, 0.2),
        (0.4, lip[0] - 0.08 * x, lip[1] + 0.07, 0.2, 0.045),
        (-0.5 * y, points[39][0] - 0.05, points[39][1] - 0.05, 0.12, 0.1),
        (-0.5 * y, points[42][0] + 0.05, points[42][1] - 0.05, 0.12, 0.1),
    )
    unit = canvas.unit
    under = shifted(smooth(hair, 0.07 * unit), -0.1 * x * unit, (0.03 - 0.08 * y) * unit)
    return np.clip(shadow + 0.55 * under, 0, 0.9)


def _paint_ears(
    canvas: Canvas, person: Person, points: np.ndarray, light: Light, picture: np.ndarray
) -> None:
    for jaw, side in ((points[0], -1), (points[16], 1)):
        oval = blob(jaw + [side * 0.07, 0.16], (0.15, 0.33), 0.0)
        oval[:, 0] -= side * 0.12 * (oval[:, 1] - oval[:, 1].mean())
        part, window = canvas.window(oval, 0.08)
        mask = part.fill(oval, blur=0.012)
        inner = oval.mean(axis=0) + (oval - oval.mean(axis=0)) * 0.62
        rim = inner[np.arange(4, 21)] if side < 0 else np.roll(inner, 12, axis=0)[4:21]
        depth = part.strokes([rim], 4, blur=0.03)
        tone = 0.6 + 0.16 * side * float(light.direction[0])
        colour = np.square(person.skin) * [1.02, 0.86, 0.84] * tone
        shade = 1 + 0.04 * part.noise(np.random.default_rng(person.seed), 6, 3) - 0.5 * depth
        shade += part.bumps((0.25, *oval.mean(axis=0), 0.1, 0.2))
        lay(picture[window], plane(colour) * shade, mask)


def _paint_body(
    canvas: Canvas,
    person: Person,
    points: np.ndarray,
    face: np.ndarray,
    light: Light,
    picture: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Neck, shoulders and clothes."""
    everything = np.array([[-9.0, 0.75], [9.0, 9.0]])
    canvas, window = canvas.window(everything, 0.0)
    face, picture = face[window[1:]], picture[window]
    middle = 0.6 * float(points[8, 0])
    width = 0.4 * float(points[12, 0] - points[4, 0])
    half = [(width, 0.9), (width * 0.97, 1.8), (width * 1.08, 2.3), (1.7, 2.75), (2.9, 3.3)]
    right = np.array(half)
    neck = canvas.fill(np.concatenate([right, right[::-1] * [-1, 1]]) + [middle, 0], blur=0.02)
    height = smooth(neck, 0.3 * canvas.unit) * 1.1 + 0.0025 * canvas.noise(rng, 8, 2)
    # Sinews beside the throat.
    height += canvas.bumps(*((0.08, middle + x, 2.1, 0.08, 0.5) for x in (-0.3, 0.3)))
    diffuse, _ = light_up(height, canvas.unit, light.direction)
    unit = canvas.unit
    fall = shifted(smooth(face, 0.12 * unit), -0.12 * light.direction[0] * unit, 0.22 * unit)
    skin = light.on(diffuse * (1 - 0.85 * fall)) * plane(np.square(person.skin) * [1, 0.93, 0.89])
    skin *= (1 + 0.04 * canvas.noise(rng, 20, 3) + 0.025 * canvas.noise(rng, 3, 2)) * (
        1 - 0.6 * fall
    )
    lay(picture, skin, neck)

    dip, spread = rng.uniform(2.25, 3.0), rng.uniform(0.7, 1.1)
    x = np.linspace(-3, 3, 25)
    collar = np.where(np.abs(x) < spread, dip - (dip - 2.2) * (np.abs(x) / spread) ** 2, 2.2)
    collar = np.maximum(collar, 2.2 + 0.32 * (np.abs(x) - spread))
    hem = np.stack([x + middle, collar], axis=1)
    cloth = canvas.fill(np.concatenate([hem, [[3.5, 3.6], [-3.5, 3.6]]]), blur=0.01)
    folds = 0.5 * smooth(cloth, 26) + 0.03 * canvas.noise(rng, (40, 110), 2)
    diffuse, _ = light_up(folds + 0.002 * canvas.noise(rng, 2), unit, light.direction)
    dye = rng.uniform(0.06, 0.95) * rng.normal(1, rng.choice([0.03, 0.2]), 3)
    weave = 1 + 0.05 * canvas.noise(rng, (2, 5)) + 0.05 * canvas.noise(rng, (5, 2))
    fabric = light.on(diffuse) * plane(np.square(np.clip(dye, 0.03, 0.97)))
    lay(picture, fabric * weave, cloth)
