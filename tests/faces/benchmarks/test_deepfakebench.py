"""DeepfakeBench's JSON, both ways."""

import json

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.benchmarks.deepfakebench import read_deepfakebench, to_deepfakebench
from tests.faces.benchmarks.trees import touch


@pytest.fixture
def rgb(tmp_path):
    """Pictures and masks of a real and a forged video of FaceForensics++."""
    root = tmp_path / "rgb"
    for place in ("youtube/c23/frames/000", "FF-DF/c23/frames/000_003", "FF-DF/c23/masks/000_003"):
        for name in ("000.png", "012.png"):
            touch(root / "FaceForensics++" / place / name)
    return root


def forensics(slash="/"):
    def files(place):
        return [
            f"FaceForensics++/{place}/{name}".replace("/", slash) for name in ("012.png", "000.png")
        ]

    real = {"label": "FF-real", "frames": files("youtube/c23/frames/000")}
    fake = {
        "label": "FF-DF",
        "frames": files("FF-DF/c23/frames/000_003"),
        "masks": files("FF-DF/c23/masks/000_003"),
    }
    return {
        "FaceForensics++": {
            "FF-real": {"train": {"c23": {"000": real}}, "val": {"c23": {}}, "test": {"c23": {}}},
            "FF-DF": {"train": {"c23": {"000_003": fake}}, "val": {"c23": {}}, "test": {}},
        }
    }


def written(tmp_path, value):
    (tmp_path / "set.json").write_text(json.dumps(value))
    return tmp_path / "set.json"


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_read(tmp_path, rgb, slash):
    sources = read_deepfakebench(written(tmp_path, forensics(slash)), rgb)
    assert [source.frame for source in sources] == [0, 12, 0, 12]
    real, _, fake, _ = sources
    assert (real.label, real.method, real.video_id) == (REAL, None, "FF-real/c23/000")
    assert (fake.label, fake.method, fake.video_id) == (FAKE, "Deepfakes", "FF-DF/c23/000_003")
    assert (fake.split, fake.compression) == ("train", "c23")
    assert fake.mask_path == rgb / "FaceForensics++/FF-DF/c23/masks/000_003/000.png"
    assert read_deepfakebench(written(tmp_path, forensics()), rgb, masks=False)[2].mask_path is None


def test_there_and_back(tmp_path, rgb):
    sources = read_deepfakebench(written(tmp_path, forensics()), rgb)
    value = to_deepfakebench(sources, "FaceForensics++", rgb)
    video = value["FaceForensics++"]["FF-DF"]["train"]["c23"]["000_003"]
    assert video == {
        "label": "FF-DF",
        "frames": [
            f"./datasets/rgb/FaceForensics++/FF-DF/c23/frames/000_003/{n}.png"
            for n in ("000", "012")
        ],
        "masks": [
            f"./datasets/rgb/FaceForensics++/FF-DF/c23/masks/000_003/{n}.png"
            for n in ("000", "012")
        ],
    }
    assert set(value["FaceForensics++"]["FF-real"]) == {"train", "val", "test"}
    assert read_deepfakebench(written(tmp_path, value), rgb) == sources


def test_data_sets_without_compression(tmp_path):
    entry = {"label": "CelebDFv2_fake", "frames": [str(touch(tmp_path / "a/0.png"))]}
    value = {"Celeb-DF-v2": {"CelebDFv2_fake": {"test": {"id0_id1_0000": entry}}}}
    (source,) = read_deepfakebench(written(tmp_path, value), tmp_path)
    assert (source.video_id, source.compression) == ("CelebDFv2_fake/id0_id1_0000", None)
    back = to_deepfakebench([source], "Celeb-DF-v2", tmp_path)
    assert list(back["Celeb-DF-v2"]["CelebDFv2_fake"]["test"]) == ["id0_id1_0000"]
    assert list(to_deepfakebench([source], "Mine", tmp_path)["Mine"]) == ["Mine_fake"]
    with pytest.raises(ValueError, match="'Celeb-synthesis' has no label in DFDCP"):
        to_deepfakebench([source], "DFDCP", tmp_path)
    with pytest.raises(ValueError, match="has no compression"):
        to_deepfakebench([source], "DeepFakeDetection", tmp_path)


def test_a_video_in_two_splits(tmp_path, rgb):
    value = forensics()
    labels = value["FaceForensics++"]["FF-real"]
    labels["test"] = labels["train"]
    with pytest.raises(ValueError, match="FF-real/c23/000 is in the splits train and test"):
        read_deepfakebench(written(tmp_path, value), rgb)
    sources = read_deepfakebench(written(tmp_path, value), rgb, splits=["test"])
    assert {source.split for source in sources} == {"test"}


