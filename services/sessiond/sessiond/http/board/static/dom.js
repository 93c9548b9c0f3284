// Elements. Whatever comes from the service becomes a text node or an attribute of ours, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with a class and children; strings become text nodes. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return element;
}

/** Sets the text only if it is another one: screen readers and selections stay where they are. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Gives the parent these children, keyed: an element whose `print` is unchanged stays the same element. */
export function list(parent, items, keyOf, build) {
  const had = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    const print = JSON.stringify(item);
    let element = had.get(key);
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
    had.delete(key);
  }
  for (const gone of had.values()) gone.remove();
}
