"""What a run reads: the corpora, columns and prompt of a recipe, as training sources."""
