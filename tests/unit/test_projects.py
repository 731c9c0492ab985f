"""Projects on disk: package files, git checkouts, linked worktrees."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loopbox.errors import ConfigError
from loopbox.kernel.projects import read_project, read_settings_file, read_user_settings
from loopbox.rules.naming import NameSource, infer
from loopbox.settings import UserSettings

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def write(directory: Path, files: dict[str, str]) -> Path:
    """Writes the files below the directory."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def git(directory: Path, *words: str) -> None:
    """Runs git there with an identity of its own."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.com",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.com",
    }
    subprocess.run(["git", *words], cwd=directory, check=True, env=environment, capture_output=True)


def repository(directory: Path, files: dict[str, str] | None = None) -> Path:
    """A git repository with one commit on branch `main`."""
    directory.mkdir(parents=True)
    git(directory, "init", "-q", "-b", "main")
    write(directory, files or {"README": "shop\n"})
    git(directory, "add", ".")
    git(directory, "commit", "-q", "-m", "begin")
    return directory


def name_of(directory: Path) -> str:
    """The name that the files alone lead to."""
    return infer(
        read_project(directory).facts, name=None, branch=None, owner_of=lambda name: None
    ).name


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "place"),
        ({"go.mod": "// top\nmodule example.com/acme/till // our till\n"}, "till"),
        ({"Cargo.toml": '[package]\nname = "oxide"\n'}, "oxide"),
        ({"Cargo.toml": "[workspace]\nmembers = []\n"}, "place"),
        ({"package.json": '{"name": "@acme/web"}'}, "web"),
        ({"package.json": '{"name": 7}', "go.mod": "module till"}, "till"),
        ({"package.json": '{"name"', "Cargo.toml": "[", "go.mod": "module"}, "place"),
        ({"pyproject.toml": '[tool.poetry]\nname = "Verse"\n'}, "verse"),
        ({"pyproject.toml": '[project]\nname = "Shop_Py"\n', "package.json": "{}"}, "shop-py"),
        ({"pyproject.toml": '[tool.loopbox]\nname = "a.b"\n[project]\nname = "c"\n'}, "a.b"),
        ({"loopbox.toml": 'name = "x"', "pyproject.toml": '[tool.loopbox]\nname = "y"'}, "x"),
        ({"loopbox.toml": "forward = [1]", "package.json": '{"name": "web"}'}, "web"),
        ({"pyproject.toml": 'nonsense loopbox = "', "package.json": '{"name": "web"}'}, "web"),
    ],
)
def test_name_comes_from_the_files(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    """Each kind of package file is understood; broken ones of other tools are passed over."""
    assert expected == name_of(write(tmp_path / "place", files) if files else place(tmp_path))


def place(tmp_path: Path) -> Path:
    """An empty directory called `place`."""
    path = tmp_path / "place"
    path.mkdir()
    return path


def test_without_git_only_the_directory_itself_counts(tmp_path: Path) -> None:
    """A stray package.json further up names nothing."""
    write(tmp_path, {"package.json": '{"name": "stray"}', "place/a": ""})

    assert name_of(tmp_path / "place") == "place"


def test_a_directory_called_like_a_file_is_no_file(tmp_path: Path) -> None:
    """A directory or a FIFO by the name of a package file is passed over without blocking."""
    (tmp_path / "place" / "package.json").mkdir(parents=True)
    os.mkfifo(tmp_path / "place" / "go.mod")

    assert name_of(tmp_path / "place") == "place"


@needs_git
def test_git_root_names_every_directory_below(tmp_path: Path) -> None:
    """A command in a subdirectory means the same project."""
    shop = write(repository(tmp_path / "shop"), {"src/app/main.py": ""})

    project = read_project(shop / "src" / "app")

    assert (shop, "shop", False, "main") == (
        project.facts.git_root,
        project.facts.repository,
        project.facts.linked_worktree,
        project.facts.branch,
    )
    assert name_of(shop / "src" / "app") == "shop"


@needs_git
def test_nearest_package_below_the_git_root_wins(tmp_path: Path) -> None:
    """In a repository of many packages each has its own box."""
    files = {"package.json": '{"name": "all"}', "packages/web/package.json": '{"name": "web"}'}
    shop = repository(tmp_path / "shop", files)

    assert (name_of(shop), name_of(shop / "packages" / "web")) == ("all", "web")


@needs_git
def test_linked_worktree_is_found_with_its_branch(tmp_path: Path) -> None:
    """A worktree made by git shares the repository's name and has its own branch."""
    shop = repository(tmp_path / "shop")
    git(shop, "worktree", "add", "-q", "-b", "fix/ui", "../elsewhere")

    facts = read_project(tmp_path / "elsewhere").facts

    assert (tmp_path / "elsewhere", "shop", True, "fix/ui") == (
        facts.git_root,
        facts.repository,
        facts.linked_worktree,
        facts.branch,
    )
    assert name_of(tmp_path / "elsewhere") == "fix-ui.shop"


