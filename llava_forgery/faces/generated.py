"""Faces drawn by program, for machines without photographs or a face detector.

They are drawn, not photographed: skin, light, hair, background, noise and compression vary as in
photographs, the landmarks are known exactly, and nobody is shown. They let every part of the
project run; what is learned from them alone is not expected to carry over to photographs.
"""

import dataclasses
import logging
from collections.abc import Iterator
from os import PathLike

import cv2
import numpy as np
from tqdm import tqdm

from llava_forgery.constants import REAL
from llava_forgery.faces.crop import crop_square
from llava_forgery.faces.drawn_face import draw_light, paint
from llava_forgery.faces.drawn_shape import draw_moment, draw_person
from llava_forgery.faces.drawn_texture import Canvas
from llava_forgery.faces.identities import split_identities
from llava_forgery.faces.records import FaceCrop, save_faces

logger = logging.getLogger(__name__)

_CANVAS = Canvas()


def generate_face(identity_seed: int, photo_seed: int, size: int = 320) -> FaceCrop:
    """Draw one photograph of one person who does not exist.

    Args:
        identity_seed: Decides shape, colours, hair and the texture of the skin; 0 or more.
        photo_seed: Decides expression, pose, light, background and the camera; 0 or more.
        size: Side of the crop in pixels. Faces are drawn at about 360 pixels: above that they get
            larger, not finer.

    Returns:
        A crop with the same margin as :func:`llava_forgery.faces.prepare.prepare`'s, in the split
        ``"train"``. The same seeds give the same bytes.
    """
    person = draw_person(np.random.default_rng([identity_seed, 0]), identity_seed)
    rng = np.random.default_rng([identity_seed, photo_seed, 1])
    moment, light = draw_moment(person, rng), draw_light(rng)
    picture = np.ascontiguousarray(paint(_CANVAS, person, moment, light, rng).transpose(1, 2, 0))
    picture, landmarks = _tilt(picture, _CANVAS.pixels(moment.landmarks), rng)
    crop, box, landmarks = crop_square(_photograph(picture, rng), landmarks, size)
    name = f"person-{identity_seed:05d}"
    source = f"generated/{name}/{photo_seed:02d}"
    return FaceCrop(
        image=crop,
        landmarks=landmarks,
        box=box,
        video_id=source,
        identity=name,
        label=REAL,
        source=source,
        split="train",
    )


def generate_faces(
    out_dir: str | PathLike,
    identities: int = 60,
    photos: int = 2,
    size: int = 320,
    test_share: float = 0.25,
    seed: int = 0,
) -> int:
    """Draw a data set like the one that ``prepare`` writes.

    Args:
        out_dir: As in :func:`llava_forgery.faces.records.save_faces`.
        identities: Number of people.
        photos: Photographs of each.
        size: Side of the crops in pixels.
        test_share: Share of the people who go to the test split, at least one if above 0.
        seed: Of everything; other seeds give other people.

    Returns:
        The number of faces.

    Raises:
        ValueError: Fewer than one person or photograph, or too few people to split.
    """
    if identities < 1 or photos < 1:
        raise ValueError(
            f"expected one identity and one photo or more, got {identities} and {photos}"
        )
    seeds = [seed * 100_000 + i for i in range(identities)]
    # Names sort like their numbers only as long as they have the same length.
    splits = split_identities([f"{number:020d}" for number in seeds], test_share, seed)

    def crops() -> Iterator[FaceCrop]:
        for number in tqdm(seeds, desc="faces", unit="person", disable=None):
            for photo in range(photos):
                face = generate_face(number, photo, size)
                yield dataclasses.replace(face, split=splits[f"{number:020d}"])

    settings = {
        "made_by": "generate",
        "identities": identities,
        "photos": photos,
        "size": size,
        "test_share": test_share,
        "seed": seed,
    }
    return save_faces(crops(), out_dir, settings)


def _tilt(
    picture: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Turn, scale and shift the picture (H, W, 3) and the landmarks, in continuous pixels."""
    height, width = picture.shape[:2]
    angle, scale = np.deg2rad(rng.normal(0, 4)), rng.uniform(0.92, 1.0)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([width / 2, height / 2])
    shift = centre + rng.uniform(-6, 6, 2) - turn @ centre
    # warpAffine counts pixel centres, half a pixel from the edges that the landmarks count from.
    matrix = np.concatenate([turn, (shift + turn @ [0.5, 0.5] - 0.5)[:, None]], axis=1)
    picture = cv2.warpAffine(
        picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return picture, landmarks @ turn.T + shift


def _photograph(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of light (H, W, 3): exposure, blur, noise, tone and JPEG; uint8 RGB."""
    balance = rng.uniform(0.85, 1.2) * rng.normal(1, [0.025, 0.01, 0.03])
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 0.9))
    picture = cv2.multiply(picture, (*balance.tolist(), 0.0))
    np.maximum(picture, 0, out=picture)
    # A shoulder instead of hard clipping.
    picture *= (1 + 0.15 * picture) / (1 + 0.3 * picture * picture)
    np.sqrt(picture, out=picture)
    contrast = np.float32(2 * rng.uniform(0, 0.35))
    picture += contrast * picture * (1 - picture) * (picture - np.float32(0.45))
    # Shot noise grows with the root of the light: in these units it is even over the picture.
    grey = _CANVAS.noise(rng, 1)
    grain = cv2.merge([grey + _CANVAS.noise(rng, 1) for _ in range(3)])
    picture += np.float32(rng.uniform(0.002, 0.009)) * grain
    pixels = cv2.convertScaleAbs(picture, alpha=255)
    quality = int(rng.integers(75, 98))
    _, coded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])
