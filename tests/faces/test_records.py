import dataclasses
import json

import datasets
import numpy as np
import pytest

from llava_forgery.faces.records import (
    FEATURES,
    OPTIONAL,
    FaceCrop,
    encode_png,
    load_faces,
    save_faces,
    save_rows,
)
from tests import tiny


def face(number=0, split="train", **changes):
    rng = np.random.default_rng(number)
    values = {
        "image": rng.integers(0, 256, (24, 24, 3), dtype=np.uint8),
        "landmarks": rng.uniform(-2, 26, (68, 2)).astype(np.float32),
        "box": (-3.5, 2.25, 20.5, 26.25),
        "video_id": f"v{number}",
        "identity": f"p{number}",
        "label": number % 2,
        "source": f"sub/v{number}.jpg",
        "split": split,
    }
    return FaceCrop(**{**values, **changes})


def test_round_trip_is_exact(tmp_path):
    told = {"frame": 12, "track": 0, "method": "Deepfakes", "compression": "c23", "angle": -3.25}
    faces = [face(0), face(1, "test", **told), face(2, "val")]
    assert save_faces(iter(faces), tmp_path / "out", {"size": 24}) == 3
    for folder in (tmp_path / "out", tmp_path / "out" / "faces"):
        loaded = [FaceCrop.from_row(row) for row in load_faces(folder)]
        for before, after in zip(faces, loaded, strict=True):
            np.testing.assert_array_equal(before.image, after.image)
            np.testing.assert_array_equal(before.landmarks, after.landmarks)
            for field in dataclasses.fields(FaceCrop)[2:]:
                assert getattr(before, field.name) == getattr(after, field.name)
    rows = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").open()]
    assert [row["video_id"] for row in rows] == ["v0", "v1", "v2"]
    assert all("image" not in row for row in rows)
    assert {name: rows[1][name] for name in told} == told
    assert not rows[0].keys() & told.keys()
    assert json.loads((tmp_path / "out/settings.json").read_text()) == {"size": 24}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "faces",
        "manifest.jsonl",
        "settings.json",
    ]


def test_masks_come_back(tmp_path):
    mask = np.zeros((24, 24), np.uint8)
    mask[3:9, 5:] = 255
    save_faces([face(0, mask=mask), face(1)], tmp_path, {})
    first, second = (FaceCrop.from_row(row) for row in load_faces(tmp_path))
    np.testing.assert_array_equal(first.mask, mask)
    assert second.mask is None


def test_faces_of_an_earlier_version_are_read(tmp_path):
    save_faces([face(0)], tmp_path / "new", {})
    faces = load_faces(tmp_path / "new")
    faces.remove_columns(list(OPTIONAL)).save_to_disk(tmp_path / "old/faces")
    (row,) = load_faces(tmp_path / "old")
    assert FaceCrop.from_row(row).track is None
    faces.remove_columns(["box"]).save_to_disk(tmp_path / "other/faces")
    with pytest.raises(ValueError, match="another data set"):
        load_faces(tmp_path / "other")


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("path", ["secret.png", "https://example.org/secret.png"])
def test_no_path_or_url_in_a_row_is_opened(tmp_path, column, path):
    path = path if "://" in path else str(tmp_path / path)
    save_faces([face(0, mask=np.zeros((24, 24), np.uint8)), face(1)], tmp_path / "good", {})
    (tmp_path / "secret.png").write_bytes(encode_png(face(2).image))
    rows = [dict(row) for row in load_faces(tmp_path / "good")]
    rows[0][column] = {"bytes": None, "path": path}
    with pytest.raises(ValueError, match=f"no picture but the path '{path}', which is not opened"):
        FaceCrop.from_row(rows[0])
    tiny.write_linked(rows, FEATURES, tmp_path / "bad/faces")
    with pytest.raises(ValueError, match=f"column '{column}' of .*bad/faces holds no picture but"):
        load_faces(tmp_path / "bad")
    with pytest.raises(ValueError, match=f"{column} holds no picture but the path"):
        save_rows(rows, tmp_path / "copy", {})


def test_no_column_is_decoded_as_sound_or_film(tmp_path):
    save_faces([face(0)], tmp_path / "good", {})
    rows = load_faces(tmp_path / "good").to_list()
    rows[0]["source"] = "https://example.org/a.mp4"
    features = datasets.Features({**FEATURES, "source": datasets.Video()})
    tiny.write_linked(rows, features, tmp_path / "bad/faces")
    with pytest.raises(ValueError, match=r"column 'source' of .* holds Video"):
        load_faces(tmp_path / "bad")


def test_split_selects_and_complains(tmp_path):
    save_faces([face(0), face(1, "test")], tmp_path, {})
    assert load_faces(tmp_path, "test")["identity"] == ["p1"]
    with pytest.raises(ValueError, match="no face of the split 'val', only of test, train"):
        load_faces(tmp_path, "val")
    with pytest.raises(ValueError, match="must be one of"):
        load_faces(tmp_path, "dev")


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_faces(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no prepared faces"):
        load_faces(tmp_path)


def test_an_error_leaves_the_old_faces(tmp_path):
    save_faces([face(0)], tmp_path, {})

    def breaks():
        yield face(1)
        raise RuntimeError("camera fell")

    with pytest.raises(RuntimeError, match="camera fell"):
        save_faces(breaks(), tmp_path, {})
    assert load_faces(tmp_path)["video_id"] == ["v0"]
    assert len(list(tmp_path.iterdir())) == 3
    save_faces([face(1), face(2)], tmp_path, {})
    assert load_faces(tmp_path)["video_id"] == ["v1", "v2"]
    with pytest.raises(ValueError, match="no faces"):
        save_faces([], tmp_path, {})


def test_identity_in_two_splits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'p1' is in the splits train and test"):
        save_faces(
            [face(1), face(2, "test", identity="p1", video_id="other")], tmp_path / "out", {}
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 5, 3), np.uint8)}, r"\(S, S, 3\)"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "uint8"),
        ({"landmarks": np.zeros((5, 2), np.float32)}, r"\(68, 2\)"),
        ({"landmarks": np.zeros((68, 2))}, "float32"),
        ({"landmarks": np.full((68, 2), np.inf, np.float32)}, "finite"),
        ({"label": 2}, "label"),
        ({"split": "dev"}, "split"),
        ({"identity": ""}, "identity"),
        ({"video_id": "../../v"}, r"video_id must be a name .* got '\.\./\.\./v'"),
        ({"video_id": "/tmp/v"}, "video_id"),
        ({"identity": "a\\b"}, "identity"),
        ({"source": "C:/a.jpg"}, "source"),
        ({"compression": "c23\0"}, "compression"),
        ({"method": ".."}, "method"),
        ({"box": (3.0, 0.0, 1.0, 4.0)}, "box"),
        ({"frame": -1}, "frame"),
        ({"track": 0.5}, "track"),
        ({"method": ""}, "method"),
        ({"angle": float("nan")}, "angle"),
        ({"mask": np.zeros((4, 4), np.uint8)}, r"mask must have the image's shape \(24, 24\)"),
        ({"mask": np.zeros((24, 24), bool)}, "mask must be None or a uint8"),
    ],
)
def test_validation(changes, message):
    with pytest.raises(ValueError, match=message):
        face(0, **changes)
    with pytest.raises(ValueError, match="lacks landmarks"):
        FaceCrop.from_row({k: v for k, v in face(0).to_row().items() if k != "landmarks"})
