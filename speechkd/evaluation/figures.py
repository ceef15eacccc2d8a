"""Figures that other libraries define: UA, WA and macro-F1 (scikit-learn) for choices, BLEU and chrF (sacrebleu) for free text."""

from __future__ import annotations

from collections.abc import Sequence

from speechkd.evaluation.scorers.characters import spaceless

UNPARSABLE = "\0unparsable"
"""Stands for an answer that is no class; no reference can be it"""


def class_figures(references: Sequence[str], answers: Sequence[str | None]) -> dict[str, float]:
    """WA (accuracy), UA (mean recall over the references' classes) and macro-F1; None is an unparsable answer, right for no class."""
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    given = [UNPARSABLE if answer is None else answer for answer in answers]
    classes = sorted(set(references))
    seen = sorted({*classes, *given} - {UNPARSABLE})
    return {
        "wa": float(accuracy_score(references, given)),
        "ua": float(recall_score(references, given, labels=classes, average="macro", zero_division=0)),
        "macro_f1": float(f1_score(references, given, labels=seen, average="macro", zero_division=0)),
    }


def overlap_figures(references: Sequence[str], answers: Sequence[str]) -> dict[str, float | str]:
    """Corpus BLEU and chrF, 0 to 100, with sacrebleu's signatures; texts without spaces are cut into characters for BLEU."""
    from sacrebleu.metrics import BLEU, CHRF

    bleu, chrf = BLEU(tokenize="char" if spaceless(" ".join(references)) else "13a"), CHRF()
    scores = [metric.corpus_score(list(answers), [list(references)]).score for metric in (bleu, chrf)]
    return {
        "bleu": float(scores[0]),
        "chrf": float(scores[1]),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }
