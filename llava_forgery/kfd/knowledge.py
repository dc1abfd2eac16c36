"""External knowledge: texts that describe real and fake faces, with learned context.

Source: LVLM-DFD, section 3.1: descriptions D_real and D_fake, augmented with learnable context,
through a text encoder to F_text (2 x C_text). As in the paper, the learned context precedes the
words and passes through the text encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from llava_forgery.kfd.config import KFDConfig
from llava_forgery.optional import lazy

open_clip = lazy("open_clip")


class TextEncoder(nn.Module, ABC):
    """Encodes texts, each preceded by learned context tokens.

    Attributes:
        width: Width of the token embeddings and therefore of the context tokens.
        text_width: Width of the features.
        frozen: Whether its own weights stay fixed (the context is learned in any case).
    """

    width: int
    text_width: int
    frozen: bool

    @abstractmethod
    def encode(self, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Features (N, text_width) of tokens (N, T) with context (n, width) at its positions."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str], context_length: int) -> torch.Tensor:
        """Token ids (N, T) with ``context_length`` positions reserved for the context."""


class ByteTextEncoder(TextEncoder):
    """A small transformer over bytes, trained with the detector.

    The embedded default has no pretrained text encoder; this one is small enough to be trained from
    scratch together with the trunk.
    """

    frozen = False
    CONTEXT, PAD = 256, 257

    def __init__(
        self, text_width: int, width: int = 64, layers: int = 2, max_length: int = 160
    ) -> None:
        super().__init__()
        self.width, self.text_width, self.max_length = width, text_width, max_length
        self.embedding = nn.Embedding(258, width)
        self.position = nn.Parameter(torch.randn(max_length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, text_width))

    def tokenize(self, texts: Sequence[str], context_length: int) -> torch.Tensor:
        rows = [[self.CONTEXT] * context_length + list(text.encode()) for text in texts]
        longest = max(len(row) for row in rows)
        if longest > self.max_length:
            raise ValueError(
                f"a description takes {longest} bytes with its context; at most {self.max_length}"
            )
        return torch.tensor([row + [self.PAD] * (longest - len(row)) for row in rows])

    def encode(self, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        embedded = _place(self.embedding(tokens), tokens == self.CONTEXT, context)
        padding = tokens == self.PAD
        hidden = self.blocks(
            embedded + self.position[: tokens.shape[1]], src_key_padding_mask=padding
        )
        hidden = hidden.masked_fill(padding[..., None], 0)
        mean = hidden.sum(dim=1) / (~padding).sum(dim=1, keepdim=True)
        return self.projection(mean)


class OpenClipTextEncoder(TextEncoder):
    """The text tower of an open_clip model, frozen; gradients pass through it to the context."""

    frozen = True

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        # CLIP keeps the text tower's parts next to the image tower, CustomTextCLIP in `text`. The
        # image tower belongs to another module: it is removed here so as not to be held twice.
        model.visual = None
        self.model = model
        self.embedding = getattr(model, "text", model).token_embedding
        self.width = self.embedding.embedding_dim
        self.tokenizer = open_clip.get_tokenizer(name, context_length=model.context_length)
        with torch.no_grad():
            self.text_width = model.encode_text(self.tokenizer(["face"])).shape[-1]

    def tokenize(self, texts: Sequence[str], context_length: int) -> torch.Tensor:
        # Plain letters reserve the context's positions: each is one token, none is the end token.
        words = " ".join(["x"] * context_length)
        tokens = self.tokenizer([f"{words} {text}".strip() for text in texts])
        letter = self.tokenizer(["x"])[0, 1]
        if not bool((tokens[:, 1 : 1 + context_length] == letter).all()):
            raise ValueError("the tokenizer does not keep single letters apart")
        # A truncated text ends with the end token in the last position.
        if bool((tokens[:, -1] != self.tokenizer(["x"])[0, -1]).any()):
            raise ValueError(
                f"a description is too long for {tokens.shape[1]} tokens with {context_length} "
                "tokens of context; shorten it"
            )
        return tokens

    def encode(self, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        # The context is inserted after the embedding, before the positions are added.
        places = torch.zeros_like(tokens, dtype=torch.bool)
        places[:, 1 : 1 + len(context)] = True
        handle = self.embedding.register_forward_hook(
            lambda module, inputs, output: _place(output, places, context)
        )
        try:
            return self.model.encode_text(tokens)
        finally:
            handle.remove()


def _place(embedded: torch.Tensor, places: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Embeddings (N, T, C) with the context (n, C) at the ``places`` (N, T) of each row."""
    if len(context) == 0:
        return embedded
    values = context.to(embedded.dtype).repeat(len(embedded), 1)
    return embedded.masked_scatter(places[..., None], values)


class ForgeryKnowledge(nn.Module):
    """The text features of real and fake, with learned context.

    Args:
        config: Configuration with the descriptions and the length of the context.
        encoder: The text encoder.
    """

    def __init__(self, config: KFDConfig, encoder: TextEncoder) -> None:
        super().__init__()
        if encoder.text_width != config.encoder.text_width:
            raise ValueError(
                f"the text encoder gives features of width {encoder.text_width}, but "
                f"encoder.text_width is {config.encoder.text_width}"
            )
        self.encoder = encoder
        self.context = nn.Parameter(torch.randn(config.context_length, encoder.width) * 0.02)
        self.counts = [len(config.descriptions_real), len(config.descriptions_fake)]
        texts = [*config.descriptions_real, *config.descriptions_fake]
        tokens = encoder.tokenize(texts, config.context_length)
        self.register_buffer("tokens", tokens, persistent=False)

    def forward(self) -> torch.Tensor:
        """F_text (2, C_text): [real, fake], each the mean of its descriptions' unit features."""
        features = self.encoder.encode(self.tokens, self.context)
        features = nn.functional.normalize(features.float(), dim=-1)
        return torch.stack([part.mean(dim=0) for part in features.split(self.counts)])
