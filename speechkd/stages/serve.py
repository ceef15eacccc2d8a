"""`speechkd serve EXPORT`: answers questions about sound over HTTP, in the form that OpenAI's clients speak."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

from speechkd.core.errors import InputError
from speechkd.core.log import say
from speechkd.data.training_range import read_range
from speechkd.models.exported import load_student
from speechkd.serving.app import Serving, make_app


def serve(export: Path, host: str, port: int, serving: Serving, key_env: str | None) -> None:
    """Serve until a signal ends it; running questions are answered first. Raises InputError for an export or key that cannot be used."""
    import uvicorn

    key = None
    if key_env is not None:
        key = os.environ.get(key_env)
        if not key:
            raise InputError(f"--key-env {key_env}: the environment has no such variable, or it is empty")
    if serving.transcribe is not None:
        if not serving.transcribe.strip():
            raise InputError("--transcribe needs the question that asks for the words")
        if importlib.util.find_spec("python_multipart") is None:
            raise InputError("--transcribe reads forms, which needs python-multipart: pip install 'speechkd[serving]'")
    app = make_app(load_student(export), replace(serving, key=key, trained_on=read_range(export)))
    say(f"serve: `{export}` as `{serving.model}` on http://{host}:{port}/v1 (health: /health, metrics: /metrics)")
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=30)
