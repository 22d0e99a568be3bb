// The two functions that draw the page: html`...` makes mark-up, patch() turns what is on the page
// into it. Elements that stay keep their focus, their scroll position and what was typed.

class Markup {
  constructor(text) { this.text = text; }
}

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

/** Mark-up in which every inserted value is text, unless html`` made it. */
export function html(strings, ...values) {
  return new Markup(strings.reduce((text, part, i) => text + insert(values[i - 1]) + part));
}

function insert(value) {
  if (value instanceof Markup) return value.text;
  if (Array.isArray(value)) return value.map(insert).join("");
  if (value === null || value === undefined || value === false) return "";
  return String(value).replace(/[&<>"']/g, (char) => ESCAPES[char]);
}

/** Make the children of an element equal to mark-up. */
export function patch(element, markup) {
  const made = document.createElement("template");
  made.innerHTML = markup.text;
  patchChildren(element, made.content);
}

function patchChildren(old, made) {
  const keyed = new Map();
  for (const child of old.children) if (keyOf(child)) keyed.set(keyOf(child), child);
  let next = old.firstChild;
  for (const child of [...made.childNodes]) {
    const key = keyOf(child);
    const same = key ? keyed.get(key) : next && !keyOf(next) ? next : null;
    if (!same || same.nodeName !== child.nodeName) {
      old.insertBefore(child, next);
      continue;
    }
    if (same === next) next = next.nextSibling;
    else old.insertBefore(same, next);
    patchNode(same, child);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

function patchNode(old, made) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== made.nodeValue) old.nodeValue = made.nodeValue;
    return;
  }
  const drawn = drawnText(old);
  patchAttributes(old, made);
  if (!old.hasAttribute("data-keep")) patchChildren(old, made);
  if (old !== document.activeElement) patchValue(old, made, drawn);
}

function patchAttributes(old, made) {
  for (const { name, value } of [...made.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!made.hasAttribute(name) && name !== "open") old.removeAttribute(name); // the person's own
  }
}

/** The text that was last drawn into a field, whatever a person typed there since. */
function drawnText(field) {
  return field.nodeName === "TEXTAREA" ? field.defaultValue : field.getAttribute("value") ?? "";
}

/** Set what a person could have changed, which attributes alone do not. What was typed stays until
    another text than the last is to be drawn there. */
function patchValue(old, made, drawn) {
  if (old.type === "checkbox" || old.type === "radio") old.checked = made.hasAttribute("checked");
  else if (old.nodeName === "INPUT" || old.nodeName === "TEXTAREA") {
    const text = drawnText(made);
    if (text !== drawn && old.value !== text) old.value = text;
  } else if (old.nodeName === "SELECT") {
    const chosen = old.querySelector("option[selected]");
    if (chosen && old.value !== chosen.value) old.value = chosen.value;
  }
}

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.dataset.key || node.id : "";
}
