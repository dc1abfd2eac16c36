"""AntifakePrompt's pseudo-word: a token of the prompt, of which only the embedding is trained.

``attach_pseudo_word`` adds hooks to a host's input embedding: the row of ``[*]`` in a prompt is a
learned vector. The host is not replaced, resized, saved or trained. On InstructBLIP the question
also reaches the Q-Former, whose own embedding gets another vector: 768 + 4096 = 4,864 parameters
with Vicuna-7B.

Source: AntifakePrompt (arXiv:2310.17419), section 3; nctu-eva-lab/AntifakePrompt at 957c1e1.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.tokenization_utils_base import AddedToken

from llava_forgery.constants import PSEUDO_WORD
from llava_forgery.hosts.families import exclusive
from llava_forgery.hosts.fingerprint import (
    TOLERANCE,
    check_fingerprint,
    embedding_probe,
    host_fingerprint,
    probe_difference,
)
from llava_forgery.hosts.likelihood import labelled_logits
from llava_forgery.hosts.lora import without_peft
from llava_forgery.hosts.placeholder import EmbeddingHooks, input_embedding
from llava_forgery.hosts.pseudo_word_checkpoint import (
    VECTORS,
    read_pseudo_word_config,
    save_pseudo_word,
)
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.hub import Pushable, local_folder
from llava_forgery.noise import quiet
from llava_forgery.optional import lazy
from llava_forgery.weights import load_tensors

if TYPE_CHECKING:
    import peft
else:
    peft = lazy("peft")

PLACEMENTS = ("postfix", "prefix", "replace")
LANGUAGE_MODEL, QFORMER = "language_model", "qformer"


@dataclass(frozen=True)
class PseudoWordConfig:
    """The question, its answers, and the initial vector.

    The polarity is the paper's: ``real_answer`` says that the photo is real, so the likelihood of
    ``fake_answer`` gives P(fake). Labels stay real = 0, fake = 1.
    """

    question: str = "Is this photo real?"
    """Question without the pseudo-word."""
    placement: str = "postfix"
    """Position of the pseudo-word: ``postfix`` before the question mark, ``prefix`` before the
    question, ``replace`` instead of the word ``real``."""
    real_answer: str = "yes"
    """The whole answer for a real photo."""
    fake_answer: str = "no"
    """The whole answer for a fake one."""
    initial_word: str | None = None
    """Word whose embedding initialises the vector; None draws it like the vocabulary's."""

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(
                f"placement must be one of {', '.join(PLACEMENTS)}, got {self.placement!r}"
            )
        for name in ("question", "real_answer", "fake_answer"):
            text = getattr(self, name)
            if not text or text != text.strip() or PSEUDO_WORD in text:
                raise ValueError(
                    f"{name} must be a stripped text without {PSEUDO_WORD}, which the placement "
                    f"inserts; got {text!r}"
                )
        if self.real_answer == self.fake_answer:
            raise ValueError(f"the answers for real and fake are equal: {self.real_answer!r}")
        if self.placement == "replace" and len(re.findall(r"\breal\b", self.question)) != 1:
            raise ValueError(
                f"placement 'replace' needs one 'real' in the question, got {self.question!r}"
            )

    @property
    def prompt(self) -> str:
        """The question with the pseudo-word, such as ``Is this photo real [*]?``."""
        if self.placement == "prefix":
            return f"{PSEUDO_WORD} {self.question}"
        if self.placement == "replace":
            return re.sub(r"\breal\b", PSEUDO_WORD, self.question)
        stem = self.question.rstrip("?")
        return f"{stem} {PSEUDO_WORD}{self.question[len(stem) :]}"

    @property
    def answers(self) -> tuple[str, str]:
        """The answer for each label: real, fake."""
        return self.real_answer, self.fake_answer

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class LearnedVector(nn.Module):
    """A row that replaces an embedding's; a module, so that ZeRO-3 gathers it when called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self) -> torch.Tensor:
        """(C,) float32."""
        # A copy: under ZeRO-3 the parameter itself is partitioned again after this call.
        return self.weight.clone()


class PseudoWord(nn.Module):
    """The learned vectors: ``language_model`` (C,), and ``qformer`` if the host has one.

    Args:
        widths: Width of each embedding.
    """

    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.vectors = nn.ModuleDict({name: LearnedVector(w) for name, w in widths.items()})

    def __getitem__(self, name: str) -> LearnedVector:
        return cast(LearnedVector, self.vectors[name])


class PseudoWordHooks(EmbeddingHooks):
    """Hooks that replace the pseudo-word by a learned vector.

    Unlike the vectors of forgery placeholders, which belong to a sample's image, this vector is the
    same at every position and always set, whatever calls the host.

    Args:
        embedding: Input embedding.
        token_id: Id of the pseudo-word.
        vector: Module that returns the row.
    """

    def __init__(self, embedding: nn.Module, token_id: int, vector: LearnedVector) -> None:
        super().__init__(embedding, token_id)
        self.vector = vector

    def _check(self, ids: torch.Tensor) -> None:
        """Accept all ids, as there is always a row to write."""

    def _write(self, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        row = self.vector().to(output.device, output.dtype)
        return torch.where(places[..., None], row, output)


class PseudoWordVLM(Pushable, nn.Module):
    """A host with the pseudo-word; made by :func:`attach_pseudo_word`.

    Attributes:
        model: The host, or the :class:`ForgeryVLM` that owns it.
        word: The learned vectors, the only trainable parameters.
        processor: Processor whose tokenizers have ``[*]``.
        config: Question and answers.
        fingerprint: Fingerprint of the bare host.
        host_name: Folder or hub name of the bare host.
        more_embeddings: Probes of further embeddings that read the question, as the fingerprint
            only has that of the language model.
        sources: Names of the data that the word was trained on, which evaluations call held-in.
    """

    def __init__(
        self,
        model: PreTrainedModel | ForgeryVLM,
        processor: ProcessorMixin,
        word: PseudoWord,
        config: PseudoWordConfig,
        fingerprint: dict[str, Any],
        host_name: str,
    ) -> None:
        super().__init__()
        self.model, self.word = model, word
        self.processor, self.config = processor, config
        self.fingerprint, self.host_name = fingerprint, host_name
        self.sources: tuple[str, ...] = ()
        embeddings = pseudo_word_embeddings(bare_host(model), processor)
        self.more_embeddings = {
            name: embedding_probe(embedding.weight)
            for name, (embedding, _) in embeddings.items()
            if name != LANGUAGE_MODEL
        }
        self._hooks = [
            PseudoWordHooks(embedding, token_id_of(tokenizer), word[name])
            for name, (embedding, tokenizer) in embeddings.items()
        ]

    @property
    def device(self) -> torch.device:
        """Device of the host."""
        return input_embedding(bare_host(self.model)).weight.device

    def trainable_names(self) -> list[str]:
        """Names of the parameters that training changes."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def forward(self, **inputs: Any) -> Any:
        """The forward of the model that the word is attached to."""
        with exclusive(bare_host(self.model)):
            return self.model(**inputs)

    def labelled_logits(
        self, labels: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As for :meth:`llava_forgery.hosts.base.ForgeryModel.labelled_logits`."""
        return labelled_logits(self, bare_host(self.model), labels, **inputs)

    def generate(self, **inputs: Any) -> Any:
        """Its ``generate``, which never emits the pseudo-word."""
        suppressed = [
            *(inputs.pop("suppress_tokens", None) or []),
            token_id_of(self.processor.tokenizer),
        ]
        with exclusive(bare_host(self.model)):
            generate: Any = self.model.generate
            return generate(suppress_tokens=suppressed, **inputs)

    def detach(self) -> PreTrainedModel | ForgeryVLM:
        """Remove the hooks and return the original model."""
        for hooks in self._hooks:
            hooks.remove()
        return self.model

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write the word; see :mod:`llava_forgery.hosts.pseudo_word_checkpoint`."""
        save_pseudo_word(self, directory)


def bare_host(model: PreTrainedModel | peft.PeftModel | ForgeryVLM) -> PreTrainedModel:
    """The host inside; LoRA's layers stay in it."""
    return without_peft(model.host if isinstance(model, ForgeryVLM) else model)


def token_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of ``[*]``."""
    return cast(int, tokenizer.convert_tokens_to_ids(PSEUDO_WORD))


def pseudo_word_embeddings(
    host: PreTrainedModel, processor: ProcessorMixin
) -> dict[str, tuple[nn.Embedding, PreTrainedTokenizerBase]]:
    """Each input embedding that reads the question, with its tokenizer.

    Args:
        host: A transformers image-text-to-text model.
        processor: Processor of the host; one with a ``qformer_tokenizer`` means that the Q-Former
            reads the question as well.

    Raises:
        ValueError: The processor has a Q-Former's tokenizer but the host has no Q-Former.
    """
    found = {LANGUAGE_MODEL: (input_embedding(host), processor.tokenizer)}
    tokenizer = getattr(processor, "qformer_tokenizer", None)
    if tokenizer is not None:
        suffix = f"{QFORMER}.embeddings.word_embeddings"
        modules = [m for name, m in host.named_modules() if f".{name}".endswith(f".{suffix}")]
        if len(modules) != 1:
            raise ValueError(
                f"the processor has a Q-Former's tokenizer, but {type(host).__name__} has "
                f"{len(modules)} modules named {suffix}; give the host's own processor"
            )
        found[QFORMER] = (cast(nn.Embedding, modules[0]), tokenizer)
    return found


@torch.no_grad()
def initial_vector(
    embedding: nn.Embedding,
    tokenizer: PreTrainedTokenizerBase,
    word: str | None,
    generator: torch.Generator,
) -> torch.Tensor:
    """Initial vector (C,) float32: that of a word, or drawn like the vocabulary's rows."""
    weight = embedding.weight
    if word is not None:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if not ids or tokenizer.unk_token_id in ids:
            raise ValueError(f"the tokenizer does not know the initial word {word!r}: ids {ids}")
        return weight[torch.tensor(ids, device=weight.device)].float().mean(dim=0).cpu()
    # The spread is estimated on a sample of the rows.
    rows = weight[:: max(1, len(weight) // 1024)].float()
    noise = torch.randn(weight.shape[1], generator=generator)
    return rows.mean(dim=0).cpu() + noise * rows.std(dim=0).cpu()


@quiet()
def attach_pseudo_word(
    model: PreTrainedModel | ForgeryVLM,
    processor: ProcessorMixin,
    config: PseudoWordConfig | None = None,
    seed: int = 0,
) -> PseudoWordVLM:
    """Attach a pseudo-word to a loaded host, or to a host with the forgery skill.

    Everything except the word's vectors is frozen. ``[*]`` is added to the processor's tokenizers;
    no embedding is resized.

    Args:
        model: A transformers image-text-to-text model, or a model from ``attach_forgery``.
        processor: Processor of the model.
        config: Question, placement, answers and initial word; the paper's by default.
        seed: Seed of the vectors, if there is no initial word.

    Returns:
        A module that is called like ``model``.

    Raises:
        ValueError: A tokenizer already has ``[*]``, or the initial word is unknown.
    """
    config = config or PseudoWordConfig()
    host = bare_host(model)
    embeddings = pseudo_word_embeddings(host, processor)
    for _, tokenizer in embeddings.values():
        if PSEUDO_WORD in tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizer owns {PSEUDO_WORD} already: a pseudo-word is attached, or the host "
                "was saved with it; load host and processor again"
            )
    generator = torch.Generator().manual_seed(seed)
    word = PseudoWord({name: module.weight.shape[1] for name, (module, _) in embeddings.items()})
    for name, (module, tokenizer) in embeddings.items():
        start = initial_vector(module, tokenizer, config.initial_word, generator)
        word[name].weight.data.copy_(start)
        # Not special, as it occurs in texts of users. Not normalised, as tokenizers must not insert
        # a space or change its case.
        tokenizer.add_tokens([AddedToken(PSEUDO_WORD, special=False, normalized=False)])
    model.requires_grad_(False)
    if isinstance(model, ForgeryVLM):
        fingerprint, name = model.fingerprint, model.host_name
    else:
        fingerprint, name = host_fingerprint(model), str(model.name_or_path)
    device = input_embedding(host).weight.device
    return PseudoWordVLM(model, processor, word.to(device), config, fingerprint, name)


@quiet()
def load_pseudo_word(
    directory: str | PathLike,
    model: PreTrainedModel | ForgeryVLM,
    processor: ProcessorMixin,
) -> PseudoWordVLM:
    """Attach a saved word to a copy of its host.

    Args:
        directory: Folder or hub name of the word.
        model: The host, or a model from ``attach_forgery``.
        processor: Processor of the host.

    Returns:
        The model with the word, in eval mode.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The host differs, or a file does not match.
    """
    directory = local_folder(directory)
    config = read_pseudo_word_config(directory)
    check_fingerprint(bare_host(model), config["host"], str(directory))
    settings = PseudoWordConfig(**config["config"])
    vlm = attach_pseudo_word(model, processor, settings)
    _check_more(vlm, config["more_embeddings"], directory)
    vlm.word.load_state_dict(load_tensors(directory / VECTORS, vlm.word.state_dict()))
    vlm.sources = tuple(config["sources"])
    return vlm.eval()


def _check_more(vlm: PseudoWordVLM, expected: dict[str, list[float]], directory: Path) -> None:
    """Compare further embeddings: hosts may share the language model but not the Q-Former."""
    found = vlm.more_embeddings
    if set(found) != set(expected):
        raise ValueError(
            f"{directory} has vectors for {sorted([LANGUAGE_MODEL, *expected])}, this host reads "
            f"the question in {sorted([LANGUAGE_MODEL, *found])}; give the host it was trained with"
        )
    for name, probe in expected.items():
        difference = probe_difference(probe, found[name])
        if difference > TOLERANCE:
            raise ValueError(
                f"{directory} was trained for a host with another {name} (its embedding differs by "
                f"{difference:.2g} of its size); give the host it was trained with"
            )
