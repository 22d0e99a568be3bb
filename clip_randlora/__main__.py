"""``python -m clip_randlora`` is the command ``clip-randlora``."""

from clip_randlora.cli import main

main()
