"""Who a drawn face is and how it looks in one photograph: proportions, colours and landmarks.

Coordinates are in units of the distance between the pupils, with the origin between them, x right
and y down. All randomness comes from the generators that are passed in.
"""

from dataclasses import dataclass

import numpy as np

# Half of an average face, seen from the front; the left half of the picture. The other half is
# its mirror image.
_JAW = [(-1.12, 0.12), (-1.1, 0.42), (-1.06, 0.71), (-1.01, 1.0), (-0.92, 1.27), (-0.77, 1.5)]
_JAW += [(-0.55, 1.69), (-0.29, 1.82), (0.0, 1.86)]
_BROW = [(-0.94, -0.17), (-0.8, -0.3), (-0.6, -0.36), (-0.39, -0.34), (-0.19, -0.27)]
_BRIDGE = [(0.0, -0.02), (0.0, 0.15), (0.0, 0.32), (0.0, 0.51)]
_NOSTRILS = [(-0.2, 0.67), (-0.1, 0.71), (0.0, 0.74)]
_EYE = [(-0.7, 0.02), (-0.58, -0.06), (-0.42, -0.06), (-0.29, 0.04), (-0.43, 0.08), (-0.58, 0.08)]
_LIPS = [(-0.4, 1.11), (-0.25, 1.02), (-0.1, 0.97), (0.0, 0.99)]
_LOWER_LIPS = [(0.0, 1.25), (-0.11, 1.24), (-0.25, 1.2)]
_INNER_LIPS = [(-0.33, 1.11), (-0.1, 1.09), (0.0, 1.095)]
_INNER_LOWER = [(0.0, 1.1), (-0.1, 1.1)]
# Position of each landmark's mirror image.
MIRROR = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)

_SKINS = np.array(
    [[236, 204, 190], [228, 190, 170], [212, 170, 145], [188, 146, 120], [154, 112, 89]]
    + [[116, 81, 63], [82, 58, 48]],
    dtype=np.float32,
)
_HAIRS = np.array(
    [[24, 20, 19], [46, 33, 26], [82, 56, 38], [124, 86, 54], [178, 138, 88], [140, 70, 38]]
    + [[150, 146, 142]],
    dtype=np.float32,
)
_IRISES = np.array(
    [[74, 46, 26], [104, 68, 36], [110, 104, 62], [96, 124, 132], [88, 122, 160]], dtype=np.float32
)


@dataclass(frozen=True)
class Person:
    """What stays the same over all photographs of one identity."""

    landmarks: np.ndarray
    """(68, 2) at rest, seen from the front."""
    skin: np.ndarray
    """(3,) sRGB in [0, 1]; so are the other colours."""
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    """(3,) factors on the skin's colour."""
    style: str
    hairline: float
    """Height of the forehead's upper end (negative: above the eyes)."""
    asymmetry: float
    """Which side the hair falls to, -1 to 1."""
    volume: float
    """Thickness of the hair."""
    wave: float
    """How wavy the hair is, 0 to 1."""
    brow_density: float
    brow_thickness: float
    lash: float
    """Darkness of the lashes, 0 to 1."""
    crease: float
    """Depth of the lid's fold, 0 to 1."""
    stubble: float
    """Beard, 0 (none) to 1 (dense)."""
    age: float
    """Depth of wrinkles, 0 to 1."""
    freckles: int
    moles: int
    flush: float
    """Redness of cheeks and nose, 0 to 1."""
    shine: float
    """How glossy the skin is, 0 to 1."""
    nose_depth: float
    cheek_depth: float
    lip_depth: float
    seed: int
    """Of the skin's and the hair's texture."""


@dataclass(frozen=True)
class Moment:
    """Expression and pose in one photograph."""

    landmarks: np.ndarray
    """(68, 2), with expression and turn of the head, not yet tilted in the picture."""
    gaze: tuple[float, float]
    mouth_open: float
    """Height of the gap between the lips."""
    yaw: float
    pitch: float


def average_landmarks() -> np.ndarray:
    """(68, 2) float64 landmarks of an average face, iBUG 300-W order."""
    points = np.full((68, 2), np.nan)
    points[0:9], points[17:22] = _JAW, _BROW
    points[27:31], points[31:34] = _BRIDGE, _NOSTRILS
    points[36:42], points[48:52] = _EYE, _LIPS
    points[57:60], points[60:63] = _LOWER_LIPS, _INNER_LIPS
    points[66:68] = _INNER_LOWER
    mirrored = points[MIRROR] * [-1, 1]
    return np.where(np.isnan(points), mirrored, points)


