"""FaceForensics++, DFD, Celeb-DF, DFDCP and DFDC on miniature trees."""

import json
import logging
import shutil

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.benchmarks.celeb_df import read_celeb_df, read_celeb_df_pp
from llava_forgery.faces.benchmarks.dfdc import read_dfdc, read_dfdcp
from llava_forgery.faces.benchmarks.forensics import read_dfd, read_forensics
from llava_forgery.faces.benchmarks.manifest import read_benchmark
from llava_forgery.faces.sources import check_sources
from tests.faces.benchmarks import trees


def by_id(sources):
    check_sources(sources)
    return {source.video_id: source for source in sources}


def test_forensics(tmp_path):
    root = trees.forensics(tmp_path, compressions=("c23", "c40"))
    sources = by_id(read_forensics(root, compressions=("c23", "c40")))
    assert len(sources) == 2 * (6 + 6 + 6)
    real, fake = sources["youtube/c40/020"], sources["Deepfakes/c40/021_020"]
    assert (real.label, real.split, real.method, real.mask_path) == (REAL, "test", None, None)
    assert (fake.label, fake.split, fake.method) == (FAKE, "test", "Deepfakes")
    assert (fake.compression, fake.identity) == ("c40", "020_021")
    assert real.identity == fake.identity
    # One mask for all compressions; FaceShifter has none.
    assert fake.mask_path == root / "manipulated_sequences/Deepfakes/masks/videos/021_020.mp4"
    assert sources["Deepfakes/c23/021_020"].mask_path == fake.mask_path
    assert sources["FaceShifter/c23/021_020"].mask_path is None
    assert fake.name == "manipulated_sequences/Deepfakes/c40/videos/021_020.mp4"
    counts = {split: sum(s.split == split for s in sources.values()) for split in trees.SPLITS}
    assert counts == {"train": 12, "val": 12, "test": 12}
    chosen = read_forensics(root, methods=["FaceShifter"], masks=False)
    assert {source.method for source in chosen} == {None, "FaceShifter"}


def test_forensics_that_is_not_complete(tmp_path, caplog):
    root = trees.forensics(tmp_path)
    (root / "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4").unlink()
    with pytest.raises(FileNotFoundError, match="masks of 000_003.*not an empty one"):
        read_forensics(root)
    trees.touch(root / "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4")
    (root / "manipulated_sequences/Deepfakes/c23/videos/003_000.mp4").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 003_000"):
        read_forensics(root)
    with caplog.at_level(logging.WARNING):
        assert len(read_forensics(root, partial=True)) == 17
    assert "1 of 6 videos are missing" in caplog.text
    trees.touch(root / "manipulated_sequences/Deepfakes/c23/videos/003_000.mp4")
    trees.touch(root / "manipulated_sequences/Deepfakes/masks/videos/900_901.mp4")
    with pytest.raises(FileNotFoundError, match="masks of 900_901"):
        read_forensics(root)


