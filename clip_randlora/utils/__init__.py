"""Helpers for all other modules: files, process-wide settings, devices, progress."""