def draw_person(rng: np.random.Generator, seed: int) -> Person:
    """Draw an identity.

    Args:
        rng: Of the identity alone.
        seed: Kept for its textures.
    """
    tone = rng.uniform(0, len(_SKINS) - 1)
    skin = _between(_SKINS, tone) * rng.normal(1, [0.015, 0.01, 0.03])
    # Dark skin goes with dark hair and eyes more often than not.
    dark = tone / (len(_SKINS) - 1)
    hair_index = rng.uniform(0, 1 if rng.random() < dark * 1.3 else 5.2)
    hair = _HAIRS[6] if rng.random() < 0.08 else _between(_HAIRS, hair_index)
    iris = _between(_IRISES, rng.uniform(0, 1 if rng.random() < dark * 1.3 else 4))
    feminine = rng.random() < 0.5
    styles, weights = (
        (("parted", "tied", "long", "fringe", "curly"), (0.15, 0.3, 0.25, 0.15, 0.15))
        if feminine
        else (("shaved", "short", "parted", "long", "curly"), (0.2, 0.4, 0.25, 0.05, 0.1))
    )
    bearded = not feminine and rng.random() < 0.6
    return Person(
        landmarks=_proportions(rng, feminine),
        skin=np.clip(skin / 255, 0, 1).astype(np.float32),
        hair=np.clip(hair * rng.uniform(0.85, 1.15) / 255, 0, 1).astype(np.float32),
        iris=np.clip(iris * rng.uniform(0.85, 1.15) / 255, 0, 1).astype(np.float32),
        lips=np.array([rng.uniform(0.86, 0.98), rng.uniform(0.6, 0.76), rng.uniform(0.62, 0.8)]),
        style=str(rng.choice(styles, p=weights)),
        hairline=rng.uniform(-1.08, -0.86),
        asymmetry=rng.uniform(-1, 1),
        volume=rng.uniform(0.1, 0.3),
        wave=rng.uniform(0, 1) ** 2,
        brow_density=rng.uniform(0.5, 1),
        brow_thickness=rng.uniform(0.045, 0.075) if feminine else rng.uniform(0.06, 0.1),
        lash=rng.uniform(0.5, 1) if feminine else rng.uniform(0.15, 0.5),
        crease=rng.uniform(0.1, 1),
        stubble=rng.uniform(0.15, 1) if bearded else 0.0,
        age=rng.uniform(0, 1) ** 1.7,
        freckles=int(rng.integers(30, 160)) if dark < 0.4 and rng.random() < 0.3 else 0,
        moles=int(rng.integers(0, 5)),
        flush=rng.uniform(0.1, 0.9) * (1 - 0.6 * dark),
        shine=rng.uniform(0.15, 1),
        nose_depth=rng.uniform(0.75, 1.25),
        cheek_depth=rng.uniform(0.5, 1.4),
        lip_depth=rng.uniform(0.7, 1.3),
        seed=seed,
    )


def draw_moment(person: Person, rng: np.random.Generator) -> Moment:
    """Draw expression and pose of one photograph."""
    points = person.landmarks.copy()
    smile = rng.choice([0.0, rng.uniform(0.2, 1.0)])
    mouth_open = max(0.0, rng.uniform(-0.06, 0.05) + 0.09 * (smile > 0.55))
    lid = rng.uniform(-0.02, 0.015) - 0.012 * smile
    brow = rng.uniform(-0.035, 0.05)

    points[17:27, 1] -= brow
    points[[37, 38, 43, 44], 1] -= lid
    points[[40, 41, 46, 47], 1] -= 0.012 * smile
    # The corners go out and up, the lips get thinner, the lower lip follows an opening jaw.
    middle = points[51, 0]
    mouth = np.arange(48, 68)
    reach = (points[mouth, 0] - middle) / np.abs(points[48, 0] - middle)
    points[mouth, 0] += 0.1 * smile * reach
    points[mouth, 1] -= 0.09 * smile * reach**2 - 0.02 * smile
    lower = np.array([55, 56, 57, 58, 59, 65, 66, 67])
    points[lower, 1] += mouth_open * (1 - 0.6 * np.abs(reach[lower - 48]))
    points[5:12, 1] += 0.5 * mouth_open

    yaw, pitch = rng.normal(0, 0.1), rng.normal(0, 0.06)
    depth = _depths()
    points[:, 0] = points[:, 0] * np.cos(yaw) + np.sin(yaw) * depth
    points[:, 1] = points[:, 1] + np.sin(pitch) * depth
    gaze = (float(rng.normal(0, 0.02) - 0.06 * yaw), float(rng.normal(0, 0.006)))
    return Moment(points, gaze, float(mouth_open), float(yaw), float(pitch))


