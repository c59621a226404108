"""The fixed parts of a page: its head, style, and of that of a placement skeleton and script."""

from __future__ import annotations

from string import Template

HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
<h1>$title</h1>
"""
PAGE = Template(
    HEAD
    + """\
<p>$mesh. A <em>tree</em> is what a training step keeps of each parameter: as stored, as the passes
use it, its gradient once reduced, its optimizer state. Bytes are those of one device.</p>

<h2 id="who">Which device holds which part</h2>
<p>Each box is the whole tensor, as one device sees it, coloured where the device holds it; equal
colours are equal parts. Devices are numbered by their place in the mesh.</p>
<p><label>Parameter <select id="parameter">$options</select></label> <span id="caption"></span></p>
<noscript>The pictures need JavaScript; the table below does not.</noscript>
<div id="pictures" aria-live="polite"></div>

<h2>Parameters</h2>
<div class="scroll"><table>
<thead><tr><th scope="col">parameter</th>$totals</tr></thead>
<tbody>
$rows
</tbody></table></div>

<h2>Rules</h2>
<p>Tried in this order; the first that matches the whole path of a parameter places it. Replicated
is what the rule itself, and not the layout, leaves whole on every device.</p>
<div class="scroll"><table>
<thead><tr><th scope="col">rule</th><th scope="col">regex</th><th scope="col">specs</th>
<th scope="col">tensors</th><th scope="col">bytes</th><th scope="col">replicated</th></tr></thead>
<tbody>
$rules
</tbody></table></div>

<h2>Moved through each device in a step</h2>
<ul>
$moved
</ul>
<script type="application/json" id="data">$pictures</script>
<script>$script</script>
</html>
"""
)

STYLE = """
:root { --ink: #1b1f24; --dim: #59636e; --paper: #fff; --line: #d1d9e0; --empty: #eef1f4;
  --whole: #8c959f; --light: 48% }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #9aa4ae; --paper: #10141a; --line: #353c45; --empty: #1c222a;
    --whole: #7d8590; --light: 58% }
}
* { box-sizing: border-box }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1.5rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .5rem 0; color: var(--dim); max-width: 60rem }
select { font: inherit; color: inherit; background: var(--paper); padding: .2rem .4rem;
  border: 1px solid var(--line); border-radius: 4px; max-width: 100% }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0; font-weight: normal;
  border-bottom: 1px solid var(--line); white-space: nowrap }
thead th { color: var(--dim) } thead b { color: var(--ink) }
tbody th { font-weight: 600 }
small, table b { display: block; font-size: .85rem }
small { color: var(--dim); font-weight: normal }
#pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr));
  gap: 1.5rem 2rem }
figure { margin: 0 } figcaption { margin-bottom: .4rem }
figcaption small { display: inline; margin-left: .6rem }
.devices { display: grid; grid-template-columns: repeat(8, 1fr); gap: 6px }
.device { font-size: .7rem; color: var(--dim); text-align: center; line-height: 1.3 }
.tensor { position: relative; height: 2.2rem; background: var(--empty);
  border: 1px solid var(--line) }
.part { position: absolute; min-width: 3px; min-height: 3px }
ul { padding-left: 1.2rem }
"""

SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const select = document.getElementById('parameter');

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

// Which part of the tensor a device holds, in words: "D 0:48, F 0:6144".
function range(tensor, parts, number) {
  return tensor.shape.map((size, dim) => {
    const length = size / parts[dim];
    return `${tensor.names[dim]} ${number[dim] * length}:${(number[dim] + 1) * length}`;
  }).join(', ');
}

function place(part, parts, number, dim, start, length) {
  const count = dim === null ? 1 : parts[dim];
  const at = dim === null ? 0 : number[dim];
  part.style[start] = `min(${100 * at / count}%, 100% - 3px)`;
  part.style[length] = `${100 / count}%`;
}

function figure(name, tensor, tree) {
  const figure = element('figure');
  const whole = tree.parts.every(count => count === 1);
  const caption = element('figcaption', '', name);
  caption.append(element('small', '', whole
    ? `whole on every device, ${tree.bytes}`
    : `${tree.split}: ${tree.shape} on each device, ${tree.bytes}`));
  const grid = element('div', 'devices');
  grid.setAttribute('role', 'list');
  if (tree.devices.length > 64) grid.style.gridTemplateColumns = 'repeat(16, 1fr)';
  const total = tree.parts.reduce((a, b) => a * b, 1);
  tree.devices.forEach((number, device) => {
    const cell = element('div', 'device');
    const box = element('div', 'tensor');
    const part = element('div', 'part');
    place(part, tree.parts, number, tensor.across, 'left', 'width');
    place(part, tree.parts, number, tensor.down, 'top', 'height');
    const rank = number.reduce((sum, at, dim) => sum * tree.parts[dim] + at, 0);
    part.style.background =
      whole ? 'var(--whole)' : `hsl(${Math.round(300 * rank / total)} 65% var(--light))`;
    cell.title = `device ${device}: ${range(tensor, tree.parts, number)}`;
    cell.setAttribute('role', 'listitem');
    cell.setAttribute('aria-label', cell.title);
    box.append(part);
    cell.append(box, String(device));
    grid.append(cell);
  });
  figure.append(caption, grid);
  return figure;
}

function draw() {
  const tensor = data[select.value];
  const axes = [tensor.across, tensor.down].filter(dim => dim !== null)
    .map((dim, place) => `${tensor.names[dim]} runs ${place ? 'down' : 'across'}`);
  document.getElementById('caption').textContent =
    `${tensor.names.map((name, dim) => name + tensor.shape[dim]).join(' ')}; ${axes.join(', ')}`;
  const figures = Object.entries(tensor.trees).map(([name, tree]) => figure(name, tensor, tree));
  document.getElementById('pictures').replaceChildren(...figures);
}

select.addEventListener('change', draw);
draw();
"""
