"""What a resumed run takes from a stopped one, what it does again, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from faults import seam
from folders import tree
from safetensors.torch import load_file, save_file

import wiseft_core
from wiseft_core import errors, interpolate, open_checkpoint, save_checkpoint
from wiseft_core.cli import main

DONE = "this job is finished already: nothing was written"


@pytest.fixture
def place(tmp_path):
    """A small job."""
    return seam.small(tmp_path)


@pytest.fixture
def whole(place, tmp_path):
    """The tree of an undisturbed run."""
    place.save(out=tmp_path / "whole", resume=False)
    content = tree(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    return content


def stop(place, ahead_of="rename", **options):
    """Run the job with resume, and stop it by Ctrl-C ahead of the first operation of a kind."""

    def before(number, name, arguments):
        if name == ahead_of:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.save(seam.Steps(before), **options)
    assert place.shell.exists() and not place.out.exists()


def begun(place, **options):
    """Run the job; the names of the shards that were begun anew."""
    names = []

    def before(number, name, arguments):
        if name == "allocate":
            names.append(arguments[2].name)

    place.save(seam.Steps(before), **options)
    return names


def refused(place, **options):
    """The refusal to resume; the leftovers stay as they are."""
    before = tree(place.shell)
    with pytest.raises(errors.ConfigError) as caught:
        place.save(**options)
    assert "another job" in caught.value.where and "without --resume" in caught.value.hint
    assert tree(place.shell) == before and not place.out.exists()


def shards(place):
    """The shards in the staging folder, in order."""
    return sorted((place.shell / "out").glob("*.safetensors"))


def rewrite(path, change):
    """Another payload under the same header."""
    data = bytearray(path.read_bytes())
    data[-1] ^= change
    path.write_bytes(data)


def test_finished_shards_are_not_computed_again(place, whole):
    """Both shards of a stopped run are taken over, the bytes are those of an undisturbed run, and nothing is left."""
    stop(place)
    assert begun(place) == []
    assert place.left() == whole and place.beside() == []


def test_an_unfinished_shard_is_done_again(place, whole):
    """A shard that was written and not yet recorded is made anew, the recorded one is kept."""
    records = []

    def before(number, name, arguments):
        if name == "create" and arguments[0].parent.name == "done":
            records.append(arguments[0].name)
            if len(records) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.save(seam.Steps(before))
    assert begun(place) == [records[1]]
    assert place.left() == whole


def test_a_shard_whose_sync_failed_is_done_again(place, whole):
    """After EIO from fsync nobody knows what is on disk: the shard is not recorded, and made anew."""

    def before(number, name, arguments):
        if name == "fsync" and arguments[1].name == "model-00001-of-00002.safetensors":
            raise errors.Fault("a disk")

    with pytest.raises(errors.Fault):
        place.save(seam.Steps(before))
    assert place.shell.exists() and not place.out.exists()
    assert "model-00001-of-00002.safetensors" in begun(place)
    assert place.left() == whole


def test_without_leftovers_resume_is_a_first_run(place, whole):
    """`resume` on its own changes nothing of the output."""
    assert len(begun(place)) == 2
    assert place.left() == whole and place.beside() == []


def test_a_run_without_resume_starts_over(place, whole):
    """Leftovers are discarded, even those of the same job, and the output is whole."""
    stop(place)
    assert len(begun(place, resume=False)) == 2
    assert place.left() == whole and place.beside() == []


def test_a_run_without_resume_leaves_nothing_to_resume(place):
    """When it stops, its staging folder goes, and leftovers of an earlier run with it."""
    stop(place)
    with pytest.raises(KeyboardInterrupt):
        place.save(seam.Steps(interrupt_at("rename")), resume=False)
    assert place.beside() == [] and not place.out.exists()


def interrupt_at(operation):
    """Ctrl-C ahead of an operation."""

    def before(number, name, arguments):
        if name == operation:
            raise KeyboardInterrupt

    return before


def test_another_alpha_is_refused(place):
    """Shards of two alphas are never mixed."""
    stop(place)
    refused(place, alpha=0.25)


@pytest.mark.parametrize("option", [{"sync": False}, {"max_shard_size": 400}])
def test_another_way_to_write_is_refused(place, option):
    """Another shard size makes other files, and another sync another promise."""
    stop(place)
    refused(place, **option)


@pytest.mark.parametrize(
    "option", [{"compute_dtype": torch.float32}, {"output_dtype": "F32"}, {"overflow": "saturate"}], ids=str
)
def test_another_policy_is_refused(place, option):
    """What decides the numbers decides the job."""
    stop(place)
    before = tree(place.shell)
    with pytest.raises(errors.ConfigError, match="another job"):
        save_checkpoint(place.view(**option), place.out, resume=True)
    assert tree(place.shell) == before


def test_another_version_is_refused(place, monkeypatch):
    """Shards of another version of this package are not mixed in."""
    stop(place)
    monkeypatch.setattr("wiseft_core.record.__version__", wiseft_core.__version__ + ".post1")
    refused(place)


@pytest.mark.parametrize("back", [False, True], ids=["touched", "times put back"])
def test_a_changed_base_is_refused(place, back):
    """The same header over another payload, even under the old mtime."""
    stop(place)
    file = place.base / "model-00002-of-00002.safetensors"
    seen = file.stat()
    rewrite(file, 1)
    if back:
        os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    refused(place)


def test_a_replaced_base_is_refused(place):
    """Another file under the same name, header and mtime."""
    stop(place)
    file = place.base / "model-00001-of-00002.safetensors"
    shutil.copy2(file, place.base / "new")
    rewrite(place.base / "new", 1)
    shutil.copystat(file, place.base / "new")
    os.replace(place.base / "new", file)
    refused(place)


def test_a_changed_adapter_is_refused(place):
    """Other values in the same adapter."""
    stop(place)
    file = place.adapter / "adapter_model.safetensors"
    save_file({key: value * 2 for key, value in load_file(file).items()}, file, {"format": "pt"})
    refused(place)


def test_a_changed_adapter_config_is_refused(place):
    """Another scale, from the adapter's config alone."""
    stop(place)
    file = place.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 8}))
    refused(place)


