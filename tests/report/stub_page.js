// As much of a page as the explorer's script uses; NUMBERS and SCRIPT are put in by the test.
class Element {
  constructor(tag) {
    const names = new Set();
    Object.assign(this, {tag, children: [], attributes: {}, style: {}, listeners: {}, text: ""});
    this.classList = {add: (name) => names.add(name), contains: (name) => names.has(name)};
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
    if (name === "value") this.value = String(value);
  }
  appendChild(child) {
    this.children.push(child);
    if (this.tag === "select" && this.value === undefined) this.value = child.value;
  }
  set textContent(text) { this.text = text; this.children = []; }
  get textContent() { return this.text + this.children.map((child) => child.textContent).join("|"); }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  find(tag) {
    return this.children.flatMap((child) => [...(child.tag === tag ? [child] : []), ...child.find(tag)]);
  }
}
const root = new Element("div");
root.querySelector = () => ({textContent: NUMBERS});
const document = {
  getElementById: () => root,
  createElement: (tag) => new Element(tag),
  createElementNS: (_, tag) => new Element(tag),
};
// SCRIPT
const [cell, strategy] = root.find("select"), [slider] = root.find("input"), shown = {};
function look(name) {
  const bars = root.find("rect").map((bar) => bar.attributes.fill);
  shown[name] = {output: root.find("output")[0].textContent, note: root.find("p")[0].textContent,
    colours: [...new Set(bars)]};
}
look("start");
cell.value = "1";
cell.listeners.change();
look("no such strategy");
strategy.value = "joint";
slider.value = "8";
slider.listeners.input();
look("second cell");
console.log(JSON.stringify(shown));
