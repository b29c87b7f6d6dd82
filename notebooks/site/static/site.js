// What can be moved sideways must be reachable by keyboard: a long line of code, a wide table, a figure on a phone.

const BOXES = "article pre, article .table-wrapper, article .cell_output > .output, article .cell_output:has(> img)";

function reachable() {
  for (const box of document.querySelectorAll(BOXES)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

let waiting = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(reachable);
});
addEventListener("load", reachable);
