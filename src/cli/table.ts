// Tables and lists of facts: aligned with spaces, two between columns, nothing to the right of the last one. On a terminal that is too narrow for a
// table its last column goes on in further lines, or each row is told as a list; what is piped is the same everywhere.

import { clean } from './format.ts'

export interface Column<Row> {
  readonly title: string
  /** undefined is shown as "-". */
  readonly of: (row: Row) => string | number | undefined
  /** For numbers and sizes. */
  readonly right?: boolean
}

/** The last column is not made narrower than this. */
const LEAST = 24

/** Of the terminal that the answer goes to, where it goes to one. */
const terminalWidth = () => (process.stdout.isTTY ? process.stdout.columns || 80 : Infinity)

/** With a line of titles; nothing at all where there are no rows. */
export function table<Row>(rows: readonly Row[], columns: readonly Column<Row>[], width = terminalWidth()): string {
  if (rows.length === 0) return ''
  const cells = [columns.map(({ title }) => title), ...rows.map(row => columns.map(({ of }) => clean(String(of(row) ?? '-'))))]
  const widths = columns.map((_, index) => Math.max(...cells.map(line => line[index]!.length)))
  const before = widths.slice(0, -1).reduce((sum, one) => sum + one + 2, 0)
  const last = widths.at(-1)!
  if (before + last > width && (columns.at(-1)!.right || before + LEAST > width))
    return cells
      .slice(1)
      .map(line => facts(Object.fromEntries(columns.map(({ title }, index) => [title, told(line[index]!)])), width))
      .join('\n')
  const lines = cells.map(line => {
    const aligned = line.map((cell, index) => {
      if (index === line.length - 1 && before + last > width) return wrapped(cell, before, width)
      return columns[index]!.right ? cell.padStart(widths[index]!) : cell.padEnd(widths[index]!)
    })
    return aligned.join('  ')
  })
  return lines.map(line => `${line.trimEnd()}\n`).join('')
}

const told = (cell: string) => (cell === '-' ? undefined : cell)

/** A name and what is known of it on each line; what is undefined is left out. */
export function facts(all: Readonly<Record<string, string | number | undefined>>, width = terminalWidth()): string {
  const known = Object.entries(all).filter(([, value]) => value !== undefined)
  const names = Math.max(0, ...known.map(([name]) => name.length))
  return known.map(([name, value]) => `${name.padEnd(names)}  ${wrapped(clean(String(value)), names + 2, width)}\n`).join('')
}

/** What does not fit goes on below, between words; a word that is longer than a line is left to the terminal. */
function wrapped(text: string, indent: number, width: number): string {
  const room = Math.max(LEAST, width - indent)
  if (text.length <= room) return text
  const lines = ['']
  for (const word of text.split(' ')) {
    const line = lines.at(-1)!
    if (line === '') lines[lines.length - 1] = word
    else if (line.length + 1 + word.length <= room) lines[lines.length - 1] = `${line} ${word}`
    else lines.push(word)
  }
  return lines.join(`\n${' '.repeat(indent)}`)
}
