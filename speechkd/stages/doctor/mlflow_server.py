"""The MLflow that metrics go to: reachable, healthy, recent, with a password, and willing to take this host's requests."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import sqlite3
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from packaging.version import InvalidVersion, Version

from speechkd.stages.doctor.finding import Finding
from speechkd.stages.doctor.packages import below_floor

CHECK = "mlflow"
ANSWER_S = 8.0
"""Seconds that the server may take, as the sender allows it"""
MOST_BYTES = 1 << 16
USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
VERSION, EXPERIMENTS, JOBS = "/version", "/api/2.0/mlflow/experiments/search", "/ajax-api/3.0/jobs/search"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    status: int
    text: str
    seconds: float


def check_mlflow(uri: str | None, env: Mapping[str, str] = os.environ) -> list[Finding]:
    """`uri`: where a recipe or MLFLOW_TRACKING_URI sends metrics; None: nowhere."""
    if uri is None:
        return [Finding(CHECK, "ok", "not used: metrics stay in each run's journal")]
    if uri.startswith("sqlite:///"):
        return [_file(Path(uri.removeprefix("sqlite:///")))]
    base = uri.rstrip("/")
    try:
        health = _ask(base + "/health")
    except (OSError, HTTPException) as error:
        return [
            Finding(CHECK, "fail", f"`{base}` is not reachable: {_reason(error)}", "is the server up, and this address right from here?")
        ]
    if health.status != 200:
        return [Finding(CHECK, "fail", f"`{base}/health` answers {health.status}: {health.text[:80]}", "see the server's log")]
    found = [Finding(CHECK, "ok", f"`{base}` is healthy, answers in {1000 * health.seconds:.0f} ms")]
    try:
        return [*found, *_access(base, env), *_version(base, _credentials(env))]
    except (OSError, HTTPException) as error:
        return [*found, Finding(CHECK, "fail", f"healthy, but then: {_reason(error)}", "the database behind it may be down: see its log")]


def _file(path: Path) -> Finding:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Finding(CHECK, "fail", f"`{folder}` is not writable", "choose another `tracking.uri`")
    if path.exists():
        try:
            with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=ANSWER_S) as connection:
                connection.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.Error as error:
            return Finding(CHECK, "fail", f"`{path}` is no readable sqlite file: {error}", "move it away, then `speechkd sync` each run")
    return Finding(CHECK, "ok", f"file `{path}`")


def _version(base: str, secret: Mapping[str, str]) -> list[Finding]:
    answer = _ask(base + VERSION, secret)
    if answer.status == 401:
        return []  # it tells only whom it knows, and that was said above
    try:
        version = str(Version(answer.text.strip()[:40]))
    except InvalidVersion:
        return [Finding(CHECK, "warn", "the server does not say which version it is", "is something else listening there?")]
    if reason := below_floor("mlflow", version):
        return [Finding(CHECK, "fail", f"the server is {version}, must be {reason}", "update the server (docker/images.env)")]
    return [Finding(CHECK, "ok", f"the server is {version}")]


def _access(base: str, env: Mapping[str, str]) -> list[Finding]:
    bare = _ask(base + EXPERIMENTS, {})
    if refused := _refused_host(base, bare):
        return [refused]
    secret = _credentials(env)
    found = []
    if bare.status == 200:
        way_out = "fine on one machine; for a team, start it with a password (docker/compose.yaml)"
        found.append(Finding(CHECK, "ok" if _loopback(base) else "warn", "it asks for no password", way_out if not _loopback(base) else ""))
    elif bare.status == 401 and not secret:
        return [Finding(CHECK, "fail", "it asks for a password, and none is given", f"set {USER} and {PASSWORD} (profile: `env_file`)")]
    elif bare.status != 401:
        return [Finding(CHECK, "fail", f"it answers {bare.status}: {bare.text[:120]}", "see the server's log")]
    if secret:
        answer = _ask(base + EXPERIMENTS, secret)
        if answer.status != 200:
            return [*found, Finding(CHECK, "fail", f"the password is refused ({answer.status})", f"correct {USER} and {PASSWORD}")]
        found.append(Finding(CHECK, "ok", "the password is accepted"))
        if urlsplit(base).scheme == "http" and not _loopback(base):
            found.append(Finding(CHECK, "warn", "the password travels unencrypted", "put TLS in front, and use https://"))
    if bare.status == 401 and _ask(base + JOBS, {}).status == 200:
        text = "it lists jobs to anyone, without the password (CVE-2026-0545)"
        found.append(Finding(CHECK, "fail", text, "start it with MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false, and update it"))
    return found


def _refused_host(base: str, answer: Answer) -> Finding | None:
    if answer.status != 403 or "Host header" not in answer.text:
        return None
    host = urlsplit(base).netloc
    return Finding(
        CHECK, "fail", f"it refuses requests to the name `{host}` (403)", f"start it with `--allowed-hosts {host}`, or use its address"
    )


def _credentials(env: Mapping[str, str]) -> dict[str, str]:
    if token := env.get(TOKEN):
        return {"Authorization": f"Bearer {token}"}
    if env.get(USER) and env.get(PASSWORD):
        return {"Authorization": "Basic " + base64.b64encode(f"{env[USER]}:{env[PASSWORD]}".encode()).decode()}
    return {}


def _loopback(base: str) -> bool:
    host = urlsplit(base).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ask(url: str, headers: Mapping[str, str] | None = None) -> Answer:
    """GET of a page, POST to an API; searches ask for one thing. Raises OSError where nothing answers within ANSWER_S."""
    query = {"max_results": 1} if url.endswith(EXPERIMENTS) else {}
    body = json.dumps(query).encode() if url.endswith((EXPERIMENTS, JOBS)) else None
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **(headers or {})})
    began = time.perf_counter()
    try:
        with _opener().open(request, timeout=ANSWER_S) as reply:
            status, data = reply.status, reply.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            status, data = error.code, error.read(MOST_BYTES)
    return Answer(status, " ".join(data.decode("utf-8", "replace").split()), time.perf_counter() - began)


def _opener() -> urllib.request.OpenerDirector:
    """Follows no redirect: that would carry the password to whoever it names."""
    opener = urllib.request.OpenerDirector()
    for kind in ("ProxyHandler", "HTTPHandler", "HTTPSHandler", "HTTPDefaultErrorHandler", "HTTPErrorProcessor"):
        opener.add_handler(getattr(urllib.request, kind)())
    return opener


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {ANSWER_S:.0f} s"
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason or cause}"
    return " ".join(str(cause).split())[:200] or type(cause).__name__
