/** Turns a drawing of 112x112 pixels into the network's 28x28, by averaging. */

export function prepare(ink) {
  const image = new Uint8Array(784);
  for (let i = 0; i < 784; i++) {
    let sum = 0;
    for (let k = 0; k < 16; k++) sum += ink[(Math.floor(i / 28) * 4 + (k >> 2)) * 112 + (i % 28) * 4 + (k & 3)];
    image[i] = Math.round(sum / 16);
  }
  return { image, gap: null };
}
