"""Models of the tables' rows: described, trained once, and loaded again.

Models shared by rows are trained once: a detector is stored under the key of its settings, and the
adapters of one seed are trained on it::

    DIR/models/<part>-<key>/settings.json    written last: without it the training resumes
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import datasets

from eval.papers.baselines import (
    Baseline,
    BaselineScorer,
    ClipBaseline,
    SelfBlendedBaseline,
    fill_baseline,
    train_baseline,
)
from eval.papers.cells import SETTINGS, settings_key
from eval.papers.held_out import data_stamp
from eval.papers.host_scorer import HostScorer
from eval.papers.recipes import ModelSpec
from eval.papers.table_config import TablesConfig
from eval.papers.table_settings import (
    AdapterSettings,
    ClipSettings,
    DetectorSettings,
    SelfBlendedSettings,
)
from eval.papers.training_images import choose_images, real_faces
from llava_forgery.convert.sources import load_trunk
from llava_forgery.data.build_qa import build_conversations
from llava_forgery.evaluation.scorers import AdapterScorer, DetectorScorer, Scorer
from llava_forgery.files import write_json
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.baseline import BaselineVLM
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.quantized import pick_device, place_host
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.config import KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.adapter import train_adapter
from llava_forgery.train.run_record import last_checkpoint
from llava_forgery.train.stage1 import train_kfd

logger = logging.getLogger(__name__)

MODELS = "models"
_CONVERSATIONS = ("pairs", "follow_ups", "task_descriptions", "kfd_results")


class NotRunError(Exception):
    """A row has no data to run on; the message is the reason that the table gives."""


class TableModels:
    """Makes the models of rows in the tables' folder.

    Args:
        config: Data, hosts and sizes.
        directory: The tables' folder.
    """

    def __init__(self, config: TablesConfig, directory: str | PathLike) -> None:
        self.config, self.directory = config, Path(directory)

    def describe(self, spec: ModelSpec, seed: int) -> dict[str, Any]:
        """Everything that decides a row's model, as JSON takes it; nothing is trained.

        Raises:
            NotRunError: The configuration has no data for it.
        """
        if spec.kind in ("clip", "self_blended"):
            settings = getattr(self.config, spec.kind)
            if settings is None:
                raise NotRunError(f"the configuration has no section {spec.kind!r}")
            described = {"kind": spec.kind, **_stamped(settings), **self._training(spec, seed)}
            return {**described, "head": spec.head} if spec.kind == "clip" else described
        if spec.kind == "detector":
            return {"kind": spec.kind, "detector": self._detector_settings(spec, seed)}
        if spec.kind in ("host", "adapter"):
            described = {"kind": spec.kind, "host": self._host(spec)[1]}
            if spec.kind == "host":
                described |= {"cite_score": spec.cite_score, "question": spec.question}
            if spec.cite_score or spec.lora or spec.kind == "adapter":
                described["detector"] = self._detector_settings(spec, seed)
            if spec.lora or spec.kind == "adapter":
                described |= {**self._adapter_settings(spec), "seed": seed}
            return described
        raise ValueError(f"a row of kind {spec.kind!r} has no model")

    def note(self, spec: ModelSpec) -> str:
        """What a reader of the row must know of its weights."""
        clip, blended = self.config.clip, self.config.self_blended
        if spec.kind == "clip" and clip is not None and clip.is_random:
            return f"random weights of {clip.model}: no pretrained ones were given"
        if spec.kind == "self_blended" and blended is not None and blended.weights is None:
            return f"{blended.model} from random weights: no pretrained ones were given"
        return ""

    def scorer(self, spec: ModelSpec, seed: int) -> Scorer:
        """The row's model, trained or loaded.

        Raises:
            NotRunError: As :meth:`describe`.
        """
        described = self.describe(spec, seed)
        if spec.kind == "detector":
            return DetectorScorer(self._detector(spec, seed).to(pick_device()))
        if spec.kind in ("clip", "self_blended"):
            return self._baseline(spec, seed, described)
        kfd = self._detector(spec, seed) if "detector" in described else None
        if spec.kind == "adapter":
            folder = self._made("adapter", described, lambda f: self._train_adapter(f, spec, seed))
            model, processor = self._load_host(spec)
            return AdapterScorer(ForgeryPredictor(load_adapter(folder / "model", model, processor)))
        model, processor = self._load_host(spec)
        settings = self.config.adapter
        plain = BaselineVLM(model, processor, _lora(settings) if spec.lora else None, seed)
        if spec.lora:
            folder = self._made(
                "lora", described, lambda f: self._train_plain(f, plain, spec, seed)
            )
            plain.load_weights(folder / "model")
        if kfd is not None:
            kfd = kfd.to(plain.device)
        return HostScorer(plain, kfd, spec.cite_score, spec.question)

    def _training(self, spec: ModelSpec, seed: int) -> dict[str, Any]:
        name = spec.training_set or next(iter(self.config.training_sets))
        folder = self.config.training_sets[name]
        images = self.config.train_images if spec.images is None else spec.images
        try:
            faces = real_faces(folder)
        except (FileNotFoundError, ValueError) as error:
            raise NotRunError(f"training set {name!r}: {error}") from error
        if images is not None and images > len(faces):
            raise NotRunError(f"{images} training images wanted, {name!r} has {len(faces)}")
        return {"training_set": data_stamp(folder), "images": images, "seed": seed}

    def _faces(self, spec: ModelSpec, seed: int) -> datasets.Dataset:
        name = spec.training_set or next(iter(self.config.training_sets))
        faces = real_faces(self.config.training_sets[name])
        images = self.config.train_images if spec.images is None else spec.images
        if images is None:
            return faces
        return faces.select(choose_images(len(faces), images, seed))

    def _detector_settings(self, spec: ModelSpec, seed: int) -> dict[str, Any]:
        return {**_stamped(self.config.detector), **self._training(spec, seed)}

    def _adapter_settings(self, spec: ModelSpec) -> dict[str, Any]:
        return {"adapter": asdict(self.config.adapter), "lora": spec.lora}

    def _host(self, spec: ModelSpec) -> tuple[str, str]:
        """Name or folder, and a stamp of it."""
        if not self.config.hosts:
            raise NotRunError("hosts of the configuration is empty")
        name = spec.host or next(iter(self.config.hosts))
        where = self.config.hosts[name]
        # A hub name is no folder and stands for itself; a path that is missing is a mistake.
        if Path(where).is_dir():
            return where, data_stamp(where)
        if where.startswith((".", "/")) or where.count("/") != 1:
            raise NotRunError(f"host {name!r}: there is no folder {where}")
        return where, where

    def _load_host(self, spec: ModelSpec):
        model, processor = load_host(Path.cwd(), self._host(spec)[0])
        return place_host(model, None), processor

    def _made(self, part: str, settings: dict[str, Any], make: Callable[[Path], Any]) -> Path:
        """The folder of a trained part, trained if it is not finished."""
        folder = self.directory / MODELS / f"{part}-{settings_key(settings)}"
        if not (folder / SETTINGS).is_file():
            logger.info("training %s", folder.name)
            folder.mkdir(parents=True, exist_ok=True)
            make(folder)
            write_json(folder / SETTINGS, settings)
        return folder

    def _detector(self, spec: ModelSpec, seed: int) -> KnowledgeGuidedForgeryDetector:
        settings = self.config.detector

        def train(folder: Path) -> None:
            if settings.config is not None:
                kfd_config = KFDConfig.from_dict(settings.config)
                detector = KnowledgeGuidedForgeryDetector.from_config(kfd_config, seed)
            else:
                detector = KnowledgeGuidedForgeryDetector.from_preset(settings.preset, seed)
            if settings.trunk_weights is not None:
                load_trunk(detector, settings.trunk_weights)
            train_kfd(
                detector,
                self._faces(spec, seed),
                folder / "model",
                steps=settings.steps,
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                seed=seed,
                save_steps=self.config.save_steps,
                workers=self.config.workers,
                resume=last_checkpoint(folder / "model") is not None,
            )

        folder = self._made("detector", self._detector_settings(spec, seed), train)
        return KnowledgeGuidedForgeryDetector.from_pretrained(folder / "model")

    def _conversations(self, spec: ModelSpec, seed: int) -> datasets.Dataset:
        """Stage 2's data, the same for all rows with one detector."""
        settings = self.config.adapter
        chosen = {name: getattr(settings, name) for name in _CONVERSATIONS}

        def build(folder: Path) -> None:
            detector = self._detector(spec, seed).to(pick_device())
            pairs = FacePairs(
                self._faces(spec, seed),
                settings.pairs,
                size=detector.config.encoder.image_size,
                seed=seed,
                degradation=DegradeConfig(),
                role="stage2",
            )
            wording = {name: chosen[name] for name in _CONVERSATIONS[1:]}
            # As the tables were measured: up to two follow-ups.
            build_conversations(pairs, detector, folder / "data", seed=seed, max_turns=3, **wording)

        described = {"detector": self._detector_settings(spec, seed), **chosen}
        return datasets.load_from_disk(str(self._made("conversations", described, build) / "data"))

    def _train_adapter(self, folder: Path, spec: ModelSpec, seed: int) -> None:
        settings = self.config.adapter
        model, processor = self._load_host(spec)
        detector = self._detector(spec, seed)
        width = model.config.get_text_config().hidden_size
        vlm = attach_forgery(
            model,
            processor,
            detector,
            FPLConfig(width, detector.config.num_layers, settings.fpl),
            lora=_lora(settings) if spec.lora else None,
            seed=seed,
        )
        train_adapter(
            vlm,
            self._conversations(spec, seed),
            folder / "model",
            fpl_warmup_steps=settings.fpl_warmup_steps,
            fpl_learning_rate=settings.fpl_learning_rate,
            **self._stage2(folder, seed),
        )

    def _train_plain(self, folder: Path, plain: BaselineVLM, spec: ModelSpec, seed: int) -> None:
        conversations = self._conversations(spec, seed)
        train_adapter(plain, conversations, folder / "model", **self._stage2(folder, seed))

    def _stage2(self, folder: Path, seed: int) -> dict[str, Any]:
        settings = self.config.adapter
        return {
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "weight_decay": settings.weight_decay,
            "seed": seed,
            "save_steps": self.config.save_steps,
            "resume": last_checkpoint(folder / "model-training") is not None,
        }

    def _baseline(self, spec: ModelSpec, seed: int, described: dict[str, Any]) -> Scorer:
        settings = getattr(self.config, spec.kind)

        def new() -> Baseline:
            if spec.kind == "clip":
                return ClipBaseline(settings, spec.head, seed)
            return SelfBlendedBaseline(settings, seed)

        def train(folder: Path) -> None:
            train_baseline(
                new(),
                self._faces(spec, seed),
                folder / "model",
                steps=settings.steps,
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                seed=seed,
                save_steps=self.config.save_steps,
                workers=self.config.workers,
                resume=last_checkpoint(folder / "model") is not None,
            )

        folder = self._made(spec.kind, described, train)
        model = new()
        fill_baseline(model, folder / "model")
        return BaselineScorer(model.to(pick_device()))


def _stamped(settings: DetectorSettings | ClipSettings | SelfBlendedSettings) -> dict[str, Any]:
    """Settings with a stamp of their weights' file in place of its path."""
    values = asdict(settings)
    for name in ("trunk_weights", "weights"):
        if values.get(name) is not None:
            try:
                values[name] = data_stamp(values[name])
            except FileNotFoundError as error:
                raise NotRunError(f"{name}: {error}") from error
    return values


def _lora(settings: AdapterSettings) -> LoraSettings:
    return LoraSettings(settings.lora_r, settings.lora_alpha, settings.lora_dropout)
