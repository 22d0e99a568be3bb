"""One training: its settings, its steps, its linear probe."""
