"""Builds the libraries that stand for CANN (README.md), and says in which environment MindSpore loads its plugin."""

import ctypes
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
PACKAGE = Path(importlib.util.find_spec("mindspore").origin).parent
PLUGIN = PACKAGE / "lib" / "plugin"

# The plugin: with what it opens on a 910B and, the graph engine's, on a 910A.
PLUGIN_LIBRARIES = (
    "plugin/libmindspore*ascend.so*",
    "plugin/ascend/lib*.so",
    "plugin/ascend/ms_kernels*/**/lib/*.so",
    "libmindspore_ge_backend.so",
)

# What the plugin opens by name while it runs; what it is linked to, it says itself.
OPENED = (
    "libacl_op_compiler.so",
    "libacl_tdt_channel.so",
    "libacl_tdt_queue.so",
    "libascend_hal.so",
    "libgmem.so",
    "libopapi.so",
    "libprofapi.so",
    "libruntime.so",
)


def missing() -> str | None:
    """Why the emulator cannot be built here, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the emulator is x86-64 code, this is {platform.machine()}"
    if not (PLUGIN / "libmindspore_ascend.so.2").exists():
        return "this MindSpore has no Ascend plugin"
    tools = [tool for tool in ("gcc", "g++", "nm", "objdump") if not shutil.which(tool)]
    return f"no {', '.join(tools)} (on Debian: apt install g++)" if tools else None


def build(folder: Path) -> None:
    """Build the libraries in a new folder, to be named "cann": in others MindSpore finds no function that waits."""
    libraries = folder / "lib64"
    libraries.mkdir(parents=True)
    _make_hccl(folder / "python" / "hccl")
    plugin = [
        path for pattern in PLUGIN_LIBRARIES for path in (PACKAGE / "lib").glob(pattern) if _is_x86_64(path)
    ]  # the operators for the chip's own ARM cores are not
    sources = {
        "runtime.c": ["gcc"],
        "trace.cc": ["g++", "-std=c++17"],
        "preload.cc": ["g++", "-std=c++17"],
        "graph_engine.cc": ["g++", "-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=0"],
    }
    compile_all = [
        subprocess.Popen(
            [
                *compiler,
                "-Wall",
                "-Wextra",
                "-O1",
                "-fPIC",
                "-c",
                SOURCE / name,
                "-o",
                (folder / name).with_suffix(".o"),
            ]
        )
        for name, compiler in sources.items()
    ]
    unknown = _undefined(plugin) - _defined(path for path in PACKAGE.rglob("*.so*") if path.is_file())
    assert all(process.wait() == 0 for process in compile_all)
    objects = [(folder / name).with_suffix(".o") for name in sources]
    stubs = folder / "stubs.c"
    stubs.write_text(
        "#define STUB(name) long name(void) { return 0; }\n"
        + "".join(f"STUB({name})\n" for name in sorted(unknown - _defined(objects, dynamic=False)))
    )
    subprocess.run(["gcc", "-w", "-fno-builtin", "-O1", "-fPIC", "-c", stubs, "-o", folder / "stubs.o"], check=True)
    subprocess.run(
        [
            "g++",
            "-shared",
            "-Wl,-soname,libascendcl.so",
            *objects,
            folder / "stubs.o",
            "-ldl",
            "-o",
            libraries / "libascendcl.so",
        ],
        check=True,
    )
    for name in _absent_libraries(plugin) | set(OPENED):  # all are this library
        if not (libraries / name).exists():
            (libraries / name).symlink_to("libascendcl.so")


def environment(folder: Path, **settings: object) -> dict[str, str]:
    """What has to be set to run on the emulator that was built in `folder`. Settings:
    soc, device_error (runtime.c) and cores (preload.cc)."""
    return {
        "ASCEND_HOME_PATH": str(folder),
        "ASCEND_OPP_PATH": str(folder / "opp"),
        "LD_LIBRARY_PATH": f"{folder / 'lib64'}:{PLUGIN / 'ascend'}",
        "LD_PRELOAD": str(folder / "lib64" / "libascendcl.so"),
        "PYTHONPATH": f"{folder / 'python'}:{folder / 'opp/built-in/op_impl/ai_core/tbe'}",
        **{f"EMULATED_{name.upper()}": str(value) for name, value in settings.items()},
    }


def _make_hccl(package: Path) -> None:
    """The Python package that comes with CANN, of which MindSpore reads the version. (`te`, which it would compile
    operators with, is absent: MindSpore says so once, and goes on.)"""
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sys_version.py").write_text('__sys_version__ = "9.1.0"\n')


def _is_x86_64(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(20)[18:] == b"\x3e\x00"  # ELF's e_machine


def _symbols(paths, *options: str) -> list[list[str]]:
    paths = list(map(str, paths))
    listed = subprocess.run(["nm", *options, *paths], capture_output=True, text=True, check=False).stdout
    return [line.split() for line in listed.splitlines()]


def _undefined(paths) -> set[str]:
    """What the libraries want from others, the compiler's, Python's and the system's left out. HCCL's functions are
    among the weak ones, which MindSpore calls nevertheless."""
    names = {fields[1] for fields in _symbols(paths, "-D", "--undefined-only") if len(fields) == 2}
    names = {name for name in names if "@" not in name and not name.startswith(("__", "_ITM", "_ZTH", "Py", "_Py"))}
    system = ctypes.CDLL(None), ctypes.CDLL("libstdc++.so.6")  # most of their names have a version, after an "@"
    return {name for name in names if not any(hasattr(library, name) for library in system)}


def _defined(paths, dynamic: bool = True) -> set[str]:
    fields = _symbols(paths, "--defined-only", *(["-D"] if dynamic else []))
    return {words[2].split("@")[0] for words in fields if len(words) == 3}


def _absent_libraries(paths) -> set[str]:
    """The names of the libraries that these are linked to, and neither MindSpore nor the system has."""
    listed = subprocess.run(["objdump", "-p", *map(str, paths)], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[1] for line in listed.splitlines() if line.split()[:1] == ["NEEDED"]}
    known = {path.name for path in PACKAGE.parent.rglob("*.so*")}
    system = subprocess.run(
        ["ldconfig", "-p"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"},
    ).stdout
    return {name for name in needed - known if name not in system}


if __name__ == "__main__":
    cann = Path(sys.argv[1]).resolve() / "cann"
    build(cann)
    sys.stdout.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in environment(cann).items())
