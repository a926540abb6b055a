"""What a method may see of a frozen model: its ports.

    text tower          tokens in, text features out; learnt context may replace word embeddings
    vision tower        pixels in, image features out; asks `prompts(layer, hidden)` before every layer
    caption features    a caption in, one feature per token out (detectors)
    vision windows      window attention; asks `tokens(stage, block, hidden)` before every block (detectors)
    fusion layers       bidirectional attention between image and text tokens; asks
                        `prompts(layer, visual, text)` in every layer (detectors)
    detect head         boxes and token logits (detectors)

Towers are driven, not hooked: an adapter runs the frozen layers itself, so a prompt needs no
monkey-patching and rows that nobody reads are never computed.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import CaptionLengthError, ClassNamesError, ConfigError, DataError
from ..grounding import Caption, CaptionPrompt, chunk_classes
from ..memory import Memory
from ..models.glip.fusion import FusionPrompts, FusionTokens  # the form in which fusion layers take learnt tokens
from ..models.glip.swin import WindowTokens
from ..precision import full_precision
from .texts import TextEnds, TextSequence, TextTokens  # what text towers read is part of the port

LIMITS = ("score_threshold", "nms_threshold", "max_detections")
"""What `Detector.detections` may be told."""
REMEMBERED_TEXTS = 64
"""Captions whose frozen features a detector keeps."""


class Port(str, enum.Enum):
    """A place where a method may act."""

    TEXT_TOWER = "text tower"
    VISION_TOWER = "vision tower"
    CAPTION_FEATURES = "caption features"
    VISION_WINDOWS = "vision windows"
    FUSION_LAYERS = "fusion layers"
    DETECT_HEAD = "detect head"

    def __str__(self) -> str:
        return self.value


class VisionPrompts(Protocol):
    """What a vision tower asks before each layer.

    persistent: False: a layer's tokens are removed from its output (VPT-deep, CAVPT).
        True: tokens stay in the sequence (VPT-shallow).
    """

    persistent: bool

    def __call__(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Tokens (P, d) or (B, P, d) for `layer` (0-based), given its input (B, N, d); None for no prompt."""


class Backbone(nn.Module, abc.ABC):
    """A frozen pre-trained model seen through ports.

    Attributes:
        name: the Hub id, folder or embedded name it was loaded from.
        ports: the ports this backbone has.
        model: the Hugging Face model, never changed.
        can_checkpoint: whether it has layers that can be worked out again in the backward pass.
    """

    ports: frozenset[Port] = frozenset()
    can_checkpoint: ClassVar[bool] = False

    def __init__(self, name: str, model: nn.Module):
        super().__init__()
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self._fingerprint: str | None = None
        self._checkpointing = False

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are worked out again in the backward pass instead of keeping what is inside them.

        Gradients are the same; a step takes about a forward pass longer. `PromptTrainingArguments` has it, too.

        Raises:
            ConfigError: it is set to True, and there is no layer that could be.
        """
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        if value and not self.can_checkpoint:
            raise ConfigError(
                f"nothing of {self.name} can be worked out again in the backward pass; leave out gradient_checkpointing"
            )
        self._checkpointing = bool(value)

    def checkpointed(self, layer: Callable[..., Any], *args: Any) -> Any:
        """`layer(*args)`, worked out again in the backward pass if `gradient_checkpointing` is on."""
        if self._checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

    def train(self, mode: bool = True) -> Backbone:
        """A frozen model stays in eval mode: its dropout must not come alive during training."""
        return super().train(False)

    def fingerprint(self) -> str:
        """16 hex digits that depend on every weight's name, shape and value as loaded.

        Independent of device and of the precision the model is later cast to; computed once.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().float().contiguous().numpy())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def _apply(self, fn, *args, **kwargs):
        # a cast to a lower precision loses bits: take the fingerprint of what was loaded first
        probe = (
            next(self.model.parameters())[:0] if next(self.model.parameters()).ndim else next(self.model.parameters())
        )
        if fn(probe).dtype != probe.dtype:
            self.fingerprint()
        moved = super()._apply(fn, *args, **kwargs)
        # torch replaces what a parameter holds and counts no write; what is remembered was made of the old numbers
        torch.autograd.graph.increment_version(self.model.parameters())
        return moved

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def receive(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the host on this backbone's device; the host does not wait until it is there."""
        if values.device.type == "cpu" and self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, dtype or values.dtype, non_blocking=True)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """A block in which what was remembered serves as constants where torch traces; see `Memory.held`."""
        return contextlib.nullcontext()


