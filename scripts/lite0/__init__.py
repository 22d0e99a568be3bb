"""The parts of the build of ``lite0``, the small CLIP model that the package brings along."""
