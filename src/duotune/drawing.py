"""Boxes with names drawn into a picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#e8590c", "#4c6ef5", "#2b8a3e", "#ae3ec9", "#c92a2a", "#1098ad", "#f59f00", "#5c940d", "#d6336c", "#495057")


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str] = (),
    labels: Sequence[int] = (),
) -> Image.Image:
    """A copy of the picture with boxes; the surest, drawn last, lies on top.

    Args:
        boxes: n times (x1, y1, x2, y2) in pixels, surest first.
        texts: n texts beside the boxes; empty for none.
        labels: n numbers that choose the colours; empty for one colour.
    """
    drawn = image.convert("RGB")
    if drawn is image:
        drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(min(drawn.size) / 250))
    font = ImageFont.load_default(max(10, round(min(drawn.size) / 40)))
    for number in reversed(range(len(boxes))):
        colour = COLOURS[labels[number] % len(COLOURS) if len(labels) else 0]
        x1, y1, x2, y2 = boxes[number]
        # the corner behind the last pixel belongs to the box, the pixel there does not
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
        if len(texts):
            left, top, right, bottom = pen.textbbox((0, 0), texts[number], font=font)
            x = min(max(0, x1), max(0, drawn.width - (right - left) - 4))
            y = y1 - (bottom - top) - 4 if y1 >= bottom - top + 4 else y1
            pen.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=colour)
            pen.text((x + 2 - left, y + 2 - top), texts[number], fill="white", font=font)
    return drawn


__all__ = ["draw_boxes"]