def weights_dtype(asked: torch.dtype | None, stored: torch.dtype, device: torch.device | str) -> torch.dtype:
    """The precision of frozen weights on a device: the one asked for; else float32 on a CPU, the stored one elsewhere.

    But weights stored in float16 become bfloat16, whose range gradients need, or float32 on a GPU that computes no
    bfloat16.
    """
    kind = torch.device(device).type
    if asked is not None or kind == "cpu":
        return asked or torch.float32
    if stored != torch.float16:
        return stored
    emulated = kind == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] < 8
    return torch.float32 if emulated else torch.bfloat16


class DualEncoder(Backbone):
    """A backbone with a text tower and a vision tower that meet in one embedding space (CLIP).

    Attributes:
        text_width, vision_width: token widths. embed_dim: width E of the joint space.
        text_layers, vision_layers: number of layers.
        max_text_tokens: longest text in tokens, start and end included.
        image_size: side of the square input in pixels.
        image_mean, image_std: per-channel normalisation of RGB in 0..1.
    """

    ports = frozenset({Port.TEXT_TOWER, Port.VISION_TOWER})
    text_width: int
    vision_width: int
    embed_dim: int
    text_layers: int
    vision_layers: int
    max_text_tokens: int
    image_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @property
    @abc.abstractmethod
    def logit_scale(self) -> Tensor:
        """Scalar that multiplies cosines (already exponentiated)."""

    @abc.abstractmethod
    def tokenize(self, texts: Sequence[str]) -> TextTokens:
        """Raises ClassNamesError if a text does not fit `max_text_tokens`."""

    @abc.abstractmethod
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(…,) token ids -> (…, text_width) embeddings, without positions."""

    @abc.abstractmethod
    def encode_sequence(self, sequence: TextSequence) -> Tensor:
        """-> (N, E) text features, not normalised. Differentiable in `shared` and `own`."""

    @abc.abstractmethod
    def encode_image(self, pixel_values: Tensor, prompts: VisionPrompts | None = None) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, E) image features, not normalised."""

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Frozen features (N, E) of plain texts, not normalised, without gradient."""
        rows = []
        with torch.no_grad(), full_precision(self.device):  # kept and compared, whatever is trained around it
            for start in range(0, len(texts), batch_size):
                tokens = self.tokenize(texts[start : start + batch_size])
                embedded = self.embed_tokens(tokens.ids)
                rows.append(self.encode_sequence(TextSequence(embedded[0, :1], embedded[:, 1:], tokens.eos - 1)))
        return torch.cat(rows)


@dataclass
class CaptionFeatures:
    """Captions behind a text encoder.

    Attributes:
        hidden: (B, T, d_l), one row per token; rows behind a caption's end mean nothing.
        mask: (B, T), nonzero for tokens of the caption.
        starts: (B, T), position at which each token's sentence starts, for models that read sentence by sentence.
    """

    hidden: Tensor
    mask: Tensor
    starts: Tensor | None = None


@dataclass
class DetectorOutput:
    """What a detector says of a batch.

    Attributes:
        logits: (B, N, T), every candidate box against every caption token.
        text_mask: (B, T), nonzero for tokens of the caption.
        raw: what `Detector.detections` decodes boxes from.
        losses: weighted scalars to be summed, if labels were given.
    """

    logits: Tensor
    text_mask: Tensor
    raw: Any
    losses: dict[str, Tensor] | None = None


class Detector(Backbone):
    """A backbone that finds the phrases of a caption in an image (GLIP, Grounding DINO).

    One image goes through `encode_image`, `fuse` and `read`; what it is fused with comes from `encode_captions`.
    Boxes are xyxy in pixels with width = x2 - x1, whatever the model's own arithmetic is.

    Labels are, per image, {"boxes": (M, 4) in pixels of the network's input, "positive_map": (M, T) nonzero for the
    tokens of each box's phrase} and, where the image was resized, "scale": (2,) new over original width and height.

    Attributes:
        num_fusion_layers: number of bidirectional attentions.
        fusion_width: e, width of the space in which image queries and text keys meet.
        visual_width, text_width: widths d_v and d_l of the tokens that enter a fusion layer.
        block_widths: per stage of the vision tower, the token width of each of its window attention blocks.
        max_text_tokens: longest caption in tokens.
        tokenizer: a fast one, of captions.
        caption_style: how captions join class names, a key of `grounding.captions.SEPARATORS`.
        short_side, long_side: pixels; a test picture's short side becomes the first unless its long side would pass
            the second.
        max_detections: boxes that are kept per picture.
        normalize: an RGB picture of any size -> (3, h, w) float32, not resized. Sent to processes that decode.
        pad: (3, h, w) pictures of different sizes -> (B, 3, H, W). Sent to processes that decode.
    """

    ports = frozenset({Port.CAPTION_FEATURES, Port.VISION_WINDOWS, Port.FUSION_LAYERS, Port.DETECT_HEAD})
    num_fusion_layers: int
    fusion_width: int
    visual_width: int
    text_width: int
    block_widths: tuple[tuple[int, ...], ...]
    max_text_tokens: int
    tokenizer: Any
    caption_style: str = "train"
    short_side: int
    long_side: int
    max_detections: int
    normalize: Callable[[Any], Tensor]
    pad: Callable[[Sequence[Tensor]], Tensor]

    def __init__(self, name: str, model: nn.Module):
        super().__init__(name, model)
        self._texts = Memory(REMEMBERED_TEXTS)  # caption -> CaptionFeatures of it alone

    @abc.abstractmethod
    def fusion_projections(self, layer: int) -> tuple[nn.Linear, nn.Linear]:
        """Image query d_v -> e and text key d_l -> e projections of a fusion layer (0-based)."""

    @abc.abstractmethod
    def caption(self, class_names: Sequence[str], prompts: Sequence[CaptionPrompt] | None = None) -> Caption:
        """The caption of all classes. Raises ClassNamesError if it does not fit `max_text_tokens`."""

    def captions(
        self,
        class_names: Sequence[str],
        prompts: Sequence[CaptionPrompt] | None = None,
        max_classes: int | None = None,
    ) -> list[Caption]:
        """Captions that together name all classes: one if they fit, otherwise each as long as fits.

        Args:
            max_classes: at most so many classes per caption; None for as many as fit.

        Raises:
            ClassNamesError: a name is empty or repeated, or one alone does not fit `max_text_tokens`.
        """
        if max_classes is None or len(class_names) <= max_classes:
            try:
                return [self.caption(class_names, prompts)]
            except CaptionLengthError:
                pass
        return chunk_classes(
            class_names, self.tokenizer, self.max_text_tokens, max_classes, self.caption_style, prompts
        )

    @abc.abstractmethod
    def prepare(self, images: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """PIL images -> (B, 3, H, W) padded pixels, and (B, 2) height and width without padding."""

    @abc.abstractmethod
    def encode_image(
        self, pixel_values: Tensor, window_tokens: WindowTokens | None = None, image_sizes: Tensor | None = None
    ) -> list[Tensor]:
        """(B, 3, H, W) -> feature maps (B, d_v, h, w) before fusion.

        What else a model needs to know of its pictures comes as further tensors (B, …); `fuse` and `read` take the
        list as it is.

        Args:
            image_sizes: (B, 2) height and width without padding; None: there is none.
        """

    def encode_captions(self, captions: Sequence[Caption]) -> CaptionFeatures:
        """Frozen features of captions before fusion, without gradient; computed once per text, never under autocast."""
        rows = [CaptionFeatures(*self._encode(caption.text)) for caption in captions]
        length, first = max(row.hidden.shape[1] for row in rows), rows[0].hidden
        hidden = first.new_zeros(len(rows), length, first.shape[-1])
        mask = torch.zeros(len(rows), length, dtype=torch.long, device=first.device)
        starts = None
        if rows[0].starts is not None:
            starts = torch.arange(length, device=first.device).repeat(len(rows), 1)
        for i, row in enumerate(rows):
            tokens = row.hidden.shape[1]
            hidden[i, :tokens], mask[i, :tokens] = row.hidden[0], row.mask[0]
            if starts is not None and row.starts is not None:
                starts[i, :tokens] = row.starts[0]
        return CaptionFeatures(hidden, mask, starts)

    def held(self) -> contextlib.AbstractContextManager[None]:
        return self._texts.held()

    @torch.compiler.assume_constant_result  # weights are frozen, and tokenizers are nothing to compile
    def _encode(self, text: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Remembered features of one caption: they may be read where gradients are wanted, and in another precision."""
        with torch.inference_mode(False), torch.no_grad(), full_precision(self.device):
            found = self._texts.get(text, lambda: self._encode_caption(text), frozen=self.model.parameters())
        return found.hidden, found.mask, found.starts

    @abc.abstractmethod
    def _encode_caption(self, text: str) -> CaptionFeatures:
        """Features (1, T, d_l) of one caption, without padding."""

    @abc.abstractmethod
    def fuse(
        self, maps: Sequence[Tensor], text: CaptionFeatures, prompts: FusionPrompts | None = None
    ) -> tuple[list[Tensor], CaptionFeatures]:
        """Both behind the fusion layers."""

    @abc.abstractmethod
    def read(
        self,
        maps: Sequence[Tensor],
        text: CaptionFeatures,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        head: nn.Module | None = None,
    ) -> DetectorOutput:
        """What the detection head says of fused features; `head`: one of `copy_head` in place of the frozen one."""

    @abc.abstractmethod
    def copy_head(self) -> nn.Module:
        """A copy of the detection head in float32; what linear probing trains of it requires gradients."""

    @abc.abstractmethod
    def copy_model(self) -> nn.Module:
        """A copy of the whole model, to be trained with `run`. What nothing reads requires no gradient."""

    @abc.abstractmethod
    def run(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        captions: Sequence[Caption],
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        image_sizes: Tensor | None = None,
    ) -> DetectorOutput:
        """Everything with the weights of `model`, one of `copy_model`; arguments as in `encode_image` and `read`."""

    @abc.abstractmethod
    def text_encoder(self, model: nn.Module) -> nn.Module:
        """The part of `model`, one of `copy_model`, that reads captions (it is tuned more carefully)."""

    def detections(
        self,
        output: DetectorOutput,
        captions: Sequence[Caption],
        image_sizes: Tensor,
        target_sizes: Tensor | None = None,
        **limits: float,
    ) -> list[dict[str, Any]]:
        """Boxes of each image, best first: {"boxes": (n, 4), "scores": (n,), "labels": (n,) positions in the
        caption's names, "names": [n]}.

        Args:
            captions: one per image.
            image_sizes: (B, 2) height and width of the input without padding.
            target_sizes: (B, 2) sizes to scale boxes to; None for none.
            limits: score_threshold (0..1), nms_threshold (0..1), max_detections; the model's own if left out.

        Raises:
            ConfigError: a limit that does not exist, or is out of its range.
            ClassNamesError: a caption has no token of any class.
            DataError: not one caption and one size per image.
        """
        check_limits(limits)
        if not len(captions) == len(image_sizes) == len(output.logits):
            raise DataError(
                f"{len(output.logits)} images need as many captions and sizes, got {len(captions)} and "
                f"{len(image_sizes)}"
            )
        for caption in captions:
            if not any(caption.tokens):
                raise ClassNamesError(f"the caption {caption.text!r} has no token of any class")
        image_sizes = torch.as_tensor(image_sizes).cpu()
        target_sizes = None if target_sizes is None else torch.as_tensor(target_sizes).cpu()
        with full_precision(self.device):
            return self._decode(output.raw, captions, image_sizes, target_sizes, limits)

    @abc.abstractmethod
    def _decode(
        self,
        raw: Any,
        captions: Sequence[Caption],
        image_sizes: Tensor,
        target_sizes: Tensor | None,
        limits: Mapping[str, float],
    ) -> list[dict[str, Any]]:
        """`detections` of checked arguments; `raw` is that of `DetectorOutput`."""


def check_limits(limits: Mapping[str, float]) -> None:
    """Raises ConfigError, with all faults, for a limit of `Detector.detections` that does not exist or fit."""
    faults = []
    if unknown := sorted(set(limits) - set(LIMITS)):
        faults.append(f"unknown limits {unknown}; known: {', '.join(LIMITS)}")
    for name in ("score_threshold", "nms_threshold"):
        value = limits.get(name)
        if value is not None and not 0 <= value <= 1:
            faults.append(f"{name} must be in 0..1, not {value}")
    most = limits.get("max_detections")
    if most is not None and not most >= 1:
        faults.append(f"max_detections must be at least 1, not {most}")
    if faults:
        raise ConfigError(*faults)


__all__ = [
    "Backbone",
    "CaptionFeatures",
    "Detector",
    "DetectorOutput",
    "DualEncoder",
    "FusionPrompts",
    "FusionTokens",
    "Port",
    "TextEnds",
    "TextSequence",
    "TextTokens",
    "VisionPrompts",
    "WindowTokens",
]
