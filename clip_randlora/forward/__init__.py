"""What replaces a forward pass, for a training step or for answers alone."""
