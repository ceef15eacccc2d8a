"""The toy losses' table entries: all that joins them to the rest."""

TOYS = {
    "toy_clip": "tests.losses.toys.toy_clip:LOSS",
    "toy_head": "tests.losses.toys.toy_head:LOSS",
    "toy_layer": "tests.losses.toys.toy_layer:LOSS",
}
