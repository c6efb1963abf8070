// Tables and lists of facts: aligned with spaces, two between columns, nothing to the right of the last one.

import { clean } from './format.ts'

export interface Column<Row> {
  readonly title: string
  /** undefined is shown as "-". */
  readonly of: (row: Row) => string | number | undefined
  /** For numbers and sizes. */
  readonly right?: boolean
}

/** With a line of titles; nothing at all where there are no rows. */
export function table<Row>(rows: readonly Row[], columns: readonly Column<Row>[]): string {
  if (rows.length === 0) return ''
  const cells = [columns.map(({ title }) => title), ...rows.map(row => columns.map(({ of }) => clean(String(of(row) ?? '-'))))]
  const widths = columns.map((_, index) => Math.max(...cells.map(line => line[index]!.length)))
  const lines = cells.map(line =>
    line.map((cell, index) => (columns[index]!.right ? cell.padStart(widths[index]!) : cell.padEnd(widths[index]!))).join('  '),
  )
  return lines.map(line => `${line.trimEnd()}\n`).join('')
}

/** A name and what is known of it on each line; what is undefined is left out. */
export function facts(all: Readonly<Record<string, string | number | undefined>>): string {
  const known = Object.entries(all).filter(([, value]) => value !== undefined)
  const width = Math.max(0, ...known.map(([name]) => name.length))
  return known.map(([name, value]) => `${name.padEnd(width)}  ${clean(String(value))}\n`).join('')
}
