import os
import stat

import pytest

from vaelib._files import writable_directory, written_whole


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "a.txt"
    with written_whole(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o400


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted():
        with written_whole(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    assert writable_directory("out", tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`out` must be a directory that can be written \(.*\), got.*file"):
        writable_directory("out", tmp_path / "file" / "c")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="`out` must be a directory that can be written"):
        writable_directory("out", tmp_path)
    tmp_path.chmod(0o700)
