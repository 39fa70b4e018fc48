// Shows the depth map, the depth under the pointer in metres, and the distance between two points. All data are in
// `props.value` (web/page.py: pointer_value); the script sends no requests to the server.
const part = (name) => element.querySelector(`.${name}`);
let map = null;
let points = [];
let hover = null;

function decoded(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

function load() {
  points = [];
  hover = null;
  const value = props.value ? JSON.parse(props.value) : null;
  map = value && {...value, depth: decoded(value.depth), truth: value.truth && decoded(value.truth)};
  part("pointer").style.display = map ? "" : "none";
  if (!map) return;
  paint();
  paintBar();
  draw();
}

function colourOf(metres) {
  const index = Math.min(255, Math.floor(metres * (255 / map.max_depth)));
  return map.colours.slice(3 * index, 3 * index + 3);
}

function paint() {
  const pixels = new ImageData(map.width, map.height);
  map.depth.forEach((depth, index) => pixels.data.set([...colourOf(depth * map.unit), 255], 4 * index));
  map.painted = document.createElement("canvas");
  map.painted.width = map.width;
  map.painted.height = map.height;
  map.painted.getContext("2d").putImageData(pixels, 0, 0);
}

function paintBar() {
  const stops = Array.from({length: 17}, (_, index) => {
    const [red, green, blue] = colourOf((index / 16) * map.max_depth);
    return `rgb(${red} ${green} ${blue}) ${(index / 16) * 100}%`;
  });
  part("bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10].find((metres) => map.max_depth / metres <= 6) ?? Math.ceil(map.max_depth / 6);
  const ticks = [];
  for (let metres = 0; metres <= map.max_depth + 1e-9; metres += step) {
    const tick = document.createElement("span");
    tick.style.left = `${(metres / map.max_depth) * 100}%`;
    tick.textContent = `${Number(metres.toFixed(1))} m`;
    ticks.push(tick);
  }
  part("ticks").replaceChildren(...ticks);
}

// Returns the 3D point of a pixel in metres, along the camera's axes (src/prediction/pointcloud.py: points).
function point3d({x, y}) {
  const z = map.depth[y * map.width + x] * map.unit;
  return [z * (x - map.cx) / map.fx, z * (y - map.cy) / map.fy, z];
}

function draw() {
  const canvas = part("map");
  canvas.width = map.width;
  canvas.height = map.height;
  const pen = canvas.getContext("2d");
  pen.drawImage(map.painted, 0, 0);
  const size = Math.max(map.width, map.height) / 160;
  for (const [colour, width] of [["black", 1.6 * size], ["white", 0.7 * size]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    for (const {x, y} of [...points, ...(hover ? [hover] : [])]) {
      pen.beginPath();
      pen.arc(x + 0.5, y + 0.5, 2.5 * size, 0, 2 * Math.PI);
      pen.stroke();
    }
    if (points.length === 2) {
      pen.beginPath();
      pen.moveTo(points[0].x + 0.5, points[0].y + 0.5);
      pen.lineTo(points[1].x + 0.5, points[1].y + 0.5);
      pen.stroke();
    }
  }
  part("here").textContent = hover ? metresAt(hover) : "point at the picture: its depth in metres";
  part("distance").textContent = points.length === 2
    ? `${Math.hypot(...point3d(points[0]).map((metres, axis) => metres - point3d(points[1])[axis])).toFixed(2)} m between the two points`
    : points.length === 1 ? "click the second point" : "click two points: the distance between them";
}

function metresAt({x, y}) {
  const index = y * map.width + x;
  const predicted = `${(map.depth[index] * map.unit).toFixed(2)} m`;
  if (!map.truth) return predicted;
  return map.truth[index] ? `${predicted} (true: ${(map.truth[index] * map.unit).toFixed(2)} m)` : `${predicted} (not measured)`;
}

function at(event) {
  const box = part("map").getBoundingClientRect();
  const cell = (position, length, cells) => Math.min(cells - 1, Math.max(0, Math.floor((position / length) * cells)));
  return {x: cell(event.clientX - box.left, box.width, map.width), y: cell(event.clientY - box.top, box.height, map.height)};
}

const ofMap = (listener) => (event) => {
  if (map && event.target.classList.contains("map")) listener(event);
};
element.addEventListener("pointermove", ofMap((event) => {
  hover = at(event);
  draw();
}));
element.addEventListener("pointerout", ofMap((event) => {
  if (event.pointerType === "mouse") hover = null; // keep the depth on the screen after a finger is lifted
  draw();
}));
element.addEventListener("click", ofMap((event) => {
  hover = at(event);
  points = points.length === 2 ? [at(event)] : [...points, at(event)];
  draw();
}));
watch("value", load);
load();
