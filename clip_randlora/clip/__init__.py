"""CLIP: open_clip models, their prompts and their text features."""
