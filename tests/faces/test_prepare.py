import json
import os
import struct
import zlib
from pathlib import Path
from unicodedata import normalize

import cv2
import numpy as np
import pytest
from PIL import Image

from llava_forgery.faces.detect import DlibDetector
from llava_forgery.faces.identities import (
    identities_from_csv,
    identities_from_pattern,
    split_identities,
)
from llava_forgery.faces.prepare import prepare
from llava_forgery.faces.records import FaceCrop, load_faces
from llava_forgery.faces.sources import find_media
from tests.faces.media import RedSquare, photograph, picture, video


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


def test_a_detectors_options_stand_in_the_settings(tmp_path):
    photograph(tmp_path / "src" / "a.png")
    detector = RedSquare()
    for out, options in (("one", {"threshold": 0.5}), ("two", {})):
        detector.options = options
        prepare(tmp_path / "src", tmp_path / out, detector=detector, size=64)
        settings = json.loads((tmp_path / out / "settings.json").read_text())
        assert settings["detector"] == {"class": "RedSquare", **options}
    assert DlibDetector(min_face=50).options["min_face"] == 50


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(tmp_path / "src" / "a.jpg", exif=exif, quality=100)
    run(tmp_path / "src", tmp_path / "out")
    (row,) = manifest(tmp_path / "out")
    # Turned clockwise the square's centre (50, 40) of 160 x 96 comes to (56, 50) of 96 x 160.
    x0, y0, x1, y1 = row["box"]
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((56, 50), abs=1.5)


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
    table.write_bytes("file,identity\nb.png,J\u00f6rg\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"who\.csv, line 2 is not UTF-8 text \(byte 0xf6\)"):
        run(src, tmp_path / "out", identities_csv=table)
    table.write_text("name,who\n")
    with pytest.raises(ValueError, match="columns file,identity"):
        run(src, tmp_path / "out", identities_csv=table)
    with pytest.raises(ValueError, match="not both"):
        run(src, tmp_path / "out", identities_csv=table, identity_pattern="(.)")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_is_the_same_letter_in_both_forms(forms):
    name, listed = (normalize(form, "Ren\u00e9e") for form in forms)
    files = [f"{name}/1.jpg", f"{normalize('NFC', name)}/2.jpg"]
    by_pattern = identities_from_pattern(files, f"^({listed})/")
    assert set(by_pattern.values()) == {"Ren\u00e9e"}
    assert list(by_pattern) == files


def test_a_table_written_on_another_system(tmp_path):
    table = tmp_path / "who.csv"
    table.write_text(
        normalize("NFC", "file,identity\nRen\u00e9e.jpg,Ren\u00e9e\n"), encoding="utf-8"
    )
    file = normalize("NFD", "Ren\u00e9e.jpg")
    assert identities_from_csv([file], table) == {file: "Ren\u00e9e"}


def test_without_a_rule_every_file_is_another_person(tmp_path, caplog):
    for name in ("img.jpg", "img.png", "other.png"):
        photograph(tmp_path / "src" / name)
    run(tmp_path / "src", tmp_path / "out")
    rows = {row["source"]: (row["identity"], row["video_id"]) for row in manifest(tmp_path / "out")}
    assert rows == {
        "img.jpg": ("img.jpg", "img.jpg"),
        "img.png": ("img.png", "img.png"),
        "other.png": ("other", "other"),
    }
    assert "may leak between the splits" in caplog.text
    caplog.clear()
    run(tmp_path / "src", tmp_path / "ruled", identity_pattern=r"^(\w+)\.")
    assert "may leak" not in caplog.text
    assert {row["identity"] for row in manifest(tmp_path / "ruled")} == {"img", "other"}
    # Two photographs of one person are still two.
    assert len({row["video_id"] for row in manifest(tmp_path / "ruled")}) == 3


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
    with pytest.raises(ValueError, match="at least one identity each and one left"):
        split_identities(names[:1], 0.5, 0)


def test_split_identities_into_three():
    names = [f"{i:02d}" for i in range(20)]
    splits = split_identities(names, 0.25, 1, val_share=0.1)
    test = {name for name, split in splits.items() if split == "test"}
    assert [list(splits.values()).count(name) for name in ("train", "val", "test")] == [13, 2, 5]
    two = split_identities(names, 0.25, 1)
    assert test == {name for name, split in two.items() if split == "test"}
    with pytest.raises(ValueError, match="one identity each and one left to train on, got 2"):
        split_identities(names[:2], 0.5, 0, val_share=0.5)


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


def test_real_photographs(tmp_path, samples_dir):
    pytest.importorskip("dlib")
    for name in ("001_03.jpg", "003_03.jpg"):
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / name).symlink_to(samples_dir / name)
    report = prepare(
        tmp_path / "src", tmp_path / "out", identity_pattern=r"^(\d+)_", test_share=0.5
    )
    assert report.faces_by_split == {"train": 1, "test": 1}
    for row in load_faces(tmp_path / "out"):
        face = FaceCrop.from_row(row)
        assert face.image.shape == (320, 320, 3)
        assert ((face.landmarks > 0) & (face.landmarks < 320)).all()


