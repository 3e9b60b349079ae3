(() => {
"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures");
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)").matches;
const plots = [...document.querySelectorAll("[data-figure]")];
// Paper is narrower than most windows, and is laid out after this: figures get a width that fits A4 and letter, and a
// view box, by which they shrink on paper that is narrower still.
const PAPER = {figure: 640, map: 300};
const draw = (plot, scheme, print) => {
  const figure = structuredClone(figures[plot.dataset.figure][scheme || (dark.matches ? "dark" : "light")]);
  if (print) figure.layout.width = plot.closest(".maps") ? PAPER.map : PAPER.figure;
  figure.layout.dragmode = coarse ? false : "zoom";
  const drawn = Plotly.react(plot, figure.data, figure.layout, {displayModeBar: false, responsive: !print});
  plot.querySelectorAll(".main-svg").forEach(svg => print
    ? svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`)
    : svg.removeAttribute("viewBox"));
  return drawn;
};
const drawAll = (scheme, print) => plots.forEach(plot => draw(plot, scheme, print));
drawAll();
dark.addEventListener("change", () => drawAll());
addEventListener("beforeprint", () => drawAll("light", true));
addEventListener("afterprint", () => drawAll());
document.querySelectorAll("input[name=cost]").forEach(input => input.addEventListener("change", () => {
  const plot = document.getElementById("pareto");
  plot.dataset.figure = "pareto." + input.value;
  plot.setAttribute("aria-label", input.dataset.alternative);
  draw(plot);
}));
const buttons = (kind, act) => document.querySelectorAll(`button[data-${kind}]`).forEach(
  button => button.addEventListener("click", () => act(button)));
buttons("copy", async button => {
  const block = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(block.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(block);
    button.textContent = "Selected: copy it with the keyboard";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2500);
});
buttons("save", button => {
  const text = JSON.stringify(read("study"), null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = button.dataset.save;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
document.documentElement.dataset.drawn = "yes";
})();
