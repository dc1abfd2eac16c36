"""What models beside the usual one give over HTTP: LLaVA's own, and a detector alone."""

import httpx
import openai
import pytest
import torch
from peft import get_peft_model

from llava_forgery.cli.app import load_predictor
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.llava.model import attach_to_llava, llava_lora_config
from llava_forgery.hosts.llava.names import TEMPLATE_KEY
from llava_forgery.hosts.llava.vlm import LlavaForgeryVLM
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.serve.settings import Settings
from tests import tiny, tiny_llava
from tests.serve.conftest import Nobody, running, silent_tokens
from tests.serve.test_chat import QUESTION, ask, first_message


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """An adapter in LLaVA's layout with LoRA, on LLaVA's own model."""
    tiny_llava.require_llava()
    folder = tmp_path_factory.mktemp("llava")
    tiny_llava.save_llava(folder / "tiny-llava")
    tiny_llava.save_kfd(folder / "kfd")
    words, model, _ = tiny_llava.load_llava(folder / "tiny-llava")
    attach_to_llava(model.requires_grad_(False), folder / "kfd", FPLConfig(1, 3, n_forgery=2))
    setattr(model.config, TEMPLATE_KEY, "v1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tuned = get_peft_model(model, llava_lora_config(model, LoraSettings(r=2, alpha=4)))
    tuned.get_base_model().get_model().forgery_projector.requires_grad_(True)
    LlavaForgeryVLM(tuned, words).save_pretrained(folder / "llava-lora-tiny")
    predictor = load_predictor(folder / "llava-lora-tiny", device="cpu")
    predictor.face_detector, predictor.max_new_tokens = Nobody(), 6
    host = predictor.vlm.host
    host.generation_config.suppress_tokens = silent_tokens(words)
    return predictor


def test_the_llava_package_behind_the_server(llava, png):
    assert isinstance(llava.vlm, LlavaForgeryVLM)
    with running({"tiny": llava}, Settings()) as (_, url):
        record = httpx.post(f"{url}/v1/detect", files={"file": png(1)}, data={"cropped": "true"},
                            timeout=30).json()  # fmt: skip
        verdict = llava.predict(tiny.picture(1), cropped=True)
        (face,) = record["faces"]
        assert face["score"] == pytest.approx(verdict.score, abs=1e-5)
        assert face["p_yes"] == pytest.approx(verdict.p_yes, abs=1e-5)
        assert face["answer"] == verdict.answer
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
            dialogue = llava.dialogue(tiny.picture(1), cropped=True)
            messages = [first_message(png)]
            for i, question in enumerate((QUESTION, "Where is the artifact?")):
                if i:
                    messages.append({"role": "user", "content": question})
                answer = ask(api, messages)
                said = answer.choices[0].message.content
                assert said == dialogue.ask(question)
                assert answer.usage.prompt_tokens > 10
                assert answer.usage.completion_tokens == 6
                assert (answer.usage.prompt_tokens_details.cached_tokens > 0) == (i > 0)
                pieces = [e.choices[0].delta.content or "" for e in ask(api, messages, stream=True)]
                assert "".join(pieces) == said
                messages.append({"role": "assistant", "content": said})
            stop = said[1:4]
            ended = ask(api, messages[:-1], stop=[stop]).choices[0]
            assert ended.message.content == said[: said.index(stop)].rstrip()
            assert ended.finish_reason == "stop"
            # An image is one id, but as many positions as it has patches.
            with pytest.raises(openai.BadRequestError) as error:
                ask(api, [first_message(png, text="\u8ff7" * 700)])
            assert error.value.code == "context_length_exceeded"


def test_a_detector_alone_judges_and_says_that_it_does_not_talk(png):
    with running({"tiny": ForgeryPredictor(tiny.kfd(), Nobody())}, Settings()) as (_, url):
        record = httpx.post(f"{url}/v1/detect", files={"file": png(1)}, data={"cropped": "true"},
                            timeout=30).json()  # fmt: skip
        (face,) = record["faces"]
        assert 0 < face["score"] < 1
        assert face["p_yes"] is face["answer"] is face["agree"] is None
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
            with pytest.raises(openai.APIStatusError) as error:
                ask(api, [first_message(png)])
            assert error.value.status_code == 400
            assert "no language model" in error.value.message
