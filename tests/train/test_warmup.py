import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.constants import REGION_NAMES, WHOLE_FACE
from llava_forgery.data.build_qa import build_conversations
from llava_forgery.faces.records import FEATURES
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.dialogues import RowSource
from llava_forgery.train.warmup import (
    ABSENT,
    SLOTS,
    WarmUp,
    alignment_words,
    further_forgeries,
    opening_tokens,
    warm_up_fpl,
    word_vectors,
)
from tests import tiny


@pytest.fixture(scope="module")
def faces():
    return datasets.Dataset.from_list([tiny.face().to_row()], features=FEATURES)


@pytest.fixture(scope="module")
def conversations(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("align") / "qa"
    rows = build_conversations(FacePairs(faces, 4, size=tiny.SIZE), tiny.kfd(), folder)
    return RowSource(rows, "the conversations")


def _vlm(**fpl):
    host, processor = tiny.llava()
    return attach_forgery(host, processor, tiny.kfd(), FPLConfig(32, 3, **fpl))


def test_each_region_has_its_place_and_untouched_ones_a_dash():
    (forged, real) = alignment_words([1, 0], [["nose", "face"], []])
    nose, whole = REGION_NAMES.index("nose"), REGION_NAMES.index(WHOLE_FACE)
    assert len(forged) == len(real) == SLOTS
    assert (forged[nose], forged[whole], forged[-1]) == ("nose", "face", "fake")
    assert forged.count(ABSENT) == SLOTS - 3
    assert real == [ABSENT] * (SLOTS - 1) + ["real"]


def test_words_open_as_answers_say_them():
    tokenizer = tiny.tokenizer()
    opening = opening_tokens(tokenizer)
    assert len(set(map(tuple, opening.values()))) == len(REGION_NAMES) + 3
    for name, answer in (("nose", "it was edited at the nose and chin."),
                         (WHOLE_FACE, "the forged area is the whole inner face.")):  # fmt: skip
        ids = tokenizer(answer)["input_ids"]
        start = ids.index(opening[name][0])
        assert ids[start : start + len(opening[name])] == opening[name]


def test_one_token_serves_where_it_tells_the_words_apart():
    words = Tokenizer(models.WordLevel(unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["at", "the", "whole", "inner", *REGION_NAMES, "real", "fake"]
    trainer = trainers.WordLevelTrainer(special_tokens=["?", ABSENT])
    words.train_from_iterator([names], trainer)
    opening = opening_tokens(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"))
    assert {len(ids) for ids in opening.values()} == {1}
    assert opening[WHOLE_FACE] == [words.token_to_id("whole")]
    # Without "whole" and "-" among its words it cannot tell them apart.
    few = Tokenizer(models.WordLevel({"?": 0, "at": 1, "the": 2}, unk_token="?"))
    few.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match="words that the tokenizer tells apart"):
        opening_tokens(PreTrainedTokenizerFast(tokenizer_object=few, unk_token="?"))


def test_vectors_are_the_hosts_own():
    vlm = _vlm()
    ids = opening_tokens(vlm.processor.tokenizer)["nose"]
    rows = vlm.host.get_input_embeddings().weight[ids].detach()
    torch.testing.assert_close(word_vectors(vlm)["nose"], rows.mean(dim=0))


def test_warm_start_moves_the_learner_alone_towards_the_words(conversations):
    vlm = _vlm()
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    first = warm_up_fpl(vlm, conversations, WarmUp(2))
    last = warm_up_fpl(vlm, conversations, WarmUp(40))
    assert last < 0.7 * first
    changed = {n for n, t in vlm.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(name.startswith("fpl.") for name in changed)


def test_too_few_placeholders_are_an_error(conversations):
    with pytest.raises(ValueError, match="n_forgery of at least 8, got 3"):
        warm_up_fpl(_vlm(n_forgery=3), conversations, WarmUp(1))


def test_further_forgeries_are_learned_from_as_well(conversations, faces, monkeypatch):
    vlm, seen = _vlm(), []
    detect = vlm.detect

    def watched(images):
        seen.extend(images)
        return detect(images)

    monkeypatch.setattr(vlm, "detect", watched)
    more = further_forgeries(faces, 20, vlm.kfd)
    warm_up_fpl(vlm, conversations, WarmUp(1, pairs=more))
    assert len(seen) == len(conversations) + 20
    # Forged images as the detector sees those of conversations: in eight bits, at its size.
    for image, pair in zip(seen[len(conversations) :], more, strict=True):
        torch.testing.assert_close(image, pair.forged, rtol=0, atol=0.51 / 255)
        torch.testing.assert_close(image * 255, (image * 255).round(), rtol=0, atol=1e-4)


def test_further_forgeries_change_the_learner_and_workers_do_not(conversations, faces):
    learned = []
    for count, workers in ((None, 0), (6, 0), (6, 1)):
        vlm = _vlm()
        more = None if count is None else further_forgeries(faces, count, vlm.kfd)
        warm_up_fpl(vlm, conversations, WarmUp(3, pairs=more, workers=workers))
        learned.append(torch.nn.utils.parameters_to_vector(vlm.fpl.parameters()).detach())
    assert not torch.equal(learned[0], learned[1])
    assert torch.equal(learned[1], learned[2])


def test_further_forgeries_are_not_those_of_conversations(faces):
    more = further_forgeries(faces, 3, tiny.kfd(), seed=7)
    same_seed = FacePairs(faces, 3, size=tiny.SIZE, seed=7, degradation=more.degradation)
    assert more.size == tiny.SIZE
    for further, usual in zip(more, same_seed, strict=True):
        assert not torch.equal(further.forged, usual.forged)


def test_their_faces_are_looked_at_before_the_host(tmp_path):
    """Nothing is loaded for a mistake that can be seen before."""
    tiny.kfd().save_pretrained(tmp_path / "kfd")
    arguments = ["train", "adapter", "--base-model", "no-such-host", "--kfd", str(tmp_path / "kfd"),
                 "--data", "qa", "--out", "adapter",
                 "--fpl-warmup-faces", str(tmp_path / "no-faces")]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, FileNotFoundError)
    assert "no-faces" in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--fpl-warmup-steps", "0"])
    assert isinstance(result.exception, ValueError)
    assert "--fpl-warmup-steps 0 disables" in str(result.exception)
