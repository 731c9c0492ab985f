"""Names of boxes: inference, prefixes, slugs, addresses."""

from __future__ import annotations

import string
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from loopbox.errors import UsageError
from loopbox.rules import naming
from loopbox.rules.naming import Identity, NameSource, ProjectFacts

SHOP = Path("/src/shop")
SECOND = Path("/src/shop-2")

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True).filter(
    lambda label: not label.startswith("xn--")
)


def nobody(name: str) -> Path | None:
    """Owns nothing."""
    return None


def owned(names: dict[str, Path]) -> Callable[[str], Path | None]:
    """A register of owners."""
    return names.get


def shop(**changes: object) -> ProjectFacts:
    """A git checkout of package `shop` on branch `main`, with changes."""
    values: dict[str, object] = {
        "directory": SHOP,
        "git_root": SHOP,
        "repository": "shop",
        "branch": "main",
        "package": NameSource("shop", SHOP / "package.json"),
    } | changes
    return ProjectFacts(**values)  # type: ignore[arg-type]


def name_of(facts: ProjectFacts, **options: object) -> str:
    """The inferred name alone."""
    values: dict[str, object] = {"name": None, "branch": None, "owner_of": nobody} | options
    return naming.infer(facts, **values).name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (shop(), "shop"),
        (shop(package=None), "shop"),
        (shop(package=None, repository="Shop.git Copy"), "shop-git-copy"),
        (ProjectFacts(directory=Path("/home/u/My Shop_2")), "my-shop-2"),
        (ProjectFacts(directory=Path("/")), "box"),
        (ProjectFacts(directory=Path("/tmp/localhost")), "localhost-box"),
        (shop(configured=NameSource("api.till", SHOP / "loopbox.toml")), "api.till"),
        (shop(package=NameSource("@acme/web", SHOP / "package.json")), "web"),
        (shop(package=NameSource("My.Shop_App", SHOP / "pyproject.toml")), "my-shop-app"),
        (shop(package=NameSource("github.com/acme/till/v2", SHOP / "go.mod")), "till"),
        (shop(package=NameSource("github.com/acme/till", SHOP / "go.mod")), "till"),
        (shop(package=NameSource("v2", SHOP / "go.mod")), "v2"),
    ],
)
def test_name_comes_from_the_first_source_that_states_one(
    facts: ProjectFacts, expected: str
) -> None:
    """Configuration beats package, package beats repository, repository beats directory."""
    assert expected == name_of(facts)


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        ("fix-ui", "fix-ui.shop"),
        ("fix/ui", "fix-ui.shop"),
        ("feature/auth", "feature-auth.shop"),
        ("Feature/AUTH_2", "feature-auth-2.shop"),
        ("release/1.2", "release-1-2.shop"),
    ],
)
def test_linked_worktree_puts_the_whole_branch_in_front(branch: str, expected: str) -> None:
    """A linked worktree is named by its whole branch, not by the last part of it."""
    assert expected == name_of(shop(linked_worktree=True, branch=branch))


def test_detached_worktree_puts_a_hash_in_front() -> None:
    """Without a branch the directory's hash tells a worktree apart."""
    label = naming.short_hash(str(SHOP), digits=6)

    assert f"{label}.shop" == name_of(shop(linked_worktree=True, branch=None))


def test_second_checkout_gets_its_branch_in_front() -> None:
    """Another directory owns the name, so this one is told apart by its branch."""
    second = shop(directory=SECOND, git_root=SECOND, package=None)

    assert name_of(second, owner_of=owned({"shop": SHOP})) == "main.shop"


def test_third_checkout_on_the_same_branch_gets_a_hash() -> None:
    """Name and branch are both owned by others: the directory decides."""
    third = shop(directory=Path("/src/3"), git_root=Path("/src/3"), package=None)
    label = naming.short_hash("/src/3", digits=6)

    found = name_of(third, owner_of=owned({"shop": SHOP, "main.shop": SECOND}))

    assert f"{label}.shop" == found


def test_directory_keeps_its_name_when_a_better_one_falls_free() -> None:
    """A name given once stays until the box is gone."""
    second = shop(directory=SECOND, git_root=SECOND, package=None)

    assert name_of(second, owner_of=owned({"main.shop": SECOND})) == "main.shop"


@pytest.mark.parametrize(
    ("options", "facts", "expected"),
    [
        ({"name": "till"}, shop(linked_worktree=True), "till"),
        ({"branch": ""}, shop(linked_worktree=True), "shop"),
        ({"branch": "New/Idea"}, shop(), "new-idea.shop"),
        ({}, shop(configured_branch="", linked_worktree=True), "shop"),
        ({}, shop(configured_branch="demo"), "demo.shop"),
        ({"branch": "x"}, shop(configured_branch="demo"), "x.shop"),
    ],
)
def test_options_override_the_guess(
    options: dict[str, object], facts: ProjectFacts, expected: str
) -> None:
    """--name beats all, --branch sets or removes the prefix, also from the configuration."""
    assert expected == name_of(facts, **options, owner_of=owned({"shop": Path("/other")}))


