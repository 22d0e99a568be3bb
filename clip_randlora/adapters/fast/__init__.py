"""Fast ways to compute what `clip_randlora.adapters.randlora` defines."""
