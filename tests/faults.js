// What is cut off or sticks out in the page as it is now: a list of {kind, what, scrolls}. Folded code is opened first.
// kinds: page (the body scrolls sideways), cut (hidden by an ancestor or below a box's edge), out (beyond the window),
// code (a code cell that has to be scrolled), table (same of a table), figure (same of a picture or formula).
(() => {
  document.querySelectorAll("article details").forEach((each) => { each.open = true; });
  const found = [], wide = document.documentElement.clientWidth;
  const say = (kind, element, more) => found.push({
    kind, what: `<${element.tagName.toLowerCase()} class="${element.getAttribute("class") || ""}"> ` +
      `${(element.textContent || element.getAttribute("alt") || "").trim().replace(/\s+/g, " ").slice(0, 70)} (${more})`,
  });
  const root = document.scrollingElement;
  if (root.scrollWidth > wide) {
    found.push({kind: "page", what: `body is ${root.scrollWidth} wide in a window of ${wide}`});
  }
  const article = document.querySelector("article") || document.body;
  for (const element of article.querySelectorAll("*")) {
    if (!element.getClientRects().length || element.closest(".visually-hidden, .sr-only, [hidden], .headerlink, .copybtn")) continue;
    const inMath = element.closest("math") && element.tagName !== "math";
    if (inMath) continue;
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    if (box.width < 2 || box.height < 2) continue;
    // Its own content: cut at an edge it cannot be scrolled past.
    if (!(element instanceof SVGElement) && element.clientHeight) {
      if (["hidden", "clip"].includes(style.overflowX) && element.scrollWidth > element.clientWidth + 1) say("cut", element, "wide");
      if (style.overflowY !== "visible" && element.scrollHeight > element.clientHeight + 1 &&
          style.maxHeight === "none") say("cut", element, "high");
    }
    // Text in a drawing: inside the drawing.
    if (element.tagName === "text" && element.ownerSVGElement) {
      const frame = element.ownerSVGElement.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) {
        say("cut", element, "text beyond its drawing");
      }
      continue;
    }
    let scrolled = false;
    for (let above = element.parentElement; above && above !== article.parentElement; above = above.parentElement) {
      const edge = above.getBoundingClientRect(), overflow = getComputedStyle(above).overflowX;
      if (["auto", "scroll"].includes(overflow)) { scrolled = true; break; }
      if (["hidden", "clip"].includes(overflow) && (box.right > edge.right + 1 || box.left < edge.left - 1)) {
        say("cut", element, `${overflow} by ${above.tagName.toLowerCase()}`);
      }
    }
    if (!scrolled && (box.right > wide + 1 || box.left < -1)) say("out", element, `to ${Math.round(box.right)} of ${wide}`);
    // What has to be scrolled inside its box.
    if (["auto", "scroll"].includes(style.overflowX) && element.scrollWidth > element.clientWidth + 1) {
      const kind = element.tagName === "PRE" ? "code" : element.querySelector("table") ? "table" : "figure";
      say(kind, element, `${element.scrollWidth} in ${element.clientWidth}`);
    }
  }
  return found;
})()
