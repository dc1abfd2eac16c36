"""Dialogues through the real ``openai`` client."""

import json

import httpx
import openai
import pytest
import torch

from llava_forgery.serve.dialogues import AnswerStream
from llava_forgery.serve.settings import Settings
from tests import tiny
from tests.serve.conftest import data_url, running

QUESTION = "Is this a deepfake image?"


@pytest.fixture(scope="module")
def api(started):
    with openai.OpenAI(base_url=f"{started[1]}/v1", api_key="none", max_retries=0) as client:
        yield client


def first_message(png, seed=1, text=QUESTION):
    picture = {"type": "image_url", "image_url": {"url": data_url(png(seed))}}
    return {"role": "user", "content": [{"type": "text", "text": text}, picture]}


def ask(api, messages, cropped=True, **options):
    values = {"model": "tiny", "messages": messages, "max_tokens": 6, **options}
    return api.chat.completions.create(**values, extra_body={"forgery": {"cropped": cropped}})


def test_a_completion_is_what_chat_and_detect_say(api, predictor, png):
    answer = ask(api, [first_message(png)], max_tokens=5)
    verdict = predictor.predict(tiny.picture(1), cropped=True)
    dialogue = predictor.dialogue(tiny.picture(1), cropped=True)
    assert answer.choices[0].message.content == dialogue.ask(QUESTION) == verdict.answer
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.prompt_tokens == dialogue.prompt_tokens
    assert answer.forgery["score"] == pytest.approx(verdict.score, abs=1e-5)
    assert answer.forgery["p_yes"] == pytest.approx(verdict.p_yes, abs=1e-5)
    assert answer.forgery["box"] == [0, 0, 64, 64]


def test_a_stream_gives_the_same_text(api, png):
    whole = ask(api, [first_message(png, 2)])
    events = list(ask(api, [first_message(png, 2)], stream=True,
                      stream_options={"include_usage": True}))  # fmt: skip
    texts = [e.choices[0].delta.content or "" for e in events if e.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert events[0].forgery == whole.forgery
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_several_turns_go_on_from_the_cache(api, predictor, png):
    dialogue = predictor.dialogue(tiny.picture(3), cropped=True)
    messages = [first_message(png, 3)]
    for i, question in enumerate((QUESTION, "Where is the artifact?", "Why?")):
        if i:
            messages.append({"role": "user", "content": question})
        answer = ask(api, messages)
        said = answer.choices[0].message.content
        assert said == dialogue.ask(question, max_new_tokens=6)
        messages.append({"role": "assistant", "content": said})
        assert (answer.usage.prompt_tokens_details.cached_tokens > 0) == (i > 0)
    # Another client that holds the same dialogue, whose cache has gone on.
    again = ask(api, messages[:3])
    assert again.usage.prompt_tokens_details.cached_tokens == 0
    assert again.choices[0].message.content == messages[3]["content"]


def test_an_answer_ends_before_a_stop_text(api, png):
    whole = ask(api, [first_message(png, 4)], max_tokens=20).choices[0].message.content
    stop = whole[4:7]
    answer = ask(api, [first_message(png, 4)], max_tokens=20, stop=[stop, "not there"])
    assert answer.choices[0].message.content == whole[: whole.index(stop)].rstrip()
    assert answer.choices[0].finish_reason == "stop"


def test_at_a_temperature_answers_are_drawn(api, png):
    texts = {ask(api, [first_message(png)], temperature=2.0, max_tokens=12).choices[0]
             .message.content for _ in range(3)}  # fmt: skip
    assert len(texts) > 1


def test_models_are_listed(api):
    assert [model.id for model in api.models.list()] == ["tiny", "other"]


def test_every_kind_of_error_is_the_clients(api, png, predictor):
    with pytest.raises(openai.NotFoundError, match="there are: tiny, other"):
        ask(api, [first_message(png)], model="gpt")
    with pytest.raises(openai.BadRequestError, match="expected one picture") as error:
        ask(api, [{"role": "user", "content": "hello"}])
    assert error.value.param == "messages"
    with pytest.raises(openai.UnprocessableEntityError, match="no face") as error:
        ask(api, [first_message(png)], cropped=False)
    assert error.value.code == "no_face"
    with pytest.raises(openai.BadRequestError, match="tools"):
        ask(api, [first_message(png)], tools=[])
    with running({"tiny": predictor}, Settings(token="secret", max_bytes=20_000)) as (_, url):
        wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="wrong"):
            wrong.models.list()
        right = wrong.with_options(api_key="secret")
        assert len(right.models.list().data) == 1
        with pytest.raises(openai.APIStatusError) as error:
            ask(right, [first_message(png, text="x" * 20_000)])
        assert error.value.status_code == 413


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}],
        [{"role": "assistant", "content": "Yes."}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "nonsense"}}]}],
        [],
    ],
)
def test_messages_that_are_no_dialogue(client, messages):
    answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_dialogue_longer_than_the_model_reads_is_refused(api, png, predictor, stream):
    positions = predictor.vlm.host.config.get_text_config().max_position_embeddings
    # Within the server's limit of characters; each of these letters is three tokens.
    message = first_message(png, text="\u8ff7" * (positions // 3))
    with pytest.raises(openai.BadRequestError, match=f"has {positions}") as error:
        ask(api, [message], stream=stream)
    assert error.value.code == "context_length_exceeded"
    assert error.value.param == "messages"
    # There must be room for the answer, too.
    half = "\u8ff7" * (positions // 6)
    with pytest.raises(openai.BadRequestError, match="shorter answer"):
        ask(api, [first_message(png, text=half)], max_tokens=500, stream=stream)


def test_a_client_that_goes_away_ends_its_answer(started, png):
    server, url = started
    body = {"model": "tiny", "messages": [first_message(png, 6)], "stream": True,
            "max_tokens": 512, "forgery": {"cropped": True}}  # fmt: skip
    before = server.service.metrics.tokens.labels("tiny")._value.get()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
        first = next(answer.iter_lines())
        assert json.loads(first.removeprefix("data: "))["forgery"]
    # The next one has its turn, and the first never counted its tokens.
    body |= {"stream": False, "max_tokens": 3}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).status_code == 200
    assert server.service.metrics.tokens.labels("tiny")._value.get() <= before + 3


class Pieces:
    """A stream over letters that are their own tokens, and what it gave out."""

    def __init__(self, *stop):
        self.out = []
        self.stream = AnswerStream(
            lambda ids: "".join(map(chr, ids)), stop, self.out.append, lambda: False
        )
        self.stream.put(torch.zeros(1, 7))

    def write(self, text):
        for letter in text:
            self.stream.put(torch.tensor([ord(letter)]))


def test_nothing_is_given_out_that_may_be_taken_back():
    pieces = Pieces("###", "\nUser")
    pieces.write("  A b \n## c")
    assert "".join(pieces.out) == "A b \n## c"
    assert all(not piece.endswith((" ", "\n")) for piece in pieces.out)
    pieces.write("#")
    assert "".join(pieces.out) == "A b \n## c"
    pieces.stream.end()
    assert "".join(pieces.out) == pieces.stream.text == "A b \n## c#"


def test_a_stop_text_ends_it():
    pieces = Pieces("stop")
    with pytest.raises(Exception, match="^$"):
        pieces.write("go on, stop it")
    assert "".join(pieces.out) == "go on,"
