/** Draws lines over the maps of a `Scene`, each two triangles. */

import { inkOf } from './palette.js';
import { attribute, programOf, upload } from './scene.js';

const FLOATS_OF_A_POINT = 6;

const VERTEX = `#version 300 es
layout(location=0) in vec2 place;
layout(location=1) in vec4 ink;
out vec4 k;
void main() { k = ink; gl_Position = vec4(place, 0., 1.); }`;

const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 k;
out vec4 color;
void main() { color = vec4(k.rgb * k.a, k.a); }`;

export class Lines {
  constructor(gl) {
    Object.assign(this, { gl, program: programOf(gl, VERTEX, FRAGMENT), array: gl.createVertexArray(), buffer: gl.createBuffer() });
    upload(gl, this.array, this.buffer, []);
    attribute(gl, 0, 2, FLOATS_OF_A_POINT, 0);
    attribute(gl, 1, 4, FLOATS_OF_A_POINT, 2);
  }

  draw(view, palette, lines) {
    const { gl } = this, points = lines.flatMap((line) => trianglesOf(line, view, inkOf(palette, line.sign)));
    gl.useProgram(this.program);
    upload(gl, this.array, this.buffer, points);
    gl.disable(gl.DEPTH_TEST);
    gl.drawArrays(gl.TRIANGLES, 0, points.length / FLOATS_OF_A_POINT);
    gl.enable(gl.DEPTH_TEST);
  }
}

/** Two triangles for a line, as wide near as far. */
function trianglesOf({ from, to, alpha, width }, view, ink) {
  const { width: w, height: h } = view.screen, [ax, ay] = view.project(from), [bx, by] = view.project(to);
  const dx = (bx - ax) * w, dy = (by - ay) * h, length = Math.hypot(dx, dy) || 1;
  const nx = ((-dy / length) * width) / w, ny = ((dx / length) * width) / h;
  const a = [ax + nx, ay + ny], b = [ax - nx, ay - ny], c = [bx + nx, by + ny], d = [bx - nx, by - ny];
  return [a, b, c, c, b, d].flatMap((corner) => [...corner, ...ink, alpha]);
}
