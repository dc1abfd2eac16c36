"""People of a test who were in training."""

import logging
from collections.abc import Iterable

from torch import nn

from llava_forgery.faces.identities import identity_digest

logger = logging.getLogger(__name__)


def people_in_training(model: nn.Module, identities: Iterable[str]) -> int:
    """Number of a test's people that a model was trained on; a warning names the first.

    Models saved before this was recorded, and those of other projects, count none. Different people
    may have the same name in two data sets: "001" is somebody in each of them.

    Args:
        model: Model whose modules, such as a detector, may have ``training_people``.
        identities: Identities of the test's faces, with repetitions.
    """
    known: set[str] = set()
    for module in model.modules():
        known.update(getattr(module, "training_people", ()))
    people = sorted(set(identities))
    seen = [name for name in people if identity_digest(name) in known]
    if seen:
        logger.warning(
            "%d of the %d people of this test have names that the model was trained on, such as "
            "%s: unless they are other people of the same name, the figures are too good; test on "
            "people who were held out (prepare --test-share)",
            len(seen),
            len(people),
            seen[0],
        )
    return len(seen)
