// Measurements of a page, for looks.py: an object of functions.
(() => ({
  contrast: () => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const parse = (colour) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      return [r, g, b, a / 255];
    };
    const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
    const background = (element) => {
      const layers = [];
      for (let e = element; e; e = e.parentElement) {
        const colour = parse(getComputedStyle(e).backgroundColor);
        layers.push(colour);
        if (colour[3] >= 0.999) break;
      }
      return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
    };
    const light = (colour) => {
      const [r, g, b] = colour.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode, element = node.parentElement;
      if (!node.nodeValue.trim() || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
      const box = element.getBoundingClientRect();
      if (!box.width || !box.height || element.closest(".hidden, script, style, template")) continue;
      const style = getComputedStyle(element), below = background(element);
      let opacity = 1;
      for (let e = element; e; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
      const ink = element.closest("svg") ? style.fill : style.color;
      const [r, g, b, a] = parse(ink);
      const text = over([r, g, b, a * opacity], below);
      const [high, low] = [light(text), light(below)].sort((x, y) => y - x);
      const ratio = (high + 0.05) / (low + 0.05);
      const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
      const least = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
      if (ratio < least) found.push(`${ratio.toFixed(2)}: ${node.nodeValue.trim().slice(0, 40)} <${element.tagName.toLowerCase()} class=${element.className}>`);
    }
    return [...new Set(found)];
  },

  controls: () => {
    const all = [...document.querySelectorAll(".clip :is(button, input, select, textarea, a[href], summary, [tabindex='0'])")];
    const groups = new Set();
    return all.filter((e) => {
      if (e.disabled || !e.checkVisibility() || e.closest(".hidden") || e.matches(":disabled")) return false;
      if (e.type === "radio") {
        if (groups.has(e.name)) return false;
        groups.add(e.name);
      }
      return true;
    }).length;
  },

  focused: () => {
    const e = document.activeElement;
    if (!e || !e.closest(".clip")) return null;
    const style = getComputedStyle(e);
    window.seen ??= new Map();
    if (!window.seen.has(e)) window.seen.set(e, window.seen.size);
    return { id: window.seen.get(e), outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
      what: `${e.tagName} ${(e.innerText || e.id || e.name || "").slice(0, 30)}` };
  },
}))()
