"""Eyes, lips, nostrils and folds of drawn faces."""

import numpy as np

from llava_forgery.faces.drawn_shape import Moment, Person
from llava_forgery.faces.drawn_texture import Canvas, blob, curve, lay, plane, smooth


def creases(canvas: Canvas, person: Person, points: np.ndarray) -> np.ndarray:
    """Darkness of folds and wrinkles, (height, width) in [0, 1]."""
    age, smile = person.age, float(np.clip((points[54, 0] - points[48, 0] - 0.75) * 4, 0, 1))
    lids, soft, wings = [], [], []
    for eye, brow, side in ((points[36:42], points[19], -1), (points[42:48], points[24], 1)):
        lids.append(curve(eye[0:4] + (brow - eye.mean(axis=0)) * [0.1, 0.24]))
        soft.append(curve(eye[[3, 4, 5, 0]] + [0, 0.09]))
        if age > 0.4:
            for rise in (-0.09, 0.0, 0.08):
                foot = np.array([[0.06, 0], [0.14, rise * 0.6], [0.23, rise * 1.4 + 0.02]])
                soft.append(curve(eye[0 if side < 0 else 3] + foot * [side, 1]))
    for wing, corner, side in ((points[31], points[48], -1), (points[35], points[54], 1)):
        fold = [wing + [side * 0.06, -0.05], wing + [side * 0.14, 0.1]]
        fold += [corner + [side * 0.1, -0.1], corner + [side * 0.13, 0.06]]
        soft.append(curve(np.array(fold)))
        rim = np.array([[0.01, -0.14], [0.045, -0.06], [0.03, 0.02]])
        wings.append(curve(wing + rim * [side, 1]))
    if age > 0.45:
        x = np.linspace(-0.5, 0.5, 7)
        soft += [curve(np.stack([x, y + 0.04 * np.cos(4 * x)], 1)) for y in (-0.62, -0.74, -0.86)]
    folds = canvas.strokes(soft, 3, blur=0.03) * (0.12 + 0.22 * age + 0.22 * smile)
    folds += canvas.strokes(lids, 2, blur=0.013) * (0.2 + 0.5 * person.crease)
    folds += canvas.strokes(wings, 3, blur=0.024) * 0.5
    return np.clip(folds, 0, 0.85)


