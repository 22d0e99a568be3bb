"""Teach CLIP your own classes from a handful of images, with RandLoRA on both encoders.

The public names are listed in ``__init__.pyi``. Each is imported on first use: torch takes
seconds, and ``clip-randlora --help`` must not wait for it.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
