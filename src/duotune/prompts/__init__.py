"""Learnable prompt tokens as plain torch modules. No other room of the house is imported here."""

from .class_aware import AuxiliaryHead, CandidateAttention, ClassAwarePrompts
from .context import ContextTokens
from .unified import InverseProjection, UnifiedPrototypeTokens
from .visual import VisualPromptTokens

__all__ = [
    "AuxiliaryHead",
    "CandidateAttention",
    "ClassAwarePrompts",
    "ContextTokens",
    "InverseProjection",
    "UnifiedPrototypeTokens",
    "VisualPromptTokens",
]
