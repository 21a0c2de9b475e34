"""Publishing: one rename into a free place, never into an input, one writer at a time."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from store.publish_job import Seam, make, make_base, start, tree

from wiseft_core.errors import CheckpointError, InputChanged, Locked
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.publish import Staging


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base")


def test_an_output_that_is_not_published_is_removed(tmp_path):
    """Leaving the context without `publish` leaves nothing."""
    with Staging(tmp_path / "out", FILES, sync=True, inputs=[]) as staging:
        (staging.folder / "file").write_bytes(b"x")
        assert os.listdir(tmp_path) == [".out.wiseft-staging"]
    assert os.listdir(tmp_path) == []


def test_the_second_writer_is_locked_out(tmp_path):
    """While another process writes OUT, in a private folder, a second one fails with exit 7; killed, it is no bar."""
    process = start("hold", tmp_path)
    assert process.stdout is not None and int(process.stdout.readline()) == 0o700
    with pytest.raises(Locked) as caught, Staging(tmp_path / "out", FILES, sync=True, inputs=[]):
        pass
    assert caught.value.exit_code == 7 and str(tmp_path / "out") in caught.value.where
    assert (tmp_path / ".out.wiseft-staging" / "out" / "half").exists()
    process.kill()
    process.communicate()
    with Staging(tmp_path / "out", FILES, sync=True, inputs=[]) as staging:
        assert os.listdir(staging.folder) == []
        staging.publish()
    assert os.listdir(tmp_path) == ["out"]


def test_a_shell_that_vanishes_is_made_again(tmp_path):
    """When its last owner removes the shell just before we lock it, or just after, we start over."""

    class Racy(Files):
        races = 2

        def lock(self, path):
            if self.races == 2:
                self.races = 1
                os.rmdir(path.parent)
            descriptor = super().lock(path)
            if self.races == 1 and descriptor is not None:
                self.races = 0
                shutil.rmtree(path.parent)
            return descriptor

    files = Racy()
    with Staging(tmp_path / "out", files, sync=False, inputs=[]) as staging:
        staging.publish()
    assert files.races == 0 and os.listdir(tmp_path) == ["out"]


def test_an_output_finished_just_before_the_lock_is_kept(tmp_path):
    """When another run publishes the same OUT before we hold the lock, we stop before any work is done."""

    class Late(Files):
        def lock(self, path):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()
            return super().lock(path)

    with pytest.raises(CheckpointError), Staging(tmp_path / "out", Late(), sync=False, inputs=[]):
        pytest.fail("entered")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["theirs"]


def test_a_shell_taken_over_is_left_alone(tmp_path):
    """A run that makes its own lock in our shell while we clean up keeps it."""

    class Racy(Files):
        def rmdir(self, path):
            (path / "lock").touch()
            super().rmdir(path)

    with Staging(tmp_path / "out", Racy(), sync=False, inputs=[]):
        pass
    assert os.listdir(tmp_path / ".out.wiseft-staging") == ["lock"]


def test_a_shell_of_somebody_else_is_refused(tmp_path):
    """A link or a file placed at the predictable name of our staging folder is not used."""
    (tmp_path / "elsewhere").mkdir()
    shell = tmp_path / ".out.wiseft-staging"
    for place in (lambda: shell.symlink_to(tmp_path / "elsewhere"), shell.touch):
        place()
        with pytest.raises(CheckpointError, match="in the way"), Staging(tmp_path / "out", FILES, sync=True, inputs=[]):
            pass
        assert os.listdir(tmp_path / "elsewhere") == []
        shell.unlink()


@pytest.mark.parametrize("kind", ["full folder", "file", "link to an empty folder", "dangling link"])
def test_what_is_at_out_stays(tmp_path, base, kind):
    """Anything at OUT but an empty folder is refused and untouched, and no staging is made."""
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    if kind == "full folder":
        out.mkdir()
        (out / "precious").touch()
    elif kind == "file":
        out.touch()
    else:
        out.symlink_to(empty if kind.startswith("link") else tmp_path / "nothing")
    with pytest.raises(CheckpointError) as caught:
        make(out, base, FILES)
    assert "choose another folder" in caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["base", "empty", "out"] and os.listdir(empty) == []
    assert kind != "full folder" or os.listdir(out) == ["precious"]


def test_an_empty_folder_is_filled(tmp_path, base):
    """An empty folder at OUT is as good as none."""
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", base, FILES)
    assert "wiseft.json" in tree(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_comes_to_out_meanwhile_stays(tmp_path, kind):
    """Content that appears at OUT while we write is not replaced, and nothing of ours is left."""
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="came while"), Staging(out, FILES, sync=True, inputs=[]) as staging:
        (staging.folder / "ours").touch()
        if kind == "folder":
            out.mkdir()
            (out / "theirs").touch()
        else:
            out.touch()
        staging.publish()
    assert os.listdir(tmp_path) == ["out"] and (kind == "file" or os.listdir(out) == ["theirs"])


@pytest.mark.parametrize(
    "spelling",
    [
        "base",
        "base/new",
        "base/sub/new",
        "link/new",
        "link/sub/new",
        "aside/../base/new",
        "link",
        "link/../base/sub/new",
    ],
)
def test_out_is_never_inside_an_input(tmp_path, base, spelling):
    """OUT that is or lies in an input is refused whatever it is called: by a link, by `..`, at any depth."""
    (base / "sub").mkdir()
    (tmp_path / "aside").mkdir()
    (tmp_path / "link").symlink_to(base)
    before = sorted(os.listdir(base))
    with pytest.raises(CheckpointError, match="into an input") as caught:
        make(tmp_path / spelling, base, FILES)
    assert caught.value.exit_code == 3
    assert sorted(os.listdir(base)) == before and sorted(os.listdir(tmp_path)) == ["aside", "base", "link"]


def test_out_around_an_input_is_refused(tmp_path, base):
    """A folder that contains an input is not empty, so it cannot be OUT."""
    with pytest.raises(CheckpointError, match="something is there already"):
        make(tmp_path, base, FILES)
    assert os.listdir(tmp_path) == ["base"]


def test_out_beside_an_input_by_a_link_is_fine(tmp_path, base):
    """A link on the way to OUT is followed, and the output and its staging are where it leads."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link" / "out", base, FILES)
    assert os.listdir(tmp_path / "real") == ["out"]


