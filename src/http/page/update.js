// Fetches the page again and swaps in the parts that are new: nothing flickers, and a selection or place is kept.
const every = 5000;
async function fresh() {
  const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(every) });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
  // A proxy's error page does not come from the exporter.
  if (!answer.ok || !page) throw new Error("no page");
  return page;
}
function swap(page) {
  const shown = document.querySelector("main");
  if (shown.children.length !== page.children.length) return shown.replaceWith(page);
  [...page.children].forEach((part, place) => {
    if (part.outerHTML !== shown.children[place].outerHTML) shown.children[place].replaceWith(part);
  });
}
let updated = new Date();
async function update() {
  const page = await fresh().catch(() => null);
  const lost = document.querySelector("#lost");
  lost.hidden = page !== null;
  if (page) {
    updated = new Date();
    swap(page);
  } else {
    lost.textContent = `Exporter unreachable. The data below is from ${updated.toLocaleTimeString()}.`;
  }
  setTimeout(update, every);
}
setTimeout(update, every);
