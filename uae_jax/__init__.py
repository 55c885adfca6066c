"""Unified multimodal models as auto-encoders, trained with Unified-GRPO."""

__version__ = '0.1.0'
