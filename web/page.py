"""The web page: predicts the depth of pictures and videos, and shows it as a map, a mesh and files.

Built with Gradio (https://www.gradio.app). The page connects to no other server.
"""

import base64
import contextlib
import errno
import hashlib
import html
import json
import logging
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from src.base.arrays import Floats, Pixels
from src.base.errors import NotFinite, UserError
from src.base.files import StrPath
from src.data import image
from src.data.listing import Pair
from src.prediction import depth_files
from src.prediction.job import VIDEOS, Job
from src.prediction.pointcloud import Intrinsics, write_glb
from src.prediction.predict import DepthPredictor, blended
from src.scoring import visual
from web.gate import MAX_UPLOAD, Gate
from web.visits import CACHE_S, VISITORS, Prediction, Visit, Visits

if TYPE_CHECKING:
    from src.prediction.video import Video

LONGEST_SIDE = 1280  # pixels; larger pictures are reduced, so that browsers can show them and their meshes
POINTER_SIDE = 480  # longest side in pixels of the depth map that follows the pointer
LONGEST_VIDEO_S, MOST_FRAMES, LARGEST_FRAME = 60, 3600, 4096 * 2304  # limits of a video: seconds, frames, pixels
MESH_TAB = "3D"
COLORMAPS = ("turbo", "viridis", "magma", "gray")

FORMS = {
    "color": "Coloured PNG: for people; its colours are no measure",
    "side": "Picture beside depth, PNG",
    "png16": "16-bit PNG: millimetres; looks black in a viewer",
    "npy": "NumPy .npy: float32 metres",
    "ply": "PLY point cloud: metres; x right, y down, z forward",
}

TITLE = """# Depth from one picture
DepthNet on MindSpore predicts how far away every pixel is, in metres. It was trained on indoor scenes: NYU Depth V2."""

CSS = """
.pointer .map { width: 100%; cursor: crosshair; touch-action: pan-y; border-radius: 4px; display: block }
.pointer .bar { height: 14px; border-radius: 4px; margin-top: 8px }
.pointer .ticks { position: relative; height: 20px; font-size: 12px; margin: 0 14px 0 0 }
.pointer .ticks span { position: absolute; white-space: nowrap }
.pointer .read { display: flex; flex-wrap: wrap; gap: 4px 24px; font-variant-numeric: tabular-nums; margin: 4px 0 }
#nets .thumbnail-lg { aspect-ratio: 4 / 3 }
.pointer .here { font-weight: 600; min-width: 8em }
"""

_POINTER = """<div class="pointer">
<div class="read"><span class="here" aria-live="polite"></span><span class="distance" aria-live="polite"></span></div>
<canvas class="map" aria-label="depth map"></canvas>
<div class="bar"></div><div class="ticks"></div>
</div>"""


class Picture(gr.Image):
    """An image whose value is the path of the uploaded file, so that its size is checked before decoding and its EXIF
    is kept."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return payload and payload.path


class Clip(gr.Video):
    """A video whose value is the path of the uploaded file, without a conversion by ffmpeg."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return payload and payload.path


