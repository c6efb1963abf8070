// What the measurements found: printed as it comes, and written down as a table at the end.

import { cpus, hostname, release, totalmem } from 'node:os'
import { mkdir, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'

/** A measurement: a value, or a ratio of ours to another's. */
export interface Figure {
  readonly what: string
  /** With its unit. */
  readonly value: string
  /** In words. */
  readonly goal?: string
  readonly reached?: boolean
}

export interface Part {
  /** As on the command line. */
  readonly name: string
  readonly title: string
  measure(report: Report, options: BenchOptions): Promise<void>
}

export interface BenchOptions {
  /** How often what is compared is measured, in turns. */
  readonly rounds: number
  /** Where images may be made. */
  readonly folder: string
}

/** What is compared in more than one direction. */
interface Table {
  readonly head: readonly string[]
  readonly rows: readonly (readonly string[])[]
}

interface Section {
  readonly title: string
  readonly figures: Figure[]
  readonly tables: Table[]
  readonly remarks: string[]
}

export class Report {
  readonly #sections: Section[] = []
  /** By the end of the file's name. */
  readonly #plots = new Map<string, string>()

  begin(title: string) {
    this.#sections.push({ title, figures: [], tables: [], remarks: [] })
    console.log(`\n${title}`)
  }

  add(figure: Figure) {
    this.#sections.at(-1)!.figures.push(figure)
    const { what, value, goal } = figure
    console.log(`  ${what.padEnd(66)} ${value.padStart(20)}${goal ? `   goal: ${goal} ${verdict(figure)}` : ''}`)
  }

  table(head: readonly string[], rows: readonly (readonly string[])[]) {
    this.#sections.at(-1)!.tables.push({ head, rows })
    const widths = head.map((_, column) => Math.max(...[head, ...rows].map(row => row[column]!.length)))
    for (const row of [head, ...rows])
      console.log(
        `  ${row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!))).join('  ')}`,
      )
  }

  /** Written beside the table, as SVG. */
  plot(name: string, svg: string) {
    this.#plots.set(name, svg)
  }

  remark(text: string) {
    this.#sections.at(-1)!.remarks.push(text)
    console.log(`  ${text}`)
  }

  /** Goals that were not reached. */
  get missed() {
    return this.#sections.flatMap(({ figures }) => figures.filter(({ reached }) => reached === false))
  }

  /** Returns the path of the file. */
  async write(folder: string, names: readonly string[], at = new Date()): Promise<string> {
    await mkdir(folder, { recursive: true })
    const day = at.toISOString().slice(0, 16).replace(':', '')
    const path = join(folder, `${day}-${hostname()}-${names.join('-')}.md`)
    const [{ model } = { model: 'unknown' }] = cpus()
    const lines = [
      `# ${names.join(', ')}, ${at.toISOString()}`,
      '',
      `${hostname()}: ${cpus().length} x ${model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, Node ${process.version}`,
    ]
    for (const { title, figures, tables, remarks } of this.#sections) {
      lines.push('', `## ${title}`)
      for (const { head, rows } of tables)
        lines.push(
          '',
          ...[head, head.map((_, column) => (column === 0 ? '---' : '--:')), ...rows].map(row => `| ${row.join(' | ')} |`),
        )
      if (figures.length > 0) lines.push('', '| | | goal | |', '|---|---|---|---|')
      for (const figure of figures) lines.push(`| ${figure.what} | ${figure.value} | ${figure.goal ?? ''} | ${verdict(figure)} |`)
      for (const remark of remarks) lines.push('', remark)
    }
    for (const [name, svg] of this.#plots) {
      const plot = `${path.slice(0, -'.md'.length)}-${name}.svg`
      await writeFile(plot, svg)
      lines.push('', `![${name}](${basename(plot)})`)
    }
    await writeFile(path, `${lines.join('\n')}\n`)
    return path
  }
}

const verdict = ({ reached }: Figure) => (reached === undefined ? '' : reached ? 'reached' : 'MISSED')

export const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!

/** A median, and between what the values were. */
export function spread(values: readonly number[], unit = '') {
  const [least, most] = [Math.min(...values), Math.max(...values)]
  return `${digits(median(values))}${unit} (${digits(least)} to ${digits(most)})`
}

export const digits = (value: number) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2))