def test_identity_tells_directory_and_reason() -> None:
    """The directory is that of the file which gave the name, the reason names the file."""
    facts = shop(directory=SHOP / "src" / "app")

    assert Identity("shop", SHOP, "package.json") == naming.infer(
        facts, name=None, branch=None, owner_of=nobody
    )


@given(
    name=st.text(),
    branch=st.none() | st.text(),
    directory=st.text(st.characters(exclude_characters="/\0"), min_size=1),
    configured=st.none() | st.lists(labels, min_size=1, max_size=4).map(".".join),
    linked=st.booleans(),
)
@example(name="\ud800", branch="\udc80", directory="x", configured=None, linked=True)
def test_every_project_gets_a_valid_name(
    name: str, branch: str | None, directory: str, configured: str | None, linked: bool
) -> None:
    """Whatever files, branches and directories are called, the box's name is valid."""
    root = Path("/") / directory
    if configured is not None:
        assume(naming.is_box_name(configured))
    facts = ProjectFacts(
        directory=root,
        git_root=root,
        branch=branch,
        linked_worktree=linked,
        package=NameSource(name, root / "package.json"),
        configured=NameSource(configured, root / "loopbox.toml") if configured else None,
    )

    found = name_of(facts)

    assert found == naming.parse_box_name(found)


@given(st.text(), st.text())
@example("a" * 64, "a" * 65)
@example("ü", "ö")
@example("ü", "u")
@example("K", "\u212a")
def test_slugs_differ_where_more_than_case_and_separators_differ(left: str, right: str) -> None:
    """Two branch names meet only when they differ in ASCII case and separators alone."""

    def plain(text: str) -> str:
        lower = "".join(c.lower() if c.isascii() else c for c in text)
        for separator in "_./ +":
            lower = lower.replace(separator, "-")
        return "-".join(part for part in lower.split("-") if part)

    assume(plain(left) != plain(right))
    assume("box" not in (plain(left), plain(right)))

    assert naming.slug(left) != naming.slug(right)


@given(st.text(string.ascii_lowercase + "/", min_size=64, max_size=300))
def test_long_branches_are_cut_with_a_hash(branch: str) -> None:
    """A label is never longer than DNS allows."""
    assert len(naming.slug(branch)) <= naming.LABEL_LIMIT


@given(st.lists(labels, min_size=1, max_size=3).map(".".join))
def test_valid_names_parse_to_themselves(name: str) -> None:
    """Lower-case DNS labels are taken as they are."""
    assume(not name.endswith("localhost"))

    assert name == naming.parse_box_name(name)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "use `box`"),
        ("Shop", "use `shop`"),
        ("shop.", "use `shop`"),
        (".shop", "use `shop`"),
        ("a..b", "use `a.b`"),
        ("-shop", "use `shop`"),
        ("my_shop", "use `my-shop`"),
        ("shop.localhost", "use `shop`"),
        ("localhost", "use `localhost-box`"),
        ("shop\n", "use `shop`"),
        ("xn--a", "use `xn-a`"),
    ],
)
def test_invalid_names_are_refused_with_the_nearest_valid_one(text: str, hint: str) -> None:
    """A wrong name on the command line is refused, and the hint can be typed as it is."""
    with pytest.raises(UsageError) as caught:
        naming.parse_box_name(text)

    assert hint == caught.value.hint


@given(st.text())
def test_parse_refuses_with_a_usage_error_and_one_printable_line(text: str) -> None:
    """Hostile names never steer the terminal, and the hint is itself valid."""
    try:
        naming.parse_box_name(text)
    except UsageError as error:
        hint = error.hint or ""
        assert error.message.isprintable()
        assert naming.is_box_name(hint.removeprefix("use `").removesuffix("`"))


def test_address_is_stable() -> None:
    """The same user and name have the same address on every machine and day."""
    assert IPv4Address("127.106.206.39") == naming.box_address("shop", uid=1000, taken=set())


def test_users_and_names_have_different_addresses() -> None:
    """The draw depends on user and name."""
    drawn = {
        naming.box_address(name, uid=uid, taken=set())
        for name in ("shop", "fix-ui.shop")
        for uid in (0, 1000)
    }

    assert len(drawn) == 4


@given(st.text(), st.integers(0, 2**32 - 1))
def test_addresses_lie_in_the_pool(name: str, uid: int) -> None:
    """Every address is in 127.64.0.0/10 and looks like no network and no broadcast."""
    address = naming.box_address(
        name.encode("utf-8", "replace").decode(), uid=uid, taken=frozenset()
    )

    assert address in IPv4Network("127.64.0.0/10")
    assert address.packed[3] not in (0, 255)


def test_taken_addresses_are_passed_over() -> None:
    """A thousand boxes with the same hash would still get a thousand addresses."""
    taken: set[IPv4Address] = set()
    for _ in range(1000):
        taken.add(naming.box_address("shop", uid=1, taken=taken))

    assert len(taken) == 1000
