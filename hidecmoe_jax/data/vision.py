"""Picture files to the outputs of the frozen vision tower, through the store on disk where there is one.

The tower runs on batches of one shape, so that it is one compiled program; the last batch is filled with zeros. Every
picture is decoded once in a call, and with a store once for all: what the store holds is what decoding, or the tower,
gave, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial

import jax
import numpy as np
import PIL

from hidecmoe_jax.core import processes, trees
from hidecmoe_jax.core.compile_cache import machine_name
from hidecmoe_jax.core.layout import own_rows, split_batch
from hidecmoe_jax.core.processes import to_host
from hidecmoe_jax.data.feature_store import FeatureStore, entry_name
from hidecmoe_jax.data.images import CLIP_MEAN, LIMITS, Limits, normalise
from hidecmoe_jax.data.loader import gather_pictures
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.models.llava import Model, vision_features, vision_weights

_tower = jax.jit(vision_features)
# Of what an entry contains; another number leaves the entries of earlier versions unused.
_FORMAT = 1


@dataclass(frozen=True)
class VisionReader:
    """Reads picture files for the vision tower of a model.

    Attributes:
      batch: pictures in one run of the tower.
      limits: what pictures may be.
      store: entries on disk, or None.
      keep: which entries are read and written there, `pixels` or `patches`; `none` without a store.
      pictures: what decodes them and holds those that were decoded before; by default one of its own.
    """

    model: Model
    batch: int
    limits: Limits = LIMITS
    store: FeatureStore | None = None
    keep: str = "none"
    pictures: Pictures | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if self.pictures is None:
            object.__setattr__(self, "pictures", Pictures(self.limits))

    @cached_property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shape and dtype of one picture's patches [P, D] and pooled embedding [E]."""
        side = self.model.config.image_size
        pixels = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        of_batch = jax.eval_shape(vision_features, self.model, pixels)
        patches, pooled = (jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for array in of_batch)
        return patches, pooled

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one picture before the tower."""
        return self.model.config.image_size**2 * 3

    @property
    def patch_bytes(self) -> int:
        """Bytes of one picture's patch tokens."""
        patches, _ = self.shapes
        return patches.size * patches.dtype.itemsize

    def pixels(self, paths: Sequence[str]) -> np.ndarray:
        """Pixels of picture files, uint8 [N, S, S, 3].

        Raises:
          DataError: `images.load` refuses a picture.
        """
        read = self._stored_pixels if self.keep == "pixels" else self._decoded
        return gather_pictures(paths, self.model.config.image_size, read, threads=self.pictures.workers)

    def _decoded(self, path: str) -> np.ndarray:
        """Pixels of a picture, decoded in this command."""
        config = self.model.config
        return self.pictures.pixels(path, config.image_size, config.image_fit)

    def outputs(self, paths: Sequence[str], *, keep: bool, progress=iter) -> tuple[np.ndarray | None, np.ndarray]:
        """Patches [M, P, D] (None unless `keep`) and pooled embeddings float32 [M, E] of picture files.

        Raises:
          DataError: `images.load` refuses a picture.
        """
        patches, pooled = self.shapes
        count = len(paths)
        patches_MPD = np.empty((count, *patches.shape), patches.dtype) if keep else None
        pooled_ME = np.empty((count, *pooled.shape), pooled.dtype)
        for start in progress(range(0, count, self.batch)):
            rows = range(start, min(start + self.batch, count))
            for row, patches_PD, pooled_E in self._outputs_of(paths, rows, keep=keep):
                pooled_ME[row] = pooled_E
                if keep:
                    patches_MPD[row] = patches_PD
        return patches_MPD, pooled_ME

    def _outputs_of(self, paths: Sequence[str], rows: range, *, keep: bool) -> Iterator[tuple]:
        """Yields row, patches (None where nothing needs them) and pooled embedding of at most one batch of pictures:
        stored ones first."""
        absent = []
        for row in rows:
            stored = self._stored_outputs(paths[row]) if self.keep == "patches" else None
            if stored is None:
                absent.append(row)
            else:
                yield row, *stored
        if not absent:
            return
        files = [paths[row] for row in absent]
        patches_BPD, pooled_BE = self._run_tower(files)
        pooled_BE = to_host(pooled_BE)
        stores = self.keep == "patches"
        # Patches are large, and are brought from the device only where they are needed.
        patches_BPD = to_host(patches_BPD) if keep or stores else [None] * len(absent)
        for place, row in enumerate(absent):
            if stores:
                self._store_outputs(paths[row], patches_BPD[place], pooled_BE[place])
            yield row, patches_BPD[place], pooled_BE[place]

    def _run_tower(self, files: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """Outputs for at most `batch` picture files; rows after theirs mean nothing."""
        side = self.model.config.image_size
        # Filled with zeros: one shape, one compiled program, and no picture is decoded for it.
        filled_BHWC = np.zeros((self.batch, side, side, 3), np.float32)
        # Several processes decode the pictures of their own devices each.
        (own,) = np.nonzero(own_rows(self.model.layout, self.batch)[: len(files)])
        if own.size:
            filled_BHWC[own] = normalise(self.pixels([files[row] for row in own]))
        return _tower(self.model, split_batch(self.model.layout, filled_BHWC))

    def _pixel_facts(self, digest: str) -> dict:
        """Everything that the pixels of a picture depend on."""
        config = self.model.config
        return {
            "format": _FORMAT, "picture": digest, "size": config.image_size, "fit": config.image_fit,
            "ground": CLIP_MEAN, "limits": asdict(self.limits), "pillow": PIL.__version__,
        }  # fmt: skip

    @cached_property
    def _tower_facts(self) -> dict:
        """Everything that patches depend on beside the pixels: weights, shapes, and the program that runs."""
        config = self.model.config
        vision = vision_weights(self.model.params)
        patches, _ = self.shapes
        device = jax.devices()[0]
        return {
            "weights": self.store.once(vision, partial(trees.digest, vision)),
            "tower": config.tower_settings, "layer": config.feature_layer, "dtype": config.dtype,
            "patches": [patches.dtype.name, patches.shape], "batch": self.batch,
            # Another compiler or another device may round differently.
            "jax": [jax.__version__, device.client.platform_version], "device": [device.device_kind, machine_name()],
            "flags": os.environ.get("XLA_FLAGS", ""),
        }  # fmt: skip

    def _stored_pixels(self, path: str) -> np.ndarray:
        """Pixels of a picture from the store, or decoded and put there."""
        side = self.model.config.image_size
        name = self._name(path, "pixels")
        content = None if name is None else self.store.read(name, self.pixel_bytes)
        if content is not None:
            return content.reshape(side, side, 3)
        pixels = self._decoded(path)
        if name is not None:
            self.store.write(name, pixels)
        return pixels

    def _stored_outputs(self, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Patches and pooled embedding of a picture from the store."""
        patches, pooled = self.shapes
        name = self._name(path, "patches")
        size = self.patch_bytes + pooled.size * pooled.dtype.itemsize
        content = None if name is None else self.store.read(name, size)
        if content is None:
            return None
        patches_PD = content[: self.patch_bytes].view(patches.dtype).reshape(patches.shape)
        pooled_E = content[self.patch_bytes :].view(pooled.dtype)
        return patches_PD, pooled_E

    def _store_outputs(self, path: str, patches_PD: np.ndarray, pooled_E: np.ndarray) -> None:
        name = self._name(path, "patches")
        if name is not None:
            self.store.write(name, patches_PD, pooled_E)

    def _name(self, path: str, what: str) -> str | None:
        """Name of a picture's entry; None where the file cannot be read, which decoding will say."""
        digest = self.pictures.digest(path) or self.store.picture_digest(path)
        if digest is None:
            return None
        facts = self._pixel_facts(digest)
        if what == "patches":
            facts |= {"tower": self._tower_facts}
        return entry_name({"what": what} | facts)


def keep_on_disk(store: FeatureStore | None, reader: VisionReader, *, in_memory: bool) -> str:
    """Which entries a store keeps for data whose patches fit into memory, or do not."""
    if store is None:
        return "none"
    # Several processes run the tower together or not at all, so none of them may skip it for what it has stored.
    if processes.count() > 1:
        return "none" if in_memory and store.keep == "auto" else "pixels"
    if store.keep != "auto":
        return store.keep
    # What lies in memory is read once; the store saves what would be decoded in every epoch.
    if in_memory:
        return "none"
    return "pixels" if reader.pixel_bytes <= reader.patch_bytes else "patches"
