"""The user's files: what they mean, and how their mistakes are told."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.errors import ConfigError
from loopbox.settings import (
    EgressSettings,
    NameSetting,
    ProjectSettings,
    ServiceSettings,
    UserSettings,
    parse_project,
    parse_user,
)
from loopbox.wire.tomlfile import find_line

FILE = Path("loopbox.toml")

FULL = """\
name = "shop"
branch = ""
forward = [5432, 6379, 5432]
admit = "anyone"

[names]
"Shop.Example.com." = 8000
"*.example.org" = true

[egress]
policy = "filter"
allow = ["pypi.org:443", "*.github.com"]
deny = ["10.0.0.0/8"]
via = "socks5://proxy:1080"
inspect = true
script = "my rules.py"

[services.db]
run = ["postgres", "-D", "data"]
ready = 5432

[services.web]
run = "python -m http.server 8000"
ready = 8000
cwd = "app"
after = ["db", "db"]
env = { DEBUG = "1", EMPTY = "" }

[box.r1]
loopback = ["10.255.0.1/32"]
[[link]]
ends = ["r1", "r2"]
"""


def test_every_setting_is_read() -> None:
    """One file with all settings, as values."""
    expected = ProjectSettings(
        name="shop",
        branch="",
        forward=(5432, 6379),
        admit="anyone",
        names=(NameSetting("shop.example.com", 8000), NameSetting("*.example.org", None)),
        egress=EgressSettings(
            policy="filter",
            allow=("pypi.org:443", "*.github.com"),
            deny=("10.0.0.0/8",),
            via="socks5://proxy:1080",
            inspect=True,
            script="my rules.py",
        ),
        services={
            "db": ServiceSettings("db", ("postgres", "-D", "data"), ready=5432),
            "web": ServiceSettings(
                "web",
                "python -m http.server 8000",
                ready=8000,
                env={"DEBUG": "1", "EMPTY": ""},
                cwd=PurePosixPath("app"),
                after=("db",),
            ),
        },
        lab={"box": {"r1": {"loopback": ["10.255.0.1/32"]}}, "link": [{"ends": ["r1", "r2"]}]},
    )

    assert expected == parse_project(FULL, path=FILE)


def test_windows_line_ends_and_a_bom_change_nothing() -> None:
    """A file saved by another system's editor means the same."""
    text = "\ufeff" + FULL.replace("\n", "\r\n")

    assert parse_project(FULL, path=FILE) == parse_project(text, path=FILE)


def test_empty_file_is_the_defaults() -> None:
    """Nothing written, nothing set."""
    assert ProjectSettings() == parse_project("", path=FILE)


