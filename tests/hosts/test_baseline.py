"""A host without the FPL: frozen, LoRA saved and read back."""

import datasets
import pytest
import torch
from PIL import Image

from eval.papers.host_scorer import HostScorer
from llava_forgery.data.build_qa import build_conversations
from llava_forgery.faces.records import FEATURES
from llava_forgery.hosts.baseline import BaselineVLM
from llava_forgery.hosts.likelihood import answer_probabilities
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.qa.build import build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.adapter import train_adapter
from tests import tiny

LORA = LoraSettings(r=2, alpha=4, dropout=0.0)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    faces = datasets.Dataset.from_list([tiny.face(i).to_row() for i in range(3)], features=FEATURES)
    folder = tmp_path_factory.mktemp("plain") / "qa"
    return build_conversations(FacePairs(faces, 4, size=tiny.SIZE), tiny.kfd(), folder)


def test_lora_alone_learns_and_is_read_back(conversations, tmp_path):
    plain = BaselineVLM(*tiny.llava(), LORA)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    train_adapter(
        plain, conversations, tmp_path / "lora", steps=3, batch_size=2, learning_rate=0.02
    )
    changed = [n for n, t in plain.state_dict().items() if not torch.equal(t, before[n])]
    assert changed
    assert all("lora_" in name and "vision" not in name for name in changed)
    assert not plain.training
    other = BaselineVLM(*tiny.llava(), LORA, seed=9)
    other.load_weights(tmp_path / "lora")
    pictures = [tiny.picture(i) for i in range(2)]
    kfd = tiny.kfd()
    found = HostScorer(plain, kfd)(pictures)
    assert HostScorer(other, kfd)(pictures)["p_yes"] == pytest.approx(found["p_yes"], abs=1e-6)
    bare = HostScorer(BaselineVLM(*tiny.llava()), kfd)(pictures)
    assert abs(bare["p_yes"][0] - found["p_yes"][0]) > 1e-4


def test_lora_resumes_from_its_checkpoint(conversations, tmp_path):
    options = {"steps": 4, "batch_size": 2, "learning_rate": 0.02, "save_steps": 2}
    whole = train_adapter(
        BaselineVLM(*tiny.llava(), LORA), conversations, tmp_path / "a", **options
    )
    expected = whole.state_dict()
    training = tmp_path / "a-training"
    # As if the training had stopped after two steps.
    training.rename(tmp_path / "b-training")
    (tmp_path / "b-training/checkpoint-4").rename(tmp_path / "b-training/left-out")
    resumed = train_adapter(
        BaselineVLM(*tiny.llava(), LORA), conversations, tmp_path / "b", resume=True, **options
    )
    assert all(torch.equal(expected[name], t) for name, t in resumed.state_dict().items())


def test_scores_are_the_likelihoods_of_yes_and_no():
    """With the detector's sentence and without it, of prompts of different length in a batch."""
    host, processor = tiny.llava()
    plain, kfd = BaselineVLM(host, processor), tiny.kfd()
    pictures = [tiny.picture(i) for i in range(3)]
    for cite in (True, False):
        found = HostScorer(plain, kfd, cite_score=cite)(pictures)
        for i, picture in enumerate(pictures):
            prompt = build_prompt(found["kfd"][i] if cite else None)
            yes = answer_probabilities(
                plain, prompt, ["Yes", "No"], Image.fromarray(picture), include_end=False
            )[0]
            assert found["p_yes"][i] == pytest.approx(float(yes), abs=1e-5)
    alone = HostScorer(plain, None, cite_score=False, size=64)
    assert alone(pictures).keys() == {"p_yes"}
    assert alone(pictures)["p_yes"] == pytest.approx(found["p_yes"], abs=1e-6)


def test_antifakeprompts_question_ranks_whole_answers():
    """ "no" to "Is this photo real?" says fake, so its likelihood is the score."""
    plain = BaselineVLM(*tiny.llava())
    scorer = HostScorer(plain, None, cite_score=False, question="photo", size=64)
    picture = tiny.picture(1)
    prompt = Conversation((Message("user", "Is this photo real?"),), label=None)
    expected = answer_probabilities(plain, prompt, ["yes", "no"], Image.fromarray(picture))[1]
    assert scorer([picture]) == {"p_yes": [pytest.approx(float(expected))]}
    with pytest.raises(ValueError, match="cites no score"):
        HostScorer(plain, tiny.kfd(), question="photo")


def test_mistakes(conversations, tmp_path):
    bare = BaselineVLM(*tiny.llava())
    assert not any(parameter.requires_grad for parameter in bare.parameters())
    with pytest.raises(ValueError, match="nothing to save"):
        bare.save_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match="nothing to train"):
        train_adapter(bare, conversations, tmp_path / "x")
    with pytest.raises(ValueError, match="needs a detector"):
        HostScorer(bare, None)
    tuned = BaselineVLM(*tiny.llava(), LORA)
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors is missing"):
        tuned.load_weights(tmp_path)
    tuned.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="has shape"):
        BaselineVLM(*tiny.llava(), LoraSettings(r=3, alpha=4)).load_weights(tmp_path / "lora")
