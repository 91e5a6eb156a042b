// Run in a page with an iframe for each page and width. Writes what it measures, as JSON, into the document.
function rgba(text) {
  const found = text.match(/[\d.]+/g)?.map(Number);
  return found ? [...found.slice(0, 3), found[3] ?? 1] : [0, 0, 0, 0];
}
function over([r, g, b, alpha], below) {
  return [r, g, b].map((value, i) => alpha * value + (1 - alpha) * below[i]);
}
function contrast(one, other) { // WCAG 2.2, 1.4.3
  const luminance = color => color.map(value => value / 255).map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function paint(element) { // what an element puts below the text that lies on it
  const style = element.ownerDocument.defaultView.getComputedStyle(element);
  if (!(element.namespaceURI.endsWith("svg") && element.tagName !== "svg")) return rgba(style.backgroundColor);
  if (style.fill === "none" || ["g", "text", "tspan"].includes(element.tagName)) return [0, 0, 0, 0];
  const [r, g, b, alpha] = rgba(style.fill);
  return [r, g, b, alpha * style.fillOpacity * style.opacity];
}
function texts(page) {
  const found = [], walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, range = page.createRange();
    range.selectNodeContents(node);
    const box = range.getClientRects()[0];
    if (!node.data.trim() || !box || ["TITLE", "STYLE", "title"].includes(element.tagName)) continue;
    const x = box.x + Math.min(box.width, 8) / 2;
    if (x > page.defaultView.innerWidth - 1) continue; // In a table that scrolls.
    const stack = page.elementsFromPoint(x, box.y + box.height / 2);
    const layers = stack.filter(one => one !== element).map(paint).reverse();
    const canvas = rgba(page.defaultView.getComputedStyle(page.documentElement).backgroundColor);
    const ground = layers.reduce((below, layer) => over(layer, below), over(canvas, [255, 255, 255]));
    const style = page.defaultView.getComputedStyle(element);
    const own = element.namespaceURI.endsWith("svg") ? style.fill : paint(element)[3] ? null : style.color;
    const under = own ? ground : over(paint(element), ground);
    const color = over(rgba(own ?? style.color), under);
    found.push({text: node.data.trim().slice(0, 40), reached: stack.length > 0, contrast: contrast(color, under)});
  }
  return found;
}
function measure(frame) {
  const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
  if (frame.dataset.print) {
    for (const sheet of page.styleSheets)
      for (const rule of sheet.cssRules) if (rule.media?.mediaText === "print") rule.media.mediaText = "all";
  }
  page.querySelectorAll("details").forEach(one => one.open = true);
  frame.style.height = page.documentElement.scrollHeight + 50 + "px";
  const pictures = [...page.querySelectorAll("svg, img, canvas, object")].filter(one => !one.closest("[aria-hidden=true]"));
  const alternative = one => (one.alt || one.closest("[role=img]")?.getAttribute("aria-label") || "").trim();
  return {
    name: frame.name, width, scrollWidth: page.scrollingElement.scrollWidth,
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    pictures: pictures.map(one => ({alternative: alternative(one), source: one.getAttribute("src") ?? one.tagName})),
    cut: [...page.querySelectorAll("body *")].filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth
      && frame.contentWindow.getComputedStyle(one).overflowX !== "visible" || one.getBoundingClientRect().right > width + 1)
      .map(one => one.outerHTML.slice(0, 80)),
    texts: texts(page),
  };
}
addEventListener("load", () => {
  document.body.dataset.measured = JSON.stringify([...document.querySelectorAll("iframe")].map(measure));
});
