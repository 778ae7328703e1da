/** Takes a photograph with this device's camera, which is on only as long as its window is open. */

import { button, el } from './dom.js';
import { photograph } from './photograph.js';

const WANTED = { video: { facingMode: 'environment', width: { ideal: 640 } } };

/** Opens the window: a live picture, and a button that takes it. */
export async function openCamera(app) {
  await app.loadMore();
  if (document.querySelector('dialog')) return; // it was pressed twice
  const { t } = app, told = el('p', { role: 'status' }, t('camera_waits'));
  const video = el('video', { muted: true, playsInline: true, 'aria-label': t('camera_sees') });
  const take = button(t('camera_take'), async () => {
    take.disabled = true;
    try {
      await takePicture(app, video);
    } finally {
      dialog.close();
    }
  }, { disabled: true });
  const close = button(t('camera_close'), () => dialog.close());
  const dialog = el('dialog', { 'aria-label': t('camera') }, video, told, el('div', { className: 'row' }, take, close));
  const hide = () => document.hidden && dialog.close();
  document.addEventListener('visibilitychange', hide);
  dialog.onclose = () => {
    document.removeEventListener('visibilitychange', hide);
    stop(video.srcObject);
    dialog.remove();
  };
  document.body.append(dialog);
  dialog.showModal();
  try {
    const stream = await navigator.mediaDevices.getUserMedia(WANTED);
    if (!dialog.open) return stop(stream);
    video.srcObject = stream;
    stream.getVideoTracks()[0].onended = () => {
      told.textContent = t('camera_ended');
      take.disabled = true;
    };
    await video.play();
    told.textContent = t('camera_ready');
    take.disabled = false;
  } catch ({ name, message }) {
    stop(video.srcObject);
    const isKnown = ['NotAllowedError', 'NotFoundError', 'NotReadableError'].includes(name);
    told.textContent = isKnown ? t(`camera_${name}`) : `${name}: ${message}`;
  }
}

async function takePicture(app, video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext('2d').drawImage(video, 0, 0);
  photograph(app, await canvas.convertToBlob({ type: 'image/jpeg', quality: 0.95 }));
}

function stop(stream) {
  stream?.getTracks().forEach((track) => track.stop());
}
