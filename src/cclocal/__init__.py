"""Claude Code on a model on your own machine, in one command, and shown to work."""

__version__ = "0.1.0"