def one_bit_png(path, side):
    """A true PNG of side x side pixels, a few kilobytes long."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer, row = zlib.compressobj(9), bytes(side // 8 + 1)
    packed = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", packed), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_every_kind_of_file_gives_a_face_or_a_reason(tmp_path):
    pytest.importorskip("av")
    src, out = tmp_path / "src", tmp_path / "out"
    photograph(src / "good.jpg", quality=95)
    photograph(src / "mit Leerzeichen und ümläut.png")
    photograph(src / "写真" / "顔 1.png")
    photograph(src / "png inside.jpg", format="PNG")
    red, grey = picture((30, 20, 40)), picture((0, 0, 0))
    face = Image.fromarray(red)
    face.convert("CMYK").save(src / "cmyk.jpg", quality=95)
    face.quantize(8).save(src / "palette.png")
    alpha = np.dstack([red, np.full(red.shape[:2], 200, np.uint8)])
    alpha[20:60, 30:70, 3] = 255
    Image.fromarray(alpha).save(src / "alpha.png")
    cv2.imwrite(str(src / "16-bit.png"), red[..., ::-1].astype(np.uint16) * 257)
    more = {"save_all": True, "append_images": [Image.fromarray(grey)]}
    face.save(src / "animated.gif", **more)
    face.save(src / "animated.webp", lossless=True, **more)
    video(src / "film.mp4", [red] * 3, crf=10)
    handled = {path.relative_to(src).as_posix() for path in src.rglob("*") if path.is_file()}
    assert len(handled) == 11

    (src / "empty.png").touch()
    (src / "text.jpg").write_text("no picture")
    (src / "cut.jpg").write_bytes((src / "good.jpg").read_bytes()[:900])
    (src / "photo.mp4").write_bytes((src / "good.jpg").read_bytes())
    (src / "film.jpg").write_bytes((src / "film.mp4").read_bytes())
    (src / "text.mov").write_text("no video")
    rng = np.random.default_rng(0)
    video(src / "cut.mkv", rng.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8))
    whole = (src / "cut.mkv").read_bytes()
    (src / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1)).save(src / "one pixel.png")
    one_bit_png(src / "huge.png", 20_000)
    Image.new("F", (20, 20)).save(src / "float.tif")
    (src / "broken link.png").symlink_to(src / "nowhere.png")
    (src / os.fsdecode(b"latin-\xe4.png")).write_bytes((src / "alpha.png").read_bytes())
    for name in ("back\\slash.png", "line\nbreak.png"):
        (src / name).write_bytes((src / "alpha.png").read_bytes())
    (src / "notes.txt").write_text("passed by")

    report = run(src, out)
    # Names deceive.
    handled |= {"photo.mp4", "film.jpg"}
    assert {row["source"] for row in manifest(out)} == handled
    assert report.faces == 17  # three frames of each of the two videos
    assert report.unread == len(_report(out)["skipped"]) - 1
    reasons = {item["file"]: item["reason"] for item in _report(out)["skipped"]}
    expected = {
        "empty.png": "not an image",
        "text.jpg": "not an image",
        "cut.jpg": "could not be read as an image",
        "text.mov": "could not be read as a video",
        "cut.mkv": "cut off",
        "one pixel.png": "no face was found",
        "huge.png": "limit against decompression bombs",
        "float.tif": "unknown range",
        "broken link.png": "leads nowhere",
        "latin-\\xe4.png": "not valid UTF-8",
        "back\\slash.png": "rename it",
        "line\nbreak.png": "rename it",
    }
    assert set(reasons) == set(expected)
    for file, reason in expected.items():
        assert reason in reasons[file], file
    assert _report(out)["other_files"] == {".txt": 1}
    for row in load_faces(out):
        crop = FaceCrop.from_row(row)
        assert crop.image[32, 32, 0] > 180 > 80 > crop.image[32, 32, 1], crop.source
