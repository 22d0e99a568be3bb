// Files from a chooser, a drop (with whole folders) or the clipboard, as {file, name} with the path.

const MOST = 20000; // files of one drop

/** Let the person choose files. */
export function choose({ accept = "image/*", several = true } = {}) {
  return new Promise((resolve) => {
    const input = document.createElement("input");
    Object.assign(input, { type: "file", accept, multiple: several, hidden: true });
    input.addEventListener("change", () => {
      resolve([...input.files].map((file) => ({ file, name: file.name })));
      input.remove();
    });
    input.addEventListener("cancel", () => { resolve([]); input.remove(); });
    document.body.append(input);
    input.click();
  });
}

/** Read everything that was dropped; folders are walked. */
export async function dropped(transfer) {
  // the list of entries is only there until the event has been handled
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

async function walk(entry, folder, found) {
  if (entry.name.startsWith(".") || found.length >= MOST) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ file, name: folder + entry.name });
    return;
  }
  const reader = entry.createReader();
  while (true) { // a reader gives at most a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const child of some) await walk(child, `${folder}${entry.name}/`, found);
  }
}

/** The images of a paste. */
export function pasted(event) {
  return [...(event.clipboardData?.files ?? [])]
    .filter((file) => file.type.startsWith("image/"))
    .map((file) => ({ file, name: file.name || "pasted.png" }));
}
