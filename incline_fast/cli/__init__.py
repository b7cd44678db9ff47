"""The command ``incline-fast``."""
