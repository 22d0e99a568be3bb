"""Adapter files: this project's own and peft's."""
