"""Find what is wrong with a labelled image set, and put it right.

1. `looks` reads every image once: its features, a small thumbnail and its size.
2. `wrong_labels` ranks labels by how likely they are wrong, `near_duplicates` groups images that
   are nearly the same, and `outliers` finds those that are like no other.
3. `findings` holds what was found; `check` does all of this.
"""

from clip_randlora.checking.check import check_images
from clip_randlora.checking.findings import Duplicates, Findings, Outlier, SmallImage, WrongLabel

__all__ = ["Duplicates", "Findings", "Outlier", "SmallImage", "WrongLabel", "check_images"]