def _between(colours: np.ndarray, position: float) -> np.ndarray:
    first = min(int(position), len(colours) - 2)
    share = position - first
    return colours[first] * (1 - share) + colours[first + 1] * share


def _proportions(rng: np.random.Generator, feminine: bool) -> np.ndarray:
    points = average_landmarks()
    jaw, brows, nose, mouth = slice(0, 17), slice(17, 27), slice(27, 36), slice(48, 68)
    width = rng.normal(1.0, 0.045)
    square = rng.normal(-0.01 if feminine else 0.04, 0.04)
    chin = rng.normal(-0.03 if feminine else 0.05, 0.07)

    height = np.clip(points[jaw, 1] / 1.86, 0, 1)
    # A square jaw is wide at the height of the mouth; the chin's tip stays in the middle.
    points[jaw, 0] *= width * (1 + square * 4 * height * np.clip(1 - height, 0, 0.5))
    points[jaw, 1] += chin * height**2

    eye_width, eye_height = rng.normal(1, 0.05), rng.normal(1.08 if feminine else 0.95, 0.12)
    tilt = rng.normal(0.01, 0.03)
    for eye, side in ((slice(36, 42), -1), (slice(42, 48), 1)):
        centre = points[eye].mean(axis=0)
        offset = (points[eye] - centre) * [eye_width, eye_height]
        offset[:, 1] -= tilt * offset[:, 0] * side
        points[eye] = centre + offset

    points[brows, 1] += rng.normal(-0.03 if feminine else 0.02, 0.035)
    points[[18, 19, 24, 25], 1] -= rng.normal(0.01, 0.02)
    points[[17, 26], 1] += rng.normal(0, 0.02)
    points[nose, 0] *= rng.normal(1, 0.12)
    points[nose, 1] *= rng.normal(1, 0.06)
    drop = points[33, 1] - 0.74 + rng.normal(0, 0.035)
    points[mouth, 1] += 0.7 * drop
    points[mouth, 0] *= rng.normal(1, 0.07)
    line = points[mouth, 1].copy() - points[60, 1]
    fullness = rng.normal(1.08 if feminine else 0.92, 0.16)
    points[mouth, 1] = points[60, 1] + line * max(fullness, 0.55)
    # Nobody is quite symmetrical, but closed lips do not cross.
    points += rng.normal(0, 0.006, points.shape)
    points[[67, 66, 65], 1] = np.maximum(points[[67, 66, 65], 1], points[[61, 62, 63], 1])
    return points


def _depths() -> np.ndarray:
    """How far each landmark lies in front of the head's axis of rotation."""
    depth = np.zeros(68)
    depth[0:17] = 0.3 - 0.75 * (np.abs(np.arange(17) - 8) / 8) ** 1.5
    depth[17:27] = [0.05, 0.2, 0.3, 0.36, 0.4, 0.4, 0.36, 0.3, 0.2, 0.05]
    depth[27:36] = [0.42, 0.5, 0.6, 0.72, 0.45, 0.52, 0.55, 0.52, 0.45]
    eye = [0.15, 0.24, 0.28, 0.28, 0.27, 0.22]
    depth[36:42] = eye
    depth[42:48] = [eye[3], eye[2], eye[1], eye[0], eye[5], eye[4]]
    depth[48:60] = [0.3, 0.42, 0.5, 0.5, 0.5, 0.42, 0.3, 0.4, 0.46, 0.46, 0.46, 0.4]
    depth[60:68] = [0.32, 0.46, 0.48, 0.46, 0.32, 0.44, 0.46, 0.44]
    return depth
