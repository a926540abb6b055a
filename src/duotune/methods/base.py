"""What every method is: parameters, what they do at a backbone's ports, and a loss.

A method is one file with one config dataclass. It knows neither the training loop nor the data.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone, Port
from ..errors import ClassNamesError, ConfigError, DuotuneError, PortError, shown
from ..memory import Memory
from ..names import clean_class_name, differences, same_classes
from ..precision import wide
from ..settings import misfits


@dataclass
class MethodConfig:
    """Settings of a method. Subclasses add theirs and check them all in `faults`."""

    def faults(self) -> Iterator[str]:
        """One sentence per setting that does not fit; nothing if all do."""
        yield from ()

    @property
    def bound_to_classes(self) -> bool:
        """Whether what is learnt belongs to the classes of training one by one, and says nothing about others.

        Such a method names the tensors in `Method.class_rows`; it is refused other classes.
        """
        return False

    @property
    def unbound_by(self) -> str:
        """What to say of a setting that would free a bound method of its classes, behind its refusal."""
        return ""

    @classmethod
    def faults_of(cls, values: Mapping[str, Any], what: str | None = None) -> Iterator[str]:
        """One sentence per unknown name, per value of another type than its annotation, and per value out of range.

        Args:
            what: what a value is called; "setting of CoOpConfig" and the like if None.
        """
        yield from misfits(cls, values, what or f"setting of {cls.__name__}")
        # `faults` compares numbers: it sees the values whose types fit, and defaults in the others' places
        yield from cls(**{k: v for k, v in values.items() if not any(misfits(cls, {k: v}, ""))}).faults()

    def remarks(self, num_epochs: int) -> Iterator[str]:
        """One sentence per value that is allowed and probably not meant if training has this many epochs."""
        yield from ()

    def not_positive(self, *names: str) -> Iterator[str]:
        """Faults of settings, such as learning rates, that must be positive and finite."""
        for name in names:
            if not 0 < (value := getattr(self, name)) < math.inf:
                yield f"{name} must be positive{'' if value <= 0 else ' and finite'}, not {value}"

    def negative(self, *names: str) -> Iterator[str]:
        """Faults of settings, such as weights and numbers of epochs, that must be finite and may be 0 but not less."""
        for name in names:
            if not 0 <= (value := getattr(self, name)) < math.inf:
                yield f"{name} must {'not be negative' if value < 0 else 'be finite'}, not {value}"

    def below_one(self, *names: str) -> Iterator[str]:
        """Faults of settings, such as numbers of tokens, that must be at least 1."""
        for name in names:
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, not {getattr(self, name)}"

    def validate(self) -> None:
        """Raises ConfigError with every fault at once."""
        if found := list(self.faults_of({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})):
            raise ConfigError(*found)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MethodConfig:
        """Raises ConfigError with every unknown name, wrong type and unfit value at once."""
        if found := list(cls.faults_of(values)):
            raise ConfigError(*found)
        return cls(**values)


@dataclass
class ParamGroup:
    """Parameters that share a learning rate.

    Attributes:
        name: for the log.
        params: the parameters.
        lr: base learning rate; a cosine over all epochs is applied to it.
        warmup_epochs: epochs at the constant `warmup_lr` before the cosine starts.
        warmup_lr: see above.
    """

    name: str
    params: list[nn.Parameter]
    lr: float
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5


@dataclass
class ImageBatch:
    """What a classification method reads.

    Attributes:
        pixel_values: (B, 3, S, S) normalised pixels; None if the method needs frozen features alone and has them.
        frozen_features: (B, E) image features of the frozen backbone, not normalised; None to have them computed.
    """

    pixel_values: Tensor | None = None
    frozen_features: Tensor | None = None

    def __post_init__(self):
        if self.pixel_values is None and self.frozen_features is None:
            raise ConfigError("an image batch needs pixel_values or frozen_features; got neither")


@dataclass
class ClassifierOutput:
    """What a classification method computes for a batch.

    Floating point is float32 at least: `loss` is asked without autocast, and its parts must fit together.

    Attributes:
        logits: (B, C) scaled cosines (or a linear head's output).
        extras: tensors that the method's own loss reads.
    """

    logits: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.logits = wide(self.logits)
        self.extras = {k: wide(v) if v.is_floating_point() else v for k, v in self.extras.items()}


@dataclass
class Progress:
    """Where training stands: `epoch` counts from 0 of `num_epochs`."""

    epoch: int = 0
    num_epochs: int = 1


class Method(nn.Module, abc.ABC):
    """Learnt parameters and what they do at a backbone's ports.

    A subclass sets `Config` and `requires`, creates its parameters in `set_classes` or `__init__`,
    and implements `forward`, `loss` and `param_groups`. The backbone is passed to every call and
    never stored: a method's `state_dict` holds what was learnt and nothing else.

    Attributes:
        Config: the method's config dataclass.
        requires: ports the backbone must have.
        needs_frozen_features: reads `ImageBatch.frozen_features` (they can be cached).
        needs_pixels: reads `ImageBatch.pixel_values` even when frozen features are given.
        training_only: prefixes of parameters that prediction never reads; left out of artifacts.
        tells: names of `ClassifierOutput.extras` that `PromptedModel.forward` gives beside the logits.
        default_template: how a class is read where nothing else is said.
        copies_weights: what is learnt starts as a copy of weights of the backbone, in no less than their precision.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    requires: ClassVar[frozenset[Port]] = frozenset({Port.TEXT_TOWER, Port.VISION_TOWER})
    needs_frozen_features: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = True
    training_only: ClassVar[tuple[str, ...]] = ()
    tells: ClassVar[tuple[str, ...]] = ()
    default_template: ClassVar[str] = "a photo of a {}."
    copies_weights: ClassVar[bool] = False

    def __init__(self, config: MethodConfig):
        super().__init__()
        config.validate()
        self.config = config
        self.class_names: tuple[str, ...] = ()
        self.template: str | tuple[str, ...] = ""
        self._memory = Memory()  # derived from weights; never saved

    @classmethod
    def check_ports(cls, name: str, backbone: Backbone) -> None:
        """Raises PortError, before any weight is created, if the backbone lacks a port."""
        if missing := sorted(str(p) for p in cls.requires - backbone.ports):
            has = ", ".join(sorted(str(p) for p in backbone.ports))
            raise PortError(f"{name} needs {', '.join(missing)}; {backbone.name} offers {has}")

    def set_classes(
        self, backbone: Backbone, class_names: Sequence[str], template: str | Sequence[str] | None = None
    ) -> None:
        """Point the method at other classes; learnt parameters that do not depend on classes are kept.

        The same classes in another order take their learnt rows with them. What is drawn at random for other classes
        than the first ones leaves torch's generator as it was.

        Args:
            class_names: C different, non-empty names; underscores read as spaces.
            template: a prompt with one `{}`, or several (zero-shot ensembles); None: as before, see `template_of`.

        Raises:
            ClassNamesError: a name does not fit; or what was learnt belongs to other classes (`bound_to_classes`).
        """
        listed = isinstance(class_names, Iterable) and not isinstance(class_names, (str, Mapping))
        if not listed or not all(isinstance(n, str) for n in class_names):
            raise ClassNamesError(f"class names must be a list of strings; got {class_names!r}")
        names = tuple(class_names)
        if not names or any(not n.strip() for n in names):
            raise ClassNamesError("class names must be a non-empty list of non-empty strings")
        read = list(map(clean_class_name, names))
        if "" in read:
            raise ClassNamesError(f"class name {names[read.index('')]!r} is empty once underscores read as spaces")
        if doubled := sorted({n for n, r in zip(names, read) if read.count(r) > 1}):
            raise ClassNamesError(
                f"class names must be different (underscores read as spaces); {doubled} occur more than once"
            )
        if alike := _read_alike(backbone, read):
            pairs = "; ".join(" and ".join(repr(names[i]) for i in group) for group in alike)
            raise ClassNamesError(
                f"class names must be different for the tokenizer of {backbone.name}; it reads the "
                f"same in {pairs}: rename one"
            )
        template = self.template_of(names) if template is None else template
        for t in [template] if isinstance(template, str) else template:
            if t.count("{}") != 1:
                raise ClassNamesError(f"a template must contain one '{{}}' for the class name; got {shown(t)}")
        order = self._order(self.class_names, names) if self.class_names else None
        before = self.class_names, self.template
        self.class_names = names
        self.template = template if isinstance(template, str) else tuple(template)
        self._memory.clear()
        with torch.random.fork_rng(devices=(), enabled=bool(before[0])):
            try:
                self.on_classes(backbone)
                if order is not None:
                    self.load_state_dict(self._permuted(self.state_dict(), order), strict=False)
            except DuotuneError:  # such as a name with more tokens than the text tower holds: stay as it was
                self.class_names, self.template = before
                if self.class_names:
                    self.on_classes(backbone)
                raise
        self.to(backbone.device)

    def template_of(self, class_names: Sequence[str]) -> str | tuple[str, ...]:
        """What these classes are read with where nothing else is said."""
        return self.template

    def on_classes(self, backbone: Backbone) -> None:
        """Hook of subclasses: tokenise names, create parameters that depend on the number of classes."""

    @property
    def class_rows(self) -> tuple[str, ...]:
        """Names in `state_dict` of learnt tensors that have one row per class, in the order of `class_names`."""
        return ()

    def in_own_order(self, tensors: Mapping[str, Tensor], class_names: Sequence[str]) -> Mapping[str, Tensor]:
        """Tensors of `state_dict` that were learnt for `class_names`, their rows in the order of the method's classes.

        Raises:
            ClassNamesError: they belong to other classes than the method's (`bound_to_classes`).
        """
        order = self._order(class_names, self.class_names)
        return tensors if order is None else self._permuted(tensors, order)

    def _order(self, learnt: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
        """Place in `learnt` of each class wanted; None if the order is the same, or others may come."""
        order = same_classes(wanted, learnt)
        if order is None and self.config.bound_to_classes:
            raise ClassNamesError(
                f"this {type(self).__name__} knows {len(learnt)} classes, got {len(wanted)} names: "
                f"{differences(learnt, wanted)}; what it learnt belongs to each class, so it cannot classify into "
                f"classes it was not trained on{self.config.unbound_by}"
            )
        return None if order == list(range(len(wanted))) else order

    def _permuted(self, tensors: Mapping[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
        """Tensors of `state_dict` with their class rows in this order."""
        rows = self.class_rows
        if not rows and self.config.bound_to_classes:
            raise ClassNamesError(
                f"this {type(self).__name__} does not tell which of its numbers belong to which class; give the "
                "classes in the order it was trained with"
            )
        return {name: value[list(order)] if name in rows else value for name, value in tensors.items()}

    def train(self, mode: bool = True) -> Method:
        if mode != self.training:
            self._memory.clear()
        return super().train(mode)

    def remember(self, name: str, compute: Callable[[], Tensor], backbone: Backbone | None = None) -> Tensor:
        """`compute()` once while nothing is being learnt; anew in training mode, and as `Memory` says.

        Args:
            compute: must depend on the method's parameters and buffers alone, and on the weights of `backbone`.
        """
        if self.training or torch.is_grad_enabled():
            return compute()
        frozen = [*self.buffers(), *(backbone.model.parameters() if backbone is not None else ())]
        return self._memory.get(name, compute, frozen, self.parameters())

    def held(self) -> contextlib.AbstractContextManager[None]:
        """A block in which what was remembered serves as constants where torch traces; see `Memory.held`."""
        return self._memory.held()

    @abc.abstractmethod
    def forward(self, backbone: Backbone, batch: Any) -> Any:
        """`ImageBatch` -> `ClassifierOutput`; on a detector, `DetectionBatch` -> `DetectorOutput`."""

    @abc.abstractmethod
    def loss(self, output: Any, labels: Any, progress: Progress) -> Tensor:
        """Scalar; `output` is what `forward` gave, labels are (B,) classes or those of a `Detector`."""

    @abc.abstractmethod
    def param_groups(self) -> list[ParamGroup]: ...

    def artifact_state(self) -> dict[str, Tensor]:
        """What prediction needs of `state_dict`."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(self.training_only or ("\0",))}


def _read_alike(backbone: Backbone, names: Sequence[str]) -> list[list[int]]:
    """Positions of names that are the same tokens: CLIP's tokenizer does not tell "Cat" from "cat"."""
    tokenizer = getattr(backbone, "tokenizer", None) or getattr(getattr(backbone, "processor", None), "tokenizer", None)
    if tokenizer is None:
        return []
    same: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(tokenizer(list(names), add_special_tokens=False).input_ids):
        same.setdefault(tuple(row), []).append(i)
    return [group for group in same.values() if len(group) > 1]
