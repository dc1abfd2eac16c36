"""Requests to vLLM, answered here by transformers from the same embeddings and language model."""

import base64
import importlib.util
import io
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_forgery.files import read_json
from llava_forgery.hosts.language_model import save_language_model
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.images import png_bytes
from llava_forgery.infer.dialogue import NOTHING_SAID
from llava_forgery.infer.predictor import ForgeryPredictor
from tests import tiny, tiny_hosts
from tests.hosts.transformers.contract import attach, perturb
from tests.serve.conftest import silent_tokens

SCRIPT = Path(__file__).parents[2] / "scripts" / "vllm_request.py"
QUESTION = "Where is the artifact?"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("vllm_request", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_request_is_answered_as_the_adapter_answers(script, tmp_path, monkeypatch):
    host, processor = tiny.llava()
    host.generation_config.suppress_tokens = silent_tokens(processor.tokenizer)
    vlm = perturb(attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4)))
    predictor = ForgeryPredictor(vlm, max_new_tokens=8)
    monkeypatch.setattr(
        script.ForgeryPredictor, "from_pretrained", lambda *args, **options: predictor
    )
    (tmp_path / "face.png").write_bytes(png_bytes(tiny.picture(1), "test"))
    out = tmp_path / "request.json"
    script.main(tmp_path / "face.png", out, Path("adapter"), question=QUESTION, cropped=True,
                max_tokens=8)  # fmt: skip
    request = read_json(out)
    # As vLLM reads it.
    held = io.BytesIO(base64.b64decode(request["prompt_embeds"], validate=True))
    embeddings = torch.load(held, weights_only=True)
    assert embeddings.dtype == host.dtype
    assert embeddings.untyped_storage().nbytes() == embeddings.nbytes
    said = predictor.dialogue(tiny.picture(1), cropped=True).ask(QUESTION)

    save_language_model(vlm, tmp_path / "language")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "language").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "language")
    banned = [int(token) for token in request.get("logit_bias", {})]
    # The placeholder is banned where the model could write it.
    assert banned == [vlm.token_id] * (vlm.token_id < plain.config.vocab_size)
    ids = plain.generate(
        inputs_embeds=embeddings[None],
        attention_mask=torch.ones(1, len(embeddings), dtype=torch.long),
        max_new_tokens=request["max_tokens"],
        do_sample=False,
        suppress_tokens=plain.generation_config.suppress_tokens + banned,
    )
    assert words.decode(ids[0], skip_special_tokens=True).strip() == said != NOTHING_SAID


# Positions, masks or deeper features of its own.
NEEDS_MORE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma")


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_hosts.FAMILIES)
def test_hosts_whose_language_model_needs_more_are_refused(family, tmp_path):
    vlm, folder = perturb(attach(family)), tmp_path / "language"
    if family in NEEDS_MORE:
        with pytest.raises(ValueError, match="serve the host with llava-forgery serve"):
            save_language_model(vlm, folder)
    else:
        save_language_model(vlm, folder)
    assert folder.exists() == (family not in NEEDS_MORE)
