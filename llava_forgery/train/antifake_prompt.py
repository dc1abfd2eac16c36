"""Train a pseudo-word: only the vectors of ``[*]``.

    llava-forgery train pseudo-word --base-model HOST --data DATA --out WORD

Source: AntifakePrompt (arXiv:2310.17419), sections 3 and 4; nctu-eva-lab/AntifakePrompt at 957c1e1.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from llava_forgery.constants import FAKE, IGNORE_INDEX, REAL
from llava_forgery.data.labelled import LabelledFile
from llava_forgery.files import check_output_folder
from llava_forgery.hosts.likelihood import label_log_likelihoods
from llava_forgery.hosts.pseudo_word import PseudoWordConfig, PseudoWordVLM, bare_host
from llava_forgery.hosts.pseudo_word_checkpoint import CONFIG, ENTRIES, VECTORS
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.images import read_image
from llava_forgery.noise import quiet
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.train.run_record import (
    describe_host,
    describe_tokens,
    files_fingerprint,
    mean_size,
    open_run,
    training_folder,
)
from llava_forgery.train.trainer import (
    ForgeryTrainer,
    Trainable,
    run_training,
    training_arguments,
)
from llava_forgery.weights import load_tensors


def encode_answer(
    processor: ProcessorMixin, config: PseudoWordConfig, label: int, image: Image.Image
) -> dict[str, torch.Tensor]:
    """Encode question, image and the answer for a label for the host, supervised on the answer.

    The host's chat template is used. A host without one, such as InstructBLIP, reads question and
    answer concatenated, as in the paper's code.

    Args:
        processor: Processor whose tokenizer has ``[*]``.
        config: Configuration with question and answers.
        label: Label of the answer, real or fake.
        image: RGB image.

    Returns:
        One sample without the batch dimension, as from
        :func:`llava_forgery.hosts.transformers.prompts.encode`.
    """
    answer = config.answers[label]
    if _has_template(processor):
        messages = (Message("user", config.prompt), Message("assistant", answer))
        said = Conversation(messages, label=None)
        return encode(said, processor, images=[image], n_forgery_tokens=0)
    batch = processor(text=config.prompt, images=image, return_tensors="pt")
    sample = {name: value[0] for name, value in batch.items()}
    tokenizer = processor.tokenizer
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    ids = torch.tensor(ids)
    unsupervised = torch.full_like(sample["input_ids"], IGNORE_INDEX)
    sample["labels"] = torch.cat([unsupervised, ids])
    sample["input_ids"] = torch.cat([sample["input_ids"], ids])
    sample["attention_mask"] = torch.ones_like(sample["input_ids"])
    return sample


def _has_template(processor: ProcessorMixin) -> bool:
    return bool(
        getattr(processor, "chat_template", None)
        or getattr(processor.tokenizer, "chat_template", None)
    )


class PseudoWordTraining(Trainable):
    """The host with the word, in the form that the Trainer needs."""

    def __init__(self, vlm: PseudoWordVLM) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, labels: torch.Tensor, **inputs: Any) -> dict[str, torch.Tensor]:
        """Language modelling loss, averaged over an answer's tokens, then over the photos.

        So each photo has the same weight, however many tokens its answer has.

        Args:
            labels: (B, T), -100 outside the answers.
            inputs: Inputs of the host.
        """
        log_likelihoods, _ = label_log_likelihoods(self.vlm, labels, **inputs)
        tokens = (labels != IGNORE_INDEX).sum(dim=1)
        return {"loss": -(log_likelihoods.sum(dim=1) / tokens).mean()}

    def saved_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.vlm.word.parameters())

    def save_checkpoint(self, directory: Path) -> None:
        self.vlm.save_pretrained(directory)

    def load_checkpoint(self, directory: Path) -> None:
        word = self.vlm.word
        word.load_state_dict(load_tensors(directory / VECTORS, word.state_dict()))


class LabelledAnswers(Dataset):
    """Photos as inputs of the host, each with its true answer."""

    def __init__(self, images: Sequence[LabelledFile], vlm: PseudoWordVLM) -> None:
        self.images = images
        self.processor, self.config = vlm.processor, vlm.config

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index]
        pixels = Image.fromarray(read_image(image.path))
        return encode_answer(self.processor, self.config, image.label, pixels)


class AnswerCollator:
    """Pads the texts on the right and stacks the rest."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.pad_id = processor.tokenizer.pad_token_id
        self.with_template = _has_template(processor)

    def __call__(self, samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if self.with_template:
            return collate(samples, pad_id=self.pad_id, padding_side="right")
        # Without a template all samples have the same question and only differ in their answers.
        fill = {"input_ids": self.pad_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        batch = {}
        for key in samples[0]:
            values = [sample[key] for sample in samples]
            batch[key] = (
                pad_sequence(values, batch_first=True, padding_value=fill[key])
                if key in fill
                else torch.stack(values)
            )
        return batch


@quiet()
def train_pseudo_word(
    vlm: PseudoWordVLM,
    images: Sequence[LabelledFile],
    output_dir: str | PathLike,
    *,
    epochs: float = 10,
    batch_size: int = 6,
    learning_rate: float = 1e-5,
    weight_decay: float = 0.05,
    seed: int = 0,
    save_steps: int | None = None,
    workers: int = 0,
    resume: bool = False,
    report_to: str = "none",
    deepspeed: str | PathLike | None = None,
) -> PseudoWordVLM:
    """Train the word and write it to ``output_dir``. The defaults are the paper's.

    Args:
        vlm: Model from ``attach_pseudo_word``; the host is not changed.
        images: Real and fake photos, from ``read_labelled``.
        output_dir: Receives the word; a folder of this name with the suffix ``-training`` receives
            ``checkpoint-*``, ``log.json`` and ``training_run.json``. If they hold the same
            training, finished, nothing is trained.
        epochs: Number of passes over the photos.
        batch_size: Number of photos per step and process.
        learning_rate: Peak of a cosine schedule with warm-up.
        weight_decay: Weight decay of AdamW.
        seed: Seed of the order.
        save_steps: Number of steps between checkpoints; None saves none.
        workers: Number of processes that read and tokenise.
        resume: Whether to resume from the last checkpoint.
        report_to: ``none``, ``tensorboard`` or ``wandb``.
        deepspeed: DeepSpeed's JSON file, for training with several processes.

    Returns:
        The host with the trained word, in eval mode.

    Raises:
        ValueError: The photos lack a label; the host has the forgery skill, whose prompt differs
            from this question; or the folder holds another training, an interrupted one without
            ``resume``, or something other than a word.
    """
    output_dir = Path(output_dir)
    check_output_folder(output_dir, CONFIG, entries=ENTRIES)
    if isinstance(vlm.model, ForgeryVLM):
        raise ValueError(
            "train the pseudo-word on the bare host, then attach it to the host with the forgery "
            "skill: load_pseudo_word(directory, vlm, processor)"
        )
    counts = {label: sum(image.label == label for image in images) for label in (REAL, FAKE)}
    if not all(counts.values()):
        raise ValueError(
            f"training needs real and fake photos, got {counts[REAL]} real and {counts[FAKE]} fake"
        )
    vlm.sources = tuple(sorted({image.set for image in images}))
    arguments = training_arguments(
        training_folder(output_dir),
        steps=-1,
        num_train_epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        save_steps=save_steps,
        workers=workers,
        report_to=report_to,
        deepspeed=deepspeed,
    )
    host = bare_host(vlm.model)
    samples = LabelledAnswers(images, vlm)
    settings = {
        "host": {**describe_host(host, vlm.fingerprint), "more_embeddings": vlm.more_embeddings},
        "word": vlm.config.to_dict(),
        "weights": mean_size(vlm.word.parameters()),
        "data": files_fingerprint(
            [[image.path.name, image.label, image.set] for image in images],
            [image.path for image in images],
        ),
        "tokens": describe_tokens(samples[0]),
    }
    run = open_run(arguments, "train pseudo-word", settings, output_dir / CONFIG, resume)
    training = PseudoWordTraining(vlm)
    if run.finished:
        training.load_checkpoint(output_dir)
        return vlm.eval()
    trainer = ForgeryTrainer(
        model=training,
        args=arguments,
        train_dataset=samples,
        data_collator=AnswerCollator(vlm.processor),
    )
    run_training(trainer, run)
    vlm.eval()
    trainer.save_model(output_dir)
    run.finish()
    return vlm
