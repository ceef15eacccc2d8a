"""What a run reads: opens the corpora, teacher columns and prompt of a recipe and makes training batches of them."""
