"""The floor of an SDPT step on GLIP with feature maps and text features cached; counted as in `flops`.

The fusion attention is counted in its folded form, q kᵀ = V (W_vᵀ kᵀ): of the orders in which its products can be taken
this needs the fewest, because there are thousands of image positions and no wide projection of any is left. Bilinear
sampling (below 2 % of a deformable convolution's products) counts as free.
"""

from __future__ import annotations

from .detection_shapes import DetectionShape
from .flops import attention


def fusion_products(s: DetectionShape, valid: int) -> tuple[float, float]:
    """Forward FLOPs of one fusion layer: those per image position, and those of text and prototypes alone."""
    keys, n = valid + s.prototypes, s.positions
    rows = s.fusion_heads * s.channels
    scores = 2 * rows * (keys * n + valid * s.prototypes)
    wide = scores + 2 * rows * keys * n + 2 * rows * valid * (n + s.prototypes)
    projections = 2 * 2 * keys * s.text_width * s.inner + 2 * 2 * keys * s.inner * s.channels
    text = 2 * valid * s.inner * (s.channels + s.text_width)
    inverses = 2 * s.prototypes * s.inner * (s.channels + s.text_width)
    return wide, projections + text + inverses


def fusion_step(s: DetectionShape, valid: int) -> float:
    """Forward and backward of one layer's attention: every product with two varying sides has two gradients."""
    wide, narrow = fusion_products(s, valid)
    return 3 * wide + 2 * narrow


def convolutions(s: DetectionShape) -> float:
    """Forward FLOPs of one dynamic convolution: offsets of every level, and its branches: same, finer, coarser."""
    coarser = s.positions - s.sizes[0][0] * s.sizes[0][1]  # both branches between levels have the coarser one's size
    taps = 2 * 9 * s.channels**2
    return taps * (s.positions + 2 * coarser) + 2 * 9 * s.channels * 27 * s.positions


def text_layer(s: DetectionShape, valid: int) -> float:
    projections = 2 * valid * (4 * s.text_width**2 + 2 * s.text_width * s.text_hidden)
    return projections + attention(s.text_width, valid, valid)


def sdpt_step(s: DetectionShape, valid: int) -> float:
    """Forward and backward. Below the first layer's prototypes nothing needs a gradient."""
    wide, narrow = fusion_products(s, valid)
    # first layer, backwards: the scores' gradient alone; neither image nor text lead further down
    first = wide + 2 * s.fusion_heads * s.channels * (valid + s.prototypes) * s.positions + 2 * narrow
    fusion = first + (s.layers - 1) * (3 * wide + 2 * narrow)
    below = s.layers * 2 * (convolutions(s) + text_layer(s, valid))
    logits = 3 * 2 * s.positions * s.channels * valid + 2 * 2 * s.positions * s.channels * 5
    return fusion + below + logits + 2 * 2 * valid * s.text_width * s.channels


def plain_peak_bytes(s: DetectionShape, method: str) -> float:
    """Estimate of the plain side's peak memory, to leave out what would not fit.

    One fusion layer backwards: about six tensors of the full inner width and ten of scores. The step also keeps,
    per layer and position, about fifteen rows of the image maps; its weights, gradients and AdamW's moments of the
    trained ones take 2.5 GB at GLIP-T. 1 GB for the rest.
    """
    keys = s.text_slots + s.prototypes
    found = 4 * s.positions * (6 * s.inner + 10 * s.fusion_heads * keys) + 1e9
    if method == "sdpt":
        found += 4 * 15 * s.positions * s.channels * s.layers
        found += 4 * (30 * s.layers + 30) * (s.inner // 2) ** 2
    return found
