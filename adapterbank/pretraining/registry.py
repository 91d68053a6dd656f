"""Names under which teachers and sources are built; some are registered by a module only when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from adapterbank.errors import ConfigError, NameTakenError, UnknownNameError

Built = TypeVar("Built")
Builder = TypeVar("Builder", bound=Callable[..., Any])


class Registry(Generic[Built]):
    """What can be built by name.

    Args:
        what: is built, in a word, for errors.
        modules: {name: the module that registers it when it is imported}.
        argument: the option that stands behind a colon, as in "folder:my_audio".
        shown: {name: how an error lists it}.
    """

    def __init__(
        self, what: str, modules: Mapping[str, str], argument: str, shown: Mapping[str, str] | None = None
    ) -> None:
        self.what, self.modules, self.argument, self.shown = what, modules, argument, shown or {}
        self.builders: dict[str, Callable[..., Built]] = {}

    def register(self, name: str) -> Callable[[Builder], Builder]:
        """A decorator. Raises NameTakenError if the name is registered already."""

        def add(builder: Builder) -> Builder:
            if name in self.builders:
                raise NameTakenError(f"a {self.what} {name!r} is registered already; choose another name.")
            self.builders[name] = builder
            return builder

        return add

    def names(self) -> list[str]:
        """What is registered, and what comes with the package."""
        return sorted({*self.builders, *self.modules})

    def build(self, name: str, **options: Any) -> Built:
        """What is registered under `name`, which may be followed by ":<argument>".

        Raises:
            UnknownNameError: nobody registered `name`.
            ConfigError: options that it does not take.
        """
        kind, _, argument = name.partition(":")
        if kind not in self.builders and kind in self.modules:
            importlib.import_module(self.modules[kind])
        if kind not in self.builders:
            raise UnknownNameError(self.what, name, [self.shown.get(known, known) for known in self.names()])
        if argument:
            options = {self.argument: argument, **options}
        try:
            return self.builders[kind](**options)
        except TypeError as error:
            raise ConfigError(f"{self.what} {name!r} cannot be built with {sorted(options)}: {error}.") from error
