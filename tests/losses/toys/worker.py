"""Two steps on each of two ZeRO-3 ranks with every toy loss in one recipe: `worker.py OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from speechkd.core import dist
from speechkd.engine.zero import close_distributed
from speechkd.losses import LOSSES
from tests.losses.toys.table import TOYS

LOSSES.entries |= TOYS

if __name__ == "__main__":
    from tests.contracts.tiny import Case
    from tests.contracts.worker import run

    blocks = {
        "toy_clip": {},
        "toy_head": {"teacher": "self", "streams": ["kd"]},
        "toy_layer": {"teacher": "wider", "streams": ["kd", "kd/text"]},
    }
    facts = run(Case(blocks), "all")
    if dist.rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(facts))
    close_distributed()
