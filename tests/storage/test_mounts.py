"""File systems that can hold a run, and buckets that cannot."""

from pathlib import Path

import pytest

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.storage.mounts import check_storage, file_system
from hidecmoe_jax.storage.places import check_place

TABLE = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
host:/export /net/disk nfs4 rw 0 0
my-bucket /net/disk/bucket fuse.gcsfuse rw 0 0
s3fs /net/old\\040bucket fuse rw 0 0
"""


@pytest.fixture
def mounts(tmp_path):
    table = tmp_path / "mounts"
    table.write_text(TABLE)
    return table


def test_the_innermost_mount_holds_a_folder(mounts, tmp_path):
    kinds = {"/data/run": "ext4", "/net/disk/run": "nfs4", "/net/disk/bucket/run": "fuse.gcsfuse"}
    for folder, kind in kinds.items():
        assert file_system(Path(folder), mounts) == kind
    assert file_system(Path("/net/old bucket/run"), mounts) == "fuse.s3fs"
    assert file_system(tmp_path, tmp_path / "no table") is None


@pytest.mark.parametrize("folder", ["/net/disk/bucket/run", "/net/old bucket/run", "gs://bucket/run", "s3:/b/run"])
def test_a_bucket_is_refused_and_the_remedy_names_what_would_do(mounts, folder):
    with pytest.raises(ConfigError) as refused:
        check_storage(Path(folder), remedy="give another --out", mounts=mounts)
    assert refused.value.where == str(Path(folder)) and "NFS" in refused.value.remedy


def test_disks_are_fine(mounts, tmp_path):
    for folder in ("/data/run", "/net/disk/run", "gs", "runs/gs:1"):
        check_storage(Path(folder), remedy="", mounts=mounts)
    with pytest.raises(ConfigError, match="renames folders"):
        check_place(Path("gs://bucket/run"))
    check_place(tmp_path / "run")
