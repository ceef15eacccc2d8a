"""A recipe's method as parts of a run: its student, losses and live teachers, checked from configurations and tokenizers, then built."""
