"""Fast ways to compute what the methods' pages define; `add_updates` is the one entry."""

from clip_randlora.adapters.fast.weight_update import add_updates

__all__ = ["add_updates"]
