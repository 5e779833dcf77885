from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from distqat.data.server.blocks import EMPTY_SECONDS, Blocks, is_door, leftovers, map_block, map_for_writing, sweep
from distqat.errors import DataError

DIGEST = "0123456789abcdef" * 2

OPENS = """
import sys, time
from pathlib import Path
from distqat.data.server.blocks import Blocks
blocks = Blocks(Path(sys.argv[1]), "ab12" * 8)
blocks.make(4096)
sys.stdout.write("ready\\n")
sys.stdout.flush()
time.sleep(600)
"""


def test_a_block_is_seen_by_who_maps_it_and_nothing_it_writes_by_others(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, DIGEST)
    block = blocks.make(8192)
    writer = map_for_writing(block.name, tmp_path)
    writer[100] = 7
    mapped = map_block(block.name, tmp_path)
    array = np.frombuffer(memoryview(mapped), np.uint8)
    tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor[100] == 7
    tensor[100] = 9
    assert writer[100] == block.view[100] == 7
    blocks.close()
    assert leftovers(tmp_path) == []
    # Who has mapped it keeps it.
    assert tensor[100] == 9


def test_a_mapping_lasts_as_long_as_an_array_of_it(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, DIGEST)
    mapped = map_block(blocks.make(4096).name, tmp_path)
    gone = weakref.ref(mapped)
    tensor = torch.from_numpy(np.frombuffer(memoryview(mapped), np.uint8))[5:]
    del mapped
    gc.collect()
    assert gone() is not None
    del tensor
    assert gone() is None
    blocks.close()


def test_only_who_is_on_the_host_finds_the_nonce(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, DIGEST)
    assert is_door(blocks.door, blocks.nonce, tmp_path)
    assert not is_door(blocks.door, bytes(32), tmp_path)
    assert not is_door(blocks.door, b"", tmp_path)
    assert not is_door(blocks.door, blocks.nonce, tmp_path / "elsewhere")
    for name in ("../etc/passwd", "/etc/passwd", blocks.make(4096).name, blocks.door + "/../x"):
        assert not is_door(name, b"x", tmp_path)
    assert is_door(blocks.door, blocks.nonce, tmp_path)
    blocks.close()


@pytest.mark.parametrize("name", ["../secret", "distqat-ab-1-ff-9", "passwd"])
def test_what_is_no_block_is_not_mapped(name: str, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("x" * 4096)
    with pytest.raises(DataError):
        map_block(name, tmp_path)


def test_what_a_killed_server_has_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    mine = Blocks(tmp_path, DIGEST)
    mine.make(4096)
    (tmp_path / "distqat-mine.txt").write_text("of somebody else")
    server = subprocess.Popen([sys.executable, "-c", OPENS, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        theirs = [name for name in leftovers(tmp_path) if f"-{server.pid}-" in name]
        assert len(theirs) == 2
        assert sweep(tmp_path) == 0
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        assert sweep(tmp_path) == 2
        assert all(f"-{os.getpid()}-" in name for name in leftovers(tmp_path))
        assert len(leftovers(tmp_path)) == 2
    finally:
        server.kill()
        server.wait()
        server.communicate()
    mine.close()
    assert [path.name for path in tmp_path.iterdir()] == ["distqat-mine.txt"]


def test_to_close_again_does_nothing_to_a_file_that_has_its_number(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, DIGEST)
    blocks.close()
    with (tmp_path / "other").open("w") as other:
        blocks.close()
        other.write("as it was")
    assert (tmp_path / "other").read_text() == "as it was"


def test_an_empty_door_is_swept_when_nobody_can_be_making_it_any_more(tmp_path: Path) -> None:
    door = tmp_path / "distqat-0123456789ab-77-00c0ffee-door"
    door.touch()
    assert sweep(tmp_path) == 0
    os.utime(door, (0, door.stat().st_mtime - 2 * EMPTY_SECONDS))
    assert sweep(tmp_path) == 1
    assert leftovers(tmp_path) == []


def test_where_there_is_no_memory_left_there_are_fewer_slots_or_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, left = Blocks(tmp_path, DIGEST), [5]

    def fallocate(file: int, begin: int, size: int) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1

    monkeypatch.setattr("distqat.data.server.blocks.os.posix_fallocate", fallocate)
    monkeypatch.setattr("distqat.data.server.blocks.mmap.mmap", lambda file, size: bytearray(size))
    assert len(blocks.make_slots(8, 4, 4096)) == 5
    left[0] = 3
    with pytest.raises(DataError, match=r"no room for 4 slots of 4096 bytes; lower data.ring_mib"):
        blocks.make_slots(8, 4, 4096)
    blocks.close()
    assert leftovers(tmp_path) == []
