"""Which name a project's box has, and which address on the host's loopback goes with it.

Owns: what a box's name may be, how one is inferred from a project, how a branch or a directory
is put in front so that two checkouts never share a box, and the draw of the box's address.

Must never: read a file, ask git, look at the clock. What a project's files say arrives as a
`ProjectFacts` (made by `kernel.projects`), who owns which name as a function.

Every input yields a valid name: what a DNS label cannot hold is replaced, and where replacing
could make two different inputs equal, a short hash of the input is added.

Example::

    identity = infer(facts, name=None, branch=None, owner_of=owners.get)
    # Identity(name="fix-ui.shop", directory=Path("/src/shop-2"), reason="package.json, branch …")
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from loopbox.errors import HostError, UsageError

LABEL_LIMIT: Final = 63
"""Octets in one DNS label (RFC 1035, section 2.3.4)."""

NAME_LIMIT: Final = 243
"""Characters in a box's name: a host name holds 253, and `.localhost` is added to it."""

NO_NAME: Final = "box"
"""The name of a project whose files and directories give nothing to name it by (`/`)."""

_RESERVED: Final = "localhost"
_LETTERS_AND_DIGITS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_LABEL_CHARACTERS: Final = _LETTERS_AND_DIGITS | {"-"}
_SEPARATORS: Final = frozenset("-_./ +")
"""Characters that become a hyphen without loss worth a hash: people expect `fix/ui` as `fix-ui`.
Two such branches that still meet are told apart by who owns the name (see `_candidates`)."""

_POOL_START: Final = int(IPv4Address("127.64.0.0"))
_POOL_SIZE: Final = 1 << 22
"""127.64.0.0/10. 127.0.0.0/16 stays out: the host's own programs live there."""


@dataclass(frozen=True, slots=True)
class NameSource:
    """A name that a file of the project states."""

    name: str
    """As written, with whatever characters the file's own rules allow."""
    file: Path


@dataclass(frozen=True, slots=True)
class ProjectFacts:
    """What a project's files say about its name; made by `kernel.projects.read_project`."""

    directory: Path
    """Where the command runs, absolute and without symbolic links."""
    git_root: Path | None = None
    """The nearest directory upwards that holds `.git`."""
    repository: str | None = None
    """Name of the repository's main checkout, which a linked worktree shares."""
    linked_worktree: bool = False
    branch: str | None = None
    """The whole branch name, None when detached or without git."""
    configured: NameSource | None = None
    """`name` of `loopbox.toml` or `[tool.loopbox]`; a valid box name already."""
    configured_branch: str | None = None
    """`branch` of the same tables; "" means: no prefix."""
    package: NameSource | None = None
    """The package's name by pyproject.toml, package.json, Cargo.toml or go.mod."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The box that belongs to a project."""

    name: str
    directory: Path
    """The project's own directory: two commands in one project agree on it."""
    reason: str
    """Where the name comes from, for people: "package.json", "branch `fix/ui`, package.json"."""


def infer(
    facts: ProjectFacts,
    *,
    name: str | None,
    branch: str | None,
    owner_of: Callable[[str], Path | None],
) -> Identity:
    """The name of this project's box.

    `name` and `branch` are the command line's (None: not given; `branch=""`: no prefix).
    `owner_of` tells which directory a box's name belongs to already, None when it is free. Once a
    directory owns one of its possible names it keeps it, also when a better one falls free.
    Raises UsageError when `name` is no box name.
    """
    directory = _project_directory(facts)
    if name is not None:
        return Identity(parse_box_name(name), directory, "--name")
    base, reason = _base_name(facts)
    wanted, option = (branch, "--branch") if branch is not None else (None, "")
    if wanted is None and facts.configured_branch is not None:
        wanted, option = facts.configured_branch, "`branch` of the configuration"
    if wanted is not None:
        if not wanted:
            return Identity(base, directory, reason)
        return Identity(_prefixed(slug(wanted), base), directory, f"{option}, {reason}")
    candidates = list(_candidates(facts, base=base, reason=reason, directory=directory))
    owners = [owner_of(candidate.name) for candidate in candidates]
    for candidate, owner in zip(candidates, owners, strict=True):
        if owner == directory:
            return candidate
    for candidate, owner in zip(candidates, owners, strict=True):
        if owner is None:
            return candidate
    return candidates[-1]