@pytest.mark.parametrize("spelling", ["missing/out", "base/payload/out"])
def test_out_needs_a_folder_to_be_in(tmp_path, base, spelling):
    """OUT's parent is never made: a typing error would leave folders behind."""
    with pytest.raises(CheckpointError, match="no folder to write it in") as caught:
        make(tmp_path / spelling, base, FILES)
    assert "mkdir" in caught.value.hint and os.listdir(tmp_path) == ["base"]


def test_modes_follow_the_umask(tmp_path):
    """Under umask 027 folders are 0750 and files 0640, a sidecar with mode 4777 included."""
    process = start("modes", tmp_path, umask=0o027)
    process.communicate()
    assert process.returncode == 0
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert modes == {path.name: 0o750 if path.is_dir() else 0o640 for path in paths} and len(modes) == 7


def test_every_folder_is_synced_before_and_after_the_rename(tmp_path, base):
    """With sync: files, then folders inside out, then the rename, then its parent. Without: no sync at all."""
    log = []

    def before(count, operation, arguments):
        log.append((operation, str(arguments[-1]) if arguments else ""))

    make(tmp_path / "out", base, Seam(before))
    names = [(operation, Path(path).name) for operation, path in log if operation in ("fsync_folder", "rename")]
    parent = tmp_path.name
    assert names == [
        ("fsync_folder", "deep"), ("fsync_folder", "sub"), ("fsync_folder", "out"), ("rename", "out"),
        ("fsync_folder", parent),
    ]  # fmt: skip
    synced = {Path(path).name for operation, path in log if operation == "fsync"}
    assert synced == {Path(name).name for name in tree(tmp_path / "out")}
    log.clear()
    make(tmp_path / "again", base, Seam(before), sync=False)
    assert not [operation for operation, _ in log if operation.startswith("fsync")]
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_a_sidecar_that_changes_is_noticed(tmp_path, base):
    """A source that somebody writes to while it is copied stops the run with exit 6, and nothing is left."""

    class Busy(Files):
        def fsync(self, descriptor, path):
            if path.name == "script.sh":
                (base / "script.sh").write_bytes(b"other")
            super().fsync(descriptor, path)

    with pytest.raises(InputChanged) as caught:
        make(tmp_path / "out", base, Busy())
    assert caught.value.exit_code == 6 and os.listdir(tmp_path) == ["base"]
