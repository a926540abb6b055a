"""A training step and a prediction of every pair of method and backbone, on the CPU and on the simulated device.

`python pairs.py OUT` writes what it saw as JSON. A process of its own, because a device is registered once per process.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "contract")]

import torch  # noqa: E402
from benchmarks.simulated import DEVICE, SimulatedDevice  # noqa: E402
from subjects import CASES, FOLDERS, NAMES, OUTSIDE, Case, inputs, labels, outputs  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils import _pytree as tree  # noqa: E402

from duotune import attach, load_backbone  # noqa: E402
from duotune.backbones.base import Backbone, Detector  # noqa: E402
from duotune.methods import METHODS  # noqa: E402
from duotune.methods.base import Progress  # noqa: E402


def tiny_clip(folder: Path) -> Path:
    """`save_tiny_clip` of tests/conftest.py; other folders have a conftest too."""
    spec = importlib.util.spec_from_file_location("tests_conftest", ROOT / "tests" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.save_tiny_clip(folder)


def moved(values: Any, device: Any) -> Any:
    return tree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, values)


def host(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in values.items()}


def run(
    backbone: Backbone, case: Case, device: Any, machine: SimulatedDevice | None, rate: float | None = None
) -> tuple[dict[str, Tensor], list[Any], float]:
    """Two steps and a prediction.

    Returns:
        tensors that both devices must agree on; what was counted in the second step and in the prediction; the rate,
        which moves no parameter by more than a thousandth: a step too far makes any two runs differ.
    """
    torch.manual_seed(0)
    model = attach(backbone, case.method, NAMES).train()
    given, wanted = moved(inputs(backbone), device), moved(labels(backbone), device)
    seen: dict[str, Tensor] = {}
    counts = []
    optimiser = None
    for step in range(2):
        if machine is not None:
            machine.taken()
        out = model(**given, labels=wanted, progress=Progress(0, 1))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if trained:
            for p in trained.values():
                p.grad = None
            out["loss"].backward()
        if step == 0:
            seen |= host({f"step {k}": v for k, v in [*outputs(out).items(), ("loss", out["loss"])]})
            gradients = host({f"gradient {k}": p.grad for k, p in trained.items() if p.grad is not None})
            if gradients:
                seen |= gradients
                rate = rate or 0.001 / max(g.abs().max().item() for g in gradients.values())
                optimiser = torch.optim.SGD(trained.values(), rate, momentum=0.9)
        if optimiser is not None:
            optimiser.step()
    if machine is not None:
        counts.append(machine.taken())
    model.eval()
    with torch.no_grad():
        seen |= host({f"prediction {k}": v for k, v in outputs(model(**given)).items()})
        if machine is not None:
            machine.taken()
        if isinstance(backbone, Detector):
            found = model.find(**given)
        else:
            found = model(**given)["logits"].softmax(-1).topk(2).indices.tolist()
    if machine is not None:
        counts.append(machine.taken())
    if isinstance(backbone, Detector):
        for i, row in enumerate(found):
            seen |= host(
                {f"found {i}": torch.cat([row["boxes"] / given["pixel_values"].shape[-1], row["scores"][:, None]], 1)}
            )
    return seen, counts, rate or 0.0


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each tensor, relative to the largest value: of the tensor, or of all gradients together."""
    largest = max((v.abs().max().item() for k, v in expected.items() if k.startswith("gradient")), default=1.0)
    result = {}
    for name, b in expected.items():
        a = found.get(name)
        if a is None or a.shape != b.shape or not bool(torch.isfinite(a).all()):
            result[name] = float("inf")
        else:
            scale = largest if name.startswith("gradient") else b.abs().max().item() if b.numel() else 1.0
            result[name] = (a - b).abs().max().item() / max(scale, 1e-12) if b.numel() else 0.0
            if name.startswith("found") and len(b):  # in any order: scores may tie
                each = (a[:, None] - b[None]).abs().amax(-1)
                result[name] = max(each.amin(0).max().item(), each.amin(1).max().item())
    return result | {name: float("inf") for name in found.keys() - expected.keys()}


