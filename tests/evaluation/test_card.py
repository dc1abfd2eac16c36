"""What an evaluation writes into an adapter's model card."""

import pytest

from llava_forgery.evaluation.card import card_figures, write_figures
from llava_forgery.hosts.adapter import write_card


def test_figures_of_forgeries_and_of_videos(tmp_path):
    simulated = {
        "images": 120,
        "kfd": {"auc": 0.9, "auc_interval": [0.8, 1.0], "ap": 0.91, "eer": 0.1, "mask_iou": 0.4},
        "text": {"auc": 0.8, "ap": None, "accuracy": 0.75, "unparsed": 3},
        "regions_f1": 0.5,
    }
    assert card_figures(simulated) == {
        "detector auc": 0.9, "detector ap": 0.91, "detector eer": 0.1, "detector mask_iou": 0.4,
        "answer auc": 0.8, "answer accuracy": 0.75, "regions F1": 0.5,
    }  # fmt: skip
    labelled = {"images": 9, "kfd": {"frame": {"auc": 0.6}, "video": {"auc": 0.7, "fpr": 0.0}}}
    assert card_figures(labelled) == {"detector auc": 0.7, "detector fpr": 0.0}
    write_card(tmp_path, "someone/llava", True, {})
    write_figures(tmp_path, simulated, "simulated forgeries")
    text = (tmp_path / "README.md").read_text()
    assert "On 120 images (simulated forgeries):" in text
    assert "| detector mask iou | 0.4 |" in text
    with pytest.raises(FileNotFoundError, match="model card"):
        write_figures(tmp_path / "none", simulated, "simulated forgeries")
