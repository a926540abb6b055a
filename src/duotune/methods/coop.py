"""CoOp: context optimisation (arXiv 2109.01134).

    [SOS] v1 … vM [class name] . [EOS]   ─► text tower ─► text feature of the class (at EOS)

    logits = exp(logit_scale) · cos(image, text)        loss: cross-entropy

The M context vectors are the only parameters. They are shared by all classes, or one set per class
(`class_specific`). They stand before the name ("end": the class comes last), around it ("middle":
half of them before) or after it ("front"). The image tower sees no prompt, so its features are
constants that may be cached.

Where this differs from the authors' code: words to start from may be split into several tokens each
(theirs counts words); nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import DualEncoder, TextEnds, TextSequence
from ..errors import ClassNamesError, ConfigError
from ..prompts.context import ContextTokens
from .base import ClassifierOutput, ImageBatch, Method, MethodConfig, ParamGroup, Progress
from .common import cosine_logits, frozen_image_features

POSITIONS = ("end", "middle", "front")


@dataclass
class TextContextConfig(MethodConfig):
    """A learnt text context.

    num_context_tokens: M; replaced by the number of tokens of `init_words` if those are given.
    class_specific: one context per class.
    position: where the class name stands: "end", "middle" or "front".
    init_words: words to start from ("a photo of a"); empty for N(0, 0.02).
    text_lr, text_warmup_epochs: SGD rate and epochs at 1e-5 before the cosine.
    """

    num_context_tokens: int = 16
    class_specific: bool = False
    position: str = "end"
    init_words: str = ""
    text_lr: float = 0.002
    text_warmup_epochs: int = 1

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        yield from self.below_one("num_context_tokens")
        if self.position not in POSITIONS:
            yield f"position must be one of {', '.join(POSITIONS)}, not {self.position!r}"
        yield from self.not_positive("text_lr")
        yield from self.negative("text_warmup_epochs")

    @property
    def bound_to_classes(self) -> bool:
        return self.class_specific

    @property
    def unbound_by(self) -> str:
        return "; train a shared context (class_specific=False) for that" if self.class_specific else ""


class TextContext(nn.Module):
    """Context tokens and the class names they are read with.

    Attributes:
        context: the learnt `ContextTokens`.
    """

    def __init__(self, config: TextContextConfig):
        super().__init__()
        self.config = config

    def set_classes(self, backbone: DualEncoder, class_names) -> None:
        """Tokenise "name ." of every class and create the context tokens if there are none yet."""
        names = [name.replace("_", " ") for name in class_names]
        if not hasattr(self, "context"):
            self._create(backbone, len(names))
        tokens = backbone.tokenize([f"{name}." for name in names])
        lengths = tokens.eos.tolist()
        longest = 1 + self.context.num_context_tokens + max(lengths)
        if longest > backbone.max_text_tokens:
            worst = names[lengths.index(max(lengths))]
            raise ClassNamesError(
                f"{self.context.num_context_tokens} context tokens and {worst!r} need {longest} tokens, the text tower "
                f"of {backbone.name} holds {backbone.max_text_tokens}; use at most "
                f"{max(0, backbone.max_text_tokens - 1 - max(lengths))} context tokens or a shorter name"
            )
        with torch.no_grad():
            embedded = backbone.embed_tokens(tokens.ids)
        # every text is [SOS] name . [EOS]: where the name ends is what the name alone is long
        self._lay_out(embedded, (backbone.tokenize(names).eos - 1).tolist(), lengths)

    def _lay_out(self, embedded: Tensor, name_lengths: list[int], lengths: list[int]) -> None:
        """Once per set of classes: names at their places, and the places of the context between them.

        Args:
            embedded: (C, 1 + L, d) of [SOS] name . [EOS] padding. name_lengths: of each name alone.
            lengths: of each name with its dot, that is, how many tokens stand before [EOS] and after [SOS].
        """
        count = self.context.num_context_tokens
        before = {"end": count, "middle": count // 2, "front": 0}[self.config.position]
        self.shared_tokens = 0 if self.context.class_specific else before
        own, ahead = (
            count - self.shared_tokens,
            before - self.shared_tokens,
        )  # tokens in a class's rows, ahead of its name
        length = own + embedded.shape[1] - 1
        places = torch.tensor([[j if j < ahead else n + j for j in range(own)] for n in name_lengths], dtype=torch.long)
        places = (places.view(len(embedded), own) + length * torch.arange(len(embedded))[:, None]).flatten()
        empty = torch.zeros(len(embedded) * length, dtype=torch.bool).index_fill(0, places, True)
        rows = embedded.new_zeros(len(empty), embedded.shape[2])
        rows[~empty.to(rows.device)] = embedded[:, 1:].flatten(0, 1)
        self.register_buffer("start", embedded[0, :1].clone(), persistent=False)
        self.register_buffer("names", rows.view(len(embedded), length, -1), persistent=False)
        self.register_buffer("places", places.to(rows.device), persistent=False)  # of the context, in all rows
        self.ends = TextEnds(end + own - 1 for end in lengths)

    def _create(self, backbone: DualEncoder, num_classes: int) -> None:
        config, init = self.config, None
        if config.init_words:
            words = backbone.tokenize([config.init_words.replace("_", " ")])
            if int(words.eos[0]) < 2:
                raise ConfigError(f"init_words {config.init_words!r} holds no token")
            with torch.no_grad():
                init = backbone.embed_tokens(words.ids)[0, 1 : int(words.eos[0])]
        count = len(init) if init is not None else config.num_context_tokens
        self.context = ContextTokens(
            count, backbone.text_width, num_classes if config.class_specific else None, init=init
        )

    def sequence(self) -> TextSequence:
        """The prompts of all classes, what they share first."""
        tokens, own = self.context.tokens, self.names.float()
        shared = (
            torch.cat([self.start.float(), tokens[: self.shared_tokens]]) if self.shared_tokens else self.start.float()
        )
        if len(self.places):
            per_class = tokens if self.context.class_specific else tokens[self.shared_tokens :].expand(len(own), -1, -1)
            filled = own.flatten(0, 1).index_copy(0, self.places, per_class.reshape(-1, own.shape[2]))
            own = filled.view(own.shape)
        return TextSequence(shared, own, self.ends)

    def features(self, backbone: DualEncoder) -> Tensor:
        """(C, E) tuned text features, not normalised."""
        return backbone.encode_sequence(self.sequence())

    @property
    def class_rows(self) -> tuple[str, ...]:
        """Of a method that has this module as `text`; see `Method.class_rows`."""
        return ("text.context.tokens",) if self.config.class_specific else ()

    def param_group(self) -> ParamGroup:
        return ParamGroup("text", list(self.parameters()), self.config.text_lr, self.config.text_warmup_epochs)


@dataclass
class CoOpConfig(TextContextConfig):
    """Settings of CoOp, with the authors' defaults."""


class CoOp(Method):
    """Learnt text context alone; see the module docstring."""

    Config = CoOpConfig
    config: CoOpConfig
    needs_frozen_features = True
    needs_pixels = False

    def __init__(self, config: CoOpConfig):
        super().__init__(config)
        self.text = TextContext(config)

    def on_classes(self, backbone: DualEncoder) -> None:
        self.text.set_classes(backbone, self.class_names)

    @property
    def class_rows(self) -> tuple[str, ...]:
        return self.text.class_rows

    def forward(self, backbone: DualEncoder, batch: ImageBatch) -> ClassifierOutput:
        text = self.remember("text", lambda: self.text.features(backbone), backbone)
        return ClassifierOutput(cosine_logits(backbone, frozen_image_features(backbone, batch), text))

    def loss(self, output: ClassifierOutput, labels: Tensor, progress: Progress) -> Tensor:
        return F.cross_entropy(output.logits, labels)

    def param_groups(self) -> list[ParamGroup]:
        return [self.text.param_group()]
