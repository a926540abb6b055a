"""Captions, positive maps, chunks, and what training captions name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from duotune.data.detection.captions import ItemPhrases, SampledClasses
from duotune.data.detection.coco import make_item
from duotune.errors import ClassNamesError, ConfigError
from duotune.grounding import CaptionPrompt, build_caption, chunk_classes, clean_name, grounding_caption

NAMES = ["person", "bicycle", "hair_drier", "cat", "dog", "bow_(tie)", "bow_(weapon)", "car", "boat", "tree"]


def with_labels(*labels, crowd=()):
    rows = [((0, 0, 5, 5), label, i, i in crowd, 25) for i, label in enumerate(labels)]
    return make_item(Path("x.jpg"), 1, 10, 10, rows)


def test_the_official_example(tokenizer):
    """Token ids and positions that GLIP's own code gives for this caption."""
    caption = build_caption(["person", "bicycle", "hair drier"], tokenizer)
    assert caption.text == "person. bicycle. hair drier" and caption.tokens == ((1,), (3,), (5, 6, 7))
    assert tokenizer(caption.text + ".")["input_ids"] == [101, 2711, 1012, 10165, 1012, 2606, 2852, 3771, 1012, 102]
    rows = caption.positive_map([2, 0, 2], width=12)
    assert rows.shape == (3, 12) and rows.nonzero().tolist() == [[0, 5], [0, 6], [0, 7], [1, 1], [2, 5], [2, 6], [2, 7]]
    assert caption.positive_map([]).shape == (0, 9)


@pytest.mark.parametrize("name, expected", [
    ("hair_drier", "hair drier"), ("bow_(weapon)", "bow"), ("a  b", "a b"), ("a (x) b (y)", "a"),
    ("flip-flop_(sandal)", "flip-flop"), (" cat ", "cat"),
])  # fmt: skip
def test_clean_name(name, expected):
    assert clean_name(name) == expected


def test_edges_between_tokens_move_inwards_by_up_to_two(tokenizer):
    caption = lambda text, *spans: grounding_caption(text, [[span] for span in spans], tokenizer).tokens
    # "a" is character 0, "cat" 3..5, "dog" 8..10
    assert caption("a  cat  dog", (1, 8)) == ((2,),)  # begins 2 before cat, ends 2 behind it
    assert caption("a   cat   dog", (1, 7), (4, 10)) == ((), ())  # 3 before, 3 behind: in no token
    assert caption("a  cat  dog", (3, 6), (3, 11)) == ((2,), (2, 3))


def test_prompts_surround_the_name(tokenizer):
    prompts = [CaptionPrompt("holes", "there are some ", " on the road"), CaptionPrompt("red cat")]
    caption = build_caption(["pothole", "animal"], tokenizer, prompts=prompts)
    assert caption.text == "there are some holes on the road. red cat"
    assert caption.names == ("pothole", "animal") and caption.tokens == ((4,), (9, 10))
    with pytest.raises(ConfigError, match="2 class names need as many caption prompts, got 1"):
        build_caption(["pothole", "animal"], tokenizer, prompts=prompts[:1])


def test_chunks_name_all_classes_and_fit(tokenizer):
    names = [f"{a} {b}" for a in "cat dog red bow man hat".split() for b in "tree car boat road holes".split()]
    whole = build_caption(names, tokenizer, 512)
    for limit in (5, 8, 17, 30, whole.length - 1):
        chunks = chunk_classes(names, tokenizer, limit)
        assert sum((c.labels for c in chunks), ()) == tuple(range(len(names))) and len(chunks) > 1
        assert sum((c.names for c in chunks), ()) == tuple(names)
        for chunk, following in zip(chunks, [*chunks[1:], None]):
            assert chunk.length == len(tokenizer(chunk.text)["input_ids"]) <= limit
            if following:  # no room is wasted
                with pytest.raises(ClassNamesError, match=f"the model reads {limit}"):
                    build_caption([*chunk.names, following.names[0]], tokenizer, limit)
            for label in chunk.labels:  # the same words stand for a class, whatever the caption
                words = lambda c, label: [tokenizer(c.text)["input_ids"][t] for t in c.tokens[c.position(label)]]
                assert words(chunk, label) == words(whole, label) and words(whole, label)
                assert chunk.positive_map([label]).sum() == whole.positive_map([label]).sum()
    (one,) = chunk_classes(names, tokenizer, 256)
    assert (one.text, one.tokens) == (whole.text, whole.tokens)  # what fits is not cut
    assert [len(c.names) for c in chunk_classes(names, tokenizer, 256, max_classes=13)] == [13, 13, 4]


def test_a_chunk_knows_its_labels(tokenizer):
    chunks = chunk_classes(NAMES, tokenizer, max_classes=4)
    assert chunks[1].labels == (4, 5, 6, 7) and chunks[1].position(5) == 1 and chunks[1].position(0) is None
    assert torch.equal(chunks[1].positive_map([5]), build_caption(NAMES[4:8], tokenizer).positive_map([1]))
    with pytest.raises(ClassNamesError, match="names no class with label 0"):
        chunks[1].positive_map([0])


