/** Looks at the scene: where a point falls on the screen, and which cell lies under a point of the screen. */

import { outlineOf } from './layout.js';

export const HOME = { azimuth: -0.42, elevation: 0.3, distance: 1, panX: 0, panY: 0 };
const FIELD_OF_VIEW = 0.5;

/** A view of a layout. `flatness` goes from 0 (shelves in depth) to 1 (all in one plane, seen from the front). */
export class View {
  /** `screen` is {width, height} in pixels, `room` {left, top, width, height}: what labels leave free of it. */
  constructor(layout, screen, room) {
    Object.assign(this, { layout, screen, room });
    this.fits = [this.fit(0), this.fit(1)];
  }

  /** Sets where to look from. */
  look(camera, flatness) {
    const [deep, flat] = this.fits, [distance, ...shift] = deep.map((value, i) => value + (flat[i] - value) * flatness);
    this.place(camera, distance * camera.distance, shift, flatness);
  }

  /** Finds the distance and the shift at which the whole scene fills the room, seen from HOME: [distance, x, y]. */
  fit(flatness) {
    const { room, screen } = this;
    let distance = this.layout.height * 2, shift = [0, 0];
    for (let pass = 0; pass < 8; pass++) {
      this.place(HOME, distance, shift, flatness);
      const { left, right, top, bottom } = this.box(), x = room.left + (room.width - left - right) / 2, y = room.top + (room.height - top - bottom) / 2;
      distance *= Math.max((right - left) / room.width, (bottom - top) / room.height);
      shift = [shift[0] + (2 * x) / screen.width, shift[1] - (2 * y) / screen.height];
    }
    return [distance, ...shift];
  }

  /** Computes the matrix of a perspective view, column by column. */
  place({ azimuth, elevation, panX, panY }, distance, [shiftX, shiftY], flatness) {
    const a = azimuth * (1 - flatness), e = elevation * (1 - flatness), [ca, sa, ce, se] = [Math.cos(a), Math.sin(a), Math.cos(e), Math.sin(e)];
    const turnedAndMoved = [[ca, se * sa, -ce * sa, 0], [0, ce, se, 0], [sa, -se * ca, ce * ca, 0], [panX, panY, -distance, 1]];
    const near = distance / 10, far = distance * 4, lens = 1 / Math.tan(FIELD_OF_VIEW / 2), aspect = this.screen.width / this.screen.height;
    // The others will be divided by the last number, -z: a shift on the screen is a multiple of it.
    const columns = turnedAndMoved.map(([x, y, z, w]) => [(lens / aspect) * x - shiftX * z, lens * y - shiftY * z, ((far + near) * z + 2 * far * near * w) / (near - far), -z]);
    Object.assign(this, { distance, flatness, matrix: new Float32Array(columns.flat()) });
  }

  /** The rectangle, in pixels, that holds some of the maps. */
  box(quads = this.layout.quads) {
    const points = quads.flatMap((quad) => this.outline(quad)), xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
    return { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
  }

  /** Corners of a map in pixels. */
  outline(quad) {
    return outlineOf(quad).map((corner) => this.toPixels(corner));
  }

  /** Where a point of the scene falls, in clip space: x and y from -1 to 1. */
  project([x, y, z]) {
    const m = this.matrix, depth = z * (1 - this.flatness);
    const w = m[3] * x + m[7] * y + m[11] * depth + m[15];
    return [(m[0] * x + m[4] * y + m[8] * depth + m[12]) / w, (m[1] * x + m[5] * y + m[9] * depth + m[13]) / w];
  }

  /** Where a point of the scene falls, in pixels from the upper left. */
  toPixels(point) {
    const [x, y] = this.project(point);
    return [((x + 1) / 2) * this.screen.width, ((1 - y) / 2) * this.screen.height];
  }

  /** Length of a pixel, in units of the scene, at its middle. */
  unitsPerPixel() {
    return (2 * this.distance * Math.tan(FIELD_OF_VIEW / 2)) / this.screen.height;
  }

  /** The nearest cell under a pixel: {quad, y, x}; undefined if there is none. */
  pick(pixelX, pixelY) {
    const X = (pixelX / this.screen.width) * 2 - 1, Y = 1 - (pixelY / this.screen.height) * 2;
    const hits = this.layout.quads.map((quad) => this.hit(quad, X, Y)).filter(Boolean);
    return hits.sort((a, b) => a.depth - b.depth)[0];
  }

  /** Where the ray through (X, Y) meets the plane of a map: two linear equations. */
  hit(quad, X, Y) {
    const m = this.matrix, z = quad.z * (1 - this.flatness);
    const a = m[0] - X * m[3], b = m[4] - X * m[7], c = X * (m[11] * z + m[15]) - m[8] * z - m[12];
    const d = m[1] - Y * m[3], e = m[5] - Y * m[7], f = Y * (m[11] * z + m[15]) - m[9] * z - m[13];
    const determinant = a * e - b * d;
    const x = (c * e - b * f) / determinant, y = (a * f - c * d) / determinant;
    const u = (x - quad.x) / quad.width + 0.5, v = 0.5 - (y - quad.y) / quad.height;
    if (!(u >= 0 && u < 1 && v >= 0 && v < 1)) return null;
    return { quad, y: Math.floor(v * quad.rows), x: Math.floor(u * quad.columns), depth: m[3] * x + m[7] * y + m[11] * z + m[15] };
  }
}
