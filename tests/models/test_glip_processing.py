"""Pictures, captions and boxes around the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from duotune.errors import ArtifactError, ClassNamesError, ConfigError, DataError
from duotune.models.glip import GlipProcessor
from duotune.models.glip.processing_glip import clean_name, resized_size


@pytest.fixture
def processor(tokenizer):
    return GlipProcessor(tokenizer, short_side=64, long_side=107, max_text_tokens=32)


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size,expected", [
    ((480, 640), (800, 1066)),  # 1066.67 is cut, not rounded
    ((640, 480), (1066, 800)),
    ((500, 375), (1066, 800)),
    ((333, 1000), (444, 1333)),  # the long side would be 2402: short side round(1333 * 333 / 1000)
    ((1000, 333), (1333, 444)),
    ((800, 1200), (800, 1200)),
    ((100, 100), (800, 800)),
])  # fmt: skip
def test_resized_sizes(size, expected):
    assert resized_size(*size, short=800, longest=1333) == expected


def test_pixels_are_bgr_normalised_and_padded(processor):
    images = [picture(64, 70), picture(90, 64, seed=1)]
    batch = processor(images)
    assert batch["image_sizes"].tolist() == [[70, 64], [64, 90]]
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    red, green, blue = images[1].getpixel((5, 7))
    expected = [(blue - 103.53) / 57.375, (green - 116.28) / 57.12, (red - 123.675) / 58.395]
    assert batch["pixel_values"][1, :, 7, 5].tolist() == pytest.approx(expected, abs=1e-5)
    assert batch["pixel_values"][0, :, 70:].abs().sum() == 0 and batch["pixel_values"][0, :, :, 64:].abs().sum() == 0


def test_pictures_are_resized_with_pil_bilinear(processor):
    image = picture(100, 50)
    pixels = processor.preprocess(image)
    height, width = resized_size(50, 100, 64, 107)
    assert pixels.shape == (3, height, width) == (3, 54, 108)  # short side round(107 * 50 / 100), half to even
    again = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    expected = (again[3, 8, ::-1] - np.array(processor.pixel_mean)) / np.array(processor.pixel_std)
    assert pixels[:, 3, 8].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert processor.preprocess(image, short_side=32).shape == (3, 32, 64)


def test_pictures_may_keep_their_size(processor, tokenizer):
    image = picture(70, 50)
    kept = processor(image, do_resize=False)
    assert kept["image_sizes"].tolist() == [[50, 70]] and kept["pixel_values"].shape == (1, 3, 64, 96)
    assert torch.equal(kept["pixel_values"][0, :, :50, :70], processor.normalize(image))
    assert processor(image)["image_sizes"].tolist() != [[50, 70]]
    never = GlipProcessor(tokenizer, do_resize=False)
    assert torch.equal(never(image)["pixel_values"], kept["pixel_values"])
    assert never(image, do_resize=True)["image_sizes"].tolist() == [[800, 1120]]
    assert never.settings()["do_resize"] is False


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_of_picture_is_taken(processor, mode):
    assert processor.preprocess(picture(64, 64).convert(mode)).shape == (3, 64, 64)


def test_names_are_cleaned():
    assert clean_name("hair_drier_(electric)") == "hair drier"
    assert clean_name("bow_(weapon)") == "bow"
    assert clean_name("traffic  light") == "traffic light"


def test_the_known_caption(processor):
    caption = processor.caption(["person", "bicycle", "hair_drier"])
    assert caption.text == "person. bicycle. hair drier"
    assert caption.tokens == ((1,), (3,), (5, 6, 7)) and caption.length == 9
    ids = processor.tokenize(["person. bicycle. hair drier."])["input_ids"]
    assert ids.tolist() == [[101, 2711, 1012, 10165, 1012, 2606, 2852, 3771, 1012, 102]]
    rows = caption.positive_map([2, 0], width=12)
    assert rows.tolist() == [[0] * 5 + [1] * 3 + [0] * 4, [0, 1] + [0] * 10]


def test_the_demo_form_of_a_caption(processor):
    caption = processor.caption(["person", "hair drier"], style="demo")
    assert caption.text == "person . hair drier . "
    assert caption.tokens == ((1,), (3, 4, 5))


def test_phrases_of_a_free_caption(processor):
    text = "a man with a red cat, a red dog"
    spans = [[(2, 5)], [(17, 20), (28, 31)], [(11, 20)]]
    caption = processor.grounding_caption(text, spans)
    assert caption.names == ("man", "cat dog", "a red cat"[0:9])
    # [CLS] a man with a red cat , a red dog
    assert caption.tokens == ((2,), (6, 10), (4, 5, 6))


def test_edges_between_tokens_move_inwards(processor):
    caption = processor.grounding_caption("a  cat  dog", [[(1, 8)], [(7, 8)]])
    # Spaces at both ends of the first range; the second is a space alone, whose first token is behind its last.
    assert caption.tokens == ((2,), ())
    assert processor.grounding_caption("a      cat", [[(2, 3)]]).tokens == ((),)


def test_captions_that_do_not_fit_are_refused(processor):
    names = [f"cat {'dog ' * i}".strip() for i in range(8)]
    with pytest.raises(ClassNamesError, match="caption of 8 classes takes 45 tokens, the model reads 32"):
        processor.caption(names)
    with pytest.raises(ClassNamesError, match="alone takes 40 tokens"):
        processor.chunk_class_names(["cat", "dog " * 40])


@pytest.mark.parametrize("max_classes", [None, 3])
def test_chunks_fit_and_keep_the_order(processor, max_classes):
    names = [f"cat {'dog ' * i}".strip() for i in range(8)]
    chunks = processor.chunk_class_names(names, max_classes)
    assert sum(chunks, []) == names and len(chunks) > 1
    lengths = [processor.caption(chunk).length for chunk in chunks]
    assert max(lengths) <= 32
    if max_classes is None:  # no room is wasted: the next name would not have fitted
        for chunk, following in zip(chunks, chunks[1:]):
            with pytest.raises(ClassNamesError):
                processor.caption([*chunk, following[0]])
    else:
        assert max(map(len, chunks)) == 3


@pytest.mark.parametrize("names,message", [
    ([], "at least one"),
    (["cat", " "], "without text: ' '"),
    (["(only this)"], "without text"),
    (["cat", "dog", "cat"], "more than once: 'cat'"),
])  # fmt: skip
def test_names_that_say_nothing_are_refused(processor, names, message):
    with pytest.raises(ClassNamesError, match=message):
        processor.caption(names)


def test_names_that_differ_in_parentheses_alone_are_legal(processor):
    assert processor.caption(["cat_(wild)", "cat_(tame)"]).tokens == ((1,), (3,))


def test_one_caption_serves_all_pictures(processor):
    caption = processor.caption(["cat", "dog"])
    batch = processor([picture(64, 64), picture(64, 80)], caption)
    assert batch["input_ids"].shape == (2, caption.length) and batch["attention_mask"].all()
    mixed = processor([picture(64, 64), picture(64, 80)], [caption, "a man with a red cat"])
    assert mixed["attention_mask"].sum(1).tolist() == [5, 8]
    assert processor(text=caption, padding="max_length")["input_ids"].shape == (1, 32)
    with pytest.raises(DataError, match="2 pictures need one caption or one each, got 3"):
        processor([picture(64, 64)] * 2, [caption] * 3)


def test_saved_and_loaded_it_is_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = GlipProcessor.from_pretrained(tmp_path)
    assert loaded.settings() == processor.settings()
    assert loaded.caption(["person", "hair drier"]) == processor.caption(["person", "hair drier"])
    assert GlipProcessor.from_pretrained(tmp_path, short_side=480).short_side == 480


def test_a_folder_without_a_processor_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no GLIP processor"):
        GlipProcessor.from_pretrained(tmp_path)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="fast tokenizer"):
        GlipProcessor(object())


@pytest.fixture
def scene(processor, tiny_glip):
    """Two pictures of different sizes with different captions, and what the model says."""
    images = [picture(100, 64), picture(64, 90, seed=1)]
    captions = [processor.caption(["cat", "dog", "red man"]), processor.caption(["bicycle", "hair drier"])]
    batch = processor(images, captions)
    with torch.no_grad():
        outputs = tiny_glip(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    return images, captions, batch, outputs


def test_detections_of_a_batch(processor, scene):
    images, captions, batch, outputs = scene
    results = processor.post_process_object_detection(outputs, captions, batch["image_sizes"])
    for result, caption, (height, width) in zip(results, captions, batch["image_sizes"].tolist()):
        assert len(result["scores"]) > 3 and result["names"] == [caption.names[i] for i in result["labels"]]
        assert torch.equal(result["scores"], result["scores"].sort(descending=True).values)
        assert result["boxes"].min() >= 0
        assert result["boxes"][:, 2].max() <= width - 1 and result["boxes"][:, 3].max() <= height - 1
    scaled = processor.post_process_object_detection(outputs, captions, batch["image_sizes"], [(640, 1000), (900, 640)])
    ratios = torch.tensor([1000, 640, 1000, 640]) / torch.tensor([100, 64, 100, 64])
    torch.testing.assert_close(scaled[0]["boxes"], results[0]["boxes"] * ratios)
    few = processor.post_process_object_detection(outputs, captions, batch["image_sizes"], max_detections=2)
    assert [len(r["scores"]) for r in few] == [2, 2]
    assert torch.equal(few[0]["scores"], results[0]["scores"][:2])


def test_detections_do_not_depend_on_the_padding_of_captions(processor, tiny_glip, scene):
    images, captions, batch, outputs = scene
    padded = processor(images, captions, padding="max_length")
    assert padded["input_ids"].shape[1] == 32
    with torch.no_grad():
        others = tiny_glip(padded["pixel_values"], padded["input_ids"], padded["attention_mask"], trim_text=False)
    sizes = batch["image_sizes"]
    ours = processor.post_process_object_detection(outputs, captions, sizes)
    theirs = processor.post_process_object_detection(others, captions, sizes)
    for a, b in zip(ours, theirs):
        assert a["labels"].tolist() == b["labels"].tolist()
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-3, atol=1e-2)


def test_captions_without_a_usable_class_are_refused(processor, scene):
    _, captions, batch, outputs = scene
    empty = processor.grounding_caption("a man", [])
    with pytest.raises(ClassNamesError, match="no token of any class"):
        processor.post_process_object_detection(outputs, [captions[0], empty], batch["image_sizes"])
    with pytest.raises(DataError, match="2 outputs need as many captions and sizes"):
        processor.post_process_object_detection(outputs, captions[:1], batch["image_sizes"])
