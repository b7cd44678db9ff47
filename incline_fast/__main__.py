"""``python -m incline_fast`` is the command ``incline-fast``."""

from incline_fast.cli.app import main

main()