def change(value, what):
    """Spoil the forged video."""
    labels = value["FaceForensics++"]
    video = labels["FF-DF"]["train"]["c23"]["000_003"]
    if what == "label":
        labels["FF-XX"] = labels.pop("FF-DF")
    elif what == "inner label":
        video["label"] = "FF-real"
    elif what == "mask missing":
        video["masks"].pop()
    elif what == "frame missing":
        video["frames"].pop()
    elif what == "no frames":
        video["frames"] = []
    elif what == "file":
        video["frames"][0] = video["frames"][0].replace("012", "013")
        video["masks"][0] = video["masks"][0].replace("012", "013")
    elif what == "mask file":
        video["frames"] = ["FaceForensics++/FF-DF/c23/frames/000_003/012.png"]
        video["masks"] = ["FaceForensics++/FF-DF/c23/masks/000_004/012.png"]
    elif what == "structure":
        labels["FF-DF"]["train"] = []
    return value


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("label", ValueError, "unknown label 'FF-XX'"),
        ("inner label", ValueError, "000_003 has the label 'FF-real'"),
        ("mask missing", ValueError, "the frames 000 have no masks"),
        ("frame missing", ValueError, "no frames belong to the masks 000"),
        ("no frames", ValueError, "000_003 has no frames"),
        ("file", FileNotFoundError, "there is no file .*013.png below .*rgb.*--partial"),
        ("mask file", FileNotFoundError, "there is no mask .*000_004.012.png below .*--no-masks"),
        ("structure", ValueError, "expected an object, got list"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, rgb, what, error, message):
    with pytest.raises(error, match=message):
        read_deepfakebench(written(tmp_path, change(forensics(), what)), rgb)


def entry_of(tmp_path, label, names, masks=()):
    """A JSON with one video of these frames, all of which are there."""
    for name in (*names, *masks):
        touch(tmp_path / name)
    entry = {"label": label, "frames": list(names), "masks": list(masks)}
    return written(tmp_path, {"set": {label: {"test": {"v": entry}}}})


def test_every_frame_is_kept_in_numeric_order(tmp_path):
    names = ["f/a/10.png", "f/a/2.png", "f/b/2.png"]
    path = entry_of(tmp_path, "DF_fake", names, [n.replace("f/", "m/") for n in names])
    sources = read_deepfakebench(path, tmp_path)
    assert [source.path.relative_to(tmp_path).as_posix() for source in sources] == [
        "f/a/2.png", "f/b/2.png", "f/a/10.png",
    ]  # fmt: skip
    assert [source.frame for source in sources] == [2, 2, 10]
    assert [source.name for source in sources] == [
        "DF_fake/v/a/2.png", "DF_fake/v/b/2.png", "DF_fake/v/a/10.png",
    ]  # fmt: skip
    # Each has the mask of its own folder.
    assert [s.mask_path for s in sources] == [
        tmp_path / "m" / s.path.relative_to(tmp_path / "f") for s in sources
    ]
    back = to_deepfakebench(sources, "DeepFaces", tmp_path)
    frames = back["DeepFaces"]["DeepFaces_fake"]["test"]["v"]["frames"]
    assert [frame.rsplit("/", 1)[1] for frame in frames] == ["2.png", "2.png", "10.png"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("simswap_Fake", (FAKE, "simswap")),
        ("e4s_Real", (REAL, None)),
        ("one_shot_free_Fake", (FAKE, "one_shot_free")),
        ("FSAll_fake", (FAKE, "FSAll")),
        ("DFDC_Fake", (FAKE, None)),
    ],
)
def test_labels_of_df40(tmp_path, label, expected):
    (source,) = read_deepfakebench(entry_of(tmp_path, label, ["x/b7.png"]), tmp_path)
    assert (source.label, source.method) == expected
    # A generator's picture is no frame of a video.
    assert source.frame is None


def test_a_part_of_the_frames(tmp_path, rgb, caplog):
    path = written(tmp_path, change(forensics(), "file"))
    sources = read_deepfakebench(path, rgb, partial=True)
    assert [source.frame for source in sources] == [0, 12, 0]
    assert "1 of its frames are not below" in caplog.text
    with pytest.raises(FileNotFoundError, match="of the 4 frames .* none is below"):
        read_deepfakebench(path, tmp_path / "elsewhere", partial=True)


@pytest.mark.parametrize("path", ["../secret/000.png", "{}/secret/000.png", "..\\secret\\000.png"])
def test_no_picture_outside_the_folder_is_read(tmp_path, rgb, path):
    touch(tmp_path / "secret/000.png")
    value = forensics()
    entry = value["FaceForensics++"]["FF-real"]["train"]["c23"]["000"]
    entry["frames"] = [path.format(tmp_path)]
    with pytest.raises(ValueError, match=r"FF-real, train, 000: the path .* leads out of .*rgb"):
        read_deepfakebench(written(tmp_path, value), rgb)
    # Absolute paths are good in the folder that holds all pictures.
    entry["frames"] = [str(tmp_path / "secret/000.png")]
    del value["FaceForensics++"]["FF-DF"]
    (source,) = read_deepfakebench(written(tmp_path, value), tmp_path)
    assert source.path == tmp_path / "secret/000.png"


@pytest.mark.parametrize("video", ["../../../000", "/tmp/000", "a\\..\\b"])
def test_no_name_of_a_video_leads_elsewhere(tmp_path, rgb, video):
    value = forensics()
    videos = value["FaceForensics++"]["FF-real"]["train"]["c23"]
    videos[video] = videos.pop("000")
    with pytest.raises(ValueError, match="must be a name such as"):
        read_deepfakebench(written(tmp_path, value), rgb)
