"""Bytes at rest: folders and URLs, the local cache, deterministic tars."""
