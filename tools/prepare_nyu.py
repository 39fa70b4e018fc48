"""Make the NYU folder for train.py from a distribution of NYU Depth V2.

--hu: the preprocessed set of Junjie Hu (Revisiting Single Image Depth Estimation), zipped or unpacked:
    [nyu_data/]data/nyu2_train/<scene>_out/<n>.jpg + .png, data/nyu2_test/<id>_colors.png + <id>_depth.png. If the lists
    nyu2_train.csv and nyu2_test.csv are present, only the pairs that they name.
--labeled with --splits: the 1,449 labelled images of nyu_depth_v2_labeled.mat: 795 to Train, 654 to Test.
--fastdepth: FastDepth's set, on Hugging Face as sayakpaul/nyu_depth_v2: train/<scene>/<n>.h5 and
    val/official/<n>.h5, unpacked, as a .tar file, or as a folder of .tar files.
--bts: BTS' set (From Big to Small): sync/<scene>/rgb_<n>.jpg + sync_depth_<n>.png to Train (official_splits/train if
    there is no sync), and official_splits/test with the same names to Test.

If it was stopped, the same command continues. At the end it checks the folder as tools/check_nyu.py does.
"""

import argparse
import collections
import contextlib
import csv
import errno
import io
import logging
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli, folders
from src.base.arrays import Array, Pixels
from src.base.files import StrPath, remove_partial, replacing, writable_folder
from src.data import image
from src.data.listing import DataError
from tools import check_nyu

HU_LAYOUT = (
    "expected data/nyu2_train/<scene>_out/<n>.jpg + .png and data/nyu2_test/<id>_colors.png + <id>_depth.png, "
    "directly or in nyu_data/"
)
_HU_FILE = re.compile(r"(?:^|/)(nyu2_train/[^/]+/\d+\.(?:jpe?g|png)|nyu2_test/[^/]+_(?:colors|depth)\.png)$")
_HU_LIST = re.compile(r"(?:^|/)nyu2_(?:train|test)\.csv$")
_TARGET = {"nyu2_train": "Train", "nyu2_test": "Test"}

SPARE_BYTES = 64 << 20  # free space to leave on the disk
MAX_LIST_BYTES = 32 << 20  # Hu's lists have 5 MB
# Estimated sizes of encoded files, rounded up, to check the free space.
TRAIN_FILE_BYTES, TEST_FILE_BYTES = 250_000, 1_000_000
JPEG_QUALITY = 95

Save: TypeAlias = Callable[[Path], None]
Read: TypeAlias = Callable[[], bytes]


@dataclass(frozen=True)
class Item:
    """A file to make.

    Args:
        target: the file's path relative to the NYU folder.
        size: the file's size in bytes.
        exact: whether the size is exact, not an estimate.
        make: function that writes the file to a path.
    """

    target: PurePosixPath
    size: int
    exact: bool
    make: Save

    def is_done(self, out: Path) -> bool:
        """Return whether the complete file exists in the NYU folder `out`."""
        path = out / self.target
        return path.is_file() and (path.stat().st_size == self.size if self.exact else _is_whole(path))


def _is_whole(path: Path) -> bool:
    """Return whether a JPEG or PNG ends with its end marker, which a truncated file lacks."""
    with open(path, "rb") as file:
        file.seek(max(-16, -path.stat().st_size), 2)
        return file.read().endswith((b"\xff\xd9", b"IEND\xaeB`\x82"))


def hu_items(path: StrPath, link: bool) -> list[Item]:
    """Return the Items of Hu's set.

    Args:
        path: the zip or the folder of the set.
        link: make symbolic links instead of copies.

    Raises DataError if `path` is not such a set.
    """
    if Path(path).is_file():
        if link:
            raise DataError(f"{path}: a zip has no files to link to: leave out --link, or unpack it")
        files, lists = _zip_files(path)
    elif Path(path).is_dir():
        files, lists = _folder_files(Path(path), link)
    else:
        raise DataError(f"{path}: no such folder or zip; {HU_LAYOUT}")
    if not files:
        raise DataError(f"{path}: no NYU files in it; {HU_LAYOUT}")
    files = _listed(path, files, lists)
    return [Item(_hu_target(name), 0 if link else size, not link, make) for name, (size, make) in sorted(files.items())]


