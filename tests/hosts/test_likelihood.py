import pytest
import torch
from PIL import Image

from llava_forgery.hosts.baseline import BaselineVLM
from llava_forgery.hosts.likelihood import answer_log_likelihoods, answer_probabilities
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.qa.build import build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from tests import tiny

ANSWERS = ["Yes", "No", "Yes. This is a deepfake image.", "No, it is pristine."]
PICTURE = tiny.picture(1)
IMAGE = Image.fromarray(PICTURE)


@pytest.fixture(scope="module")
def vlm():
    host, processor = tiny.llava()
    return attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4)).eval()


@pytest.fixture(scope="module")
def detection(vlm):
    return vlm.detect(torch.from_numpy(PICTURE).permute(2, 0, 1)[None].float() / 255)


def one_by_one(model, prompts, prompt, answer, detection=None):
    """Sum over the answer's tokens, each from a forward pass over what stands before it."""
    said = Conversation((*prompt.messages, Message("assistant", answer)), label=None)
    sample = prompts.encode(said, [IMAGE])
    head = len(prompts.encode(prompt, [IMAGE])["input_ids"])
    ids = sample["input_ids"][None]
    extra = {} if detection is None else {"detection": detection}
    total = 0.0
    for place in range(head, int((sample["labels"] != -100).nonzero()[-1]) + 1):
        with torch.no_grad():
            output = model(
                input_ids=ids[:, :place],
                attention_mask=torch.ones(1, place).long(),
                pixel_values=sample["pixel_values"],
                **extra,
            )
        total += float(output.logits[0, -1].log_softmax(dim=0)[ids[0, place]])
    return total


def test_whole_answers_in_one_batch_equal_token_by_token(vlm, detection):
    prompt = build_prompt(0.7)
    together = answer_log_likelihoods(vlm, prompt, ANSWERS, IMAGE, detection=detection)
    for answer, found in zip(ANSWERS, together.tolist(), strict=True):
        alone = one_by_one(vlm, vlm.prompts, prompt, answer, detection)
        assert found == pytest.approx(alone, abs=1e-4)
    single = answer_log_likelihoods(vlm, prompt, ANSWERS[2:3], IMAGE, detection=detection)
    assert float(single[0]) == pytest.approx(float(together[2]), abs=1e-4)


def test_bare_host():
    host, processor = tiny.llava()
    prompt = build_prompt()
    bare = BaselineVLM(host, processor).eval()
    found = answer_log_likelihoods(bare, prompt, ANSWERS, IMAGE)
    for answer, value in zip(ANSWERS, found.tolist(), strict=True):
        assert value == pytest.approx(one_by_one(host, bare.prompts, prompt, answer), abs=1e-4)
    assert found[2] < found[0]


def test_prompt_without_an_image():
    bare = BaselineVLM(*tiny.llava()).eval()
    found = answer_log_likelihoods(bare, build_prompt(), ["Yes", "No"])
    assert found.shape == (2,)
    assert (found < 0).all()


def test_probabilities_of_yes_and_no_are_the_predictors(vlm, detection):
    """One token each, the end not counted: what the predictor reads off the first token."""
    predictor = ForgeryPredictor(vlm, max_new_tokens=2)
    verdict = predictor.predict(PICTURE, cropped=True)
    found = answer_probabilities(
        vlm,
        build_prompt(verdict.score),
        ["Yes", "No"],
        IMAGE,
        detection=detection,
        include_end=False,
    )
    assert float(found.sum()) == pytest.approx(1)
    assert float(found[0]) == pytest.approx(verdict.p_yes, abs=1e-5)


def test_mean_over_tokens(vlm, detection):
    options = {"detection": detection, "include_end": False}
    arguments = (vlm, build_prompt(0.7), ANSWERS, IMAGE)
    total = answer_log_likelihoods(*arguments, **options)
    mean = answer_log_likelihoods(*arguments, **options, per_token=True)
    counts = [len(vlm.processor.tokenizer(answer)["input_ids"]) for answer in ANSWERS]
    assert (total / mean).tolist() == pytest.approx(counts, abs=1e-3)


def test_only_the_last_answer_of_a_dialogue_counts(vlm, detection):
    start = build_prompt(0.7)
    for said in ("Yes.", "No, it is pristine."):
        prompt = Conversation(
            (*start.messages, Message("assistant", said), Message("user", "Are you sure?")),
            label=None,
        )
        found = answer_log_likelihoods(vlm, prompt, ["Yes", "No"], IMAGE, detection=detection)
        for answer, value in zip(("Yes", "No"), found.tolist(), strict=True):
            alone = one_by_one(vlm, vlm.prompts, prompt, answer, detection)
            assert value == pytest.approx(alone, abs=1e-4)


def test_mistakes_are_named(vlm, detection):
    bare = BaselineVLM(*tiny.llava()).eval()
    prompt = build_prompt(0.7)
    with pytest.raises(ValueError, match="needs the detection"):
        answer_log_likelihoods(vlm, prompt, ANSWERS, IMAGE)
    with pytest.raises(ValueError, match="takes no detection"):
        answer_log_likelihoods(bare, prompt, ANSWERS, IMAGE, detection=detection)
    with pytest.raises(ValueError, match="non-empty list"):
        answer_log_likelihoods(bare, prompt, "Yes", IMAGE)
    said = Conversation((*prompt.messages, Message("assistant", "Yes")), label=None)
    with pytest.raises(ValueError, match="ends with a question"):
        answer_log_likelihoods(bare, said, ANSWERS, IMAGE)
    two = vlm.detect(torch.rand(2, 3, tiny.SIZE, tiny.SIZE))
    with pytest.raises(ValueError, match="one image, got 2"):
        answer_log_likelihoods(vlm, prompt, ANSWERS, IMAGE, detection=two)
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        answer_log_likelihoods(bare.train(), prompt, ANSWERS, IMAGE)
