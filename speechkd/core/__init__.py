"""Types, configuration, files, seeds and errors shared by all packages; imports none of them."""
