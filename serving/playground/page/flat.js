/** Draws the maps with a plain canvas, without WebGL2: always flat. It has the methods of `Scene`. */

import { colorOf, css, inkOf } from './palette.js';

export class Flat {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
  }

  setLayout({ quads }) {
    this.quads = quads;
    this.pictures = quads.map(({ columns, rows }) => Object.assign(document.createElement('canvas'), { width: columns, height: rows }));
    this.painted = [];
  }

  setValues(values) {
    this.values = values;
  }

  draw({ view, ranges, palette, isOff, lines }) {
    const { context } = this, { width, height } = view.screen, ratio = this.canvas.width / width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = cssOf(palette.clear);
    context.fillRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    this.paint(ranges, palette);
    this.quads.forEach((quad, i) => this.drawMap(this.pictures[i], view.outline(quad), palette, isOff(quad)));
    for (const { from, to, sign, alpha, width: thick } of lines) this.stroke([view.toPixels(from), view.toPixels(to)], inkOf(palette, sign), alpha, thick);
  }

  /** Paints all maps anew, a pixel for each value, if something has changed. */
  paint(ranges, palette) {
    const seen = [this.values, ranges, palette];
    if (seen.every((thing, i) => thing === this.painted[i])) return;
    this.painted = seen;
    this.quads.forEach(({ start, rows, columns, shelf }, k) => {
      const context = this.pictures[k].getContext('2d'), image = context.createImageData(columns, rows);
      for (let i = 0; i < rows * columns; i++) image.data.set([...colorOf(this.values[start + i], ranges[shelf], palette), 255], i * 4);
      context.putImageData(image, 0, 0);
    });
  }

  /** A map and its edge; striped if it is switched off. */
  drawMap(picture, outline, { mark }, isOff) {
    const { context } = this, [[left, top], , [right, bottom]] = outline, height = bottom - top;
    context.drawImage(picture, left, top, right - left, height);
    this.stroke([...outline, outline[0]], mark, isOff ? 1 : 0.28, 1);
    if (!isOff) return;
    context.save();
    context.beginPath();
    context.rect(left, top, right - left, height);
    context.clip();
    for (let x = left - height; x < right; x += 6) this.stroke([[x, bottom], [x + height, top]], mark, 1, 2);
    context.restore();
  }

  stroke(points, ink, alpha, width) {
    const { context } = this;
    Object.assign(context, { globalAlpha: alpha, lineWidth: width, lineCap: 'round', strokeStyle: cssOf(ink) });
    context.beginPath();
    for (const point of points) context.lineTo(...point);
    context.stroke();
    context.globalAlpha = 1;
  }
}

function cssOf(color) {
  return css(color.map((part) => Math.round(255 * part)));
}
