"use strict";
// One finger or the mouse moves the map, two fingers or the wheel zoom it, and what hardly moved is a click.
const fingers = new Map();
let pressed = null;

function within(event) {
  const box = $("map").getBoundingClientRect();
  return [event.clientX - box.left - $("map").clientLeft, event.clientY - box.top - $("map").clientTop];
}

$("map").addEventListener("pointerdown", event => {
  if (event.target.closest("button") || event.button) return;
  $("map").setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, within(event));
  pressed = fingers.size === 1 ? { at: within(event), moved: false } : null;
});

$("map").addEventListener("pointermove", event => {
  const now = within(event), before = fingers.get(event.pointerId);
  if (!before) {
    if (event.pointerType === "mouse") hover(event.target.closest("button") ? -1 : pointAt(...now, 6));
    return;
  }
  if (fingers.size === 1) {
    if (pressed && !pressed.moved && Math.hypot(now[0] - pressed.at[0], now[1] - pressed.at[1]) < 5) return;
    if (pressed) pressed.moved = true;
    $("map").classList.add("moving");
    hover(-1);
    panBy(now[0] - before[0], now[1] - before[1]);
  } else {
    const [, still] = [...fingers].find(([id]) => id !== event.pointerId);
    const [was, is] = [before, now].map(([x, y]) => Math.hypot(x - still[0], y - still[1]));
    panBy((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    if (was > 1) zoomBy(is / was, (now[0] + still[0]) / 2, (now[1] + still[1]) / 2);
  }
  fingers.set(event.pointerId, now);
});

async function clicked(event) {
  const byHand = event.pointerType !== "mouse", number = pointAt(...within(event), byHand ? 16 : 6);
  if (number < 0) return closePicked();
  hover(number);
  if (byHand) {
    $("tip").hidden = true;
    return showPicked([number]);
  }
  const [passage] = await passagesOf([number]).catch(stale) || [];
  if (passage) corpus.pick(passage);
}

for (const kind of ["pointerup", "pointercancel"]) {
  $("map").addEventListener(kind, event => {
    if (!fingers.delete(event.pointerId)) return;
    $("map").classList.remove("moving");
    if (kind === "pointerup" && pressed && !pressed.moved && !fingers.size) clicked(event);
    pressed = null;
  });
}
$("map").addEventListener("pointerleave", () => { if (!fingers.size) hover(-1); });
$("map").addEventListener("wheel", event => {
  event.preventDefault();
  hover(-1);
  zoomBy(Math.exp(-Math.max(-200, Math.min(200, event.deltaY)) * (event.ctrlKey ? .01 : .003)), ...within(event));
}, { passive: false });
$("map").addEventListener("keydown", event => {
  if (event.target !== $("map") || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = 60;
  const does = {
    ArrowLeft: () => panBy(step, 0), ArrowRight: () => panBy(-step, 0), ArrowUp: () => panBy(0, step), ArrowDown: () => panBy(0, -step),
    "+": () => zoomBy(1.4), "=": () => zoomBy(1.4), "-": () => zoomBy(1 / 1.4), 0: () => moveTo({ x: 0, y: 0, zoom: 1 }),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  event.stopPropagation();
  does();
});
$("zoom-in").addEventListener("click", () => zoomBy(1.6));
$("zoom-out").addEventListener("click", () => zoomBy(1 / 1.6));
$("zoom-all").addEventListener("click", () => {
  closePicked();
  moveTo({ x: 0, y: 0, zoom: 1 });
});
dark.addEventListener("change", paint);
new ResizeObserver(measure).observe($("map"));
