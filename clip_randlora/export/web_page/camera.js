// The camera: shown in a <video>, and asked about one frame after the other.

let stream = null, facing = "environment";

/** Open the camera; a phone's that looks away from the person, until it is turned. */
export async function open(video) {
  close(video);
  if (!navigator.mediaDevices) throw new Error("Browsers give pages the camera only over https, or on this machine itself.");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480, facingMode: facing } });
  } catch (error) {
    throw new Error(error.name === "NotFoundError" ? "There is no camera here."
      : "The browser did not let the page use the camera; allow it in its settings.");
  }
  video.srcObject = stream;
  await video.play();
}

export function close(video) {
  stream?.getTracks().forEach((track) => track.stop());
  stream = video.srcObject = null;
}

export const isOpen = () => stream !== null;

/** Whether there is another camera to turn to; known once one is open. */
export async function isOneOfSeveral() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter((device) => device.kind === "videoinput").length > 1;
}

export function turn(video) {
  facing = facing === "user" ? "environment" : "user";
  return open(video);
}

/** Hand on what the camera sees, a frame after the other, until it is closed. */
export async function watch(video, onFrame) {
  const watched = stream;
  while (stream === watched) {
    if (video.videoWidth && !document.hidden) await onFrame(await createImageBitmap(video));
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}
