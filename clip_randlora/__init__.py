"""Teach CLIP your own classes from a handful of images, with RandLoRA on both encoders."""

__version__ = "0.1.0"