def _project_directory(facts: ProjectFacts) -> Path:
    """The directory that the name belongs to: the naming file's, else the git root's, else cwd."""
    for source in (facts.configured, facts.package):
        if source is not None:
            return source.file.parent
    return facts.git_root or facts.directory


def _base_name(facts: ProjectFacts) -> tuple[str, str]:
    """The name without any prefix, and where it comes from."""
    if facts.configured is not None:
        return facts.configured.name, facts.configured.file.name
    if facts.package is not None:
        return slug(_package_stem(facts.package)), facts.package.file.name
    if facts.git_root is not None:
        return slug(facts.repository or facts.git_root.name), "name of the git repository"
    return slug(facts.directory.name), "name of the directory"


def _package_stem(source: NameSource) -> str:
    """The part of a package's name that people say: no npm scope, no Go host, path or version."""
    if source.file.name == "go.mod":
        parts = [part for part in source.name.split("/") if part]
        if len(parts) > 1 and parts[-1][:1] == "v" and parts[-1][1:].isdigit():
            parts.pop()
        return parts[-1] if parts else ""
    if source.name.startswith("@") and "/" in source.name:
        return source.name.partition("/")[2]
    return source.name


def _candidates(
    facts: ProjectFacts, *, base: str, reason: str, directory: Path
) -> Iterator[Identity]:
    """The names this directory may have, best first; the last is never another directory's."""
    if not facts.linked_worktree:
        yield Identity(base, directory, reason)
    if facts.branch is not None:
        label = slug(facts.branch)
        yield Identity(_prefixed(label, base), directory, f"branch `{facts.branch}`, {reason}")
    label = short_hash(str(directory), digits=6)
    yield Identity(_prefixed(label, base), directory, f"hash of the directory, {reason}")


def _prefixed(label: str, base: str) -> str:
    """`label.base`, within the limit of a whole name: a base of many long labels loses its end."""
    name = f"{label}.{base}"
    if len(name) <= NAME_LIMIT:
        return name
    kept = name[: NAME_LIMIT - 10].rstrip(".-")
    if kept.rpartition(".")[2].startswith("xn--"):
        kept = kept.rpartition(".")[0]
    # "-" plus the hash could overflow the last label, ".h" plus the hash cannot.
    return f"{kept}.h{short_hash(name, digits=8)}"


def slug(text: str) -> str:
    """One DNS label for any text: lower-case letters, digits, inner hyphens, 1 to 63 characters.

    What is cut, or replaced by other than a hyphen for a separator, is answered for by a hash of
    the whole text at the end, so that two texts do not meet (48 bits).
    """
    lossy = False
    pieces: list[str] = []
    for character in text:
        lower = character.lower() if character.isascii() else ""
        if lower in _LETTERS_AND_DIGITS:
            pieces.append(lower)
        elif character in _SEPARATORS:
            pieces.append("-")
        else:
            lossy = True
            folded = unicodedata.normalize("NFKD", character).lower()
            pieces.append("".join(c for c in folded if c in _LETTERS_AND_DIGITS) or "-")
    label = "-".join(piece for piece in "".join(pieces).split("-") if piece)
    if label == _RESERVED:
        label = f"{label}-{NO_NAME}"
    if not text or (not label and not lossy):
        return NO_NAME
    if not lossy and len(label) <= LABEL_LIMIT:
        return label
    tail = short_hash(text, digits=12 if len(label) > LABEL_LIMIT else 6)
    kept = label[: LABEL_LIMIT - 1 - len(tail)].strip("-")
    return f"{kept}-{tail}" if kept else tail


