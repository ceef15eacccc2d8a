"""A key of an earlier version is refused in one line that names the new one, by `speechkd check` as by every other verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from speechkd import cli
from speechkd.core.config import Config
from speechkd.recipe import recipe_data

ROOT = Path(__file__).parents[2]
OLD: dict[str, tuple[dict[str, Any], str]] = {
    "losses.*.roles": ({"losses": {"response_ce": {"roles": ["kd"]}}}, "key `roles` is now `streams`"),
    "student.mix": ({"student": {"mix": "last"}}, "key `mix` is now `encoder_states` (`all` is `weighted_sum`, `last` stays)"),
    "student.start": ({"student": {"start": "runs/old/export"}}, "key `start` is now `init_from`"),
    "data.corpora.*.mix": (
        {"data": {"corpora": [{"card": "shards/cards/minibabel.yaml", "mix": {"kd": 2}}]}},
        "key `mix` is now `weights`",
    ),
}


@pytest.mark.parametrize("key", OLD)
def test_check_names_the_new_key(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    over, answer = OLD[key]
    monkeypatch.chdir(ROOT)
    path = tmp_path / "recipe.yaml"
    data = recipe_data(Path("pipelines/meta_prompt_kd.yaml"))
    for block, keys in over.items():
        data[block] = {**data[block], **keys}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["speechkd", "check", str(path)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    message = capsys.readouterr().err.strip()
    assert leaving.value.code == 2 and message.count("\n") == 0, message
    assert answer in message and str(path) in message, message


def test_every_renamed_key_is_tried_here() -> None:
    def below(config: type[Config]) -> list[type[Config]]:
        return [config, *(found for child in config.__subclasses__() for found in below(child))]

    renamed = {old for config in below(Config) for old in config.RENAMED}
    assert renamed == {key.rpartition(".")[2] for key in OLD}
