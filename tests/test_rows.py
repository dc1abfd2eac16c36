"""Data sets are told apart by their values, not by where or when they were written."""

import io

import datasets
from PIL import Image

from llava_forgery.rows import rows_digest, write_rows

FEATURES = datasets.Features(
    {"image": datasets.Image(), "text": datasets.Value("string"), "points": datasets.List(
        datasets.Value("float32"))}
)  # fmt: skip


def _rows(colour=0, text="b", size=(8, 8)):
    stream = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(stream, "PNG")
    image = {"bytes": stream.getvalue(), "path": None}
    return [{"image": image, "text": name, "points": [1.0, 2.0]} for name in ("a", text, "c")]


def _made(folder=None, **changes):
    rows = _rows(**changes)
    if folder is None:
        return datasets.Dataset.from_list(rows, features=FEATURES)
    write_rows(lambda: iter(rows), FEATURES, folder)
    return datasets.load_from_disk(str(folder))


def test_a_data_set_that_is_made_again_is_the_same(tmp_path):
    one, two = _made(tmp_path / "one"), _made(tmp_path / "two")
    assert one._fingerprint != two._fingerprint
    assert rows_digest(one) == rows_digest(two) == rows_digest(_made())
    half = rows_digest(one.select([0, 2]))
    assert half == rows_digest(two.select([0, 2])) != rows_digest(one)


def test_other_values_other_rows_and_other_sizes_of_pictures_are_others(tmp_path):
    one = _made()
    others = [
        _made(text="d"),
        _made(size=(300, 300)),
        one.select([0, 2]),
        one.select([2, 0]),
        one.remove_columns("points"),
        one.rename_column("text", "words"),
    ]
    digests = {rows_digest(rows) for rows in [one, *others]}
    assert len(digests) == len(others) + 1
