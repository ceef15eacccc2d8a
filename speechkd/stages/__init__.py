"""The stages behind the verbs: each joins rooms, says what it does, skips what is done, and can be killed and run again."""
