"use strict";
// A hundred thousand points as pixels: each is a small disc, written straight into the picture, so that one frame takes
// a few milliseconds on any machine and needs no graphics card.
const CELLS = 128;

class Points {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.count = 0;
  }

  // x and y of each point from -1 to 1, and its area.
  set(places, areaOf) {
    const count = this.count = areaOf.length;
    this.x = new Float32Array(count);
    this.y = new Float32Array(count);
    this.areaOf = areaOf;
    for (let at = 0; at < count; at++) {
      this.x[at] = places[2 * at] / 32767.5 - 1;
      this.y[at] = places[2 * at + 1] / 32767.5 - 1;
    }
    this.sort();
  }

  // Points by the cell of a grid that they lie in: who is looked for is near.
  sort() {
    const starts = this.starts = new Uint32Array(CELLS * CELLS + 1);
    const cells = new Uint16Array(this.count);
    for (let at = 0; at < this.count; at++) {
      cells[at] = this.cell(this.y[at]) * CELLS + this.cell(this.x[at]);
      starts[cells[at] + 1]++;
    }
    for (let cell = 0; cell < CELLS * CELLS; cell++) starts[cell + 1] += starts[cell];
    const next = starts.slice();
    this.sorted = new Uint32Array(this.count);
    for (let at = 0; at < this.count; at++) this.sorted[next[cells[at]]++] = at;
    // Drawn in this order, a point lies in memory where the one before lay.
    this.across = Float32Array.from(this.sorted, at => this.x[at]);
    this.up = Float32Array.from(this.sorted, at => this.y[at]);
    this.area = Uint8Array.from(this.sorted, at => this.areaOf[at]);
  }

  cell(value) {
    return Math.min(CELLS - 1, Math.max(0, Math.floor((value + 1) / 2 * CELLS)));
  }

  // The point nearest to a place, at most so far away; -1 where there is none.
  nearest(x, y, most) {
    let best = -1, least = most * most;
    for (let row = this.cell(y - most); row <= this.cell(y + most); row++) {
      const from = this.starts[row * CELLS + this.cell(x - most)], to = this.starts[row * CELLS + this.cell(x + most) + 1];
      for (let place = from; place < to; place++) {
        const at = this.sorted[place], dx = this.x[at] - x, dy = this.y[at] - y, distance = dx * dx + dy * dy;
        if (distance < least) [best, least] = [at, distance];
      }
    }
    return best;
  }

  resize(width, height, ratio) {
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.image = this.context.createImageData(this.canvas.width, this.canvas.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  // Colours are numbers of four bytes, one for each area; unit and offsets turn places into pixels.
  draw(unit, left, top, radius, colours) {
    const { across, up, area, pixels } = this, { width, height } = this.canvas, margin = Math.ceil(radius) + 1;
    pixels.fill(0);
    // The whole of a disc, and its rim, which is half as strong and covers nothing.
    const inner = [], rim = [];
    for (let down = -margin; down <= margin; down++) {
      for (let right = -margin; right <= margin; right++) {
        const distance = Math.hypot(right, down);
        if (distance <= radius) inner.push(down * width + right);
        else if (distance < radius + .4) rim.push(down * width + right);
      }
    }
    const [own, edge] = [Int32Array.from(inner), Int32Array.from(rim)];
    const strong = Uint32Array.from(colours), faint = strong.map(colour => colour & 0xffffff | (colour >>> 25) << 24);
    const right = width - margin, bottom = height - margin;
    for (let at = 0; at < area.length; at++) {
      const column = across[at] * unit + left + .5 | 0, row = top - up[at] * unit + .5 | 0;
      if (column < margin || row < margin || column >= right || row >= bottom) continue;
      const middle = row * width + column, colour = strong[area[at]], weak = faint[area[at]];
      for (let part = 0; part < own.length; part++) pixels[middle + own[part]] = colour;
      for (let part = 0; part < edge.length; part++) {
        if (pixels[middle + edge[part]] === 0) pixels[middle + edge[part]] = weak;
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }
}

// Colours of areas: of a dozen hues, each area takes the one that is least like those of its neighbours.
const HUES = [255, 25, 145, 60, 320, 195, 95, 285, 0, 170, 225, 45];

function coloursOf(areas, isDark) {
  const chosen = [];
  areas.forEach((area, at) => {
    let best = 0, most = -1;
    HUES.forEach((hue, number) => {
      let least = 1e9;
      for (let other = 0; other < at; other++) {
        const apart = Math.hypot(area.place[0] - areas[other].place[0], area.place[1] - areas[other].place[1]);
        const turn = Math.abs(HUES[chosen[other]] - hue), unlike = Math.min(turn, 360 - turn) / 180;
        least = Math.min(least, unlike + 3 * apart);
      }
      if (least > most + 1e-9) [best, most] = [number, least];
    });
    chosen.push(best);
  });
  return chosen.map((hue, at) => {
    const strong = at % 2 ? .04 : 0;
    return isDark ? `oklch(${.74 - strong} .13 ${HUES[hue]})` : `oklch(${.58 + strong} .14 ${HUES[hue]})`;
  });
}

// A colour in words as the four bytes of a pixel.
const palette = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

function pixelOf(colour, alpha = 255) {
  palette.fillStyle = colour;
  palette.fillRect(0, 0, 1, 1);
  const [red, green, blue] = palette.getImageData(0, 0, 1, 1).data;
  return (alpha << 24 | blue << 16 | green << 8 | red) >>> 0;
}
