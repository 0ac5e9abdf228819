"""Acceleration of existing models: modules are recognised by their code, accelerated, reported, restored."""

from .accelerate import accelerate, accelerate_as_built, restore
from .report import arguments, report, run_once
from .rows import Report, Row

__all__ = ["Report", "Row", "accelerate", "accelerate_as_built", "arguments", "report", "restore", "run_once"]
