// Fetches the page again and swaps in what is new: nothing flickers, and the place on the page is kept.
const every = 5000;
async function update() {
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    const shown = document.querySelector("main");
    if (fresh && fresh.innerHTML !== shown.innerHTML) shown.replaceWith(fresh);
    document.querySelector("#lost").hidden = true;
  } catch {
    document.querySelector("#lost").hidden = false;
  }
  setTimeout(update, every);
}
setTimeout(update, every);
