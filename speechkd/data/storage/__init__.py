"""Storage: folders and URLs, the local cache, manifests and deterministic tars."""
