"""Videos and photographs whose "faces" are red squares, and a detector that finds these."""

import hashlib
import os
import signal
import time

import av
import numpy as np
from PIL import Image

from llava_forgery.faces.detect import DetectedFace
from llava_forgery.faces.records import FaceCrop, load_faces


class RedSquare:
    """Takes the red squares of a picture for faces; landmarks on a grid in them."""

    def detect(self, image):
        red = (image[..., 0] > 180) & (image[..., 1] < 80)
        faces = []
        # Squares stand side by side: empty columns part them.
        columns = np.flatnonzero(np.diff(np.pad(red.any(axis=0), 1).astype(int)))
        for left, right in columns.reshape(-1, 2):
            rows = np.flatnonzero(red[:, left:right].any(axis=1))
            box = (float(left), float(rows[0]), float(right), float(rows[-1] + 1))
            corner, far = np.array(box[:2]), np.array(box[2:])
            share = np.linspace(0, 1, 68)[:, None]
            points = (corner + share * (far - corner)).astype(np.float32)
            faces.append(DetectedFace(box, points, 1.0))
        return sorted(faces, key=lambda face: face.box[0] - face.box[2])


class SlowRedSquare(RedSquare):
    """Slow enough to be killed in the middle."""

    def detect(self, image):
        time.sleep(0.25)
        return super().detect(image)


class FatalRedSquare(RedSquare):
    """Its process dies over pictures of 50 rows, as over a bug in a decoder."""

    def detect(self, image):
        if len(image) == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().detect(image)


def picture(*squares, shape=(96, 160)):
    """(H, W, 3): grey with red squares (x, y, side)."""
    image = np.full((*shape, 3), 90, np.uint8)
    for x, y, side in squares:
        image[y : y + side, x : x + side] = (230, 20, 20)
    return image


def photograph(path, *squares, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(*(squares or [(30, 20, 40)]))).save(path, **options)


def video(path, frames, codec="libx264", rate=25, **options):
    """Write (H, W, 3) uint8 frames; options are the codec's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The index first, so that a file that is cut off can still be opened.
    start = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=start) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {key: str(value) for key, value in options.items()}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def numbered(length):
    """(48, 112, 3) frames whose seven columns, bright or dark, are their number's bits."""
    columns = np.arange(112) // 16
    bits = [(i >> columns & 1) * 180 + 40 for i in range(length)]
    return [np.broadcast_to(row[None, :, None], (48, 112, 3)).astype(np.uint8) for row in bits]


def number_of(frame):
    """The inverse of :func:`numbered`."""
    bright = frame[24, 8::16].mean(axis=1) > 128
    return int((bright << np.arange(7)).sum())


def contents(out):
    """Everything a prepared folder says, to be compared."""
    faces = [FaceCrop.from_row(row) for row in load_faces(out)]
    pixels = hashlib.sha256()
    for face in faces:
        pixels.update(face.image.tobytes())
        pixels.update(b"" if face.mask is None else face.mask.tobytes())
    names = ("manifest.jsonl", "settings.json", "report.json")
    return [pixels.hexdigest(), *((out / name).read_text() for name in names)]