def _hu_target(name: str) -> PurePosixPath:
    split, *parts = name.split("/")
    return PurePosixPath(_TARGET[split], *parts).with_suffix(".jpg" if name.endswith(".jpeg") else name[-4:])


def _listed(path: StrPath, files: Mapping[str, Any], lists: Mapping[str, str]) -> dict[str, Any]:
    """Select the files that the CSV lists name, and all files of a split without a list.

    Args:
        path: the set, for error messages.
        files: size and function that writes the file, by name.
        lists: texts of the CSV lists, by name.

    Raises DataError if a listed file is missing or a list names no file.
    """
    names = []
    for list_name, text in lists.items():
        try:
            listed = [
                match[1]
                for row in csv.reader(io.StringIO(text.replace("\\", "/")))
                for cell in row
                if (match := _HU_FILE.search(cell.strip()))
            ]
        except csv.Error as error:
            raise DataError(f"{path}: {list_name}: {error}") from error
        if not listed:
            raise DataError(f"{path}: {list_name} names no NYU file: expected lines of <picture>,<depth map>")
        names += listed
    with_list = {PurePosixPath(list_name).stem for list_name in lists}
    names += [name for name in files if name.split("/")[0] not in with_list]
    missing = [name for name in names if name not in files]
    if missing:
        raise DataError(
            f"{path}: {missing[0]} is in the CSV list but not there"
            + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
        )
    return {name: files[name] for name in names}


def _folder_files(root: Path, link: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the files and lists of an unpacked set, as `_listed` takes them. Raises DataError."""
    bases = [
        base
        for base in (root, root / "data", root / "nyu_data", root / "nyu_data" / "data")
        if (base / "nyu2_train").is_dir() or (base / "nyu2_test").is_dir()
    ]
    if not bases:
        return {}, {}
    files = {}
    for split, pattern in (("nyu2_train", ("*", "*")), ("nyu2_test", ("*",))):
        if (bases[0] / split).is_dir():
            for path in _searched(bases[0] / split, pattern, (".jpg", ".jpeg", ".png")):
                name = path.relative_to(bases[0]).as_posix()
                if _HU_FILE.search(name):
                    files[name] = path.stat().st_size, _linker(path.resolve()) if link else _copier(path)
                else:
                    logging.warning("left out, no picture of this set by its name: %s", path)
    lists = {}
    for path in bases[0].glob("nyu2_*.csv"):
        if _HU_LIST.search(path.name):
            if path.stat().st_size > MAX_LIST_BYTES:
                raise DataError(f"{path}: a list of {path.stat().st_size:,} bytes: refused")
            lists[path.name] = _list_text(root, path.name, path.read_bytes())
    return files, lists


def _why_empty(path: Path) -> str:
    return "no NYU files in it" if path.exists() else "no such file or folder"


def _searched(root: Path, pattern: tuple[str, ...], endings: tuple[str, ...]) -> list[Path]:
    """Search for files, and log the paths that are left out. Raises DataError if a folder cannot be read."""
    search = folders.search(root, pattern, endings)
    if search.unread:
        raise DataError(folders.named(search.unread))
    for reason, paths in search.left_out.items():
        logging.warning("left out, %s: %s", reason, folders.named(paths))
    return search.files


def _list_text(source: StrPath, name: str, content: bytes) -> str:
    """Decode a list from UTF-8 or UTF-16 (Windows). Raises DataError."""
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: {name}: not a text in UTF-8 or UTF-16") from error


def _copier(source: Path) -> Save:
    def copy(target: Path) -> None:
        with open(source, "rb") as read, replacing(target, "wb", durable=False) as write:
            shutil.copyfileobj(read, write, 1 << 20)

    return copy


def _linker(source: Path) -> Save:
    def link(target: Path) -> None:
        target.unlink(missing_ok=True)  # a broken link of an earlier run
        target.symlink_to(source)

    return link


@contextlib.contextmanager
def _naming(path: object, what: str = "") -> Iterator[None]:
    """Convert the exceptions of a damaged archive or HDF5 file to a DataError that names `path`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zipfile raises a different type for every kind of damage
        # EINVAL: a seek to an invalid offset in the zip; None: HDF5.
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, None):
            raise
        raise DataError(f"{path}: {what}{error or 'damaged'}") from error


