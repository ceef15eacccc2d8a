"""The object store that a recipe reads shards from: reachable, and what these credentials may do there."""

from __future__ import annotations

import time
import uuid

from speechkd.core.errors import InputError
from speechkd.data.storage.store import Unreachable, UrlPath, create, list_folder, parse_location, remove
from speechkd.stages.doctor.finding import Finding

CHECK = "object store"
CREDENTIALS = "see the endpoint and credentials in the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...)"


def check_store(url: str) -> list[Finding]:
    """List the location, then write, read back and remove one small object, as `shard` and `teach` do."""
    try:
        location = parse_location(url)
    except InputError as error:
        return [Finding(CHECK, "fail", str(error))]
    if not isinstance(location, UrlPath):
        return [Finding(CHECK, "ok", f"`{url}` is a folder")]
    began = time.perf_counter()
    try:
        list_folder(location)
    except (Unreachable, OSError) as error:
        return [Finding(CHECK, "fail", _short(error), CREDENTIALS)]
    seconds = time.perf_counter() - began
    found = [Finding(CHECK, "ok", f"`{location}` answers in {1000 * seconds:.0f} ms")]
    if location.url.startswith("http"):
        return [*found, Finding(CHECK, "ok", "read only, as every http:// location")]
    return [*found, _written(location)]


def _written(location: UrlPath) -> Finding:
    probe = location / f".speechkd-doctor-{uuid.uuid4().hex}"
    data = probe.name.encode()
    try:
        create(probe, data)
    except (OSError, NotImplementedError) as error:
        return Finding(CHECK, "warn", f"cannot be written: {_short(error)}", "enough for training; `shard` and `teach` need to write")
    try:
        same = probe.read_bytes() == data
        try:
            create(probe, data)
            once = False
        except FileExistsError:
            once = True
    finally:
        remove(probe)
    if not same:
        return Finding(CHECK, "fail", "an object read back differs from what was written", "use another store")
    if not once:
        return Finding(CHECK, "warn", "writes over existing objects when told not to (If-None-Match)", "let one writer shard at a time")
    return Finding(CHECK, "ok", "writes, reads back, refuses to replace, removes")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
