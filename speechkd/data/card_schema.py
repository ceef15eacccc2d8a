"""JSON schema of corpus cards, for editors. Generated from `Card` and the configuration of every source.

python -m speechkd.data.card_schema shards/card.schema.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from speechkd.core.files import write_json
from speechkd.data.cards import Card
from speechkd.data.sources import SOURCES

OUTSIDE = {"type": "object", "required": ["kind"], "properties": {"kind": {"type": "string", "pattern": ":"}}}
"""A source of the user's own, as `module:NAME`"""


def card_schema() -> dict[str, Any]:
    """JSON Schema 2020-12. `source` is one of the source configurations, selected by `kind`."""
    configs = {name: SOURCES.get(name).Config for name in SOURCES}
    refs, shared = models_json_schema([(Card, "validation"), *((config, "validation") for config in configs.values())])
    definitions = shared["$defs"]
    schema = definitions.pop("Card")
    schema["properties"]["source"] = {
        "description": "where the raw data lies; `kind` names the layout",
        "oneOf": [*(refs[config, "validation"] for config in configs.values()), OUTSIDE],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "speechkd corpus card", **schema, "$defs": definitions}


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), card_schema())
