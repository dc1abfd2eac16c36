"""The photographs of ``samples/``: what demo and tests count on, and what their licence asks."""

import csv
from collections import Counter

from PIL import Image


def test_two_photographs_each_of_forty_people(samples_dir):
    files = sorted(samples_dir.glob("*.jpg"))
    people = Counter(file.name.split("_")[0] for file in files)
    assert (len(people), set(people.values())) == (40, {2})
    with (samples_dir / "eyes.csv").open(newline="") as lines:
        marked = [row["file"] for row in csv.DictReader(lines)]
    assert marked == [file.name for file in files if file.stem.endswith("_03")]
    assert sum(file.stat().st_size for file in samples_dir.iterdir()) < 4_000_000
    for file in files:
        with Image.open(file) as photo:
            assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (320, 320))
            # No EXIF, profile or comment: only what every JPEG says of itself.
            assert {key for key in photo.info if "jfif" not in key} == set(), file.name


def test_source_and_licence_are_beside_them(samples_dir):
    for name in ("README.md", "LICENSE"):
        text = (samples_dir / name).read_text()
        for part in ("DeBruine and", "Jones", "2017", "10.6084/m9.figshare.5047666.v5", "by/4.0/"):
            assert part in text, (name, part)
