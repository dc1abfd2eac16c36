"""The page for people, and what it asks for beside verdicts and dialogues."""

import asyncio
import importlib.metadata
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

import llava_forgery
from llava_forgery.infer.explain import explain_maps
from llava_forgery.serve.engine import Busy
from llava_forgery.serve.errors import ApiError, busy
from llava_forgery.serve.records import grey_png
from llava_forgery.serve.requests import read_upload, unless_gone
from llava_forgery.serve.service import Service

PAGE = Path(__file__).parent / "page"
"""Static files without a build step; sample pictures among them."""

LIMITS = (
    "The score is a detector's estimate, not a proof; it is wrong for a part of all pictures.",
    "It was trained on forged parts of real faces. Faces that were generated as a whole, and "
    "pictures without a face, are beyond it.",
    "Compression, small faces and unusual light make it less sure; warnings say so where it is "
    "known.",
    "The answers are a language model's. They may name regions that were not touched.",
    "Nothing is said of whether a picture shows what its caption claims.",
)
"""What every report says."""

_PACKAGES = ("torch", "transformers")


def add_page(app: FastAPI, service: Service) -> None:
    """Add the page at ``/``, ``/v1/info`` and ``/v1/explain``."""

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE))

    @app.get("/v1/info")
    async def info() -> dict[str, Any]:
        """Models, versions, thresholds and what a report must say."""
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        return {
            "models": list(service.models),
            "versions": {"llava-forgery": llava_forgery.__version__, **versions},
            "thresholds": {
                name: [model.predictor.kfd.thresholds.low, model.predictor.kfd.thresholds.high]
                for name, model in service.models.items()
            },
            "limits": list(LIMITS),
        }

    @app.post("/v1/explain")
    async def explain(request: Request) -> Response:
        """Grad-CAM and consistency maps of a picture's faces, as grey PNG in base64."""
        with ExitStack() as stack:
            stack.enter_context(service.admission.work())
            held = stack.enter_context(service.admission.memory())
            upload, options = await read_upload(request, service, held)
            if upload.is_video:
                raise ApiError(400, "maps are drawn of a picture; send a frame", "media")
            model = service.model(options.model)

            async def work() -> list[dict[str, Any]]:
                faces = await service.find_faces(model, upload, options.cropped)
                try:
                    future = model.engine.call(lambda: explain_maps(model.predictor, faces))
                except Busy as error:
                    raise busy(str(error), error.retry_after) from None
                try:
                    return [_maps(maps) for maps in await asyncio.wrap_future(future)]
                except ImportError as error:
                    raise ApiError(501, str(error), "missing_package") from None

            return JSONResponse({"faces": await unless_gone(request, work())})


def _maps(maps: Any) -> dict[str, Any]:
    note = "what a detector of forged faces looked at"
    return {
        "grad_cam": grey_png(maps.grad_cam, note),
        "consistency": [
            {"tap": str(tap), "map": grey_png(layer, note)}
            for tap, layer in zip(maps.taps, maps.consistency, strict=True)
        ],
    }
