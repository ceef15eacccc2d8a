"""What doctor says of an MLflow that is away, silent, old, locked, open or picky about names; and of a real one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from speechkd.stages.doctor import mlflow_server
from speechkd.stages.doctor.finding import Finding
from speechkd.stages.doctor.mlflow_server import EXPERIMENTS, JOBS, PASSWORD, USER, check_mlflow
from tests.stages.doctor.servers import Reply, answering, silent

HEALTHY: dict[str, Reply] = {"/health": (200, "OK"), "/version": (200, "3.17.2")}
CANARY = "pw-canary-81f3"
ROOT = Path(__file__).parents[3]
SECRET = {USER: "me", PASSWORD: CANARY}


def problems(found: list[Finding]) -> str:
    assert CANARY not in " ".join(finding.line() for finding in found)
    return "\n".join(finding.line() for finding in found if finding.level != "ok")


def locked(headers: Mapping[str, str]) -> Reply:
    return (200, "{}") if headers.get("Authorization", "").startswith("Basic ") else (401, "You are not authenticated")


def test_no_server_is_no_problem_and_a_file_is_looked_at(tmp_path: Path) -> None:
    assert not problems(check_mlflow(None, {}))
    assert not problems(check_mlflow(f"sqlite:///{tmp_path}/sub/mlflow.db", {}))
    (tmp_path / "torn.db").write_bytes(b"not a database, but long enough to be looked at" * 99)
    assert "no readable sqlite file" in problems(check_mlflow(f"sqlite:///{tmp_path}/torn.db", {}))


def test_a_server_that_is_away_is_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert "not reachable: [Errno 111] Connection refused" in problems(check_mlflow(f"http://127.0.0.1:{taken.getsockname()[1]}", {}))


def test_a_server_that_accepts_and_stays_silent_is_a_failure_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_server, "ANSWER_S", 0.5)
    with answering({"/health": silent(3)}) as server:
        began = time.monotonic()
        assert "no answer within" in problems(check_mlflow(server.url, {})) and time.monotonic() - began < 2
    with answering({**HEALTHY, EXPERIMENTS: silent(3)}) as server:
        assert "healthy, but then: no answer" in problems(check_mlflow(server.url, {}))


def test_a_refused_host_name_is_told_from_a_refused_password() -> None:
    with answering({**HEALTHY, EXPERIMENTS: (403, "Invalid Host header - possible DNS rebinding attack detected")}) as server:
        found = problems(check_mlflow(server.url, SECRET))
    assert "refuses requests to the name `127.0.0.1:" in found and "--allowed-hosts" in found


def test_a_password_is_asked_for_taken_or_refused() -> None:
    with answering({**HEALTHY, EXPERIMENTS: locked}) as server:
        assert "none is given" in problems(check_mlflow(server.url, {}))
        assert not problems(check_mlflow(server.url, SECRET))
    with answering({**HEALTHY, EXPERIMENTS: (401, "You are not authenticated")}) as server:
        assert "the password is refused (401)" in problems(check_mlflow(server.url, SECRET))


def test_jobs_that_need_no_password_are_a_failure() -> None:
    with answering({**HEALTHY, EXPERIMENTS: locked, JOBS: (200, '{"jobs": []}')}) as server:
        assert "CVE-2026-0545" in problems(check_mlflow(server.url, SECRET))


def test_an_old_server_is_a_failure_with_the_reason() -> None:
    with answering({"/health": (200, "OK"), "/version": (200, "3.9.0"), EXPERIMENTS: (200, "{}")}) as server:
        assert "the server is 3.9.0, must be >3.10.1: CVE-2026-2614" in problems(check_mlflow(server.url, {}))


def test_a_redirect_does_not_get_the_password() -> None:
    with answering({"/stolen": (200, "{}")}) as thief:
        moved: Reply = (302, f"{thief.url}/stolen")
        with answering({**HEALTHY, EXPERIMENTS: lambda headers: moved if "Authorization" in headers else (401, "")}) as server:
            assert "the password is refused (302)" in problems(check_mlflow(server.url, SECRET))
        assert thief.headers_seen == []


@pytest.mark.system
def test_the_server_of_the_container_has_a_password_and_allowed_hosts(tmp_path: Path) -> None:
    """docker/mlflow.sh, on files instead of PostgreSQL and S3: MLflow's own answers are the ones that the checks look for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("mlflow_admin_password", "mlflow_session_key", "postgres_password", "object_store_key"):
        (tmp_path / name).write_text(CANARY)
    settings = (ROOT / "docker/basic_auth.ini").read_text()
    (tmp_path / "auth.ini").write_text(settings.replace("postgresql+psycopg2://mlflow@postgres/mlflow", f"sqlite:///{tmp_path}/auth.db"))
    env = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "SECRETS": str(tmp_path), "LISTEN": "127.0.0.1", "PORT": str(port)}
    env |= {"BACKEND_STORE_URI": f"sqlite:///{tmp_path}/x.db", "ARTIFACTS": str(tmp_path / "artifacts"), "WORKERS": "1"}
    env |= {"ALLOWED_HOSTS": f"127.0.0.1:{port}", "ALLOWED_ORIGINS": f"http://127.0.0.1:{port}"}
    env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(["bash", ROOT / "docker/mlflow.sh"], env={**os.environ, **env}, stdout=log, stderr=log)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
        while "not reachable" in problems(check_mlflow(url, {})):
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
        assert "none is given" in problems(check_mlflow(url, {}))
        assert not problems(check_mlflow(url, {USER: "admin", PASSWORD: CANARY}))
        assert "the password is refused" in problems(check_mlflow(url, {USER: "admin", PASSWORD: "wrong"}))
        arguments = Path(f"/proc/{server.pid}/cmdline").read_text()
        assert "mlflow" in arguments and CANARY not in arguments and CANARY not in (tmp_path / "log").read_text()
        assert "refuses requests to the name `localhost" in problems(check_mlflow(f"http://localhost:{port}", {}))
    finally:
        server.terminate()
        server.wait()