def paint_lips(
    canvas: Canvas,
    person: Person,
    points: np.ndarray,
    skin: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Colour the lips, in place, before light falls on them.

    Returns:
        How glossy every place of the canvas is, (height, width).
    """
    canvas_gloss = np.ones((canvas.height, canvas.width), np.float32)
    part, window = canvas.window(points[48:60], 0.1)
    mask = part.fill(curve(points[48:60], closed=True), blur=0.014)
    streaks = 1 + 0.07 * part.noise(rng, (2, 14)) + 0.05 * part.noise(rng, 5, 2)
    # The upper lip faces down and is darker.
    line = points[[60, 64], 1].mean()
    tone = np.broadcast_to(np.where(part.y < line, np.float32(0.8), np.float32(1)), mask.shape)
    seam = part.strokes([curve(points[60:65])], 2, blur=0.012)
    shade = streaks * smooth(tone, 2.5) * (1 - 0.6 * seam)
    lay(skin[window], skin[window] * plane(np.square(person.lips)) * shade, 0.9 * mask)
    canvas_gloss[window[1:]] += 1.4 * mask
    return canvas_gloss


def paint_nostrils(canvas: Canvas, points: np.ndarray, skin: np.ndarray) -> None:
    """Darken the nostrils, in place."""
    part, window = canvas.window(points[31:36], 0.12)
    shapes = [
        blob(points[a] * 0.45 + points[b] * 0.55 + [0, -0.025], (0.055, 0.026), -side * 0.35)
        for a, b, side in ((31, 32, -1), (35, 34, 1))
    ]
    skin[window] *= 1 - 0.85 * part.fill(*shapes, blur=0.016)


def paint_mouth(canvas: Canvas, moment: Moment, skin: np.ndarray, ambient: float) -> None:
    """Teeth and darkness behind parted lips, in place."""
    if moment.mouth_open < 0.012:
        return
    points = moment.landmarks.astype(np.float32)
    canvas, window = canvas.window(points[60:68], 0.06)
    hole = canvas.fill(curve(points[60:68], closed=True), blur=0.009)
    top, x = points[62, 1], canvas.x - points[62, 0]
    teeth = np.clip((top + 0.11 - canvas.y) / 0.03, 0, 1) * np.clip((0.3 - np.abs(x)) / 0.12, 0, 1)
    gaps = 1 - 0.25 * np.exp(-0.5 * ((x % np.float32(0.085) - 0.0425) / 0.006) ** 2)
    teeth = teeth * np.clip(1 - 1.6 * np.abs(x), 0.25, 1) * gaps
    colour = plane([0.035, 0.008, 0.008])
    colour = colour + teeth * plane(np.array([0.6, 0.54, 0.45]) * (0.55 + 0.45 * ambient))
    # The upper lip's shadow.
    lay(skin[window], colour * np.clip((canvas.y - top) / 0.035, 0.25, 1), hole)


def paint_eyes(
    canvas: Canvas,
    person: Person,
    moment: Moment,
    skin: np.ndarray,
    direction: np.ndarray,
    ambient: float,
    rng: np.random.Generator,
) -> None:
    """Eyeballs, lids' edges and lashes, in place."""
    points = moment.landmarks.astype(np.float32)
    rays = rng.standard_normal((2, 96)).astype(np.float32)
    pupil = rng.uniform(0.032, 0.045)
    for eye, side in ((points[36:42], -1), (points[42:48], 1)):
        part, window = canvas.window(eye, 0.16)
        view = skin[window]
        upper, lower = curve(eye[0:4]), curve(eye[[3, 4, 5, 0]])
        opening = part.fill(np.concatenate([upper, lower[1:]]), blur=0.007)
        centre = eye.mean(axis=0) + np.array(moment.gaze, np.float32)
        centre[1] -= 0.012
        ball = _eyeball(part, person, centre, pupil, rays)
        # The upper lid's shadow, then the light's reflection.
        lid = np.interp(part.x[0], *upper.T).astype(np.float32)
        ball *= np.clip(0.4 + (part.y - lid) / 0.1, 0.4, 1)
        ball *= np.float32(0.55 + 0.6 * ambient)
        spark = centre + 0.045 * direction[:2]
        ball += part.bumps((0.8, spark[0], spark[1], 0.014, 0.014))
        lay(view, ball, opening)

        dark = np.square(person.hair) * 0.25
        rim = part.strokes([lower], 2, blur=0.011) * (0.2 + 0.3 * person.lash)
        lay(view, dark + [0.05, 0.02, 0.02], rim)
        lash = part.strokes([upper], 2, blur=0.011) * (0.55 + 0.45 * person.lash)
        hairs = part.strokes(_lashes(eye, upper, side), 1, blur=0.006) * person.lash
        lay(view, dark, np.clip(np.maximum(lash, hairs), 0, 0.95))


def _eyeball(
    canvas: Canvas, person: Person, centre: np.ndarray, pupil: float, rays: np.ndarray
) -> np.ndarray:
    """White, iris and pupil, (3, height, width), without light."""
    radius, edge = 0.098, 0.014
    dx, dy = canvas.x - centre[0], canvas.y - centre[1]
    distance = np.hypot(dx, dy)
    angle = (np.arctan2(dy, dx) / np.float32(2 * np.pi) % 1) * 96
    index = angle.astype(int) % 96
    part = angle - np.floor(angle)
    ray = rays[:, index] * (1 - part) + rays[:, (index + 1) % 96] * part
    away = np.clip((np.hypot(dx, 1.2 * dy) - 0.1) / 0.2, 0, 1)
    colour = plane([0.6, 0.54, 0.51]) * (1 - 0.5 * away * np.sqrt(away))
    share = np.clip((distance - pupil) / (radius - pupil), 0, 1)
    tone = 1.25 - 0.5 * share + 0.22 * ray[0] * share + 0.2 * ray[1] * (1 - share)
    # The dark ring round the iris.
    tone *= 1 - 0.7 * np.clip((share - 0.75) / 0.25, 0, 1)
    iris = plane(np.square(person.iris)) * np.clip(tone, 0.1, 2)
    lay(colour, iris, np.clip((radius - distance) / edge + 0.5, 0, 1))
    lay(colour, np.full(3, 0.004), np.clip((pupil - distance) / edge + 0.5, 0, 1))
    return colour


def _lashes(eye: np.ndarray, upper: np.ndarray, side: int) -> list[np.ndarray]:
    """Single lashes of the upper lid, longer towards the outer corner."""
    corner, hairs = eye[0 if side < 0 else 3], []
    for start in upper[::2]:
        away = (start - eye.mean(axis=0)) * [0.35, 0] + [0.02 * side, -0.05]
        away *= 0.45 + 0.6 * np.exp(-np.square((start - corner) / 0.25).sum())
        hairs.append(np.array([start, start + away * 0.6 + [0, 0.01], start + away]))
    return hairs