def test_other_leftovers_without_a_shard_are_no_obstacle(place):
    """A run that stopped before any shard was whole holds nothing that could be mixed."""
    stop(place, ahead_of="allocate")
    place.save(alpha=0.25)
    assert place.out.exists() and place.beside() == []


def test_every_flipped_bit_of_a_kept_shard_is_found(place, whole, tmp_path):
    """One bit anywhere in a finished shard: that shard is made anew, the other is kept."""
    stop(place)
    shutil.copytree(place.shell, tmp_path / "stopped")
    name = shards(place)[1].name
    size = shards(place)[1].stat().st_size
    for at in (0, 9, size // 2, size - 1):
        shutil.rmtree(place.out, ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", place.shell, dirs_exist_ok=True)
        data = bytearray(shards(place)[1].read_bytes())
        data[at] ^= 1 << at % 8
        shards(place)[1].write_bytes(data)
        assert begun(place) == [name]
        assert place.left() == whole


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "folder", "link"])
def test_a_damaged_shard_is_made_anew(place, whole, tmp_path, damage):
    """Whatever became of a finished shard, it is seen and replaced."""
    stop(place)
    shard = shards(place)[0]
    data = shard.read_bytes()
    if damage == "truncated":
        shard.write_bytes(data[:-1])
    elif damage == "longer":
        shard.write_bytes(data + b"\0")
    else:
        shard.unlink()
    if damage == "folder":
        shard.mkdir()
        (shard / "inside").touch()
    if damage == "link":
        shard.symlink_to(place.base / shard.name)
    inputs = place.inputs()
    assert begun(place) == [shard.name]
    assert place.left() == whole and place.inputs() == inputs
    assert not any(path.is_symlink() for path in place.out.rglob("*"))


@pytest.mark.parametrize("torn", [b"", b"0" * 64, b"x"])
def test_a_torn_record_costs_its_shard(place, whole, torn):
    """A record that is not the digest of its shard counts for nothing."""
    stop(place)
    record = sorted((place.shell / "journal" / "done").iterdir())[0]
    record.write_bytes(torn)
    assert begun(place) == [record.name]
    assert place.left() == whole


def test_a_torn_journal_starts_over(place, whole):
    """Without a whole identity of the job nothing of it is taken over or mixed in."""
    stop(place)
    (place.shell / "journal" / "job").unlink()
    assert len(begun(place)) == 2
    assert place.left() == whole


def test_what_is_not_ours_in_staging_is_removed(place, whole):
    """Foreign files, folders and links among the leftovers never reach the output, and links are not followed."""
    stop(place)
    inputs = place.inputs()
    inside = place.shell / "out"
    (inside / "foreign.safetensors").write_bytes(b"no")
    (inside / "folder" / "deep").mkdir(parents=True)
    (inside / "folder" / "deep" / "file").touch()
    (inside / "link").symlink_to(place.base)
    assert begun(place) == []
    assert place.left() == whole and place.beside() == [] and place.inputs() == inputs