class Page:
    """The page.

    Args:
        predictor: predicts the depth.
        about: a line of Markdown about the nets.
        pairs: test pairs offered as examples, with their true depth.
        folder: the folder for files of visitors.
        queue: largest number of waiting visitors. Further visitors are asked to try again later.
    """

    def __init__(
        self, predictor: DepthPredictor, about: str, pairs: Sequence[Pair], folder: Path, queue: int = 16
    ) -> None:
        self.predictor, self.about, self.folder, self.queue = predictor, about, folder, queue
        self.examples = [pair.rgb for pair in pairs]
        self.truths = {_digest(pair.rgb): pair.depth for pair in pairs}
        self.visits = Visits(folder)

    def predict(
        self, path: str | None, before: Prediction | None, degrees: float, request: gr.Request | None = None
    ) -> Prediction | None:
        """Predict the depth of a picture.

        Args:
            path: the uploaded file, or None.
            before: the visitor's previous prediction, whose files are deleted.
            degrees: horizontal field of view; 0: from EXIF if present, else the Kinect's.
            request: identifies the visitor.

        Returns:
            The prediction, or None without a picture.

        Raises gr.Error if the picture cannot be predicted.
        """
        if before:
            before.discard()
        if not path:
            return None
        name = Path(path).name
        with _plainly(path, name):
            rgb = _reduced(image.load_rgb(path))
            size = rgb.shape[:2]
            writer, lens = self._writer(degrees).of_photograph(path, size)
            started_at = time.perf_counter()
            (maps,) = self.predictor.maps([rgb], [name])
            depth_m = blended(size, maps) * lens
            seconds = time.perf_counter() - started_at
            truth = self.truths.get(_digest(path))
            return Prediction(
                name,
                rgb,
                depth_m,
                blended(size, maps, "CoarseNet") * lens,
                image.resize_depth(image.load_test_depth(truth), size) if truth else None,
                writer.camera(*size),
                float(lens),
                seconds,
                Path(tempfile.mkdtemp(dir=self.visits.of(request).folder)),
            )

    def _writer(self, degrees: float) -> depth_files.Writer:
        """Return a Writer with the same camera as predict.py: a field of view above 0 takes precedence over EXIF."""
        camera = Intrinsics.kinect
        if degrees:
            camera = lambda height, width: Intrinsics.from_fov(height, width, degrees)  # noqa: E731
        return depth_files.Writer(tuple(FORMS), COLORMAPS[0], 10.0, camera, follow_exif=not degrees)

    def show(self, prediction: Prediction | None, colormap: str, max_depth: float) -> tuple[Any, Any, Any, str]:
        """Draw a prediction.

        Args:
            prediction: the prediction, or None.
            colormap: one of COLORMAPS.
            max_depth: metres at the end of the colours; 0: automatic.

        Returns:
            The values of the page's components: (map under the pointer, picture and depth to compare, gallery of the
            nets, facts).
        """
        if not prediction:
            return None, None, None, self.about
        end = max_depth or prediction.colour_end
        pictures = [
            (visual.colour(prediction.coarse_m, end, colormap), "CoarseNet"),
            (visual.colour(prediction.depth_m, end, colormap), "FineNet"),
        ]
        height, width = prediction.depth_m.shape
        facts = f"**{prediction.seconds:.2f} s** for {width} x {height} pixels. {self.about}"
        if prediction.lens != 1:
            facts += f" The photograph's EXIF tells another lens than the Kinect's: depth times {prediction.lens:.2f}."
        if prediction.truth_m is not None:
            pictures += _truth_and_error(prediction.depth_m, prediction.truth_m, end, colormap)
        return (pointer_value(prediction, end, colormap), (prediction.rgb, pictures[1][0]), pictures, facts)

    def save(self, prediction: Prediction | None, colormap: str, max_depth: float) -> tuple[str | None, ...]:
        """Write the file of each form in FORMS. Returns their paths, or Nones without a prediction."""
        if not prediction:
            return (None,) * len(FORMS)
        end = max_depth or prediction.colour_end
        writer = replace(self._writer(0), colormap=colormap, max_depth=end, camera=lambda *_: prediction.camera)
        stem = re.sub(r"[^\w.-]+", "_", Path(prediction.name).stem)[:60].strip(".") or "picture"
        paths = Job(Path("picture.png"), prediction.folder / stem).outputs(FORMS)
        with contextlib.suppress(FileNotFoundError):  # the visitor has sent another picture meanwhile
            writer.save(paths, prediction.rgb, prediction.depth_m)
            return tuple(map(str, paths.values()))
        return (None,) * len(FORMS)

    def mesh(self, prediction: Prediction | None, tab: str) -> str | None:
        """Write the coloured mesh and return its path if `tab`, the visible tab, is MESH_TAB; else return None. Gradio
        (6.25 to 6.31) does not show a mesh that arrived while its tab was hidden."""
        if not prediction or tab != MESH_TAB:
            return None
        path = prediction.folder / "mesh.glb"
        with contextlib.suppress(FileNotFoundError):
            write_glb(path, prediction.depth_m, prediction.rgb, prediction.camera)
            return str(path)
        return None

    def video(
        self,
        path: str | None,
        colormap: str,
        max_depth: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        """Predict a video.

        Args:
            path: the uploaded file, or None.
            colormap, max_depth: as in `show`.
            request: identifies the visitor.
            progress: shows the number of frames done.

        Returns:
            The path of a video that shows the picture beside its depth, in a format that browsers play.

        Raises gr.Error if the video cannot be predicted, exceeds the page's limits, or was stopped.
        """
        if not path:
            raise gr.Error("choose a video first", print_exception=False)
        visit, name = self.visits.of(request), Path(path).name
        visit.stopped = False
        with _plainly(path, name):
            job = Job(Path(path), Path(tempfile.mkdtemp(dir=visit.folder)) / "depth")
            clip = _checked_clip(job, name)
            writer = replace(self._writer(0), kinds=("side",), colormap=colormap, max_depth=max_depth or 10.0)
            if not max_depth:
                writer = replace(writer, max_depth=depth_files.depth_range([job], self.predictor, writer)[0])
            bar = _Bar(clip.count, progress, visit)
            depth_files.predict_video(job, clip, self.predictor, writer, self.predictor.batch_size, bar)
            return str(*job.outputs(("side",)).values())

    def launch(self, host: str, port: int) -> gr.Blocks:
        """Start serving the page.

        Args:
            host: the address to listen at, such as 127.0.0.1 (this machine only) or 0.0.0.0.
            port: the port.

        Raises UserError if the address cannot be used.
        """
        logging.getLogger("httpx").setLevel(logging.WARNING)  # hide Gradio's requests to itself
        _check_address(host, port)
        blocks = self._blocks()
        gate = Middleware(
            Gate, cache=Path(get_upload_folder()), folder=self.folder, events=set(blocks.fns), keep_s=CACHE_S
        )
        fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
        blocks.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=MAX_UPLOAD,
            state_session_capacity=VISITORS,
            app_kwargs={"middleware": [gate]},
            allowed_paths=[],
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            run_history=False,
            footer_links=[],
            css=CSS,
            theme=gr.themes.Default(font=fonts[0], font_mono=fonts[1]),
        )
        return blocks

    def _blocks(self) -> gr.Blocks:
        """Return the components and events of the page."""
        page = gr.Blocks(title="DepthNet", analytics_enabled=False, delete_cache=(CACHE_S // 6, CACHE_S))
        page.queue(max_size=self.queue, default_concurrency_limit=4, api_open=False)
        with page:
            gr.Markdown(TITLE)
            with gr.Accordion("Options", open=False), gr.Row():
                colormap = gr.Dropdown(COLORMAPS, value=COLORMAPS[0], label="colours", min_width=140)
                max_depth = gr.Slider(
                    0, 20, 0, step=0.5, label="metres at the end of the colours (0: automatic)", min_width=260
                )
                degrees = gr.Slider(
                    0,
                    150,
                    0,
                    step=1,
                    min_width=260,
                    label="degrees that the picture is wide (0: by EXIF, or NYU's Kinect)",
                )
            with gr.Tab("Picture"):
                self._picture_tab(colormap, max_depth, degrees)
            with gr.Tab("Video"):
                self._video_tab(colormap, max_depth)
            page.unload(self.visits.leave)
        return page

    def _picture_tab(self, colormap: gr.Dropdown, max_depth: gr.Slider, degrees: gr.Slider) -> None:
        """Add the components of the picture tab, and the events that predict a picture and show its depth."""
        prediction = gr.State(None, time_to_live=CACHE_S, delete_callback=lambda expired: expired and expired.discard())
        tab = gr.State("Depth")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture, facts, new_picture = self._picture_input()
            with gr.Column(scale=3, min_width=300), gr.Tabs() as tabs:
                pointer, compare, mesh, nets, files = _result_tabs()
        colours, shown = [prediction, colormap, max_depth], [pointer, compare, nets, facts]

        def save(*inputs: Any) -> list[gr.DownloadButton]:
            return [gr.DownloadButton(value=path, interactive=path is not None) for path in self.save(*inputs)]

        def select_tab(prediction: Prediction | None, event: gr.SelectData) -> tuple[str, str | None]:
            tab = str(event.value)
            return tab, self.mesh(prediction, tab)

        tabs.select(select_tab, prediction, [tab, mesh], show_progress="hidden")
        changes = [colormap.input, max_depth.input]
        for event in (*new_picture, degrees.input):
            predicted = event(
                self.predict,
                [picture, prediction, degrees],
                prediction,
                concurrency_id="nets",
                concurrency_limit=1,
                show_progress_on=[pointer],
                trigger_mode="always_last",
            )
            # After an error, show nothing rather than the previous picture's depth.
            cleared = predicted.failure(lambda: None, None, prediction, queue=False)
            changes += [predicted.success, cleared.then]
        for event in changes:
            drawn = event(
                self.show,
                colours,
                shown,
                show_progress="hidden",
                trigger_mode="always_last",
                concurrency_id="show",  # with the limit of 1, requests are answered in order
                concurrency_limit=1,
            )
            meshed = drawn.then(self.mesh, [prediction, tab], mesh, show_progress="hidden")
            meshed.then(save, colours, files, show_progress="hidden")

    def _picture_input(self) -> tuple[Picture, gr.Markdown, list[Any]]:
        """Add the components that take a picture. Returns (picture, facts about its depth, events of a new picture)."""
        picture = Picture(
            label="drop, paste or photograph a picture", elem_id="picture", sources=["upload", "clipboard", "webcam"]
        )
        facts = gr.Markdown(self.about, elem_id="facts")
        events: list[Any] = [picture.input]
        if self.examples:
            examples = gr.Examples(
                [str(path) for path in self.examples],
                picture,
                examples_per_page=12,
                label="examples, with their true depth",
            )
            events.append(examples.load_input_event.success)
        return picture, facts, events

    def _video_tab(self, colormap: gr.Dropdown, max_depth: gr.Slider) -> None:
        """Add the components and events of the video tab."""
        with gr.Row():
            video = Clip(label=f"a video of at most {LONGEST_VIDEO_S} s", elem_id="video", sources=["upload", "webcam"])
            result = gr.Video(label="picture beside depth", elem_id="video-depth", interactive=False)
        with gr.Row():
            gr.Button("Predict", variant="primary", elem_id="predict-video").click(
                self.video, [video, colormap, max_depth], result, concurrency_id="nets", concurrency_limit=1
            )
            gr.Button("Stop", variant="stop", elem_id="stop-video").click(self.visits.stop, queue=False)


def _result_tabs() -> tuple[gr.HTML, gr.ImageSlider, gr.Model3D, gr.Gallery, list[gr.DownloadButton]]:
    """Add the tabs that show a prediction. Returns (map under the pointer, picture and depth to compare, mesh, gallery
    of the nets, files)."""
    with gr.Tab("Depth"):
        pointer = gr.HTML(
            None,
            html_template=_POINTER,
            elem_id="pointer",
            apply_default_css=False,
            js_on_load=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
        )
    with gr.Tab("Compare"):
        compare = gr.ImageSlider(show_label=False, elem_id="compare", format="jpeg", buttons=["fullscreen"])
    with gr.Tab(MESH_TAB):
        mesh = gr.Model3D(
            label="drag to turn it",
            elem_id="mesh",
            height=480,
            camera_position=(90, 80, None),
            clear_color=(0.94, 0.94, 0.94, 1),
        )
    with gr.Tab("Nets"):
        nets = gr.Gallery(
            columns=2, show_label=False, elem_id="nets", format="png", object_fit="contain", height=590, preview=False
        )
    with gr.Tab("Files"):
        files = [
            gr.DownloadButton(label, interactive=False, elem_id=f"file-{kind}", size="md")
            for kind, label in FORMS.items()
        ]
    return pointer, compare, mesh, nets, files


def _truth_and_error(depth_m: Floats, truth_m: Floats, end: float, colormap: str) -> list[tuple[Pixels, str]]:
    """Return the pictures of the true depth and of the relative error, with their captions.

    Args:
        depth_m: predicted metres (H, W).
        truth_m: true metres (H, W), 0 = not measured.
        end: metres at the end of the colours.
        colormap: one of COLORMAPS.
    """
    measured = truth_m > 0
    error = np.where(measured, np.abs(depth_m - truth_m) / np.where(measured, truth_m, 1), 0)
    mean = error[measured].mean() if measured.any() else np.nan
    return [
        (visual.colour(truth_m, end, colormap), "true depth (black: not measured)"),
        (
            visual.colour(error + 1e-6 * measured, 0.5, "magma"),
            f"relative error, from 0 to 50 % and more (mean {mean:.0%})",
        ),
    ]


class _Bar:
    """Shows the progress of `predict_video` on the page, and raises UserError when the visitor has stopped it."""

    def __init__(self, total: int, progress: gr.Progress, visit: Visit) -> None:
        self.total, self.progress, self.visit, self.done = total, progress, visit, 0

    def update(self, count: int = 1) -> None:
        self.done += count
        if self.visit.stopped:
            raise UserError("stopped")
        self.progress((self.done, max(self.total, self.done)), unit="frames")


def _checked_clip(job: Job, name: str) -> "Video":
    """Open the video of a Job. Raises UserError if it is no video or exceeds the page's limits. `name`: as the visitor
    called the file."""
    from src.prediction.video import Video

    if not job.is_video:
        raise UserError(f"{name}: no video; expected one of {' '.join(VIDEOS)}")
    clip = Video(job.source, LARGEST_FRAME)
    if clip.seconds > LONGEST_VIDEO_S or clip.count > MOST_FRAMES:
        raise UserError(
            f"{name}: {clip.seconds:.0f} s long; expected at most {LONGEST_VIDEO_S} s, and {MOST_FRAMES} "
            f"frames; it has {clip.count}"
        )
    return clip


def _check_address(host: str, port: int) -> None:
    """Raise UserError unless the page can be served at this address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {host}: {getattr(error, 'strerror', None) or error}: expected an address of this machine"
        ) from error
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
            raise UserError(f"cannot serve at {host}, port {port}: {error.strerror}: {option} takes another") from error


@contextlib.contextmanager
def _plainly(path: object, name: str) -> Iterator[None]:
    """Show errors of this block in the browser, with the visitor's name of the file instead of its path here."""
    try:
        yield
    except (UserError, NotFinite, OSError) as error:
        text = html.escape(str(error).replace(str(path), name))
        raise gr.Error(text, print_exception=False) from error


def pointer_value(prediction: Prediction, max_depth: float, colormap: str) -> str:
    """Return the input of page.js as JSON: depth as little-endian uint16 in base64, its unit in metres (0.001, or more
    if the depth would not fit), the colours, and the camera in pixels of the map."""
    height, width = prediction.depth_m.shape
    unit_m = max(0.001, float(prediction.depth_m.max()) / 65535)
    scale = min(1, POINTER_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))

    def packed(depth_m: Floats) -> str:
        units = cv2.resize(depth_m, size[::-1], interpolation=cv2.INTER_NEAREST) / unit_m
        return base64.b64encode(np.rint(units).clip(0, 65535).astype("<u2").tobytes()).decode()

    across, down = size[1] / width, size[0] / height
    return json.dumps(
        {
            "width": size[1],
            "height": size[0],
            "unit": unit_m,
            "max_depth": max_depth,
            "colours": visual.colour_table(colormap).ravel().tolist(),
            "depth": packed(prediction.depth_m),
            "truth": None if prediction.truth_m is None else packed(prediction.truth_m),
            "fx": prediction.camera.fx * across,
            "cx": (prediction.camera.cx + 0.5) * across - 0.5,
            "fy": prediction.camera.fy * down,
            "cy": (prediction.camera.cy + 0.5) * down - 0.5,
        }
    )


def _reduced(rgb: Pixels) -> Pixels:
    """Resize a picture to at most LONGEST_SIDE pixels along its longer side."""
    scale = LONGEST_SIDE / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    height, width = (max(1, round(length * scale)) for length in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)


def _digest(path: StrPath) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
