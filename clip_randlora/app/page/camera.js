// The camera: one stream at a time, shown in whichever <video> asks for it.

import { call } from "./server.js";

const SIDE = 512; // pixels, the longer side of a picture
const FRAME_SIDE = 256; // of a streamed one
const BETWEEN = 180; // milliseconds between pictures while the button is held: five a second

let stream = null;

/** Open the camera and show it in a <video>. */
export async function open(video) {
  close();
  if (!navigator.mediaDevices) throw new Error("Browsers give pages the camera only over https, or on this machine itself.");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  } catch (error) {
    const none = error.name === "NotFoundError";
    throw new Error(none ? "There is no camera here." : "The browser did not let the page use the camera; allow it in its settings.");
  }
  video.srcObject = stream;
  await video.play();
}

export function close() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
}

/** Take pictures until the returned function is called; each goes to onPicture. */
export function hold(video, onPicture) {
  const take = async () => onPicture(await picture(video, SIDE));
  take();
  const timer = setInterval(take, BETWEEN);
  return () => clearInterval(timer);
}

function picture(video, side) {
  const canvas = drawn(video, side);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
}

function drawn(video, side) {
  const scale = side / Math.max(video.videoWidth, video.videoHeight, 1);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(video.videoWidth * scale);
  canvas.height = Math.round(video.videoHeight * scale);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Ask for answers to what the camera sees, one after the other, as long as isWanted says so. */
export async function streamAnswers(video, isWanted, ask, onAnswer) {
  while (isWanted()) {
    if (video.videoWidth && !document.hidden) {
      onAnswer(await ask((run, strength) =>
        call("answer_frame", drawn(video, FRAME_SIDE).toDataURL("image/jpeg", 0.85), strength, run)));
    }
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}
