"""A question about a picture as a request to vLLM, whose language model then writes the answer.

    python scripts/vllm_request.py face.jpg --model ADAPTER --out request.json

Host and detector look at the largest face here; the request holds what the language model is fed,
in ``prompt_embeds`` of vLLM's completions, and ends answers as the adapter does. The language model
is what ``llava-forgery convert export-language-model`` wrote. docs/serve.md has the whole recipe.
"""

import base64
import io
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from llava_forgery.files import write_json
from llava_forgery.hosts.auto import ForgeryProcessor
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.language_model import prompt_embeddings
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.qa.build import build_prompt
from llava_forgery.tensors import from_bytes


def request_of(
    model: ForgeryModel, face: Any, question: str, served_name: str, max_tokens: int
) -> dict[str, Any]:
    """The body of ``POST /v1/completions``.

    Args:
        model: The adapter that the served language model was exported from.
        face: (S, S, 3) uint8.
        question: In the place of the canonical one.
        served_name: What vLLM calls the language model.
        max_tokens: Most tokens of the answer.
    """
    score = float(model.detect(from_bytes(face)[None]).score[0])
    inputs = ForgeryProcessor(model)(face, build_prompt(score, question=question))
    embeddings = prompt_embeddings(model, **inputs).cpu()
    # vLLM reads what torch.save writes. A view's would hold the whole storage.
    held = io.BytesIO()
    torch.save(embeddings.clone(), held)
    body = {
        "model": served_name,
        # OpenAI's clients insist on a text.
        "prompt": "",
        "prompt_embeds": base64.b64encode(held.getvalue()).decode(),
        "max_tokens": max_tokens,
        "temperature": 0,
        "stop": model.prompts.stopping().get("stop_strings", []),
    }
    # A placeholder with a row in the vocabulary must not be written.
    if 0 <= model.prompts.placeholder_id < len(model.host.get_input_embeddings().weight):
        body["logit_bias"] = {str(model.prompts.placeholder_id): -100}
    return body


def main(
    picture: Path,
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    model: Annotated[Path, typer.Option(help="Folder or hub name of the adapter.")],
    base_model: Annotated[str | None, typer.Option(help="Its host, where it moved.")] = None,
    question: Annotated[str, typer.Option()] = "Is this a deepfake image?",
    cropped: Annotated[bool, typer.Option(help="The picture is a face crop already.")] = False,
    served_name: Annotated[str, typer.Option(help="vLLM's --served-model-name.")] = "forgery",
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
    device: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Write one request."""
    predictor = ForgeryPredictor.from_pretrained(model, base_model, device=device)
    face = predictor.largest_face(picture, cropped).image
    write_json(out, request_of(predictor.vlm, face, question, served_name, max_tokens))
    print(f"Wrote {out}")


if __name__ == "__main__":
    typer.run(main)
