"""What a model was made from: its base, its plan and the stages that trained or merged it, on its card.

* `record`: the file `LINEAGE_FILE` next to a model's or an adapter's config: `read`, `write`, `Lineage`.
* `public`: names and recipes without paths of this machine, and without secrets.
* `cards`: `card`, a lineage as a model card.
* `merges`: the lineage of what mergekit merged.
"""

from __future__ import annotations

from solar_plugins.lineage.cards import card
from solar_plugins.lineage.record import LINEAGE_FILE, License, Lineage, Source, Stage, read, write

__all__ = ["LINEAGE_FILE", "License", "Lineage", "Source", "Stage", "card", "read", "write"]
