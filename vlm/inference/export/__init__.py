"""Checkpoints of this project as files of others; the way back of `vlm.inference.foreign`."""

from vlm.inference.export.exporter import Exported, export_model

__all__ = ["Exported", "export_model"]
