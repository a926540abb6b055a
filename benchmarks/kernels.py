"""python -m benchmarks.kernels [NAME ...]: what an accelerator is asked to do, and how often the host waits for it.

Counts the second training step (forward, backward, optimiser step) and the second prediction of one picture on the
simulated device of `benchmarks.simulated`, which says what is counted. Nothing is timed. Sizes are those of the
benchmarks, so a count takes about as long as the same on this processor. GLIP is counted twice, the second time as if
torchvision's operator were there: one kernel forwards, one backwards. The last line of each NAME is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from duotune import attach
from duotune.methods.base import Progress
from duotune.models.glip import deform_conv

from . import detection_shapes, shapes
from .run import commit
from .simulated import DEVICE, NAME, Counts, SimulatedDevice, SimulatedTensor

TRAINED = 20
"""Tokens of the caption that a detector is trained with."""

FOUND = 80
"""Classes that it looks for afterwards, as many as COCO has."""


@dataclass
class Case:
    """
    Attributes:
        model: a prompted model, on the CPU. step: arguments of a training step. pixels: (1, 3, H, W), to be predicted.
        found: classes of the prediction; None for those of training.
    """

    model: nn.Module
    step: dict[str, Any]
    pixels: Tensor
    found: list[str] | None = None


def clip(method: str, quick: bool) -> Case:
    from .ours import OurStep

    shape = shapes.QUICK if quick else shapes.VIT_B16
    own = OurStep(shape, method, 6 if quick else 100, torch.float32)
    step = {"pixel_values": own.pixels, "frozen_features": own.frozen, "labels": own.labels}
    return Case(own.model, step | {"progress": Progress(0, 60)}, shapes.batch(shape, 1)[0][:1])


def words(count: int) -> list[str]:
    return [f"w{i}" for i in range(count)]


def glip(quick: bool) -> Case:
    from .ours_detection import OurSdptStep, build_tokenizer

    shape = detection_shapes.QUICK_GLIP if quick else detection_shapes.GLIP_T
    own = OurSdptStep(shape, 9 if quick else TRAINED)
    own.model.backbone.processor.tokenizer = own.model.backbone.tokenizer = build_tokenizer(FOUND)
    step = {"feature_maps": own.maps, "labels": own.labels}
    return Case(own.model, step, detection_shapes.picture(shape), words(4 if quick else FOUND))


def grounding_dino(quick: bool) -> Case:
    """transformers' own sizes (Swin-T, 900 queries), or toy ones."""
    from transformers import BertTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection

    from duotune.backbones.grounding_dino import GroundingDinoBackbone

    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    known = [special.get(i, f"w{i - 200}" if 200 <= i < 300 else f"[unused{i}]") for i in range(1040)]
    shape = detection_shapes.QUICK_GLIP if quick else detection_shapes.GLIP_T
    config = GroundingDinoConfig()
    if quick:
        config = GroundingDinoConfig(d_model=32, encoder_layers=1, decoder_layers=2, num_queries=20)
    torch.manual_seed(0)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(known)}, do_lower_case=True)
    backbone = GroundingDinoBackbone("benchmark", GroundingDinoForObjectDetection(config), tokenizer)
    model = attach(backbone, "sdpt", words((TRAINED - 2) // 2))
    chosen = [(3 * i) % len(model.class_names) for i in range(8)]
    labels = [{"boxes": detection_shapes.boxes(shape), "positive_map": model.method.caption.positive_map(chosen)}]
    pixels = detection_shapes.picture(shape)
    with torch.no_grad():
        maps = backbone.encode_image(pixels)
    return Case(model, {"feature_maps": maps, "labels": labels}, pixels, words(4 if quick else FOUND))


CASES: dict[str, tuple[str, Callable[[bool], Case]]] = {
    "coop": ("CoOp, ViT-B/16, batch 32, 100 classes", lambda quick: clip("coop", quick)),
    "dpt": ("DPT, ViT-B/16, batch 32, 100 classes", lambda quick: clip("dpt", quick)),
    "glip_sdpt": (f"SDPT, GLIP-T, 800x1088, {TRAINED} tokens; predicts {FOUND} classes", glip),
    "grounding_dino_sdpt": ("SDPT, Grounding DINO (Swin-T), the same", grounding_dino),
}


def moved(values: Any) -> Any:
    """On the device; whole numbers of feature maps (sizes) stay on the host, as in training from kept maps."""
    if isinstance(values, dict) and "feature_maps" in values:
        maps = [m.to(DEVICE) if m.is_floating_point() else m for m in values["feature_maps"]]
        return {"feature_maps": maps, "labels": moved(values["labels"])}
    return tree.tree_map(lambda x: x.to(DEVICE) if isinstance(x, Tensor) else x, values)


@contextmanager
def operator(machine: SimulatedDevice) -> Iterator[None]:
    """Deformable convolutions as one kernel forwards and one backwards, the numbers worked out beside the device."""

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(ctx, settings, *tensors):
            ctx.settings, ctx.held = settings, [t if t is None else t.held for t in tensors]
            machine.counts.kernels += 1
            return SimulatedTensor(deform_conv.deform_conv2d(*ctx.held, *settings, backend="torch"))

        @staticmethod
        def backward(ctx, grad):
            machine.counts.kernels += 1
            needs = ctx.needs_input_grad[1:]
            with torch.enable_grad():
                own = [t if t is None else t.detach().requires_grad_(n) for t, n in zip(ctx.held, needs)]
                out = deform_conv.deform_conv2d(*own, *ctx.settings, backend="torch")
                found = iter(torch.autograd.grad(out, [t for t, n in zip(own, needs) if n], grad.held))
            return None, *(SimulatedTensor(next(found)) if n else None for n in needs)

    def stand_in(x, offset, weight, bias, stride, padding, mask):
        return Operator.apply((stride, padding), x, offset, mask, weight, bias)

    with (
        patch.object(deform_conv, "OPERATOR_DEVICES", (NAME,)),
        patch.object(deform_conv, "torchvision_operator", lambda: stand_in),
    ):
        yield


def count(name: str, quick: bool = False, machine: SimulatedDevice | None = None) -> tuple[Counts, Counts]:
    """What a step and a prediction of `CASES[name]` ask of the device."""
    case, machine = CASES[name][1](quick), machine or SimulatedDevice(Path(__file__).parents[1])
    with machine:
        model, step, pixels = case.model.to(DEVICE), moved(case.step), moved(case.pixels)
        model.train()
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.002, momentum=0.9)
        for _ in range(2):
            machine.taken()
            optimiser.zero_grad()
            model(**step)["loss"].backward()
            optimiser.step()
        trained = machine.taken()
        model.eval()
        if case.found is not None:
            model.set_classes(case.found)
        with torch.no_grad():
            for _ in range(2):  # what is kept of the classes is kept by then
                machine.taken()
                if case.found is None:
                    model(pixels)["logits"].softmax(-1).topk(1).indices.tolist()
                else:
                    sizes = torch.tensor([pixels.shape[-2:]])
                    for row in model.find(pixels, image_sizes=sizes, original_sizes=sizes):
                        row["boxes"].tolist(), row["scores"].tolist(), row["labels"].tolist()
        return trained, machine.taken()


def main(arguments: list[str] | None = None) -> None:
    import transformers

    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.split("\n")[0])
    known = "; ".join(f"{name}: {what}" for name, (what, _) in CASES.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known}; all if left out")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the command itself")
    parser.add_argument("--where", action="store_true", help="tell the lines that launch most and all that wait")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also append the results to this file")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(CASES):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    for name in options.names or CASES:
        print(f"{name}: {CASES[name][0]}" + (" (quick shape)" if options.quick else ""))
        found: dict[str, Any] = {"name": name}
        machine = SimulatedDevice(Path(__file__).parents[1], options.where)
        parts = dict(zip(("step", "prediction"), count(name, options.quick, machine)))
        if name == "glip_sdpt":
            with operator(machine):
                again = count(name, options.quick, machine)
            parts |= dict(zip(("step_with_torchvision", "prediction_with_torchvision"), again))
        for part, counts in parts.items():
            found[part] = counts.numbers()
            print(f"  {part:27}", "  ".join(f"{number:6} {what}" for what, number in found[part].items()))
            if options.where:
                for table, most in ((counts.launched, 60), (counts.waits, None), (counts.copied, None)):
                    for where, number in table.most_common(most):
                        print(f"    {number:6} {where}")
        found |= {"commit": commit(), "torch": torch.__version__, "transformers": transformers.__version__}
        text = json.dumps(found)
        if options.json:
            with options.json.open("a") as file:
                file.write(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
