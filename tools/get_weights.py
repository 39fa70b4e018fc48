"""Download the two checkpoints published for the model zoo's DepthNet: Apache 2.0, "provided only for research and
education purposes". Every command can load them.

On a machine without a network, pass the downloaded files: --from FILE FILE.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli
from src.base.errors import UserError
from src.base.files import replacing, writable_folder

# The address and the checksums are from mindspore-ai/hub, mshub_res/assets/mindspore/1.10.
BASE_URL = "https://download.mindspore.cn/models/r1.10"
# Our file name -> (name on the server, SHA-256).
PUBLISHED = {
    "FinalCoarseNet.ckpt": (
        "depthnet_coarsenet_ascend_v1100_nyu_official_cv.ckpt",
        "6ea1a2c51f512e07f5bda19343b66713956d27a83ac8b60ebbb8ddd876a7dcfd",
    ),
    "FinalFineNet.ckpt": (
        "depthnet_finenet_ascend_v1100_nyu_official_cv.ckpt",
        "d3a680e4f1abf104195534720f2fcc7b547421853abf9fc0c55f7443f6797d1f",
    ),
}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train_url", type=Path, default=cli.MODEL, help="parent of the checkpoints' folder Ckpt (default: Model)")
    add("--from", dest="files", type=Path, nargs="+", metavar="FILE", help="use these files instead of downloading")
    add("--base_url", default=BASE_URL, help="address of a mirror (default: %(default)s)")
    add("--timeout", type=cli.positive_float, default=30.0, help="seconds to wait for the server")
    downloads: cli.Needs = dict.fromkeys(
        ("base_url", "timeout"), ("a download, which --from replaces", lambda options: not options.files)
    )
    return cli.parse(parser, arguments, downloads)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises UserError if there is no such file."""
    import pooch

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return pooch.file_hash(str(path), alg="sha256")


def fetch(name: str, expected: str, options: argparse.Namespace) -> Path:
    """Return the path of a published file in the cache, after downloading it if necessary.

    Args:
        name: the file's name on the server.
        expected: its SHA-256 in hexadecimal.
        options: the address of the server (`base_url`), and the seconds to wait for it (`timeout`).

    Raises UserError if the file has another SHA-256 or cannot be downloaded.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    url = f"{options.base_url.rstrip('/')}/{name}"
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=options.timeout)
    try:
        return Path(pooch.retrieve(url, f"sha256:{expected}", name, pooch.os_cache("depthnet"), downloader=downloader))
    except (requests.RequestException, OSError, ValueError) as error:  # ValueError: another checksum
        reason = (
            "what came has another SHA-256 than published"
            if isinstance(error, ValueError) and not isinstance(error, requests.RequestException)
            else str(error).split("(Caused by")[0]
        )
        raise UserError(f"{url}: {reason}; fetch it in another way and name it with --from") from error


def main() -> int:
    options = parse_args()
    folder = options.train_url / "Ckpt"
    local_files = {sha256(path): path for path in options.files or []}
    known = {expected for _, expected in PUBLISHED.values()}
    for digest, path in local_files.items():
        if digest not in known:
            raise UserError(
                f"{path}: not one of the published files: its SHA-256 is {digest}, expected "
                + " or ".join(sorted(known))
            )
    wanted = {}
    for target, (name, expected) in PUBLISHED.items():
        path = folder / target
        if path.exists() and sha256(path) != expected:
            raise UserError(f"{path}: another checkpoint is there: move it away, or name another --train_url")
        if path.exists():
            logging.info("%s: there already", path)
        elif not options.files or expected in local_files:
            wanted[path] = (name, expected)
    for path, (name, expected) in wanted.items():
        source = local_files.get(expected) or fetch(name, expected, options)
        writable_folder(folder)
        with replacing(path, "wb") as file:
            file.write(source.read_bytes())
        logging.info("%s: %s, for research and education", path, name)
    return 0


if __name__ == "__main__":
    cli.run(main)