def _zip_files(path: StrPath) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the files and lists of a zipped set, as `_listed` takes them. Raises DataError."""
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    with _naming(path, "not a whole zip: download it again: " if is_zip else f"no zip; {HU_LAYOUT}: "):
        archive = zipfile.ZipFile(path)
    files, lists = {}, {}
    for member in archive.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", str(name)):
            raise DataError(f"{path}: holds {member.filename}, which leaves the target folder: refused")
        match = _HU_FILE.search(member.filename)
        if match and not any(map(folders.is_litter, name.parts)):
            if member.file_size > image.MAX_BYTES:
                raise DataError(f"{path}: {member.filename} is {member.file_size:,} bytes large: refused")
            files[match[1]] = member.file_size, _extractor(archive, member)
        elif _HU_LIST.search(member.filename):
            if member.file_size > MAX_LIST_BYTES:
                raise DataError(f"{path}: {member.filename} is a list of {member.file_size:,} bytes: refused")
            with _naming(path, f"{member.filename}: "), archive.open(member) as file:
                # Limit the read, because the size that the zip states may be wrong.
                lists[name.name] = _list_text(path, member.filename, file.read(MAX_LIST_BYTES))
    return files, lists


def _extractor(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Save:
    def extract(target: Path) -> None:
        with (
            _naming(archive.filename, f"{member.filename}: "),
            archive.open(member) as read,
            replacing(target, "wb", durable=False) as write,
        ):
            shutil.copyfileobj(read, write, 1 << 20)

    return extract


@contextlib.contextmanager
def _opened_hdf5(path: object, what: str, content: io.BytesIO | None = None) -> Iterator[Any]:
    """Open an HDF5 file without a lock, because network file systems may not support locks.

    Args:
        path: the file.
        what: the message if the file is not valid.
        content: the bytes of the file, or None to read them from `path`.

    Raises DataError with `what`, or with the reason why the file cannot be opened.
    """
    import h5py

    try:
        if content is None:
            with open(str(path), "rb"):  # raises a clear error if the file is missing or not permitted; HDF5 does not
                pass
        file = h5py.File(content or str(path), "r", rdcc_nbytes=256 << 20, locking=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {what.rpartition('; ')[2]}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror if error.strerror and not content else what}") from error
    with file:
        yield file


def _missing_arrays(file: Any, *names: str) -> list[str]:
    """Return the names for which an HDF5 file contains no array."""
    return [name for name in names if not hasattr(file.get(name), "shape")]


@contextlib.contextmanager
def labeled_items(mat_path: StrPath, splits_path: StrPath) -> Iterator[list[Item]]:
    """Open the labelled images and yield their Items, two per image. Raises DataError."""
    expected = "expected nyu_depth_v2_labeled.mat (2.8 GB)"
    with _opened_hdf5(mat_path, f"not a MATLAB 7.3 file, or not all of it; {expected}") as file:
        if missing := _missing_arrays(file, "depths", "images", "scenes"):
            raise DataError(f"{mat_path}: no {', '.join(missing)} in it; expected nyu_depth_v2_labeled.mat")
        images, depths, scenes = file["images"], file["depths"], np.ravel(file["scenes"])
        if images.shape[1:] != (3, 640, 480) or depths.shape != (len(images), 640, 480) or len(scenes) != len(images):
            raise DataError(
                f"{mat_path}: images {images.shape}, depths {depths.shape} and {len(scenes)} scenes; "
                "expected (N, 3, 640, 480), (N, 640, 480) and N, as HDF5 sees MATLAB's arrays"
            )
        if (images.dtype, depths.dtype.kind, scenes.dtype.kind) != (np.uint8, "f", "O"):
            raise DataError(
                f"{mat_path}: images of {images.dtype}, depths of {depths.dtype}, scenes of {scenes.dtype};"
                " expected uint8, floats and references to texts"
            )
        yield [
            item
            for index, is_test in sorted(_is_test(splits_path, len(images)).items())
            for item in _labeled_pair(images, depths, index, None if is_test else _matlab_text(file[scenes[index]]))
        ]


def _is_test(path: StrPath, images: Any) -> dict[int, bool]:
    """Read splits.mat. Returns {0-based index: whether it is in the test split}. Raises DataError."""
    from scipy.io import loadmat

    try:
        splits = loadmat(path)
        train, test = (set((splits[name].ravel().astype(int) - 1).tolist()) for name in ("trainNdxs", "testNdxs"))
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise DataError(f"{path}: no trainNdxs and testNdxs; expected NYU's splits.mat") from error
    if train & test or not train | test <= set(range(images)):
        raise DataError(f"{path}: overlapping splits, or indices beyond the {images} images")
    return {index: index in test for index in train | test}


def _matlab_text(characters: Array) -> str:
    return "".join(map(chr, np.ravel(characters)))


def _labeled_pair(images: Any, depths: Any, index: int, scene: str | None) -> list[Item]:
    """Return the two Items of a labelled image: of Train if `scene` names its scene, of Test if that is None."""

    def rgb() -> Pixels:
        return np.ascontiguousarray(images[index].transpose(2, 1, 0))

    if scene is None:
        return _test_pair(f"{index:05d}", rgb, lambda: depths[index].T)
    if not re.fullmatch(r"\w[\w.-]*", scene):
        raise DataError(f"image {index + 1}: {scene!r} is no scene name")
    return _train_pair(scene, index + 1, rgb, lambda: depths[index].T)


def _train_pair(scene: str, number: int, rgb: Callable[[], Pixels], depth_m: Callable[[], Array]) -> list[Item]:
    """Return the two Items of a training pair.

    Args:
        scene, number: the names of the folder, without _out, and of the files.
        rgb: function that reads the picture, uint8 (H, W, 3).
        depth_m: function that reads the depth, metres (H, W).
    """
    folder = PurePosixPath("Train", f"{scene}_out")
    return [
        Item(folder / f"{number}.jpg", TRAIN_FILE_BYTES, False, lambda path: _save_jpeg(path, rgb())),
        Item(
            folder / f"{number}.png",
            TRAIN_FILE_BYTES,
            False,
            lambda path: _save_png(path, image.encode_train_depth(depth_m())),
        ),
    ]


def _test_pair(number: str, rgb: Callable[[], Pixels], depth_m: Callable[[], Array]) -> list[Item]:
    """Return the two Items of a test pair. `number`: its id. Other arguments as in `_train_pair`."""
    stem = f"Test/{number}"
    return [
        Item(PurePosixPath(f"{stem}_colors.png"), TEST_FILE_BYTES, False, lambda path: _save_png(path, rgb())),
        Item(
            PurePosixPath(f"{stem}_depth.png"),
            TEST_FILE_BYTES,
            False,
            lambda path: _save_png(path, image.encode_test_depth(depth_m())),
        ),
    ]


def _save_jpeg(path: Path, rgb: Pixels) -> None:
    with replacing(path, "wb", durable=False) as file:
        Image.fromarray(rgb).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _save_png(path: Path, pixels: Array) -> None:
    with replacing(path, "wb", durable=False) as file:
        Image.fromarray(pixels).save(file, "PNG")


_FASTDEPTH_FILE = re.compile(r"(?:^|/)(train/[^/]+|val/official)/(\d+)\.h5$")
FASTDEPTH_LAYOUT = "expected train/<scene>/<n>.h5 and val/official/<n>.h5, unpacked or in .tar files"


@contextlib.contextmanager
def fastdepth_items(path: Path) -> Iterator[list[Item]]:
    """Open FastDepth's set, a .tar file or a folder, and yield its Items, two per HDF5 file. Raises DataError."""
    with contextlib.ExitStack() as stack:
        reads: list[tuple[str, Path, Read]] = []
        for file in [path] if path.is_file() else _searched(path, ("**",), (".h5", ".tar")) if path.is_dir() else []:
            if file.suffix == ".h5":
                reads.append((file.relative_to(path).as_posix(), path, file.read_bytes))
            else:
                reads += [(name, file, read) for name, read in _tar_files(file, stack).items()]
        items, other_names = [], []
        for name, file, read in sorted(reads, key=lambda entry: entry[:2]):
            if match := _FASTDEPTH_FILE.search(name):
                items += _hdf5_items(f"{file}: {name}", match, read)
            else:
                other_names.append(name)
        if other_names:
            logging.warning("left out, no file of this set by its name: %s", folders.named(other_names))
        if not items:
            raise DataError(f"{path}: {_why_empty(path)}; {FASTDEPTH_LAYOUT}")
        yield items


