import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_forgery.faces.identities import split_identities
from llava_forgery.faces.prepare import prepare
from llava_forgery.faces.records import FaceCrop, load_faces
from llava_forgery.faces.sources import find_media
from tests.faces.media import RedSquare, photograph


def run(src, out, **options):
    return prepare(src, out, detector=RedSquare(), size=64, **options)


def manifest(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_crops_and_manifest(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    photograph(src / "b.png")
    photograph(src / "a" / "c.WEBP", lossless=True)
    (src / "notes.txt").write_text("no image")
    photograph(src / ".hidden.png")
    report = run(src, out)
    assert (report.files, report.faces, report.skipped) == (2, 2, ())
    first, second = (FaceCrop.from_row(row) for row in load_faces(out))
    assert (first.source, first.video_id, first.identity) == ("a/c.WEBP", "a/c", "a/c")
    assert second.source == "b.png"
    assert (first.label, first.split) == (0, "train")
    # 40 pixels and a margin of 0.4 on each side: 72, of which the square takes the middle.
    assert second.box == pytest.approx((14, 4, 86, 76))
    assert second.image.shape == (64, 64, 3)
    np.testing.assert_allclose(second.landmarks[0], 16 * 64 / 72, atol=1e-3)
    assert second.image[32, 32, 0] > 200
    assert second.image[4, 4, 0] < 120
    assert json.loads((out / "report.json").read_text())["faces"] == 2


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(tmp_path / "src" / "a.jpg", exif=exif, quality=100)
    run(tmp_path / "src", tmp_path / "out")
    (row,) = manifest(tmp_path / "out")
    # Turned clockwise the square's centre (50, 40) of 160 x 100 comes to (60, 50) of 100 x 160.
    x0, y0, x1, y1 = row["box"]
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((60, 50), abs=1.5)


def test_bad_files_are_reported_and_the_rest_goes_on(tmp_path, caplog):
    src, out = tmp_path / "src", tmp_path / "out"
    photograph(src / "good.png")
    (src / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    Image.new("RGB", (50, 50)).save(src / "empty.png")
    report = run(src, out)
    assert report.faces == 1
    skipped = {item["file"]: item["reason"] for item in _report(out)["skipped"]}
    assert set(skipped) == {"broken.jpg", "empty.png"}
    assert "not an image" in skipped["broken.jpg"]
    assert "no face" in skipped["empty.png"]
    assert "broken.jpg" in caplog.text


def _report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def test_nothing_to_do_is_an_error(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run(src, out)
    src.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pictures or videos"):
        run(src, out)
    Image.new("RGB", (50, 50)).save(src / "a.png")
    with pytest.raises(ValueError, match=r"no face was found in any image .*a\.png"):
        run(src, out)
    assert not list(out.iterdir())


def test_single_file(tmp_path):
    photograph(tmp_path / "one.png")
    run(tmp_path / "one.png", tmp_path / "out")
    assert [row["source"] for row in manifest(tmp_path / "out")] == ["one.png"]


def test_identity_from_names(tmp_path):
    src = tmp_path / "src"
    for name in ("x/007_a.png", "x/007_b.png", "y/008_a.png"):
        photograph(src / name)
    options = {
        r"^(\d+)_": ["007", "007", "008"],
        r"(\d+)_(?P<identity>.)": ["a", "b", "a"],
        r"([^/]+)/[^/]+$": ["x", "x", "y"],
    }
    for pattern, expected in options.items():
        run(src, tmp_path / "out", identity_pattern=pattern)
        assert [row["identity"] for row in manifest(tmp_path / "out")] == expected
    for pattern, message in ((r"^(9\d+)", r"no identity in x/007_a\.png"), ("a", "no group")):
        with pytest.raises(ValueError, match=message):
            run(src, tmp_path / "out", identity_pattern=pattern)
    with pytest.raises(ValueError, match="not a regular expression"):
        run(src, tmp_path / "out", identity_pattern="(")


def test_identity_from_csv(tmp_path):
    src, table = tmp_path / "src", tmp_path / "who.csv"
    photograph(src / "x" / "a.png")
    photograph(src / "b.png")
    table.write_text("\ufefffile,identity\nx\\a.png,Ann\nb.png,Bob\n", encoding="utf-8")
    run(src, tmp_path / "out", identities_csv=table)
    assert [row["identity"] for row in manifest(tmp_path / "out")] == ["Bob", "Ann"]
    table.write_text("file,identity\nb.png,Bob\n")
    with pytest.raises(ValueError, match=r"no identity for x/a\.png \(1 of 2"):
        run(src, tmp_path / "out", identities_csv=table)
    table.write_text("file,identity\nb.png,Bob\nb.png,Ann\n")
    with pytest.raises(ValueError, match="Bob and Ann"):
        run(src, tmp_path / "out", identities_csv=table)
    table.write_text("name,who\n")
    with pytest.raises(ValueError, match="columns file,identity"):
        run(src, tmp_path / "out", identities_csv=table)
    with pytest.raises(ValueError, match="not both"):
        run(src, tmp_path / "out", identities_csv=table, identity_pattern="(.)")


def test_splits_never_share_an_identity(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    for person in range(5):
        for photo in range(3):
            photograph(src / f"{person}_{photo}.png")
    report = run(src, out, identity_pattern=r"^(\d)", test_share=0.4, seed=3)
    people = {
        split: {r["identity"] for r in manifest(out) if r["split"] == split}
        for split in ("train", "test")
    }
    assert len(people["train"]) == 3
    assert len(people["test"]) == 2
    assert not people["train"] & people["test"]
    assert report.identities_by_split == {"train": 3, "test": 2}
    assert report.faces_by_split == {"train": 9, "test": 6}
    assert load_faces(out, "test").num_rows == 6


def test_split_identities():
    names = [f"p{i}" for i in range(20)]
    splits = split_identities(names, 0.25, seed=1)
    assert splits == split_identities(names[::-1] * 2, 0.25, seed=1)
    assert splits != split_identities(names, 0.25, seed=2)
    assert list(splits.values()).count("test") == 5
    assert list(split_identities(names[:3], 0.01, 0).values()).count("test") == 1
    assert set(split_identities(names[:1], 0.0, 0).values()) == {"train"}
    with pytest.raises(ValueError, match="at least two identities"):
        split_identities(names[:1], 0.5, 0)


def test_a_split_without_a_face_is_an_error(tmp_path):
    src = tmp_path / "src"
    for name in "abcd":
        photograph(src / f"{name}.png")
    chosen = [name for name, split in split_identities("abcd", 0.25, 0).items() if split == "test"]
    Image.new("RGB", (50, 50)).save(src / f"{chosen[0]}.png")
    with pytest.raises(ValueError, match="of the test identities"):
        run(src, tmp_path / "out", test_share=0.25)


def test_out_dir(tmp_path):
    src = tmp_path / "src"
    photograph(src / "a.png")
    with pytest.raises(ValueError, match="photographs itself"):
        run(src, src)
    out = src / "out"
    run(src, out)
    photograph(out / "overlay.png")
    assert find_media(src, leave_out=out).files == ["a.png"]
    assert run(src, out).files == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("keep me")
    with pytest.raises(ValueError, match=r"holds other files \(thesis\.txt\)"):
        run(src, other)


def test_real_photographs(tmp_path, london_dir):
    pytest.importorskip("dlib")
    for name in ("001_03.jpg", "002_03.jpg"):
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / name).symlink_to(london_dir / name)
    report = prepare(
        tmp_path / "src", tmp_path / "out", identity_pattern=r"^(\d+)_", test_share=0.5
    )
    assert report.faces_by_split == {"train": 1, "test": 1}
    for row in load_faces(tmp_path / "out"):
        face = FaceCrop.from_row(row)
        assert face.image.shape == (320, 320, 3)
        assert ((face.landmarks > 0) & (face.landmarks < 320)).all()
