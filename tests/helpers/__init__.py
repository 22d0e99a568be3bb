"""What the tests share: models, images, runs and commands."""
