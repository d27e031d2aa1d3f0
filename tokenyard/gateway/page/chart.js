// Pictures as inline SVG. Their widths stretch, so no text is in them.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

function shape(name, attributes) {
  const found = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  return found;
}

// Steps from `below` up to `values`, both a number for each interval; `most` is the top of the picture.
function steps(kind, values, below, most) {
  const y = (value) => (HEIGHT * (1 - Math.min(value / most, 1))).toFixed(2);
  const up = values.map((value, n) => `L${n} ${y(value)}L${n + 1} ${y(value)}`).join("");
  const down = below.map((value, n) => `L${n + 1} ${y(value)}L${n} ${y(value)}`).reverse().join("");
  return shape("path", { class: kind, d: `M0 ${y(0)}${up}${down}Z` });
}

function frame(intervals, label, shapes) {
  const attributes = { viewBox: `0 0 ${Math.max(intervals, 1)} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
  const svg = shape("svg", { ...attributes, "aria-label": label });
  svg.append(...shapes);
  return svg;
}

// Layers one above the other: [[class, values], ...]; and the bound as a dashed line, where it is known.
export function stacked(layers, bound, label) {
  const count = layers[0][1].length;
  let below = new Array(count).fill(0);
  const tops = layers.map(([kind, values]) => {
    const base = below;
    below = values.map((value, n) => value + base[n]);
    return [kind, below, base];
  });
  const most = Math.max(1, bound ?? 0, ...below) * 1.05;
  const shapes = tops.map(([kind, values, base]) => steps(kind, values, base, most));
  if (bound) {
    const y = HEIGHT * (1 - bound / most);
    shapes.push(shape("path", { class: "bound", d: `M0 ${y}L${Math.max(count, 1)} ${y}` }));
  }
  return { svg: frame(count, label, shapes), most };
}

// One device's running jobs.
export function lane(values, most, label) {
  return frame(values.length, label, [steps("running", values, values.map(() => 0), Math.max(most, 1e-9))]);
}
