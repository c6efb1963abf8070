// Elements, made of what they hold. Text is text whatever it says: nothing here ever reads it as markup.

const SVG = 'http://www.w3.org/2000/svg'

/** Attributes that are undefined or false are left out. Children are nodes, texts, or lists of them. */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : String(value))
  }
  element.append(...children.flat(Infinity).filter(child => child !== undefined && child !== false && child !== ''))
  return element
}

export const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children)

export const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children)

const shown = new WeakMap()

/** Makes the content of an element anew where the data differs from what it was made of; what a reader has opened stays open. */
export function show(element, data, make) {
  const text = JSON.stringify(data)
  if (shown.get(element) === text) return
  shown.set(element, text)
  const opened = new Set([...element.querySelectorAll('details[open]')].map(({ dataset }) => dataset.key))
  const focused = element.contains(document.activeElement) ? document.activeElement.closest('[data-key]')?.dataset.key : undefined
  element.replaceChildren(...[make(data)].flat(Infinity))
  for (const details of element.querySelectorAll('details')) if (opened.has(details.dataset.key)) details.open = true
  if (focused === undefined) return
  const again = [...element.querySelectorAll('[data-key]')].find(({ dataset }) => dataset.key === focused)
  ;(again?.querySelector('summary') ?? again)?.focus({ preventScroll: true })
}

/**
 * A table: `columns` of { title, of, right, className }; the first column heads its rows. One that stacks has each row as a block on a narrow screen, with the
 * titles in front of what they say; what it is to assistive programs it then has to say itself.
 */
export function table({ caption, columns, rows, className, key, stacks = false }) {
  const role = name => stacks && name
  const cell = ({ title, of, right, className }, row, index) =>
    el(
      index === 0 ? 'th' : 'td',
      {
        scope: index === 0 && 'row',
        role: role(index === 0 ? 'rowheader' : 'cell'),
        class: [right && 'right', className].filter(Boolean).join(' ') || false,
        'data-label': stacks && index > 0 && title,
      },
      of(row),
    )
  return el(
    'div',
    { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': caption, 'data-key': key ?? caption },
    el(
      'table',
      { class: stacks ? 'stacks' : className, role: role('table') },
      el('caption', {}, caption),
      el(
        'thead',
        { role: role('rowgroup') },
        el(
          'tr',
          { role: role('row') },
          columns.map(({ title, right, className }) =>
            el(
              'th',
              {
                scope: 'col',
                role: role('columnheader'),
                class: [right && 'right', className].filter(Boolean).join(' ') || false,
              },
              title,
            ),
          ),
        ),
      ),
      el(
        'tbody',
        { role: role('rowgroup') },
        rows.map(row =>
          el(
            'tr',
            { role: role('row') },
            columns.map((column, index) => cell(column, row, index)),
          ),
        ),
      ),
    ),
  )
}
