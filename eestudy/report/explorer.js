(function () {
  var root = document.getElementById(EXPLORER);
  if (!root || root.classList.contains("ee-on")) return;
  var data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  var NS = "http://www.w3.org/2000/svg";
  function make(tag, attributes, parent, text) {
    var svg = ["svg", "path", "polyline", "polygon", "circle", "line", "rect", "text", "title"].indexOf(tag) >= 0;
    var element = svg ? document.createElementNS(NS, tag) : document.createElement(tag);
    for (var name in attributes) element.setAttribute(name, attributes[name]);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.appendChild(element);
    return element;
  }
  function percent(value, digits) { return value === null ? "\u2013" : (100 * value).toFixed(digits); }
  // A probability near 1 is told by its distance from 1; a score is never above 1, so at 1 nobody leaves.
  function threshold(value) {
    if (value === null || value === 1) return "nobody";
    if (value === "all") return "everybody";
    return value > 0.999 ? "1 \u2212 " + (1 - value).toExponential(1) : String(Number(value.toPrecision(4)));
  }
  var live = make("div", {"class": "ee-live"}, root);
  var controls = make("div", {"class": "ee-controls"}, live);
  function choice(name, options, words) {
    var select = make("select", {}, make("label", {}, controls, name));
    options.forEach(function (value, place) { make("option", {value: value}, select, words ? words[place] : value); });
    select.addEventListener("change", draw);
    return select;
  }
  function distinct(key) {
    var seen = [];
    data.cells.forEach(function (cell) {
      cell.curves.forEach(function (curve) { if (seen.indexOf(curve[key]) < 0) seen.push(curve[key]); });
    });
    return seen;
  }
  var cellChoice = choice("network and data", data.cells.map(function (_, place) { return place; }),
    data.cells.map(function (cell) { return cell.cell; }));
  var strategyChoice = choice("strategy", distinct("strategy"));
  var methodChoice = choice("how the budget is shared out", distinct("method"));
  var label = make("label", {"class": "ee-budget"}, controls, "budget: mean cost, % of the plain backbone's FLOPs");
  var slider = make("input", {type: "range", min: 0, max: data.cells[0].budgets.length - 1, step: 1}, label);
  var half = data.cells[0].budgets.map(function (budget) { return Math.abs(budget - 0.5); });
  slider.value = half.indexOf(Math.min.apply(null, half));
  slider.addEventListener("input", draw);
  var output = make("output", {"aria-live": "polite"}, live);
  var panels = make("div", {"class": "ee-panels"}, live);
  var left = make("div", {}, panels), right = make("div", {}, panels);
  var rows = make("div", {"class": "ee-rows", tabindex: 0, role: "region", "aria-label": "all strategies"}, live);
  var note = make("p", {}, live);
  var W = 360, H = 240, L = 46, B = 40, T = 14, R = 16;

  function frame(parent, title, ticks, yTicks, xLabel) {
    parent.textContent = "";
    var svg = make("svg", {viewBox: "0 0 " + W + " " + H, role: "img", "aria-label": title}, parent);
    yTicks.forEach(function (tick) {
      make("line", {"class": "ee-grid", x1: L, x2: W - R, y1: tick[0], y2: tick[0]}, svg);
      make("text", {x: L - 4, y: tick[0] + 4, "text-anchor": "end"}, svg, tick[1]);
    });
    make("path", {"class": "ee-axis", d: "M" + L + " " + T + "V" + (H - B) + "H" + (W - R)}, svg);
    ticks.forEach(function (tick) {
      make("text", {x: tick[0], y: H - B + 16, "text-anchor": "middle"}, svg, tick[1]);
    });
    make("text", {x: (L + W) / 2, y: H - 6, "text-anchor": "middle"}, svg, xLabel);
    return svg;
  }

  function drawCurves(cell, curves, chosen, at) {
    var low = cell.ticks[0], high = cell.ticks[cell.ticks.length - 1], most = Math.max.apply(null, cell.budgets);
    function x(cost) { return L + (W - L - R) * cost / most; }
    function y(value) { return H - B - (H - B - T) * (value - low) / (high - low); }
    var yTicks = cell.ticks.map(function (value) { return [y(value), String(Number(percent(value, 1)))]; });
    var ticks = [0, 0.25, 0.5, 0.75, 1].map(function (place) { return [x(place), percent(place, 0)]; });
    var svg = frame(left, cell.score + " against mean cost", ticks, yTicks, cell.score + ", %, against mean cost, %");
    curves.forEach(function (curve) {
      var mine = curve === chosen, shade = data.colours[curve.strategy];
      if (mine && curve.low[at] !== null) {
        make("line", {x1: x(curve.cost[at]), x2: x(curve.cost[at]), y1: y(Math.max(curve.low[at], low)),
          y2: y(Math.min(curve.high[at], high)), stroke: shade, "stroke-width": 5, opacity: 0.4}, svg);
      }
      var points = curve.cost.map(function (cost, k) { return x(cost) + "," + y(curve.accuracy[k]); });
      make("polyline", {points: points.join(" "), fill: "none", stroke: shade,
        "stroke-width": mine ? 3.5 : 1.5}, svg);
      make("circle", {cx: x(curve.cost[at]), cy: y(curve.accuracy[at]), r: mine ? 6 : 3, fill: shade}, svg);
    });
    make("line", {"class": "ee-mark", x1: x(cell.budgets[at]), x2: x(cell.budgets[at]), y1: T, y2: H - B}, svg);
  }

  function drawShares(cell, curve, at) {
    var step = (W - L - R) / cell.exits, shares = curve.shares[at];
    function y(share) { return H - B - (H - B - T) * share; }
    var ticks = shares.map(function (_, k) { return [L + step * (k + 0.5), String(k + 1)]; });
    var yTicks = [0, 0.25, 0.5, 0.75, 1].map(function (share) { return [y(share), percent(share, 0)]; });
    var svg = frame(right, "share of the samples that leaves at each exit", ticks, yTicks,
      "leave at exit, % of the samples");
    shares.forEach(function (share, k) {
      var bar = make("rect", {x: L + step * (k + 0.12), width: step * 0.76, y: y(share), height: H - B - y(share),
        fill: data.colours[curve.strategy]}, svg);
      make("title", {}, bar, "exit " + (k + 1) + ": " + percent(share, 1) + " %");
      if (share >= 0.005) {
        make("text", {x: L + step * (k + 0.5), y: y(share) - 3, "text-anchor": "middle"}, svg, percent(share, 0));
      }
    });
  }

  function drawTable(curves, chosen, cell, at) {
    rows.textContent = "";
    var table = make("table", {}, rows), head = make("tr", {}, make("thead", {}, table));
    var body = make("tbody", {}, table);
    ["strategy", cell.score + ", %", "95 % interval", "cost, %"].forEach(function (text) {
      make("th", {scope: "col"}, head, text);
    });
    curves.forEach(function (curve) {
      var row = make("tr", curve === chosen ? {"class": "ee-chosen"} : {}, body);
      var name = make("th", {scope: "row"}, row, curve.strategy);
      name.style.borderLeft = ".5rem solid " + data.colours[curve.strategy];
      name.style.paddingLeft = ".4rem";
      make("td", {}, row, percent(curve.accuracy[at], 1));
      var ends = percent(curve.low[at], 1) + " to " + percent(curve.high[at], 1);
      make("td", {}, row, curve.low[at] === null ? "\u2013" : ends);
      make("td", {}, row, percent(curve.cost[at], 1));
    });
  }

  function draw() {
    var cell = data.cells[Number(cellChoice.value)], at = Number(slider.value);
    var curves = cell.curves.filter(function (curve) { return curve.method === methodChoice.value; });
    var chosen = curves.filter(function (curve) { return curve.strategy === strategyChoice.value; })[0];
    var budget = percent(cell.budgets[at], 1) + " %";
    slider.setAttribute("aria-valuetext", budget);
    if (!chosen) {
      output.textContent = "\u2013 (this way to share out the budget has no answer here)";
      left.textContent = right.textContent = rows.textContent = note.textContent = "";
      return;
    }
    output.textContent = "Budget " + budget + ": " + chosen.strategy + " reaches " + percent(chosen.accuracy[at], 1) +
      " % " + cell.score + " on test at a mean cost of " + percent(chosen.cost[at], 1) + " %; " +
      percent(chosen.shares[at][0], 0) + " % of the samples leave at exit 1, " +
      percent(chosen.shares[at][cell.exits - 1], 0) + " % go to the end.";
    drawCurves(cell, curves, chosen, at);
    drawShares(cell, chosen, at);
    drawTable(curves, chosen, cell, at);
    note.textContent = "Means over " + chosen.seeds + " seeds. Thresholds of seed " + chosen.seed + " on the score (" +
      cell.rule + "), exits 1 to " + (cell.exits - 1) + ": " + chosen.thresholds[at].map(threshold).join(", ") + ".";
  }
  root.classList.add("ee-on");
  draw();
})();
