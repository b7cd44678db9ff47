"""What the plugin refuses."""

from __future__ import annotations

__all__ = ["RequestError", "ServingError"]


class ServingError(RuntimeError):
    """The engine cannot serve edits as it is configured; the message says why."""


class RequestError(ValueError):
    """A client asks for something that cannot be served, as ``argument`` and ``value`` say; the engine goes on."""

    def __init__(self, message: str, argument: str, value: object = None) -> None:
        super().__init__(message)
        self.argument = argument
        self.value = value