def told(counts: Any) -> dict[str, Any]:
    return {**counts.numbers(), "waits": dict(counts.waits), "copied": dict(counts.copied)}


def pair(backbone: Backbone, there: Backbone, case: Case, machine: SimulatedDevice) -> dict[str, Any]:
    """{"error": None or one line, "differences": {tensor: number}, "step": counts, "prediction": counts}."""
    expected, _, rate = run(backbone, case, "cpu", None)
    try:
        with machine:
            found, counts, _ = run(there, case, DEVICE, machine, rate)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    step, prediction = map(told, counts)
    return {"error": None, "differences": apart(found, expected), "step": step, "prediction": prediction}


# ------------------------------------------------------------------ faults that must be seen


def wrong_number(logits: Tensor) -> Tensor:
    return logits * (1.0 if logits.device.type == "cpu" else 1.001)


FAULTS: dict[str, Callable[[Tensor], Any]] = {  # what a method does with its logits; None: what it should
    "none": lambda logits: logits,
    "a tensor of the CPU": lambda logits: logits + torch.zeros(logits.shape),
    "an index of the CPU": lambda logits: logits[torch.arange(len(logits))],
    "a number of the CPU, which torch allows": lambda logits: logits * torch.tensor(1.0),
    "a number of the CPU where torch wants tensors": lambda logits: (
        logits + torch.stack([logits.sum(), torch.tensor(1.0)])[0] * 0
    ),
    "numpy": lambda logits: logits.detach().numpy() is None or logits,
    "item": lambda logits: logits * (1 if logits.sum().item() else 1),
    "a test on a tensor": lambda logits: logits if logits.sum() else logits,
    "nonzero": lambda logits: logits[(logits[:, 0] == logits[:, 0]).nonzero()[:, 0]],
    "a boolean index": lambda logits: logits[logits[:, 0] == logits[:, 0]],
    "a copy to the host": lambda logits: logits + 0 * logits.cpu().sum(),
    "numbers from the host": lambda logits: logits + torch.tensor([0.0] * logits.shape[1], device=logits.device),
    "numbers beside a tensor": lambda logits: logits + logits.new_tensor([0.0] * logits.shape[1]),
    "a copy that does not wait": lambda logits: logits + torch.zeros(4).to(logits.device, non_blocking=True),
    "wrong numbers": wrong_number,
}


def planted(backbone: Backbone, there: Backbone, machine: SimulatedDevice) -> dict[str, Any]:
    """What `pair` says of CoOp when its forward has a fault."""
    case = next(case for case in CASES if str(case) == "clip-coop")
    plain, result = case.kind.forward, {}
    for name, fault in FAULTS.items():

        def forward(self, backbone, batch, fault=fault):
            out = plain(self, backbone, batch)
            return type(out)(fault(out.logits), out.extras)

        with patch.object(case.kind, "forward", forward):
            result[name] = pair(backbone, there, case, machine)
    return result


def asked_by_a_library(machine: SimulatedDevice) -> dict[str, int]:
    """The waits of one `item()` that torch calls, where torch lies below `root` as in a clone with its `.venv`."""
    with machine:
        torch.utils._pytree.tree_map(lambda x: x.item(), [torch.ones(1).to(DEVICE)])
    return dict(machine.counts.waits)


def main(out: str) -> None:
    for name, kind in OUTSIDE.items():
        METHODS.register(name, kind)
    torch.set_num_threads(1)
    machine = SimulatedDevice(ROOT)
    result: dict[str, Any] = {"pairs": {}}
    with tempfile.TemporaryDirectory() as place:
        for name, subject in FOLDERS.items():
            folder = Path(place) / name
            subject.write(folder, tiny_clip)
            backbone = load_backbone(str(folder), device="cpu")
            with machine:
                there = copy.deepcopy(backbone).to(DEVICE)
            for case in CASES:
                if case.folder == name:
                    result["pairs"][str(case)] = pair(backbone, there, case, machine)
            if name == "clip":
                result["faults"] = planted(backbone, there, machine)
    result["library"] = asked_by_a_library(SimulatedDevice(Path(ROOT.anchor)))
    Path(out).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
