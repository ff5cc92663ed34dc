// The map of `catlip atlas`: dots, or pictures where there is room for them; searched, walked through, zoomed into.
(() => {
const data = JSON.parse(document.getElementById("atlas").textContent);
const part = id => document.getElementById(id);
const map = part("map"), find = part("find"), panel = part("panel"), sheets = [...document.querySelectorAll(".sheet")];
const count = data.keys.length, each = data.columns ** 2, coloured = 8, few = 200, margin = 28;
const plain = text => " " + text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();
const names = data.names.map(plain), captions = data.captions.map(plain);
let view = {x: .5, y: .5, zoom: 1}, chosen = -1, matches = [...data.keys.keys()], colours, queued = false;

function side() { return (Math.min(map.clientWidth, map.clientHeight) - 2 * margin) * view.zoom; }
function place(i) {
  return [map.clientWidth / 2 + (data.x[i] / data.scale - view.x) * side(),
          map.clientHeight / 2 + (data.y[i] / data.scale - view.y) * side()];
}
function inside([x, y]) { return x > -20 && y > -20 && x < map.clientWidth + 20 && y < map.clientHeight + 20; }
function colour(i) { const first = data.labels[i][0]; return first < coloured ? colours[first] : colours[coloured]; }
function picture(context, i, x, y, size) {
  const cell = i % each, w = data.width[i], h = data.height[i], scale = size / Math.max(w, h);
  context.drawImage(sheets[Math.floor(i / each)], cell % data.columns * data.side,
    Math.floor(cell / data.columns) * data.side, w, h, x - w * scale / 2, y - h * scale / 2, w * scale, h * scale);
}
function draw() {
  queued = false;
  const style = getComputedStyle(document.documentElement), context = map.getContext("2d"), dense = devicePixelRatio;
  colours = [...Array(coloured).keys()].map(i => style.getPropertyValue("--c" + i));
  colours.push(style.getPropertyValue("--bad"));
  map.width = map.clientWidth * dense;
  map.height = map.clientHeight * dense;
  context.scale(dense, dense);
  const radius = Math.min(6, (count < 1000 ? 4 : 2.2) * Math.sqrt(view.zoom)), isMatch = new Uint8Array(count);
  for (const i of matches) isMatch[i] = 1;
  context.globalAlpha = .15;
  for (let i = 0; i < count; i++) if (!isMatch[i]) dot(context, i, radius);
  const there = matches.filter(i => inside(place(i)));
  context.globalAlpha = .85;
  for (const i of there) if (there.length > few) dot(context, i, radius); else framed(context, i, 44);
  context.globalAlpha = 1;
  if (chosen >= 0) framed(context, chosen, 64);
}
function dot(context, i, radius) {
  const [x, y] = place(i);
  context.fillStyle = colour(i);
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fill();
}
function framed(context, i, size) {
  const [x, y] = place(i), scale = size / Math.max(data.width[i], data.height[i]);
  const w = data.width[i] * scale + 4, h = data.height[i] * scale + 4;
  context.fillStyle = colour(i);
  context.fillRect(x - w / 2, y - h / 2, w, h);
  picture(context, i, x, y, size);
}
function redraw() { if (!queued) { queued = true; requestAnimationFrame(draw); } }

function element(kind, text, add = {}) { return Object.assign(document.createElement(kind), {textContent: text}, add); }
function sheet(i, size) {
  const found = element("canvas", "", {width: size, height: size});
  found.setAttribute("role", "img");
  found.setAttribute("aria-label", (data.captions[i] || data.keys[i]).slice(0, 200));
  picture(found.getContext("2d"), i, size / 2, size / 2, size);
  return found;
}
function button(name, more = "") {
  const found = element("button", name + more, {className: "tag", type: "button"});
  found.onclick = () => { find.value = find.value === name ? "" : name; search(); };
  return found;
}
function choose(i, centred = false) {
  chosen = i;
  panel.replaceChildren(sheet(i, 256), element("div", data.captions[i], {className: "caption"}),
    ...data.labels[i].map(label => button(data.names[label])), element("div", data.keys[i], {className: "soft"}));
  const [x, y] = place(i);
  if (centred || x < 0 || y < 0 || x > map.clientWidth || y > map.clientHeight)
    view = {...view, x: data.x[i] / data.scale, y: data.y[i] / data.scale};
  redraw();
}
function search() {
  const words = plain(find.value), exact = words.trim() ? names.indexOf(words) : -1, all = [...data.keys.keys()];
  matches = exact >= 0 ? all.filter(i => data.labels[i].includes(exact)) : all.filter(i =>
    captions[i].includes(words) || data.labels[i].some(label => names[label].includes(words)));
  if (!words.trim()) matches = all;
  part("count").textContent = `${matches.length.toLocaleString("en")} of ${count.toLocaleString("en")}`;
  for (const one of part("legend").children) one.setAttribute("aria-pressed", exact >= 0 && one.value == exact);
  const first = words.trim() ? matches.slice(0, 24) : [];
  part("matches").replaceChildren(...first.map(i => {
    const one = element("button", "", {type: "button", className: "card"});
    one.append(sheet(i, 96));
    one.onclick = () => choose(i, true);
    return one;
  }));
  redraw();
}
function zoom(factor, x = map.clientWidth / 2, y = map.clientHeight / 2) {
  const before = side();
  view.zoom = Math.min(200, Math.max(1, view.zoom * factor));
  const moved = 1 / before - 1 / side();
  view.x += (x - map.clientWidth / 2) * moved;
  view.y += (y - map.clientHeight / 2) * moved;
  if (view.zoom === 1) view = {x: .5, y: .5, zoom: 1};
  redraw();
}
function nearest(x, y, allowed) {
  let best = -1, least = Infinity;
  for (const i of matches) {
    const [px, py] = place(i), far = Math.hypot(px - x, py - y);
    if (far < least && allowed(px - x, py - y, i)) [best, least] = [i, far];
  }
  return best;
}
const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
map.addEventListener("keydown", event => {
  const step = steps[event.key];
  if (step) {
    const [x, y] = chosen >= 0 ? place(chosen) : [map.clientWidth / 2, map.clientHeight / 2];
    const ahead = (dx, dy, i) => i !== chosen &&
      (chosen < 0 || dx * step[0] + dy * step[1] > Math.abs(dx * step[1] + dy * step[0]));
    const next = nearest(x, y, ahead);
    if (next >= 0) choose(next);
  } else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") zoom(0);
  else return;
  event.preventDefault();
});
const held = new Map();
let travelled = 0;
map.addEventListener("pointerdown", event => {
  held.set(event.pointerId, [event.offsetX, event.offsetY]);
  travelled = 0;
  map.setPointerCapture(event.pointerId);
});
map.addEventListener("pointermove", event => {
  const before = held.get(event.pointerId), now = [event.offsetX, event.offsetY];
  if (!before) return;
  held.set(event.pointerId, now);
  travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
  const other = [...held].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const apart = at => Math.hypot(at[0] - other[0], at[1] - other[1]);
    zoom(apart(now) / Math.max(apart(before), 1), ...other);
  } else {
    view.x -= (now[0] - before[0]) / side();
    view.y -= (now[1] - before[1]) / side();
    redraw();
  }
});
map.addEventListener("pointerup", event => {
  held.delete(event.pointerId);
  if (travelled > 6) return;
  const hit = nearest(event.offsetX, event.offsetY, (dx, dy) => Math.hypot(dx, dy) < 30);
  if (hit >= 0) choose(hit);
});
map.addEventListener("pointercancel", event => held.delete(event.pointerId));
map.addEventListener("wheel", event => {
  zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  event.preventDefault();
}, {passive: false});
find.addEventListener("input", search);
data.names.slice(0, coloured).forEach((name, i) => {
  const one = button(name, ` ${data.counts[i].toLocaleString("en")}`);
  one.value = i;
  one.style.borderColor = `var(--c${i})`;
  one.prepend(element("span", "\u25cf ", {style: `color:var(--c${i})`, ariaHidden: "true"}));
  part("legend").append(one);
});
new ResizeObserver(redraw).observe(map);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("load", search);
})();
