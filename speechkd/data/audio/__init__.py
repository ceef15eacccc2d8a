"""Audio clips: decoding under limits, resampling, FLAC encoding and decoding."""
