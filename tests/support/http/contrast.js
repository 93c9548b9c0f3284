// Measures the contrast of every visible text on the board, and of the colours that carry meaning (WCAG 2).
(() => {
  const channels = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (a, b) => {
    const [hi, lo] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (hi + 0.05) / (lo + 0.05);
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = channels(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  let texts = 0;
  let lowest = 99;
  const check = (element, found, required, label) => {
    lowest = Math.min(lowest, Math.round(found * 100) / 100);
    if (found < required) low.push(`${label} ${found.toFixed(2)} ${element.className} ${element.textContent.slice(0, 40)}`);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest(".unseen, script, style")) continue;
    texts += 1;
    check(element, ratio(channels(getComputedStyle(element).color), background(element)), 4.5, "text");
  }
  const root = getComputedStyle(document.documentElement);
  const probe = document.createElement("i");
  document.body.append(probe);
  const card = background(document.querySelector(".card"));
  for (const name of ["--handler", "--worker", "--cut", "--good", "--bad"]) {
    probe.setAttribute("hidden", "");
    probe.style.color = root.getPropertyValue(name);
    check(probe, ratio(channels(getComputedStyle(probe).color), card), 3, name);
  }
  probe.remove();
  return JSON.stringify({ texts, low, lowest });
})()