def _tar_files(path: Path, stack: contextlib.ExitStack) -> dict[str, Read]:
    """Return the functions that read the .h5 files of a .tar archive, by name. Raises DataError.

    Args:
        path: the archive.
        stack: closes the archive.
    """

    def read(member: tarfile.TarInfo) -> bytes:
        with _naming(path, f"{member.name}: "):
            content = archive.extractfile(member)
            assert content is not None  # because the member is a plain file
            return content.read()

    if path.name.endswith((".gz", ".tgz", ".bz2", ".xz")):
        raise DataError(f"{path}: compressed as a whole: unpack it first (tar -xf)")
    with _naming(path, f"not a whole .tar; {FASTDEPTH_LAYOUT}: "):
        archive = stack.enter_context(tarfile.open(path, "r:"))  # noqa: SIM115
        members = [member for member in archive.getmembers() if member.isfile() and member.name.endswith(".h5")]
        _check_end(path, archive)
    for member in members:
        if member.size > image.MAX_BYTES:
            raise DataError(f"{path}: {member.name} is {member.size:,} bytes large: refused")
    return {member.name: partial(read, member) for member in members}


def _check_end(path: Path, archive: tarfile.TarFile) -> None:
    """Raise DataError unless only zeros follow the archive's last member.

    tarfile accepts an archive that was cut off between two members, and reads only the first of several archives in
    one file.
    """
    file = archive.fileobj
    assert file is not None  # because the archive was opened by name
    file.seek(archive.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end) or any(map(any, iter(partial(file.read, 1 << 16), b""))):
        raise DataError(f"{path}: cut off, or followed by something else: download it again, or unpack it first")


