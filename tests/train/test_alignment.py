import datasets
import pytest
import torch

from llava_forgery.constants import REGION_NAMES
from llava_forgery.faces.records import FEATURES
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.transformers_vlm import attach_forgery
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.alignment import (
    ABSENT,
    SLOTS,
    align_learner,
    alignment_targets,
    word_embedding,
)
from llava_forgery.train.conversations import build_conversations
from tests import tiny


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    faces = datasets.Dataset.from_list([tiny.face().to_row()], features=FEATURES)
    folder = tmp_path_factory.mktemp("align") / "qa"
    return build_conversations(FacePairs(faces, 4, size=tiny.SIZE), tiny.kfd(), folder)


def _vlm(**fpl):
    host, processor = tiny.llava()
    return attach_forgery(host, processor, tiny.kfd(), FPLConfig(32, 3, **fpl))


def test_targets_are_the_hosts_words():
    vlm = _vlm()
    targets = alignment_targets(vlm, [1, 0], [["nose", "chin"], []])
    assert targets.shape == (2, SLOTS, 32)
    nose = REGION_NAMES.index("nose")
    torch.testing.assert_close(targets[0, nose], word_embedding(vlm, "nose"))
    torch.testing.assert_close(targets[0, nose + 1], word_embedding(vlm, ABSENT))
    torch.testing.assert_close(targets[1, nose], word_embedding(vlm, ABSENT))
    torch.testing.assert_close(targets[0, -1], word_embedding(vlm, "fake"))
    torch.testing.assert_close(targets[1, -1], word_embedding(vlm, "real"))


def test_word_of_several_tokens_is_their_mean():
    vlm = _vlm()
    ids = vlm.processor.tokenizer(" nose", add_special_tokens=False)["input_ids"]
    rows = vlm.host.get_input_embeddings().weight[ids]
    torch.testing.assert_close(word_embedding(vlm, "nose"), rows.mean(dim=0).detach())


def test_warm_start_moves_the_learner_alone_towards_the_words(conversations):
    vlm = _vlm()
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    first = align_learner(vlm, conversations, steps=2)
    last = align_learner(vlm, conversations, steps=40)
    assert last < 0.7 * first
    changed = {n for n, t in vlm.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(name.startswith("fpl.") for name in changed)


def test_too_few_placeholders_are_an_error(conversations):
    with pytest.raises(ValueError, match="n_forgery of at least 8, got 3"):
        align_learner(_vlm(n_forgery=3), conversations, steps=1)
