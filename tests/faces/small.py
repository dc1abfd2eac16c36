"""A large picture with small faces, for every finder."""

import cv2
import numpy as np

from llava_forgery.images import read_image


def check_small_faces(detector, samples_dir, shape, side=64):
    """Three people, faces ``side`` pixels across, in corners and middle of a picture (H, W)."""
    height, width = shape
    picture = np.full((height, width, 3), 150, np.uint8)
    expected = []
    for i, name in enumerate(("001_03.jpg", "043_03.jpg", "119_08.jpg")):
        image = read_image(samples_dir / name)
        (face,) = detector.detect(image)
        scale = side / (face.box[2] - face.box[0])
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        y, x = (i * (length - part) // 2 for length, part in zip(shape, small.shape, strict=False))
        picture[y : y + small.shape[0], x : x + small.shape[1]] = small
        expected.append(face.landmarks * scale + np.float32([x, y]))
    found = detector.detect(picture)
    assert len(found) == 3
    for face, points in zip(sorted(found, key=lambda f: f.box[0]), expected, strict=True):
        # Across the eyes are some 28 pixels.
        assert np.linalg.norm(face.landmarks - points, axis=1).mean() < 4
    assert detector.smallest_face(height, width) == side
