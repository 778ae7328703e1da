/** Looks at the scene: where a point falls on the screen, and which cell lies under a point of the screen. */

export const HOME = { azimuth: -0.42, elevation: 0.3, distance: 1, panX: 0, panY: 0 };
const FIELD_OF_VIEW = 0.5;

/**
 * A view of a layout: from where, and how the scene is fitted into the pixels that labels leave free.
 * `flatness` goes from 0 (shelves in depth) to 1 (all in one plane, seen from the front).
 */
export class View {
  /**
   * @param {{quads: object[], height: number}} layout
   * @param {{width: number, height: number, margins: {top: number, right: number, bottom: number, left: number}}} screen in pixels
   */
  constructor(layout, screen) {
    this.layout = layout;
    this.screen = screen;
    this.fits = [this.fit(0), this.fit(1)];
  }

  /** Sets where to look from. */
  look(camera, flatness) {
    const fits = this.fits.map((fit) => fit[0]), shifts = this.fits.map((fit) => fit[1]);
    const mix = (a, b) => a + (b - a) * flatness;
    this.flatness = flatness;
    const shift = [mix(shifts[0][0], shifts[1][0]), mix(shifts[0][1], shifts[1][1])];
    this.distance = mix(...fits) * camera.distance;
    this.matrix = matrixOf(camera, this.distance, shift, flatness, this.screen.width / this.screen.height);
  }

  /** Finds the distance and the shift at which the whole scene fills the room, seen from HOME. */
  fit(flatness) {
    const { width, height, margins } = this.screen;
    let distance = this.layout.height * 2, shift = [0, 0];
    this.flatness = flatness;
    for (let pass = 0; pass < 8; pass++) {
      this.matrix = matrixOf(HOME, distance, shift, flatness, width / height);
      const box = this.box();
      const across = (box.right - box.left) / (width - margins.left - margins.right);
      distance *= Math.max(across, (box.bottom - box.top) / (height - margins.top - margins.bottom));
      const x = (margins.left + width - margins.right) / 2 - (box.left + box.right) / 2;
      const y = (margins.top + height - margins.bottom) / 2 - (box.top + box.bottom) / 2;
      shift = [shift[0] + (2 * x) / width, shift[1] - (2 * y) / height];
    }
    return [distance, shift];
  }

  /** The rectangle, in pixels, that holds some of the maps. */
  box(quads = this.layout.quads) {
    const points = quads.flatMap((quad) => this.outline(quad));
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    return { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
  }

  /** Corners of a map in pixels. */
  outline({ x, y, z, width, height }) {
    return [[-1, 1], [1, 1], [1, -1], [-1, -1]].map(([i, j]) => this.toPixels([x + (i * width) / 2, y + (j * height) / 2, z]));
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

  /** The camera that has one shelf fill the room. */
  closeTo(shelf, camera) {
    const box = this.box(shelf.quads), { width, height } = this.screen;
    const distance = camera.distance * Math.max((box.right - box.left) / (width * 0.8), (box.bottom - box.top) / (height * 0.8), 0.1 / camera.distance);
    const azimuth = camera.azimuth * (1 - this.flatness), elevation = camera.elevation * (1 - this.flatness), z = shelf.z * (1 - this.flatness);
    const depth = Math.cos(azimuth) * z;
    return { ...camera, distance, panX: -Math.sin(azimuth) * z, panY: -(Math.cos(elevation) * shelf.y - Math.sin(elevation) * depth) };
  }

  /** The nearest cell under a pixel: {quad, y, x}; null if there is none. */
  pick(pixelX, pixelY) {
    const X = (pixelX / this.screen.width) * 2 - 1, Y = 1 - (pixelY / this.screen.height) * 2;
    let best = null;
    for (const quad of this.layout.quads) {
      const hit = this.hit(quad, X, Y);
      if (hit && (!best || hit.depth < best.depth)) best = hit;
    }
    return best;
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

/** The matrix of a perspective view, column by column. */
function matrixOf({ azimuth, elevation, panX, panY }, distance, [shiftX, shiftY], flatness, aspect) {
  const a = azimuth * (1 - flatness), e = elevation * (1 - flatness);
  const [ca, sa, ce, se] = [Math.cos(a), Math.sin(a), Math.cos(e), Math.sin(e)];
  const turnY = [ca, 0, -sa, 0, 0, 1, 0, 0, sa, 0, ca, 0, 0, 0, 0, 1];
  const turnX = [1, 0, 0, 0, 0, ce, se, 0, 0, -se, ce, 0, 0, 0, 0, 1];
  const move = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, panX, panY, -distance, 1];
  const near = distance / 10, far = distance * 4, s = 1 / Math.tan(FIELD_OF_VIEW / 2);
  // The last row is -z: so a shift in clip space is a multiple of it in the third column.
  const lens = [s / aspect, 0, 0, 0, 0, s, 0, 0, -shiftX, -shiftY, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0];
  return multiply(lens, multiply(move, multiply(turnX, turnY)));
}

function multiply(a, b) {
  const out = new Float32Array(16);
  for (let column = 0; column < 4; column++) {
    for (let row = 0; row < 4; row++) {
      for (let k = 0; k < 4; k++) out[column * 4 + row] += a[k * 4 + row] * b[column * 4 + k];
    }
  }
  return out;
}