def _hdf5_items(name: str, match: re.Match[str], read: Read) -> list[Item]:
    """Return the two Items of a file of FastDepth's set.

    Args:
        name: the file, for error messages.
        match: of _FASTDEPTH_FILE with the file's name.
        read: function that reads the file. It contains uint8 RGB (3, H, W) and depth (H, W) in metres.
    """

    def arrays() -> tuple[Pixels, Array]:
        with _opened_hdf5(name, "not a whole HDF5 file", io.BytesIO(read())) as file, _naming(name):
            if (
                _missing_arrays(file, "rgb", "depth")
                or file["rgb"].shape != (3, *file["depth"].shape)
                or file["rgb"].dtype != np.uint8
                or file["depth"].dtype.kind != "f"
            ):
                raise DataError(f"{name}: expected rgb (3, H, W) uint8 and depth (H, W) metres")
            return np.ascontiguousarray(file["rgb"][()].transpose(1, 2, 0)), file["depth"][()]

    folder, number = match[1], match[2]
    if folder == "val/official":
        return _test_pair(number, lambda: arrays()[0], lambda: arrays()[1])
    return _train_pair(folder.removeprefix("train/"), int(number), lambda: arrays()[0], lambda: arrays()[1])


_BTS_FILE = re.compile(r"(rgb|sync_depth)_(\d+)\.(jpg|png)", re.IGNORECASE)
BTS_LAYOUT = (
    "expected sync/<scene>/rgb_<n>.jpg + sync_depth_<n>.png, and official_splits/test/<scene>/ with the same "
    "names, or the sync folder itself"
)


def bts_items(root: Path) -> list[Item]:
    """Return the Items of BTS' set. Converts 16-bit training depth in millimetres to 8 bits. Raises DataError."""
    official = root / "official_splits"
    train = next((folder for folder in (root / "sync", official / "train") if folder.is_dir()), root)
    splits = {"Train": train, "Test": official / "test"}
    items = []
    for split, folder in splits.items():
        if not folder.is_dir():
            continue
        for path in _searched(folder, ("*", "*"), (".jpg", ".png")):
            if match := _BTS_FILE.fullmatch(path.name):
                items.append(_bts_item(split, path, match[1].lower() == "rgb", match[2]))
            else:
                logging.warning("left out, no picture of this set by its name: %s", path)
    if not items:
        raise DataError(f"{root}: {_why_empty(root)}; {BTS_LAYOUT}")
    return items


