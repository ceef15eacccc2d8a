"""Types, configuration, files, seeds and errors that every room shares; imports nothing of ours."""
