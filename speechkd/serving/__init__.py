"""Serves a distilled student over HTTP as chat engines do, and tells whether a server answers as an export does."""
