"""Methods that train a classifier on the frozen image features, and no weight of the model.

A head is one page: its settings, and how it is fitted. `head` has what they share.
"""

from clip_randlora.adapters.heads.anchored_head import AnchoredHead
from clip_randlora.adapters.heads.gda import GDA
from clip_randlora.adapters.heads.head import HeadConfig, HeadData, LinearHead
from clip_randlora.adapters.heads.linear_probe import LinearProbe
from clip_randlora.adapters.heads.tip_adapter import TipAdapterF

__all__ = [
    "GDA",
    "AnchoredHead",
    "HeadConfig",
    "HeadData",
    "LinearHead",
    "LinearProbe",
    "TipAdapterF",
]
