"""Acceleration of existing models: B-cos layers are recognised by their code, accelerated, reported and restored."""

from .accelerate import accelerate, accelerate_as_built, restore
from .report import Report, Row, arguments, report, run_once

__all__ = ["Report", "Row", "accelerate", "accelerate_as_built", "arguments", "report", "restore", "run_once"]