def short_hash(text: str, *, digits: int) -> str:
    """The first hexadecimal digits of a hash of the text, the same on every machine and day."""
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2s(data, person=b"loopbox").hexdigest()[:digits]


def parse_box_name(text: str) -> str:
    """The text itself when it is a box's name: lower-case DNS labels with dots between them.

    Raises UsageError otherwise; its hint is the nearest valid name.
    """
    cause = _fault(text)
    if cause is None:
        return text
    shown = printable(text if len(text) <= 80 else text[:77] + "...")
    raise UsageError(
        f"cannot name a box `{shown}`: {cause}", hint=f"use `{nearest_name(text)}`", code="bad-name"
    )


def is_box_name(text: str) -> bool:
    """Whether the text is a valid name of a box."""
    return _fault(text) is None


def _fault(text: str) -> str | None:
    """Why the text is no box name, or None when it is one."""
    if not text:
        return "a name needs at least one character"
    if len(text) > NAME_LIMIT:
        return f"a name has at most {NAME_LIMIT} characters, this has {len(text)}"
    labels = text.split(".")
    for label in labels:
        cause = _label_fault(label)
        if cause is not None:
            return cause
    if labels[-1] == _RESERVED:
        return "`localhost` is added by itself" if len(labels) > 1 else "`localhost` is the host's"
    return None


def _label_fault(label: str) -> str | None:
    """Why the text is no label of a box's name, or None when it is one."""
    for is_faulty, cause in _LABEL_FAULTS:
        if is_faulty(label):
            return cause
    strange = sorted(set(label) - _LABEL_CHARACTERS)
    return f"`{printable(strange[0])}` is no letter a-z, digit, hyphen or dot" if strange else None


def _is_bad_punycode(label: str) -> bool:
    """Whether a browser would refuse the label for what it claims to encode (IDNA)."""
    if not label.startswith("xn--"):
        return False
    try:
        decoded = label[4:].encode("ascii").decode("punycode")
    except ValueError:
        return True
    return decoded.isascii() or not decoded.isprintable()


_LABEL_FAULTS: Final[tuple[tuple[Callable[[str], bool], str], ...]] = (
    (lambda label: not label, "two dots in a row, or one at an end, leave an empty label"),
    (lambda label: len(label) > LABEL_LIMIT, f"a label has at most {LABEL_LIMIT} characters"),
    (lambda label: any("A" <= c <= "Z" for c in label), "names are lower-case"),
    (lambda label: "-" in (label[0], label[-1]), "a label neither begins nor ends with a hyphen"),
    (_is_bad_punycode, "a label after `xn--` must be valid punycode"),
)


def nearest_name(text: str) -> str:
    """The valid box name that is most like the text; dots keep separating labels."""
    labels = [label for label in text.strip().lower().rstrip(".").split(".") if label]
    while labels and labels[-1] == _RESERVED:
        labels.pop()
    name = ".".join(slug(label) for label in labels)
    return name if is_box_name(name) else slug(text)


def printable(text: str) -> str:
    """The text with everything that could steer a terminal or break a line escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def box_address(name: str, *, uid: int, taken: Container[IPv4Address]) -> IPv4Address:
    """The box's address on the host's loopback, in 127.64.0.0/10.

    Drawn by a hash of user and name, so a box has the same address every day; the next free one
    when another box holds it. Never an address that ends in .0 or .255, which some programs take
    for a network or a broadcast. Raises HostError when `taken` holds every address.
    """
    digest = hashlib.blake2s(f"{uid}:{name}".encode(), person=b"loopbox", digest_size=8).digest()
    start = int.from_bytes(digest)
    for step in range(_POOL_SIZE):
        address = IPv4Address(_POOL_START + (start + step) % _POOL_SIZE)
        if address.packed[3] not in (0, 255) and address not in taken:
            return address
    raise HostError(
        f"cannot give box `{name}` an address: all of 127.64.0.0/10 is taken",
        hint="loopbox prune",
        code="no-free-address",
    )
