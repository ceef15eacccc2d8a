"""Asking the student, grading strictly, and showing what came out."""
