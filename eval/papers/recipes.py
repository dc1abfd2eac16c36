"""The papers' tables as data: which rows they have, what each row trains, what was printed.

Source: LVLM-DFD, tables 1 to 6, for our method and for the rows that have a baseline here;
AntifakePrompt (arXiv:2310.17419), abstract and figures 2 to 5. Figures are in percent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from eval.papers.table_config import TablesConfig

AUC, AP, ACCURACY = "AUC", "AP", "accuracy"
AVERAGE = "average"

Paper = Mapping[str, Mapping[str, float]]
"""Figure (``AUC``) to test set (``CDF2``) to number, as printed."""


@dataclass(frozen=True)
class ModelSpec:
    """What a row trains and judges with."""

    kind: Literal["detector", "adapter", "host", "clip", "self_blended", "records"]
    """``detector``: the KFD alone. ``adapter``: host with FPL. ``host``: host without FPL.
    ``clip``: a CLIP baseline. ``self_blended``: the timm classifier. ``records``: judged by
    something else."""
    training_set: str | None = None
    """Name in the configuration; None for the default."""
    images: int | None = None
    """Training images; None for the configuration's number."""
    host: str | None = None
    """Name in the configuration; None for the default."""
    lora: bool = False
    """Train LoRA on the language model."""
    cite_score: bool = True
    """The prompt of a host without FPL holds the sentence with the detector's score."""
    question: Literal["deepfake", "photo"] = "deepfake"
    """What a host without FPL is asked: the detector's question, or AntifakePrompt's, "Is this
    photo real?", whose two answers are ranked by their whole likelihood."""
    head: Literal["context", "probe"] = "context"
    """Of the CLIP baselines: learned context, or a linear layer on the image's features."""
    records: str | None = None
    """Name in the configuration's ``records``."""


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    name: str
    """As it is printed; the paper's own name in brackets where it differs."""
    model: ModelSpec | None
    """None for a row of the paper's that has nothing to run."""
    paper: Paper = field(default_factory=dict)
    """What the paper printed for it."""
    reason: str | None = None
    """Why there is nothing to run."""

    def __post_init__(self) -> None:
        if (self.model is None) != (self.reason is not None):
            raise ValueError(f"row {self.name!r} needs either a model or a reason why it has none")


@dataclass(frozen=True)
class Recipe:
    """A table."""

    name: str
    title: str
    figures: tuple[str, ...]
    """Of ``AUC``, ``AP`` and ``accuracy``, each of the row's output at video level."""
    paper_tests: tuple[str, ...]
    """Test sets of the paper's table."""
    rows: Callable[[TablesConfig], list[Row]]
    note: str = ""
    """What a reader must know."""


def _paper(tests: tuple[str, ...], **figures: tuple[float, ...]) -> Paper:
    """Numbers in the order of the tests; one more is their average."""
    names = (*tests, AVERAGE)
    return {
        figure: dict(zip(names[: len(numbers)], numbers, strict=True))
        for figure, numbers in figures.items()
    }


_TABLE1 = ("FF++", "CDF2", "DFD", "DFDC", "CDF1", "DFDCP")
_TABLE2 = ("FF++", "CDF2", "DFD", "CDF1", "DFDCP")
_TABLE3 = ("FF++", "CDF1", "DFD", "DFDC")
_TABLE4 = ("FF++", "CDF2", "DFDC")
_TABLE5 = ("FF++", "CDF2", "DFDCP", "DFDC")
_TABLE6 = ("FF++", "CDF1", "DFD", "DFDC")
_GENERATORS = ("COCO", "Flickr30k", "SD2", "SD3")

_BY_IMAGES = {
    50: (92.68, 83.18, 74.46, 61.82, 78.04),
    100: (94.38, 91.12, 78.99, 63.88, 82.09),
    200: (94.02, 91.98, 80.47, 62.09, 82.14),
    500: (95.15, 91.82, 81.65, 65.31, 83.48),
}
_BY_TRAINING_SET = {
    "FF++": (99.54, 94.32, 92.39, 77.03, 90.82),
    "CDF2": (97.95, 95.79, 86.36, 70.27, 87.59),
    "DFDCP": (99.15, 85.17, 93.74, 69.64, 86.93),
}
_BY_LANGUAGE_MODEL = {
    "Llama-3.2-1B": (96.49, 95.64, 82.74, 65.66, 85.13),
    "Llama-3.2-3B": (97.08, 95.30, 82.80, 66.12, 85.32),
    "Vicuna-7B": (97.11, 95.97, 84.26, 67.65, 86.25),
}


def _detector_rows(config: TablesConfig) -> list[Row]:
    return [
        Row(
            "KFD (Ours)",
            ModelSpec("detector"),
            _paper(
                _TABLE1,
                AUC=(99.53, 94.71, 99.64, 79.12, 97.62, 91.81),
                AP=(99.54, 93.59, 99.68, 77.69, 97.67, 88.26),
            ),
        ),
        Row(
            "timm classifier on self-blended faces (SBI)",
            ModelSpec("self_blended"),
            _paper(
                _TABLE1,
                AUC=(99.15, 93.82, 96.32, 74.47, 93.44, 90.95),
                AP=(99.15, 92.99, 96.13, 74.09, 93.77, 85.98),
            ),
        ),
    ]


def _text_rows(config: TablesConfig) -> list[Row]:
    return [
        Row(
            "CLIP, learned context (P-Tuning)",
            ModelSpec("clip"),
            _paper(_TABLE2, AUC=(91.32, 79.97, 88.74, 81.45, 69.26, 82.15)),
        ),
        Row("CLIP, linear probe", ModelSpec("clip", head="probe")),
        Row(
            "host with LoRA, no FPL (PandaGPT)",
            ModelSpec("host", lora=True),
            _paper(_TABLE2, AUC=(63.42, 62.53, 64.56, 55.01, 46.06, 58.32)),
        ),
        Row(
            "bare host, zero-shot (Qwen2-VL)",
            ModelSpec("host", cite_score=False),
            _paper(_TABLE2, AUC=(50.50, 48.88, 42.38, 46.46, 51.71, 47.99)),
        ),
        Row(
            "FAK-Owl",
            None,
            _paper(_TABLE2, AUC=(67.54, 73.51, 68.61, 62.13, 65.96, 67.55)),
            reason="no recipe here: another project's model",
        ),
        Row(
            "host with FPL and LoRA (Ours)",
            ModelSpec("adapter", lora=True),
            _paper(_TABLE2, AUC=(97.11, 89.90, 92.26, 95.97, 86.70, 92.39)),
        ),
    ]


def _image_rows(config: TablesConfig) -> list[Row]:
    rows = []
    for count in config.image_counts:
        numbers = _BY_IMAGES.get(count)
        paper = _paper(_TABLE3, AUC=numbers) if numbers else {}
        rows.append(Row(f"{count} images", ModelSpec("adapter", images=count, lora=True), paper))
        rows.append(Row(f"{count} images, KFD alone", ModelSpec("detector", images=count)))
    reason = f"image_counts of the configuration are {', '.join(map(str, config.image_counts))}"
    for count, numbers in _BY_IMAGES.items():
        if count not in config.image_counts:
            rows.append(Row(f"{count} images", None, _paper(_TABLE3, AUC=numbers), reason))
    return rows


def _ablation_rows(config: TablesConfig) -> list[Row]:
    return [
        Row(
            "neither: bare host, zero-shot, score in the prompt",
            ModelSpec("host"),
            _paper(_TABLE4, AUC=(50.00, 50.28, 50.00), AP=(50.00, 65.56, 49.93)),
        ),
        Row(
            "LoRA alone",
            ModelSpec("host", lora=True),
            _paper(_TABLE4, AUC=(63.42, 62.53, 55.11), AP=(61.22, 59.02, 53.47)),
        ),
        Row(
            "FPL alone",
            ModelSpec("adapter"),
            _paper(_TABLE4, AUC=(96.59, 89.25, 67.65), AP=(96.13, 94.69, 64.07)),
        ),
        Row(
            "FPL + LoRA",
            ModelSpec("adapter", lora=True),
            _paper(_TABLE4, AUC=(97.11, 89.90, 68.77), AP=(96.97, 94.51, 64.57)),
        ),
        Row("KFD alone, no language model", ModelSpec("detector")),
    ]


