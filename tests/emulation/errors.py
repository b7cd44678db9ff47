"""What the emulators raise when they find a fault in a kernel."""


class EmulationError(RuntimeError):
    """A kernel did what a GPU would not have survived, or would not have promised to do right."""
