"""Clips: decoding, resampling, FLAC, and reading what nobody vouches for."""