@needs_git
def test_detached_worktree_has_no_branch(tmp_path: Path) -> None:
    """A detached worktree is told apart by its directory."""
    shop = repository(tmp_path / "shop")
    git(shop, "worktree", "add", "-q", "--detach", "../detached")

    facts = read_project(tmp_path / "detached").facts

    assert (facts.linked_worktree, facts.branch) == (True, None)


@needs_git
def test_worktree_of_a_bare_repository(tmp_path: Path) -> None:
    """`shop.git` and its worktrees are called shop."""
    shop = repository(tmp_path / "shop")
    git(tmp_path, "clone", "-q", "--bare", "shop", "bare/shop.git")
    git(tmp_path / "bare" / "shop.git", "worktree", "add", "-q", "../../tree", "main")
    assert shop.exists()

    assert name_of(tmp_path / "tree") == "main.shop"


@needs_git
def test_submodule_is_a_project_of_its_own(tmp_path: Path) -> None:
    """A submodule's `.git` is a file too, but no worktree."""
    repository(tmp_path / "part")
    shop = repository(tmp_path / "shop")
    git(shop, "-c", "protocol.file.allow=always", "submodule", "add", "-q", "../part", "part")

    facts = read_project(shop / "part").facts

    assert (shop / "part", "part", False) == (
        facts.git_root,
        facts.repository,
        facts.linked_worktree,
    )


def test_broken_git_file_is_a_plain_root(tmp_path: Path) -> None:
    """A `.git` that says nothing useful still ends the walk."""
    write(tmp_path, {"place/.git": "nonsense", "place/sub/a": ""})

    assert name_of(tmp_path / "place" / "sub") == "place"


def test_masked_git_directory_is_passed_over(tmp_path: Path) -> None:
    """An empty directory `.git` is no repository."""
    (tmp_path / "place" / ".git").mkdir(parents=True)

    assert read_project(tmp_path / "place").facts.git_root is None


def test_settings_come_with_their_file(tmp_path: Path) -> None:
    """The settings file names the project and is told."""
    shop = write(tmp_path / "shop", {"loopbox.toml": 'name = "till"\nforward = [5432]\n'})

    project = read_project(shop)

    assert NameSource("till", shop / "loopbox.toml") == project.facts.configured
    assert (shop / "loopbox.toml", (5432,)) == (project.settings_file, project.settings.forward)


def test_mistake_in_the_settings_names_the_file_and_line(tmp_path: Path) -> None:
    """A wrong loopbox.toml stops the command with one line."""
    shop = write(tmp_path / "shop", {"loopbox.toml": '\nname = "Shop"\n'})

    with pytest.raises(ConfigError) as caught:
        read_project(shop)

    assert caught.value.message.startswith(f"cannot read `{shop / 'loopbox.toml'}`: line 2: `name`")


def test_file_that_is_not_text_names_the_line(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are reported, not raised as a decoding error."""
    (tmp_path / "loopbox.toml").write_bytes(b'name = "x"\n# \xff\n')

    with pytest.raises(ConfigError) as caught:
        read_settings_file(tmp_path / "loopbox.toml")

    expected = f"cannot read `{tmp_path / 'loopbox.toml'}`: line 2: it is not UTF-8"
    assert expected == caught.value.message


def test_missing_named_file_is_the_users_mistake(tmp_path: Path) -> None:
    """`loopbox up FILE` with no such file says so."""
    with pytest.raises(ConfigError) as caught:
        read_settings_file(tmp_path / "lab.toml")

    expected = f"cannot read `{tmp_path / 'lab.toml'}`: no such file or directory"
    assert expected == caught.value.message


def settle(path: Path) -> None:
    """Make the file one that was last changed long ago, as far as a program can."""
    os.utime(path, ns=(10**18, 10**18))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """However fast a file changes after it was read, the next command sees it."""
    file = write(tmp_path / "place", {"package.json": '{"name": "one"}'}) / "package.json"
    settle(file)
    found = []
    for name in ("one", "two", "six"):
        file.write_text(f'{{"name": "{name}"}}')
        settle(file)
        found.append(name_of(tmp_path / "place"))

    assert found == ["one", "two", "six"]


def test_user_settings_default_when_there_is_no_file(tmp_path: Path) -> None:
    """No config.toml is no mistake."""
    assert UserSettings() == read_user_settings(tmp_path / "config.toml")


def test_user_settings_are_read(tmp_path: Path) -> None:
    """The user's own file sets the defaults."""
    write(tmp_path, {"config.toml": "shared_doors = false\n"})

    assert UserSettings(shared_doors=False) == read_user_settings(tmp_path / "config.toml")
