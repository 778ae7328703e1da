/** Draws all maps in one call of WebGL2: rectangles that read from one texture of all values. */

import { DECADES } from './palette.js';

const TEXTURE_WIDTH = 256;
const MAX_SHELVES = 24;
const FLOATS_OF_A_QUAD = 10;

const MAP_VERTEX = `#version 300 es
layout(location=0) in vec2 corner;
layout(location=1) in vec3 place;   // centre
layout(location=2) in vec4 shape;   // width, height, rows, columns
layout(location=3) in vec3 source;  // first value, shelf, is switched off
uniform mat4 view;
uniform float flatness;
out vec2 cell;
flat out vec4 s;
flat out vec3 v;
void main() {
  s = shape;
  v = source;
  cell = (corner * vec2(1., -1.) + .5) * shape.wz;
  gl_Position = view * vec4(place.xy + corner * shape.xy, place.z * (1. - flatness), 1.);
}`;

const MAP_FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler2D;
uniform sampler2D values;
uniform vec3 zero, warm, cool, paper, mark;
uniform float gamma, decades;
uniform vec4 ranges[${MAX_SHELVES}];  // centre, reach, is input, is logarithmic
in vec2 cell;
flat in vec4 s;
flat in vec3 v;
out vec4 color;
void main() {
  ivec2 c = ivec2(min(floor(cell), s.wz - 1.));
  int i = int(v.x) + c.y * int(s.w) + c.x;
  vec4 r = ranges[int(v.y)];
  float t = (texelFetch(values, ivec2(i % ${TEXTURE_WIDTH}, i / ${TEXTURE_WIDTH}), 0).r - r.x) / r.y;
  if (r.w > .5) t = t == 0. ? 0. : sign(t) * clamp(1. + log(abs(t)) / log(10.) / decades, 0., 1.);
  t = clamp(t, -1., 1.);
  float share = pow(abs(t), gamma);
  vec3 rgb = r.z > .5 ? mix(zero, paper, max(t, 0.)) : mix(zero, t < 0. ? cool : warm, t == 0. ? 0. : share);
  vec2 pixels = 1. / max(fwidth(cell), vec2(1e-5));
  if (v.z > .5 && fract((gl_FragCoord.x + gl_FragCoord.y) / 8.) < .4) rgb = mark;  // switched off: striped
  vec2 edge = min(cell, s.wz - cell) * pixels;
  rgb = mix(rgb, mark, (1. - smoothstep(.6, 1.6, min(edge.x, edge.y))) * (v.z > .5 ? 1. : .28));
  color = vec4(rgb, 1.);
}`;

const COLORS = ['zero', 'warm', 'cool', 'paper', 'mark'];

export class Scene {
  /** Takes a canvas; throws if the browser has no WebGL2 for it. */
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext('webgl2', { antialias: true });
    if (!this.gl) throw new Error('no WebGL2');
    const { gl } = this;
    this.maps = programOf(gl, MAP_VERTEX, MAP_FRAGMENT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.enable(gl.DEPTH_TEST);
    this.makeArrays();
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  }

  /** Gives the context back: browsers keep only a few. */
  release() {
    this.gl.getExtension('WEBGL_lose_context')?.loseContext();
  }

  makeArrays() {
    const { gl } = this;
    this.mapArray = gl.createVertexArray();
    gl.bindVertexArray(this.mapArray);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-0.5, -0.5, 0.5, -0.5, -0.5, 0.5, 0.5, 0.5]), gl.STATIC_DRAW);
    attribute(gl, 0, 2, 2, 0);
    this.quadBuffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.quadBuffer);
    [[3, 0], [4, 3], [3, 7]].forEach(([length, start], i) => {
      attribute(gl, i + 1, length, FLOATS_OF_A_QUAD, start);
      gl.vertexAttribDivisor(i + 1, 1);
    });
  }

  /** Takes the maps' places, and how many values there are. */
  setLayout({ quads, net }) {
    const { gl } = this, rows = Math.ceil(net.num_values / TEXTURE_WIDTH);
    this.quads = quads;
    this.padded = new Float32Array(TEXTURE_WIDTH * rows);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.R32F, TEXTURE_WIDTH, rows, 0, gl.RED, gl.FLOAT, this.padded);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
  }

  /** Takes the values of all layers, one after another. */
  setValues(values) {
    const { gl, padded } = this;
    padded.set(values);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, TEXTURE_WIDTH, padded.length / TEXTURE_WIDTH, gl.RED, gl.FLOAT, padded);
  }

  /** Loads what draws lines: until something is pointed at there are none. */
  async loadLines() {
    const { Lines } = await import('./lines.js');
    if (!this.gl.isContextLost()) this.lines ??= new Lines(this.gl);
  }

  /** Draws one frame: the maps, those of which `isOff(quad)` striped, and lines as links.js makes them. */
  draw({ view, ranges, palette, isOff, lines }) {
    const { gl, maps } = this, place = (name) => gl.getUniformLocation(maps, name);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(...palette.clear, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.useProgram(maps);
    gl.uniformMatrix4fv(place('view'), false, view.matrix);
    for (const [name, value] of [['flatness', view.flatness], ['gamma', palette.gamma], ['decades', DECADES]]) gl.uniform1f(place(name), value);
    for (const name of COLORS) gl.uniform3fv(place(name), palette[name]);
    gl.uniform4fv(place('ranges'), ranges.flatMap((r) => [r.center, r.reach, r.isInput ? 1 : 0, r.isLog ? 1 : 0]));
    const data = this.quads.flatMap((q) => [q.x, q.y, q.z, q.width, q.height, q.rows, q.columns, q.start, q.shelf, isOff(q) ? 1 : 0]);
    upload(gl, this.mapArray, this.quadBuffer, data);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.quads.length);
    if (lines.length) this.lines?.draw(view, palette, lines);
  }
}

export function upload(gl, array, buffer, data) {
  gl.bindVertexArray(array);
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(data), gl.STREAM_DRAW);
}

export function programOf(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return program;
}

export function attribute(gl, place, length, stride, start) {
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, length, gl.FLOAT, false, stride * 4, start * 4);
}
