"""Miniature trees of the benchmarks: their real folders, with empty files for videos."""

import json
from pathlib import Path

SPLITS = {"train": [["000", "003"]], "val": [["010", "011"]], "test": [["020", "021"]]}
PAIRS = [pair for pairs in SPLITS.values() for pair in pairs]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def forensics(root: Path, compressions=("c23",), methods=("Deepfakes", "FaceShifter")) -> Path:
    for split, pairs in SPLITS.items():
        path = root / "splits" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(pairs))
    for compression in compressions:
        for a, b in PAIRS:
            for name in (a, b):
                touch(root / f"original_sequences/youtube/{compression}/videos/{name}.mp4")
            for method in methods:
                for name in (f"{a}_{b}", f"{b}_{a}"):
                    touch(root / f"manipulated_sequences/{method}/{compression}/videos/{name}.mp4")
    for a, b in PAIRS:
        for method in methods:
            for name in (f"{a}_{b}", f"{b}_{a}"):
                if method != "FaceShifter":
                    touch(root / f"manipulated_sequences/{method}/masks/videos/{name}.mp4")
    return root


def dfd(root: Path) -> Path:
    touch(root / "original_sequences/actors/c23/videos/01__kitchen_pan.mp4")
    touch(root / "original_sequences/actors/c23/videos/02__kitchen_pan.mp4")
    name = "01_02__kitchen_pan__ABCDEFGH.mp4"
    touch(root / f"manipulated_sequences/DeepFakeDetection/c23/videos/{name}")
    touch(root / f"manipulated_sequences/DeepFakeDetection/masks/videos/{name}")
    return root


def celeb_df(root: Path) -> Path:
    for name in (
        "Celeb-real/id0_0000",
        "Celeb-real/id0_0001",
        "YouTube-real/00000",
        "YouTube-real/00001",
        "Celeb-synthesis/id0_id1_0000",
        "Celeb-synthesis/id1_id0_0000",
    ):
        touch(root / f"{name}.mp4")
    (root / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00001.mp4\n1 Celeb-real/id0_0001.mp4\n0 Celeb-synthesis/id1_id0_0000.mp4\n"
    )
    return root


def celeb_df_pp(root: Path) -> Path:
    for name in (
        "Celeb-real/id0_0000",
        "YouTube-real/00000",
        "YouTube-real/00001",
        "Celeb-synthesis/FaceSwap/Celeb-DF/id0_id1_0000",
        "Celeb-synthesis/FaceSwap/SimSwap/id0_id1_0000",
        "Celeb-synthesis/TalkingFace/SadTalker/id1_0000_id0",
    ):
        touch(root / f"{name}.mp4")
    (root / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00001.mp4\n0 Celeb-synthesis/TalkingFace/SadTalker/id1_0000_id0.mp4\n"
    )
    return root


def dfdcp(root: Path) -> Path:
    entries = {
        "original_videos/10/10_A.mp4": ("real", "train", "10"),
        "method_A/10/10_11_A.mp4": ("fake", "train", "10"),
        "method_B/20/20_21_A.mp4": ("fake", "test", "20"),
        "original_videos/20/20_A.mp4": ("real", "test", "20"),
    }
    for name in entries:
        touch(root / name)
    (root / "dataset.json").write_text(
        json.dumps(
            {
                name: {"label": label, "set": split, "target_id": person, "augmentations": []}
                for name, (label, split, person) in entries.items()
            }
        )
    )
    return root


def dfdc(root: Path) -> Path:
    part = root / "train/dfdc_train_part_0"
    touch(part / "aaa.mp4")
    touch(part / "bbb.mp4")
    (part / "metadata.json").write_text(
        json.dumps(
            {
                "aaa.mp4": {"label": "REAL", "split": "train"},
                "bbb.mp4": {"label": "FAKE", "split": "train", "original": "aaa.mp4"},
            }
        )
    )
    touch(root / "test/ccc.mp4")
    touch(root / "test/ddd.mp4")
    (root / "test/labels.csv").write_text("filename,label\nccc.mp4,0\nddd.mp4,1\n")
    return root