def test_settings_in_pyproject() -> None:
    """[tool.loopbox] has the same keys; the rest of the file is not ours."""
    text = '[project]\nname = "x"\n[tool.loopbox]\nforward = [1]\n[tool.loopbox.names]\na = 80\n'

    expected = ProjectSettings(forward=(1,), names=(NameSetting("a", 80),))
    assert expected == parse_project(text, path=FILE, table=("tool", "loopbox"))
    assert ProjectSettings() == parse_project("", path=FILE, table=("tool", "loopbox"))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a = \n", "line 1: invalid value", "correct line 1"),
        ('a = """', "line 1: ", "correct line 1"),
        ("service.web.run = 'x'", "line 1: `service` is no sett", "did you mean `services`?"),
        ("nmae = 'x'", "line 1: `nmae` is no setting of loopbox", "did you mean `name`?"),
        ("\n\nname = 'Shop'", "line 3: `name` must be lower-case DNS", 'write name = "shop"'),
        ("name = 7", "line 1: `name` must be lower-case DNS", 'write name = "shop"'),
        ("forward = 'x'", "line 1: `forward` must be a list of ports", "write forward = [5432]"),
        ("forward = [0]", "line 1: `forward` must be a list of ports", "write forward = [5432]"),
        ("forward = [true]", "line 1: `forward` must be a list of por", "write forward = [5432]"),
        ("admit = 'all'", 'line 1: `admit` must be one of "owner", "anyone"', 'write admit = "ow'),
        ("egress = 1", "line 1: `egress` must be a table", "write [egress]"),
        (
            "[egress]\n# x\npolicy = 'no'",
            'line 3: `egress.policy` must be one of "open", "local", "none", "filter"',
            'write policy = "open"',
        ),
        ("[egress]\nalow = []", "line 2: `egress.alow` is no setting", "did you mean `allow`?"),
        ("[egress]\nallow = [\n 'a b',\n]", "line 2: `egress.allow` must be a list", "write allow"),
        ("[names]\n'a..b' = 1", "line 2: `names.a..b` is no host name", 'write "shop.exa'),
        ("[names]\n'a' = 1\n'A' = 2", "line 3: `names.A` is there twice", "keep one"),
        ("[names]\n'a.b' = 'x'", "line 2: `names.a.b` must be a port", 'write "a.b" = 8000'),
        ("[names]\n'a' = false", "line 2: `names.a` must be a port", "write a = 8000"),
        ("[services]\nweb = 1", "line 2: `services.web` must be a table", "write [services.web]"),
        ("[services.web]\nready = 1", "line 1: `services.web` has no `run`", 'add run = "COMM'),
        ("[services.web]\nrun = ''", "line 2: `services.web.run` must be a command", "write run"),
        ("[services.web]\nrun = []", "line 2: `services.web.run` must be a command", "write run"),
        (
            "[services.web]\nrun = 'x'\nenv = { A = 1 }",
            "line 3: `services.web.env` must be a table of texts",
            'write env = { DEBUG = "1" }',
        ),
        (
            "[services.web]\nrun = 'x'\nafter = ['dbs']\n[services.db]\nrun = 'y'",
            "line 3: `services.web.after` names no service: `dbs`",
            "did you mean `db`?",
        ),
        (
            "[services.a]\nrun='x'\nafter=['b']\n[services.b]\nrun='x'\nafter=['a']",
            "line 3: `services.a.after` makes a circle: `a` after `b` after `a`",
            "drop one of them",
        ),
        (
            "[services.a]\nrun='x'\nafter=['a']",
            "line 3: `services.a.after` makes a circle: `a` after `a`",
            "drop one of them",
        ),
        ('"\\u001b[31m" = 1', "line 1: `\\x1b[31m` is no setting of loopbox", "known here: "),
    ],
)
def test_mistakes_name_file_line_and_remedy(text: str, message: str, hint: str) -> None:
    """One line says where the mistake is and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        parse_project(text, path=FILE)

    expected = f"cannot read `loopbox.toml`: {message}"
    assert expected == caught.value.message[: len(expected)]
    assert hint == (caught.value.hint or "")[: len(hint)]


def test_lab_tables_are_left_to_the_lab() -> None:
    """What is wrong in [box.*] is not judged here."""
    settings = parse_project("[box.r1]\nnonsense = 1\n", path=FILE)

    assert dict(settings.lab) == {"box": {"r1": {"nonsense": 1}}}


def test_user_settings() -> None:
    """The user's config.toml has its own keys."""
    text = "shared_doors = false\nidle_seconds = 5\n[egress]\npolicy = 'none'\n"

    expected = UserSettings(
        shared_doors=False, idle_seconds=5.0, egress=EgressSettings(policy="none")
    )
    assert expected == parse_user(text, path=FILE)
    assert UserSettings() == parse_user("", path=FILE)


def test_long_chain_of_services_is_no_circle() -> None:
    """Ten thousand services in a row neither overflow nor take long."""
    lines = ["[services.s0]\nrun = 'x'\n"]
    lines += [f"[services.s{n}]\nrun = 'x'\nafter = ['s{n - 1}']\n" for n in range(1, 10_000)]

    assert len(parse_project("".join(lines), path=FILE).services) == 10_000


@given(st.text())
def test_any_text_gives_settings_or_one_printable_line(text: str) -> None:
    """Whatever is in the file, there is a value or a ConfigError with a hint."""
    try:
        parse_project(text, path=FILE)
    except ConfigError as error:
        assert error.message.isprintable()
        assert error.hint


scalars = st.none() | st.integers() | st.booleans() | st.text(max_size=5)
KEYS = ["name", "forward", "names", "egress", "services", "run", "after", "policy", "box", "x"]


@given(
    st.recursive(
        st.sampled_from(["1", "'x'", "[]", "true", "{}"]),
        lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, max_size=4).map(
            lambda table: "{" + ", ".join(f"{k} = {v}" for k, v in table.items()) + "}"
        ),
        max_leaves=12,
    ),
    st.sampled_from(KEYS),
)
def test_any_shape_gives_settings_or_a_config_error(value: str, key: str) -> None:
    """Right keys with values of the wrong kinds never raise anything else."""
    try:
        parse_project(f"{key} = {value}", path=FILE)
    except ConfigError as error:
        assert error.message.startswith("cannot read `loopbox.toml`: line 1: ")


LINES = """\
name = 1 # ["
text = \"\"\"
[a.b]
\"\"\"
# [a.b]
[a.b]
c.d = 1
[a."x y"]
e = [
  "name = 2",
]

[[link]]
ends = []
[[link]]
ends = [ ]
[link.more]
deep = 1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 1),
        (("text",), 2),
        (("a", "b"), 6),
        (("a", "b", "c"), 7),
        (("a", "b", "c", "d"), 7),
        (("a", "x y"), 8),
        (("a", "x y", "e"), 9),
        (("link",), 13),
        (("link", 0, "ends"), 14),
        (("link", 1, "ends"), 16),
        (("link", 1, "more", "deep"), 18),
        (("link", 1, "none"), 15),
        (("nothing", "here"), 1),
    ],
)
def test_lines_are_found(path: tuple[str | int, ...], line: int) -> None:
    """Headers, dotted and quoted keys, arrays of tables; else the nearest parent."""
    assert line == find_line(LINES, path)
