/** Draws the maps with a plain canvas, for browsers without WebGL2: always flat. It has the methods of `Scene`. */

import { colorOf, css } from './palette.js';

export class Flat {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.values = null;
  }

  /** Takes the maps' places. */
  setLayout(layout) {
    this.pictures = layout.quads.map(({ columns, rows }) => Object.assign(document.createElement('canvas'), { width: columns, height: rows }));
    this.layout = layout;
    this.painted = null;
  }

  /** Takes the values of all layers, one after another. */
  setValues(values) {
    this.values = values;
  }

  /** Draws one frame. */
  draw({ view, ranges, palette, styleOf, frames, links }) {
    const { context } = this, ratio = this.canvas.width / view.screen.width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = inkOf(palette.clear);
    context.fillRect(0, 0, view.screen.width, view.screen.height);
    context.imageSmoothingEnabled = false;
    this.paint(ranges, palette);
    this.layout.quads.forEach((quad, i) => this.drawMap(this.pictures[i], view.outline(quad), palette, styleOf(quad)));
    for (const link of links) this.drawLink(link, view, palette);
    for (const { corners, width = 1.5 } of frames) this.drawFrame(corners.map((corner) => view.toPixels(corner)), inkOf(palette.mark), width);
  }

  /** Paints all maps anew if something of them has changed. */
  paint(ranges, palette) {
    const seen = [this.values, ranges, palette];
    if (!this.values || seen.every((thing, i) => thing === this.painted?.[i])) return;
    this.painted = seen;
    this.layout.quads.forEach((quad, i) => paintMap(this.pictures[i], this.values, quad, ranges[quad.shelf], palette));
  }

  drawMap(picture, outline, palette, style) {
    const [left, top] = outline[0], [right, bottom] = outline[2], ink = inkOf(palette.mark);
    this.context.drawImage(picture, left, top, right - left, bottom - top);
    this.context.globalAlpha = style ? 1 : 0.28;
    this.drawFrame(outline, ink, 1);
    this.context.globalAlpha = 1;
    if (style > 1) this.drawStripes(outline, ink);
  }

  drawFrame(points, ink, width) {
    const { context } = this;
    context.beginPath();
    for (const point of points) context.lineTo(...point);
    context.closePath();
    context.lineWidth = width;
    context.strokeStyle = ink;
    context.stroke();
  }

  drawStripes([[left, top], , [right, bottom]], ink) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(left, top, right - left, bottom - top);
    context.clip();
    for (let x = left - (bottom - top); x < right; x += 6) this.drawFrame([[x, bottom], [x + bottom - top, top]], ink, 2);
    context.restore();
  }

  drawLink({ from, to, sign, alpha, width }, view, palette) {
    const { context } = this;
    context.globalAlpha = alpha;
    this.drawFrame([view.toPixels(from), view.toPixels(to)], inkOf(sign > 0 ? palette.warm : sign < 0 ? palette.cool : palette.mark), width);
    context.globalAlpha = 1;
  }
}

/** Paints a map, one pixel for each value. */
function paintMap(picture, values, { start, rows, columns }, range, palette) {
  const context = picture.getContext('2d'), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) image.data.set([...colorOf(values[start + i], range, palette), 255], i * 4);
  context.putImageData(image, 0, 0);
}

function inkOf(color) {
  return css(color.map((c) => Math.round(255 * c)));
}