def test_chunk_faults(tokenizer):
    with pytest.raises(ClassNamesError, match="class 'dog dog dog ' alone takes 3 tokens"):
        chunk_classes(["cat", "dog dog dog "], tokenizer, 4)
    with pytest.raises(ClassNamesError, match="without text: ' '"):
        chunk_classes(["cat", " "], tokenizer)
    with pytest.raises(ClassNamesError, match="more than once: 'cat'"):
        chunk_classes(["cat", "cat"], tokenizer)
    with pytest.raises(ConfigError, match="at least 1"):
        chunk_classes(["cat"], tokenizer, max_classes=0)
    with pytest.raises(ConfigError, match="fast tokenizer"):
        build_caption(["cat"], object())


def test_phrases_of_the_item(tokenizer):
    item = make_item(Path("x.jpg"), "1#0", 9, 9, [], caption="a man with a red cat", phrases=(((2, 5),), ((11, 20),)))
    caption = ItemPhrases(tokenizer)(item)
    assert caption.names == ("man", "a red cat") and caption.tokens == ((2,), (4, 5, 6))
    with pytest.raises(ClassNamesError, match="has no sentence"):
        ItemPhrases(tokenizer)(with_labels(1))


def test_sampled_captions(tokenizer):
    choice = SampledClasses(NAMES, tokenizer, num_negatives=4)
    item, seen, sizes = with_labels(3, 3, 7, 9, crowd=(3,)), set(), []
    orders = set()
    for seed in range(200):
        caption = choice(item, np.random.default_rng(seed))
        assert {3, 7} <= set(
            caption.labels
        ) and 9 not in caption.labels  # a crowd's class is neither present nor absent
        assert len(set(caption.labels)) == len(caption.labels) <= 6
        assert caption.names == tuple(NAMES[label] for label in caption.labels)
        assert caption == choice(item, np.random.default_rng(seed))
        seen |= set(caption.labels)
        sizes.append(len(caption.labels) - 2)
        orders.add(caption.labels.index(3) < caption.labels.index(7))
    assert seen == set(range(9)) and orders == {True, False}
    # 4 of 10 are drawn half of the time, else 1..4; 7 of 10 count: 0.7 * (4 + 2.5) / 2
    assert np.mean(sizes) == pytest.approx(0.7 * 3.25, abs=0.25)


def test_sampled_captions_keep_the_budget(tokenizer):
    names = [f"{a} {b} {c}" for a in "cat dog red".split() for b in "tree car boat".split() for c in "a the on".split()]
    choice = SampledClasses(names, tokenizer, max_tokens=20, num_negatives=20, full=1.0)
    few = with_labels(0, 1)
    for seed in range(20):
        caption = choice(few, np.random.default_rng(seed))
        assert {0, 1} <= set(caption.labels) and len(caption.labels) == 4 and caption.length <= 20
    many = with_labels(*range(12))
    dropped = set()
    for seed in range(40):
        caption = choice(many, np.random.default_rng(seed))
        assert set(caption.labels) <= set(range(12)) and len(caption.labels) == 4 and caption.length <= 20
        dropped |= set(range(12)) - set(caption.labels)
    assert dropped == set(range(12))  # other epochs show the others
    tight = SampledClasses(names, tokenizer, max_tokens=5)  # one name fits, a separator does not
    assert tight(few, np.random.default_rng(0)).length == 5
    with pytest.raises(ClassNamesError, match="the model reads 4"):
        SampledClasses(names, tokenizer, max_tokens=4)


def test_a_picture_of_nothing_still_gets_a_caption(tokenizer):
    for choice in (SampledClasses(NAMES, tokenizer, num_negatives=0), SampledClasses(NAMES, tokenizer)):
        for seed in range(20):
            assert choice(with_labels(), np.random.default_rng(seed)).names
            assert choice(with_labels(2, crowd=(0,)), np.random.default_rng(seed)).names
    none = SampledClasses(NAMES, tokenizer, num_negatives=0)
    assert sorted(none(with_labels(4, 2), np.random.default_rng(0)).labels) == [2, 4]


def test_sampled_prompts_and_faults(tokenizer):
    prompts = [CaptionPrompt(clean_name(n), "a ") for n in NAMES]
    caption = SampledClasses(NAMES, tokenizer, num_negatives=0, prompts=prompts)(
        with_labels(3), np.random.default_rng(0)
    )
    assert caption.text == "a cat" and caption.labels == (3,) and caption.tokens == ((2,),)
    with pytest.raises(ConfigError, match="full must be 0..1"):
        SampledClasses(NAMES, tokenizer, full=2)
    with pytest.raises(ConfigError, match="as many caption prompts"):
        SampledClasses(NAMES, tokenizer, prompts=prompts[:2])
