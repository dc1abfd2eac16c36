"""Frames to videos, by hand."""

import numpy as np
import pytest

from llava_forgery.evaluation.metrics import auc
from llava_forgery.evaluation.video import parent_folder, video_level


def test_video_level():
    scores = [0.2, 0.9, 0.4, 0.5]
    videos = ["b", "a", "b", "a"]
    mean = video_level(scores, videos, [0, 1, 0, 1])
    np.testing.assert_allclose(mean.scores, [0.3, 0.7])
    assert mean.labels.tolist() == [0, 1]
    assert mean.video_ids == ("b", "a")
    highest = video_level(scores, videos, [0, 1, 0, 1], reduce="max")
    np.testing.assert_allclose(highest.scores, [0.4, 0.9])
    assert auc(mean.labels, mean.scores) == 1.0


@pytest.mark.parametrize(
    ("videos", "labels", "reduce", "message"),
    [
        (["a", "a"], [0, 1], "mean", "the frames of video 'a' differ in label"),
        (["a"], [0, 1], "mean", "lengths differ"),
        (["a", "b"], [0, 1], "sum", "reduce must be one of mean, median, max"),
    ],
)
def test_video_level_is_checked(videos, labels, reduce, message):
    with pytest.raises(ValueError, match=message):
        video_level([0.1, 0.2], videos, labels, reduce=reduce)


def test_top_k_is_the_mean_of_the_highest():
    scores, videos = [0.1, 0.9, 0.5, 0.3, 0.8], ["a", "a", "a", "a", "b"]
    pooled = video_level(scores, videos, [1, 1, 1, 1, 0], reduce="top_k", k=2)
    np.testing.assert_allclose(pooled.scores, [0.7, 0.8])
    every = video_level(scores, videos, [1, 1, 1, 1, 0], reduce="top_k", k=9)
    np.testing.assert_allclose(every.scores, [0.45, 0.8])


# Pair 000_003 under two methods, of which the second is missed, and two real videos.
PATHS = [
    *[f"manipulated/Deepfakes/c23/frames/000_003/{i}.png" for i in range(2)],
    *[f"manipulated/NeuralTextures/c23/frames/000_003/{i}.png" for i in range(2)],
    *[f"original/youtube/c23/frames/00{v}/{i}.png" for v in (0, 3) for i in range(2)],
]
FRAMES = [0.9, 0.8, 0.1, 0.2, 0.3, 0.3, 0.4, 0.2]
TRUTH = [1, 1, 1, 1, 0, 0, 0, 0]


def test_deepfakebench_merges_the_manipulations_of_a_pair():
    ours = video_level(FRAMES, [path.rsplit("/", 1)[0] for path in PATHS], TRUTH)
    theirs = video_level(FRAMES, PATHS, TRUTH, grouping="deepfakebench")
    np.testing.assert_allclose(ours.scores, [0.85, 0.15, 0.3, 0.3])
    np.testing.assert_allclose(theirs.scores, [0.5, 0.3, 0.3])
    assert theirs.video_ids == ("000_003", "000", "003")
    assert theirs.labels.tolist() == [1, 0, 0]
    # The missed method counts in ours, and disappears in theirs.
    assert auc(ours.labels, ours.scores) == 0.5
    assert auc(theirs.labels, theirs.scores) == 1.0


def test_deepfakebench_counts_a_group_of_both_labels_as_real(caplog):
    paths = ["fake/a/0.png", "real/a/0.png", "fake/b/0.png"]
    merged = video_level([0.9, 0.1, 0.7], paths, [1, 0, 1], grouping="deepfakebench")
    assert merged.labels.tolist() == [0, 1]
    assert merged.mixed == ("a",)
    np.testing.assert_allclose(merged.scores, [0.5, 0.7])
    assert "1 of 2 groups hold real and fake frames" in caplog.text


def test_parent_folder():
    assert parent_folder("a/b/c.png") == "b"
    # As DeepfakeBench splits them: by backslashes alone where there is one.
    assert parent_folder("root/x\\Deepfakes\\000_003\\1.png") == "000_003"
    for name in ("c.png", "/c.png", 7):
        with pytest.raises(ValueError, match="takes the video from the frame's path"):
            parent_folder(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grouping": "folder"}, "grouping must be one of video_id, deepfakebench"),
        ({"grouping": "deepfakebench", "reduce": "max"}, "by their mean only"),
        ({"reduce": "top_k", "k": 0}, "k must be at least 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        video_level([0.1, 0.2], ["a/0", "b/0"], [0, 1], **options)