def _bts_item(split: str, source: Path, is_rgb: bool, number: str) -> Item:
    """Return the Item of a file of BTS' set: a copy if the encoding stays, else a conversion."""
    scene = source.parent.name
    if split == "Train":
        target = PurePosixPath("Train", f"{scene}_out", f"{int(number)}.{'jpg' if is_rgb else 'png'}")
    else:
        target = PurePosixPath("Test", f"{scene}_{number}_{'colors' if is_rgb else 'depth'}.png")
    if split == "Train" and not is_rgb:
        return Item(
            target,
            TRAIN_FILE_BYTES,
            False,
            lambda path: _save_png(path, image.encode_train_depth(image.load_test_depth(source))),
        )
    if split == "Test" and is_rgb:
        return Item(target, TEST_FILE_BYTES, False, lambda path: _save_png(path, image.load_rgb(source)))
    if is_rgb and source.suffix.lower() != ".jpg":
        return Item(target, TRAIN_FILE_BYTES, False, lambda path: _save_jpeg(path, image.load_rgb(source)))
    return Item(target, source.stat().st_size, True, _copier(source))


def make(items: Sequence[Item], out: Path) -> None:
    """Write every Item that does not exist yet in folder `out`.

    Raises DataError before writing anything if `out` contains other files or the disk has too little space.
    """
    wanted = {str(item.target) for item in items}
    if len(wanted) < len(items):
        twice = collections.Counter(str(item.target) for item in items).most_common(1)[0][0]
        raise DataError(f"{twice}: two files of the set would become it: expected one of them")
    present = [
        path
        for split in ("Train", "Test")
        if (out / split).is_dir()
        for path in _searched(out / split, folders.BELOW, ("",))
    ]
    for folder in {(out / target).parent for target in wanted}:
        remove_partial(folder)
    foreign = [str(path) for path in present if path.relative_to(out).as_posix() not in wanted]
    if foreign:
        raise DataError(f"{foreign[0]}: not of this set; expected an empty folder, or one that this command has begun")
    remaining = [item for item in items if not item.is_done(out)]
    needed = sum(item.size for item in remaining) + SPARE_BYTES
    free = shutil.disk_usage(writable_folder(out)).free
    if needed > free:
        raise DataError(f"{out}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
    with cli.progress(len(items), "preparing", "file", len(items) - len(remaining)) as bar:
        for item in remaining:
            path = out / item.target
            path.parent.mkdir(parents=True, exist_ok=True)
            item.make(path)
            bar.update()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the NYU folder to make or to continue")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--hu", type=Path, help="Hu's set: its zip, or the folder it was unpacked into")
    source.add_argument("--labeled", type=Path, help="nyu_depth_v2_labeled.mat")
    source.add_argument("--fastdepth", type=Path, help="FastDepth's or Hugging Face's set: folder or .tar")
    source.add_argument("--bts", type=Path, help="BTS' set: the folder with sync and official_splits, or sync itself")
    parser.add_argument("--splits", type=Path, help="with --labeled: splits.mat")
    parser.add_argument("--link", action="store_true", help="with --hu FOLDER: symbolic links instead of copies")
    parser.add_argument("--output_dir", type=Path, help="write check.json and check.png there")
    options = parser.parse_args()
    if bool(options.labeled) != bool(options.splits) or (options.link and not options.hu):
        parser.error(
            "expected --hu PATH [--link], --labeled nyu_depth_v2_labeled.mat --splits splits.mat, "
            "--fastdepth PATH or --bts FOLDER"
        )
    if options.hu:
        make(hu_items(options.hu, options.link), options.out)
    elif options.bts:
        make(bts_items(options.bts), options.out)
    elif options.fastdepth:
        with fastdepth_items(options.fastdepth) as items:
            make(items, options.out)
    else:
        with labeled_items(options.labeled, options.splits) as items:
            make(items, options.out)
    return check_nyu.present(check_nyu.check(options.out, cli.default_workers()), options.output_dir)


if __name__ == "__main__":
    cli.run(main)
