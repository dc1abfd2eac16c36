"""The two interfaces against the predictor, which words and judges on its own."""

import math

import pytest
import torch
from lmms_eval.api.instance import Instance
from PIL import Image

from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.integrations.lmms_eval.answering import (
    Question,
    Settings,
    _prompts,
    answer,
    likelihood,
)
from llava_forgery.integrations.lmms_eval.model import LlavaForgery, LlavaForgeryChat
from llava_forgery.integrations.lmms_eval.protocol import (
    read_report,
    read_transcript,
    write_transcript,
)
from llava_forgery.qa.build import build_prompt, detection_prompt
from llava_forgery.qa.conversation import Message
from tests import tiny
from tests.integrations.lmms_eval.conftest import TASKS

DOCS = [{"image": Image.fromarray(tiny.picture(i))} for i in range(5)]
SHORT = {"max_new_tokens": 5, "report": True}


@pytest.fixture(scope="module")
def predictor(adapter):
    return ForgeryPredictor.from_pretrained(adapter, device="cpu")


@pytest.fixture(scope="module")
def model(adapter):
    return _with_docs(LlavaForgery(str(adapter), device="cpu", batch_size=3))


def _with_docs(model):
    model.task_dict = {"task": {"test": DOCS}}
    return model


def _picture(doc):
    return [doc["image"]]


def _instance(kind, *arguments):
    return Instance(kind, arguments, 0, {"task": "task", "doc_id": 0, "repeats": 1})


def _simple(doc_id, text, settings):
    return _instance("generate_until", text, settings, _picture, doc_id, "task", "test")


def _chat(doc_id, text, settings):
    def messages(doc):
        content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": text}]
        return [{"role": "user", "content": content}]

    return _instance("generate_until", text, messages, settings, doc_id, "task", "test")


def _face(doc_id):
    return tiny.picture(doc_id)


@pytest.mark.parametrize(
    ("interface", "request_of"), [(LlavaForgery, _simple), (LlavaForgeryChat, _chat)]
)
def test_verdicts_are_the_predictors(adapter, predictor, interface, request_of):
    """In batches that do not come out even, and with another kind of request between them."""
    model = _with_docs(interface(str(adapter), device="cpu", batch_size=2))
    requests = [request_of(i, detection_prompt(), SHORT) for i in range(5)]
    requests.insert(2, request_of(0, "What is this?", {"max_new_tokens": 2, "report": True}))
    texts = model.generate_until(requests)
    other = read_report(texts.pop(2))
    assert (other.p_yes, other.score) == (None, None)
    predictor.max_new_tokens = 5
    for i, text in enumerate(texts):
        verdict, report = predictor.predict(DOCS[i]["image"], cropped=True), read_report(text)
        assert report.text == verdict.answer
        assert report.p_yes == pytest.approx(verdict.p_yes, abs=1e-5)
        assert report.score == pytest.approx(verdict.score, abs=1e-6)


def test_report_is_written_where_it_is_asked_for_alone(model):
    (text,) = model.generate_until([_simple(0, detection_prompt(), {"max_new_tokens": 3})])
    assert read_report(text).p_yes is None


def test_prompt_is_that_of_training():
    (prompt,) = _prompts([Question(_face(0), read_transcript(detection_prompt()))], [0.73])
    assert prompt == build_prompt(0.73)


def test_dialogues_cite_the_score_in_their_first_turn_alone():
    turns = [detection_prompt(), "Yes.", "Is this image fake?"]
    question = Question(_face(0), read_transcript(write_transcript(turns)))
    (prompt,) = _prompts([question], [0.73])
    assert [m.text for m in prompt.messages] == [detection_prompt(0.73), *turns[1:]]


def test_transcript_is_answered_like_a_dialogue(predictor):
    predictor.max_new_tokens = 5
    dialogue = predictor.dialogue(_face(2), cropped=True)
    first = Message("user", detection_prompt(dialogue.score))
    dialogue.messages = (first, Message("assistant", "Yes. It is."))
    second = dialogue.ask("Where is it?")
    text = write_transcript([detection_prompt(), "Yes. It is.", "Where is it?"])
    question = Question(_face(2), read_transcript(text))
    (found,) = answer(predictor.vlm, [question], Settings(max_new_tokens=5))
    assert len(question.messages) == 3
    assert found.text == second
    assert found.p_yes is None


