"""Where ranks run: this machine, or a cluster described by a site profile."""
