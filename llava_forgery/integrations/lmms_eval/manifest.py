"""Entry point of the group ``lmms_eval.models``, which gives the model's classes.

lmms-eval loads every plugin's entry point at start, and one that fails prevents the following ones,
so nothing heavy is imported here.
"""

from typing import TYPE_CHECKING

from llava_forgery.integrations.lmms_eval import on_import

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """The model ``llava_forgery``, with lmms-eval's simple and its chat interface.

    lmms-eval's own models of the ``llava`` package, such as ``llava``, then load checkpoints with
    the skill as well.
    """
    on_import.register_on_import()
    # Imported on call: lmms-eval loads this module while its own is still being imported.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="llava_forgery",
        simple_class_path="llava_forgery.integrations.lmms_eval.model.LlavaForgery",
        chat_class_path="llava_forgery.integrations.lmms_eval.model.LlavaForgeryChat",
    )