def test_losses_of_yes_and_no_give_p_yes(model, predictor):
    requests = [
        _instance("loglikelihood", detection_prompt(), word, _picture, i, "task", "test")
        for i in range(3)
        for word in ("Yes", " No")
    ]
    losses = [loss for loss, _ in model.loglikelihood(requests)]
    for i in range(3):
        yes, no = losses[2 * i : 2 * i + 2]
        p_yes = 1 / (1 + math.exp(yes - no))
        verdict = predictor.predict(DOCS[i]["image"], cropped=True)
        assert p_yes == pytest.approx(verdict.p_yes, abs=1e-5)


def test_loss_of_a_longer_answer_by_hand(predictor):
    """Beside a shorter one, so that padding counts."""
    vlm, said = predictor.vlm, "No. This is a pristine image."
    question = Question(_face(1), (Message("user", "What is this?"),))
    found = likelihood(vlm, [question, question], [said, "Yes"])
    (prompt,) = _prompts([question], [0.5])
    sample = vlm.prompts.encode(prompt, [Image.fromarray(_face(1))])
    ids = vlm.processor.tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = len(sample["input_ids"])
    full = torch.cat([sample["input_ids"][None], ids], dim=1)
    pixels = torch.from_numpy(_face(1)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        logits = vlm(
            input_ids=full,
            attention_mask=torch.ones_like(full),
            pixel_values=sample["pixel_values"],
            forgery_images=pixels,
        ).logits
    log_p = logits[0, start - 1 : -1].log_softmax(dim=1)
    loss = -log_p.gather(1, ids[0][:, None]).mean()
    assert found[0][0] == pytest.approx(float(loss), abs=1e-5)
    assert found[0][1] == bool((log_p.argmax(dim=1) == ids[0]).all())


def test_answer_of_the_host_is_greedy(predictor):
    """The host is made to begin with one word: what random weights say differs by machine."""
    vlm, question = predictor.vlm, Question(_face(1), (Message("user", "What is this?"),))
    (word,) = vlm.processor.tokenizer("Yes", add_special_tokens=False)["input_ids"]

    def prefer(module, args, logits):
        return logits.index_add(
            -1, torch.tensor([word]), logits.new_full((*logits.shape[:-1], 1), 99.0)
        )

    with vlm.host.get_output_embeddings().register_forward_hook(prefer):
        assert answer(vlm, [question], Settings(max_new_tokens=1))[0].text == "Yes"
        found = likelihood(vlm, [question] * 3, ["Yes", "No", "Yes. It is a deepfake."])
    assert [greedy for _, greedy in found] == [True, False, False]
    assert found[0][0] < found[1][0]


def test_answer_is_cut(predictor):
    question = Question(_face(1), (Message("user", detection_prompt()),))
    whole = answer(predictor.vlm, [question], Settings(max_new_tokens=8))[0].text
    stop = whole[len(whole) // 2]
    cut = answer(predictor.vlm, [question], Settings(max_new_tokens=8, until=(stop,)))[0].text
    assert cut == whole.split(stop)[0].strip()


def test_settings_of_tasks(caplog):
    task = {"max_new_tokens": 9, "temperature": 0.7, "do_sample": False, "until": "\n\n",
            "top_p": None, "image_aspect_ratio": "pad"}  # fmt: skip
    settings = Settings.from_kwargs(task)
    assert settings == Settings(max_new_tokens=9, until=("\n\n",))
    assert settings.for_generate() == {"max_new_tokens": 9, "num_beams": 1, "do_sample": False}
    assert "image_aspect_ratio" in caplog.text
    assert Settings.from_kwargs({"temperature": 0.7}).for_generate()["do_sample"]
    with pytest.raises(ValueError, match="max_new_tokens"):
        Settings(max_new_tokens=0)


def test_beams_and_sampling_keep_p_yes(predictor):
    question = Question(_face(3), (Message("user", detection_prompt()),))
    plain, beams, drawn = (
        answer(predictor.vlm, [question] * 2, Settings(max_new_tokens=3, **more))
        for more in ({}, {"num_beams": 2}, {"temperature": 0.9, "top_p": 0.5})
    )
    for found in (*beams, *drawn):
        assert found.p_yes == pytest.approx(plain[0].p_yes, abs=1e-5)


def test_wrong_arguments(adapter):
    with pytest.raises(ValueError, match="batch_size='auto'"):
        LlavaForgery(str(adapter), batch_size="auto")
    with pytest.raises(ValueError, match="cropped must be true or false"):
        LlavaForgery(str(adapter), cropped="perhaps")
    with pytest.raises(FileNotFoundError, match="no folder"):
        LlavaForgery("nowhere")


def test_one_picture_and_nothing_else(adapter):
    model = _with_docs(LlavaForgeryChat(str(adapter), device="cpu"))

    def messages(content):
        return _instance(
            "generate_until", "", lambda doc: [{"role": "user", "content": content}], {}, 0,
            "task", "test",
        )  # fmt: skip

    words = {"type": "text", "text": "What is this?"}
    with pytest.raises(ValueError, match="1 picture, got 0"):
        model.generate_until([messages([words])])
    video = {"type": "video", "url": "a.mp4"}
    with pytest.raises(ValueError, match="got video"):
        model.generate_until([messages([video, words])])


def test_chat_messages_of_several_turns(adapter, predictor):
    model = _with_docs(LlavaForgeryChat(str(adapter), device="cpu"))

    def said(doc):
        picture = {"type": "image", "url": doc["image"]}
        turns = [("system", "Be brief."), ("user", "What is this?"), ("assistant", "A face."),
                 ("user", "Whose?")]  # fmt: skip
        messages = [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in turns]
        messages[1]["content"].insert(0, picture)
        return messages

    request = _instance("generate_until", "", said, {"max_new_tokens": 4}, 0, "task", "test")
    turns = (Message("user", "Be brief.\nWhat is this?"), Message("assistant", "A face."),
             Message("user", "Whose?"))  # fmt: skip
    (expected,) = answer(predictor.vlm, [Question(_face(0), turns)], Settings(max_new_tokens=4))
    assert model.generate_until([request]) == [expected.text]


def test_rounds_that_the_model_drives(adapter, evaluate, tmp_path):
    """The same dialogue by lmms-eval's other output type for several rounds."""
    text = (TASKS / "forgery_multiturn.yaml").read_text()
    text = text.replace("generate_until_agentic", "generate_until_multi_round")
    text = text.replace("  max_agentic_steps: 2\n", "")
    (tmp_path / "rounds.yaml").write_text(text.replace("task: forgery_multiturn", "task: rounds"))
    for name in ("forgery_common", "forgery_data.py"):
        (tmp_path / name).write_text((TASKS / name).read_text())

    def answers(interface, include, task):
        model = interface(str(adapter), device="cpu")
        result = evaluate(model, task, include=include, gen_kwargs="max_new_tokens=4", limit=2)
        return [sample["unparsed"]["answers"] for sample in result["samples"][task]]

    driven = answers(LlavaForgery, TASKS, "forgery_multiturn")
    assert len(driven) == 2
    assert all(len(said) == 2 and said[0] and said[0] != said[1] for said in driven)
    assert answers(LlavaForgery, tmp_path, "rounds") == driven
    assert answers(LlavaForgeryChat, tmp_path, "rounds") == driven


def test_weights_are_let_go(adapter):
    model = LlavaForgery(str(adapter), device="cpu")
    model.clean()
    _with_docs(model)
    assert model.device == torch.device("cpu")
    with pytest.raises(RuntimeError, match="make a new one"):
        model.generate_until([_simple(0, "What is this?", {})])
