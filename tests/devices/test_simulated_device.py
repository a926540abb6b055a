"""Every pair of method and backbone on a simulated accelerator: no device is mixed, numbers are the CPU's, the host
hardly ever waits for the device, and planted faults are found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "contract"))
from subjects import CASES  # noqa: E402

SYNCS = {"clip": 0, "glip": 0, "grounding_dino": 7, "mm_grounding_dino": 7}
"""Most times that the host may wait for the device in a training step; reading the loss is not in it. Grounding DINO's
matching is worked out on the host (1), sizes of pictures are read there (1), and transformers' deformable attention
asks the device whether sizes fit, in each of the 2 + 3 layers here."""

SYNCS_OF_FULL = {"glip": 1, "grounding_dino": 9, "mm_grounding_dino": 9}
"""The same where all is trained: transformers' BERT asks whether its mask hides anything, and encoder layers are run
again in the backward pass."""

KERNELS = {"glip-sdpt": 3200, "grounding_dino-sdpt": 2050}
"""Most kernels of a training step: a guard against a loop over levels, heads or boxes coming back. On small pictures
an accelerator's time is that of launching them. Seen: about 3,000 and 1,980."""

SAME = {"step": 1e-5, "gradient": 2e-5, "prediction": 5e-5, "found": 5e-5}
"""Largest difference from the CPU. Other forms of the same sums are taken on an accelerator (blocks as many autograd
steps, whole maps at a time), so single precision rounds otherwise; `prediction` is behind two steps."""

ROUGH = {"sdpt": 5e-3}
"""The same of gradients where inverse projections amplify rounding; in double precision they agree to 1e-12."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What pairs.py saw, in a process of its own; once, also where several processes share the tests out."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    out = place / "simulated_pairs.json"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            done = subprocess.run(
                [sys.executable, str(HERE / "pairs.py"), str(out)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def worst(differences: dict[str, float], kind: str) -> tuple[float, str]:
    return max((value, name) for name, value in differences.items() if name.startswith(kind))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_pair_trains_and_predicts_on_one_device_with_the_numbers_of_the_cpu(seen, case):
    pair = seen["pairs"][str(case)]
    assert pair["error"] is None
    assert pair["step"]["kernels"] > 50 and pair["prediction"]["kernels"] > 50
    for kind, limit in SAME.items():
        if any(name.startswith(kind) for name in pair["differences"]):
            limit = max(limit, ROUGH.get(case.method, 0.0)) if kind == "gradient" else limit
            assert worst(pair["differences"], kind)[0] <= limit, worst(pair["differences"], kind)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_host_waits_for_the_device_no_more_than_it_must(seen, case):
    step = seen["pairs"][str(case)]["step"]
    limit = (SYNCS_OF_FULL if case.method == "full" else SYNCS)[case.folder]
    assert step["syncs"] <= limit, step["waits"]
    assert not step["blocking"], step["copied"]


@pytest.mark.parametrize("pair", KERNELS)
def test_a_step_launches_no_more_kernels_than_it_must(seen, pair):
    assert seen["pairs"][pair]["step"]["kernels"] <= KERNELS[pair]


@pytest.mark.parametrize("case", [case for case in CASES if case.folder != "clip"], ids=str)
def test_boxes_come_to_the_host_in_one_copy_per_picture(seen, case):
    prediction = seen["pairs"][str(case)]["prediction"]
    copies = [n for where, n in prediction["waits"].items() if where.endswith((" detect", " _decode_one"))]
    assert sum(copies) == 2 and not prediction["blocking"], prediction


def test_lines_of_libraries_are_not_named_wherever_they_lie(seen):
    assert [where.split(" at ")[1].split(":")[0] for where in seen["library"]] == ["pairs.py"]


# ------------------------------------------------------------------ faults

FAULTS_BACKWARDS = ("a boolean index", "a copy to the host", "an index of the CPU")
"""What costs the same once more in the backward pass."""


@pytest.mark.parametrize(
    "fault",
    [
        "a tensor of the CPU",
        "a number of the CPU where torch wants tensors",
    ],
)
def test_tensors_of_two_devices_are_refused_with_the_line_that_mixed_them(seen, fault):
    error = seen["faults"][fault]["error"]
    assert error is not None and error.startswith("MixedDevices") and "pairs.py" in error and "lambda" in error


def test_the_numbers_of_the_device_are_out_of_reach_of_numpy(seen):
    assert "numpy" in seen["faults"]["numpy"]["error"]


@pytest.mark.parametrize(
    "fault, what",
    [
        ("item", "item"),
        ("a test on a tensor", "item"),
        ("nonzero", "nonzero"),
        ("a boolean index", "boolean index"),
        ("a copy to the host", "copy to the host"),
    ],
)
def test_a_wait_is_counted_and_named(seen, fault, what):
    plain, found = (seen["faults"][name] for name in ("none", fault))
    for part, times in (("step", 1 + (fault in FAULTS_BACKWARDS)), ("prediction", 1)):
        assert found["error"] is None and found[part]["syncs"] == plain[part]["syncs"] + times
        new = found[part]["waits"].keys() - plain[part]["waits"].keys()
        assert len(new) == times and any(name.startswith(f"{what} at pairs.py:") for name in new)


@pytest.mark.parametrize(
    "fault, blocking",
    [
        ("numbers from the host", 1),
        ("numbers beside a tensor", 1),
        ("an index of the CPU", 1),
        ("a copy that does not wait", 0),
        ("a number of the CPU, which torch allows", 0),
    ],
)
def test_a_blocking_copy_is_counted(seen, fault, blocking):
    plain, found = (seen["faults"][name] for name in ("none", fault))
    assert found["error"] is None
    for part, times in (("step", blocking * (1 + (fault in FAULTS_BACKWARDS))), ("prediction", blocking)):
        assert found[part]["blocking"] == plain[part]["blocking"] + times
        assert found[part]["syncs"] == plain[part]["syncs"]
    assert found["prediction"]["copies"] == plain["prediction"]["copies"] + (blocking or fault.startswith("a copy"))


def test_another_number_on_the_device_is_found(seen):
    differences = seen["faults"]["wrong numbers"]["differences"]
    assert worst(differences, "step")[0] > 1e-4
    assert worst(seen["faults"]["none"]["differences"], "step")[0] <= SAME["step"]
