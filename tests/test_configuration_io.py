"""The files of the configuration, and the page that describes them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hotpair.cluster import configuration_tables as tables
from hotpair.cluster.configuration_io import LARGEST_FILE_BYTES, BadKey, load_cluster, load_key, load_modules
from hotpair.cluster.configuration_keys import ConfigurationError
from tests.configuration_reference import marked, sections
from tests.test_configuration import CLUSTER, MODULE

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    (tmp_path / "modules").mkdir()
    return tmp_path


def add(home: Path, name: str, port: int, text: str = MODULE) -> None:
    (home / "modules" / f"{name}.toml").write_text(text.replace("5600", str(port)).replace("web", name))


def test_a_pair_and_its_modules(home: Path) -> None:
    pair = load_cluster(str(home))
    add(home, "web", 5600)
    add(home, "db", 5601)
    (home / "modules" / "web.toml~").write_text("an editor's")
    (home / "modules" / ".web.toml").write_text("an editor's")
    found = load_modules(str(home), pair)
    assert list(found.accepted) == ["db", "web"] and found.refused == {}
    assert found.accepted["db"].directory == "/vm/db"


def test_a_home_without_modules_has_none(home: Path) -> None:
    (home / "modules").rmdir()
    assert load_modules(str(home), load_cluster(str(home))).accepted == {}


def test_one_wrong_module_does_not_keep_the_others_from_running(home: Path) -> None:
    add(home, "db", 5601)
    add(home, "web", 5600, MODULE + "[mirror]\nchace = 1\n")
    add(home, "zoo", 5601)
    (home / "modules" / "latin.toml").write_bytes(b"# fine\n# gr\xfc\xdfe\n")
    found = load_modules(str(home), load_cluster(str(home)))
    assert list(found.accepted) == ["db"]
    assert "modules/web.toml, line 7: mirror.chace: there is no such key: did you mean cache?" in str(
        found.refused["web"]
    )
    assert "modules/zoo.toml, line 2: mirror_port: 5601 is the port of the module db" in str(found.refused["zoo"])
    assert "modules/latin.toml, line 2: this is not UTF-8" in str(found.refused["latin"])


def test_the_26th_module_is_refused(home: Path) -> None:
    for i in range(26):
        add(home, f"m{i:02}", 5600 + i)
    found = load_modules(str(home), load_cluster(str(home)))
    assert len(found.accepted) == 25 and list(found.refused) == ["m25"]
    assert "at most 25 modules" in str(found.refused["m25"])


def test_a_file_that_is_missing_or_too_large_is_said(home: Path) -> None:
    (home / "cluster.toml").write_bytes(b"#" * (LARGEST_FILE_BYTES + 1))
    with pytest.raises(ConfigurationError, match="more than 1048576 bytes"):
        load_cluster(str(home))
    (home / "cluster.toml").unlink()
    with pytest.raises(ConfigurationError, match=r"cluster.toml: it cannot be read: No such file"):
        load_cluster(str(home))
    (home / "modules").rmdir()
    (home / "modules").write_text("")
    with pytest.raises(ConfigurationError, match="modules: it cannot be read"):
        load_modules(str(home), None)  # type: ignore[arg-type]


# ---- the key


def key_file(path: Path, text: str, mode: int = 0o600) -> str:
    file = path / "pair.key"
    file.write_text(text)
    os.chmod(file, mode)
    return str(file)


def test_a_key(tmp_path: Path) -> None:
    assert load_key(key_file(tmp_path, "0F" * 32 + "\n")) == b"\x0f" * 32


@pytest.mark.parametrize(
    "text", ["", "0f" * 31, "0f" * 33, "0g" * 32, "00" * 32, "0f " * 32, "0f" * 32 + "\n0f", "ü" * 64]
)
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadKey, match="64 hexadecimal digits: openssl rand -hex 32") as caught:
        load_key(key_file(tmp_path, text))
    assert "0f0f" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(BadKey, match="chmod 600"):
        load_key(key_file(tmp_path, "0f" * 32, mode))


def test_a_key_that_is_missing_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match="openssl rand -hex 32"):
        load_key(str(tmp_path / "none"))


# ---- the documentation


@pytest.mark.parametrize("section", sections())
def test_the_page_shows_the_tables_of_the_code(section: str) -> None:
    """If this fails: python tests/configuration_reference.py docs/configuration.md"""
    assert marked(PAGE.read_text(encoding="utf-8"))[section] == sections()[section]


def test_the_page_describes_nothing_that_is_not_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert set(marked(page)) == set(sections())
    assert f"at most {tables.CHECKERS_PER_MODULE}\n" in page
    formula = re.search(r"pulse_s \+ ([0-9.]+) \+ fence_after_s \+ vm_kill_s \+ ([0-9.]+)  <  timeout_s", page)
    assert formula is not None
    assert (float(formula[1]), float(formula[2])) == (tables.PROBE_INTERVAL_S, tables.MARGIN_S)
    for words in (tables.ACTIONS, tables.ARBITRATION[0].kind):
        for word in re.findall(r'"([a-z]+)"', words.accepted):
            assert f"| `{word}` | " in page
