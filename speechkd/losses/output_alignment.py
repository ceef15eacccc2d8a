"""Output alignment: where the answer begins, hearing should leave the LLM in the state that reading does.

    L_OUT = | h(prefix, S, suffix)_last - h(prefix, y, suffix)_last |_2                  DiVA, arXiv 2410.02678; arXiv 2603.07025
h: the LLM's final hidden state (after its last norm), last: the last position of the prompt. With the output matrix frozen, equal states
give equal next-token distributions, so this is a cheap stand-in for the KL: distance 0 means KL 0, and no more than that. The norm is not
squared and the last position alone counts, as in DiVA's released code.
"""

from __future__ import annotations

from torch import Tensor

from speechkd.core.errors import InputError
from speechkd.core.types import LossOut, Needs
from speechkd.kernels.logits import Head, check_rows, masked_rows, sum_rows
from speechkd.losses.base import HeadLoss, Positions, PositionsConfig, Supervision, given
from speechkd.losses.states import distance_rows


def output_alignment(student_BD: Tensor, teacher_BD: Tensor, mask_B: Tensor) -> LossOut:
    """Sum over kept utterances of the distance; the teacher gets no gradient.

    Args:
        student_BD: final hidden state at the last prompt position after audio, teacher_BD: the same after the transcript.
        mask_B: boolean; False for an utterance without audio or transcript, whatever stands there.
    Raises InputError for shapes and widths that differ.
    """
    check_rows(mask_B, {"student_BD": student_BD, "teacher_BD": teacher_BD})
    if student_BD.shape != teacher_BD.shape:
        raise InputError(f"output alignment compares one LLM with itself: widths {student_BD.shape[-1]} and {teacher_BD.shape[-1]} differ")
    return sum_rows(distance_rows(masked_rows(student_BD, mask_B), masked_rows(teacher_BD, mask_B)), mask_B)


class Config(PositionsConfig):
    """Recipe block of `output_alignment`; the teacher reads the transcript where the student hears it."""

    at: Positions = "prompt_end"

    def needs(self) -> Needs:
        """Final states of a live teacher."""
        return self._from_teacher("dense", student="head")


def _loss(student: Head, supervision: Supervision, config: Config) -> LossOut:
    teacher = given(supervision.teacher, "output_alignment", "dense")
    return output_alignment(student.hidden_TD, teacher.hidden_TD, supervision.mask_T)


LOSS = HeadLoss(Config=Config, loss=_loss)
