"""What a recipe's micro-batches cost beside each other, so that the ranks of a step have equal shares."""

from __future__ import annotations

from speechkd.data.plan.balance import Cost
from speechkd.models.encoder_families import SAMPLE_RATE
from speechkd.models.flops import student_flops
from speechkd.models.student import meta_student
from speechkd.models.student_config import StudentConfig

PROMPT_POSITIONS = 40
"""Of an example, about: text around the clip"""


def plan_cost(config: StudentConfig) -> Cost:
    """Costs in tokens of a response, to three digits: from configuration files alone, the same on every machine."""
    student = meta_student(config)
    flops, hearing = student_flops(student), student.encoder.hearing
    window_s = hearing.window * hearing.hop / SAMPLE_RATE
    token = flops.student.position + flops.student.token
    encoder_s = flops.encoder(1, hearing.window) / window_s
    values = {
        "second": student.projector.positions(hearing.window) / window_s * (flops.student.position + flops.projected),
        "row": PROMPT_POSITIONS * flops.student.position,
        "encoded_second": 0.0 if hearing.fixed else encoder_s,
        "clip": encoder_s * window_s if hearing.fixed else 0.0,
    }
    return Cost(**{name: float(f"{value / token:.3g}") for name, value in values.items()})
