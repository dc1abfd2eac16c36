"""Names of the skill in a LLaVA model and in its configuration."""

from os import PathLike
from pathlib import Path

from llava_forgery.files import read_json

PREFIX = "kfd:"
PROJECTOR_TYPE = "forgery_prompt_learner"
# Attributes of LLaVA's inner model.
TOWER, PROJECTOR = "forgery_tower", "forgery_projector"
# The host's own.
HOST_PROJECTOR = "mm_projector"

# Keys of the skill in a model's configuration.
CONFIG_KEYS = (
    "mm_forgery_tower",
    "mm_forgery_projector_type",
    "mm_forgery_fpl",
    "mm_forgery_host",
)

# The name in LLaVA's conv_templates that the skill was trained with; set by training.
TEMPLATE_KEY = "mm_forgery_template"

# Placement of E_forgery (:mod:`llava_forgery.hosts.placement`); set by training, changed by
# ``convert placement``. Missing in older adapters.
PLACEMENT_KEY = "mm_forgery_placement"
# Whether faces are found and cut out of pictures that the detector only sees as the host's inputs.
CROP_KEY = "mm_forgery_crop"

# Further records in an adapter's configuration: the format, versions of the libraries that wrote
# it, and the training facts of its model card.
FORMAT_KEY, VERSIONS_KEY = "mm_forgery_format", "mm_forgery_versions"
TRAINING_KEY = "mm_forgery_training"


def in_llava_layout(directory: str | PathLike) -> bool:
    """Whether a folder's ``config.json`` names the skill, as in our folders of LLaVA's layout."""
    path = Path(directory) / "config.json"
    values = read_json(path) if path.is_file() else {}
    return isinstance(values, dict) and bool(values.get("mm_forgery_tower"))
