"""Prompt modules alone: shapes, starts, and CAVPT's equations entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

from duotune.prompts import AuxiliaryHead, CandidateAttention, ClassAwarePrompts, ContextTokens, VisualPromptTokens


def test_context_tokens_start_normal_with_the_given_deviation():
    torch.manual_seed(0)
    shared, specific = ContextTokens(16, 512), ContextTokens(16, 512, num_classes=3, std=0.5)
    assert shared.tokens.shape == (16, 512) and not shared.class_specific
    assert specific.tokens.shape == (3, 16, 512) and specific.class_specific
    assert shared.num_context_tokens == specific.num_context_tokens == 16
    assert abs(shared.tokens.std().item() - 0.02) < 0.001 and abs(specific.tokens.std().item() - 0.5) < 0.02


def test_context_tokens_start_from_words_without_sharing_memory():
    words = torch.randn(4, 8)
    tokens = ContextTokens(4, 8, num_classes=2, init=words).tokens
    assert torch.equal(tokens, words.expand(2, 4, 8))
    with torch.no_grad():
        tokens[0] += 1
    assert torch.equal(tokens[1], words), "classes share memory"
    assert ContextTokens(4, 8, init=words.half()).tokens.dtype == torch.float32


def test_visual_tokens_end_above_the_last_prompted_layer():
    prompts = VisualPromptTokens(10, 64, 2)
    assert prompts.tokens.shape == (2, 10, 64)
    assert torch.equal(prompts(1), prompts.tokens[1]) and prompts(2) is None


def test_candidate_attention_equals_its_equation():
    attention = CandidateAttention(6, inner=4).double()
    queries, tokens = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    out = attention(queries, tokens)
    for b in range(2):
        for j in range(3):
            q = attention.query.weight @ queries[b, j]
            weights = torch.stack([q @ (attention.key.weight @ x) / math.sqrt(4) for x in tokens[b]]).softmax(0)
            # the authors attend over raw tokens and project the sum; projecting every token first is the same
            expected = sum(w * (attention.value.weight @ x) for w, x in zip(weights, tokens[b]))
            assert torch.allclose(out[b, j], expected, rtol=1e-10)
    assert all(m.bias is None for m in (attention.query, attention.key, attention.value))


@pytest.fixture
def prompts():
    torch.manual_seed(0)
    return ClassAwarePrompts(text_width=4, width=6, num_extra_tokens=3)


def test_class_aware_prompts_take_no_gradient_into_the_tower(prompts):
    hidden = torch.randn(2, 5, 6, requires_grad=True)
    candidates = torch.randn(2, 3, 4, requires_grad=True)
    tokens, attended = prompts(hidden, candidates)
    assert tokens.shape == attended.shape == (2, 3, 6)
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert hidden.grad is None and candidates.grad.norm() > 0
    assert all(p.grad is not None and p.grad.norm() > 0 for p in prompts.parameters())


def test_class_aware_prompts_depend_on_hidden_extra_tokens_and_candidates(prompts):
    hidden, candidates = torch.randn(1, 5, 6), torch.randn(1, 3, 4)
    tokens, _ = prompts(hidden, candidates)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(prompts(hidden, candidates[:, order])[0], tokens[:, order], atol=1e-6)
    assert not torch.allclose(prompts(hidden + 1, candidates)[0], tokens)
    with torch.no_grad():
        prompts.extra_tokens += 1
    assert not torch.allclose(prompts(hidden, candidates)[0], tokens)


def test_class_aware_prompts_are_their_own_normalised_sum(prompts):
    hidden, candidates = torch.randn(2, 5, 6), torch.randn(2, 3, 4)
    tokens, attended = prompts(hidden, candidates)
    assert torch.allclose(tokens, prompts.norm(attended + prompts.meta(candidates)))


def test_auxiliary_head_has_no_bias():
    head = AuxiliaryHead(6, 9)
    attended = torch.randn(4, 6)
    assert head.classifier.bias is None
    assert torch.allclose(head(attended), head.norm(attended) @ head.classifier.weight.T)