def _named_rows(
    names: Mapping[str, str],
    printed: Mapping[str, tuple[float, ...]],
    tests: tuple[str, ...],
    field_name: str,
    model: Callable[[str], ModelSpec],
) -> list[Row]:
    """A row for each name in the configuration, then the paper's that are not there."""
    rows = [
        Row(name, model(name), _paper(tests, AUC=printed[name]) if name in printed else {})
        for name in names
    ]
    for name, numbers in printed.items():
        if name not in names:
            reason = f"{field_name} of the configuration has no {name!r}"
            rows.append(Row(name, None, _paper(tests, AUC=numbers), reason))
    return rows


def _training_set_rows(config: TablesConfig) -> list[Row]:
    return _named_rows(
        config.training_sets,
        _BY_TRAINING_SET,
        _TABLE5,
        "training_sets",
        lambda name: ModelSpec("adapter", training_set=name, lora=True),
    )


def _language_model_rows(config: TablesConfig) -> list[Row]:
    return _named_rows(
        config.hosts,
        _BY_LANGUAGE_MODEL,
        _TABLE6,
        "hosts",
        lambda name: ModelSpec("adapter", host=name, lora=True),
    )


def _generator_rows(config: TablesConfig) -> list[Row]:
    return [
        Row("bare host, zero-shot", ModelSpec("host", cite_score=False, question="photo")),
        Row(
            "pseudo-word (AntifakePrompt)",
            ModelSpec("records", records="pseudo-word"),
            {ACCURACY: {"COCO": 92.53, "Flickr30k": 91.57, "SD2": 98.33, "SD3": 96.17}},
        ),
        Row("host with FPL and LoRA", ModelSpec("adapter", lora=True)),
        Row("KFD alone", ModelSpec("detector")),
    ]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "table1",
            "Table 1: intra-dataset and cross-dataset, from the KFD",
            (AUC, AP),
            _TABLE1,
            _detector_rows,
            "The paper's table has 14 further detectors, which are not repeated here.",
        ),
        Recipe(
            "table2",
            "Table 2: methods with a language model, from the text",
            (AUC,),
            _TABLE2,
            _text_rows,
            "The output is P(yes) where a language model answers, else the score. The paper's "
            "names in brackets are of the method whose place a row takes: the hosts here are "
            "others than PandaGPT and Qwen2-VL.",
        ),
        Recipe(
            "table3",
            "Table 3: number of training images",
            (AUC,),
            _TABLE3,
            _image_rows,
            "Images are drawn at random, and the smaller draws are parts of the larger ones.",
        ),
        Recipe(
            "table4",
            "Table 4: Forgery Prompt Learner and LoRA",
            (AUC, AP),
            _TABLE4,
            _ablation_rows,
            "All prompts hold the sentence with the detector's score, also those of the rows "
            "without FPL: what these rows know of the image beyond the host's own sight, they "
            "read in that sentence.",
        ),
        Recipe("table5", "Table 5: training set", (AUC, AP), _TABLE5, _training_set_rows),
        Recipe("table6", "Table 6: language model", (AUC,), _TABLE6, _language_model_rows),
        Recipe(
            "antifakeprompt",
            "AntifakePrompt: accuracy by generator",
            (ACCURACY,),
            _GENERATORS,
            _generator_rows,
            "Accuracy at P(yes) or score 0.5. The paper's average over the unseen sets is 92.11 "
            "with the pseudo-word and 71.06 before.",
        ),
    )
}
"""The tables by name."""
