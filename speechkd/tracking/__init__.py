"""Run tracking: a local journal that is always written, and a sender that forwards it to MLflow."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import field_validator

from speechkd.core.config import Config


class TrackingConfig(Config):
    """Where metrics go besides the journal, which is always written."""

    uri: str | None = None
    """`sqlite:///path.db`, `http://...` or `https://...`; None: no MLflow. Credentials come from MLFLOW_TRACKING_USERNAME and _PASSWORD"""
    experiment: str = "speechkd"
    prometheus_dir: str | None = None
    """folder of a node exporter's textfile collector; the run's text file is written there, too"""

    @field_validator("uri")
    @classmethod
    def _known_scheme_without_credentials(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        if not uri.startswith(("sqlite:///", "http://", "https://")):
            raise ValueError("tracking uri must start with `sqlite:///`, `http://` or `https://`")
        if "@" in urlsplit(uri).netloc:  # it would be saved in the run folder, the resolved recipe and the logs
            raise ValueError("tracking uri must not hold credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return uri
