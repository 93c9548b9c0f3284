// Elements. Data from the service becomes a text node or an attribute value, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with a class and children. Strings become text nodes. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return element;
}

/** Sets the text only if it changes, so that screen readers and selections are not disturbed. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Gives the parent one child for each item. An element whose item is unchanged stays the same element. */
export function list(parent, items, keyOf, build) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    const print = JSON.stringify(item);
    let element = old.get(key);
    if (element && element.dataset.print !== print) {
      const fresh = build(item);
      if (element === place) place = fresh;
      element.replaceWith(fresh);
      element = fresh;
    }
    element ??= build(item);
    element.dataset.key = key;
    element.dataset.print = print;
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
    old.delete(key);
  }
  for (const unused of old.values()) unused.remove();
}
