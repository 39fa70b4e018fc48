"""DepthNet: coarse-to-fine monocular depth estimation on MindSpore."""

import os

# On AVX-512 processors oneDNN 3.10 (MindSpore 2.10's) runs NCHW convolutions by its reference kernel, about a
# hundred times slower than the AVX2 one. It reads this at its first use, so it is set before any network runs.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# MindSpore logs from warnings up by default, many of them about absent plugins. GLOG_v=2 brings them back.
os.environ.setdefault("GLOG_v", "3")
# OpenCV would take fewer pixels by them, or abort (OPENCV_IO_MAX_IMAGE_PIXELS).
for name in [name for name in os.environ if name.startswith("OPENCV_")]:
    del os.environ[name]
