"""What a function needs of whoever keeps tasks, so that it can be given a bank without importing the bank."""

from __future__ import annotations

from typing import Protocol

from adapterbank.backbone.backbone import Backbone
from adapterbank.task.task import Task


class HasBackbone(Protocol):
    """It runs on one backbone, which `to` may replace: ask for it at each use."""

    @property
    def backbone(self) -> Backbone:
        """The frozen AST of the moment."""
        ...


class TaskHost(HasBackbone, Protocol):
    """Named tasks on one backbone, such as an `AdapterBank`."""

    def task(self, name: str) -> Task:
        """A task by name.

        Raises:
            UnknownNameError: no task of that name.
        """
        ...