def test_forensics_splits_are_checked(tmp_path):
    root = trees.forensics(tmp_path)
    (root / "splits/val.json").write_text(json.dumps([["010", "011"], ["003", "012"]]))
    with pytest.raises(ValueError, match="video 003 is in two pairs.*train and val"):
        read_forensics(root)
    (root / "splits/val.json").write_text(json.dumps([["010", "1x"]]))
    with pytest.raises(ValueError, match="expected pairs"):
        read_forensics(root)
    (root / "splits/val.json").write_text("[]")
    with pytest.raises(ValueError, match="holds 010, 011, which are not on the benchmark's lists"):
        read_forensics(root)
    (root / "splits/val.json").unlink()
    with pytest.raises(FileNotFoundError, match="val.json; expected the official splits"):
        read_forensics(root)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ["DeepFakes"]}, ValueError, "unknown method 'DeepFakes'"),
        ({"methods": ["Face2Face"]}, FileNotFoundError, "the videos of Face2Face"),
        ({"compressions": ["c30"]}, ValueError, "unknown compression 'c30'"),
        ({"compressions": ["raw"]}, FileNotFoundError, "youtube/raw/videos"),
        ({"compressions": []}, ValueError, "at least one compression"),
    ],
)
def test_forensics_options(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        read_forensics(trees.forensics(tmp_path), **options)


def test_dfd(tmp_path):
    root = trees.dfd(tmp_path)
    sources = by_id(read_dfd(root))
    fake = sources["DeepFakeDetection/c23/01_02__kitchen_pan__ABCDEFGH"]
    assert (fake.label, fake.split, fake.identity) == (FAKE, "test", "01")
    assert fake.mask_path.name == "01_02__kitchen_pan__ABCDEFGH.mp4"
    assert sources["actors/c23/02__kitchen_pan"].label == REAL
    trees.touch(root / "original_sequences/actors/c23/videos/kitchen.mp4")
    with pytest.raises(ValueError, match="kitchen.mp4 is not named like 01__scene"):
        read_dfd(root)


def test_celeb_df_counts_the_other_way_round(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        sources = by_id(read_celeb_df(trees.celeb_df(tmp_path)))
    labels = {name: source.label for name, source in sources.items()}
    assert labels["YouTube-real/00001"] == REAL
    assert labels["Celeb-synthesis/id1_id0_0000"] == FAKE
    testing = {name for name, source in sources.items() if source.split == "test"}
    assert testing == {
        "YouTube-real/00001", "Celeb-real/id0_0001", "Celeb-synthesis/id1_id0_0000",
    }  # fmt: skip
    # id0 is in both splits: said, and no identity claimed.
    assert "share people (identity id0" in caplog.text
    assert {source.identity for source in sources.values()} == {None}


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("0 YouTube-real/00000.mp4", ValueError, "listed as fake .1 is real., but its folder"),
        ("1 Celeb-synthesis/id0_id1_0000.mp4", ValueError, "listed as real"),
        ("2 YouTube-real/00000.mp4", ValueError, "line 4: expected '1 Celeb-real"),
        ("YouTube-real/00000.mp4", ValueError, "line 4: expected"),
        ("1 Other/00000.mp4", ValueError, "is in none of"),
        ("1 YouTube-real/00001.mp4", ValueError, "listed twice"),
        ("1 YouTube-real/00009.mp4", FileNotFoundError, "lacks YouTube-real/00009"),
    ],
)
def test_celeb_df_list_is_checked(tmp_path, line, error, message):
    root = trees.celeb_df(tmp_path)
    with (root / "List_of_testing_videos.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(error, match=message):
        read_celeb_df(root)


def test_celeb_df_pp(tmp_path):
    root = trees.celeb_df_pp(tmp_path)
    sources = by_id(read_celeb_df_pp(root))
    methods = {name: source.method for name, source in sources.items() if source.label == FAKE}
    assert methods == {
        "Celeb-synthesis/FaceSwap/Celeb-DF/id0_id1_0000": "Celeb-DF",
        "Celeb-synthesis/FaceSwap/SimSwap/id0_id1_0000": "SimSwap",
        "Celeb-synthesis/TalkingFace/SadTalker/id1_0000_id0": "SadTalker",
    }
    assert {name for name, source in sources.items() if source.split == "test"} == {
        "YouTube-real/00001", "Celeb-synthesis/TalkingFace/SadTalker/id1_0000_id0",
    }  # fmt: skip
    assert sources["Celeb-synthesis/FaceSwap/SimSwap/id0_id1_0000"].identity == "id0"
    assert sources["Celeb-synthesis/TalkingFace/SadTalker/id1_0000_id0"].identity == "id1"
    with pytest.raises(ValueError, match=r"is Celeb-DF\+\+: .*read it as celeb-df\+\+"):
        read_celeb_df(root)
    (root / "Celeb-synthesis/TalkingFace/SadTalker/id1_0000_id0.mp4").unlink()
    with pytest.raises(FileNotFoundError, match="lacks Celeb-synthesis/TalkingFace/SadTalker"):
        read_celeb_df_pp(root)
    assert len(read_celeb_df_pp(root, partial=True)) == len(sources) - 1
    with pytest.raises(FileNotFoundError, match="celeb-df-v1 and celeb-df-v2"):
        read_celeb_df_pp(trees.celeb_df(tmp_path / "v2"))


@pytest.mark.parametrize(
    ("name", "make", "folder"),
    [
        ("ff++", trees.forensics, "original_sequences"),
        ("dfd", trees.dfd, "original_sequences"),
        ("celeb-df-v2", trees.celeb_df, "Celeb-real"),
        ("celeb-df-v2", trees.celeb_df, "Celeb-synthesis"),
        ("celeb-df++", trees.celeb_df_pp, "Celeb-synthesis"),
        ("dfdcp", trees.dfdcp, "original_videos"),
        ("dfdc", trees.dfdc, "test/ccc.mp4"),
    ],
)
def test_every_importer_takes_a_part(tmp_path, name, make, folder):
    root = make(tmp_path)
    whole = read_benchmark(name, root)
    part = root / folder
    part.unlink() if part.is_file() else shutil.rmtree(part)
    with pytest.raises(FileNotFoundError, match="--partial|celeb-df-v1"):
        read_benchmark(name, root)
    left = read_benchmark(name, root, partial=True)
    assert {s.name for s in left} == {s.name for s in whole if not s.name.startswith(folder)}


def test_celeb_df_folders_are_checked(tmp_path):
    root = trees.celeb_df(tmp_path)
    trees.touch(root / "Celeb-real/someone.mp4")
    with pytest.raises(ValueError, match="someone.mp4 is not named like the videos of Celeb-real"):
        read_celeb_df(root)
    (root / "List_of_testing_videos.txt").unlink()
    with pytest.raises(FileNotFoundError, match="List_of_testing_videos.txt"):
        read_celeb_df(root)


def test_dfdcp(tmp_path):
    root = trees.dfdcp(tmp_path)
    sources = by_id(read_dfdcp(root))
    fake = sources["method_B/20/20_21_A"]
    assert (fake.label, fake.split, fake.identity) == (FAKE, "test", "20")
    assert fake.method == "method_B"
    assert sources["original_videos/10/10_A"].method is None
    trees.touch(root / "method_A/10/extra.mp4")
    with pytest.raises(ValueError, match="holds method_A/10/extra.mp4, which"):
        read_dfdcp(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"label": "unsure"}, "must be real or fake, got 'unsure'"), ({"set": "dev"}, "got 'dev'")],
)
def test_dfdcp_entries_are_checked(tmp_path, change, message):
    root = trees.dfdcp(tmp_path)
    entries = json.loads((root / "dataset.json").read_text())
    entries["method_A/10/10_11_A.mp4"] |= change
    (root / "dataset.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=f"10_11_A.mp4: .*{message}"):
        read_dfdcp(root)


def test_dfdc(tmp_path):
    root = trees.dfdc(tmp_path)
    sources = by_id(read_dfdc(root))
    assert {name: (s.label, s.split) for name, s in sources.items()} == {
        "train/aaa": (REAL, "train"),
        "train/bbb": (FAKE, "train"),
        "test/ccc": (REAL, "test"),
        "test/ddd": (FAKE, "test"),
    }
    assert sources["train/bbb"].identity == sources["train/aaa"].identity
    assert set(by_id(read_dfdc(root, splits=["test"]))) == {"test/ccc", "test/ddd"}
    with pytest.raises(FileNotFoundError, match="the val videos of DFDC"):
        read_dfdc(root, splits=["val"])
    (root / "test/ddd.mp4").unlink()
    with pytest.raises(FileNotFoundError, match="lacks ddd.mp4"):
        read_dfdc(root)
    (root / "test/labels.csv").write_text("filename,label\nccc.mp4,REAL\n")
    with pytest.raises(ValueError, match="line 2: the label of ccc.mp4 must be 0"):
        read_dfdc(root)