def statuses(folder):
    """Inode and times of everything in a folder, and of the folder."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        seen = path.stat()
        found[path] = seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size
    return found


def test_a_finished_job_writes_nothing_and_says_so(place, capsys):
    """Resumed again, a finished output keeps inodes and times, nothing appears beside it, and the report says it."""
    place.save()
    before, around = statuses(place.out), place.out.parent.stat().st_mtime_ns
    log = []
    report = place.save(seam.Steps(lambda number, name, arguments: log.append(name)))
    assert (report.bytes, report.files) == (0, ()) and DONE in report.notes
    assert not set(log) - set(seam.READS)
    assert main(place.args("--resume")) == 0
    assert DONE in capsys.readouterr().out
    assert statuses(place.out) == before and place.out.parent.stat().st_mtime_ns == around


def test_a_finished_job_resumed_without_resume_is_refused(place):
    """Without `resume` an output that is there is in the way, finished or not."""
    place.save()
    before = statuses(place.out)
    with pytest.raises(errors.CheckpointError, match="something is there already"):
        place.save(resume=False)
    assert statuses(place.out) == before


@pytest.mark.parametrize("damage", ["flip", "truncated", "missing", "extra", "sidecar", "manifest", "torn manifest"])
def test_a_damaged_output_is_refused(place, damage, capsys):
    """An output that is not what its manifest says is neither taken for finished nor touched: exit code 3."""
    place.save()
    shard = place.out / "model-00002-of-00002.safetensors"
    manifest = place.out / "wiseft.json"
    if damage == "flip":
        rewrite(shard, 4)
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "missing":
        shard.unlink()
    elif damage == "extra":
        (place.out / "extra.safetensors").write_bytes(b"")
    elif damage == "sidecar":
        (place.out / "notes" / "deep" / "readme.txt").write_text("other words")
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"0.5"', '"0.25"'))
    else:
        manifest.write_bytes(manifest.read_bytes()[:100])
    before = statuses(place.out)
    assert main(place.args("--resume")) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and str(place.out) in said[0]
    assert statuses(place.out) == before and place.beside() == []


@pytest.mark.parametrize("change", ["alpha", "base", "adapter", "sync", "max_shard_size"])
def test_a_finished_output_of_another_job_is_refused(place, change):
    """Another alpha, policy or input than that of the output which is there: refused, and the output untouched."""
    place.save()
    before = statuses(place.out)
    options = {"alpha": {"alpha": 0.25}, "sync": {"sync": False}, "max_shard_size": {"max_shard_size": 400}}
    if change == "base":
        rewrite(place.base / "model-00002-of-00002.safetensors", 1)
    if change == "adapter":
        rewrite(place.adapter / "adapter_model.safetensors", 1)
    with pytest.raises(errors.ConfigError, match="not this job's"):
        place.save(**options.get(change, {}))
    assert statuses(place.out) == before


def test_a_finished_output_of_an_older_base_is_refused(place, tmp_path):
    """A base with the same header, another payload and an mtime from before the output: not the job that was done."""
    other = tmp_path / "other"
    shutil.copytree(place.base, other)
    rewrite(other / "model-00002-of-00002.safetensors", 1)
    for path in other.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    place.save()
    before = statuses(place.out)
    with pytest.raises(errors.ConfigError, match="not this job's"):
        seam.Place(other, place.adapter, place.out).save()
    assert statuses(place.out) == before


def test_a_base_replaced_by_an_older_one_is_refused(place, tmp_path):
    """The base moved away and another put in its place, with an mtime from before the output."""
    other = tmp_path / "other"
    shutil.copytree(place.base, other)
    rewrite(other / "model-00002-of-00002.safetensors", 1)
    place.save()
    shutil.rmtree(place.base)
    shutil.copytree(other, place.base)
    for path in place.base.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    with pytest.raises(errors.ConfigError, match="not this job's"):
        place.save()


def test_a_touched_base_of_the_same_bytes_is_the_same(place):
    """What counts for a finished output is what is in it, not when its inputs were touched."""
    place.save()
    before = statuses(place.out)
    for path in place.base.iterdir():
        path.touch()
    assert DONE in place.save().notes
    assert statuses(place.out) == before


def test_a_finished_output_with_an_older_sidecar_is_refused(place):
    """A file beside the weights that changed since is missing from the output as it is now."""
    place.save()
    (place.base / "notes" / "deep" / "readme.txt").write_text("news")
    with pytest.raises(errors.ConfigError, match="not this job's") as caught:
        place.save()
    assert "beside the weights" in caught.value.got


def test_tensors_in_memory_are_refused(place):
    """Nothing tells whether tensors in memory are those of before: base, adapter or a mapping; nothing is made."""
    opened = open_checkpoint(place.base)
    in_memory = {name: opened[name].clone() for name in opened}
    adapter = load_file(place.adapter / "adapter_model.safetensors")
    config = json.loads((place.adapter / "adapter_config.json").read_text())
    views = [
        interpolate(in_memory, place.adapter, 0.5),
        interpolate(place.base, adapter, 0.5, config=config),
        in_memory,
    ]
    for view in views:
        with pytest.raises(errors.ConfigError, match="resume") as caught:
            save_checkpoint(view, place.out, resume=True)
        assert "memory" in caught.value.got
        assert not place.out.exists() and place.beside() == []


def test_resume_is_refused_through_the_command_with_its_exit_code(place, capsys):
    """Another alpha: exit code 3 in four lines, and the way out in the hint."""
    stop(place)
    assert main(place.args("--resume", alpha="0.25")) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and said[0].startswith("ConfigError: ") and "without --resume" in said[3]
    assert main(place.args("--resume", "--quiet")) == 0
    assert place.beside() == []
