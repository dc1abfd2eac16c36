"""Each client asks about two pictures that only E_forgery tells apart."""

import base64
import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch

from llava_forgery.hosts.llava.prompts import tokenizer_forgery_token
from llava_forgery.hosts.llava.register import register, unregister
from tests import tiny_llava
from tests.clients.conftest import PATIENCE, ROOT

tiny_llava.require_llava()
pytestmark = pytest.mark.slow

LAUNCHER = ("-m", "llava_forgery.run", "--cpu")
QUESTION = "Is this a deepfake image?"
GREEDY = ("--temperature", "0", "--max-new-tokens", "6")
# LLaVA's evaluations write it otherwise.
GREEDY_EVAL = ("--temperature", "0", "--max_new_tokens", "6")


@pytest.fixture(scope="module")
def same_as_written(checkpoint):
    """Check that a client's call gives the logits of its prompt with written placeholders."""
    from llava.conversation import conv_templates

    register()
    words, model, _ = tiny_llava.load_llava(checkpoint)
    unregister()

    @torch.no_grad()
    def check(call, question=QUESTION):
        conversation = conv_templates["llava_v1"].copy()
        marks = "<forgery>" * model.n_forgery
        conversation.append_message(conversation.roles[0], f"<image>{marks}\n{question}")
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        written = tokenizer_forgery_token(prompt, words, return_tensors="pt")[None]
        plain = tokenizer_forgery_token(prompt.replace(marks, ""), words, return_tensors="pt")[None]
        assert torch.equal(call["ids"], plain)
        given = {"images": call["images"].float(), "image_sizes": call["sizes"]}
        one, two = (model(input_ids=ids, **given).logits for ids in (call["ids"], written))
        assert one.shape == two.shape
        assert torch.allclose(one, two, atol=1e-5)

    return check


def test_command_line(client, checkpoint, pictures, same_as_written):
    said = []
    for picture in pictures:
        chat = client(
            *LAUNCHER, "llava.serve.cli", "--model-path", checkpoint, "--image-file", picture,
            *GREEDY,
        )  # fmt: skip
        said.append(chat.run(f"{QUESTION}\nWhy?\n"))
        # Each turn computes the dialogue from its beginning.
        assert chat.fpl_calls == len(chat.prompts) == 2
        same_as_written(chat.prompts[0])
    assert said[0] != said[1]


def test_run_llava(client, checkpoint, pictures, same_as_written):
    said = []
    for picture in pictures:
        single = client(
            *LAUNCHER, "llava.eval.run_llava", "--model-path", checkpoint, "--image-file", picture,
            "--query", QUESTION, *GREEDY_EVAL,
        )  # fmt: skip
        said.append(single.run().strip().splitlines()[-1])
        assert single.fpl_calls == 1
        (call,) = single.prompts
        same_as_written(call)
    assert said[0] != said[1]


@pytest.mark.parametrize("placement", ["checkpoint", "unused"])
def test_model_vqa_loader(client, request, pictures, same_as_written, placement):
    folder = request.getfixturevalue(placement)
    lines = [
        {"question_id": i, "image": picture.name, "text": QUESTION}
        for i, picture in enumerate(pictures)
    ]
    questions = pictures[0].parent / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = client(
        *LAUNCHER, "llava.eval.model_vqa_loader", "--model-path", folder, "--image-folder",
        pictures[0].parent, "--question-file", questions, "--answers-file", "out/answers.jsonl",
        *GREEDY_EVAL,
    )  # fmt: skip
    evaluation.run()
    answers = (evaluation.folder / "out/answers.jsonl").read_text().splitlines()
    one, two = (json.loads(line)["text"] for line in answers)
    used = placement == "checkpoint"
    assert evaluation.fpl_calls == (2 if used else 0)
    assert len(evaluation.prompts) == 2
    assert (one != two) == used
    if used:
        for call in evaluation.prompts:
            same_as_written(call)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _post(address, values=None):
    request = urllib.request.Request(
        address, json.dumps(values or {}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.read()


def _wait_for_models(manager, worker, *processes):
    """The worker makes itself known to the controller before it listens."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for process in processes:
            assert process.poll() is None, "a server has ended"
        try:
            models = json.loads(_post(f"{manager}/list_models"))["models"]
            _post(f"{worker}/worker_get_status")
        except (urllib.error.URLError, ConnectionError):
            models = []
        if models:
            return models
        time.sleep(0.2)
    raise AssertionError("no worker has come")


def test_controller_and_model_worker(client, checkpoint, pictures, same_as_written):
    """Two questions at once, as the web page sends them."""
    ports = _free_port(), _free_port()
    manager, worker = (f"http://127.0.0.1:{port}" for port in ports)
    control = client(
        *LAUNCHER, "llava.serve.controller", "--host", "127.0.0.1", "--port", str(ports[0])
    )
    serve = client(
        *LAUNCHER, "llava.serve.model_worker", "--host", "127.0.0.1", "--port", str(ports[1]),
        "--controller-address", manager, "--worker-address", worker, "--model-path", checkpoint,
        "--device", "cpu",
    )  # fmt: skip
    started: list[subprocess.Popen] = [control.start(), serve.start()]
    try:
        assert _wait_for_models(manager, worker, *started) == [checkpoint.name]
        said = {}

        def ask(picture):
            values = {
                "model": checkpoint.name, "prompt": _prompt(), "temperature": 0,
                "max_new_tokens": 6, "stop": "</s>",
                "images": [base64.b64encode(picture.read_bytes()).decode()],
            }  # fmt: skip
            # The worker gives a token 15 seconds, which a crowded machine may not.
            for _ in range(20):
                answer = _post(f"{worker}/worker_generate_stream", values).split(b"\0")[-2]
                said[picture] = json.loads(answer)
                if said[picture]["error_code"] == 0:
                    break

        asking = [threading.Thread(target=ask, args=(picture,)) for picture in pictures]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    finally:
        for process in started:
            process.kill()
            process.wait()
    one, two = (said[picture] for picture in pictures)
    assert one["error_code"] == two["error_code"] == 0, (serve.folder / "log").read_text()
    assert one["text"] != two["text"]
    assert serve.fpl_calls == len(serve.prompts) >= 2
    for call in serve.prompts:
        same_as_written(call)


def _prompt():
    from llava.conversation import conv_templates

    conversation = conv_templates["llava_v1"].copy()
    conversation.append_message(conversation.roles[0], f"<image>\n{QUESTION}")
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def test_lmms_evals_llava(client, checkpoint, pictures):
    """Without the launcher: the plugin registers by itself."""
    manifest = pictures[0].parent / "manifest.jsonl"
    rows = [
        {"image": picture.name, "label": i, "video_id": picture.name, "regions": ["nose"] * i}
        for i, picture in enumerate(pictures)
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = client(
        "-m", "lmms_eval", "eval", "--model", "llava", "--model_args",
        f"pretrained={checkpoint},device_map=auto,device=cpu", "--tasks", "forgery_detect",
        "--include_path", ROOT / "eval/lmms_tasks", "--output_path", "out", "--log_samples",
        "--gen_kwargs", "max_new_tokens=6",
        LLAVA_FORGERY_EVAL_DATA=str(manifest), HF_DATASETS_OFFLINE="1",
    )  # fmt: skip
    shown = evaluation.run()
    found = list((evaluation.folder / "out").rglob("*_samples_forgery_detect.jsonl"))
    assert found, shown[-4000:]
    answers = [json.loads(line)["filtered_resps"] for line in found[0].read_text().splitlines()]
    assert evaluation.fpl_calls == len(evaluation.prompts) == 2
    assert answers[0] != answers[1]
